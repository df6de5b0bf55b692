// Reads /etc/machine-id, the boot id and /proc/PID/stat.
#include "base/host.h"

#include <unistd.h>

#include <fstream>
#include <sstream>

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

}  // namespace

const HostIdentity& this_host() {
  static const HostIdentity identity = [] {
    char name[256] = "";
    if (gethostname(name, sizeof name - 1) != 0 || name[0] == '\0')
      return HostIdentity{"unknown", {}, {}};
    return HostIdentity{name, read_uuid("/etc/machine-id"),
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

}  // namespace tplstore
