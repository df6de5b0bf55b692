// Reads the data of a disk that stands in a file as it is, ahead of whoever uses it, in a thread of
// its own.
//
// What is asked for soon is asked of the storage early, so that it works while the processor does.
// A thread that the storage does not answer is left to itself in the end.
//
// Thread safety: none. Errors: Error(EIO) for what cannot be read, or is not there any more.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/bytes.h"

namespace tplstore {

// A part of a disk that is in a file.
struct FileExtent {
  uint64_t disk_offset;
  uint64_t length;
  uint64_t file_offset;
};
// Tells one after the other, in ascending order of the disk's offsets and without overlaps, for an
// open file.
using NextExtent = std::function<std::optional<FileExtent>(int descriptor)>;

// The parts of a file that are not holes; all of it where its file system does not tell.
NextExtent data_of_file(uint64_t size_bytes);

class FileReader {
 public:
  // Has a descriptor of its own of the file. `name` is for messages. Reads so many pieces ahead;
  // each has `piece_bytes` at most, a multiple of a block, and stays there while so many more are
  // handed over.
  FileReader(int descriptor, std::string name, uint64_t disk_bytes, NextExtent extents,
             size_t pieces_ahead, size_t pieces_kept, size_t piece_bytes);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  // Whether next() has something to say; waits for that, but not longer.
  bool wait(std::chrono::milliseconds time);
  struct Piece {
    uint64_t offset;  // on the disk
    Bytes data;       // whole blocks, but at the disk's end
  };
  // Nothing behind the last one.
  std::optional<Piece> next();

 private:
  struct State;

  const std::shared_ptr<State> state_;
  const size_t pieces_kept_;
  std::thread thread_;
};

}  // namespace tplstore
