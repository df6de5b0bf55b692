// What transfers of a DirObject need besides a descriptor: aligned memory, and order.
//
// Thread safety: a BounceBuffer is one thread's, from making it to its end; a TransferGate is for
// all. Errors: std::bad_alloc only.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>

namespace tplstore {

// Page-aligned memory for one request: the thread's own, or from the heap when that is in use or
// too small. Nothing is taken for size 0.
class BounceBuffer {
 public:
  explicit BounceBuffer(size_t size);
  ~BounceBuffer();
  BounceBuffer(const BounceBuffer&) = delete;
  BounceBuffer& operator=(const BounceBuffer&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  bool is_from_heap_ = false;
};

// Lets any number of transfers through together, or one that must be alone. Entering shared twice
// from one thread is fine.
class TransferGate {
 public:
  void enter_shared();
  void leave_shared() noexcept;
  void enter_alone();
  void leave_alone() noexcept;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t shared_count_ = 0;
  bool is_alone_ = false;
};

}  // namespace tplstore
