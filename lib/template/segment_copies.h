// What the block source asks of a tier: copies of segments, which are read instead of the origin's.
//
// A copy is trusted with nothing: every block that is read from one is compared with its hash by
// the block source, and what a copy does not give, or gives wrong, is read at the origin. So copies
// may come, go, fail and hang at any time.
//
// Thread safety: all methods of both.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/bytes.h"

namespace tplstore {

// A copy that is open for reading.
class SegmentCopy {
 public:
  virtual ~SegmentCopy() = default;
  // Block i at i * kBlockBytes, as in the origin's.
  virtual Object& object() = 0;
  // The hashes of its blocks, which together have the segment's name.
  virtual const std::vector<Hash128>& table() const = 0;

  enum class Outcome { kRead, kFailed, kDamaged };
  // Stands around every read of the object. When it says false, nothing is read now and end() is
  // not called: its directory is off, or does not answer. Both take no lock.
  virtual bool begin() noexcept = 0;
  // `error`: what a read failed with. kDamaged: a block does not have its hash.
  virtual void end(Outcome outcome, uint64_t bytes, const std::exception_ptr& error) noexcept = 0;
};

class SegmentCopies {
 public:
  virtual ~SegmentCopies() = default;
  // The copy to read from; nothing where there is none that could be used. May do I/O.
  virtual std::unique_ptr<SegmentCopy> open(const Hash128& name, uint32_t block_count) noexcept = 0;
  // So many bytes of a segment were read at the origin, because no copy could be used. Does not
  // wait for anything.
  virtual void was_read_at_origin(const Hash128& name, uint32_t block_count,
                                  uint64_t bytes) noexcept = 0;
  // Never 0, and another one when open() may answer otherwise for many segments.
  uint64_t generation() const { return generation_.load(std::memory_order_relaxed); }

 protected:
  std::atomic<uint64_t> generation_{1};
};

}  // namespace tplstore
