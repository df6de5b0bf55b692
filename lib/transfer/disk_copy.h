// The loop that takes a disk's content out of a store: for image files and for increments alike.
//
// Holes are passed over. The rest is read in pieces, in rising order, and each piece is told apart
// in runs of units with and without something in them.
//
// Thread safety: one thread. Errors: what the disk and the functions throw.
#pragma once

#include <cstdint>
#include <functional>

#include "base/bytes.h"
#include "base/disk.h"

namespace tplstore {

struct DiskCopy {
  uint64_t piece_bytes;  // at most so much is read at a time
  uint64_t unit_bytes;   // a run ends at a multiple of this, or where the data does
  // A buffer of at least piece_bytes, for the next piece.
  std::function<MutableBytes()> take_buffer;
  // A run; it lies in the buffer taken last.
  std::function<void(uint64_t offset, Bytes run, bool is_zeroes)> add;
  // Called before each piece and at the end; what it throws ends the copy.
  std::function<void(uint64_t offset)> progress;
};

void copy_disk(Disk& disk, const DiskCopy& copy);

// Tells a piece of a disk apart in such runs.
void split_piece(uint64_t offset, Bytes piece, uint64_t unit_bytes,
                 const std::function<void(uint64_t offset, Bytes run, bool is_zeroes)>& add);

}  // namespace tplstore
