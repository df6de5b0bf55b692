// Cells that no version needs any more, from the decision to the punched hole.
//
// A decision is part of the change of the map that caused it: it counts from the commit that makes
// that change durable. Until the hole is punched, durably, the range is *outstanding*: a
// checkpoint, which puts an end to the replay of the change, lists it. Punching twice does no harm,
// since a cell that is free stays so for ever.
//
// Thread safety: none; guarded by the map's lock. Errors: Error(EIO) for damage; std::bad_alloc,
// upon which no range is lost.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"

namespace tplstore {

// Blocks [first, first + count) of one version's data file; count 0 stands for the whole file,
// which is removed then.
struct FreeRange {
  uint32_t source;
  uint32_t count;
  uint64_t first;

  bool is_whole_file() const { return count == 0; }
  bool operator==(const FreeRange&) const = default;
};

// Sorts by file and place, joins neighbours, and drops what is part of another range.
void join_free_ranges(std::vector<FreeRange>& ranges);

inline constexpr size_t kFreeRangesPerNode = 1500;  // more might not fit a node's length
// Appends one node with up to so many ranges, joined before; returns its length.
uint64_t encode_free_ranges(Encoder& to, uint64_t seed, uint32_t index, uint32_t version,
                            std::span<const FreeRange> ranges);
// Appends the ranges of a node.
void decode_free_ranges(Bytes bytes, uint64_t seed, uint32_t index, const std::string& object,
                        std::vector<FreeRange>& ranges);

// The free ranges of one map, by how far they have got.
class FreeRanges {
 public:
  // Decided just now; part of the next commit. After make_room() so many cannot fail.
  void add(const FreeRange& range) { uncut_.push_back(range); }
  void make_room(size_t count) {
    const size_t needed = uncut_.size() + count;
    if (needed > uncut_.capacity()) uncut_.reserve(std::max(needed, 2 * uncut_.capacity()));
  }
  // From a checkpoint: all that was decided is durable.
  void add_durable(const std::vector<FreeRange>& ranges);

  // A commit: at its cut, and when it is durable.
  void cut();
  void commit();

  // Takes up to `max` ranges whose holes may be punched. One batch at a time; it stays outstanding
  // until finish(), and give_back() when it failed; when that one fails too, the next take() does
  // it. What finish() is told of files that failed is put aside until retry().
  std::vector<FreeRange> take(size_t max);
  void finish(const std::set<uint32_t>& failed);
  void give_back();
  void retry();
  // Around making holes durable: those that were finished before begin_sync() are so after
  // end_sync(). False when there are none.
  bool begin_sync();
  void end_sync() {
    syncing_.clear();
    note_synced();
  }
  // Whether some have become so since the last call: the last checkpoint lists them still.
  void note_synced() { has_synced_ = true; }
  bool take_synced() { return std::exchange(has_synced_, false); }

  // All that is decided, as of the last cut, and not durably punched.
  std::vector<FreeRange> outstanding() const;
  size_t waiting() const { return durable_.size(); }
  bool wants_commit() const { return !uncut_.empty(); }
  bool is_empty() const {
    return uncut_.empty() && cut_.empty() && durable_.empty() && taken_.empty() && aside_.empty();
  }

 private:
  std::vector<FreeRange> uncut_;
  std::vector<FreeRange> cut_;
  std::vector<FreeRange> durable_;  // joined, last first, when is_joined_
  std::vector<FreeRange> taken_;
  std::vector<FreeRange> aside_;
  std::vector<FreeRange> punched_;
  std::vector<FreeRange> syncing_;
  bool is_joined_ = true;
  bool has_synced_ = false;
};

}  // namespace tplstore
