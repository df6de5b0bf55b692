// Each kind of export asks its volume for its version.
#include "store/volume_disk.h"

#include <algorithm>
#include <cerrno>

namespace tplstore {
namespace {

// Extents of a great disk in which little changed are looked up a part at a time.
constexpr uint64_t kExtentsBytesMax = uint64_t{64} << 30;

}  // namespace

VersionDisk& CurrentReaderDisk::frozen() {
  if (VersionDisk* frozen = frozen_.load(std::memory_order_acquire)) return *frozen;
  const std::lock_guard guard(mutex_);
  if (!version_) {
    auto version = std::make_unique<VersionDisk>(freeze_());
    if (version->size_bytes() < size_bytes_)
      fail(EIO, name(),
           "has been rolled back to a smaller size since you connected; connect again");
    version_ = std::move(version);
    frozen_.store(version_.get(), std::memory_order_release);
  }
  return *version_;
}

void ChangesDisk::read(uint64_t offset, MutableBytes into) {
  std::fill(into.begin(), into.end(), std::byte{0});
  changes(offset, into.size(), [&](const ChangedRange& range) {
    if (!range.is_zero)
      version_.volume->read(version_.version.number, range.offset,
                            into.subspan(range.offset - offset, range.length));
  });
}

void ChangesDisk::extents(uint64_t offset, uint64_t length,
                          const std::function<bool(const Extent&)>& add) {
  const uint64_t end = offset + std::min(length, kExtentsBytesMax);
  std::vector<Extent> extents;
  uint64_t told = offset;
  changes(offset, end - offset, [&](const ChangedRange& range) {
    if (range.offset > told) extents.push_back({told, range.offset - told, true});
    told = range.offset + range.length;
    if (!extents.empty() && !extents.back().is_hole) {
      extents.back().length += range.length;
    } else {
      extents.push_back({range.offset, range.length, false});
    }
  });
  if (told < end) extents.push_back({told, end - told, true});
  for (const Extent& extent : extents)
    if (!add(extent)) return;
}

}  // namespace tplstore
