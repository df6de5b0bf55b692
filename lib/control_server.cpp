#include "control_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "control_socket.h"
#include "json_output.h"
#include "names.h"

namespace tplstore {
namespace {

using nlohmann::json;

constexpr size_t kConnectionsMax = 32;
// A client that does not take its answer for this long is given up.
constexpr auto kAnswerTimeout = std::chrono::seconds(10);
// A connection younger than this is about to send its request.
constexpr auto kIdleMin = std::chrono::seconds(1);
// Servers in different pid namespaces can have the same pid and one store.
constexpr int kNamesMax = 64;

json error_answer(int code, std::string_view name, std::string_view object,
                  std::string_view message) {
  return {{"ok", false}, {"errno", code}, {"code", name}, {"object", object}, {"error", message}};
}

json error_answer(const Error& error) {
  const char* name = strerrorname_np(error.code());
  return error_answer(error.code(), name ? name : "EIO", error.object(), error.what());
}

std::string text_of(const json& request, const char* key) {
  const auto found = request.find(key);
  if (found == request.end() || !found->is_string())
    fail(EINVAL, "control request", "it has no \"{}\", which must be a text", key);
  return found->get<std::string>();
}

std::string optional_text_of(const json& request, const char* key) {
  return request.contains(key) && !request[key].is_null() ? text_of(request, key) : "";
}

uint64_t size_of(const json& request) {
  const auto size = request.find("size");
  if (size == request.end() || !size->is_number_unsigned())
    fail(EINVAL, "control request", "it has no \"size\", which must be a number of bytes");
  return size->get<uint64_t>();
}

std::vector<std::string> texts_of(const json& request, const char* key) {
  std::vector<std::string> texts;
  const auto found = request.find(key);
  const bool is_list = found != request.end() && found->is_array();
  if (is_list)
    for (const json& text : *found)
      if (text.is_string()) texts.push_back(text.get<std::string>());
  if (!is_list || texts.size() != found->size())
    fail(EINVAL, "control request", "it has no \"{}\", which must be a list of texts", key);
  return texts;
}

// What concerns a volume that is open here.
using Operation = json (*)(Store&, const std::string& volume, const json& request);

json diff(Store& store, const std::string& volume, const json& request) {
  std::vector<ChangedRange> changes;
  store.diff_versions(volume, text_of(request, "from"), optional_text_of(request, "to"),
                      [&](const ChangedRange& change) { changes.push_back(change); });
  return changes_json(changes);
}

const std::map<std::string_view, Operation> kOperations = {
    {"volume-show", [](Store& store, const std::string& volume,
                       const json&) { return volume_json(store.show_volume(volume), true); }},
    {"volume-resize",
     [](Store& store, const std::string& volume, const json& request) {
       return volume_json(store.resize_volume(volume, size_of(request)), false);
     }},
    {"volume-fork",
     [](Store& store, const std::string& volume, const json& request) {
       return volume_json(store.fork_volume(text_of(request, "name"), volume,
                                            text_of(request, "version"), size_of(request)),
                          false);
     }},
    {"volume-flatten",
     [](Store& store, const std::string& volume, const json&) {
       return volume_json(store.flatten_volume(volume, [](uint64_t) {}), false);
     }},
    {"volume-reclaim",
     [](Store& store, const std::string& volume, const json&) {
       store.reclaim_volume(volume);
       return json::object();
     }},
    {"version-list", [](Store& store, const std::string& volume,
                        const json&) { return versions_json(store.list_versions(volume)); }},
    {"version-create",
     [](Store& store, const std::string& volume, const json& request) {
       return version_json(store.create_version(
           volume, {optional_text_of(request, "name"), optional_text_of(request, "note"), {}}));
     }},
    {"version-rollback",
     [](Store& store, const std::string& volume, const json& request) {
       return version_json(store.rollback(volume, text_of(request, "version")));
     }},
    {"version-rm",
     [](Store& store, const std::string& volume, const json& request) {
       return versions_json(store.remove_versions(volume, texts_of(request, "versions")));
     }},
    {"version-diff", diff},
};

// The whole answer to a request, but for what goes wrong.
json perform(Store& store, const json& request) {
  if (!request.is_object()) fail(EINVAL, "control request", "it is not a JSON object");
  const std::string op = text_of(request, "op");
  const auto answer = [](json result) { return json{{"ok", true}, {"result", std::move(result)}}; };
  const json self = {{"pid", ::getpid()}, {"version", TPLSTORE_VERSION}};
  if (op == "ping") return answer(self);
  if (op == "stats") {
    json stats = stats_json(store.stats());
    stats["servers"].push_back(self);
    return answer(std::move(stats));
  }
  if (op == "reclaim") {
    store.reclaim();
    return answer(self);
  }
  const auto operation = kOperations.find(op);
  if (operation == kOperations.end()) fail(EINVAL, "control request", "there is no such operation");

  const std::string volume = text_of(request, "volume");
  check_name("volume", volume);
  if (!store.is_open(volume))
    return error_answer(ENOENT, control::kCodeNotOpen, volume,
                        volume + ": this server does not have it open");
  return answer(operation->second(store, volume, request));
}

bool is_allowed(int socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
         (peer.uid == 0 || peer.uid == ::geteuid());
}

ino_t inode_at(int folder, const std::string& name) {
  struct stat status {};
  return ::fstatat(folder, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 ? status.st_ino : 0;
}

}  // namespace

std::string answer_control_request(Store& store, std::string_view request) noexcept {
  try {
    json answer;
    try {
      const json parsed = json::parse(request, nullptr, /*allow_exceptions=*/false);
      if (parsed.is_discarded()) fail(EINVAL, "control request", "it is not JSON");
      answer = perform(store, parsed);
    } catch (const Error& error) {
      answer = error_answer(error);
    } catch (const std::exception& error) {
      answer = error_answer(EIO, "EIO", "control request", error.what());
    }
    return json_text(answer);
  } catch (...) {
    return R"({"ok":false,"errno":12,"code":"ENOMEM","object":"","error":"out of memory"})";
  }
}

struct ControlServer::Impl {
  struct Connection {
    FileDescriptor socket;
    std::thread thread;
    bool is_idle = true;
    bool is_evicted = false;
    bool is_done = false;
    control::Clock::time_point idle_since = control::Clock::now();
  };

  Store& store;
  std::string store_directory;
  std::function<void(const std::string&)> log;

  FileDescriptor folder;
  FileDescriptor listener;
  FileDescriptor stop_event;
  std::string name;
  ino_t inode = 0;
  std::thread acceptor;

  std::mutex mutex;
  std::condition_variable changed;  // a connection became idle or done, or is_stopping
  std::list<Connection> connections;
  bool is_stopping = false;

  Impl(Store& the_store, std::string directory, std::function<void(const std::string&)> the_log)
      : store(the_store), store_directory(std::move(directory)), log(std::move(the_log)) {}

  void accept_loop();
  // Waits until there is a place for one more connection; false when stopping.
  bool make_room();
  void serve(Connection& connection);
  void serve_requests(Connection& connection);
  // False when the connection has had to make room: what it sent is not carried out any more.
  bool set_idle(Connection& connection, bool is_idle);
};

bool ControlServer::Impl::make_room() {
  std::unique_lock lock(mutex);
  while (!is_stopping) {
    for (auto it = connections.begin(); it != connections.end();) {
      if (it->is_done) {
        it->thread.join();
        it = connections.erase(it);
      } else {
        ++it;
      }
    }
    if (connections.size() < kConnectionsMax) return true;
    const auto idlest = std::min_element(
        connections.begin(), connections.end(), [](const Connection& a, const Connection& b) {
          return a.is_idle != b.is_idle ? a.is_idle : a.idle_since < b.idle_since;
        });
    if (idlest->is_idle && control::Clock::now() - idlest->idle_since >= kIdleMin) {
      idlest->is_evicted = true;
      ::shutdown(idlest->socket.get(), SHUT_RDWR);
    }
    changed.wait_for(lock, kIdleMin / 10);
  }
  return false;
}

void ControlServer::Impl::accept_loop() {
  while (true) {
    pollfd polled[2] = {{listener.get(), POLLIN, 0}, {stop_event.get(), POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0) continue;  // EINTR
    if (polled[1].revents != 0 || !make_room()) return;
    FileDescriptor socket(
        ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      // Out of descriptors or memory: the client stays in the backlog. Whoever ends frees some.
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        pollfd stop = {stop_event.get(), POLLIN, 0};
        ::poll(&stop, 1, 100);
      }
      continue;
    }
    const std::lock_guard lock(mutex);
    Connection& connection = connections.emplace_back();
    connection.socket = std::move(socket);
    try {
      connection.thread = std::thread([this, &connection] { serve(connection); });
    } catch (const std::system_error& error) {
      log(fmt::format("control socket: cannot start a thread: {}", error.what()));
      connections.pop_back();
    }
  }
}

bool ControlServer::Impl::set_idle(Connection& connection, bool is_idle) {
  const std::lock_guard lock(mutex);
  if (connection.is_evicted) return false;
  connection.is_idle = is_idle;
  connection.idle_since = control::Clock::now();
  if (is_idle) changed.notify_all();
  return true;
}

void ControlServer::Impl::serve_requests(Connection& connection) {
  using Result = control::LineChannel::Result;
  control::LineChannel channel(connection.socket.get(), control::kRequestBytesMax,
                               stop_event.get());
  const auto answer = [&](const std::string& text) {
    return channel.write_line(text, control::Clock::now() + kAnswerTimeout);
  };
  if (!is_allowed(connection.socket.get())) {
    answer(json_text(error_answer(EACCES, "EACCES", "control socket",
                                  "only the server's own user and root may use it")));
    return;
  }
  std::string request;
  while (true) {
    const Result result = channel.read_line(request, control::Clock::time_point::max());
    if (result == Result::kClosed || !set_idle(connection, false)) return;
    if (result == Result::kTooLong) {
      answer(
          json_text(error_answer(EINVAL, "EINVAL", "control request", "it is longer than 64 KiB")));
      return;
    }
    if (!answer(answer_control_request(store, request))) return;
    set_idle(connection, true);
  }
}

void ControlServer::Impl::serve(Connection& connection) {
  try {
    serve_requests(connection);
  } catch (const std::exception& error) {
    log(fmt::format("control socket: a connection failed: {}", error.what()));
  }
  ::shutdown(connection.socket.get(), SHUT_RDWR);
  const std::lock_guard lock(mutex);
  connection.is_done = true;
  changed.notify_all();
}

ControlServer::ControlServer(Store& store, std::string store_directory,
                             std::function<void(const std::string&)> log)
    : impl_(std::make_unique<Impl>(store, std::move(store_directory), std::move(log))) {}

ControlServer::~ControlServer() { stop(); }

void ControlServer::start() {
  Impl& impl = *impl_;
  ensure(!impl.acceptor.joinable(), "a control server is started once");
  impl.folder = control::open_folder(impl.store_directory, true);
  const auto soon = control::Clock::now() + std::chrono::seconds(2);
  for (int i = 0;; ++i) {
    impl.name =
        i == 0 ? fmt::format("{}.sock", ::getpid()) : fmt::format("{}-{}.sock", ::getpid(), i);
    if (i == kNamesMax) fail(EADDRINUSE, impl.name, "other servers answer on all such sockets");
    if (!control::connect_to(impl.folder.get(), impl.name, soon)) break;
  }
  impl.listener = control::listen_at(impl.folder.get(), impl.name);
  impl.inode = inode_at(impl.folder.get(), impl.name);
  impl.stop_event = FileDescriptor(::eventfd(0, EFD_CLOEXEC));
  if (!impl.stop_event) fail_errno(errno, "control socket", "eventfd");

  // Signals are for the threads of the program that we are part of.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    impl.acceptor = std::thread([&impl] { impl.accept_loop(); });
  } catch (const std::system_error&) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    fail(EAGAIN, "control socket", "cannot start a thread");
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ControlServer::stop() {
  Impl& impl = *impl_;
  if (!impl.acceptor.joinable()) return;
  // Only the socket that is ours: after us another server may have taken the name.
  if (inode_at(impl.folder.get(), impl.name) == impl.inode)
    ::unlinkat(impl.folder.get(), impl.name.c_str(), 0);
  {
    const std::lock_guard lock(impl.mutex);
    impl.is_stopping = true;
    impl.changed.notify_all();
  }
  const uint64_t one = 1;
  ensure(::write(impl.stop_event.get(), &one, sizeof one) == sizeof one, "an eventfd takes a 1");
  impl.acceptor.join();
  for (Impl::Connection& connection : impl.connections) connection.thread.join();
  impl.connections.clear();
  impl_ = std::make_unique<Impl>(impl.store, impl.store_directory, impl.log);
}

std::string ControlServer::socket_path() const {
  return impl_->acceptor.joinable() ? impl_->store_directory + "/control/" + impl_->name : "";
}

}  // namespace tplstore
