// Sorts what the index names by segment and block, reads it in long pieces, and compares; these two
// in a thread for each batch.
#include "transfer/block_matcher.h"

#include <algorithm>
#include <utility>

namespace tplstore {
namespace {

bool is_before(const BlockLocation& a, const BlockLocation& b) {
  return a.segment != b.segment ? a.segment < b.segment : a.block < b.block;
}

}  // namespace

bool BlockMatcher::plan_read(BlockLocation location, MutableBytes into, ReadPlan& plan) {
  if (on_their_way_ != nullptr) {
    if (const Bytes block = on_their_way_->find(location); !block.empty()) {
      std::ranges::copy(block, into.begin());
      return true;
    }
  }
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

void BlockMatcher::choose_places(Batch& batch) {
  for (uint32_t i = 0; i < batch.wanted.size(); ++i) {
    Wanted& block = batch.wanted[i];
    block.match.reset();
    batch.candidates.push_back(index_.find(block.hash));
    std::optional<BlockLocation> choice;
    for (const BlockLocation& location : batch.candidates[i].all()) {
      if (location.segment == batch.built) continue;
      const bool continues = previous_ && location.segment == previous_->segment &&
                             location.block == previous_->block + 1;
      if (!choice || continues) choice = location;
      if (continues) break;
    }
    if (choice) batch.comparisons.push_back({*choice, i, 0});
    previous_ = choice;
  }
}

// Equal places share a slot of the buffer.
void BlockMatcher::plan_reads(Batch& batch) {
  auto& comparisons = batch.comparisons;
  std::ranges::sort(comparisons, is_before, &Comparison::location);
  if (!buffers_.empty()) {
    batch.buffer = std::move(buffers_.back());
    buffers_.pop_back();
  }
  batch.buffer.resize(std::max<size_t>(batch.buffer.size(), comparisons.size() * kBlockBytes));
  uint32_t used = 0;
  for (size_t i = 0; i < comparisons.size(); ++i) {
    const BlockLocation& location = comparisons[i].location;
    if (i > 0 && comparisons[i - 1].location == location) {
      comparisons[i].slot = comparisons[i - 1].slot;
      continue;
    }
    comparisons[i].slot = used++;
    const MutableBytes into =
        MutableBytes(batch.buffer)
            .subspan(comparisons[i].slot * uint64_t{kBlockBytes}, kBlockBytes);
    // Wanted blocks are never zero.
    if (!plan_read(location, into, batch.plan)) std::ranges::fill(into, std::byte{0});
  }
}

// In a thread of its own.
void BlockMatcher::compare(Batch& batch) {
  try {
    batch.plan.run();
    batch.is_read = true;
  } catch (const Error&) {
    return;
  }
  for (const Comparison& comparison : batch.comparisons) {
    Wanted& block = batch.wanted[comparison.wanted];
    const std::byte* there = batch.buffer.data() + comparison.slot * uint64_t{kBlockBytes};
    if (std::memcmp(there, block.block.data(), kBlockBytes) == 0) block.match = comparison.location;
  }
}

std::unique_ptr<BlockMatcher::Batch> BlockMatcher::begin(std::vector<Wanted> wanted,
                                                         uint32_t built) {
  auto batch = std::make_unique<Batch>();
  batch->wanted = std::move(wanted);
  batch->built = built;
  choose_places(*batch);
  if (batch->comparisons.empty()) return batch;
  plan_reads(*batch);
  batch->comparing = std::async(std::launch::async, [&on = *batch] { compare(on); });
  return batch;
}

std::vector<BlockMatcher::Wanted> BlockMatcher::end(std::unique_ptr<Batch> batch) {
  if (batch->comparing.valid()) batch->comparing.get();
  // Equal hashes with different bytes, or a place that could not be read: the other places, one by
  // one.
  for (const Comparison& done : batch->comparisons) {
    Wanted& block = batch->wanted[done.wanted];
    for (const BlockLocation& location : batch->candidates[done.wanted].all()) {
      if (block.match) break;
      if (location.segment != batch->built && (location != done.location || !batch->is_read) &&
          has_bytes(location, block.block))
        block.match = location;
    }
  }
  if (!batch->buffer.empty()) buffers_.push_back(std::move(batch->buffer));
  return std::move(batch->wanted);
}

void BlockMatcher::match(std::span<Wanted> wanted, std::optional<BlockLocation> previous,
                         uint32_t built) {
  const auto sequence = std::exchange(previous_, previous);
  std::ranges::move(end(begin({wanted.begin(), wanted.end()}, built)), wanted.begin());
  previous_ = sequence;
}

}  // namespace tplstore
