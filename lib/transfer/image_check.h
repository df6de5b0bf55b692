// Looks at an image file before anything of it is imported, and refuses what could not be imported
// whole: files that are no images, that are damaged or were cut short, whose size is absurd, or
// that lead to other files.
//
// Images are untrusted, and qemu opens what an image points to. So the parts that could point
// elsewhere are looked at here before qemu sees them. And images can be exchanged: so qemu gets the
// open file that was looked at, not its name, and the caller reads from that as well. Only with
// `allow_backing` names count, since the other files' are relative to the image's.
//
// How a cut file is found (qemu itself reads zeroes past the end of most formats' files):
//   all        the host offsets that `qemu-img map` reports lie past the end of the file
//   all        `qemu-img check` finds corruptions, or the image cannot be opened
//   qcow2      compressed clusters, which map does not place: our own walk over the L2 tables
//   vmdk       compressed grains (streamOptimized): our own walk over the grain tables
//   vhdx, vdi, vmdk, vpc, qed   the file is not a whole number of sectors
//   vpc        no footer in the last sector
//   raw        not a whole number of sectors; a partition table that needs more
//   (transfer/image_source.h)
// A cut that takes only padding which no part of the image uses loses nothing and is not found.
//
// Thread safety: all functions. Errors: Error with the source as object.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "transfer/file_reader.h"
#include "transfer/image_file.h"

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
  // Where the disk's data stands in the file as it is, in ascending order; the rest are zeroes.
  // Nothing when some of it does not, or in too many parts.
  std::optional<std::vector<FileExtent>> extents;
};

ImageFacts check_image_file(const ImageFile& file, const ImageCheckOptions& options);

// Throws as check_image_file() does when an image of this format leads to other files. For a second
// look, when qemu has opened it: whoever may write to an image may do so at any time.
void check_no_reference(const ImageFile& file, std::string_view format);
[[noreturn]] void refuse_reference(const ImageFile& file, std::string_view what);

// EINVAL unless a disk can have this size: not 0, whole sectors, at most 64 TiB.
void check_disk_size(const std::string& source, uint64_t size_bytes);

}  // namespace tplstore
