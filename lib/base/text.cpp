// Walks text as UTF-8, strictly, and replaces what a terminal would obey.
#include "base/text.h"

#include <wchar.h>

#include <cstdint>
#include <cstdio>

namespace tplstore {
namespace {

struct Character {
  uint32_t code;
  size_t bytes;  // 0: no valid UTF-8
};

Character decode(std::string_view text) {
  const auto byte = [&](size_t at) { return static_cast<unsigned char>(text[at]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1};
  const size_t bytes = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < bytes) return {0, 0};
  uint32_t code = first & (0xffu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {0, 0};
    code = code << 6 | (byte(i) & 0x3fu);
  }
  const uint32_t smallest = bytes == 2 ? 0x80 : bytes == 3 ? 0x800 : 0x10000;
  const bool is_surrogate = code >= 0xd800 && code < 0xe000;
  if (code < smallest || code > 0x10ffff || is_surrogate) return {0, 0};
  return {code, bytes};
}

bool is_control(uint32_t code) { return code < 0x20 || (code >= 0x7f && code < 0xa0); }

std::string replace_controls(std::string_view text, bool with_newlines) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const auto [code, bytes] = decode(text);
    const bool is_shown = bytes > 0 && (!is_control(code) || (with_newlines && code == '\n'));
    const size_t taken = bytes == 0 ? 1 : bytes;
    if (is_shown)
      result += text.substr(0, taken);
    else
      result += '?';
    text.remove_prefix(taken);
  }
  return result;
}

bool begins_character(char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }

}  // namespace

std::string printable(std::string_view text) { return replace_controls(text, false); }

std::string printable_lines(std::string_view text) { return replace_controls(text, true); }

std::string excerpt(std::string_view text) {
  constexpr size_t kCharactersMax = 160;
  // A character has at most four bytes: a long text is not looked at as a whole.
  std::string shown = printable(text.substr(0, 4 * kCharactersMax + 4));
  if (count_characters(shown) <= kCharactersMax) return shown;
  return first_characters(shown, kCharactersMax) + "...";
}

std::string first_characters(std::string_view text, size_t count) {
  size_t end = 0;
  for (; end < text.size(); ++end)
    if (begins_character(text[end]) && count-- == 0) break;
  return std::string(text.substr(0, end));
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += begins_character(c) ? 1 : 0;
  return count;
}

namespace {

// A system without this locale counts what it does not know as wide.
locale_t utf8_locale() {
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  return locale;
}

// Takes the first character off.
size_t next_columns(std::string_view& text) {
  constexpr size_t kColumnsMax = 2;
  const auto [code, bytes] = decode(text);
  text.remove_prefix(bytes == 0 ? 1 : bytes);
  if (bytes <= 1) return 1;
  const int columns = wcwidth(static_cast<wchar_t>(code));
  return columns < 0 ? kColumnsMax : static_cast<size_t>(columns);
}

}  // namespace

Utf8Text::Utf8Text()
    : before_(utf8_locale() == nullptr ? uselocale(nullptr) : uselocale(utf8_locale())) {}

Utf8Text::~Utf8Text() { uselocale(before_); }

size_t count_columns(std::string_view text) {
  const Utf8Text utf8;
  size_t columns = 0;
  while (!text.empty()) columns += next_columns(text);
  return columns;
}

std::string first_columns(std::string_view text, size_t columns) {
  const Utf8Text utf8;
  std::string_view rest = text;
  size_t taken = 0;
  while (!rest.empty()) {
    std::string_view next = rest;
    const size_t more = next_columns(next);
    if (taken + more > columns) break;
    taken += more;
    rest = next;
  }
  return std::string(text.substr(0, text.size() - rest.size()));
}

void print_error(const std::string& text) noexcept {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace tplstore
