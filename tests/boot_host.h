// A host with a boot cache, for tests: a store in memory, a template, guests that boot, and a clock
// that the test turns. Header only; each test's.
#pragma once

#include <mutex>

#include "boot/boot.h"
#include "boot_testing.h"

namespace tplstore::testing {

struct Host {
  explicit Host(uint64_t cap_bytes = uint64_t{32} << 20, bool has_clock = true) {
    store.set_recording(false);
    put_identity(store, kTestSecret);
    BootOptions options;
    options.cap_bytes = cap_bytes;
    options.huge_pages = false;
    options.log = [this](const std::string& line) {
      const std::lock_guard guard(mutex);
      log.push_back(line);
    };
    if (has_clock) options.clock_ms = [this] { return now_ms.load(); };
    if (!has_clock) options.quiet = std::chrono::milliseconds(50);
    boot = std::make_unique<Boot>(options, store, kTestSecret);
  }
  std::shared_ptr<TestDisk> disk(const std::string& name) {
    return std::make_shared<TestDisk>(store, origin, boot->memory(), name);
  }
  // The template, as `boot warm` has it.
  std::shared_ptr<TestDisk> template_disk() {
    return std::make_shared<TestDisk>(store, origin, boot->memory(), "debian", true);
  }
  // With what another one has learnt.
  explicit Host(const Host& learnt, uint64_t cap_bytes = uint64_t{32} << 20) : Host(cap_bytes) {
    origin.uuid = learnt.origin.uuid;
    for (const char* folder : {"boot", "packs"})
      for (const std::string& name : learnt.store.list(folder))
        store.set_content(fmt::format("{}/{}", folder, name),
                          learnt.store.content(fmt::format("{}/{}", folder, name)));
  }
  void wait(int64_t ms) {
    now_ms += ms;
    boot->tend();
  }

  mutable MemoryBackend store;
  TestTemplate origin{store};
  std::atomic<int64_t> now_ms{1'000'000};
  std::mutex mutex;
  std::vector<std::string> log;
  std::unique_ptr<Boot> boot;
};

// Blocks here and there, the same each time; the first is 0.
inline void boot_guest(Host& host, TestDisk& disk, ReadFollower& follower, uint64_t reads = 40) {
  for (uint64_t i = 0; i < reads; ++i) {
    disk.read(follower, i * 197 % 8000 / 8 * 8, 8);
    host.now_ms += 10;
  }
}

// A whole boot, with what is learnt from it.
inline BootWindow boot_once(Host& host, const std::string& name, uint64_t reads = 40) {
  const auto disk = host.disk(name);
  const auto follower = host.boot->follow(disk);
  host.wait(0);
  disk->read(*follower, 0, 1);
  disk->read(*follower, 1, 7);
  host.wait(0);  // what is read ahead is read now
  boot_guest(host, *disk, *follower, reads);
  const auto window = host.boot->done(disk->volume());
  REQUIRE(window);
  host.wait(0);
  return *window;
}

}  // namespace tplstore::testing
