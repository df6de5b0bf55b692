// Sorts what the index names by segment and block, reads it in long pieces, and compares.
#include "transfer/block_matcher.h"

#include <algorithm>

namespace tplstore {
namespace {

bool is_before(const BlockLocation& a, const BlockLocation& b) {
  return a.segment != b.segment ? a.segment < b.segment : a.block < b.block;
}

}  // namespace

bool BlockMatcher::plan_read(BlockLocation location, MutableBytes into, ReadPlan& plan) {
  const auto& entry = index_.segment(location.segment);
  if (entry.block_count == 0) return false;
  if (location.segment >= held_.size()) held_.resize(index_.segment_count());
  auto& segment = held_[location.segment];
  if (!segment) {
    segment = blocks_.hold(entry.name, entry.block_count);
  }
  try {
    segment->plan_read(location.block * uint64_t{kBlockBytes}, into, plan);
    return true;
  } catch (const Error&) {
    return false;
  }
}

bool BlockMatcher::has_bytes(BlockLocation location, Bytes block) {
  std::array<std::byte, kBlockBytes> there;
  ReadPlan plan;
  try {
    if (!plan_read(location, there, plan)) return false;
    plan.run();
  } catch (const Error&) {
    return false;
  }
  return std::memcmp(there.data(), block.data(), kBlockBytes) == 0;
}

void BlockMatcher::match(std::span<Wanted> wanted, std::optional<BlockLocation> previous,
                         uint32_t built) {
  std::vector<BlockIndex::Candidates> candidates(wanted.size());
  comparisons_.clear();
  for (uint32_t i = 0; i < wanted.size(); ++i) {
    wanted[i].match.reset();
    candidates[i] = index_.find(wanted[i].hash);
    std::optional<BlockLocation> choice;
    for (const BlockLocation& location : candidates[i].all()) {
      if (location.segment == built) continue;
      const bool continues = previous && location.segment == previous->segment &&
                             location.block == previous->block + 1;
      if (!choice || continues) choice = location;
      if (continues) break;
    }
    if (choice) comparisons_.push_back({*choice, i});
    previous = choice;
  }
  compare(wanted, comparisons_);

  // Equal hashes with different bytes, or an unreadable place: the other places, one by one.
  for (const Comparison& done : comparisons_) {
    Wanted& block = wanted[done.wanted];
    for (const BlockLocation& location : candidates[done.wanted].all()) {
      if (block.match) break;
      if (location.segment != built && location != done.location &&
          has_bytes(location, block.block))
        block.match = location;
    }
  }
}

void BlockMatcher::compare(std::span<Wanted> wanted, std::vector<Comparison>& comparisons) {
  std::sort(comparisons.begin(), comparisons.end(), [](const Comparison& a, const Comparison& b) {
    return is_before(a.location, b.location);
  });
  buffer_.resize(std::max<size_t>(buffer_.size(), comparisons.size() * kBlockBytes));
  ReadPlan plan;
  // The bytes of comparison i go to slot slots[i] of the buffer; equal places share one.
  std::vector<uint32_t> slots(comparisons.size());
  uint32_t used = 0;
  for (size_t i = 0; i < comparisons.size(); ++i) {
    const BlockLocation& location = comparisons[i].location;
    if (i > 0 && comparisons[i - 1].location == location) {
      slots[i] = slots[i - 1];
      continue;
    }
    slots[i] = used++;
    const MutableBytes into =
        MutableBytes(buffer_).subspan(slots[i] * uint64_t{kBlockBytes}, kBlockBytes);
    // Wanted blocks are never zero.
    if (!plan_read(location, into, plan)) std::fill(into.begin(), into.end(), std::byte{0});
  }
  bool is_read = true;
  try {
    plan.run();
  } catch (const Error&) {
    is_read = false;
  }
  for (size_t i = 0; i < comparisons.size(); ++i) {
    Wanted& block = wanted[comparisons[i].wanted];
    const std::byte* there = buffer_.data() + slots[i] * uint64_t{kBlockBytes};
    const bool equal = is_read ? std::memcmp(there, block.block.data(), kBlockBytes) == 0
                               : has_bytes(comparisons[i].location, block.block);
    if (equal) block.match = comparisons[i].location;
  }
}

}  // namespace tplstore
