// Where an export's data goes: a new raw file, or a qcow2 file through qemu-nbd.
//
// The copier takes a buffer, fills it, and writes runs of it; what it does not write reads as
// zeroes. Thread safety: one thread. Errors: Error about the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "transfer/byte_stream.h"

namespace tplstore::tool {

inline constexpr uint32_t kSinkBufferBytes = uint32_t{2} << 20;

class ImageSink {
 public:
  virtual ~ImageSink() = default;

  // Zeroes of this size and alignment are better left out than written.
  virtual uint32_t granularity_bytes() const = 0;
  // A buffer of kSinkBufferBytes that no write is under way from; waits for one.
  virtual MutableBytes take_buffer() = 0;
  // `from` lies in the buffer taken last; it is written by the time finish() returns.
  virtual void write(uint64_t offset, Bytes from) = 0;
  // Makes everything durable.
  virtual void finish() = 0;
};

// Both write to an empty file, open for reading and writing, that lives as long as they do.
// Messages name it `file`.
std::unique_ptr<ImageSink> make_raw_sink(int descriptor, uint64_t size_bytes,
                                         const std::string& file);
std::unique_ptr<ImageSink> make_qcow2_sink(int descriptor, uint64_t size_bytes,
                                           const std::string& file);
// Writes raw to what cannot seek, or compressed: zeroes and all.
std::unique_ptr<ImageSink> make_stream_sink(int descriptor, uint64_t size_bytes,
                                            const std::string& file, Compression compression,
                                            const StreamInterrupted& interrupted);

}  // namespace tplstore::tool
