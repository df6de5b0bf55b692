// Which segments somebody holds, how one is opened at the origin, and how its copy is used.
//
// A request that reads from a copy has entered requests_ before it looks for it, so a copy that is
// left while requests read from it is kept until those have ended.
#include "template/block_source.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace tplstore {

// A segment's copy while it is in use.
class BlockSource::Copy final : public ReadCheck {
 public:
  Copy(Segment& segment, std::unique_ptr<SegmentCopy> copy)
      : segment_(segment), copy_(std::move(copy)) {}

  Object& object() { return copy_->object(); }
  const std::vector<Hash128>& table() const { return copy_->table(); }
  bool begin() noexcept override { return copy_->begin(); }
  bool end(const ReadPiece& piece, const std::exception_ptr& error) noexcept override {
    auto outcome = SegmentCopy::Outcome::kRead;
    if (error) {
      outcome = SegmentCopy::Outcome::kFailed;
    } else if (!has_hashes(piece)) {
      outcome = SegmentCopy::Outcome::kDamaged;
    }
    copy_->end(outcome, piece.into.size(), error);
    if (outcome == SegmentCopy::Outcome::kRead) return true;
    segment_.leave(*this);
    return false;
  }
  void read_elsewhere(uint64_t offset, MutableBytes into) override {
    segment_.read_elsewhere(offset, into);
  }

 private:
  bool has_hashes(const ReadPiece& piece) const {
    const HashSecret& secret = segment_.source_.secret_;
    const uint64_t first = piece.offset / kBlockBytes;
    for (uint64_t i = 0; i < piece.into.size() / kBlockBytes; ++i) {
      const Bytes block = Bytes(piece.into).subspan(i * kBlockBytes, kBlockBytes);
      if (content_hash(block, secret) != copy_->table().at(first + i)) return false;
    }
    return true;
  }

  Segment& segment_;
  const std::unique_ptr<SegmentCopy> copy_;
};

BlockSource::BlockSource(Backend& origin) : origin_(origin) {}
BlockSource::~BlockSource() = default;

void BlockSource::set_copies(SegmentCopies& copies, const HashSecret& secret) {
  secret_ = secret;
  copies_ = &copies;
  // Who is held later sees them by itself.
  for (const auto& segment : held_segments()) segment->see_copies();
}

std::vector<std::shared_ptr<BlockSource::Segment>> BlockSource::held_segments() {
  const Lock guard(mutex_);
  std::vector<std::shared_ptr<Segment>> held;
  for (const auto& [key, known] : known_)
    if (auto segment = known.lock()) held.push_back(std::move(segment));
  return held;
}

std::shared_ptr<BlockSource::Segment> BlockSource::hold(const Hash128& name, uint32_t block_count) {
  const Lock guard(mutex_);
  if (known_.size() >= forget_at_) {
    std::erase_if(known_, [](const auto& known) { return known.second.expired(); });
    forget_at_ = std::max<size_t>(64, 2 * known_.size());
  }
  std::weak_ptr<Segment>& known = known_[{name, block_count}];
  auto segment = known.lock();
  // Not in one piece with its counts, which stay until it is forgotten.
  if (!segment) known = segment = std::shared_ptr<Segment>(new Segment(*this, name, block_count));
  return segment;
}

void BlockSource::look_again(const Hash128& name) {
  std::vector<std::shared_ptr<Segment>> segments;
  {
    const Lock guard(mutex_);
    for (auto known = known_.lower_bound({name, 0}); known != known_.end(); ++known) {
      if (known->first.first != name) break;
      if (auto segment = known->second.lock()) segments.push_back(std::move(segment));
    }
  }
  for (const auto& segment : segments) segment->look_again();
}

void BlockSource::keep_unused(std::list<Copy>& copies) {
  const Lock guard(unused_mutex_);
  unused_.splice(unused_.end(), copies);
}

void BlockSource::free_unused_copies() {
  std::list<Copy> unused;
  {
    const Lock guard(unused_mutex_);
    unused.swap(unused_);
  }
  if (unused.empty()) return;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  if (!requests_.wait_for_requests_until(deadline)) keep_unused(unused);
}

BlockSource::Segment::Segment(BlockSource& source, const Hash128& name, uint32_t block_count)
    : source_(source),
      name_(name),
      block_count_(block_count),
      // Only who knows how many blocks it should have can tell a sound one.
      cells_(source.cells_ == nullptr || block_count == 0 ? nullptr
                                                          : source.cells_->file(key_of_cells())) {}
BlockSource::Segment::~Segment() { forget_table(); }

void BlockSource::Segment::read(uint64_t offset, MutableBytes into) {
  ReadPlan plan;
  plan_read(offset, into, plan);
  plan.run();
}

Object& BlockSource::Segment::open_at_origin() {
  if (Object* object = origin_object_.load(std::memory_order_acquire)) return *object;
  const Lock guard(opening_);
  if (!opened_) {
    const auto open = [this] { return open_segment(source_.origin_, name_, block_count_); };
    opened_ = open();
    opened_->set_finder(open);
    origin_object_.store(opened_.get(), std::memory_order_release);
    if (source_.copies_.load() == nullptr)
      only_object_.store(opened_.get(), std::memory_order_release);
  }
  return *opened_;
}

void BlockSource::Segment::see_copies() {
  const Lock guard(opening_);
  only_object_.store(nullptr, std::memory_order_release);
}

bool BlockSource::Segment::is_missing() {
  try {
    source_.origin_.open(segment_path(name_), Access::kRead, Purpose::kData);
    return false;
  } catch (const Error& error) {
    return error.code() == ENOENT;
  }
}

// --- cells

void BlockSource::set_cells(CellCache& cells, const HashSecret& secret) {
  secret_ = secret;
  cells_ = &cells;
}

void BlockSource::forget_tables() {
  for (const auto& segment : held_segments()) segment->forget_table();
}

// Nothing where there is none that is sound. It is kept where there is room for it.
std::shared_ptr<const BlockSource::Segment::Table> BlockSource::Segment::table() {
  const Lock guard(table_mutex_);
  if (table_) return table_;
  std::shared_ptr<const Table> table;
  {
    const GracePeriod::Request request(source_.requests_);
    if (const Copy* copy = copy_.load(std::memory_order_acquire))
      table = std::make_shared<const Table>(copy->table());
  }
  // An origin that is not there is not asked for every block.
  const auto now = std::chrono::steady_clock::now();
  if (!table && now >= look_for_table_at_) {
    try {
      table = std::make_shared<const Table>(read_table(source_.secret_));
    } catch (const Error&) {
      look_for_table_at_ = now + std::chrono::seconds(1);
    }
  }
  if (table && table->size() != block_count_) table = nullptr;
  if (table) keep_table(table);
  return table;
}

void BlockSource::Segment::keep_table(std::shared_ptr<const Table> table) {
  if (source_.cells_->reserve(table->size() * sizeof(Hash128))) table_ = std::move(table);
}

bool BlockSource::Segment::has_table() {
  const Lock guard(table_mutex_);
  return table_ != nullptr;
}

void BlockSource::Segment::take_table(Bytes hashes) {
  if (!cells_ || hashes.size() != block_count_ * sizeof(Hash128) ||
      content_hash(hashes, source_.secret_) != name_)
    return;
  auto table = std::make_shared<Table>(block_count_);
  std::memcpy(table->data(), hashes.data(), hashes.size());
  const Lock guard(table_mutex_);
  if (!table_) keep_table(std::move(table));
}

void BlockSource::Segment::forget_table() {
  const Lock guard(table_mutex_);
  if (!table_) return;
  source_.cells_->release(table_->size() * sizeof(Hash128));
  table_ = nullptr;
}

bool BlockSource::Segment::are_sound(uint32_t first, Bytes blocks) {
  const auto hashes = table();
  if (!hashes) return false;
  for (uint64_t i = 0; i < blocks.size() / kBlockBytes; ++i) {
    const Bytes block = blocks.subspan(i * kBlockBytes, kBlockBytes);
    if (content_hash(block, source_.secret_) != hashes->at(first + i)) return false;
  }
  return true;
}

bool BlockSource::Segment::read_sound(uint32_t block, MutableBytes into) {
  const uint64_t offset = uint64_t{block} * kBlockBytes;
  const bool is_known = table() != nullptr;
  // Another copy than the one that was damaged, if that was what it came from; then the origin.
  ReadPlan plan;
  plan_stored(offset, into, plan);
  plan.run();
  if (!is_known) return false;
  if (are_sound(block, into)) return true;
  read_at_origin(offset, into);
  if (are_sound(block, into)) return true;
  fail(EIO, segment_path(name_), "block {} is damaged; mend it with 'tplstore template verify'",
       block);
}

// --- copies

void BlockSource::Segment::plan_elsewhere(uint64_t offset, MutableBytes into, ReadPlan& plan) {
  SegmentCopies* copies = source_.copies_.load(std::memory_order_acquire);
  // Only who knows how many blocks it should have can tell a copy from something else.
  if (copies == nullptr || block_count_ == 0) return plan.add(open_at_origin(), offset, into);
  plan.enter(source_.requests_);
  if (looked_at_generation_.load(std::memory_order_acquire) != copies->generation())
    look_for_copy();
  Copy* copy = copy_.load(std::memory_order_acquire);
  if (copy == nullptr) {
    plan.add(open_at_origin(), offset, into);
    return copies->was_read_at_origin(name_, block_count_, into.size());
  }
  // What is part of a block cannot be compared with its hash without the rest.
  if (const uint64_t before = offset % kBlockBytes; before != 0) {
    const size_t part = std::min<uint64_t>(into.size(), kBlockBytes - before);
    read_part(*copy, offset, into.first(part));
    offset += part;
    into = into.subspan(part);
  }
  const size_t whole = into.size() / kBlockBytes * kBlockBytes;
  if (whole > 0) plan.add_checked(copy->object(), offset, into.first(whole), *copy);
  if (whole < into.size()) read_part(*copy, offset + whole, into.subspan(whole));
}

void BlockSource::Segment::read_part(Copy& copy, uint64_t offset, MutableBytes into) {
  const uint64_t before = offset % kBlockBytes;
  alignas(kBlockBytes) std::array<std::byte, kBlockBytes> block;
  ReadPlan plan;
  plan.add_checked(copy.object(), offset - before, block, copy);
  plan.run();
  std::memcpy(into.data(), block.data() + before, into.size());
}

// Wherever it is: at the origin, or in another copy than the one that has been left.
void BlockSource::Segment::read_elsewhere(uint64_t offset, MutableBytes into) {
  try {
    read_at_origin(offset, into);
    source_.copies_.load()->was_read_at_origin(name_, block_count_, into.size());
  } catch (const Error&) {
    look_for_copy();
    Copy* copy = copy_.load(std::memory_order_acquire);
    if (copy == nullptr || !copy->begin()) throw;
    const ReadPiece piece{&copy->object(), offset, into};
    std::exception_ptr error;
    try {
      piece.object->read(offset, into);
    } catch (...) {
      error = std::current_exception();
    }
    if (!copy->end(piece, error)) throw;
  }
}

// One thread looks; the others wait for it where they have no copy to go on with, but not for long.
void BlockSource::Segment::look_for_copy() {
  {
    const Lock guard(copy_mutex_);
    if (is_looking_) {
      const auto patience_ends = looking_since_ + kCopyWait;
      while (is_looking_ && copy_.load(std::memory_order_relaxed) == nullptr &&
             std::chrono::steady_clock::now() < patience_ends)
        copy_found_.wait_until(copy_mutex_, patience_ends);
      return;
    }
    is_looking_ = true;
    is_asked_again_ = false;
    looking_since_ = std::chrono::steady_clock::now();
  }
  SegmentCopies& copies = *source_.copies_.load();
  const uint64_t generation = copies.generation();
  std::list<Copy> found;
  try {
    auto copy = copies.open(name_, block_count_);
    if (copy && copy->table().size() == block_count_) found.emplace_back(*this, std::move(copy));
  } catch (const std::bad_alloc&) {  // then the origin serves
  }
  const Lock guard(copy_mutex_);
  copy_.store(found.empty() ? nullptr : &found.front(), std::memory_order_release);
  owned_copy_.swap(found);
  source_.keep_unused(found);
  if (!is_asked_again_) looked_at_generation_.store(generation, std::memory_order_release);
  is_looking_ = false;
  copy_found_.notify_all();
}

void BlockSource::Segment::look_again() {
  const Lock guard(copy_mutex_);
  is_asked_again_ = true;
  looked_at_generation_.store(0, std::memory_order_release);
}

void BlockSource::Segment::leave(const Copy& copy) noexcept {
  const Lock guard(copy_mutex_);
  if (owned_copy_.empty() || &owned_copy_.front() != &copy) return;
  copy_.store(nullptr, std::memory_order_release);
  source_.keep_unused(owned_copy_);
}

}  // namespace tplstore
