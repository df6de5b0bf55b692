#include "transfer/atomic_file.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "template_testing.h"
#include "temporary_directory.h"

namespace tplstore::atomic_file_test {
using namespace tplstore::testing;

namespace {

void put(AtomicFile& file, const std::string& text) {
  REQUIRE(pwrite(file.descriptor(), text.data(), text.size(), 0) ==
          static_cast<ssize_t>(text.size()));
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename());
  return names;
}

}  // namespace

TEST_CASE("a file has its name when it is published, and never replaces another unasked") {
  const TemporaryDirectory folder;
  const std::string path = folder.path() + "/disk";
  {
    AtomicFile file(path);
    put(file, "first");
    CHECK(!std::filesystem::exists(path));
    file.publish(false);
  }
  CHECK(to_text(read_file(path)) == "first");
  CHECK(thrown_by([&] { check_publish_target(path, false); }).code == EEXIST);
  {
    AtomicFile file(path);
    put(file, "second");
    CHECK(thrown_by([&] { file.publish(false); }).code == EEXIST);
    CHECK(to_text(read_file(path)) == "first");
    file.publish(true);
  }
  CHECK(to_text(read_file(path)) == "second");
  { AtomicFile given_up(path); }
  CHECK(names_in(folder.path()) == std::vector<std::string>{"disk"});
}

TEST_CASE("a file that is not published leaves nothing behind, however its writer ends") {
  const TemporaryDirectory folder;
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t writer = fork();
  REQUIRE(writer >= 0);
  if (writer == 0) {
    AtomicFile file(folder.path() + "/disk");
    char c = 0;
    if (write(file.descriptor(), "half", 4) == 4 && write(ends[1], &c, 1) == 1) pause();
    _exit(1);
  }
  char ready;
  REQUIRE(read(ends[0], &ready, 1) == 1);
  kill(writer, SIGKILL);
  REQUIRE(waitpid(writer, nullptr, 0) == writer);
  CHECK(names_in(folder.path()).empty());
  close(ends[0]);
  close(ends[1]);
}

}  // namespace tplstore::atomic_file_test
