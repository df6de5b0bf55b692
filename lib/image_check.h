// Looks at an image file before anything of it is imported, and refuses what could not be imported
// whole: files that are no images, that are damaged or were cut short, whose size is absurd, or
// that lead to other files.
//
// Images are untrusted, and qemu opens what an image points to. So the parts that could point
// elsewhere are looked at here before qemu sees them.
//
// How a cut file is found (qemu itself reads zeroes past the end of most formats' files):
//   all        the host offsets that `qemu-img map` reports lie past the end of the file
//   all        `qemu-img check` finds corruptions, or the image cannot be opened
//   qcow2      compressed clusters, which map does not place: our own walk over the L2 tables
//   vmdk       compressed grains (streamOptimized): our own walk over the grain tables
//   vhdx, vdi, vmdk, vpc, qed   the file is not a whole number of sectors
//   vpc        no footer in the last sector
//   raw        not a whole number of sectors; a partition table that needs more (image_source.h)
// A cut that takes only padding which no part of the image uses loses nothing and is not found.
//
// Thread safety: all functions. Errors: Error with the source as object.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace tplstore {

struct ImageCheckOptions {
  std::string format = {};     // empty: find out
  bool allow_backing = false;  // images whose data is partly in other files
  std::function<bool()> interrupted = {};
};

struct ImageFacts {
  std::string path;  // absolute
  std::string format;
  uint64_t size_bytes;  // of the disk that it holds
};

ImageFacts check_image_file(const std::string& source, const ImageCheckOptions& options);

// EINVAL unless a disk can have this size: not 0, whole sectors, at most 64 TiB.
void check_disk_size(const std::string& source, uint64_t size_bytes);

}  // namespace tplstore
