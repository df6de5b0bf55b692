// What is read ahead of a guest, for how long, and `boot warm`.
#include "boot/read_ahead.h"

#include <doctest/doctest.h>

#include <utility>

#include "boot_host.h"
#include "volume_testing.h"

namespace tplstore::read_ahead_test {
using namespace tplstore::testing;

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

  // Half of 20 MiB beside one of another template; all that there is with one of the same.
  for (const bool is_of_another : {true, false}) {
    Host small(learnt, uint64_t{20} << 20);
    MemoryBackend elsewhere;
    TestTemplate another(elsewhere);
    const auto other = std::make_shared<TestDisk>(
        small.store, is_of_another ? another : small.origin, small.boot->memory(), "vm2");
    const auto other_follower = small.boot->follow(other);
    other->read(*other_follower, 8000, 1);
    other->read(*other_follower, 0, 1);
    other->read(*other_follower, 8001, 1);
    const uint64_t share_bytes = prefetched_of(small, small.disk("vm1"));
    CHECK(share_bytes > 8 << 20);
    CHECK((share_bytes <= 14 << 20) == is_of_another);
  }

  Host over(learnt, uint64_t{64} << 20);
  const auto ending = over.disk("vm1");
  int calls = 0;
  ending->on_with_cells = [&] {
    if (++calls == 4) over.boot->done(ending->volume());
  };
  CHECK(prefetched_of(over, ending) < 12 << 20);
}

TEST_CASE("a profile that was slow to read gets a pack, though the guest has read most of it") {
  // 24 MB, from the end down to a part.
  const auto read = [](TestDisk& disk, ReadFollower& follower, uint64_t last) {
    for (uint64_t i = 29; i >= last; --i) disk.read(follower, i * 256, 200);
  };
  Host learnt;
  for (const char* name : {"vm1", "vm2", "vm3"}) {
    const auto disk = learnt.disk(name);
    {
      const auto follower = learnt.boot->follow(disk);
      disk->read(*follower, 0, 200);
      read(*disk, *follower, 1);
    }
    learnt.wait(0);
  }
  CHECK(learnt.store.list("packs").empty());
  // It takes 220 ms, and the guest reads three quarters for itself meanwhile, or nothing.
  for (const bool is_beside_guest : {false, true}) {
    Host host(learnt, uint64_t{64} << 20);
    const auto disk = host.disk("vm1");
    auto follower = host.boot->follow(disk);
    bool is_first = true;
    disk->on_with_cells = [&] {
      host.now_ms += 20;
      if (std::exchange(is_first, false) && is_beside_guest) read(*disk, *follower, 8);
    };
    disk->read(*follower, 0, 1);
    disk->read(*follower, 1, 199);
    host.wait(0);
    REQUIRE_FALSE(is_first);
    read(*disk, *follower, 1);
    follower.reset();
    host.wait(0);
    CHECK(host.store.list("packs").size() == (is_beside_guest ? 1 : 0));
  }
}

TEST_CASE("with little memory a reading waits for room, and has it to itself") {
  Host learnt;
  boot_once(learnt, "vm1");
  constexpr uint64_t kCapBytes = uint64_t{1} << 20;
  Host host(learnt, kCapBytes);
  CellMemory& memory = host.boot->memory();
  auto others = memory.hold_beside(kCapBytes - (64 << 10));
  REQUIRE(others);
  const auto disk = host.disk("vm2");
  const auto follower = host.boot->follow(disk);
  disk->read(*follower, 0, 1);
  disk->read(*follower, 1, 1);
  host.boot->tend();
  CHECK(memory.stats().prefetch_bytes == 0);
  std::weak_ptr<TestDisk> ended;
  {
    const auto other = host.disk("vm3");
    ended = other;
    const auto other_follower = host.boot->follow(other);
    other->read(*other_follower, 0, 1);
    other->read(*other_follower, 1, 1);
    host.boot->tend();
    host.boot->done(other->volume());
  }
  host.wait(0);
  CHECK(ended.expired());  // what it has in memory may be the room that is waited for
  others.reset();
  host.boot->tend();
  CHECK(memory.stats().prefetch_bytes > kCapBytes / 2);
  const uint64_t fills = memory.stats().fills;
  disk->read(*follower, 8000, 1);
  CHECK(memory.stats().fills == fills);

  // Also before it has got half of it.
  Host half(learnt, kCapBytes);
  others = half.boot->memory().hold_beside(kCapBytes / 8 * 5);
  const auto early = half.disk("vm4");
  const auto early_follower = half.boot->follow(early);
  early->read(*early_follower, 0, 1);
  early->read(*early_follower, 1, 1);
  half.boot->tend();
  const CellMemoryStats stats = half.boot->memory().stats();
  CHECK(stats.prefetch_bytes > 0);
  CHECK(stats.prefetch_bytes < kCapBytes / 4);
  others.reset();
  early->read(*early_follower, 8000, 1);
  CHECK(half.boot->memory().stats().fills == stats.fills);
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

TEST_CASE("what was read ahead for one is not read again for the next, but what it left out is") {
  Host learnt;
  boot_once(learnt, "vm1");
  Host host(learnt);
  uint64_t asked = 0;  // for what the map has of the profile
  const auto begin = [&](const std::shared_ptr<TestDisk>& disk) {
    disk->on_with_cells = [&] { ++asked; };
    const auto follower = host.boot->follow(disk);
    host.wait(0);
    asked = 0;
    disk->read(*follower, 0, 1);
    disk->read(*follower, 1, 7);
    host.wait(0);
    return asked;
  };
  // It has other blocks where the template has some of these.
  const auto changed = host.disk("vm2");
  changed->write_version(host.store, 3, 1000, 1000);
  CHECK(begin(changed) > 0);
  const uint64_t part = host.boot->memory().stats().prefetch_bytes;
  CHECK(begin(host.disk("vm3")) > 0);
  const uint64_t all = host.boot->memory().stats().prefetch_bytes;
  CHECK(all > part);
  CHECK(begin(host.disk("vm4")) == 0);
  host.boot->memory().forget(std::vector{TestTemplate::key(3)});
  host.wait(0);
  CHECK(begin(host.disk("vm5")) > 0);
  CHECK(host.boot->memory().stats().prefetch_bytes > all);
}

}  // namespace tplstore::read_ahead_test
