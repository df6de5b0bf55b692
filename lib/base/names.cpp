#include "base/names.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <ctime>

#include "base/error.h"

namespace tplstore {
namespace {

bool is_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// Untrusted text for a message: short, and without control characters.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 160)) out += c >= ' ' && c <= '~' ? c : '?';
  if (text.size() > 160) out += "...";
  return out;
}

}  // namespace

bool is_valid_name(std::string_view name) {
  if (name.empty() || name.size() > 128 || !is_alphanumeric(name[0])) return false;
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
}

constexpr std::string_view kCurrentName = "current";

void check_name(std::string_view kind, std::string_view name) {
  if (!is_valid_name(name))
    fail(EINVAL, printable(name),
         "not a valid {} name: use 1 to 128 letters, digits, '.', '_' or '-', "
         "starting with a letter or digit",
         kind);
  if (kind == "version" && all_digits(name))
    fail(EINVAL, std::string(name),
         "a version's name cannot be a number, since numbers name versions already");
  if (kind == "version" && name.find("..") != std::string_view::npos)
    fail(EINVAL, std::string(name), "a version's name cannot contain '..', which means a range");
  if (kind == "version" && name == kCurrentName)
    fail(EINVAL, std::string(name),
         "no version can have this name, which means the volume as it is now");
}

std::optional<uint32_t> parse_version_number(std::string_view text) {
  if (!all_digits(text) || text[0] == '0') return std::nullopt;
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number == UINT32_MAX)
    return std::nullopt;
  return number;
}

ExportName parse_export_name(std::string_view text) {
  const auto refuse = [&]() {
    fail(EINVAL, fmt::format("export '{}'", printable(text)),
         "no such form of name: use VOLUME, VOLUME@current, VOLUME@VERSION, "
         "VOLUME@VERSION..VERSION or template/NAME");
  };
  constexpr std::string_view kTemplatePrefix = "template/";
  const auto version_in = [&](std::string_view part) {
    if (!is_valid_name(part) || (all_digits(part) && !parse_version_number(part)) ||
        part == kCurrentName)
      refuse();
    return std::string(part);
  };
  ExportName result{ExportName::Kind::kCurrent, {}, {}, {}};
  if (text.starts_with(kTemplatePrefix)) {
    result.kind = ExportName::Kind::kTemplate;
    result.name = text.substr(kTemplatePrefix.size());
  } else if (const size_t at = text.find('@'); at != std::string_view::npos) {
    result.name = text.substr(0, at);
    const std::string_view versions = text.substr(at + 1);
    const size_t dots = versions.find("..");
    if (versions == kCurrentName) {
      result.kind = ExportName::Kind::kCurrentReader;
    } else if (dots == std::string_view::npos) {
      result.kind = ExportName::Kind::kVersion;
      result.version = version_in(versions);
    } else {
      result.kind = ExportName::Kind::kChanges;
      result.since = version_in(versions.substr(0, dots));
      result.version = version_in(versions.substr(dots + 2));
    }
  } else {
    result.name = text;
  }
  if (!is_valid_name(result.name)) refuse();
  return result;
}

uint64_t parse_size(std::string_view what, std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  const auto refuse = [&]() {
    fail(EINVAL, std::string(what), "'{}' is not a size: use for instance 10G, 512M or 4096",
         printable(text));
  };
  if (error != std::errc() || end == text.data()) refuse();
  unsigned shift = 0;
  if (!unit.empty()) {
    const size_t power = std::string_view("BKMGTP").find(
        static_cast<char>(unit[0] >= 'a' ? unit[0] - 'a' + 'A' : unit[0]));
    const std::string_view rest = unit.substr(1);
    if (power == std::string_view::npos || !(rest.empty() || (power > 0 && rest == "iB"))) refuse();
    shift = static_cast<unsigned>(power) * 10;
  }
  if (number > (uint64_t{INT64_MAX} >> shift)) refuse();
  return number << shift;
}

std::string format_size(uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  size_t power = 0;
  while (value >= 1023.95 && power < 6) {
    value /= 1024;
    ++power;
  }
  return fmt::format("{:.1f} {}iB", value, "BKMGTPE"[power]);
}

std::string format_time(int64_t unix_ns) {
  const std::time_t seconds = unix_ns / 1'000'000'000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

std::optional<int64_t> parse_time(std::string_view text) {
  std::tm parts{};
  const std::string copy(text);
  const char* end = ::strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  if (end == nullptr || *end != '\0') return std::nullopt;
  int64_t unix_ns = 0;
  if (__builtin_mul_overflow(int64_t{::timegm(&parts)}, int64_t{1'000'000'000}, &unix_ns))
    return std::nullopt;
  if (format_time(unix_ns) != text) return std::nullopt;
  return unix_ns;
}

int64_t now_unix_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace tplstore
