// A list for each step on the way from the decision to the punched hole; ranges that touch are
// joined when they are handed out.
#include "map/free_ranges.h"

#include <algorithm>

#include "map/interval.h"
#include "map/node.h"

namespace tplstore {

void join_free_ranges(std::vector<FreeRange>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const FreeRange& a, const FreeRange& b) {
    if (a.source != b.source) return a.source < b.source;
    // A whole file comes before its parts, so that they are dropped.
    if (a.is_whole_file() != b.is_whole_file()) return a.is_whole_file();
    return a.first < b.first;
  });
  size_t kept = 0;
  for (const FreeRange& range : ranges) {
    if (kept > 0 && ranges[kept - 1].source == range.source) {
      FreeRange& last = ranges[kept - 1];
      if (last.is_whole_file()) continue;
      const uint64_t last_end = last.first + last.count;
      const uint64_t end = std::max(last_end, range.first + range.count);
      if (range.first <= last_end && end - last.first <= UINT32_MAX) {
        last.count = static_cast<uint32_t>(end - last.first);
        continue;
      }
    }
    ranges[kept++] = range;
  }
  ranges.resize(kept);
}

uint64_t encode_free_ranges(Encoder& to, uint64_t seed, uint32_t index, uint32_t version,
                            std::span<const FreeRange> ranges) {
  ensure(ranges.size() <= kFreeRangesPerNode, "free ranges fit a node");
  const uint64_t start =
      begin_node(to, NodeKind::kFree, 0, static_cast<uint32_t>(ranges.size()), version);
  uint32_t source = 0;
  for (const FreeRange& range : ranges) {
    to.put_varint(range.source - source);
    to.put_varint(range.first);
    to.put_varint(range.count);
    source = range.source;
  }
  return end_node(to, start, seed, index);
}

void decode_free_ranges(Bytes bytes, uint64_t seed, uint32_t index, const std::string& object,
                        std::vector<FreeRange>& ranges) {
  auto [header, body] = open_node(bytes, seed, index, object);
  const auto impossible = [&] {
    fail(EIO, object, "damaged: a list of free ranges holds an impossible one");
  };
  if (header.kind != NodeKind::kFree) impossible();
  uint64_t source = 0;
  for (uint32_t i = 0; i < header.count; ++i) {
    source += body.take_varint();
    const uint64_t first = body.take_varint();
    const uint64_t count = body.take_varint();
    const bool is_good = source > 0 && source < kSourceUnmapped && count <= UINT32_MAX &&
                         first < kRegionsMax * kRegionBlocks &&
                         first + count <= kRegionsMax * kRegionBlocks;
    if (!is_good) impossible();
    ranges.push_back({static_cast<uint32_t>(source), static_cast<uint32_t>(count), first});
  }
}

void FreeRanges::add_durable(const std::vector<FreeRange>& ranges) {
  durable_.insert(durable_.end(), ranges.begin(), ranges.end());
  is_joined_ = false;
}

void FreeRanges::cut() {
  cut_.insert(cut_.end(), uncut_.begin(), uncut_.end());
  uncut_.clear();
}

void FreeRanges::commit() {
  if (cut_.empty()) return;
  add_durable(cut_);
  cut_.clear();
}

std::vector<FreeRange> FreeRanges::take(size_t max) {
  if (!taken_.empty()) give_back();
  if (!is_joined_) {
    join_free_ranges(durable_);
    std::reverse(durable_.begin(), durable_.end());
    is_joined_ = true;
  }
  const size_t count = std::min(max, durable_.size());
  taken_.assign(durable_.rbegin(), durable_.rbegin() + static_cast<ptrdiff_t>(count));
  durable_.resize(durable_.size() - count);
  return taken_;
}

void FreeRanges::finish(const std::set<uint32_t>& failed) {
  for (const FreeRange& range : taken_)
    (failed.contains(range.source) ? aside_ : punched_).push_back(range);
  taken_.clear();
}

void FreeRanges::retry() {
  if (aside_.empty()) return;
  add_durable(aside_);
  aside_.clear();
}

bool FreeRanges::begin_sync() {
  syncing_.insert(syncing_.end(), punched_.begin(), punched_.end());
  punched_.clear();
  return !syncing_.empty();
}

void FreeRanges::give_back() {
  add_durable(taken_);
  taken_.clear();
}

std::vector<FreeRange> FreeRanges::outstanding() const {
  std::vector<FreeRange> all;
  for (const auto* part : {&cut_, &durable_, &taken_, &aside_, &punched_, &syncing_})
    all.insert(all.end(), part->begin(), part->end());
  join_free_ranges(all);
  return all;
}

}  // namespace tplstore
