// Intervals: runs of blocks of one region that come from one source, and the sorted arrays of them
// that a leaf of the map is.
//
// A *source* is the number of the version that wrote the blocks, kSourceZero for blocks that read
// as zeroes, or kSourceUnmapped for blocks that no interval covers: they come from the template,
// or read as zeroes where there is none. An array never holds kSourceUnmapped; it is sorted, its
// intervals do not overlap, and two that touch have different sources.
//
// Pure functions; nothing is thrown.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"

namespace tplstore {

inline constexpr uint32_t kSourceZero = 0;
inline constexpr uint32_t kSourceUnmapped = UINT32_MAX;

struct Interval {
  uint16_t first;  // block within the region
  uint16_t count;  // 1 to kRegionBlocks
  uint32_t source;

  constexpr uint32_t end() const { return uint32_t{first} + count; }
  bool operator==(const Interval&) const = default;
};
static_assert(sizeof(Interval) == 8);

// Blocks [first, first + count) of a disk.
struct BlockRange {
  uint64_t first;
  uint64_t count;

  uint64_t region() const { return first / kRegionBlocks; }
  // Those of them that are in the region where they begin.
  BlockRange in_first_region() const {
    return {first, std::min(count, kRegionBlocks - first % kRegionBlocks)};
  }
  void remove_first(uint64_t blocks) {
    first += blocks;
    count -= blocks;
  }
};

// A run of blocks of a disk with one source; what a lookup yields.
struct Run : BlockRange {
  uint32_t source;
};

// The runs of one request. Allocates only past what a usual request needs.
class RunList {
 public:
  void add(const Run& run) {
    if (count_ > 0) {
      Run& last = (*this)[count_ - 1];
      if (last.source == run.source && last.first + last.count == run.first) {
        last.count += run.count;
        return;
      }
    }
    if (count_ < inline_.size()) {
      inline_[count_] = run;
    } else {
      overflow_.push_back(run);
    }
    ++count_;
  }
  void clear() {
    count_ = 0;
    overflow_.clear();
  }
  size_t size() const { return count_; }
  Run& operator[](size_t i) {
    return i < inline_.size() ? inline_[i] : overflow_[i - inline_.size()];
  }
  const Run& operator[](size_t i) const {
    return i < inline_.size() ? inline_[i] : overflow_[i - inline_.size()];
  }

 private:
  size_t count_ = 0;
  std::array<Run, 12> inline_;
  std::vector<Run> overflow_;
};

// Appends the runs of blocks of one region; those without an interval become runs of
// kSourceUnmapped.
void find_runs(std::span<const Interval> intervals, const BlockRange& blocks, RunList& runs);

// What replacing a range changes in an array: intervals [begin, end) give way to `fresh`.
struct Splice {
  size_t begin;
  size_t end;
  size_t fresh_count;
  std::array<Interval, 3> fresh;
};
// The splice that makes `change` so, merging with neighbours; kSourceUnmapped removes.
Splice splice_for(std::span<const Interval> intervals, const Interval& change);

// Whether an array from disk is as described above.
bool are_valid(std::span<const Interval> intervals);

// Calls visit(first, count, source in a, source in b) for the stretches of a region over which
// neither array changes its source, in rising order.
template <typename Visit>
void for_each_stretch(std::span<const Interval> a, std::span<const Interval> b, Visit visit) {
  struct Part {
    uint32_t end;
    uint32_t source;
  };
  const auto part_at = [](std::span<const Interval>& rest, uint32_t block) -> Part {
    while (!rest.empty() && rest.front().end() <= block) rest = rest.subspan(1);
    if (rest.empty()) return {kRegionBlocks, kSourceUnmapped};
    if (rest.front().first > block) return {rest.front().first, kSourceUnmapped};
    return {rest.front().end(), rest.front().source};
  };
  for (uint32_t at = 0; at < kRegionBlocks;) {
    const Part part_a = part_at(a, at);
    const Part part_b = part_at(b, at);
    const uint32_t end = std::min(part_a.end, part_b.end);
    visit(at, end - at, part_a.source, part_b.source);
    at = end;
  }
}

// The changes that turn `base` into `target`: applied in order with splice_for they do.
std::vector<Interval> difference(std::span<const Interval> base, std::span<const Interval> target);

}  // namespace tplstore
