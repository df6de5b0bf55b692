// Puts an error together: what it is about, what went wrong, and the errno that says so to NBD.
#include "base/error.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/text.h"

namespace tplstore {

Error::Error(int code, std::string_view object, std::string_view message)
    : std::runtime_error(printable(fmt::format("{}: {}", object, message))),
      code_(code),
      object_(printable(object)) {}

void fail_errno(int code, std::string_view object, std::string_view action) {
  char text[128];
  throw Error(code, object, fmt::format("{}: {}", action, strerror_r(code, text, sizeof text)));
}

void ensure(bool condition, std::string_view what, const char* file, int line) {
  if (condition) [[likely]]
    return;
  fmt::print(stderr, "tplstore: broken invariant: {} ({}:{})\n", what, file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace tplstore
