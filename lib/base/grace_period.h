// Lets one thread wait until all requests that are in flight have ended, without holding up new
// ones: what such a request has looked up may still be read until then.
//
// A request counts itself in and out in one of two sets of counters; which one changes with every
// wait. Counters are spread over cache lines, so that threads do not meet.
//
// Thread safety: all.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

#include "base/thread_line.h"

namespace tplstore {

class GracePeriod {
 public:
  class Request {
   public:
    explicit Request(GracePeriod& period)
        : count_(period.lines_[thread_line()].active[period.set_.load()]) {
      count_.fetch_add(1);
    }
    ~Request() { count_.fetch_sub(1, std::memory_order_release); }
    Request(const Request&) = delete;

   private:
    std::atomic<uint32_t>& count_;
  };

  // Returns when every request that had begun before this call has ended. A request may read which
  // set is in use just before that changes, and count itself in afterwards; so both sets are
  // waited for, one after the other, each while new requests go to the other one. What such a late
  // one looks up it looks up after the caller's change.
  void wait_for_requests() {
    wait_for_requests_until(std::chrono::steady_clock::time_point::max());
  }
  // Likewise; false when one of them has not ended by then.
  bool wait_for_requests_until(std::chrono::steady_clock::time_point deadline) {
    const auto await = [deadline](const auto& condition) {
      // Most requests are short.
      for (int tries = 0; !condition(); ++tries) {
        if (std::chrono::steady_clock::now() >= deadline) return false;
        if (tries < 64) {
          std::this_thread::yield();
        } else {
          std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
      }
      return true;
    };
    std::unique_lock guard(mutex_, std::defer_lock);
    if (!await([&] { return guard.try_lock(); })) return false;
    for (int round = 0; round < 2; ++round) {
      const uint32_t old = set_.load();
      set_.store(old ^ 1);
      if (!await([&] { return !has_active(old); })) return false;
    }
    return true;
  }

 private:
  struct alignas(64) Line {
    std::array<std::atomic<uint32_t>, 2> active{};
  };

  bool has_active(uint32_t set) const {
    return std::ranges::any_of(lines_,
                               [set](const Line& line) { return line.active[set].load() != 0; });
  }

  std::array<Line, kThreadLines> lines_;
  std::atomic<uint32_t> set_{0};
  std::mutex mutex_;
};

}  // namespace tplstore
