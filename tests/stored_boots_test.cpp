// What a store says of its profiles and packs, and how they go.
#include "boot/stored_boots.h"

#include <doctest/doctest.h>

#include "boot/learning.h"
#include "boot_testing.h"

using namespace tplstore;
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
    Profile profile;
    profile.owner = origin.uuid;
    profile.runs.push_back({8, kFromTemplate, 8, 0, 1, {}});
    CHECK(make_pack_of(store, *disk("debian", true), profile, kTestSecret, memory,
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

TEST_CASE("a volume's own profile is copied for a fork and forgotten by itself") {
  Host host;
  const auto parent = host.disk("vm1");
  const auto fork = host.disk("fork");
  copy_boots_for_fork(host.store, parent->volume(), fork->volume());  // nothing to copy
  CHECK_FALSE(show_stored_boots(host.store, *fork).profile);
  host.learn(*parent, 3, 8, 8);
  copy_boots_for_fork(host.store, parent->volume(), fork->volume());
  for (const auto& disk : {parent, fork}) {
    const BootStatus status = show_stored_boots(host.store, *disk);
    REQUIRE(status.profile);
    CHECK(status.profile->blocks == 8);
    CHECK(status.profile->own_blocks == 8);
  }
  forget_stored_boots(host.store, *fork);
  CHECK_FALSE(show_stored_boots(host.store, *fork).profile);
  CHECK(show_stored_boots(host.store, *parent).profile);
}
