// Reads that go through a disk are streams, whatever order a connection's threads bring them in;
// those of a boot are not.
#include "boot/stream_filter.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "volume_testing.h"

namespace tplstore::stream_filter_test {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// How many bytes are read before the filter calls it a stream; all when it never does.
uint64_t bytes_before_stream(const std::vector<uint64_t>& offsets, uint64_t length) {
  StreamFilter filter;
  uint64_t bytes = 0;
  for (const uint64_t offset : offsets) {
    if (filter.is_streaming(offset, length)) return bytes;
    bytes += length;
  }
  return bytes;
}

std::vector<uint64_t> ascending(uint64_t from, uint64_t step, size_t count) {
  std::vector<uint64_t> offsets;
  for (size_t i = 0; i < count; ++i) offsets.push_back(from + i * step);
  return offsets;
}

}  // namespace

TEST_CASE("what is read from beginning to end is a stream after 8 MiB") {
  CHECK(bytes_before_stream(ascending(0, 256 << 10, 100), 256 << 10) == 8 * kMiB);
  CHECK(bytes_before_stream(ascending(100 * kMiB, 512, 100'000), 512) == 8 * kMiB);
}

TEST_CASE("gaps of up to 1 MiB do not end a stream, and do not count") {
  CHECK(bytes_before_stream(ascending(0, 2 * kMiB, 100), kMiB) == 8 * kMiB);
  CHECK(bytes_before_stream(ascending(0, 2 * kMiB + 1, 100), kMiB) == 100 * kMiB);
}

TEST_CASE("requests that overtake each other are a stream all the same") {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  for (int round = 0; round < 50; ++round) {
    std::vector<uint64_t> offsets = ascending(kMiB * (random() % 1000), 256 << 10, 200);
    for (size_t i = 0; i + 4 <= offsets.size(); i += 4)
      std::shuffle(offsets.begin() + static_cast<ptrdiff_t>(i),
                   offsets.begin() + static_cast<ptrdiff_t>(i) + 4, random);
    CHECK(bytes_before_stream(offsets, 256 << 10) <= 10 * kMiB);

    // Requests larger than a gap may be, eight at a time.
    offsets = ascending(kMiB * (random() % 1000), 2 * kMiB, 200);
    for (size_t i = 0; i + 8 <= offsets.size(); i += 8)
      std::shuffle(offsets.begin() + static_cast<ptrdiff_t>(i),
                   offsets.begin() + static_cast<ptrdiff_t>(i) + 8, random);
    CHECK(bytes_before_stream(offsets, 2 * kMiB) <= 16 * kMiB);
  }
}

TEST_CASE("of a disk that is copied in large requests, many at once, little is no stream") {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  for (int round = 0; round < 50; ++round) {
    StreamFilter filter;
    uint64_t outside = 0;
    std::vector<uint64_t> in_flight = ascending(0, 2 * kMiB, 8);
    for (uint64_t next = 16 * kMiB; next < 200 * kMiB; next += 2 * kMiB) {
      // The oldest is not overtaken for ever.
      const size_t index = next % (16 * kMiB) == 0 ? 0 : random() % in_flight.size();
      if (!filter.is_streaming(in_flight[index], 2 * kMiB)) outside += 2 * kMiB;
      in_flight.erase(in_flight.begin() + static_cast<ptrdiff_t>(index));
      in_flight.push_back(next);
    }
    CHECK(outside <= 40 * kMiB);
  }
}

TEST_CASE("a stream among other reads is one") {
  StreamFilter filter;
  std::mt19937_64 random(test_seed());
  uint64_t streamed = 0;
  bool is_found = false;
  for (uint64_t i = 0; i < 40; ++i) {
    is_found = is_found || filter.is_streaming(i << 20, kMiB);
    for (int other = 0; other < 3; ++other)
      streamed += filter.is_streaming((uint64_t{1} << 40) + random() % (uint64_t{1} << 40), 4096);
  }
  CHECK(is_found);
  CHECK(streamed == 0);
}

TEST_CASE("a boot's reads are no stream: short files here and there, some read again and again") {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  StreamFilter filter;
  for (int file = 0; file < 1000; ++file) {
    const uint64_t offset = random() % (10'000 * kMiB);
    for (uint64_t i = 0; i < random() % 32; ++i)
      REQUIRE_FALSE(filter.is_streaming(offset + i * (128 << 10), 128 << 10));
  }
  for (int again = 0; again < 10'000; ++again) REQUIRE_FALSE(filter.is_streaming(4096, 4096));
}

}  // namespace tplstore::stream_filter_test
