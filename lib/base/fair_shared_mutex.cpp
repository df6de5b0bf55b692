// Who must wait queues up in one of 64 lots that all mutexes share, by its mutex's address.
#include "base/fair_shared_mutex.h"

#include <array>
#include <condition_variable>
#include <mutex>

namespace tplstore {
namespace {

struct Waiter {
  const FairSharedMutex* mutex;
  bool is_writer;
  bool is_served = false;
  std::condition_variable served{};
  Waiter* next = nullptr;
};

// Where those wait that wait for one of many mutexes, in the order in which they came.
struct alignas(64) Lot {
  std::mutex mutex{};
  Waiter* first = nullptr;
};

Lot& lot_of(const FairSharedMutex* mutex) {
  static std::array<Lot, 64> lots;
  return lots[reinterpret_cast<uintptr_t>(mutex) * 0x9e3779b97f4a7c15 >> 58];
}

}  // namespace

// While the lot is locked the queue does not change, and so neither does kQueue.
void FairSharedMutex::wait(bool is_writer) {
  Lot& lot = lot_of(this);
  std::unique_lock guard(lot.mutex);
  uint32_t state = state_.load(std::memory_order_relaxed);
  while ((state & kQueue) == 0) {
    const bool is_free = is_writer ? state == 0 : (state & kExclusive) == 0;
    const uint32_t taken = is_writer ? kExclusive : state + 1;
    if (state_.compare_exchange_weak(state, is_free ? taken : state | kQueue,
                                     std::memory_order_acquire, std::memory_order_relaxed)) {
      if (is_free) return;
      break;
    }
  }
  Waiter self{this, is_writer};
  Waiter** end = &lot.first;
  while (*end != nullptr) end = &(*end)->next;
  *end = &self;
  self.served.wait(guard, [&self] { return self.is_served; });
}

// Nobody has the mutex but the caller, and somebody waits: until that is served no other thread
// changes the state.
void FairSharedMutex::hand_over() {
  Lot& lot = lot_of(this);
  const std::lock_guard guard(lot.mutex);
  // What all readers did that had it comes before what the next one does.
  state_.load(std::memory_order_acquire);
  uint32_t state = 0;
  for (Waiter** at = &lot.first; *at != nullptr;) {
    Waiter& waiter = **at;
    if (waiter.mutex != this) {
      at = &waiter.next;
      continue;
    }
    if (state == kExclusive || (state != 0 && waiter.is_writer)) {
      state |= kQueue;
      break;
    }
    state = waiter.is_writer ? kExclusive : state + 1;
    *at = waiter.next;
    waiter.is_served = true;
    waiter.served.notify_one();
  }
  state_.store(state, std::memory_order_release);
}

size_t FairSharedMutex::waiting() const {
  Lot& lot = lot_of(this);
  const std::lock_guard guard(lot.mutex);
  size_t count = 0;
  for (const Waiter* waiter = lot.first; waiter != nullptr; waiter = waiter->next)
    if (waiter->mutex == this) ++count;
  return count;
}

}  // namespace tplstore
