// What a store says of its profiles and packs, and how they go.
#include "boot/stored_boots.h"

#include <doctest/doctest.h>

#include "boot/learning.h"
#include "boot_testing.h"

namespace tplstore::stored_boots_test {
using namespace tplstore::testing;

namespace {

struct Host {
  Host() {
    store.set_recording(false);
    put_identity(store, kTestSecret);
  }
  std::shared_ptr<TestDisk> disk(const std::string& name, bool is_template = false) {
    return std::make_shared<TestDisk>(store, origin, memory, name, is_template);
  }
  // Takes a boot that has read these blocks for learnt.
  Profile learn(TestDisk& disk, uint32_t source, uint64_t first, uint32_t count) {
    const ProfileRun run{first, source, count, 0, 1, {}};
    return learn_boot(store, disk, disk.open_template().get(), {&run, 1}, 1 << 20, memory,
                      kTestSecret)
        .value()
        .stored.profile;
  }
  void put_pack() {
    FoundProfile found{true, origin.uuid};
    found.stored.profile.runs.push_back({8, kFromTemplate, 8, 0, 1, {}});
    CHECK(make_pack_of(store, *disk("debian", true), found, kTestSecret, memory,
                       [] { return false; }));
  }

  mutable MemoryBackend store;
  TestTemplate origin{store};
  CellMemory memory{uint64_t{8} << 20};
};

}  // namespace

TEST_CASE("a template's profile and pack are shown, forgotten, and removed with the template") {
  Host host;
  const auto disk = host.disk("vm1");
  const auto origin = host.disk("debian", true);
  BootStatus status = show_stored_boots(host.store, *origin);
  CHECK(status.is_template);
  CHECK_FALSE(status.profile);
  CHECK(status.pack == BootStatus::PackState::kNone);
  host.learn(*disk, kFromTemplate, 8, 8);
  host.put_pack();
  status = show_stored_boots(host.store, *origin);
  REQUIRE(status.profile);
  CHECK(status.profile->generation == 1);
  CHECK(status.profile->boots == 1);
  CHECK(status.profile->blocks == 8);
  CHECK(status.profile->own_blocks == 0);
  CHECK(status.pack == BootStatus::PackState::kReady);
  CHECK(status.pack_bytes == 9 * kBlockBytes);
  CHECK_FALSE(show_stored_boots(host.store, *disk).profile);  // it has none of its own

  const std::string pack = "packs/" + host.store.list("packs").at(0);
  ByteVector bytes = host.store.content(pack);
  bytes.back() ^= std::byte{1};
  host.store.set_content(pack, bytes);
  CHECK(show_stored_boots(host.store, *origin).pack == BootStatus::PackState::kDamaged);

  CHECK(remove_boot_orphans(host.store, {host.origin.uuid}) == 0);
  CHECK(remove_boot_orphans(host.store, {random_uuid()}) == 2);
  CHECK(host.store.list("boot").empty());
  CHECK(host.store.list("packs").empty());
  host.learn(*disk, kFromTemplate, 8, 8);
  host.put_pack();
  forget_stored_boots(host.store, *origin);
  CHECK(host.store.list("boot").empty());
  CHECK(host.store.list("packs").empty());
}

TEST_CASE("a template's profile is not loaded for who knows it") {
  Host host;
  const auto disk = host.disk("vm1");
  host.learn(*disk, kFromTemplate, 8, 8);
  Uuid owner;
  uint64_t newest = 0;
  for (const bool is_known : {true, false}) {
    const FoundProfile found =
        find_profile(host.store, *disk, [&](const Uuid& of, uint64_t number) {
          owner = of;
          newest = number;
          return is_known;
        });
    CHECK(found.is_of_template);
    CHECK(found.owner == owner);
    CHECK(found.stored.number == newest);
    CHECK(found.stored.profile.runs.empty() == is_known);
  }
  CHECK(owner == host.origin.uuid);
  CHECK(newest > 0);
}

TEST_CASE("a fork that needs its parent no more keeps the profile that it booted by") {
  Host host;
  const auto parent = host.disk("vm1");
  parent->write_version(host.store, 3, 0, 100);
  const auto fork = host.disk("fork");
  fork->become_fork_of(*parent);
  adopt_boots(host.store, *fork);  // there is none
  host.learn(*parent, 3, 8, 8);
  CHECK_FALSE(show_stored_boots(host.store, *fork).profile);
  CHECK(find_profile(host.store, *fork).owner == parent->volume());
  adopt_boots(host.store, *fork);
  const FoundProfile own = find_profile(host.store, *fork);
  CHECK(own.owner == fork->volume());
  CHECK(count_own_blocks(own.stored.profile.runs) == 8);
  adopt_boots(host.store, *fork);  // it has one
  forget_stored_boots(host.store, *fork);
  CHECK_FALSE(show_stored_boots(host.store, *fork).profile);
  CHECK(show_stored_boots(host.store, *parent).profile);
}

TEST_CASE("a boot belongs to the nearest that a twentieth of it came from") {
  Host host;
  const auto grandparent = host.disk("vm1"), parent = host.disk("vm2"), fork = host.disk("vm3");
  grandparent->write_version(host.store, 2, 0, 100);
  fork->become_fork_of(*grandparent);
  fork->add_ancestor({parent->volume(), 5});
  // Of the template, of the three, and of which is learnt what.
  struct Case {
    uint32_t from_template, oldest, middle, own;
    const TestDisk* owner;
    uint64_t blocks;
  };
  const Case cases[] = {{100, 0, 0, 0, nullptr, 100},           {100, 3, 1, 1, nullptr, 100},
                        {100, 6, 1, 1, grandparent.get(), 106}, {100, 5, 1, 4, nullptr, 100},
                        {100, 0, 6, 3, parent.get(), 106},      {100, 10, 10, 7, fork.get(), 127}};
  for (const Case& one : cases) {
    CAPTURE(one.oldest);
    CAPTURE(one.middle);
    for (const auto& disk : {grandparent, parent, fork, host.disk("debian", true)})
      forget_stored_boots(host.store, *disk);
    std::vector<ProfileRun> runs;
    const auto add = [&](uint32_t source, uint64_t first, uint32_t count) {
      if (count > 0) runs.push_back({first, source, count, 0, 1, {}});
    };
    add(kFromTemplate, 4000, one.from_template);
    add(2, 0, one.oldest);
    add(4, 200, one.middle);
    add(9, 400, one.own);
    const auto learnt =
        learn_boot(host.store, *fork, nullptr, runs, 1 << 20, host.memory, kTestSecret);
    REQUIRE(learnt);
    CHECK(learnt->owner == (one.owner == nullptr ? host.origin.uuid : one.owner->volume()));
    CHECK(learnt->is_of_template == (one.owner == nullptr));
    CHECK(count_blocks(learnt->stored.profile.runs) == one.blocks);
    CHECK(find_profile(host.store, *fork).owner == learnt->owner);
  }
}

TEST_CASE("a volume's pack has what its template's has not, and settles what it is made of") {
  Host host;
  host.put_pack();  // blocks 8 to 15
  const auto disk = host.disk("vm1");
  disk->write_version(host.store, 3, 0, 4);
  FoundProfile found{false, disk->volume()};
  found.stored.profile.runs = {{4, kFromTemplate, 20, 0, 1, {}}, {0, 3, 4, 0, 1, {}}};
  const auto make = [&] {
    return make_pack_of(host.store, *disk, found, kTestSecret, host.memory, [] { return false; });
  };
  CHECK(make());
  CHECK(disk->settled == 1);
  const auto pack = open_pack(host.store, volume_pack(disk->volume()), disk->volume(), kTestSecret);
  REQUIRE(pack);
  const auto& pieces = pack->description().pieces;
  REQUIRE(pieces.size() == 3);
  CHECK(pieces[0].key() == TestTemplate::key(0));
  CHECK(pieces[0].count + pieces[1].count == 12);
  CHECK(pieces[2].key() == CellFileKey::of_version(disk->volume(), 3));
  CHECK(pieces[2].count == 4);
  CHECK_FALSE(make());
  CHECK(show_stored_boots(host.store, *disk).pack == BootStatus::PackState::kReady);
  forget_stored_boots(host.store, *disk);
  CHECK(show_stored_boots(host.store, *disk).pack == BootStatus::PackState::kNone);
  host.store.remove_folder("volumes/" + disk->volume().text());  // it is removed meanwhile
  make();
  CHECK(host.store.list("volumes/" + disk->volume().text()).empty());
}

}  // namespace tplstore::stored_boots_test
