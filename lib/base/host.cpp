// Reads /etc/machine-id, the number of this host, the boot id and /proc/PID/stat.
#include "base/host.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <sstream>

#include "base/files.h"

namespace tplstore {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// A uuid written with or without dashes.
Uuid read_uuid(const std::string& path) {
  std::string text = first_line(path);
  std::erase(text, '-');
  for (const size_t at : {8, 13, 18, 23})
    if (at <= text.size()) text.insert(at, 1, '-');
  Uuid uuid;
  parse_uuid(text, uuid);
  return uuid;
}

// Whole and durable under that name, or not at all. Of two that come at once one does.
void make_number(const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/'));
  if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) return;
  const FileDescriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return;
  const std::string temporary = ".host-id-" + random_uuid().text();
  const FileDescriptor file(::openat(directory.get(), temporary.c_str(),
                                     O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!file) return;
  const std::string text = random_uuid().text() + "\n";
  const bool is_written =
      ::fchmod(file.get(), 0644) == 0 &&
      ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
      ::fsync(file.get()) == 0;
  if (is_written &&
      ::linkat(directory.get(), temporary.c_str(), directory.get(), "host-id", 0) == 0)
    (void)::fsync(directory.get());
  ::unlinkat(directory.get(), temporary.c_str(), 0);
}

Uuid combined(const Uuid& machine, const Uuid& number) {
  Uuid both = machine;
  for (size_t i = 0; i < std::size(both.bytes); ++i) both.bytes[i] ^= number.bytes[i];
  return both;
}

}  // namespace

Uuid own_number(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0 && errno == ENOENT) make_number(path);
  return read_uuid(path);
}

const HostIdentity& this_host() {
  static const HostIdentity identity = [] {
    char name[256] = "";
    if (gethostname(name, sizeof name - 1) != 0 || name[0] == '\0')
      return HostIdentity{"unknown", {}, {}, {}};
    const Uuid machine = read_uuid("/etc/machine-id");
    return HostIdentity{name, combined(machine, own_number(kHostIdFile)), machine,
                        read_uuid("/proc/sys/kernel/random/boot_id")};
  }();
  return identity;
}

uint64_t process_start_time(int64_t pid) {
  const std::string line = first_line("/proc/" + std::to_string(pid) + "/stat");
  // The command's name, in parentheses, may hold anything; the fields count from behind it.
  const size_t end = line.rfind(')');
  if (end == std::string::npos) return 0;
  std::istringstream fields(line.substr(end + 1));
  std::string field;
  for (int number = 3; fields >> field; ++number) {
    if (number == 3 && (field == "Z" || field == "X")) return 0;
    if (number == 22) return std::strtoull(field.c_str(), nullptr, 10);
  }
  return 0;
}

uint64_t own_start_time() {
  static std::atomic<int64_t> known_pid{0};  // a fork is another process
  static std::atomic<uint64_t> known_time{0};
  const int64_t pid = getpid();
  if (known_pid.load() == pid) return known_time.load();
  const uint64_t time = process_start_time(pid);
  known_time.store(time);
  if (time != 0) known_pid.store(pid);
  return time;
}

}  // namespace tplstore
