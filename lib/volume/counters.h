// Counters of one open volume. Relaxed: each is right by itself, no two are a snapshot. Threads
// count in lines of their own.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/thread_line.h"
#include "base/volume_types.h"

namespace tplstore {

class Counters {
 public:
  struct alignas(64) Line {
    void add(Counter counter, uint64_t value = 1) {
      counts[static_cast<size_t>(counter)].fetch_add(value, std::memory_order_relaxed);
    }
    std::array<std::atomic<uint64_t>, kCounterCount> counts{};
  };
  // The calling thread's.
  Line& own() { return lines_[thread_line()]; }

  uint64_t total(Counter counter) const {
    uint64_t sum = 0;
    for (const Line& line : lines_)
      sum += line.counts[static_cast<size_t>(counter)].load(std::memory_order_relaxed);
    return sum;
  }

 private:
  std::array<Line, kThreadLines> lines_;
};

}  // namespace tplstore
