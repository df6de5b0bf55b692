// Publishes the segments of an import, several at once: their syncs overlap, and the import reads
// on meanwhile.
//
// A segment is put there when its record in the journal is durable. What is on its way is still in
// memory, for comparisons. When a segment's name is there with other bytes (blocks of it were given
// up, or are damaged), its blocks are stored in another order, and so under another name: finish()
// tells of which.
//
// Memory: 4 MiB for each that is on its way.
// Thread safety: none; one import's. Errors: what one of them failed with, at a later call.
#pragma once

#include <deque>
#include <future>
#include <vector>

#include "template/block_source.h"
#include "template/import_journal.h"
#include "template/segment.h"
#include "transfer/block_index.h"

namespace tplstore {

class SegmentWriter {
 public:
  // `at_once_max`: of segments that are on their way; with 0 each is there when write() returns.
  SegmentWriter(Backend& segments, BlockSource& blocks, const HashSecret& secret,
                size_t at_once_max);
  // Waits for those that are on their way.
  ~SegmentWriter();

  // Has the journal name it, which it needs to its end, and publishes it; may wait for an earlier
  // one. `number` is the index's. Returns an empty one to go on with.
  SegmentBuilder write(ImportJournal& journal, uint32_t number, SegmentBuilder builder);
  // A block of a segment that is on its way; else nothing.
  Bytes find(BlockLocation location) const;

  struct Written {
    uint32_t number;
    uint32_t block_count;
    Hash128 name;
    bool is_new;  // else it was there
    uint32_t
        rotations;  // by so many places all blocks are further ahead, the first ones at the end
  };
  // Waits for all of them, which are durable then.
  const std::vector<Written>& finish();

 private:
  struct Work {
    Written written;
    SegmentBuilder builder;
  };
  struct OnItsWay {
    uint32_t number;
    Bytes blocks;
    std::future<Work> work;
  };

  Work publish(ImportJournal& journal, Work work) const;
  SegmentBuilder take(Work work);
  SegmentBuilder take_oldest();

  Backend& segments_;
  BlockSource& blocks_;
  const HashSecret secret_;
  const size_t at_once_max_;
  std::vector<Written> written_;
  std::deque<OnItsWay> on_their_way_;  // in their order
};

}  // namespace tplstore
