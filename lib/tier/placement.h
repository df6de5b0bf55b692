// Which directory of the tier each segment belongs in.
//
// A segment's position is the first 64 bits of its name. Names are hashes, so positions are spread
// evenly, and a directory that has a part of the 2^64 positions gets that part of the segments.
// Every position has exactly one directory: what is kept is only where the range of a directory
// begins, and it ends where the next one begins, so there is no gap and no overlap to be had.
//
// Shares go by weight: of the weights' sum W a directory of weight w has w * 2^64 / W positions, to
// within less than one. Ranges of one directory that touch are one range, and no directory has more
// than kTierRangesMax.
//
// Thread safety: pure functions on plain data. Errors: from_ranges() says what is wrong with what
// it is given; all else that is not as it must be is a broken invariant.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace tplstore {

inline constexpr size_t kTierDirectoriesMax = 64;
inline constexpr size_t kTierRangesMax = 1024;                       // of one directory
inline constexpr uint64_t kTierWeightBytesMin = uint64_t{64} << 20;  // 64 MiB
inline constexpr uint64_t kTierWeightBytesMax = uint64_t{64} << 50;  // 64 PiB

// Both ends are in it, so that 2^64 positions need no 65th bit.
struct PositionRange {
  uint64_t first;
  uint64_t last;
  bool operator==(const PositionRange&) const = default;
};

struct DirectoryWeight {
  Uuid directory;
  uint64_t bytes;
};

struct DirectoryRanges {
  Uuid directory;
  std::vector<PositionRange> ranges;
};

class Placement {
 public:
  // Of no directory: no position has one.
  Placement() = default;
  // Of ranges that somebody else has kept, in any order. They must be of different directories and
  // be the whole space, each position once; or none at all. Else nothing, and `problem` says why.
  static std::optional<Placement> from_ranges(std::span<const DirectoryRanges> directories,
                                              std::string& problem);

  struct Change;
  // The placement of these weights that is nearest to this one: a directory whose share gets
  // smaller gives up the difference, one whose share gets larger gets it, and nothing else moves.
  // So one that is added takes its share from all others in proportion, and one that is gone gives
  // it back so. The directories differ from each other, and count and weights are within the limits
  // above.
  Change with_weights(std::span<const DirectoryWeight> weights) const;

  bool is_empty() const { return firsts_.empty(); }
  // The directory of a position; nothing when there is none at all. Lives as long as this.
  const Uuid* at(uint64_t position) const;
  // Ascending. Of a directory that has no part: none.
  std::vector<PositionRange> ranges_of(const Uuid& directory) const;
  // From 0 to 1.
  double share_of(const Uuid& directory) const;
  bool operator==(const Placement&) const = default;

 private:
  std::vector<Uuid> directories_;
  // The ranges, ascending: where each begins, the first at 0; and whose it is.
  std::vector<uint64_t> firsts_;
  std::vector<uint32_t> owners_;
};

struct Placement::Change {
  Placement placement;
  // A directory would have got too many ranges, so each was given one: most positions have moved.
  bool is_laid_out_anew;
};

}  // namespace tplstore
