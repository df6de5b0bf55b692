// Writes a disk to an image file, raw or qcow2, or raw to standard output ("-").
//
// Invariants: the file appears under its name only when all of it is there and is durable; a failed
// or interrupted export leaves nothing behind. What reads as zeroes becomes a hole, so the file
// occupies what the disk's data does, unless it is compressed. An existing file is replaced only if
// that is asked for, and never anything but a regular file.
//
// Thread safety: one thread. Errors: Error about the file with the system's errno; EEXIST; EINTR
// when `interrupted` said so; ENOENT when qcow2 is wanted and qemu's tools are not there.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/disk.h"
#include "transfer/byte_stream.h"

namespace tplstore::tool {

enum class ImageFormat { kRaw, kQcow2 };

struct ExportOptions {
  ImageFormat format = ImageFormat::kRaw;
  Compression compression = Compression::kNone;  // of a raw one
  bool may_replace = false;
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress = [](uint64_t, uint64_t) {
  };
  std::function<bool()> interrupted = [] { return false; };
};

// Throws what export_disk() would throw about the file's name before it has read anything.
void check_export_target(const std::string& file, const ExportOptions& options);
// The number of bytes of data that it wrote.
uint64_t export_disk(Disk& disk, const std::string& file, const ExportOptions& options);

}  // namespace tplstore::tool
