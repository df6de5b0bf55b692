// What an export is made of: a byte-addressed disk, as NBD sees it.
//
// Offsets and lengths may have any alignment and lie within size_bytes(). Data calls may come from
// many threads at once. The methods that change something throw Error(EROFS) on a disk that is
// not writable.
#pragma once

#include <cstdint>
#include <functional>

#include "base/bytes.h"

namespace tplstore {

// A run of a disk's bytes. A hole reads as zeroes and occupies nothing; all else is data.
struct Extent {
  uint64_t offset;
  uint64_t length;
  bool is_hole;
};

class Disk {
 public:
  virtual ~Disk() = default;

  virtual uint64_t size_bytes() const = 0;
  virtual bool is_writable() const = 0;
  // Whether one client may open several connections: what is flushed on one covers all.
  virtual bool allows_multi_conn() const = 0;

  virtual void read(uint64_t offset, MutableBytes into) = 0;
  // Ascending, contiguous, from `offset` to at most offset + length, until `add` returns false.
  virtual void extents(uint64_t offset, uint64_t length,
                       const std::function<bool(const Extent&)>& add) = 0;

  // `durable`: as if followed by a flush that covers this request (NBD's FUA).
  virtual void write(uint64_t offset, Bytes from, bool durable) = 0;
  // Both make the range read as zeroes and give back its space.
  virtual void trim(uint64_t offset, uint64_t length, bool durable) = 0;
  virtual void zero(uint64_t offset, uint64_t length, bool durable) = 0;
  // Makes all that was written before the call durable.
  virtual void flush() = 0;
  // Brings the range into memory if that helps; never fails for want of it.
  virtual void cache(uint64_t offset, uint64_t length) = 0;
};

}  // namespace tplstore
