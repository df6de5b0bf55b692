// Who holds the lock of an object in servers/ alone may remove it, so that nothing goes that a new
// server has made meanwhile.
#include "control/servers.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "backend/layout.h"
#include "backend/lock.h"
#include "base/error.h"
#include "base/host.h"
#include "base/text.h"
#include "template/store_identity.h"

namespace tplstore::control {
namespace {

constexpr std::string_view kSuffix = ".sock";
// Servers in different namespaces of pids can have the same pid and one store.
constexpr int kServersOfPidMax = 64;
constexpr std::chrono::milliseconds kConnectTimeout{500};
constexpr std::chrono::seconds kSignInterval{5};

bool is_usable(const std::string& path, bool makes) {
  if (makes && ::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return false;
  struct stat folder {
  }, around{};
  if (::lstat(path.c_str(), &folder) != 0 || !S_ISDIR(folder.st_mode) ||
      ::stat((path + "/..").c_str(), &around) != 0)
    return false;
  const bool is_safe_place = (around.st_mode & S_IWOTH) == 0 || folder.st_uid == ::geteuid();
  return is_safe_place && (folder.st_mode & S_IWOTH) == 0 &&
         ::faccessat(AT_FDCWD, path.c_str(), W_OK | X_OK, AT_EACCESS) == 0;
}

std::string object_of(const Uuid& host, const std::string& process) {
  return fmt::format("{}/{}.{}", paths::kServers, host.text(), process);
}

// What stands behind the id of this host in the name of an object; nothing when that is not there.
std::string process_of(const std::string& object) {
  for (const Uuid& id : {this_host().host_id, this_host().machine_id})
    if (const std::string prefix = object_of(id, ""); object.starts_with(prefix))
      return object.substr(prefix.size());
  return "";
}

// `process` is a pid, or one with a number behind it.
ServerPlace place_of(Backend& backend, const std::string& object, const std::string& process,
                     const std::string& directory) {
  return {object, directory,
          fmt::format("{}.{}{}", load_store_uuid(backend).text(), process, kSuffix)};
}

// Each with a line of its own. The last one rises.
std::string content_of(const ServerPlace& place, uint64_t signatures) {
  const HostIdentity& host = this_host();
  return fmt::format("{}\n{}\n{}\n{:016x}\n", place.path(), host.boot_id.text(), host.host_name,
                     signatures);
}
constexpr size_t kContentBytesMax = PATH_MAX + 512;

std::vector<std::string> lines_of(const std::string& content) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < content.size();) {
    const size_t end = std::min(content.find('\n', at), content.size());
    lines.push_back(content.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

// The socket goes if nobody listens: who has copied a store has what leads to the original's.
void remove_stale_socket(const ServerPlace& place) {
  const std::string path = place.path();
  struct stat before {
  }, now{};
  if (::lstat(path.c_str(), &before) != 0 || !S_ISSOCK(before.st_mode)) return;
  if (connect_to(place, Clock::now() + kConnectTimeout)) return;
  if (::lstat(path.c_str(), &now) == 0 && now.st_ino == before.st_ino) ::unlink(path.c_str());
}

// Where an object leads to: without a directory when that is no socket of this store. Its boot is
// nil where it says none.
ServerPlace read_place(Backend& backend, const std::string& object, const std::string& process,
                       const std::string& own_directory, Uuid* boot = nullptr) {
  ServerPlace place = place_of(backend, object, process, own_directory);
  const auto content = backend.get(place.object, kContentBytesMax);
  if (!content || content->empty()) return place;
  const std::vector<std::string> lines = lines_of(to_text(*content));
  const std::string& path = lines.front();
  if (boot != nullptr && lines.size() > 1) parse_uuid(lines[1], *boot);
  const bool is_sound = path.starts_with('/') && path.ends_with("/" + place.socket);
  place.directory = is_sound ? path.substr(0, path.size() - place.socket.size() - 1) : "";
  return place;
}

// What a dead server has left. Who may not write to the store leaves it to somebody who may.
void remove_if_dead(Backend& backend, const std::string& object, const std::string& process,
                    const std::string& own_directory) {
  try {
    const auto lock = backend.try_lock(object, LockMode::kExclusive);
    if (!lock) return;
    const ServerPlace place = read_place(backend, object, process, own_directory);
    backend.remove(object);
    if (!place.directory.empty()) remove_stale_socket(place);
  } catch (const Error&) {
  }
}

// A host that was cloned with its ids takes what is the other one's for its own.
void fail_if_cloned(Backend& backend) {
  for (const std::string& name : backend.list(std::string(paths::kServers))) {
    const std::string object = fmt::format("{}/{}", paths::kServers, name);
    const std::string process = process_of(object);
    try {
      if (process.empty() || !backend.is_locked(object)) continue;
      Uuid boot;
      read_place(backend, object, process, "", &boot);
      if (!boot.is_nil() && boot != this_host().boot_id)
        fail(EBUSY, object,
             "is of a server that runs on another host with the ids of this one, so neither could "
             "tell what is whose: on one of the two, which was cloned, remove {} and start again",
             kHostIdFile);
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;  // gone since it was listed
    }
  }
}

}  // namespace

std::string usable_directory(const std::vector<std::string>& candidates, bool makes) {
  for (const std::string& candidate : candidates)
    if (is_usable(candidate, makes)) return candidate;
  if (makes)
    fail(EACCES, "control socket",
         "there is no run directory that can be written to: make {}, or set XDG_RUNTIME_DIR",
         candidates.front());
  return candidates.back();
}

std::string run_directory(bool makes) {
  std::vector<std::string> candidates = {"/run/tplstore"};
  if (const char* of_user = std::getenv("XDG_RUNTIME_DIR"); of_user != nullptr && *of_user == '/')
    candidates.push_back(std::string(of_user) + "/tplstore");
  candidates.push_back(fmt::format("/tmp/tplstore-{}", ::geteuid()));
  return usable_directory(candidates, makes);
}

std::string ServerPlace::describe() const {
  const size_t dot = socket.find('.');
  return "server " + socket.substr(dot + 1, socket.find('.', dot + 1) - dot - 1);
}

std::string ServerPlace::pid() const {
  const size_t begin = socket.find('.') + 1;
  return socket.substr(begin, socket.find_first_of("-.", begin) - begin);
}

Announcement::Announcement(Backend& backend, const std::string& directory) : backend_(backend) {
  fail_if_cloned(backend);
  for (int i = 0; i < kServersOfPidMax; ++i) {
    const std::string pid = std::to_string(::getpid());
    const std::string process = i == 0 ? pid : fmt::format("{}-{}", pid, i);
    place_ = place_of(backend, object_of(this_host().host_id, process), process, directory);
    try {
      remove_if_dead(backend, place_.object, process, directory);
      try {
        if (!backend.put_new(place_.object, as_bytes(content_of(place_, 0)))) continue;
      } catch (const Error& error) {
        if (error.code() != ENOSPC && error.code() != EDQUOT) throw;
        backend.create(place_.object, 0, Purpose::kMetadata);
      }
      lock_ = backend.try_lock(place_.object, LockMode::kShared);
    } catch (const Error& error) {
      // Somebody has just taken it for a dead one's, or has the name.
      if (error.code() != ENOENT && error.code() != EEXIST) throw;
    }
    if (lock_) {
      check_lock_is_seen(backend, place_.object);
      return;
    }
  }
  fail(EADDRINUSE, place_.object, "other servers have all such names");
}

Announcement::~Announcement() {
  ::unlink(place_.path().c_str());
  try {
    backend_.remove(place_.object);
  } catch (const std::exception&) {
    // Somebody will do it who meets it unlocked.
  }
}

void Announcement::sign() {
  const auto object = backend_.open(place_.object, Access::kWrite, Purpose::kMetadata);
  const std::string content = content_of(place_, ++signatures_);
  if (object->size_bytes() != content.size()) return;
  object->write(0, as_bytes(content));
  object->sync();
}

std::vector<Neighbours::Unseen> Neighbours::look(Backend& backend) {
  std::vector<Unseen> unseen;
  std::map<std::string, std::string> before = std::exchange(free_, {});
  for (const std::string& name : backend.list(std::string(paths::kServers))) {
    const std::string object = fmt::format("{}/{}", paths::kServers, name);
    try {
      if (!process_of(object).empty() || backend.is_locked(object)) continue;
      const auto read = backend.get(object, kContentBytesMax);
      if (!read || backend.is_locked(object)) continue;
      const std::string content = to_text(*read);
      const auto known = before.find(object);
      const std::vector<std::string> lines = lines_of(content);
      // One that has taken a dead one's name begins to count anew.
      if (known != before.end() && content > known->second && lines.size() > 2)
        unseen.push_back({object, lines[2]});
      free_.emplace(object, content);
    } catch (const Error&) {
      // Gone since it was listed, or none of ours.
    }
  }
  return unseen;
}

NeighbourWatch::NeighbourWatch(Backend& backend, Announcement& own, Log log)
    : thread_([&backend, &own, log = std::move(log)](const std::stop_token& stop) {
        Neighbours neighbours;
        std::set<std::string> told;
        std::mutex mutex;
        std::condition_variable_any stopped;
        while (!stop.stop_requested()) {
          try {
            own.sign();
            for (const auto& [object, host_name] : neighbours.look(backend))
              if (told.insert(object).second)
                log(fmt::format(
                    "{}: a server of host {} is at work, and its file lock is not seen here: file "
                    "locks do not meet between these hosts on {}; see 'Several hosts' in "
                    "nbdkit-tplstore-plugin(1)",
                    backend.describe(), printable(host_name), backend.kind().name));
          } catch (const std::exception&) {
            // The storage is away, or memory is short: the next time.
          }
          std::unique_lock guard(mutex);
          stopped.wait_for(guard, stop, kSignInterval, [] { return false; });
        }
      }) {}

std::vector<ServerPlace> find_servers(Backend& backend, const std::string& own_directory) {
  std::vector<ServerPlace> places;
  for (const std::string& name : backend.list(std::string(paths::kServers))) {
    const std::string object = fmt::format("{}/{}", paths::kServers, name);
    const std::string process = process_of(object);
    if (process.empty()) continue;
    try {
      if (!backend.is_locked(object)) {
        remove_if_dead(backend, object, process, own_directory);
        continue;
      }
      places.push_back(read_place(backend, object, process, own_directory));
      if (places.back().directory.empty())
        fail(EIO, object, "damaged: it leads to no socket of this store; remove it");
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;  // gone since it was listed
    }
  }
  return places;
}

std::optional<ucred> peer_of(int socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return std::nullopt;
  return peer;
}

std::vector<ServerPlace> find_servers_of(pid_t pid, const std::string& directory) {
  std::vector<ServerPlace> places;
  std::error_code unreadable;
  for (const auto& entry : std::filesystem::directory_iterator(directory, unreadable)) {
    const ServerPlace place{"", directory, entry.path().filename().string()};
    if (!place.socket.ends_with(kSuffix) || place.pid() != std::to_string(pid)) continue;
    try {
      // A dead one's name tells nothing, nor does one of another namespace of pids.
      const FileDescriptor socket = connect_to(place, Clock::now() + kConnectTimeout);
      if (!socket) continue;
      const auto peer = peer_of(socket.get());
      if (peer && peer->pid == pid) places.push_back(place);
    } catch (const Error& error) {
      if (error.code() != EACCES) throw;  // another user's
    }
  }
  return places;
}

FileDescriptor connect_to(const ServerPlace& place, Clock::time_point deadline) {
  const FileDescriptor folder(::open(place.directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct stat status {};
  if (!folder || ::fstatat(folder.get(), place.socket.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return FileDescriptor();
    fail_errno(errno, place.path(), "connecting to the control socket");
  }
  return S_ISSOCK(status.st_mode) ? connect_to(folder.get(), place.socket, deadline)
                                  : FileDescriptor();
}

}  // namespace tplstore::control
