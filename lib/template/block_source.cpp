// Which segments somebody holds, and how one is opened.
#include "template/block_source.h"

namespace tplstore {

std::shared_ptr<BlockSource::Segment> BlockSource::hold(const Hash128& name, uint32_t block_count) {
  const Lock guard(mutex_);
  if (known_.size() >= forget_at_) {
    std::erase_if(known_, [](const auto& known) { return known.second.expired(); });
    forget_at_ = std::max<size_t>(64, 2 * known_.size());
  }
  std::weak_ptr<Segment>& known = known_[{name, block_count}];
  auto segment = known.lock();
  // Not in one piece with its counts, which stay until it is forgotten.
  if (!segment) known = segment = std::shared_ptr<Segment>(new Segment(origin_, name, block_count));
  return segment;
}

Object& BlockSource::Segment::open() {
  const Lock guard(opening_);
  if (!opened_) {
    opened_ = open_segment(origin_, name_, block_count_);
    object_.store(opened_.get(), std::memory_order_release);
  }
  return *opened_;
}

bool BlockSource::Segment::is_missing() {
  try {
    origin_.open(segment_path(name_), Access::kRead, Purpose::kData);
    return false;
  } catch (const Error& error) {
    return error.code() == ENOENT;
  }
}

}  // namespace tplstore
