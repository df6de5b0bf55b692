#include "base/thread_line.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <thread>

namespace tplstore::thread_line_test {

TEST_CASE("a thread has one line, and threads share them evenly") {
  constexpr size_t kEach = 3;
  std::array<size_t, kThreadLines> users{};
  // One thread after the other: which one asks first does not matter.
  for (size_t i = 0; i < kEach * kThreadLines; ++i) {
    std::thread([&] {
      const size_t line = thread_line();
      REQUIRE(line < kThreadLines);
      CHECK(thread_line() == line);
      ++users[line];
    }).join();
  }
  CHECK(std::ranges::all_of(users, [&](size_t count) { return count == kEach; }));
}

}  // namespace tplstore::thread_line_test
