// Pending records are kept as bytes: at a commit they become a frame's payload as they are.
#include "map/update_batch.h"

#include <algorithm>
#include <utility>

namespace tplstore {

void UpdateBatch::make_room(uint64_t bytes) {
  const size_t needed = records_.size() + bytes + kRecordBytes;  // the last is the cut's
  if (needed > records_.capacity()) records_.reserve(std::max(needed, 2 * records_.capacity()));
}

void UpdateBatch::add(Bytes record, uint64_t reserved_bytes) {
  records_.insert(records_.end(), record.begin(), record.end());
  reserved_bytes_ += reserved_bytes;
  size_bytes_.store(records_.size(), std::memory_order_relaxed);
  last_is_update_ = false;
  journal_.put(record);
}

bool UpdateBatch::add_update(const UpdateRecord& update) {
  const auto count = static_cast<uint32_t>(update.count);
  if (last_is_update_) {
    std::byte* const at = records_.data() + records_.size() - kRecordBytes;
    RecordHeader last;
    std::memcpy(&last, at, kRecordBytes);
    if (last.source == update.source && last.number() + last.count == update.first &&
        uint64_t{last.count} + count <= UINT32_MAX) {
      last.count += count;
      std::memcpy(at, &last, kRecordBytes);
      journal_.grow_last(last);
      return false;
    }
  }
  add(bytes_of(RecordHeader::make(RecordKind::kUpdate, update.first, count, update.source)),
      kRecordBytes);
  last_is_update_ = true;
  return true;
}

UpdateBatch::Cut UpdateBatch::cut() noexcept {
  if (!records_.empty() && journal_.is_kept()) {
    const auto position = RecordHeader::make(RecordKind::kPosition, journal_.end());
    const Bytes bytes = bytes_of(position);
    records_.insert(records_.end(), bytes.begin(), bytes.end());
  }
  Cut cut{std::exchange(records_, {}), std::exchange(reserved_bytes_, 0), journal_.end()};
  last_is_update_ = false;
  size_bytes_.store(0, std::memory_order_relaxed);
  return cut;
}

}  // namespace tplstore
