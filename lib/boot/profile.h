// A profile: what boots of a disk read first, as runs in the order of their first touch.
//
// A run names blocks of the disk and where the disk had them from: the template, or a frozen
// version. Who uses it looks the blocks up in the disk's map as it is then; so a profile that is
// old, damaged or another's causes useless reads and nothing else.
//
// Every run has a weight from 1 to 8: a boot that touched at least half of it adds one, a boot that
// did not takes one, and at 0 it goes. What a boot touched beside is put behind what it had touched
// just before. A boot counts only if it touched at least half of the profile's first quarter, so
// that neither a backup nor a rescue system washes it out.
//
// It may have the hashes of the template's blocks, so that what is read ahead can be verified
// without the tables of segments.
//
// Pure functions and plain data. Errors: EIO when bytes are damaged, EINVAL when they were written
// by a newer format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "template/cell_cache.h"

namespace tplstore {

inline constexpr uint64_t kProfileMagic = 0x31666f72706c7074;  // "tplprof1"
inline constexpr uint32_t kProfileFormat = 1;
inline constexpr uint32_t kProfileRunsMax = uint32_t{1} << 19;
inline constexpr uint8_t kProfileWeightMax = 8;

struct ProfileHeader {
  uint64_t magic;
  uint32_t format;
  uint32_t run_count;
  Uuid owner;           // the template or the volume
  uint64_t size_bytes;  // of the disk
  int64_t created_ns;
  int64_t updated_ns;
  uint32_t boots;         // that were merged
  uint32_t steady_boots;  // of these, the last ones that changed next to nothing
  uint32_t hash_count;    // 0, or one for each block from the template
  uint8_t reserved[20];
  uint64_t checksum;  // of all before it (as the seed) and all behind it, to the object's end
};
static_assert(sizeof(ProfileHeader) == 96);
static_assert(offsetof(ProfileHeader, format) == 8);
static_assert(offsetof(ProfileHeader, run_count) == 12);
static_assert(offsetof(ProfileHeader, owner) == 16);
static_assert(offsetof(ProfileHeader, size_bytes) == 32);
static_assert(offsetof(ProfileHeader, created_ns) == 40);
static_assert(offsetof(ProfileHeader, updated_ns) == 48);
static_assert(offsetof(ProfileHeader, boots) == 56);
static_assert(offsetof(ProfileHeader, steady_boots) == 60);
static_assert(offsetof(ProfileHeader, hash_count) == 64);
static_assert(offsetof(ProfileHeader, reserved) == 68);
static_assert(offsetof(ProfileHeader, checksum) == 88);

struct ProfileRun {
  uint64_t first;   // block of the disk
  uint32_t source;  // a version, or kFromTemplate
  uint32_t count;
  uint32_t touched_ms;  // after the boot had begun that it was first seen in
  uint8_t weight;
  uint8_t reserved[3];

  uint64_t end() const { return first + count; }
  bool operator==(const ProfileRun&) const = default;
};
static_assert(sizeof(ProfileRun) == 24);
static_assert(offsetof(ProfileRun, source) == 8 && offsetof(ProfileRun, count) == 12);
static_assert(offsetof(ProfileRun, touched_ms) == 16 && offsetof(ProfileRun, weight) == 20);

// More blocks than these have no hashes.
inline constexpr uint32_t kProfileHashesMax = uint32_t{1} << 19;
inline constexpr uint64_t kProfileBytesMax = sizeof(ProfileHeader) +
                                             uint64_t{kProfileRunsMax} * sizeof(ProfileRun) +
                                             uint64_t{kProfileHashesMax} * sizeof(Hash128);

struct Profile {
  Uuid owner;
  uint64_t size_bytes = 0;
  int64_t created_ns = 0;
  int64_t updated_ns = 0;
  uint32_t boots = 0;
  uint32_t steady_boots = 0;
  std::vector<ProfileRun> runs;  // no block of a source twice
  // Of the runs' blocks that are the template's, in order, under the store's secret; zero: unknown.
  // Or none.
  std::vector<Hash128> hashes = {};
};

uint64_t count_blocks(std::span<const ProfileRun> runs);
// Of these, what did not come from the template; of versions past this one.
uint64_t count_own_blocks(std::span<const ProfileRun> runs, uint32_t past = 0);

// Asserts that it is sound.
ByteVector encode_profile(const Profile& profile);
Profile decode_profile(Bytes bytes, const std::string& object);

// The hashes of a profile by blocks of the template.
class ProfileHashes {
 public:
  explicit ProfileHashes(const Profile& profile);
  // Zero where it is not known.
  Hash128 find(uint64_t block) const;

 private:
  struct Stretch {
    uint64_t first;
    uint64_t end;
    size_t hash;  // of the first block
  };
  const Profile& profile_;
  std::vector<Stretch> stretches_;  // rising
};
// Has a place for the hash of each block that is the template's, and keeps those of `before`.
void take_hashes(Profile& profile, const Profile& before);

// What a boot touched, in that order, as runs of weight 1: those that continue each other are
// joined, and what lies past the disk's end is left out.
std::vector<ProfileRun> runs_of_boot(std::span<const ProfileRun> touches, uint64_t size_bytes);

// Takes a boot's runs into the profile; false, and nothing changed, when it does not count. The
// first boot makes an empty profile. A boot is steady when no more than a sixteenth came or went.
// What is too much for `blocks_max` goes, the last first. The hashes go too: see take_hashes().
bool merge_boot(Profile& profile, std::span<const ProfileRun> boot, uint64_t blocks_max,
                int64_t now_ns);

}  // namespace tplstore
