// Each thread keeps one aligned buffer for its bounces; larger ones, and a second one at a time,
// are from the heap.
#include "backend/dir/bounce_buffer.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "base/bytes.h"

namespace tplstore {
namespace {

constexpr size_t kThreadBounceBytes = size_t{1} << 20;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct ThreadBounce {
  std::unique_ptr<void, Free> memory;
  bool is_taken = false;
};
thread_local ThreadBounce thread_bounce;

void* allocate_aligned(size_t size) {
  void* memory = std::aligned_alloc(kBlockBytes, round_up(size, kBlockBytes));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

BounceBuffer::BounceBuffer(size_t size) {
  if (size == 0) return;
  ThreadBounce& own = thread_bounce;
  is_from_heap_ = own.is_taken || size > kThreadBounceBytes;
  if (is_from_heap_) {
    data_ = static_cast<std::byte*>(allocate_aligned(size));
    return;
  }
  if (!own.memory) own.memory.reset(allocate_aligned(kThreadBounceBytes));
  own.is_taken = true;
  data_ = static_cast<std::byte*>(own.memory.get());
}

BounceBuffer::~BounceBuffer() {
  if (data_ == nullptr) return;
  if (is_from_heap_) {
    std::free(data_);
  } else {
    thread_bounce.is_taken = false;
  }
}

}  // namespace tplstore
