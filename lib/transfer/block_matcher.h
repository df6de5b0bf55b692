// Finds blocks that the store already has, and proves it: bytes are compared, not hashes.
//
// A batch of blocks is looked up in the index; what the index names is read in as few and as long
// reads as its places allow, and compared, in a thread: several batches may be on their way. A
// place that continues the previous block's place is preferred, so that a template's runs stay
// long.
//
// Thread safety: none; one import's.
#pragma once

#include <future>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "template/block_source.h"
#include "transfer/block_index.h"
#include "transfer/segment_writer.h"

namespace tplstore {

class BlockMatcher {
 public:
  // `on_their_way`: segments that are being published; they are looked at in memory.
  BlockMatcher(BlockSource& blocks, const BlockIndex& index,
               const SegmentWriter* on_their_way = nullptr)
      : blocks_(blocks), index_(index), on_their_way_(on_their_way) {}

  struct Wanted {
    Hash128 hash;
    Bytes block;
    std::optional<BlockLocation> match;  // the answer
  };
  struct Batch;
  // Looks for `wanted`, whose blocks stay where they are until the end, in all segments but the one
  // that is being `built`. Each batch continues the one that was begun before it.
  std::unique_ptr<Batch> begin(std::vector<Wanted> wanted, uint32_t built);
  // Waits for the answers. A place that cannot be read is not a match.
  std::vector<Wanted> end(std::unique_ptr<Batch> batch);
  // Both, behind a block that is at `previous`.
  void match(std::span<Wanted> wanted, std::optional<BlockLocation> previous, uint32_t built);
  // Whether the store has exactly these bytes there.
  bool has_bytes(BlockLocation location, Bytes block);

 private:
  struct Comparison {
    BlockLocation location;
    uint32_t wanted;
    uint32_t slot;  // where it is read to
  };

  void choose_places(Batch& batch);
  void plan_reads(Batch& batch);
  static void compare(Batch& batch);
  // False when its segment cannot be opened.
  bool plan_read(BlockLocation location, MutableBytes into, ReadPlan& plan);

  BlockSource& blocks_;
  const BlockIndex& index_;
  const SegmentWriter* const on_their_way_;
  std::optional<BlockLocation> previous_;
  std::vector<std::shared_ptr<BlockSource::Segment>> held_;  // by number
  std::vector<ByteVector> buffers_;                          // to be used again
};

// Blocks that are being looked for.
struct BlockMatcher::Batch {
  std::vector<Wanted> wanted;
  uint32_t built;
  std::vector<BlockIndex::Candidates> candidates;
  std::vector<Comparison> comparisons;
  ByteVector buffer;
  ReadPlan plan;
  bool is_read = false;
  std::future<void> comparing;  // ends first
};

}  // namespace tplstore
