// The one way to template data: blocks of segments, asked for by the segments' names.
//
// Whoever reads template bytes (volumes, exports of templates, imports that compare, verify) holds
// the segments it needs, which opens nothing, and plans its reads with them. A segment is in here
// once, however many hold it, and is opened when something of it has to be read; it is closed when
// nobody holds it any more. A process has one of these for each store that it serves.
//
// No lock is held across I/O but a segment's own, while it is opened: those who need the same one
// wait for that, others do not. Planning a read of a segment that is open takes no lock, counts
// nothing and allocates nothing.
//
// Thread safety: all methods. Segments may outlive the BlockSource, but not the backend.
// Errors: EIO for a segment that is missing or has another size than it should; a later reader
// tries again.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/read_plan.h"
#include "base/mutex.h"
#include "template/segment.h"

namespace tplstore {

class BlockSource {
 public:
  class Segment;

  explicit BlockSource(Backend& origin) : origin_(origin) {}

  // 0 blocks: as many as it has.
  std::shared_ptr<Segment> hold(const Hash128& name, uint32_t block_count);

 private:
  // What a damaged manifest says of a segment's size is no business of others who hold that
  // segment.
  using Key = std::pair<Hash128, uint32_t>;

  Backend& origin_;
  Mutex mutex_;
  std::map<Key, std::weak_ptr<Segment>> known_ GUARDED_BY(mutex_);
  size_t forget_at_ GUARDED_BY(mutex_) =
      64;  // so many known, and those that nobody holds are forgotten
};

class BlockSource::Segment {
 public:
  Segment(Backend& origin, const Hash128& name, uint32_t block_count)
      : origin_(origin), name_(name), block_count_(block_count) {}

  // Adds to `plan` what has to be read for the bytes at `offset` of its blocks.
  void plan_read(uint64_t offset, MutableBytes into, ReadPlan& plan) {
    Object* object = object_.load(std::memory_order_acquire);
    plan.add(object != nullptr ? *object : open(), offset, into);
  }
  void read(uint64_t offset, MutableBytes into) {
    ReadPlan plan;
    plan_read(offset, into, plan);
    plan.run();
  }
  // See template/segment.h.
  std::vector<Hash128> read_table(const HashSecret& secret) {
    return read_segment_table(open(), name_, secret);
  }
  bool is_missing();

 private:
  Object& open();

  Backend& origin_;
  const Hash128 name_;
  const uint32_t block_count_;
  std::atomic<Object*> object_{nullptr};  // set once
  Mutex opening_;
  std::unique_ptr<Object> opened_ GUARDED_BY(opening_);
};

}  // namespace tplstore
