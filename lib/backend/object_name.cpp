// The grammar of names, part by part.
#include "backend/object_name.h"

#include "base/error.h"
#include "base/names.h"

namespace tplstore {
namespace {

constexpr size_t kPartBytesMax = 255;   // NAME_MAX
constexpr size_t kNameBytesMax = 1024;  // far below PATH_MAX

}  // namespace

bool is_object_name_part(std::string_view part) { return is_name(part, kPartBytesMax); }

void check_object_name(std::string_view name) {
  bool good = name.size() <= kNameBytesMax;
  for (std::string_view rest = name; good;) {
    const size_t slash = rest.find('/');
    good = is_object_name_part(rest.substr(0, slash));
    if (slash == std::string_view::npos) break;
    rest.remove_prefix(slash + 1);
  }
  if (!good) fail(EINVAL, std::string(name), "not the name of an object of the store");
}

void check_folder_name(std::string_view folder) {
  if (!folder.empty()) check_object_name(folder);
}

std::string_view folder_of(std::string_view name) {
  const size_t slash = name.rfind('/');
  return slash == std::string_view::npos ? std::string_view() : name.substr(0, slash);
}

std::string_view last_part_of(std::string_view name) {
  return name.substr(name.rfind('/') + 1);  // npos + 1 is 0
}

bool is_beneath(std::string_view name, std::string_view folder) {
  return folder.empty() ||
         (name.size() > folder.size() && name[folder.size()] == '/' && name.starts_with(folder));
}

}  // namespace tplstore
