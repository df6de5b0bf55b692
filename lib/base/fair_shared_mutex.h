// A shared mutex that is fair: who finds it taken queues up, and nobody who comes later gets it
// before. So a writer waits for those that were there before it and for nobody else, however many
// readers keep coming; and likewise a reader.
//
// Where nobody waits, taking it and letting go of it are one atomic operation each. It is 4 bytes;
// the queues are in lots that all mutexes of the process share. Whoever lets go of it last hands
// it over to the first in the queue: to a writer, or to all readers up to the next writer.
//
// Thread safety: all. A thread must not take one that it holds already, not even to share it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace tplstore {

class FairSharedMutex {
 public:
  bool try_lock() {
    uint32_t state = 0;
    return state_.compare_exchange_strong(state, kExclusive, std::memory_order_acquire,
                                          std::memory_order_relaxed);
  }
  void lock() {
    if (!try_lock()) wait(true);
  }
  void unlock() {
    uint32_t state = kExclusive;
    if (!state_.compare_exchange_strong(state, 0, std::memory_order_release,
                                        std::memory_order_relaxed))
      hand_over();
  }
  bool try_lock_shared() {
    uint32_t state = state_.load(std::memory_order_relaxed);
    while ((state & (kExclusive | kQueue)) == 0)
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire,
                                       std::memory_order_relaxed))
        return true;
    return false;
  }
  void lock_shared() {
    if (!try_lock_shared()) wait(false);
  }
  void unlock_shared() {
    if (state_.fetch_sub(1, std::memory_order_release) == (kQueue | 1)) hand_over();
  }
  // How many are in the queue just now. For tests.
  size_t waiting() const;

 private:
  void wait(bool is_writer);
  void hand_over();

  static constexpr uint32_t kExclusive = uint32_t{1} << 31;  // a writer has it
  static constexpr uint32_t kQueue = uint32_t{1} << 30;      // somebody waits

  std::atomic<uint32_t> state_{0};  // these bits, and the number of readers that have it
};

}  // namespace tplstore
