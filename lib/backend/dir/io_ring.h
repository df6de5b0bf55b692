// Reads and writes of many file ranges at once: a bounded pool of io_uring rings.
//
// A batch takes a free ring, has kRingEntries operations at a time in flight and waits for all of
// them. When every ring is taken, or io_uring is refused on this host, the batch runs as plain
// preads and pwrites, one after the other, which is slower on a device and otherwise the same.
// Writes through the page cache are always plain: there a ring only adds a change of threads.
//
// Rings are made when first needed, never by the constructor: a server forks between making its
// store and serving, and a ring does not survive that. Rings that were inherited over a fork are
// dropped unused.
//
// Invariant: no operation is in flight when a call returns, whatever failed, because the buffers
// may stand on the caller's stack. Only the death of the process cuts a call off: then writes may
// be under way still, and as long as they are, the ring keeps the files of KeptFiles open.
//
// Thread safety: all methods. Errors: but for KeptFiles::add() none is thrown; each operation
// carries its own result. The environment variable TPLSTORE_NO_IO_URING=1, read at construction,
// forces plain calls.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/mutex.h"

namespace tplstore {

inline constexpr size_t kRingEntries = 128;
inline constexpr size_t kRingsMax = 8;

// One transfer between a buffer and a range of a file, and its result. The members have no
// defaults so that an array of them on the stack costs nothing; use the two makers.
struct IoOp {
  enum class Kind : uint8_t { kRead, kWrite };

  Kind kind;
  bool is_direct;  // the file is open with O_DIRECT; all alignments are the caller's duty
  int fd;
  int error;  // result: errno, or 0
  uint64_t offset;
  std::byte* data;  // a kWrite only reads it
  size_t length;
  // Result: bytes transferred. Less than `length` without an error only for a read, at the end of
  // the file.
  size_t done;

  static IoOp read(int fd, uint64_t offset, std::span<std::byte> into, bool is_direct) {
    return {Kind::kRead, is_direct, fd, 0, offset, into.data(), into.size(), 0};
  }
  static IoOp write(int fd, uint64_t offset, std::span<const std::byte> from, bool is_direct) {
    return {Kind::kWrite, is_direct, fd, 0, offset, const_cast<std::byte*>(from.data()),
            from.size(),  0};
  }
};

// Runs one operation as plain pread or pwrite calls, to its end.
void run_plain(IoOp& op) noexcept;

// Files that stay open until every write that a ring was given has ended, whoever dies meanwhile:
// those whose locks say that nobody else writes now. Of a process that is killed the kernel closes
// the descriptors at once, and so lets go of its locks, while asynchronous writes of it still land;
// files that are registered in the ring go with the ring, after its last request.
class KeptFiles {
 public:
  // Throws std::bad_alloc.
  void add(int fd);
  // Before the descriptor is closed. A ring may keep the file open until its next write, so whoever
  // lets go of a lock unlocks the file.
  void remove(int fd) noexcept;

 private:
  friend class IoRingPool;

  Mutex mutex_;  // held while a ring registers them
  std::vector<int> fds_ GUARDED_BY(mutex_);
  std::atomic<uint64_t> changes_{0};
};

class IoRingPool {
 public:
  explicit IoRingPool(size_t rings_max = kRingsMax);
  ~IoRingPool();
  IoRingPool(const IoRingPool&) = delete;
  IoRingPool& operator=(const IoRingPool&) = delete;

  // Runs all operations, in no particular order, and returns when all have ended; also after one
  // failed, the others are carried out. The first `log` that can gets one line if io_uring cannot
  // be used here, and why.
  void run_batch(std::span<IoOp> ops, const Log& log = {}) noexcept;

  // What all rings of this pool keep open. May outlive it.
  const std::shared_ptr<KeptFiles>& kept_files() const { return kept_; }

  // How many batches went through a ring; what tests look at.
  uint64_t ring_batches() const;

 private:
  struct Ring;

  std::unique_ptr<Ring> take_ring(const Log& log) noexcept;
  void give_back(std::unique_ptr<Ring> ring, bool has_run) noexcept;

  const bool is_forbidden_;
  const std::shared_ptr<KeptFiles> kept_ = std::make_shared<KeptFiles>();

  mutable Mutex mutex_;
  std::vector<std::unique_ptr<Ring>> free_ GUARDED_BY(mutex_);
  size_t rings_made_ GUARDED_BY(mutex_) = 0;  // free ones and taken ones
  // Lowered for good when the kernel refuses to make another.
  size_t rings_max_ GUARDED_BY(mutex_);
  bool has_logged_ GUARDED_BY(mutex_) = false;
  uint64_t ring_batches_ GUARDED_BY(mutex_) = 0;
};

}  // namespace tplstore
