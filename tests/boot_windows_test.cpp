// When boots begin and end, by what connections read; with a clock that the test turns.
#include "boot/boot_windows.h"

#include <doctest/doctest.h>

#include "boot_testing.h"

namespace tplstore::boot_windows_test {
using namespace tplstore::testing;

namespace {

struct Host {
  explicit Host(int64_t quiet_ms = 15'000) {
    store.set_recording(false);
    options.quiet = std::chrono::milliseconds(quiet_ms);
    options.clock_ms = [this] { return now_ms; };
    options.log = [this](const std::string& line) { log.push_back(line); };
    owned_windows = std::make_unique<BootWindows>(options, memory, alarms);
  }
  std::shared_ptr<TestDisk> disk(const std::string& name) {
    return std::make_shared<TestDisk>(store, origin, memory, name);
  }
  // Whether a window is open after some time.
  bool is_open_after(int64_t ms) {
    now_ms += ms;
    windows().tend();
    return windows().count_open() != 0;
  }
  // A guest's firmware, and what it loads.
  bool begins(TestDisk& disk, ReadFollower& follower) {
    disk.read(follower, 0, 1);
    disk.read(follower, 100, 8);
    return windows().count_open() != 0;
  }
  // The boots that have ended since and are learnt from.
  size_t take_learnt() {
    size_t count = 0;
    while (const auto ended = windows().take_ended()) count += ended->is_learnt_from ? 1 : 0;
    return count;
  }

  mutable MemoryBackend store;
  TestTemplate origin{store};
  int64_t now_ms = 1'000'000;
  std::vector<std::string> log;
  BootOptions options;
  BootAlarms alarms;
  CellMemory memory{uint64_t{32} << 20};
  std::unique_ptr<BootWindows> owned_windows;
  BootWindows& windows() { return *owned_windows; }
};

}  // namespace

TEST_CASE("a boot begins with a read of the first block that another read follows") {
  Host host;
  const auto disk = host.disk("vm1");
  const auto follower = host.windows().follow(disk);
  disk->read(*follower, 100, 8);
  CHECK(host.memory.stats().fills == 0);
  CHECK_FALSE(host.is_open_after(0));
  disk->read(*follower, 0, 1);
  CHECK_FALSE(host.is_open_after(0));
  CHECK(host.windows().take_begun().empty());
  disk->read(*follower, 100, 8);
  CHECK(host.is_open_after(0));
  CHECK(host.windows().take_begun().size() == 1);
  CHECK(host.alarms.read.wait(0));
  CHECK(host.memory.stats().fill_bytes == 9 * kBlockBytes);
  CHECK(host.is_open_after(14'999));
  CHECK(host.take_learnt() == 0);
  CHECK_FALSE(host.is_open_after(1));
  CHECK(host.take_learnt() == 1);
  REQUIRE(host.log.size() == 1);
  CHECK(host.log[0] == "vm1: boot ended (quiet): 9 blocks, 36.0 KiB, 0 % found in memory, 15.0 s");

  // Too early for another one.
  CHECK_FALSE(host.begins(*disk, *follower));
  CHECK_FALSE(host.is_open_after(9'999));
  CHECK_FALSE(host.begins(*disk, *follower));
  CHECK_FALSE(host.is_open_after(1));
  disk->read(*follower, 0, 1);
  CHECK_FALSE(host.is_open_after(15'000));  // nothing follows in time
  disk->read(*follower, 1000, 8);
  CHECK_FALSE(host.is_open_after(0));
  CHECK(host.take_learnt() == 0);
  // That was none, so the next may come at once. Each read of the first block may be it.
  disk->read(*follower, 0, 1);
  CHECK_FALSE(host.is_open_after(14'999));
  disk->read(*follower, 0, 1);
  CHECK_FALSE(host.is_open_after(14'999));
  disk->read(*follower, 100, 8);
  CHECK(host.is_open_after(0));
  CHECK(host.windows().done(disk->volume()));
  host.now_ms += 10'000;
  CHECK(host.begins(*disk, *follower));
  const auto window = host.windows().done(disk->volume());
  REQUIRE(window);
  CHECK(window->reason == WindowEnd::kDone);
  CHECK(window->blocks == 9);
  CHECK_FALSE(host.windows().done(disk->volume()));
  CHECK(host.windows().reports_of(*disk).size() == 3);
  CHECK(host.windows().reports_of(*disk->open_template()).size() == 3);
  CHECK(host.windows().reports_of(*host.disk("vm2")).empty());
}

TEST_CASE("a guest that resets itself in the middle of its boot goes on in the same window") {
  Host host;
  const auto disk = host.disk("vm1");
  const auto follower = host.windows().follow(disk);
  CHECK(host.begins(*disk, *follower));
  for (int resets = 0; resets < 3; ++resets) {
    host.now_ms += 14'000;
    disk->read(*follower, 200 + 100 * resets, 8);
    CHECK(host.begins(*disk, *follower));
  }
  CHECK(host.windows().take_begun().size() == 1);
  CHECK(host.is_open_after(14'999));
  CHECK_FALSE(host.is_open_after(1));
  CHECK(host.windows().reports_of(*disk).size() == 1);
  // Quiet, a reset, quiet, a reset: so many windows.
  for (size_t resets = 1; resets <= 3; ++resets) {
    host.now_ms += 10'000;
    CHECK(host.begins(*disk, *follower));
    CHECK_FALSE(host.is_open_after(15'000));
    CHECK(host.windows().reports_of(*disk).size() == 1 + resets);
  }
}

TEST_CASE("where boot-quiet is short so is the pause between two windows") {
  Host host(1'000);
  const auto disk = host.disk("vm1");
  const auto follower = host.windows().follow(disk);
  CHECK(host.begins(*disk, *follower));
  CHECK_FALSE(host.is_open_after(1'000));
  host.now_ms += 999;
  CHECK_FALSE(host.begins(*disk, *follower));
  host.now_ms += 1;
  CHECK(host.begins(*disk, *follower));
}

TEST_CASE(
    "a boot begins, too, where first reads of its profile come in order, not two and not any") {
  Host host;
  const auto disk = host.disk("vm1");
  const auto follower = host.windows().follow(disk);
  const auto headless = host.windows().take_headless();
  REQUIRE(headless.size() == 1);
  CHECK(headless[0] == disk);
  CHECK(host.windows().take_headless().empty());
  std::vector<ProfileRun> heads;
  for (uint64_t i = 0; i < 20; ++i) heads.push_back({50 + 100 * i, kFromTemplate, 8, 0, 1, {}});
  host.windows().set_heads(disk->volume(), heads);
  const auto opens = [&](std::initializer_list<size_t> indices) {
    for (const size_t index : indices) disk->read(*follower, heads.at(index).first, 1);
    return host.windows().count_open() != 0;
  };
  CHECK_FALSE(opens({2, 2, 2, 5, 4, 3, 7, 8, 2, 3}));
  CHECK_FALSE(opens({15, 16, 17, 18}));  // too far behind
  CHECK_FALSE(opens({6, 7}));
  host.now_ms += 2'001;
  CHECK_FALSE(opens({8}));
  host.now_ms += 2'000;
  CHECK_FALSE(opens({9}));
  CHECK(opens({10}));
  CHECK(host.windows().take_begun().size() == 1);
  host.windows().has_new_profile(disk->volume());
  host.windows().has_new_profile(random_uuid());
  CHECK(host.windows().take_headless().size() == 1);
}

TEST_CASE("the last connection that goes ends the window; one that has seen nothing is none") {
  Host host;
  const auto disk = host.disk("vm1");
  auto one = host.windows().follow(disk);
  auto other = host.windows().follow(disk);
  disk->read(*one, 0, 1);
  disk->read(*other, 10, 1);
  CHECK(host.windows().count_open() == 1);
  one.reset();
  CHECK(host.windows().count_open() == 1);
  other.reset();
  CHECK(host.windows().count_open() == 0);
  REQUIRE(host.windows().reports_of(*disk).size() == 1);
  CHECK(host.windows().reports_of(*disk)[0].reason == WindowEnd::kClosed);
  CHECK(host.take_learnt() == 1);

  one = host.windows().follow(disk);
  disk->read(*one, 0, 1);
  one.reset();
  CHECK(host.take_learnt() == 0);
  CHECK(host.windows().reports_of(*disk).size() == 1);
  // What somebody else has read ahead goes the same way.
  host.windows().let_go(host.memory.open_window());
  auto ended = host.windows().take_ended();
  REQUIRE(ended);
  CHECK(ended->cells);
  host.windows().put_back(std::move(*ended));
  CHECK(host.windows().take_ended());
  CHECK_FALSE(host.windows().take_ended());
}

TEST_CASE(
    "of what others read beside the guest 8 MiB are part of its boot, and nothing of streams") {
  Host host;
  const auto disk = host.disk("vm1");
  auto guest = host.windows().follow(disk);
  const auto backup = host.windows().follow(disk);
  const auto other = host.windows().follow(disk);
  CHECK(host.begins(*disk, *guest));
  for (uint64_t block = 64; block < 8000; block += 64) disk->read(*backup, block, 64);
  const uint64_t streamed = host.windows().reports_of(*disk)[0].blocks;
  CHECK(streamed > 1024);
  CHECK(streamed <= 2048 + 9);
  for (uint64_t i = 0; i < 3000; ++i) disk->read(*other, i * 3571 % 4000 * 2, 2);
  const uint64_t joined = host.windows().reports_of(*disk)[0].blocks;
  CHECK(joined > streamed + 1024);
  CHECK(joined <= streamed + 2048);
  CHECK(host.memory.stats().fill_bytes <= joined * kBlockBytes);
  // The guest itself may read what it likes, and its boot counts.
  for (uint64_t i = 0; i < 4000; ++i) disk->read(*guest, i * 3571 % 4000 * 2, 2);
  const BootWindow window = host.windows().reports_of(*disk)[0];
  CHECK(window.blocks == 8000);
  CHECK(window.streamed_bytes == 0);
  CHECK(window.read_bytes == 8009 * kBlockBytes);
}

TEST_CASE("a guest that is connected anew goes on with its boot") {
  Host host;
  const auto disk = host.disk("vm1");
  auto guest = host.windows().follow(disk);
  CHECK(host.begins(*disk, *guest));
  auto again = host.windows().follow(disk);
  guest.reset();
  for (uint64_t i = 0; i < 4000; ++i) disk->read(*again, i * 3571 % 4000 * 2, 2);
  CHECK(host.windows().reports_of(*disk)[0].blocks == 8000);
}

}  // namespace tplstore::boot_windows_test
