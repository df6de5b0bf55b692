// Profiles: what boots change in one, and that nothing damaged gets past decoding.
#include "boot/profile.h"

#include <doctest/doctest.h>

#include <set>

#include "template_testing.h"
#include "volume_testing.h"

namespace tplstore::profile_test {
using namespace tplstore::testing;

namespace {

constexpr uint64_t kDiskBytes = uint64_t{1} << 30;
constexpr uint64_t kBlocksMax = uint64_t{1} << 19;

ProfileRun run_at(uint64_t first, uint32_t count, uint32_t source = kFromTemplate,
                  uint8_t weight = 1) {
  return {first, source, count, 0, weight, {}};
}

Profile new_profile() {
  Profile profile;
  profile.owner = random_uuid();
  profile.size_bytes = kDiskBytes;
  return profile;
}

bool boot(Profile& profile, const std::vector<ProfileRun>& touches,
          uint64_t blocks_max = kBlocksMax) {
  return merge_boot(profile, runs_of_boot(touches, profile.size_bytes), blocks_max, 1);
}

// "100+8*2 …": first, count, weight.
std::string text_of(const Profile& profile) {
  std::string text;
  for (const ProfileRun& run : profile.runs)
    text += fmt::format("{}{}+{}*{}", text.empty() ? "" : " ", run.first, run.count, run.weight);
  return text;
}

}  // namespace

TEST_CASE("a boot's touches are joined where they continue each other, and end with the disk") {
  const auto runs = runs_of_boot(
      std::vector{run_at(10, 2), run_at(12, 3), run_at(9, 1), run_at(15, 1, 7), run_at(16, 1, 7),
                  run_at(kDiskBytes / kBlockBytes - 1, 9), run_at(kDiskBytes / kBlockBytes, 1)},
      kDiskBytes);
  Profile profile;
  profile.runs = runs;
  CHECK(text_of(profile) == "10+5*1 9+1*1 15+2*1 262143+1*1");
  CHECK(count_blocks(runs) == 9);
  CHECK(count_own_blocks(runs) == 2);
}

TEST_CASE("what boots touch gains weight, what they do not loses it and goes") {
  Profile profile = new_profile();
  CHECK(boot(profile, {run_at(100, 10), run_at(50, 10), run_at(200, 1)}));
  CHECK(text_of(profile) == "100+10*1 50+10*1 200+1*1");
  CHECK(profile.boots == 1);
  CHECK(boot(profile, {run_at(100, 10), run_at(50, 5)}));  // half of a run is enough
  CHECK(text_of(profile) == "100+10*2 50+10*2");
  CHECK(boot(profile, {run_at(100, 10), run_at(50, 4)}));
  CHECK(text_of(profile) == "100+10*3 50+10*1");
  for (int i = 0; i < 10; ++i) CHECK(boot(profile, {run_at(100, 10)}));
  // What is left of a run that goes comes in again.
  CHECK(text_of(profile) == "100+10*8");
}

TEST_CASE("what is new comes behind what was touched just before it") {
  Profile profile = new_profile();
  boot(profile, {run_at(10, 4), run_at(20, 4), run_at(30, 4)});
  CHECK(boot(profile, {run_at(5, 1), run_at(20, 4), run_at(24, 2), run_at(7, 1), run_at(10, 4),
                       run_at(28, 8)}));
  CHECK(text_of(profile) == "5+1*1 10+4*2 28+2*1 20+4*2 24+2*1 7+1*1 30+4*2 34+2*1");
  // The same block of another source is another one.
  CHECK(boot(profile, {run_at(10, 4), run_at(20, 4, 3), run_at(20, 4), run_at(30, 4)}));
  CHECK(count_own_blocks(profile.runs) == 4);
}

TEST_CASE("a boot counts when it touched half of the first quarter") {
  Profile profile = new_profile();
  boot(profile, {run_at(0, 100), run_at(1000, 300)});
  const Profile before = profile;
  CHECK_FALSE(boot(profile, {run_at(5000, 1000)}));                // a backup
  CHECK_FALSE(boot(profile, {run_at(0, 49), run_at(1000, 300)}));  // a rescue system
  CHECK_FALSE(boot(profile, {}));                                  // nothing
  CHECK(profile.runs == before.runs);
  CHECK(profile.boots == 1);
  CHECK(boot(profile, {run_at(0, 50)}));
  CHECK(profile.boots == 2);
}

TEST_CASE("boots that change next to nothing are steady") {
  Profile profile = new_profile();
  boot(profile, {run_at(0, 160)});
  CHECK(profile.steady_boots == 0);
  boot(profile, {run_at(0, 160), run_at(1000, 10)});
  CHECK(profile.steady_boots == 1);
  boot(profile, {run_at(0, 160), run_at(2000, 1)});  // 10 went, 1 came
  CHECK(profile.steady_boots == 0);
  boot(profile, {run_at(0, 160), run_at(2000, 1)});
  boot(profile, {run_at(0, 160), run_at(2000, 1)});
  CHECK(profile.steady_boots == 2);
}

TEST_CASE("what is too much goes from the end") {
  Profile profile = new_profile();
  CHECK(boot(profile, {run_at(0, 50), run_at(100, 50), run_at(200, 1)}, 100));
  CHECK(text_of(profile) == "0+50*1 100+50*1");
}

TEST_CASE("random boots: each block at most once, and all that was touched is there") {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 30; ++round) {
    Profile profile = new_profile();
    for (int i = 0; i < 12; ++i) {
      std::set<uint64_t> seen;
      std::vector<ProfileRun> touches;
      for (int touch = 0; touch < 60; ++touch) {
        const uint64_t first = random() % 300;
        const uint32_t source = first % 3 == 0 ? 5 : kFromTemplate;
        if (seen.insert(first).second) touches.push_back(run_at(first, 1, source));
      }
      const bool has_counted = boot(profile, touches);
      std::set<std::pair<uint32_t, uint64_t>> blocks;
      for (const ProfileRun& run : profile.runs)
        for (uint64_t block = run.first; block < run.end(); ++block)
          REQUIRE(blocks.emplace(run.source, block).second);
      if (has_counted)
        for (const ProfileRun& touch : touches)
          REQUIRE(blocks.contains({touch.source, touch.first}));
      const Profile again = decode_profile(encode_profile(profile), "p");
      REQUIRE(again.runs == profile.runs);
      REQUIRE(again.boots == profile.boots);
    }
  }
}

TEST_CASE("hashes stay with their blocks, whatever becomes of the runs") {
  Profile before = new_profile();
  before.runs = {run_at(100, 3), run_at(7, 2, 5), run_at(50, 2)};
  before.hashes = {{1, 100}, {1, 101}, {1, 102}, {1, 50}, {}};
  Profile after = new_profile();
  after.runs = {run_at(50, 3), run_at(9, 1, 5), run_at(99, 3)};
  take_hashes(after, before);
  CHECK(after.hashes == std::vector<Hash128>{{1, 50}, {}, {}, {}, {1, 100}, {1, 101}});
  const Profile again = decode_profile(encode_profile(after), "p");
  CHECK(again.hashes == after.hashes);
  const ProfileHashes hashes(again);
  CHECK(hashes.find(100) == Hash128{1, 100});
  CHECK(hashes.find(102) == Hash128{});
  CHECK(hashes.find(9) == Hash128{});
  ByteVector bytes = encode_profile(before);
  bytes.resize(bytes.size() - sizeof(Hash128));
  CHECK(thrown_by([&] { decode_profile(bytes, "p"); }).code == EIO);
}

TEST_CASE("whatever is damaged, decoding refuses it or gives runs within the disk") {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  Profile profile = new_profile();
  for (int i = 0; i < 20; ++i)
    profile.runs.push_back(
        run_at(static_cast<uint64_t>(i) * 100, static_cast<uint32_t>(1 + random() % 50)));
  take_hashes(profile, profile);
  const ByteVector sound = encode_profile(profile);
  uint64_t decoded = 0;
  for (uint64_t i = 0; i < test_operations(20'000); ++i) {
    ByteVector bytes = sound;
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips)
      bytes[random() % bytes.size()] ^= static_cast<std::byte>(1 + random() % 255);
    if (random() % 8 == 0) bytes.resize(random() % (bytes.size() + 40));
    // A hostile one has a checksum that is right.
    if (random() % 8 != 0 && bytes.size() >= sizeof(ProfileHeader)) {
      const uint64_t head = checksum(Bytes(bytes).first(88));
      const uint64_t sum = checksum(Bytes(bytes).subspan(96), head);
      std::memcpy(bytes.data() + 88, &sum, sizeof sum);
    }
    try {
      Profile read = decode_profile(bytes, "p");
      ++decoded;
      for (const ProfileRun& run : read.runs) {
        REQUIRE(run.count > 0);
        REQUIRE(run.end() <= blocks_of(read.size_bytes));
        REQUIRE(run.end() > run.first);
      }
      boot(read, {run_at(0, 40), run_at(100, 40)});
      encode_profile(read);
    } catch (const Error& error) {
      REQUIRE((error.code() == EIO || error.code() == EINVAL));
    }
  }
  CHECK(decoded > 0);
  CHECK(thrown_by([&] { decode_profile(Bytes(sound).first(95), "p"); }).code == EIO);
}

}  // namespace tplstore::profile_test
