// Text that others wrote, made fit for terminals and logs: names, notes and peers out of a store,
// what a server answered, messages of other programs.
//
// A terminal obeys control characters: one of them in a note could hide a line of a list, or type
// at the shell. So whatever is printed for people goes through here.
//
// Thread safety: pure functions. They throw nothing but std::bad_alloc.
#pragma once

#include <locale.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace tplstore {

// `text` on one line: '?' for every control character (C0 with newlines and tabs, DEL, and C1,
// U+0080 to U+009F) and for every byte that belongs to no valid UTF-8 character.
std::string printable(std::string_view text);
// The same for text that we have laid out in lines ourselves: newlines stay.
std::string printable_lines(std::string_view text);
// For a message about a name that was typed or sent: printable, and cut after 160 characters.
std::string excerpt(std::string_view text);

// The first `count` characters of printable text.
std::string first_characters(std::string_view text, size_t count);
size_t count_characters(std::string_view text);

// In how many columns a terminal shows printable text: some characters take two, some none. The
// first characters that take no more than so many.
size_t count_columns(std::string_view text);
std::string first_columns(std::string_view text, size_t columns);

// As long as it exists the C library takes texts of the calling thread for UTF-8, whatever the
// user's locale is.
class Utf8Text {
 public:
  Utf8Text();
  ~Utf8Text();
  Utf8Text(const Utf8Text&) = delete;
  Utf8Text& operator=(const Utf8Text&) = delete;

 private:
  locale_t before_;
};

// Prints it to stderr, if that takes it; in one piece, and never throws for it.
void print_error(const std::string& text) noexcept;

}  // namespace tplstore
