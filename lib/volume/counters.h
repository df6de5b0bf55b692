// Counters of one open volume. Relaxed: each is right by itself, no two are a snapshot.
#pragma once

#include <atomic>
#include <cstdint>

#include "volume/volume.h"

namespace tplstore {

struct Volume::Counters {
  using Counter = std::atomic<uint64_t>;
  Counter reads{0}, read_bytes{0};
  Counter writes{0}, write_bytes{0};
  Counter trims{0}, trim_bytes{0};
  Counter zeroes{0}, zero_bytes{0};
  Counter flushes{0};
  Counter extents{0};
  Counter errors{0};
  Counter first_writes{0};
  Counter template_reads{0}, template_read_bytes{0};
  Counter data_file_reads{0}, data_file_read_bytes{0};

  static void add(Counter& counter, uint64_t value = 1) {
    counter.fetch_add(value, std::memory_order_relaxed);
  }
};

}  // namespace tplstore
