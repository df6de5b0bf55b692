#include "base/chore.h"

#include <doctest/doctest.h>

#include <stdexcept>
#include <vector>

namespace tplstore::chore_test {
namespace {

struct Fixture {
  std::vector<std::string> lines;
  int attempts = 0;

  void attempt(Chore& chore, const char* failure) {
    chore.attempt([this](const char* why) { lines.emplace_back(why); },
                  [&] {
                    ++attempts;
                    if (failure != nullptr) throw std::runtime_error(failure);
                  });
  }
};

}  // namespace

TEST_CASE("a chore that goes on failing says so once, until something changes") {
  Fixture f;
  Chore chore;
  for (int i = 0; i < 3; ++i) f.attempt(chore, "full");
  CHECK(f.attempts == 3);
  CHECK(f.lines == std::vector<std::string>{"full"});
  f.attempt(chore, "broken");
  CHECK(f.lines == std::vector<std::string>{"full", "broken"});
  f.attempt(chore, nullptr);
  f.attempt(chore, "broken");
  CHECK(f.lines == std::vector<std::string>{"full", "broken", "broken"});
}

TEST_CASE("a chore that costs something waits after a failure, and not after a success") {
  Fixture f;
  Chore chore(std::chrono::seconds(3600));
  f.attempt(chore, nullptr);
  f.attempt(chore, nullptr);
  CHECK(f.attempts == 2);
  f.attempt(chore, "full");
  f.attempt(chore, nullptr);
  CHECK(f.attempts == 3);
}

TEST_CASE("what cannot even be said is no error") {
  Chore chore;
  chore.attempt([](const char*) { throw std::bad_alloc(); }, [] { throw std::bad_alloc(); });
}

}  // namespace tplstore::chore_test
