// Visits are counted; a segment is read in one piece and checked in memory.
#include "tier/tier_world.h"

#include "template/segment.h"

namespace tplstore {
namespace {

int64_t steady_now_ns() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

TierOptions completed(TierOptions options) {
  if (!options.clock) options.clock = steady_now_ns;
  return options;
}

template <typename Step>
void attempt(Step step) noexcept {
  try {
    step();
  } catch (const std::exception&) {
    // Without memory for it nobody is told.
  }
}

}  // namespace

TierWorld::TierWorld(TierOptions options_of, std::function<void()> changed)
    : options(completed(std::move(options_of))),
      rate(options.fill_bytes_per_second),
      changed_(std::move(changed)) {}

bool TierWorld::enter() {
  const Lock guard(mutex_);
  if (has_left_) return false;
  ++visits_;
  return true;
}

TierWorld::Visit::Visit(TierWorld& world) : world_(world), is_in_(world.enter()) {}

TierWorld::Visit::~Visit() {
  if (!is_in_) return;
  const Lock guard(world_.mutex_);
  if (--world_.visits_ == 0) world_.left_.notify_all();
}

void TierWorld::leave() {
  const Lock guard(mutex_);
  has_left_ = true;
  while (visits_ > 0) left_.wait(mutex_);
}

void TierWorld::log(LogLevel level, const std::string& line) noexcept {
  attempt([&] {
    if (const Visit visit(*this); visit) options.log(level, line);
  });
}

void TierWorld::changed() noexcept {
  attempt([&] {
    if (const Visit visit(*this); visit) changed_();
  });
}

void TierWorld::look_again(const Hash128& name) noexcept {
  attempt([&] {
    if (const Visit visit(*this); visit) options.look_again(name);
  });
}

ByteVector TierWorld::read_origin(const WantedSegment& wanted) {
  const Visit visit(*this);
  if (!visit) fail(ESHUTDOWN, segment_path(wanted.name), "the tier is ending");
  const auto object = open_segment(*options.origin, wanted.name, wanted.block_count);
  const uint64_t size = object->size_bytes();
  if (size > kSegmentBytesMax)
    fail(EIO, segment_path(wanted.name), "damaged: {} bytes is not the size of a segment", size);
  ByteVector bytes(size);
  object->read(0, bytes);
  check_segment(bytes, wanted.name, secret());
  return bytes;
}

void check_segment(Bytes segment, const Hash128& name, const HashSecret& secret) {
  const auto block_count = segment_block_count(segment.size());
  if (!block_count)
    fail(EIO, segment_path(name), "damaged: {} bytes is not the size of a segment", segment.size());
  const uint64_t data_bytes = segment_table_offset(*block_count);
  const auto table = decode_segment_table(segment.subspan(data_bytes), *block_count, name, secret);
  for (const uint32_t block : find_damaged_blocks(segment.first(data_bytes), 0, table, secret))
    if (!is_given_up(segment.subspan(uint64_t{block} * kBlockBytes, kBlockBytes)))
      fail(EIO, segment_path(name), "damaged: block {} does not have its hash", block);
}

}  // namespace tplstore
