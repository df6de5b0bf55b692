// The boot cache as a whole, on a disk of its own and with a clock that the test turns: when boots
// begin and end, what is learnt from them, and what the next one finds in memory.
#include "boot/boot.h"

#include <doctest/doctest.h>

#include <thread>

#include "boot/learning.h"
#include "boot_testing.h"
#include "volume_testing.h"

using namespace tplstore;
using namespace tplstore::testing;

namespace {

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
void boot_guest(Host& host, TestDisk& disk, ReadFollower& follower, uint64_t reads = 40) {
  for (uint64_t i = 0; i < reads; ++i) {
    disk.read(follower, i * 197 % 8000 / 8 * 8, 8);
    host.now_ms += 10;
  }
}

// A whole boot, with what is learnt from it.
BootWindow boot_once(Host& host, const std::string& name, uint64_t reads = 40) {
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

}  // namespace

TEST_CASE("a boot begins with a read of the first block that another read follows") {
  Host host;
  const auto disk = host.disk("vm1");
  const auto follower = host.boot->follow(disk);
  disk->read(*follower, 100, 8);
  CHECK(host.boot->memory().stats().fills == 0);
  CHECK(host.boot->stats().windows_open == 0);
  disk->read(*follower, 0, 1);
  CHECK(host.boot->stats().windows_open == 0);
  disk->read(*follower, 100, 8);
  CHECK(host.boot->stats().windows_open == 1);
  CHECK(host.boot->memory().stats().fill_bytes == 9 * kBlockBytes);
  host.wait(14'999);
  CHECK(host.boot->stats().windows_open == 1);
  host.wait(1);
  CHECK(host.boot->stats().windows_open == 0);
  CHECK(disk->dropped_blocks == 9);
  REQUIRE(host.log.size() == 1);
  CHECK(host.log[0] == "vm1: boot ended (quiet): 9 blocks, 36.0 KiB, 0 % found in memory, 15.0 s");

  // Too early for another one.
  disk->read(*follower, 0, 1);
  disk->read(*follower, 100, 8);
  CHECK(host.boot->stats().windows_open == 0);
  host.wait(10'000);
  disk->read(*follower, 0, 1);
  host.wait(15'000);  // nothing follows in time
  disk->read(*follower, 1000, 8);
  CHECK(host.boot->stats().windows_open == 0);
  // That was none, so the next may come at once.
  disk->read(*follower, 0, 1);
  disk->read(*follower, 200, 8);
  CHECK(host.boot->stats().windows_open == 1);
  const auto window = host.boot->done(disk->volume());
  REQUIRE(window);
  CHECK(window->reason == WindowEnd::kDone);
  CHECK(window->blocks == 9);
  CHECK_FALSE(host.boot->done(disk->volume()));
  CHECK(host.boot->show(*disk).windows.size() == 2);
}

TEST_CASE(
    "a boot begins, too, where two of the first reads of its profile come, but not with one") {
  Host host;
  boot_once(host, "vm1");
  const auto disk = host.disk("vm2");
  const auto follower = host.boot->follow(disk);
  host.wait(0);
  const auto heads =
      load_profile(host.store, template_profile(host.origin.uuid), host.origin.uuid).profile.runs;
  REQUIRE(heads.size() > 17);
  for (int i = 0; i < 3; ++i) disk->read(*follower, heads[2].first, 1);
  for (int i = 0; i < 5; ++i) disk->read(*follower, heads[17].first, 1);
  host.now_ms += 3'000;
  disk->read(*follower, heads[3].first, 1);
  CHECK(host.boot->stats().windows_open == 0);
  disk->read(*follower, heads[4].first, 1);
  CHECK(host.boot->stats().windows_open == 1);
}

TEST_CASE("the last connection that goes ends the window") {
  Host host;
  const auto disk = host.disk("vm1");
  auto one = host.boot->follow(disk);
  auto other = host.boot->follow(disk);
  disk->read(*one, 0, 1);
  disk->read(*other, 10, 1);
  CHECK(host.boot->stats().windows_open == 1);
  one.reset();
  CHECK(host.boot->stats().windows_open == 1);
  other.reset();
  CHECK(host.boot->stats().windows_open == 0);
  const BootStatus status = host.boot->show(*disk);
  REQUIRE(status.windows.size() == 1);
  CHECK(status.windows[0].reason == WindowEnd::kClosed);
  disk->go();
  host.wait(0);
  CHECK(host.boot->show(*disk).cached_bytes == 0);
  host.boot->forget(*disk);
  // It is learnt from, though the disk is gone.
  CHECK(host.boot->show_stored(host.store, *host.template_disk()).profile->blocks == 2);
}

TEST_CASE("what one boot has read the next one finds in memory, read ahead or there already") {
  Host host;
  const BootWindow first = boot_once(host, "vm1");
  CHECK(first.use.first_touch_hits == 0);
  CHECK(first.use.misses > 0);
  // From memory.
  const BootWindow second = boot_once(host, "vm2");
  CHECK(second.blocks == first.blocks);
  CHECK(second.use.misses == 0);
  const BootStatus status = host.boot->show(*host.template_disk());
  REQUIRE(status.profile);
  CHECK(status.profile->boots == 2);
  CHECK(status.profile->generation == 2);
  CHECK(status.profile->blocks == first.blocks);
  CHECK(status.cached_bytes == first.bytes());
  CHECK(status.windows.size() == 2);

  // Another process, or the next day: by the profile, in requests of its making.
  Host later(host);
  const BootWindow third = boot_once(later, "vm3");
  CHECK(later.origin.asked() <= 8);  // for what came before the profile: it has the hashes
  CHECK(third.use.prefetched >= first.blocks - 8);
  CHECK(third.use.misses <= 8);
  CHECK(third.use.prefetched_unused == 0);
  const uint64_t read_bytes = later.origin.planned_bytes();
  CHECK(later.boot->memory().stats().fill_bytes == first.bytes());
  boot_once(later, "vm4");
  CHECK(later.origin.planned_bytes() == read_bytes);
}

TEST_CASE("a stream is neither kept nor learnt, and a boot that is mostly one counts for nothing") {
  Host host;
  const auto disk = host.disk("vm1");
  const auto follower = host.boot->follow(disk);
  for (uint64_t block = 0; block < 8000; block += 64) disk->read(*follower, block, 64);
  const auto window = host.boot->done(disk->volume());
  REQUIRE(window);
  CHECK(window->blocks == 2048);
  CHECK(window->streamed_bytes == (8000 - 2048) * kBlockBytes);
  host.wait(0);
  CHECK_FALSE(host.boot->show(*host.template_disk()).profile);
  CHECK(host.boot->memory().stats().fill_bytes == 2048 * kBlockBytes);
}

TEST_CASE(
    "a volume that is no longer as its template has a profile of its own, and so have its forks") {
  Host host;
  boot_once(host, "vm1");
  const auto disk = host.disk("vm2");
  disk->write_version(host.store, 3, 0, 1000);
  {
    const auto follower = host.boot->follow(disk);
    boot_guest(host, *disk, *follower);
  }
  host.wait(0);
  const BootStatus status = host.boot->show(*disk);
  REQUIRE(status.profile);
  CHECK(status.profile->own_blocks > 0);
  CHECK(host.boot->show(*host.template_disk()).profile->boots == 1);

  const auto fork = host.disk("fork");
  Boot::copy_for_fork(host.store, disk->volume(), fork->volume());
  CHECK(Boot::show_stored(host.store, *fork).profile->blocks == status.profile->blocks);
  Boot::copy_for_fork(host.store, random_uuid(), random_uuid());  // nothing to copy

  // Rolled back to where it has nothing of its own: what it had goes, and the template's serves.
  disk->write_version(host.store, 4, 0, 0);
  {
    const auto follower = host.boot->follow(disk);
    host.now_ms += 60'000;
    boot_guest(host, *disk, *follower);
  }
  host.wait(0);
  CHECK_FALSE(host.boot->show(*disk).profile);
  CHECK(host.boot->show(*host.template_disk()).profile->boots == 2);

  host.boot->forget(*fork);
  CHECK_FALSE(Boot::show_stored(host.store, *fork).profile);
}

TEST_CASE("a volume that was removed gets no profile") {
  Host host;
  const auto disk = host.disk("vm1");
  disk->write_version(host.store, 3, 0, 1000);
  {
    const auto follower = host.boot->follow(disk);
    boot_guest(host, *disk, *follower);
  }
  host.store.remove_folder("volumes/" + disk->volume().text());
  host.wait(0);
  CHECK(host.store.list("volumes/" + disk->volume().text()).empty());
}

TEST_CASE("warm reads all of the profile, or says what does not fit; forget drops it") {
  Host host;
  const auto nothing = [](uint64_t, uint64_t) {};
  const auto never = [] { return false; };
  CHECK(thrown_by([&] { host.boot->warm(*host.template_disk(), nothing, never); }).code == ENOENT);
  const uint64_t bytes = boot_once(host, "vm1").bytes();
  host.boot->memory().forget(std::vector{TestTemplate::key(0), TestTemplate::key(1)});
  host.wait(0);
  CHECK(host.boot->show(*host.template_disk()).cached_bytes < bytes);
  uint64_t last = 0;
  const BootWarm warm = host.boot->warm(
      *host.template_disk(), [&](uint64_t done, uint64_t) { last = done; }, never);
  CHECK(warm.wanted_bytes == bytes);
  CHECK(warm.cached_bytes == bytes);
  CHECK(last == bytes);
  CHECK(host.boot->show(*host.template_disk()).cached_bytes == bytes);
  CHECK(thrown_by([&] {
          host.boot->warm(*host.template_disk(), nothing, [] { return true; });
        }).code == EINTR);

  Host small(host, uint64_t{1} << 20);
  const BootWarm partly = small.boot->warm(*small.template_disk(), nothing, never);
  CHECK(partly.wanted_bytes == bytes);
  CHECK(partly.cached_bytes > 0);
  CHECK(partly.cached_bytes < bytes);

  host.wait(0);
  host.boot->forget(*host.template_disk());
  host.wait(0);
  const BootStatus status = host.boot->show(*host.template_disk());
  CHECK_FALSE(status.profile);
  CHECK(host.boot->memory().stats().slots == 0);
}

TEST_CASE(
    "a pack is made where it helps, and read in place of the profile; one that is damaged is not") {
  Host host;
  // So far apart that each read is a request of its own.
  const auto boot_far = [](Host& on, const std::string& name) {
    const auto disk = on.disk(name);
    const auto follower = on.boot->follow(disk);
    disk->read(*follower, 0, 8);
    disk->read(*follower, 73, 8);
    on.wait(0);
    for (uint64_t i = 2; i < 110; ++i) disk->read(*follower, 73 * i, 8);
    const auto window = on.boot->done(disk->volume());
    on.wait(0);
    on.boot->memory().forget(std::vector{
        TestTemplate::key(0), TestTemplate::key(1), TestTemplate::key(2), TestTemplate::key(3),
        TestTemplate::key(4), TestTemplate::key(5), TestTemplate::key(6), TestTemplate::key(7)});
    on.wait(10'000);
    return *window;
  };
  for (int i = 0; i < 2; ++i) boot_far(host, "vm1");
  CHECK(host.boot->show(*host.template_disk()).pack == BootStatus::PackState::kNone);
  boot_far(host, "vm2");
  const BootStatus status = host.boot->show(*host.template_disk());
  CHECK(status.pack == BootStatus::PackState::kReady);
  CHECK(status.pack_bytes > 110 * 8 * kBlockBytes);
  boot_far(host, "vm3");
  CHECK(host.store.list("packs") == std::vector{host.origin.uuid.text() + ".1"});

  Host later(host);
  const BootWindow window = boot_far(later, "vm4");
  CHECK(window.use.prefetched == 110 * 8 - 16);
  CHECK(later.origin.planned_bytes() == 16 * kBlockBytes);

  Host damaged(host);
  const std::string name = "packs/" + host.origin.uuid.text() + ".1";
  ByteVector pack = damaged.store.content(name);
  pack[100 * kBlockBytes] ^= std::byte{1};
  damaged.store.set_content(name, pack);
  CHECK(boot_far(damaged, "vm5").use.prefetched == 110 * 8 - 16);
  CHECK(damaged.origin.planned_bytes() >= 17 * kBlockBytes);
  pack.back() ^= std::byte{1};
  damaged.store.set_content(name, pack);
  CHECK(damaged.boot->show(*damaged.template_disk()).pack == BootStatus::PackState::kDamaged);
  CHECK(boot_far(damaged, "vm6").use.misses == 16);

  Boot::remove_orphans(host.store, {host.origin.uuid});
  CHECK(host.store.list("packs").size() == 1);
  CHECK(Boot::remove_orphans(host.store, {}) == 2);
  CHECK(host.store.list("boot").empty());
}

TEST_CASE("reading ahead stops when nobody comes, at its share, and when the boot is over") {
  Host learnt;
  {
    const auto disk = learnt.disk("vm1");
    const auto follower = learnt.boot->follow(disk);
    disk->read(*follower, 0, 200);
    for (uint64_t i = 29; i > 0; --i) disk->read(*follower, i * 256, 200);
  }
  learnt.wait(0);
  // 24 MB, at most 4 MiB at a time.
  const auto prefetched_of = [&](Host& host, const std::shared_ptr<TestDisk>& disk) {
    const auto follower = host.boot->follow(disk);
    disk->read(*follower, 0, 1);
    disk->read(*follower, 1, 1);
    host.boot->tend();
    return host.boot->memory().stats().prefetch_bytes;
  };
  Host all(learnt, uint64_t{64} << 20);
  CHECK(prefetched_of(all, all.disk("vm1")) > 22 << 20);

  Host slow(learnt, uint64_t{64} << 20);
  const auto waiting = slow.disk("vm1");
  waiting->on_with_cells = [&] { slow.now_ms += 6'000; };
  const uint64_t unused_bytes = prefetched_of(slow, waiting);
  CHECK(unused_bytes > 4 << 20);
  CHECK(unused_bytes < 20 << 20);

  Host small(learnt, uint64_t{16} << 20);
  const auto other = small.disk("vm2");
  const auto other_follower = small.boot->follow(other);
  other->read(*other_follower, 8000, 1);
  other->read(*other_follower, 0, 1);
  other->read(*other_follower, 8001, 1);
  const uint64_t share_bytes = prefetched_of(small, small.disk("vm1"));
  CHECK(share_bytes <= 12 << 20);

  Host over(learnt, uint64_t{64} << 20);
  const auto ending = over.disk("vm1");
  int calls = 0;
  ending->on_with_cells = [&] {
    if (++calls == 4) over.boot->done(ending->volume());
  };
  CHECK(prefetched_of(over, ending) < 12 << 20);
}

TEST_CASE("a boot that has half of the memory goes on and takes in no more") {
  Host host(uint64_t{4} << 20);
  const auto disk = host.disk("vm1");
  const auto follower = host.boot->follow(disk);
  for (uint64_t block = 0; block < 4000; block += 80) {
    disk->read(*follower, block, 16);
    host.wait(100);
  }
  CHECK(host.boot->memory().stats().fill_bytes < 3 << 20);
  const auto window = host.boot->done(disk->volume());
  REQUIRE(window);
  CHECK(window->blocks == 50 * 16);
  host.wait(0);
  CHECK(disk->dropped_blocks == 0);  // the storage's caches have the rest
}

TEST_CASE("threads: guests that boot, come and go, while their boots are learnt and read ahead") {
  Host host(uint64_t{4} << 20, false);
  host.boot->start();
  const uint64_t seed = test_seed();
  std::vector<std::thread> guests;
  for (uint64_t guest = 0; guest < 4; ++guest)
    guests.emplace_back([&, guest] {
      Random random(seed + guest);
      for (int life = 0; life < (kIsSanitized ? 2 : 4); ++life) {
        const auto disk = host.disk(fmt::format("vm{}", guest));
        const auto follower = host.boot->follow(disk);
        std::thread other([&, follower_too = host.boot->follow(disk)] {
          for (uint64_t i = 0; i < 60; ++i) disk->read(*follower_too, i * 191 % 8000, 4);
        });
        for (uint64_t i = 0; i < 60; ++i) disk->read(*follower, i * 197 % 8000, 8);
        if (random.chance(2)) host.boot->done(disk->volume());
        host.boot->show(*disk);
        host.boot->stats();
        other.join();
      }
    });
  for (std::thread& guest : guests) guest.join();
  const uint64_t cap = host.boot->memory().stats().cap;
  CHECK(host.boot->memory().stats().peak <= cap);
  host.boot->stop();
  CHECK(host.boot->show(*host.template_disk()).profile);
}
