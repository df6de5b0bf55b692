// What orders the requests of one volume: a gate that a new version closes for a moment, and locks
// on stretches of the disk that keep first writes and trims apart.
//
// Thread safety: all.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <shared_mutex>

namespace tplstore {

// Requests that change something pass through the gate. close() keeps new ones out and returns
// when those inside have left.
class Gate {
 public:
  class Pass {
   public:
    explicit Pass(Gate& gate) : gate_(gate) { gate_.enter(); }
    ~Pass() { gate_.leave(); }
    Pass(const Pass&) = delete;

   private:
    Gate& gate_;
  };

  // One closer at a time.
  void close() {
    state_.fetch_or(kClosed);
    for (uint32_t state = state_.load(); state != kClosed; state = state_.load())
      state_.wait(state);
  }
  void open() {
    state_.fetch_and(~kClosed);
    state_.notify_all();
  }

 private:
  static constexpr uint32_t kClosed = uint32_t{1} << 31;

  void enter() {
    while ((state_.fetch_add(1) & kClosed) != 0) {
      leave();
      for (uint32_t state = state_.load(); (state & kClosed) != 0; state = state_.load())
        state_.wait(state);
    }
  }
  void leave() {
    if ((state_.fetch_sub(1) & kClosed) != 0) state_.notify_all();
  }

  std::atomic<uint32_t> state_{0};
};

// Shared by writes to blocks that are current's already, exclusive for what changes the map. One
// lock stands for many stretches of 128 KiB; a request takes its locks in rising order.
class StretchLocks {
 public:
  static constexpr uint64_t kStretchBlocks = 32;

  template <bool kIsExclusive>
  class Hold {
   public:
    Hold(StretchLocks& locks, uint64_t first_block, uint64_t block_count) : locks_(locks) {
      const uint64_t first = first_block / kStretchBlocks;
      const uint64_t count = (first_block + block_count - 1) / kStretchBlocks - first + 1;
      begin_ = static_cast<uint32_t>(first % kLocks);
      count_ = static_cast<uint32_t>(std::min<uint64_t>(count, kLocks));
      for_each([](std::shared_mutex& lock) {
        if constexpr (kIsExclusive) {
          lock.lock();
        } else {
          lock.lock_shared();
        }
      });
    }
    ~Hold() {
      for_each([](std::shared_mutex& lock) {
        if constexpr (kIsExclusive) {
          lock.unlock();
        } else {
          lock.unlock_shared();
        }
      });
    }
    Hold(const Hold&) = delete;

   private:
    // The locks [begin_, begin_ + count_), modulo their number, in rising order.
    template <typename Body>
    void for_each(Body body) {
      const uint32_t end = begin_ + count_;
      for (uint32_t i = 0; i + kLocks < end; ++i) body(locks_.locks_[i]);
      for (uint32_t i = begin_; i < std::min(end, kLocks); ++i) body(locks_.locks_[i]);
    }

    StretchLocks& locks_;
    uint32_t begin_;
    uint32_t count_;
  };
  using Shared = Hold<false>;
  using Exclusive = Hold<true>;

 private:
  static constexpr uint32_t kLocks = 64;
  std::array<std::shared_mutex, kLocks> locks_;
};

}  // namespace tplstore
