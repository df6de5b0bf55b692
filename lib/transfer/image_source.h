// An image that is being read for an import: a file of any format that qemu knows, served by a
// qemu-nbd of our own, or any NBD server's export.
//
// Opening makes all checks; see transfer/image_check.h for those of files. A raw disk (and an
// export) whose partition table reaches past its end is refused as cut short too. A disk's size
// must be a multiple of 512 bytes.
//
// A plain disk, and an image all of whose data stands in its file as it is (no compression), is
// read from the open file that was checked; the qemu-nbd is there all the same, for it has the
// image locked as qemu does that. Else reading asks the server which parts are data
// (base:allocation), skips the rest, and keeps several requests in flight. A server that dies, that
// answers a request with less than all of it, or that answers too slowly, is an Error; nothing
// waits for ever.
//
// Thread safety: none; one import's.
// Errors: Error with the source as object.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/bytes.h"

namespace tplstore {

struct ImageSourceOptions {
  std::string format = {};     // of a file; empty: find out
  bool allow_backing = false;  // files that refer to other files
  uint32_t requests_in_flight = 16;
  uint32_t request_bytes = 512 << 10;  // a multiple of 64 KiB
  // While it is waited so long, answers must come for at least so much of the disk.
  uint32_t stall_seconds_max = 120;
  uint64_t stall_bytes_min = 1 << 20;
  std::function<bool()> interrupted = {};  // asked several times a second
};

class ImageSource {
 public:
  // `source`: a path, or an URI of nbd://, nbds://, nbd+unix://, nbds+unix:// or their vsock forms.
  static std::unique_ptr<ImageSource> open(const std::string& source,
                                           const ImageSourceOptions& options);
  virtual ~ImageSource() = default;

  virtual uint64_t size_bytes() const = 0;
  // For people: "/images/debian.qcow2 (qcow2)".
  virtual std::string description() const = 0;

  // Hands over the disk's data in ascending order, in pieces of whole blocks (the disk's last one
  // may be shorter), of which so many stay where they are when more are handed over, and as long as
  // this lives; what is left out reads as zeroes. Once.
  static constexpr size_t kPiecesKept = 8;
  virtual void read_data(const std::function<void(uint64_t offset, Bytes data)>& consume) = 0;
};

}  // namespace tplstore
