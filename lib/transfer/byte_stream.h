// Bytes one after the other, in and out: of a file or a pipe, compressed or not.
//
// "-" is standard input or output; "./-" is a file of that name. Nothing seeks in those, and they
// are refused where they are a terminal. What comes in is unpacked when it begins as zstd does.
//
// Compressed input is untrusted: it is unpacked a buffer at a time, in at most 128 MiB of memory
// whatever it says, and no further than somebody asks for its content; so how much it may unpack to
// is for the one who reads. What goes out has a checksum in every frame.
//
// Whoever writes to a pipe ignores SIGPIPE. A read or a write that waits for the other end of a
// pipe asks `interrupted` now and then.
//
// Thread safety: one thread each. Errors: EIO for compressed data that are damaged or cut; EINVAL
// for what is neither a regular file nor "-"; EPIPE when the reader has gone; EINTR when
// `interrupted` said so; else the system's errno.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/files.h"

namespace tplstore {

enum class Compression { kNone, kZstd };

using StreamInterrupted = std::function<bool()>;

// Whether a name that a person gave means standard input or output.
inline bool is_standard_stream(const std::string& file) { return file == "-"; }

class ByteReader {
 public:
  ByteReader(const std::string& file, StreamInterrupted interrupted, bool unpacks = true);
  ~ByteReader();
  ByteReader(const ByteReader&) = delete;
  ByteReader& operator=(const ByteReader&) = delete;

  const std::string& name() const { return name_; }  // for messages
  bool is_compressed() const { return unpacker_ != nullptr; }
  bool can_rewind() const { return !is_stream_; }
  // Of a file that is not compressed.
  std::optional<uint64_t> file_bytes() const;
  // How much there is, as far as it says so: nobody has checked that of what is compressed.
  std::optional<uint64_t> size_bytes() const { return size_bytes_; }

  // Fills `into`; fewer bytes than that only at the end.
  size_t read(MutableBytes into);
  uint64_t position() const { return position_; }  // of its content
  void rewind();
  // Of a file that is not compressed, anywhere in it: fewer bytes only at its end.
  size_t read_at(uint64_t position, MutableBytes into) const;

 private:
  class Unpacker;

  bool fill();  // the buffer, when it is empty; false at the end
  size_t read_some(MutableBytes into);
  size_t unpack_some(MutableBytes into);
  void look_at_beginning(bool unpacks);

  std::string name_;
  FileDescriptor file_;
  int descriptor_;
  bool is_stream_;
  StreamInterrupted interrupted_;
  std::optional<uint64_t> size_bytes_;
  ByteVector buffer_;  // of what was read from the descriptor
  Bytes ahead_;        // what of it is still to come
  std::unique_ptr<Unpacker> unpacker_;
  uint64_t position_ = 0;
};

class ByteWriter {
 public:
  // The descriptor lives longer. `size_bytes`: how much there will be, where that is known.
  ByteWriter(int descriptor, std::string name, Compression compression,
             std::optional<uint64_t> size_bytes, StreamInterrupted interrupted);
  ~ByteWriter();
  ByteWriter(const ByteWriter&) = delete;
  ByteWriter& operator=(const ByteWriter&) = delete;

  void append(Bytes bytes);
  // Writes out what is left, and makes it durable where that can be done.
  void finish();

 private:
  class Packer;

  void write_out(Bytes bytes);

  const int descriptor_;
  const std::string name_;
  const StreamInterrupted interrupted_;
  size_t bytes_at_once_;
  std::unique_ptr<Packer> packer_;
  ByteVector buffer_;
};

}  // namespace tplstore
