// Profiles as objects: the newest that is whole counts, through crashes, damage and other hosts.
#include "boot/profile_store.h"

#include <doctest/doctest.h>

#include "memory/memory_backend.h"
#include "template_testing.h"
#include "volume_testing.h"

namespace tplstore::profile_store_test {
using namespace tplstore::testing;

namespace {

Profile profile_of(const Uuid& owner, uint32_t boots) {
  Profile profile;
  profile.owner = owner;
  profile.size_bytes = 1 << 30;
  profile.boots = boots;
  profile.runs = {{boots, kFromTemplate, 3, 0, 1, {}}};
  return profile;
}

}  // namespace

TEST_CASE("a new profile takes the place of the old one, and what is damaged is passed over") {
  MemoryBackend store;
  const Uuid uuid = random_uuid();
  for (const NumberedObject& object : {template_profile(uuid), volume_profile(uuid)}) {
    CHECK(load_profile(store, object, uuid).number == 0);
    CHECK(put_profile(store, object, 0, profile_of(uuid, 1)));
    CHECK(put_profile(store, object, 1, profile_of(uuid, 2)));
    CHECK(object.numbers(store) == std::vector<uint64_t>{2});
    CHECK(load_profile(store, object, uuid).profile.boots == 2);
    CHECK(load_profile(store, object, random_uuid()).profile.boots == 0);  // it is another's

    for (const char* name : {"3", "x", "18446744073709551615", "04"})
      store.set_content(fmt::format("{}/{}.{}", object.folder, object.prefix, name),
                        as_bytes("damaged"));
    CHECK(load_profile(store, object, uuid).profile.boots == 2);
    CHECK(load_profile(store, object, uuid).number == 3);
    CHECK_FALSE(put_profile(store, object, 2, profile_of(uuid, 3)));
    CHECK(put_profile(store, object, 3, profile_of(uuid, 3)));
    CHECK(object.numbers(store) == std::vector<uint64_t>{4});
    object.remove_all(store);
    CHECK(object.numbers(store).empty());
  }
}

TEST_CASE("of two hosts that learn at once one is refused, and one whole profile is left") {
  MemoryBackend store;
  const Uuid uuid = random_uuid();
  const NumberedObject object = template_profile(uuid);
  put_profile(store, object, 0, profile_of(uuid, 1));
  CHECK(put_profile(store, object, 1, profile_of(uuid, 2)));
  CHECK_FALSE(put_profile(store, object, 1, profile_of(uuid, 3)));
  CHECK(put_profile(store, object, 2, profile_of(uuid, 4)));
  // This one has slept while two others came and went: its number is free, and too low.
  CHECK_FALSE(put_profile(store, object, 1, profile_of(uuid, 5)));
  CHECK(object.numbers(store) == std::vector<uint64_t>{3});
  CHECK(load_profile(store, object, uuid).profile.boots == 4);
}

TEST_CASE("after a crash at any place there is the old profile or the new one, whole") {
  MemoryBackend store;
  const Uuid uuid = random_uuid();
  const NumberedObject object = template_profile(uuid);
  put_profile(store, object, 0, profile_of(uuid, 1));
  store.set_recording(false);
  store.set_recording(true);
  put_profile(store, object, 1, profile_of(uuid, 2));
  put_profile(store, object, 2, profile_of(uuid, 3));
  const uint64_t seed = test_seed();
  for (CrashWalker walker(store);; walker.advance()) {
    for (uint64_t i = 0; i < 20; ++i) {
      const auto after = walker.crash(MemoryBackend::Crash::kRandom, seed + i);
      const StoredProfile stored = load_profile(*after, object, uuid);
      REQUIRE(stored.profile.boots >= 1);
      REQUIRE(stored.profile.runs == profile_of(uuid, stored.profile.boots).runs);
      REQUIRE(put_profile(*after, object, stored.number, profile_of(uuid, 9)));
      REQUIRE(load_profile(*after, object, uuid).profile.boots == 9);
    }
    if (walker.is_at_end()) break;
  }
}

TEST_CASE("orphans go, and nothing else") {
  MemoryBackend store;
  const Uuid live = random_uuid(), gone = random_uuid();
  put_profile(store, template_profile(live), 0, profile_of(live, 1));
  put_profile(store, template_profile(gone), 0, profile_of(gone, 1));
  store.set_content("boot/notes", as_bytes("somebody's"));
  CHECK(remove_orphans_in(store, "boot", {live}) == 1);
  CHECK(store.list("boot").size() == 2);
  CHECK(template_profile(live).numbers(store).size() == 1);
}

}  // namespace tplstore::profile_store_test
