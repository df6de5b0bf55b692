// What orders the requests of one volume: a gate that a new version closes for a moment, and locks
// on stretches of the disk that keep first writes and trims apart.
//
// Thread safety: all.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <optional>

#include "base/fair_shared_mutex.h"
#include "base/grace_period.h"

namespace tplstore {

// Requests that change something pass through the gate. Closing it keeps new ones out, and waits
// until those inside have left.
class Quiesce {
 public:
  class Pass {
   public:
    explicit Pass(Quiesce& gate) {
      while (true) {
        inside_.emplace(gate.inside_);
        if (!gate.is_closed_.load()) return;
        inside_.reset();
        gate.is_closed_.wait(true);
      }
    }
    Pass(const Pass&) = delete;

   private:
    std::optional<GracePeriod::Request> inside_;
  };

  // One at a time. Who counts itself in after the wait finds the gate closed.
  class Closed {
   public:
    explicit Closed(Quiesce& gate) : gate_(gate) {
      gate_.is_closed_.store(true);
      gate_.inside_.wait_for_requests();
    }
    ~Closed() {
      gate_.is_closed_.store(false);
      gate_.is_closed_.notify_all();
    }
    Closed(const Closed&) = delete;

   private:
    Quiesce& gate_;
  };
  // Waits for those that are inside, and keeps nobody out; false when one has not left by then.
  bool wait_for_passes_until(std::chrono::steady_clock::time_point deadline) {
    return inside_.wait_for_requests_until(deadline);
  }

 private:
  GracePeriod inside_;
  std::atomic<bool> is_closed_{false};
};

// Shared by writes to blocks that are current's already, exclusive for what changes the map. The
// disk is taken in stretches of 32 KiB. The locks of 16 neighbours are in one cache line, which
// thousands of others use too, but spread so that two ranges anywhere meet in one lock of
// kLockCount: requests that have nothing to do with each other do not wait for each other.
class RangeLocks {
 public:
  static constexpr uint64_t kStretchBlocks = 8;
  static constexpr uint32_t kLineLocks = 16;
  static constexpr uint32_t kLines = 256;
  static constexpr uint32_t kLockCount = kLines * kLineLocks;

  // The locks that a range of blocks takes.
  class Range {
   public:
    Range(uint64_t first_block, uint64_t block_count) {
      const uint64_t first = first_block / kStretchBlocks;
      const uint64_t last = (first_block + block_count - 1) / kStretchBlocks;
      // What is longer takes all: it takes so long anyway that this is cheap.
      takes_all_ = last / kLineLocks - first / kLineLocks >= parts_.size();
      if (takes_all_) return;
      for (uint64_t line = first / kLineLocks; line <= last / kLineLocks; ++line) {
        const uint64_t begin = std::max(first, line * kLineLocks) % kLineLocks;
        const uint64_t end = std::min(last, line * kLineLocks + kLineLocks - 1) % kLineLocks;
        add(line, static_cast<uint16_t>((uint32_t{2} << end) - (uint32_t{1} << begin)));
      }
    }

    // Calls body(line, lock in it) for each of the locks once, in an order that all ranges keep.
    template <typename Body>
    void for_each(Body body) const {
      if (takes_all_) {
        for (uint32_t i = 0; i < kLockCount; ++i) body(i / kLineLocks, i % kLineLocks);
        return;
      }
      for (uint32_t i = 0; i < count_; ++i)
        for (uint32_t locks = parts_[i].locks; locks != 0; locks &= locks - 1)
          body(parts_[i].line, static_cast<uint32_t>(std::countr_zero(locks)));
    }

   private:
    struct Part {
      uint16_t line;
      uint16_t locks;  // a bit for each
    };

    // Which line stands for 16 stretches, and where in it they begin, is a matter of a hash: any
    // distance between requests is a usual one for somebody.
    void add(uint64_t line, uint16_t locks) {
      const uint64_t hash = line * 0x9e3779b97f4a7c15;
      const Part part{static_cast<uint16_t>(hash >> 56),
                      std::rotl(locks, static_cast<int>(hash >> 52 & 15))};
      uint32_t at = count_;
      while (at > 0 && parts_[at - 1].line > part.line) --at;
      if (at > 0 && parts_[at - 1].line == part.line) {
        parts_[at - 1].locks |= part.locks;
        return;
      }
      std::copy_backward(parts_.begin() + at, parts_.begin() + count_, parts_.begin() + count_ + 1);
      parts_[at] = part;
      ++count_;
    }

    bool takes_all_ = false;
    uint32_t count_ = 0;
    std::array<Part, 32> parts_;  // sorted; the first `count_` count
  };

  template <bool kIsExclusive>
  class Hold {
   public:
    Hold(RangeLocks& locks, uint64_t first_block, uint64_t block_count)
        : locks_(locks), range_(first_block, block_count) {
      range_.for_each([this](uint32_t line, uint32_t i) {
        if constexpr (kIsExclusive) {
          locks_.lines_[line].locks[i].lock();
        } else {
          locks_.lines_[line].locks[i].lock_shared();
        }
      });
    }
    ~Hold() {
      range_.for_each([this](uint32_t line, uint32_t i) {
        if constexpr (kIsExclusive) {
          locks_.lines_[line].locks[i].unlock();
        } else {
          locks_.lines_[line].locks[i].unlock_shared();
        }
      });
    }
    Hold(const Hold&) = delete;

   private:
    RangeLocks& locks_;
    const Range range_;
  };
  using Shared = Hold<false>;
  using Exclusive = Hold<true>;

 private:
  struct alignas(64) Line {
    std::array<FairSharedMutex, kLineLocks> locks;
  };
  static_assert(sizeof(Line) == 64);

  std::array<Line, kLines> lines_;
};

}  // namespace tplstore
