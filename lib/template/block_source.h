// The one way to template data: blocks of segments, asked for by the segments' names.
//
// Whoever reads template bytes (volumes, exports of templates, imports that compare, verify) holds
// the segments it needs, which opens nothing, and plans its reads with them. A segment is in here
// once, however many hold it, and is opened when something of it has to be read; it is closed when
// nobody holds it any more. A process has one of these for each store that it serves.
//
// Where there are copies (template/segment_copies.h), a segment is read from its copy. Every block
// that comes from one is compared with its hash; what could not be read or is not right is read at
// the origin, in the same request, and that copy is used no more until there may be a better one.
// Where there are none, planning a read of a segment that is open takes no lock, counts nothing and
// allocates nothing.
//
// Where there is a memory of cells (template/cell_cache.h), what is in that is not read at all.
//
// No lock is held across I/O but a segment's own, while it is opened at the origin: those who need
// the same one wait for that, others do not. For a copy that is being opened nobody waits for more
// than kCopyWait: the origin has it too.
//
// Thread safety: all methods. The BlockSource, its backend and its copies outlive the segments.
// Errors: EIO for a segment that is missing or has another size than it should; a later reader
// tries again.
#pragma once

#include <atomic>
#include <chrono>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/read_plan.h"
#include "base/grace_period.h"
#include "base/mutex.h"
#include "template/cell_cache.h"
#include "template/segment.h"
#include "template/segment_copies.h"

namespace tplstore {

class BlockSource {
 public:
  class Segment;
  static constexpr std::chrono::milliseconds kCopyWait{100};

  explicit BlockSource(Backend& origin);
  ~BlockSource();

  // Once, before anything is held. The secret is that of the names; with no cells a segment costs
  // nothing more.
  void set_cells(CellCache& cells, const HashSecret& secret);
  // The tables that segments have to compare their blocks with are forgotten.
  void forget_tables();
  // Once: from now on there are copies. The secret is that of the names.
  void set_copies(SegmentCopies& copies, const HashSecret& secret);
  // There may be another copy of this segment than when it was last looked for.
  void look_again(const Hash128& name);
  // Frees the copies that are used no more, if no request is so slow that it still might.
  void free_unused_copies();

  // 0 blocks: as many as it has.
  std::shared_ptr<Segment> hold(const Hash128& name, uint32_t block_count);

 private:
  class Copy;
  // What a damaged manifest says of a segment's size is no business of others who hold that
  // segment.
  using Key = std::pair<Hash128, uint32_t>;

  std::vector<std::shared_ptr<Segment>> held_segments();
  void keep_unused(std::list<Copy>& copies);

  Backend& origin_;
  CellCache* cells_ = nullptr;
  std::atomic<SegmentCopies*> copies_{nullptr};
  HashSecret secret_{};   // set before the copies and the cells
  GracePeriod requests_;  // those that may use a copy
  Mutex mutex_;
  std::map<Key, std::weak_ptr<Segment>> known_ GUARDED_BY(mutex_);
  size_t forget_at_ GUARDED_BY(mutex_) =
      64;  // so many known, and those that nobody holds are forgotten
  Mutex unused_mutex_;
  std::list<Copy> unused_ GUARDED_BY(unused_mutex_);
};

class BlockSource::Segment final : public CellSource {
 public:
  Segment(BlockSource& source, const Hash128& name, uint32_t block_count);
  ~Segment();

  // Adds to `plan` what has to be read for the bytes at `offset` of its blocks.
  void plan_read(uint64_t offset, MutableBytes into, ReadPlan& plan, CellWindow* window = nullptr) {
    if (cells_) return cells_->plan_read(*this, offset, into, plan, window);
    plan_stored(offset, into, plan);
  }
  void plan_stored(uint64_t offset, MutableBytes into, ReadPlan& plan) override {
    if (Object* object = only_object_.load(std::memory_order_acquire); object != nullptr) [[likely]]
      return plan.add(*object, offset, into);
    plan_elsewhere(offset, into, plan);
  }
  bool are_sound(uint32_t first, Bytes blocks) override;
  bool read_sound(uint32_t block, MutableBytes into) override;
  // Blocks of the segment that are blocks of a disk's run from `first` on; nothing without cells.
  std::optional<CellPlace> place(uint32_t block, uint32_t count, size_t run, uint64_t first) {
    if (!cells_) return {};
    return CellPlace{cells_, this, key_of_cells(), block, count, run, first};
  }
  void drop_cached() override {
    if (Object* object = origin_object_.load(std::memory_order_acquire)) object->drop_cached();
  }
  void read(uint64_t offset, MutableBytes into);
  // The same, but never of a copy.
  void read_at_origin(uint64_t offset, MutableBytes into) { open_at_origin().read(offset, into); }
  // The origin's; see template/segment.h.
  std::vector<Hash128> read_table(const HashSecret& secret) {
    return read_segment_table(open_at_origin(), name_, secret);
  }
  // Its table, as somebody says, that it need not be read for comparing; counts only if it is.
  void take_table(Bytes hashes);
  bool has_table();
  bool is_missing();

 private:
  friend class BlockSource;

  CellFileKey key_of_cells() const { return CellFileKey::of_segment(name_, block_count_); }
  void plan_elsewhere(uint64_t offset, MutableBytes into, ReadPlan& plan);
  void read_part(Copy& copy, uint64_t offset, MutableBytes into);
  void read_elsewhere(uint64_t offset, MutableBytes into);
  void see_copies();
  void look_for_copy();
  void look_again();
  void leave(const Copy& copy) noexcept;
  Object& open_at_origin();

  BlockSource& source_;
  const Hash128 name_;
  const uint32_t block_count_;
  const std::shared_ptr<CellFile> cells_;  // or none
  using Table = std::vector<Hash128>;
  std::shared_ptr<const Table> table();
  void keep_table(std::shared_ptr<const Table> table) REQUIRES(table_mutex_);
  void forget_table();
  Mutex table_mutex_;  // held while the table is read
  std::shared_ptr<const Table> table_ GUARDED_BY(table_mutex_);
  std::chrono::steady_clock::time_point look_for_table_at_ GUARDED_BY(table_mutex_){};
  std::atomic<Object*> only_object_{nullptr};  // the origin's, where there are no copies
  std::atomic<Object*> origin_object_{nullptr};
  Mutex opening_;
  std::unique_ptr<Object> opened_ GUARDED_BY(opening_);

  // Read by requests that have entered requests_.
  std::atomic<Copy*> copy_{nullptr};
  std::atomic<uint64_t> looked_at_generation_{0};  // 0: look again
  Mutex copy_mutex_;
  ConditionVariable copy_found_;
  std::list<Copy> owned_copy_ GUARDED_BY(copy_mutex_);  // one, or none
  bool is_looking_ GUARDED_BY(copy_mutex_) = false;
  bool is_asked_again_ GUARDED_BY(copy_mutex_) = false;
  std::chrono::steady_clock::time_point looking_since_ GUARDED_BY(copy_mutex_);
};

}  // namespace tplstore
