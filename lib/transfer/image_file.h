// The few things that we read from image files by ourselves, where qemu does not tell: what kind of
// file it is, whether it leads to other files, and up to where compressed data reaches.
//
// Everything here is untrusted input. Functions that throw throw Error(EINVAL, path).
// Thread safety: all methods.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/files.h"

namespace tplstore {

// An image file or a block device, open for reading.
class ImageFile {
 public:
  // ENOENT and the like; EINVAL when it is neither a file nor a block device, or is empty.
  explicit ImageFile(const std::string& path);

  uint64_t size_bytes() const { return size_bytes_; }
  bool is_block_device() const { return is_block_device_; }
  // For reading. Who opens it again under its name may get another file.
  int descriptor() const { return fd_.get(); }
  const std::string& path() const { return path_; }  // as it was given
  // Fills `into`; false when the file ends before.
  bool read(uint64_t offset, MutableBytes into) const;
  // The first bytes, at most `count`.
  ByteVector head(uint64_t count) const;

  // "qcow2", "vmdk", "vhdx", "vdi", "vpc", "qed" by their magic numbers, else nothing.
  std::optional<std::string_view> magic_format() const;
  // "gzip", "xz", … when it is a compressed file or an archive, else nothing.
  std::optional<std::string_view> archive_kind() const;
  // What leads to another file ("a backing file", …), or nothing. `format`: what it will be read
  // as; empty: what its first bytes say.
  std::optional<std::string_view> find_reference(std::string_view format) const;

  // The least size of a whole file with these compressed clusters; 0 when there are none; nothing
  // when even the tables that tell it are past the end.
  std::optional<uint64_t> qcow2_compressed_end() const;
  std::optional<uint64_t> vmdk_compressed_end() const;
  bool has_vpc_footer() const;

 private:
  template <typename T>
  std::optional<T> take(uint64_t offset) const;

  const std::string path_;
  FileDescriptor fd_;
  uint64_t size_bytes_ = 0;
  bool is_block_device_ = false;
};

}  // namespace tplstore
