// What a name is and what an export name means, character by character.
#include "base/names.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/text.h"

namespace tplstore {
namespace {

bool is_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool all_in_names(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return is_alphanumeric(c) || c == '.' || c == '_' || c == '-';
  });
}

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

bool is_name(std::string_view text, size_t bytes_max) {
  return text.size() <= bytes_max && all_in_names(text) && is_alphanumeric(text[0]);
}

bool is_valid_name(std::string_view name) { return is_name(name, 128); }

bool is_valid_token(std::string_view token) { return token.size() <= 64 && all_in_names(token); }

constexpr std::string_view kCurrentName = "current";

void check_name(std::string_view kind, std::string_view name) {
  if (!is_valid_name(name))
    fail(EINVAL, excerpt(name),
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
    fail(EINVAL, fmt::format("export '{}'", excerpt(text)),
         "no such form of name: use VOLUME, VOLUME;writer=TOKEN, VOLUME;writer=TOKEN;multi, "
         "VOLUME@current, VOLUME@VERSION, VOLUME@VERSION..VERSION or template/NAME");
  };
  constexpr std::string_view kTemplatePrefix = "template/";
  const auto version_in = [&](std::string_view part) {
    if (!is_valid_name(part) || (all_digits(part) && !parse_version_number(part)) ||
        part == kCurrentName)
      refuse();
    return std::string(part);
  };
  ExportName result{ExportName::Kind::kCurrent, {}, {}, {}, {}};
  constexpr std::string_view kWriter = ";writer=", kMulti = ";multi";
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
  } else if (const size_t writer = text.find(kWriter); writer != std::string_view::npos) {
    result.name = text.substr(0, writer);
    std::string_view token = text.substr(writer + kWriter.size());
    result.is_multi = token.ends_with(kMulti);
    if (result.is_multi) token.remove_suffix(kMulti.size());
    if (!is_valid_token(token)) refuse();
    result.token = token;
  } else {
    result.name = text;
  }
  if (!is_valid_name(result.name)) refuse();
  return result;
}

}  // namespace tplstore
