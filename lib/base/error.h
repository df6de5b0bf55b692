// The one exception of the library.
//
// Everything that can go wrong at run time is thrown as an Error: an errno value, the object that
// it concerns (a volume, a file, an export name), and one printable line that says what happened,
// why, and what can be done. It is caught in two places only: the plugin's callback guard, which
// turns it into an NBD error, and the tool's main, which prints it. Absence that is normal is a
// std::optional, never an Error.
//
// A broken invariant is not an Error: `ensure` stops the process, in release builds too, before a
// state that cannot be right is written anywhere.
//
// Thread safety: all of it.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace tplstore {

class Error : public std::runtime_error {
 public:
  // `code` is an errno value (EIO, ENOENT, EBUSY, …); what() reads "object: message". Both texts
  // may have names and words in them that others chose: of these only what is printable is kept.
  Error(int code, std::string_view object, std::string_view message);

  int code() const noexcept { return code_; }
  const std::string& object() const noexcept { return object_; }

 private:
  int code_;
  std::string object_;
};

// Throws Error(code, object, formatted message).
template <typename... Args>
[[noreturn]] void fail(int code, std::string_view object, fmt::format_string<Args...> format,
                       Args&&... args) {
  throw Error(code, object, fmt::format(format, std::forward<Args>(args)...));
}

// Throws Error(code, object, "action: strerror(code)"). For failed system calls.
[[noreturn]] void fail_errno(int code, std::string_view object, std::string_view action);

// Stops the process with a line on stderr when `condition` is false.
void ensure(bool condition, std::string_view what, const char* file = __builtin_FILE(),
            int line = __builtin_LINE());

}  // namespace tplstore
