// The records of changes that are not in the log yet, in their order, as the log will have them.
// Updates that go on where the last one ended make one record. What enters here enters the journal
// of this life too (map/update_journal.h).
//
// Thread safety: none, but for what sizes are asked; guarded by the map's lock. Errors:
// std::bad_alloc from make_room() only.
#pragma once

#include <atomic>
#include <cstdint>

#include "map/records.h"
#include "map/update_journal.h"

namespace tplstore {

class UpdateBatch {
 public:
  // So many bytes of records can be added then, and that does not fail.
  void make_room(uint64_t bytes);
  // Adds an encoded record, for which that much of the log is reserved.
  void add(Bytes record, uint64_t reserved_bytes);
  // Adds an update, for which one record is reserved; false when it has become part of the one
  // before, and needs none.
  bool add_update(const UpdateRecord& update);

  struct Cut {
    ByteVector records;
    uint64_t reserved_bytes = 0;
    uint64_t position = 0;  // that they reach in the journal, which they say at their end
  };
  // Takes all of it.
  Cut cut() noexcept;
  uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_relaxed); }
  UpdateJournal& journal() { return journal_; }
  const UpdateJournal& journal() const { return journal_; }

 private:
  ByteVector records_;
  uint64_t reserved_bytes_ = 0;
  bool last_is_update_ = false;
  std::atomic<uint64_t> size_bytes_{0};
  UpdateJournal journal_;
};

}  // namespace tplstore
