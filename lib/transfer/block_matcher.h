// Finds blocks that the store already has, and proves it: bytes are compared, not hashes.
//
// A batch of blocks is looked up in the index; what the index names is read in as few and as long
// reads as its places allow, several at a time, and compared. A place that continues the previous
// block's place is preferred, so that a template's runs stay long.
//
// Thread safety: none; one import's.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "template/block_source.h"
#include "transfer/block_index.h"

namespace tplstore {

class BlockMatcher {
 public:
  BlockMatcher(BlockSource& blocks, const BlockIndex& index) : blocks_(blocks), index_(index) {}

  struct Wanted {
    Hash128 hash;
    Bytes block;
    std::optional<BlockLocation> match;  // the answer
  };
  // Answers for all segments but the one that is being `built`. `previous`: where the block before
  // the first one is. A place that cannot be read is not a match.
  void match(std::span<Wanted> wanted, std::optional<BlockLocation> previous, uint32_t built);
  // Whether the store has exactly these bytes there.
  bool has_bytes(BlockLocation location, Bytes block);

 private:
  struct Comparison {
    BlockLocation location;
    uint32_t wanted;
  };
  // False when its segment cannot be opened.
  bool plan_read(BlockLocation location, MutableBytes into, ReadPlan& plan);
  void compare(std::span<Wanted> wanted, std::vector<Comparison>& comparisons);

  BlockSource& blocks_;
  const BlockIndex& index_;
  std::vector<std::shared_ptr<BlockSource::Segment>> held_;  // by number
  std::vector<Comparison> comparisons_;
  ByteVector buffer_;
};

}  // namespace tplstore
