// Splices: what an assignment makes of an array of intervals, without building the disk in between.
#include "map/interval.h"

#include <algorithm>

namespace tplstore {
namespace {

// The first interval that ends after `block`. Where there are many they are spread rather evenly:
// the search starts where it would end if they were, and widens from there, so that it reads one
// to three cache lines of a large leaf.
size_t first_ending_after(std::span<const Interval> intervals, uint32_t block) {
  const auto is_before = [&](size_t i) { return intervals[i].end() <= block; };
  // All below `low` end before the block, none from `high` on does.
  size_t low = 0;
  size_t high = intervals.size();
  if (high == 0) return 0;
  const size_t guess = std::min(high - 1, block * high / kRegionBlocks);
  size_t step = 1;
  if (is_before(guess)) {
    low = guess + 1;
    for (; low + step < high && is_before(low + step); step *= 2) low += step + 1;
    high = std::min(high, low + step);
  } else {
    high = guess;
    for (; high >= step && !is_before(high - step); step *= 2) high -= step;
    if (high >= step) low = high - step + 1;
  }
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (is_before(middle)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

Interval make(uint32_t first, uint32_t end, uint32_t source) {
  return {static_cast<uint16_t>(first), static_cast<uint16_t>(end - first), source};
}

}  // namespace

void find_runs(std::span<const Interval> intervals, const BlockRange& blocks, RunList& runs) {
  const uint64_t base = round_down(blocks.first, kRegionBlocks);
  const auto first = static_cast<uint32_t>(blocks.first - base);
  const auto end = static_cast<uint32_t>(first + blocks.count);
  uint32_t at = first;
  for (size_t i = first_ending_after(intervals, first); at < end && i < intervals.size(); ++i) {
    const Interval& interval = intervals[i];
    if (interval.first >= end) break;
    if (interval.first > at) {
      runs.add({{base + at, interval.first - at}, kSourceUnmapped});
      at = interval.first;
    }
    const uint32_t stop = std::min(interval.end(), end);
    runs.add({{base + at, stop - at}, interval.source});
    at = stop;
  }
  if (at < end) runs.add({{base + at, end - at}, kSourceUnmapped});
}

Splice splice_for(std::span<const Interval> intervals, const Interval& change) {
  const uint32_t source = change.source;
  uint32_t from = change.first;
  uint32_t to = change.end();
  // What overlaps gives way, and so do neighbours that become one with it.
  size_t begin = first_ending_after(intervals, from);
  if (begin > 0 && intervals[begin - 1].end() == from && intervals[begin - 1].source == source)
    --begin;
  size_t end = begin;
  while (end < intervals.size() && intervals[end].first <= to &&
         (intervals[end].first < to || intervals[end].source == source))
    ++end;

  Splice splice{begin, end, 0, {}};
  const auto add = [&splice](const Interval& interval) {
    splice.fresh[splice.fresh_count++] = interval;
  };
  // The pieces of the outermost that stick out stay.
  const Interval left = begin < end ? intervals[begin] : change;
  const Interval right = begin < end ? intervals[end - 1] : change;
  if (left.first < from) {
    if (left.source == source) {
      from = left.first;
    } else {
      add(make(left.first, from, left.source));
    }
  }
  const uint32_t right_end = right.end();
  const bool keeps_right = right_end > to && right.source != source;
  if (source != kSourceUnmapped)
    add(make(from, keeps_right ? to : std::max(to, right_end), source));
  if (keeps_right) add(make(to, right_end, right.source));
  return splice;
}

bool are_valid(std::span<const Interval> intervals) {
  uint32_t at = 0;
  for (size_t i = 0; i < intervals.size(); ++i) {
    const Interval& interval = intervals[i];
    if (interval.count == 0 || interval.first < at || interval.end() > kRegionBlocks) return false;
    if (interval.source == kSourceUnmapped) return false;
    if (i > 0 && interval.first == at && intervals[i - 1].source == interval.source) return false;
    at = interval.end();
  }
  return true;
}

std::vector<Interval> difference(std::span<const Interval> base, std::span<const Interval> target) {
  std::vector<Interval> changes;
  for_each_stretch(base, target, [&](uint32_t first, uint32_t count, uint32_t old, uint32_t fresh) {
    if (old == fresh) return;
    if (!changes.empty() && changes.back().end() == first && changes.back().source == fresh) {
      changes.back().count = static_cast<uint16_t>(changes.back().count + count);
    } else {
      changes.push_back(make(first, first + count, fresh));
    }
  });
  return changes;
}

}  // namespace tplstore
