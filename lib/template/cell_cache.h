// What those who read immutable data ask of a memory of cells: blocks of segments, and blocks of
// the data files of frozen versions. Neither ever changes, so what is in the memory is never wrong
// and never taken back.
//
// A hit copies from memory and does nothing else: no lock, no allocation, no open file. A miss is
// planned where the data is stored; it is taken into the memory when it is read in the name of a
// window (boot/window.h), and whoever misses the same cell meanwhile waits for that.
//
// Thread safety: all methods.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>

#include "backend/read_plan.h"
#include "base/bytes.h"
#include "base/volume_types.h"

namespace tplstore {

// In the place of a version: blocks that no version has written, which are the template's.
inline constexpr uint32_t kFromTemplate = UINT32_MAX;

// Where cells are stored.
class CellSource {
 public:
  // Adds to `plan` what has to be read for the bytes at `offset`; any alignment.
  virtual void plan_stored(uint64_t offset, MutableBytes into, ReadPlan& plan) = 0;
  // Whether whole blocks, from `first` on, are what they should be, as far as anybody can tell.
  virtual bool are_sound(uint32_t first, Bytes blocks) = 0;
  // Reads one block from where it is sound; EIO when it is damaged wherever it is. False when
  // nobody can tell: then it is what there is.
  virtual bool read_sound(uint32_t block, MutableBytes into) = 0;
  // Lets go of what the storage has in caches of its own.
  virtual void drop_cached() {}

 protected:
  ~CellSource() = default;
};

// In whose name cells are taken in and kept: a boot of a VM. What it is, is the memory's business.
class CellWindow {
 protected:
  ~CellWindow() = default;
};

// The cells of one segment or data file.
class CellFile {
 public:
  virtual ~CellFile() = default;
  // Copies what is in memory of the bytes at `offset`, and plans the rest. Without a window nothing
  // is taken in. `source` has to last as long as the plan.
  virtual void plan_read(CellSource& source, uint64_t offset, MutableBytes into, ReadPlan& plan,
                         CellWindow* window) = 0;
};

// Names a segment of so many blocks, or the data file of a version of a volume.
struct CellFileKey {
  enum class Kind : uint8_t { kSegment, kVersion } kind;
  Hash128 segment{};
  Uuid volume{};
  uint32_t number;  // blocks of the segment, or the version

  static CellFileKey of_segment(const Hash128& name, uint32_t block_count) {
    return {.kind = Kind::kSegment, .segment = name, .number = block_count};
  }
  static CellFileKey of_version(const Uuid& volume, uint32_t version) {
    return {.kind = Kind::kVersion, .volume = volume, .number = version};
  }
  auto operator<=>(const CellFileKey&) const = default;
};

// Blocks of a disk that came from one place, once.
struct CellRun {
  uint32_t source;  // kFromTemplate, or a frozen version
  uint64_t first;
  uint32_t count;
};

// Where blocks of a run are: cells `block`… of the file are blocks `first`… of the disk.
struct CellPlace {
  std::shared_ptr<CellFile> file;
  CellSource* source;
  CellFileKey key;
  uint32_t block;
  uint32_t count;
  size_t run;  // its index
  uint64_t first;
};

class CellCache {
 public:
  virtual ~CellCache() = default;
  // The same one for all that ask while somebody has it or cells of it are in memory.
  virtual std::shared_ptr<CellFile> file(const CellFileKey& key) = 0;
  // Versions of the volume from this one on are not what they were: their freezing was lost in a
  // crash. Who knows that reads nothing of them meanwhile.
  virtual void forget_versions(const Uuid& volume, uint32_t from) = 0;
  // Counts what is kept elsewhere for the sake of cells, like hashes; false where there is no room
  // for it.
  virtual bool reserve(uint64_t bytes) = 0;
  virtual void release(uint64_t bytes) noexcept = 0;
};

// Follows what the writer of a disk reads of its current version. One for each connection.
class ReadFollower {
 public:
  virtual ~ReadFollower() = default;
  // Comes first of each read. The window that it is part of, if it is of one; that lasts as long as
  // the plan.
  virtual CellWindow* begin_read(uint64_t offset, uint64_t length, ReadPlan& plan) noexcept = 0;
  // Blocks of the disk that the read has of the template (kFromTemplate) or of a frozen version.
  virtual void touch(CellWindow& window, uint32_t source, uint64_t first,
                     uint64_t count) noexcept = 0;
};

}  // namespace tplstore
