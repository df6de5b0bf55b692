// Names that people give, and export names. Pure functions; everything here is untrusted input.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tplstore {

// Letters, digits, '.', '_' and '-', beginning with a letter or digit.
bool is_name(std::string_view text, size_t bytes_max);
// [A-Za-z0-9][A-Za-z0-9._-]{0,127}: what volumes, templates and versions may be called. Nothing
// else reaches the storage.
bool is_valid_name(std::string_view name);
// [A-Za-z0-9._-]{1,64}: what a VM may call itself.
bool is_valid_token(std::string_view token);

// Throws Error(EINVAL) naming `kind` ("volume", "template", "version") when it is not valid. A
// version's name must not be all digits either, for `vm1@3` means number 3, not contain "..", for
// `vm1@a..b` means what changed, and not be "current", for `vm1@current` means the volume as it is.
void check_name(std::string_view kind, std::string_view name);

struct ExportName {
  // kCurrent is for writing it, kCurrentReader for reading it.
  enum class Kind { kCurrent, kCurrentReader, kVersion, kChanges, kTemplate };
  Kind kind;
  std::string name;       // of the volume or the template
  std::string version;    // a number or a name; for kVersion, and the later one for kChanges
  std::string since;      // the earlier one; for kChanges
  std::string token;      // what the VM that writes it calls itself; for kCurrent, may be empty
  bool is_multi = false;  // that has several connections
};

// "vm1", "vm1;writer=a", "vm1;writer=a;multi", "vm1@current", "vm1@3", "vm1@before-upgrade",
// "vm1@3..5", "template/debian12"; Error(EINVAL) for anything else.
ExportName parse_export_name(std::string_view text);

// All digits, without a leading zero, and at most 2^32 - 2.
std::optional<uint32_t> parse_version_number(std::string_view text);

}  // namespace tplstore
