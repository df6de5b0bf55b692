// Encodes and decodes profiles, and has a boot change one.
#include "boot/profile.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace tplstore {
namespace {

constexpr uint64_t kChecksumOffset = offsetof(ProfileHeader, checksum);
constexpr uint32_t kJoinedBlocksMax = kRegionBlocks;
constexpr uint64_t kSteadyPart = 16;

uint64_t object_checksum(Bytes bytes) {
  const uint64_t head = checksum(bytes.first(kChecksumOffset));
  return checksum(bytes.subspan(kChecksumOffset + sizeof(uint64_t)), head);
}

// Finds the runs that have a block of a source.
class RunIndex {
 public:
  explicit RunIndex(std::span<const ProfileRun> runs) : runs_(runs), order_(runs.size()) {
    for (size_t i = 0; i < order_.size(); ++i) order_[i] = i;
    std::ranges::sort(order_, {}, [this](size_t i) { return place_of(runs_[i]); });
  }

  bool has_overlap() const {
    for (size_t i = 1; i < order_.size(); ++i) {
      const ProfileRun& before = runs_[order_[i - 1]];
      const ProfileRun& run = runs_[order_[i]];
      if (before.source == run.source && run.first < before.end()) return true;
    }
    return false;
  }

  // Visits the parts of `wanted` in rising order: `visit(first, end, index)`, with the index of
  // the run that has it, or nothing.
  template <typename Visit>
  void visit_parts(const ProfileRun& wanted, Visit visit) const {
    uint64_t at = wanted.first;
    auto next = std::ranges::upper_bound(order_, place_of(wanted), {},
                                         [this](size_t i) { return place_of(runs_[i]); });
    if (next != order_.begin()) --next;  // it may reach into it
    for (; next != order_.end(); ++next) {
      const ProfileRun& run = runs_[*next];
      if (run.source != wanted.source || run.first >= wanted.end()) {
        if (run.source < wanted.source) continue;
        break;
      }
      if (run.end() <= at) continue;
      if (run.first > at) visit(at, run.first, std::optional<size_t>());
      const uint64_t first = std::max(at, run.first);
      at = std::min(run.end(), wanted.end());
      visit(first, at, std::optional(*next));
    }
    if (at < wanted.end()) visit(at, wanted.end(), std::optional<size_t>());
  }

 private:
  static std::pair<uint32_t, uint64_t> place_of(const ProfileRun& run) {
    return {run.source, run.first};
  }

  const std::span<const ProfileRun> runs_;
  std::vector<size_t> order_;
};

// What is wrong with it; nothing when it is sound. Encoding asserts it, decoding checks it.
std::optional<std::string> find_fault(const Profile& profile) {
  if (profile.size_bytes == 0 || profile.size_bytes > kVolumeBytesMax)
    return fmt::format("a disk of {} bytes", profile.size_bytes);
  if (profile.runs.size() > kProfileRunsMax) return fmt::format("{} runs", profile.runs.size());
  const uint64_t block_count = blocks_of(profile.size_bytes);
  for (const ProfileRun& run : profile.runs) {
    if (run.count == 0 || run.first >= block_count || run.count > block_count - run.first)
      return "a run past the disk's end";
    if (run.source == 0) return "a run of zeroes";
    if (run.weight == 0 || run.weight > kProfileWeightMax)
      return fmt::format("a run with weight {}", run.weight);
  }
  if (RunIndex(profile.runs).has_overlap()) return "runs that overlap";
  if (!profile.hashes.empty() &&
      profile.hashes.size() != count_blocks(profile.runs) - count_own_blocks(profile.runs))
    return fmt::format("{} hashes", profile.hashes.size());
  return std::nullopt;
}

// Whether so many blocks of each run are enough of the first quarter.
bool has_first_quarter(std::span<const ProfileRun> runs, const std::vector<uint64_t>& touched) {
  const uint64_t quarter = (count_blocks(runs) + 3) / 4;
  uint64_t blocks = 0, seen = 0;
  for (size_t i = 0; i < runs.size() && blocks < quarter; ++i) {
    blocks += runs[i].count;
    seen += touched[i];
  }
  return 2 * seen >= blocks;
}

void cut(std::vector<ProfileRun>& runs, uint64_t blocks_max) {
  if (runs.size() > kProfileRunsMax) runs.resize(kProfileRunsMax);
  uint64_t blocks = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    blocks += runs[i].count;
    if (blocks <= blocks_max) continue;
    runs.resize(i);
    return;
  }
}

}  // namespace

uint64_t count_blocks(std::span<const ProfileRun> runs) {
  uint64_t blocks = 0;
  for (const ProfileRun& run : runs) blocks += run.count;
  return blocks;
}

uint64_t count_own_blocks(std::span<const ProfileRun> runs, uint32_t past) {
  uint64_t blocks = 0;
  for (const ProfileRun& run : runs)
    if (run.source != kFromTemplate && run.source > past) blocks += run.count;
  return blocks;
}

ByteVector encode_profile(const Profile& profile) {
  const auto fault = find_fault(profile);
  ensure(!fault, fault ? *fault : "a profile is sound before it is written");
  ProfileHeader header{};
  header.magic = kProfileMagic;
  header.format = kProfileFormat;
  header.run_count = static_cast<uint32_t>(profile.runs.size());
  header.owner = profile.owner;
  header.size_bytes = profile.size_bytes;
  header.created_ns = profile.created_ns;
  header.updated_ns = profile.updated_ns;
  header.boots = profile.boots;
  header.steady_boots = profile.steady_boots;
  header.hash_count = static_cast<uint32_t>(profile.hashes.size());
  Encoder encoder;
  encoder.put(header);
  encoder.put_bytes(std::as_bytes(std::span(profile.runs)));
  encoder.put_bytes(std::as_bytes(std::span(profile.hashes)));
  const uint64_t sum = object_checksum(encoder.bytes());
  std::memcpy(encoder.bytes().data() + kChecksumOffset, &sum, sizeof sum);
  return std::move(encoder.bytes());
}

Profile decode_profile(Bytes bytes, const std::string& object) {
  Decoder decoder(bytes, object);
  const auto header = decoder.take<ProfileHeader>();
  if (header.magic != kProfileMagic || header.checksum != object_checksum(bytes))
    fail(EIO, object, "damaged: not what a profile is, or its checksum does not match");
  if (header.format != kProfileFormat)
    fail(EINVAL, object, "has format {}, this program reads format {}: use a newer tplstore",
         header.format, kProfileFormat);
  const Bytes runs = decoder.take_bytes(uint64_t{header.run_count} * sizeof(ProfileRun));
  const Bytes hashes = decoder.take_bytes(uint64_t{header.hash_count} * sizeof(Hash128));
  if (!decoder.empty()) fail(EIO, object, "damaged: more behind its runs");
  Profile profile{header.owner,
                  header.size_bytes,
                  header.created_ns,
                  header.updated_ns,
                  header.boots,
                  header.steady_boots,
                  {},
                  {}};
  profile.runs.resize(header.run_count);
  if (!runs.empty()) std::memcpy(profile.runs.data(), runs.data(), runs.size());
  profile.hashes.resize(header.hash_count);
  if (!hashes.empty()) std::memcpy(profile.hashes.data(), hashes.data(), hashes.size());
  if (const auto fault = find_fault(profile)) fail(EIO, object, "damaged: {}", *fault);
  return profile;
}

ProfileHashes::ProfileHashes(const Profile& profile) : profile_(profile) {
  if (profile.hashes.empty()) return;
  size_t hash = 0;
  for (const ProfileRun& run : profile.runs) {
    if (run.source != kFromTemplate) continue;
    stretches_.push_back({run.first, run.end(), hash});
    hash += run.count;
  }
  std::ranges::sort(stretches_, {}, &Stretch::first);
}

Hash128 ProfileHashes::find(uint64_t block) const {
  auto next = std::ranges::upper_bound(stretches_, block, {}, &Stretch::first);
  if (next == stretches_.begin() || block >= (--next)->end) return {};
  return profile_.hashes[next->hash + (block - next->first)];
}

void take_hashes(Profile& profile, const Profile& before) {
  std::vector<Hash128> hashes;
  if (count_blocks(profile.runs) <= kProfileHashesMax) {
    const ProfileHashes known(before);
    for (const ProfileRun& run : profile.runs)
      for (uint32_t i = 0; run.source == kFromTemplate && i < run.count; ++i)
        hashes.push_back(known.find(run.first + i));
  }
  profile.hashes = std::move(hashes);
}

std::vector<ProfileRun> runs_of_boot(std::span<const ProfileRun> touches, uint64_t size_bytes) {
  const uint64_t block_count = blocks_of(size_bytes);
  std::vector<ProfileRun> runs;
  for (ProfileRun touch : touches) {
    if (touch.first >= block_count || touch.source == 0) continue;
    touch.count = static_cast<uint32_t>(std::min<uint64_t>(touch.count, block_count - touch.first));
    touch.weight = 1;
    if (!runs.empty()) {
      ProfileRun& last = runs.back();
      if (last.source == touch.source && last.end() == touch.first &&
          last.count + touch.count <= kJoinedBlocksMax) {
        last.count += touch.count;
        continue;
      }
    }
    runs.push_back(touch);
  }
  return runs;
}

bool merge_boot(Profile& profile, std::span<const ProfileRun> boot, uint64_t blocks_max,
                int64_t now_ns) {
  if (boot.empty()) return false;
  std::vector<uint64_t> touched(profile.runs.size());
  const RunIndex known(profile.runs);
  for (const ProfileRun& run : boot)
    known.visit_parts(run, [&](uint64_t first, uint64_t end, std::optional<size_t> index) {
      if (index) touched[*index] += end - first;
    });
  if (!has_first_quarter(profile.runs, touched)) return false;

  uint64_t changed_blocks = 0;
  std::vector<ProfileRun> kept;
  for (size_t i = 0; i < profile.runs.size(); ++i) {
    ProfileRun run = profile.runs[i];
    if (2 * touched[i] >= run.count) {
      run.weight = static_cast<uint8_t>(std::min(kProfileWeightMax + 0, run.weight + 1));
    } else if (--run.weight == 0) {
      changed_blocks += run.count;
      continue;
    }
    kept.push_back(run);
  }

  // Behind which of those that are kept each new one comes; 0: before all.
  struct Addition {
    size_t behind;
    ProfileRun run;
  };
  std::vector<Addition> additions;
  const RunIndex rest(kept);
  size_t behind = 0;
  for (const ProfileRun& run : boot)
    rest.visit_parts(run, [&](uint64_t first, uint64_t end, std::optional<size_t> index) {
      if (index) {
        behind = *index + 1;
        return;
      }
      ProfileRun added = run;
      added.first = first;
      added.count = static_cast<uint32_t>(end - first);
      changed_blocks += added.count;
      additions.push_back({behind, added});
    });
  std::ranges::stable_sort(additions, {}, &Addition::behind);

  std::vector<ProfileRun> merged;
  merged.reserve(kept.size() + additions.size());
  auto next = additions.begin();
  for (size_t i = 0; i <= kept.size(); ++i) {
    for (; next != additions.end() && next->behind == i; ++next) merged.push_back(next->run);
    if (i < kept.size()) merged.push_back(kept[i]);
  }
  cut(merged, blocks_max);

  const bool is_steady = changed_blocks * kSteadyPart <= count_blocks(profile.runs);
  profile.runs = std::move(merged);
  profile.hashes.clear();
  profile.steady_boots = is_steady ? profile.steady_boots + 1 : 0;
  ++profile.boots;
  if (profile.created_ns == 0) profile.created_ns = now_ns;
  profile.updated_ns = now_ns;
  return true;
}

}  // namespace tplstore
