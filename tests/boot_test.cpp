// The boot cache as a whole, on a disk of its own and with a clock that the test turns: when boots
// begin and end, what is learnt from them, and what the next one finds in memory.
#include "boot/boot.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <thread>

#include "boot/learning.h"
#include "boot_host.h"
#include "volume_testing.h"

namespace tplstore::boot_test {
using namespace tplstore::testing;

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

TEST_CASE(
    "what a boot took in leaves the storage's caches, and is learnt, though its disk is closed") {
  for (const bool is_closed : {false, true}) {
    Host host;
    host.origin.hole_first = 5 * 197 / 8 * 8;
    host.origin.hole_count = 4;
    const auto disk = host.disk("vm1");
    auto follower = host.boot->follow(disk);
    boot_guest(host, *disk, *follower);
    if (is_closed) {
      follower.reset();
      disk->go();
      host.wait(0);
    } else {
      host.wait(14'000);
      CHECK(host.origin.dropped_blocks == 0);
      host.wait(1'000);
    }
    CHECK(host.boot->stats().windows_open == 0);
    CHECK(host.origin.dropped_blocks == 40 * 8);
    const Profile profile =
        load_profile(host.store, template_profile(host.origin.uuid), host.origin.uuid).profile;
    CHECK(count_blocks(profile.runs) == 40 * 8);
    CHECK(profile.hashes.size() == 40 * 8);
    CHECK(std::ranges::count(profile.hashes, Hash128{}) == 4);
    CHECK((host.boot->show(*disk).cached_bytes == 0) == is_closed);
    host.boot->forget(*disk);
  }
}

TEST_CASE(
    "before a boot that nothing is known of the template's tables are asked for, and only then") {
  Host host;
  for (const char* name : {"vm1", "vm2"}) {
    const bool is_first = host.boot->show(*host.template_disk()).profile == std::nullopt;
    const auto disk = host.disk(name);
    const auto follower = host.boot->follow(disk);
    disk->read(*follower, 0, 1);
    disk->read(*follower, 1, 7);
    host.wait(0);
    CHECK(disk->asked_for_tables == (is_first ? 1 : 0));
    boot_guest(host, *disk, *follower);
    host.boot->done(disk->volume());
    host.wait(0);
  }
}

TEST_CASE("boots that do not begin at block 0 are known by their template's newest profile") {
  Host host;
  const NumberedObject object = template_profile(host.origin.uuid);
  const auto put = [&](uint64_t number, uint64_t first) {
    Profile profile;
    profile.owner = host.origin.uuid;
    profile.size_bytes = 8192 * kBlockBytes;
    profile.boots = 1;
    for (uint64_t i = 0; i < 4; ++i)
      profile.runs.push_back({first + 100 * i, kFromTemplate, 8, 0, 1, {}});
    profile.hashes.resize(4 * 8);
    REQUIRE(put_profile(host.store, object, number - 1, profile));
  };
  const auto is_boot = [&](const std::string& name, uint64_t first) {
    const auto disk = host.disk(name);
    const auto follower = host.boot->follow(disk);
    host.wait(0);
    for (uint64_t i = 0; i < 3; ++i) disk->read(*follower, first + 100 * i, 8);
    return host.boot->done(disk->volume()).has_value();
  };
  put(1, 50);
  CHECK(is_boot("vm1", 50));
  CHECK_FALSE(is_boot("vm2", 1050));
  // It has been read once, and is not read again as long as it is the newest.
  host.store.set_content(object.path(1), ByteVector(100));
  CHECK(is_boot("vm3", 50));
  put(2, 1050);
  CHECK(is_boot("vm4", 1050));
  CHECK_FALSE(is_boot("vm5", 50));
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
    "a volume that is no longer as its template has a profile of its own, by which its forks "
    "boot") {
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
  fork->become_fork_of(*disk);
  {
    const auto follower = host.boot->follow(fork);
    boot_guest(host, *fork, *follower);
  }
  host.wait(0);
  CHECK_FALSE(show_stored_boots(host.store, *fork).profile);
  CHECK(host.boot->show(*disk).profile->boots == 2);
  CHECK(host.boot->show(*disk).profile->blocks == status.profile->blocks);
  CHECK(host.boot->show(*host.template_disk()).profile->boots == 1);

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
}

TEST_CASE("a disk that is closed while its boot is learnt is no failure") {
  Host host;
  const auto disk = host.disk("vm1");
  {
    const auto follower = host.boot->follow(disk);
    boot_guest(host, *disk, *follower);
  }
  disk->on_with_cells = [&] { disk->go(); };
  host.wait(0);
  CHECK(disk->is_gone());
  CHECK(host.log.size() == 1);  // that the boot has ended
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

TEST_CASE(
    "a pack is made where it helps, and read in place of the profile; one that is damaged is not") {
  Host host;
  std::ranges::fill(host.origin.uuid.bytes,
                    uint8_t{0xff});  // the last one where things are in order
  const auto begin_far = [](const std::shared_ptr<TestDisk>& disk, ReadFollower& follower) {
    disk->read(follower, 0, 8);
    disk->read(follower, 73, 8);
  };
  // So far apart that each read is a request of its own.
  const auto boot_disk_far = [&](Host& on, const std::shared_ptr<TestDisk>& disk) {
    const auto follower = on.boot->follow(disk);
    begin_far(disk, *follower);
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
  const auto boot_far = [&](Host& on, const std::string& name) {
    return boot_disk_far(on, on.disk(name));
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

  // What it has of the template is in the pack, of a volume too that has more of its own.
  const auto changed = later.disk("changed");
  changed->write_version(later.store, 3, 3000, 5192);
  boot_disk_far(later, changed);
  const uint64_t before = later.origin.planned_bytes();
  boot_disk_far(later, changed);
  CHECK(later.origin.planned_bytes() - before == 16 * kBlockBytes);

  // When that has become steady the rest is in one of its own, by which forks boot too.
  const auto forget_own = [&] {
    later.boot->memory().forget(std::vector{CellFileKey::of_version(changed->volume(), 3)});
    later.wait(10'000);
  };
  forget_own();
  CHECK(later.boot->show(*changed).pack == BootStatus::PackState::kNone);
  boot_disk_far(later, changed);
  CHECK(later.boot->show(*changed).pack == BootStatus::PackState::kReady);
  forget_own();
  const auto fork = later.disk("fork");
  fork->become_fork_of(*changed);
  const uint64_t read_before = later.origin.planned_bytes() + changed->own_bytes();
  CHECK(boot_disk_far(later, fork).use.misses == 16);
  CHECK(later.origin.planned_bytes() + changed->own_bytes() - read_before == 16 * kBlockBytes);

  // And who has none waits for the one of somebody else, which may have what it looks for.
  Host both(host);
  const auto own = both.disk("own");
  own->write_version(both.store, 3, 1000, 7192);
  boot_disk_far(both, own);
  boot_far(both, "vm5");
  const uint64_t so_far = both.origin.planned_bytes();
  const auto fresh = both.disk("vm6");
  const auto own_follower = both.boot->follow(own), fresh_follower = both.boot->follow(fresh);
  begin_far(own, *own_follower);
  begin_far(fresh, *fresh_follower);
  both.wait(0);
  CHECK(both.origin.planned_bytes() - so_far == 16 * kBlockBytes);

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

  remove_boot_orphans(host.store, {host.origin.uuid});
  CHECK(host.store.list("packs").size() == 1);
  CHECK(remove_boot_orphans(host.store, {}) == 2);
  CHECK(host.store.list("boot").empty());
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
  CHECK(host.origin.dropped_blocks == 0);  // the storage's caches have the rest
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

}  // namespace tplstore::boot_test
