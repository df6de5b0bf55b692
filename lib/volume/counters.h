// Counters of one open volume. Relaxed: each is right by itself, no two are a snapshot. Threads
// count in lines of their own.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/thread_line.h"
#include "volume/volume.h"

namespace tplstore {

struct Volume::Counters {
  using Counter = std::atomic<uint64_t>;
  struct alignas(64) Line {
    Counter reads{0}, read_bytes{0};
    Counter template_reads{0}, template_read_bytes{0};
    Counter data_file_reads{0}, data_file_read_bytes{0};
    Counter writes{0}, write_bytes{0};
    Counter trims{0}, trim_bytes{0};
    Counter zeroes{0}, zero_bytes{0};
    Counter flushes{0};
    Counter extents{0};
    Counter errors{0};
    Counter first_writes{0};
  };

  // The calling thread's.
  Line& own() { return lines[thread_line()]; }
  uint64_t total(Counter Line::*counter) const {
    uint64_t sum = 0;
    for (const Line& line : lines) sum += (line.*counter).load(std::memory_order_relaxed);
    return sum;
  }
  static void add(Counter& counter, uint64_t value = 1) {
    counter.fetch_add(value, std::memory_order_relaxed);
  }

  std::array<Line, kThreadLines> lines;
};

}  // namespace tplstore
