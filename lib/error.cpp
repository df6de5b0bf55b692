#include "error.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tplstore {

void fail_errno(int code, std::string object, std::string_view action) {
  char text[128];
  throw Error(code, std::move(object),
              fmt::format("{}: {}", action, strerror_r(code, text, sizeof text)));
}

void ensure(bool condition, std::string_view what, std::source_location where) {
  if (condition) [[likely]]
    return;
  fmt::print(stderr, "tplstore: broken invariant: {} ({}:{})\n", what, where.file_name(),
             where.line());
  std::fflush(stderr);
  std::abort();
}

}  // namespace tplstore
