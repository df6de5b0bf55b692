// Each segment has a thread of its own for as long as it is on its way.
#include "transfer/segment_writer.h"

#include <algorithm>

namespace tplstore {
namespace {

// So many names that are there with other bytes are no accident.
constexpr uint32_t kRotationsMax = 8;

}  // namespace

SegmentWriter::SegmentWriter(Backend& segments, BlockSource& blocks, const HashSecret& secret,
                             size_t at_once_max)
    : segments_(segments), blocks_(blocks), secret_(secret), at_once_max_(at_once_max) {}

SegmentWriter::~SegmentWriter() = default;

SegmentBuilder SegmentWriter::write(ImportJournal& journal, uint32_t number,
                                    SegmentBuilder builder) {
  const Hash128 name = builder.name();
  journal.add(name);
  const Bytes blocks = builder.blocks();
  Work work{{number, builder.block_count(), name, true, 0}, std::move(builder)};
  if (at_once_max_ == 0) return take(publish(journal, std::move(work)));
  auto empty = on_their_way_.size() < at_once_max_ ? SegmentBuilder(secret_) : take_oldest();
  on_their_way_.push_back(
      {number, blocks,
       std::async(
           std::launch::async,
           [this, &journal](Work todo) { return publish(journal, std::move(todo)); },
           std::move(work))});
  return empty;
}

Bytes SegmentWriter::find(BlockLocation location) const {
  for (const OnItsWay& segment : on_their_way_)
    if (segment.number == location.segment)
      return segment.blocks.subspan(location.block * uint64_t{kBlockBytes}, kBlockBytes);
  return {};
}

const std::vector<SegmentWriter::Written>& SegmentWriter::finish() {
  while (!on_their_way_.empty()) take_oldest();
  return written_;
}

// Leaves the blocks where they are in memory, for find().
SegmentWriter::Work SegmentWriter::publish(ImportJournal& journal, Work work) const {
  using Outcome = SegmentBuilder::Outcome;
  auto& [written, builder] = work;
  journal.commit();
  Outcome outcome = builder.publish(segments_, blocks_);
  while (outcome == Outcome::kOtherBytes) {
    if (++written.rotations == std::min(written.block_count, kRotationsMax))
      fail_other_bytes(written.name);
    SegmentBuilder rotated(secret_);
    for (uint32_t i = 0; i < written.block_count; ++i) {
      const uint32_t block = (i + written.rotations) % written.block_count;
      rotated.add(builder.block(block), builder.hash(block));
    }
    written.name = rotated.name();
    journal.add(written.name);
    journal.commit();
    outcome = rotated.publish(segments_, blocks_);
  }
  written.is_new = outcome == Outcome::kNew;
  return work;
}

// The builder of one that is done, to be filled again.
SegmentBuilder SegmentWriter::take(Work work) {
  written_.push_back(work.written);
  return work.written.rotations == 0 ? std::move(work.builder) : SegmentBuilder(secret_);
}

SegmentBuilder SegmentWriter::take_oldest() {
  std::future<Work> oldest = std::move(on_their_way_.front().work);
  on_their_way_.pop_front();
  return take(oldest.get());
}

}  // namespace tplstore
