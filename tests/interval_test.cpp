#include "map/interval.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "volume_testing.h"

namespace tplstore::interval_test {
namespace {

using Sources = std::vector<uint32_t>;  // of the blocks of a region

Sources expand(std::span<const Interval> intervals) {
  Sources sources(kRegionBlocks, kSourceUnmapped);
  for (const Interval& interval : intervals)
    std::fill_n(sources.begin() + interval.first, interval.count, interval.source);
  return sources;
}

void splice(std::vector<Interval>& intervals, const Splice& splice) {
  const auto begin = intervals.begin();
  const auto at = intervals.erase(begin + static_cast<ptrdiff_t>(splice.begin),
                                  begin + static_cast<ptrdiff_t>(splice.end));
  intervals.insert(at, splice.fresh.begin(), splice.fresh.begin() + splice.fresh_count);
}

// Ranges that begin below `stop`, of single blocks only if the arrays shall become long.
Interval random_range(Random& random, uint32_t stop, bool is_dense) {
  const auto first = static_cast<uint16_t>(random.below(stop));
  const uint64_t most = is_dense ? 1 : random.chance(4) ? kRegionBlocks : 8;
  const auto count =
      static_cast<uint16_t>(std::min<uint64_t>(1 + random.below(most), kRegionBlocks - first));
  const uint32_t source =
      random.chance(5) ? kSourceUnmapped : static_cast<uint32_t>(random.below(4));
  return {first, count, source};
}

}  // namespace

TEST_CASE("splices do to intervals what assignments do to an array of blocks") {
  Random random(test_seed());
  for (int round = 0; round < 50; ++round) {
    std::vector<Interval> intervals;
    Sources sources(kRegionBlocks, kSourceUnmapped);
    const bool is_dense = random.chance(3);
    const auto stop = static_cast<uint32_t>(kRegionBlocks / (1 + random.below(8)));
    for (int i = 0; i < (is_dense ? 2000 : 200); ++i) {
      const Interval range = random_range(random, stop, is_dense);
      splice(intervals, splice_for(intervals, range));
      std::fill_n(sources.begin() + range.first, range.count, range.source);
      REQUIRE(are_valid(intervals));
      REQUIRE(expand(intervals) == sources);

      const Interval look = random_range(random, kRegionBlocks, false);
      RunList runs;
      find_runs(intervals, {5 * kRegionBlocks + look.first, look.count}, runs);
      uint64_t next = 5 * kRegionBlocks + look.first;
      for (size_t r = 0; r < runs.size(); ++r) {
        REQUIRE(runs[r].first == next);
        for (uint64_t b = 0; b < runs[r].count; ++b)
          REQUIRE(sources[next + b - 5 * kRegionBlocks] == runs[r].source);
        next += runs[r].count;
      }
      REQUIRE(next == 5 * kRegionBlocks + look.end());
    }
  }
}

TEST_CASE("a difference turns one array into the other") {
  Random random(test_seed());
  for (int round = 0; round < 200; ++round) {
    std::vector<Interval> base;
    std::vector<Interval> target;
    for (int i = 0; i < 30; ++i) {
      const Interval range = random_range(random, kRegionBlocks, false);
      splice(base, splice_for(base, range));
    }
    target = base;
    for (uint64_t i = random.below(10); i > 0; --i) {
      const Interval range = random_range(random, kRegionBlocks, false);
      splice(target, splice_for(target, range));
    }
    std::vector<Interval> result = base;
    for (const Interval& change : difference(base, target))
      splice(result, splice_for(result, change));
    CHECK(result == target);
  }
}

TEST_CASE("arrays that cannot be are told") {
  CHECK(are_valid({}));
  const auto is_valid = [](std::vector<Interval> intervals) { return are_valid(intervals); };
  CHECK(is_valid({{0, 1024, 1}}));
  CHECK_FALSE(is_valid({{0, 0, 1}}));
  CHECK_FALSE(is_valid({{1, 1024, 1}}));
  CHECK_FALSE(is_valid({{5, 1, 1}, {4, 1, 1}}));
  CHECK_FALSE(is_valid({{5, 2, 1}, {6, 1, 2}}));
  CHECK_FALSE(is_valid({{5, 1, 1}, {6, 1, 1}}));
  CHECK_FALSE(is_valid({{5, 1, kSourceUnmapped}}));
}

}  // namespace tplstore::interval_test
