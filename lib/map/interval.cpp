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

void find_runs(std::span<const Interval> intervals, uint64_t base, uint32_t first, uint32_t count,
               RunList& runs) {
  const uint32_t end = first + count;
  uint32_t at = first;
  for (size_t i = first_ending_after(intervals, first); at < end && i < intervals.size(); ++i) {
    const Interval& interval = intervals[i];
    if (interval.first >= end) break;
    if (interval.first > at) {
      runs.add({base + at, interval.first - at, kSourceUnmapped});
      at = interval.first;
    }
    const uint32_t stop = std::min(interval.end(), end);
    runs.add({base + at, stop - at, interval.source});
    at = stop;
  }
  if (at < end) runs.add({base + at, end - at, kSourceUnmapped});
}

Splice splice_for(std::span<const Interval> intervals, uint32_t first, uint32_t count,
                  uint32_t source) {
  uint32_t from = first;
  uint32_t to = first + count;
  size_t begin = first_ending_after(intervals, from);
  size_t end = begin;
  while (end < intervals.size() && intervals[end].first < to) ++end;

  Splice splice{begin, end, 0, {}};
  const auto add = [&splice](const Interval& interval) {
    splice.fresh[splice.fresh_count++] = interval;
  };
  // The pieces of the outermost intervals that stick out stay, joined to the new one if equal.
  const bool has_overlap = begin < end;
  const Interval left = has_overlap ? intervals[begin] : Interval{};
  const Interval right = has_overlap ? intervals[end - 1] : Interval{};
  const bool keeps_left = has_overlap && left.first < from;
  const bool keeps_right = has_overlap && right.end() > to;
  const uint32_t right_end = keeps_right ? right.end() : 0;
  if (source == kSourceUnmapped) {
    if (keeps_left) add(make(left.first, from, left.source));
    if (keeps_right) add(make(to, right_end, right.source));
    return splice;
  }
  if (keeps_left) {
    if (left.source == source) {
      from = left.first;
    } else {
      add(make(left.first, from, left.source));
    }
  } else if (begin > 0 && intervals[begin - 1].end() == from &&
             intervals[begin - 1].source == source) {
    from = intervals[begin - 1].first;
    splice.begin = begin - 1;
  }
  bool adds_right = false;
  if (keeps_right) {
    if (right.source == source) {
      to = right_end;
    } else {
      adds_right = true;
    }
  } else if (end < intervals.size() && intervals[end].first == to &&
             intervals[end].source == source) {
    to = intervals[end].end();
    splice.end = end + 1;
  }
  add(make(from, to, source));
  if (adds_right) add(make(to, right_end, right.source));
  return splice;
}

uint32_t count_blocks(std::span<const Interval> intervals, uint32_t first, uint32_t count,
                      uint32_t source) {
  const uint32_t end = first + count;
  uint32_t blocks = 0;
  for (size_t i = first_ending_after(intervals, first);
       i < intervals.size() && intervals[i].first < end; ++i) {
    if (intervals[i].source != source) continue;
    blocks += std::min(intervals[i].end(), end) - std::max<uint32_t>(intervals[i].first, first);
  }
  return blocks;
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
  size_t b = 0;
  size_t t = 0;
  uint32_t at = 0;
  // Walk both arrays in stretches over which neither changes its source.
  const auto stretch = [](std::span<const Interval> intervals, size_t& i, uint32_t block) {
    while (i < intervals.size() && intervals[i].end() <= block) ++i;
    if (i == intervals.size()) return make(0, kRegionBlocks, kSourceUnmapped);
    if (intervals[i].first > block) return make(block, intervals[i].first, kSourceUnmapped);
    return intervals[i];
  };
  while (at < kRegionBlocks) {
    const Interval old_run = stretch(base, b, at);
    const Interval new_run = stretch(target, t, at);
    const uint32_t end = std::min(old_run.end(), new_run.end());
    if (old_run.source != new_run.source) {
      if (!changes.empty() && changes.back().end() == at &&
          changes.back().source == new_run.source) {
        changes.back().count = static_cast<uint16_t>(end - changes.back().first);
      } else {
        changes.push_back(make(at, end, new_run.source));
      }
    }
    at = end;
  }
  return changes;
}

}  // namespace tplstore
