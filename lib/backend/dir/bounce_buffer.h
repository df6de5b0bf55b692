// Page-aligned memory for one request: the thread's own, or from the heap when that is in use or
// too small. Nothing is taken for size 0.
//
// Thread safety: it is one thread's, from making it to its end. Errors: std::bad_alloc only.
#pragma once

#include <cstddef>

namespace tplstore {

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

}  // namespace tplstore
