// How a copy gets into a directory, and out of it.
#include <algorithm>
#include <cerrno>

#include "template/segment.h"
#include "tier/directory.h"

namespace tplstore {
namespace {

constexpr uint64_t kReserveBytesMax = uint64_t{1} << 30;

}  // namespace

// Whether the copy is there, as far as its size tells.
bool TierDirectory::holds(Mount& mount, const WantedSegment& wanted) {
  const std::string path = segment_path(wanted.name);
  const auto known = inventory_.find(wanted.name);
  if (!known || !known->is_damaged) {
    try {
      const uint64_t size = perform(mount, [&](Backend& backend) {
        return backend.open(path, Access::kRead, Purpose::kData)->size_bytes();
      });
      if (segment_block_count(size).value_or(0) == wanted.block_count || wanted.block_count == 0) {
        inventory_.add(wanted.name, size, world_->now_ns());
        return true;
      }
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;
      inventory_.remove(wanted.name);
      return false;
    }
  }
  remove_copy(mount, wanted.name);
  return false;
}

// Removes what was not read for long until there is room for as much; false when that is not
// enough.
bool TierDirectory::make_room(Mount& mount, uint64_t bytes) {
  const TierEntry entry = this->entry(*table());
  const int64_t latest_ns = world_->now_ns() - world_->options.keep_ns;
  for (;;) {
    const auto space = perform(mount, [](Backend& backend) { return backend.space(); });
    const bool has_space =
        !space || space->free_bytes >= bytes + std::min(space->total_bytes / 20, kReserveBytesMax);
    if (has_space && inventory_.claimed_bytes() <= entry.weight_bytes) return true;
    if (entry.kind == TierEntry::Kind::kLocal) return false;
    const auto oldest = inventory_.oldest(latest_ns);
    if (!oldest) return false;
    remove_copy(mount, *oldest);
  }
}

TierDirectory::Fill TierDirectory::fill(const WantedSegment& wanted,
                                        const std::function<ByteVector()>& read) {
  const std::shared_ptr<Mount> mount = this->mount();
  if (!mount) return Fill::kFailed;
  try {
    if (holds(*mount, wanted)) return Fill::kThere;
    const std::string why =
        perform(*mount, [&](Backend& backend) { return why_not_ours(backend); });
    if (!why.empty()) {
      take_off(mount, Problem::kAbsent, why);
      return Fill::kFailed;
    }
    // What others have put here takes room too.
    if (const int64_t stock_ns = stock_ns_;
        stock_ns == INT64_MIN || world_->now_ns() - stock_ns >= kStockNs)
      take_stock(*mount);
    const uint64_t bytes =
        wanted.block_count == 0 ? kSegmentBytesMax : segment_object_bytes(wanted.block_count);
    const CopyInventory::Room room(inventory_, bytes);
    is_full_ = !make_room(*mount, bytes);
    if (is_full_) return Fill::kNoRoom;
  } catch (const Error&) {  // noted
    return Fill::kFailed;
  }
  return put(*mount, wanted.name, read());
}

TierDirectory::Fill TierDirectory::put(Mount& mount, const Hash128& name, Bytes content) {
  try {
    const bool is_new = perform(
        mount, [&](Backend& backend) { return backend.put_new(segment_path(name), content); });
    inventory_.add(name, content.size(), world_->now_ns());
    is_read_only_ = false;
    if (is_new) {
      fills_.fetch_add(1, std::memory_order_relaxed);
      fill_bytes_.fetch_add(content.size(), std::memory_order_relaxed);
    }
    world_->look_again(name);
    return is_new ? Fill::kFilled : Fill::kThere;
  } catch (const Error& error) {
    is_read_only_ = error.code() == EROFS;
    is_full_ = error.code() == ENOSPC || error.code() == EDQUOT;
    if (!is_read_only_ && !is_full_) return Fill::kFailed;
    {
      const Lock guard(mutex_);
      last_error_ = error.what();
    }
    return is_full_ ? Fill::kNoRoom : Fill::kReadOnly;
  }
}

std::optional<ByteVector> TierDirectory::read_whole(const Hash128& name) {
  const std::shared_ptr<Mount> mount = this->mount();
  if (!mount) return {};
  try {
    ByteVector bytes;
    perform(*mount, [&](Backend& backend) {
      const auto object = backend.open(segment_path(name), Access::kRead, Purpose::kData);
      bytes.resize(std::min(object->size_bytes(), kSegmentBytesMax + 1));
      object->read(0, bytes);
    });
    try {
      check_segment(bytes, name, world_->secret());
      return bytes;
    } catch (const Error& error) {
      damaged_.fetch_add(1, std::memory_order_relaxed);
      note_error(error.what());
      remove_copy(*mount, name);
      return {};
    }
  } catch (const Error&) {  // noted
    return {};
  }
}

void TierDirectory::remove_copy(Mount& mount, const Hash128& name) {
  perform(mount, [&](Backend& backend) { backend.remove(segment_path(name)); });
  inventory_.remove(name);
}

bool TierDirectory::remove(const Hash128& name) {
  const std::shared_ptr<Mount> mount = this->mount();
  if (!mount) return false;
  try {
    remove_copy(*mount, name);
    return true;
  } catch (const Error&) {  // noted
    return false;
  }
}

}  // namespace tplstore
