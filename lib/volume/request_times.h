// How long requests take: a histogram of each kind, with bounds that never change. Relaxed, and in
// lines of the threads, as volume/counters.h.
//
// Thread safety: all.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

#include "base/thread_line.h"
#include "base/volume_types.h"

namespace tplstore {

// For the numbers of each length in bits the first bound that is not less than the least of them.
inline constexpr auto kFirstBucket = [] {
  std::array<uint8_t, 65> first{};
  for (size_t bits = 1; bits < first.size(); ++bits)
    while (first[bits] < kDurationBoundsNs.size() &&
           kDurationBoundsNs[first[bits]] < uint64_t{1} << (bits - 1))
      ++first[bits];
  return first;
}();

// The index of the first bound that is not less, or past the last one.
constexpr size_t duration_bucket(uint64_t ns) {
  // Bounds are at least twice the one before: there is one step left at most.
  size_t bucket = kFirstBucket[std::bit_width(ns)];
  while (bucket < kDurationBoundsNs.size() && kDurationBoundsNs[bucket] < ns) ++bucket;
  return bucket;
}

class RequestTimes {
 public:
  void add(RequestKind kind, uint64_t ns) {
    Histogram& own = lines_[thread_line()][static_cast<size_t>(kind)];
    own.counts[duration_bucket(ns)].fetch_add(1, std::memory_order_relaxed);
    own.sum_ns.fetch_add(ns, std::memory_order_relaxed);
  }

  DurationHistogram total(RequestKind kind) const {
    DurationHistogram sum;
    for (const Line& line : lines_) {
      const Histogram& part = line[static_cast<size_t>(kind)];
      for (size_t i = 0; i < sum.counts.size(); ++i)
        sum.counts[i] += part.counts[i].load(std::memory_order_relaxed);
      sum.sum_ns += part.sum_ns.load(std::memory_order_relaxed);
    }
    return sum;
  }

 private:
  struct alignas(64) Histogram {
    std::array<std::atomic<uint64_t>, kDurationBoundsNs.size() + 1> counts{};
    std::atomic<uint64_t> sum_ns{0};
  };
  using Line = std::array<Histogram, kRequestKindCount>;
  std::array<Line, kThreadLines> lines_;
};

}  // namespace tplstore
