// Windows: what is recorded of a boot, once and in order, also by many threads; and when it ends.
#include "boot/window.h"

#include <doctest/doctest.h>

#include <set>
#include <thread>

#include "volume_testing.h"

namespace tplstore::window_test {
namespace {

constexpr uint64_t kDiskBytes = uint64_t{10} << 30;
const WindowLimits kLimits{.quiet_ms = 15'000, .time_ms = 300'000, .bytes = 1 << 20};

std::string text_of(const Window& window) {
  std::string text;
  for (const ProfileRun& run : window.record())
    text +=
        fmt::format("{}{}+{}@{}", text.empty() ? "" : " ", run.first, run.count, run.touched_ms);
  return text;
}

}  // namespace

TEST_CASE("each block is recorded when it is touched first") {
  Window window(kDiskBytes, kLimits, 1000);
  window.touch(kFromTemplate, 60, 10, 1000);
  window.touch(kFromTemplate, 0, 200, 1005);
  window.touch(kFromTemplate, 0, 200, 1006);
  window.touch(3, 1020, 10, 1007);
  window.touch(kFromTemplate, kDiskBytes / kBlockBytes - 1, 100, 1008);
  window.touch(kFromTemplate, kDiskBytes / kBlockBytes, 100, 1009);
  CHECK(text_of(window) == "60+10@0 0+60@5 70+130@5 1020+10@7 2621439+1@8");
  CHECK(window.blocks() == 211);
  CHECK(window.record()[3].source == 3);
}

TEST_CASE("a window ends when nothing new is touched, after its time, and when it has enough") {
  Window window(kDiskBytes, kLimits, 1000);
  CHECK(window.confirm());
  CHECK_FALSE(window.confirm());
  CHECK_FALSE(window.find_end(15'999));
  CHECK(window.find_end(16'000) == WindowEnd::kQuiet);
  window.touch(kFromTemplate, 1, 1, 16'000);
  CHECK_FALSE(window.find_end(30'999));
  window.touch(kFromTemplate, 1, 1, 30'999);  // not for the first time
  CHECK(window.find_end(31'000) == WindowEnd::kQuiet);
  for (int64_t at = 30'000; at < 310'000; at += 10'000)
    window.touch(kFromTemplate, static_cast<uint64_t>(at), 1, at);
  CHECK_FALSE(window.find_end(300'999));
  CHECK(window.find_end(301'000) == WindowEnd::kTime);
  window.touch(kFromTemplate, 1'000'000, 256 - 30, 300'000);
  CHECK_FALSE(window.find_end(300'500));
  window.touch(kFromTemplate, 2'000'000, 1, 300'000);
  CHECK(window.find_end(300'500) == WindowEnd::kBytes);
}

TEST_CASE("one read that nothing follows is no boot") {
  Window window(kDiskBytes, kLimits, 0);
  window.touch(kFromTemplate, 0, 1, 0);
  CHECK_FALSE(window.find_end(14'999));
  CHECK(window.find_end(15'000) == WindowEnd::kUnconfirmed);
}

TEST_CASE("threads that touch the same blocks record each of them once") {
  const WindowLimits limits{.bytes = uint64_t{1} << 40};
  Window window(kVolumeBytesMax, limits, 0);
  const uint64_t seed = test_seed();
  constexpr int kThreads = 4;
  std::vector<std::set<uint64_t>> touched(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      Random random(seed + static_cast<uint64_t>(i));
      for (int64_t at = 0; at < 3000; ++at) {
        const uint64_t first =
            random.below(8) * (kVolumeBytesMax / kBlockBytes / 8) + random.below(4000);
        const uint64_t count = 1 + random.below(100);
        window.touch(kFromTemplate, first, count, at);
        window.note_read(count * kBlockBytes, false);
        window.find_end(at);
        for (uint64_t block = first; block < first + count; ++block)
          touched[static_cast<size_t>(i)].insert(block);
      }
    });
  for (std::thread& thread : threads) thread.join();
  std::set<uint64_t> wanted, recorded;
  for (const auto& some : touched) wanted.insert(some.begin(), some.end());
  for (const ProfileRun& run : window.record())
    for (uint64_t block = run.first; block < run.end(); ++block)
      REQUIRE(recorded.insert(block).second);
  CHECK(recorded == wanted);
  CHECK(window.blocks() == wanted.size());
}

TEST_CASE("a record that is full ends the window") {
  Window window(uint64_t{16} << 30, WindowLimits{.bytes = uint64_t{1} << 40}, 0);
  window.confirm();
  for (uint64_t block = 0; block < 2 * uint64_t{kProfileRunsMax}; block += 2)
    window.touch(kFromTemplate, block, 1, 0);
  CHECK(window.find_end(0) == WindowEnd::kBytes);
  CHECK(window.record().size() <= kProfileRunsMax);
}

}  // namespace tplstore::window_test
