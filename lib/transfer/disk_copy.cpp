// Looks up extents a window at a time, for a large disk has many.
#include "transfer/disk_copy.h"

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace tplstore {
namespace {

constexpr uint64_t kWindowBytes = uint64_t{1} << 30;  // of extents looked up at a time

void add_extent(Disk& disk, const Extent& extent, const DiskCopy& copy) {
  const uint64_t end = extent.offset + extent.length;
  for (uint64_t offset = extent.offset; offset < end;) {
    copy.progress(offset);
    // Up to a multiple of the unit, so that the next piece begins with a whole one.
    const uint64_t stop = std::min(end, round_down(offset + copy.piece_bytes, copy.unit_bytes));
    const MutableBytes piece = copy.take_buffer().first(stop - offset);
    disk.read(offset, piece);
    split_piece(offset, piece, copy.unit_bytes, copy.add);
    offset = stop;
  }
}

}  // namespace

void split_piece(uint64_t offset, Bytes piece, uint64_t unit_bytes,
                 const std::function<void(uint64_t, Bytes, bool)>& add) {
  const auto length_of_unit = [&](uint64_t at) {
    return std::min(piece.size() - at, unit_bytes - (offset + at) % unit_bytes);
  };
  for (uint64_t start = 0; start < piece.size();) {
    const bool is_zeroes = is_zero(piece.subspan(start, length_of_unit(start)));
    uint64_t stop = start + length_of_unit(start);
    while (stop < piece.size() && is_zero(piece.subspan(stop, length_of_unit(stop))) == is_zeroes)
      stop += length_of_unit(stop);
    add(offset + start, piece.subspan(start, stop - start), is_zeroes);
    start = stop;
  }
}

void copy_disk(Disk& disk, const DiskCopy& copy) {
  const uint64_t size = disk.size_bytes();
  uint64_t offset = 0;
  for (; offset < size; copy.progress(offset)) {
    std::vector<Extent> extents;
    disk.extents(offset, std::min(kWindowBytes, size - offset), [&](const Extent& extent) {
      extents.push_back(extent);
      return true;
    });
    ensure(!extents.empty() && extents.back().offset + extents.back().length > offset,
           "extents make progress");
    for (const Extent& extent : extents)
      if (!extent.is_hole) add_extent(disk, extent, copy);
    offset = extents.back().offset + extents.back().length;
  }
}

}  // namespace tplstore
