// Slots, the arrays that lead to them, and the order in which both are given up.
//
// A miss takes the mutex, a hit never does. What a request has found by way of an array stays what
// it is until the request ends: arrays and slots that are given up wait for that in maintain().
#include "boot/cell_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/pointer_table.h"

namespace tplstore {
namespace {

// An entry of an array: 0, or the slot + 1, which may still be coming.
constexpr uint32_t kAbsent = 0;
constexpr uint32_t kComingBit = uint32_t{1} << 31;
constexpr uint32_t kArrayBlocks = 1024;
constexpr uint32_t kNone = UINT32_MAX;   // ends a list of slots
constexpr uint64_t kStepsMax = 1 << 16;  // of the clock's hand, at a time

bool is_coming(uint32_t entry) { return (entry & kComingBit) != 0; }
bool is_there(uint32_t entry) { return entry != kAbsent && !is_coming(entry); }
uint32_t slot_in(uint32_t entry) { return (entry & ~kComingBit) - 1; }

template <typename T>
T* map_memory(uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<T*>(memory);
}

std::unique_ptr<std::byte[], decltype(&std::free)> aligned_bytes(size_t bytes) {
  void* memory = std::aligned_alloc(kBlockBytes, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return {static_cast<std::byte*>(memory), &std::free};
}

// memcpy() leaves as much as a whole cell to `rep movsb`, which takes four times as long on AMD's
// processors where source and target begin at nearly the same place of their pages: and a cell
// begins with its page, and what nbdkit has it read into shortly behind the begin of one.
void copy_from_cell(std::byte* into, const std::byte* from, size_t size) {
  constexpr size_t kPieceBytes = 1024;
  for (size_t at = 0; at < size; at += kPieceBytes)
    std::memcpy(into + at, from + at, std::min(kPieceBytes, size - at));
}

}  // namespace

struct CellMemory::Array {
  std::array<std::atomic<uint32_t>, kArrayBlocks> entries{};
  uint32_t cells = 0;  // entries that are not absent; under the memory's mutex
};

// --- a file

class CellMemory::File final : public CellFile {
 public:
  File(CellMemory& memory, const CellFileKey& key) : memory_(memory), key_(key) {}

  void plan_read(CellSource& source, uint64_t offset, MutableBytes into, ReadPlan& plan,
                 CellWindow* window) override;

 private:
  friend class CellMemory;
  friend class Missed;

  // By a request that has entered the memory's.
  std::atomic<uint32_t>* find_entry(uint64_t block) const {
    Array* array = nullptr;
    if (key_.kind == CellFileKey::Kind::kSegment) {
      array = only_.load();
    } else if (const auto* table = regions_in_use_.load(std::memory_order_acquire)) {
      array = table->find(static_cast<uint32_t>(block / kArrayBlocks));
    }
    return array == nullptr ? nullptr : &array->entries[block % kArrayBlocks];
  }
  uint32_t entry_of(uint64_t block) const {
    const auto* entry = find_entry(block);
    return entry == nullptr ? kAbsent : entry->load();
  }
  // Whether its cells have places here at all.
  bool has_place(uint64_t end) const {
    return end <= (key_.kind == CellFileKey::Kind::kSegment ? uint64_t{kArrayBlocks}
                                                            : uint64_t{UINT32_MAX});
  }

  CellMemory& memory_;
  const CellFileKey key_;
  std::atomic<bool> has_cells_{false};
  std::atomic<Array*> only_{nullptr};  // a segment's
  std::atomic<PointerTable<Array>*> regions_in_use_{nullptr};
  // Under the memory's mutex.
  std::unique_ptr<PointerTable<Array>> regions_;
  uint64_t regions_bytes_ = 0;  // that are counted
  std::map<uint32_t, std::unique_ptr<Array>> arrays_;
  uint64_t cells_ = 0;
};

// nullptr where it does not fit.
CellMemory::Array* CellMemory::make_array(File& file, uint64_t block) {
  const auto region = static_cast<uint32_t>(block / kArrayBlocks);
  if (const auto found = file.arrays_.find(region); found != file.arrays_.end())
    return found->second.get();
  uint64_t regions_bytes = 0;
  if (file.key_.kind == CellFileKey::Kind::kVersion) {
    if (!file.regions_) file.regions_ = std::make_unique<PointerTable<Array>>();
    file.regions_->make_room(region);
    regions_bytes = file.regions_->memory_bytes();
    file.regions_in_use_.store(file.regions_.get(), std::memory_order_release);
  }
  auto made = std::make_unique<Array>();
  std::unique_ptr<Array>& array = file.arrays_[region];  // what may fail has been done
  if (!charge(sizeof(Array) + regions_bytes - file.regions_bytes_)) {
    file.arrays_.erase(region);
    return nullptr;
  }
  file.regions_bytes_ = regions_bytes;
  array = std::move(made);
  if (file.regions_)
    file.regions_->put(region, array.get());
  else
    file.only_.store(array.get());
  return array.get();
}

void CellMemory::remove_array(File& file, uint64_t block) {
  const auto region = static_cast<uint32_t>(block / kArrayBlocks);
  if (file.regions_)
    file.regions_->put(region, nullptr);
  else
    file.only_.store(nullptr);
  const auto found = file.arrays_.find(region);
  emptied_.push_back(std::move(found->second));
  file.arrays_.erase(found);
}

// --- a miss

// What a request takes in, and what it waits for.
class CellMemory::Missed final : public ReadStep {
 public:
  Missed(File& file, CellSource& source, uint64_t offset, MutableBytes into, Window* window)
      : file_(file), source_(source), offset_(offset), into_(into), window_(window) {}

  // Cells [first, end), of which some are being read by others.
  void plan(uint64_t first, uint64_t end, ReadPlan& plan);
  void use_what_was_read() override;
  void wait_for_others() override;

 private:
  // Cells that are next to each other in the file, read at once; where their slots are not, by way
  // of other memory.
  struct Stretch {
    size_t first_part;
    size_t part_count;
    std::unique_ptr<std::byte[], decltype(&std::free)> bounce;
  };
  struct Taken {
    Claim claim;
    std::vector<Stretch> stretches;
  };
  struct Piece {
    uint64_t block;
    std::atomic<uint32_t>* entry;
  };

  void plan_taken(Taken& taken, ReadPlan& plan);
  void use(Taken& taken, const Stretch& stretch);
  bool make_sound(uint64_t first, MutableBytes blocks);
  void copy(uint64_t block, uint32_t slot);
  // The part of the request that is in these cells.
  MutableBytes part_of(uint64_t first, uint64_t end) const {
    const uint64_t from = std::max(first * kBlockBytes, offset_);
    const uint64_t to = std::min(end * kBlockBytes, offset_ + into_.size());
    return into_.subspan(from - offset_, to - from);
  }
  uint64_t offset_in(uint64_t first) const { return std::max(first * kBlockBytes, offset_); }

  File& file_;
  CellSource& source_;
  const uint64_t offset_;
  const MutableBytes into_;
  Window* const window_;  // or none
  std::vector<Taken> taken_;
  std::vector<Piece> awaited_;
};

// Of a cell that has come meanwhile.
void CellMemory::Missed::copy(uint64_t block, uint32_t slot) {
  const MutableBytes part = part_of(block, block + 1);
  std::memcpy(part.data(), file_.memory_.memory_of(slot) + offset_in(block) % kBlockBytes,
              part.size());
  file_.memory_.note_use(slot);
  if (window_ != nullptr) window_->note_hit(slot);
}

void CellMemory::Missed::plan(uint64_t first, uint64_t end, ReadPlan& plan) {
  Taken taken;
  if (window_ != nullptr && window_->is_filling())
    file_.memory_.claim(file_, first, end - first, *window_, false, taken.claim);
  const std::span<const Claim::Part> parts = taken.claim.parts();
  size_t next_part = 0;
  for (uint64_t block = first; block < end;) {
    if (next_part < parts.size() && parts[next_part].first == block) {
      block += parts[next_part++].count();
      continue;
    }
    // Somebody else may have taken it in since, or is about to; or it does not enter.
    std::atomic<uint32_t>* entry = file_.find_entry(block);
    const uint32_t seen = entry == nullptr ? kAbsent : entry->load();
    if (is_coming(seen)) {
      awaited_.push_back({block++, entry});
      continue;
    }
    if (is_there(seen)) {
      copy(block++, slot_in(seen));
      continue;
    }
    uint64_t stop = block + 1;
    while (stop < end && (next_part == parts.size() || parts[next_part].first != stop) &&
           file_.entry_of(stop) == kAbsent)
      ++stop;
    source_.plan_stored(offset_in(block), part_of(block, stop), plan);
    block = stop;
  }
  if (!parts.empty()) {
    plan_taken(taken, plan);
    taken_.push_back(std::move(taken));
  }
}

void CellMemory::Missed::plan_taken(Taken& taken, ReadPlan& plan) {
  const std::span<const Claim::Part> parts = taken.claim.parts();
  for (size_t i = 0; i < parts.size();) {
    size_t stop = i + 1;
    uint64_t end = parts[i].first + parts[i].count();
    while (stop < parts.size() && parts[stop].first == end) end += parts[stop++].count();
    const size_t bytes = (end - parts[i].first) * kBlockBytes;
    Stretch stretch{i, stop - i, {nullptr, &std::free}};
    MutableBytes memory = parts[i].memory;
    if (stretch.part_count > 1) {
      stretch.bounce = aligned_bytes(bytes);
      memory = {stretch.bounce.get(), bytes};
    }
    source_.plan_stored(parts[i].first * kBlockBytes, memory, plan);
    taken.stretches.push_back(std::move(stretch));
    i = stop;
  }
}

void CellMemory::Missed::use_what_was_read() {
  for (Taken& taken : taken_)
    for (const Stretch& stretch : taken.stretches) use(taken, stretch);
}

void CellMemory::Missed::use(Taken& taken, const Stretch& stretch) {
  const auto parts = taken.claim.parts().subspan(stretch.first_part, stretch.part_count);
  if (stretch.bounce) {
    const std::byte* from = stretch.bounce.get();
    for (const Claim::Part& part : parts) {
      std::memcpy(part.memory.data(), from, part.memory.size());
      from += part.memory.size();
    }
  }
  for (const Claim::Part& part : parts) {
    const bool is_sound = make_sound(part.first, part.memory);
    const MutableBytes wanted = part_of(part.first, part.first + part.count());
    std::memcpy(wanted.data(),
                part.memory.data() + (offset_in(part.first) - part.first * kBlockBytes),
                wanted.size());
    if (is_sound) taken.claim.publish(part.first, part.count());
  }
}

// False when nobody can tell whether all of them are.
bool CellMemory::Missed::make_sound(uint64_t first, MutableBytes blocks) {
  const auto first32 = static_cast<uint32_t>(first);
  if (source_.are_sound(first32, blocks)) return true;
  bool all_are = true;
  for (uint32_t i = 0; i < blocks.size() / kBlockBytes; ++i) {
    const MutableBytes block = blocks.subspan(uint64_t{i} * kBlockBytes, kBlockBytes);
    if (source_.are_sound(first32 + i, block)) continue;
    file_.memory_.verify_failures_.fetch_add(1, std::memory_order_relaxed);
    if (!source_.read_sound(first32 + i, block)) all_are = false;
  }
  return all_are;
}

void CellMemory::Missed::wait_for_others() {
  if (awaited_.empty()) return;
  file_.memory_.waits_.fetch_add(1, std::memory_order_relaxed);
  for (const Piece& piece : awaited_) {
    uint32_t seen = piece.entry->load();
    if (is_coming(seen)) {
      piece.entry->wait(seen);
      seen = piece.entry->load();
    }
    if (is_there(seen)) {
      copy(piece.block, slot_in(seen));
      continue;
    }
    // What the other one met is not this one's business.
    ReadPlan own;
    source_.plan_stored(offset_in(piece.block), part_of(piece.block, piece.block + 1), own);
    own.run();
  }
}

void CellMemory::File::plan_read(CellSource& source, uint64_t offset, MutableBytes into,
                                 ReadPlan& plan, CellWindow* window_of) {
  auto* window = static_cast<Window*>(window_of);
  if (into.empty()) return;
  const uint64_t end = (offset + into.size() - 1) / kBlockBytes + 1;
  if ((window == nullptr && !has_cells_.load(std::memory_order_relaxed)) || !has_place(end))
    return source.plan_stored(offset, into, plan);
  plan.enter(memory_.requests_);
  std::unique_ptr<Missed> missed;
  uint64_t hits = 0;
  uint64_t misses = 0;
  for (uint64_t block = offset / kBlockBytes; block < end;) {
    const uint32_t entry = entry_of(block);
    if (is_there(entry)) [[likely]] {
      const uint32_t slot = slot_in(entry);
      const uint64_t from = std::max(block * kBlockBytes, offset);
      const uint64_t to = std::min((block + 1) * kBlockBytes, offset + into.size());
      copy_from_cell(into.data() + (from - offset), memory_.memory_of(slot) + from % kBlockBytes,
                     to - from);
      memory_.note_use(slot);
      if (window != nullptr) window->note_hit(slot);
      ++hits;
      ++block;
      continue;
    }
    uint64_t stop = block + 1;
    while (stop < end && !is_there(entry_of(stop))) ++stop;
    misses += stop - block;
    if (!missed) missed = std::make_unique<Missed>(*this, source, offset, into, window);
    missed->plan(block, stop, plan);
    block = stop;
  }
  if (missed) plan.add_step(std::move(missed));
  Line& line = memory_.lines_[thread_line()];
  if (hits > 0) line.hits.fetch_add(hits, std::memory_order_relaxed);
  if (misses > 0) line.misses.fetch_add(misses, std::memory_order_relaxed);
  if (window == nullptr) return;
  if (hits > 0) window->hits_.fetch_add(hits, std::memory_order_relaxed);
  if (misses > 0) window->misses_.fetch_add(misses, std::memory_order_relaxed);
}

// --- the memory

CellMemory::CellMemory(uint64_t cap_bytes, bool huge_pages, std::function<void()> wake)
    : cap_(cap_bytes),
      slot_max_(static_cast<uint32_t>(std::min<uint64_t>(cap_bytes / kSlotBytes, kComingBit - 2))),
      reserve_(std::clamp<uint32_t>(slot_max_ / 16, 1, 1024)),
      wake_(std::move(wake)),
      memory_(map_memory<std::byte>(std::max<uint64_t>(cap_bytes, kBlockBytes))),
      slots_(map_memory<Slot>((uint64_t{slot_max_} + 1) * sizeof(Slot))),
      free_(kNone),
      evicted_(kNone) {
  if (huge_pages) madvise(memory_, cap_bytes, MADV_HUGEPAGE);
}

CellMemory::~CellMemory() {
  munmap(memory_, std::max<uint64_t>(cap_, kBlockBytes));
  munmap(slots_, (uint64_t{slot_max_} + 1) * sizeof(Slot));
}

template <typename Transition>
std::optional<SlotState> CellMemory::change(uint32_t slot, Transition transition) const {
  const auto word = word_of(slot);
  uint32_t seen = word.load();
  while (true) {
    const SlotState state = SlotState::of(seen);
    const std::optional<SlotState> next = transition(state);
    if (!next) return {};
    if (word.compare_exchange_weak(seen, next->word())) return state;
  }
}

void CellMemory::note_use(uint32_t slot) {
  // Most cells are hit again and again.
  if (!SlotState::of(word_of(slot).load(std::memory_order_relaxed)).use()) return;
  const auto before = change(slot, [](const SlotState& state) { return state.use(); });
  if (before && before->is_ahead) ahead_used_.fetch_add(1, std::memory_order_relaxed);
}

std::shared_ptr<CellFile> CellMemory::file(const CellFileKey& key) {
  const Lock guard(mutex_);
  std::shared_ptr<File>& file = files_[key];
  if (!file) file = std::make_shared<File>(*this, key);
  return file;
}

uint64_t CellMemory::room() const {
  return std::min<uint64_t>(uint64_t{free_count_} + (slot_max_ - fresh_),
                            (cap_ - used_) / kSlotBytes);
}

bool CellMemory::charge(uint64_t bytes) {
  if (bytes > cap_ - used_) {
    is_room_wanted_ = true;
    return false;
  }
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return true;
}

bool CellMemory::reserve(uint64_t bytes) {
  const Lock guard(mutex_);
  return charge(bytes);
}

void CellMemory::release(uint64_t bytes) noexcept {
  const Lock guard(mutex_);
  used_ -= bytes;
}

std::optional<CellMemory::Beside> CellMemory::hold_beside(uint64_t bytes) {
  if (!reserve(bytes)) return {};
  return Beside(*this, bytes);
}

std::optional<uint32_t> CellMemory::take_slot() {
  if ((free_ == kNone && fresh_ == slot_max_) || !charge(kSlotBytes)) {
    is_room_wanted_ = true;
    return {};
  }
  if (free_ == kNone) return fresh_++;
  const uint32_t slot = free_;
  free_ = slots_[slot].block;
  --free_count_;
  return slot;
}

// Of a slot whose word says that it is free.
void CellMemory::put_free(uint32_t slot) {
  used_ -= kSlotBytes;
  --cells_;
  if (free_count_ >= reserve_) madvise(memory_of(slot), kBlockBytes, MADV_DONTNEED);
  slots_[slot].block = free_;
  free_ = slot;
  ++free_count_;
}

void CellMemory::claim(File& file, uint64_t first, uint64_t count, Window& window, bool is_ahead,
                       Claim& into) {
  into.memory_ = this;
  into.file_ = &file;
  into.window_ = &window;
  into.is_ahead_ = is_ahead;
  if (!file.has_place(first + count)) return;
  into.published_.reserve(count);
  bool wants_room;
  {
    const Lock guard(mutex_);
    for (uint64_t block = first; block < first + count; ++block) {
      Array* array = make_array(file, block);
      if (array == nullptr) {
        refused_ += first + count - block;
        break;
      }
      std::atomic<uint32_t>& entry = array->entries[block % kArrayBlocks];
      if (entry.load() != kAbsent) continue;
      // What may fail comes before the slot is taken.
      if (into.parts_.size() == into.parts_.capacity())
        into.parts_.reserve(2 * into.parts_.size() + 1);
      const auto slot = take_slot();
      if (!slot) {
        ++refused_;
        if (array->cells == 0) remove_array(file, block);
        continue;
      }
      slots_[*slot].file = &file;
      slots_[*slot].block = static_cast<uint32_t>(block);
      change(*slot, [is_ahead](const SlotState& state) { return state.take(is_ahead); });
      window.note_taken(*slot, is_ahead);
      entry.store(kComingBit | (*slot + 1));
      ++cells_;
      ++array->cells;
      ++file.cells_;
      file.has_cells_.store(true, std::memory_order_relaxed);
      std::byte* memory = memory_of(*slot);
      if (!into.parts_.empty()) {
        Claim::Part& last = into.parts_.back();
        if (last.first + last.count() == block &&
            last.memory.data() + last.memory.size() == memory) {
          last.memory = {last.memory.data(), last.memory.size() + kBlockBytes};
          into.published_.push_back(false);
          continue;
        }
      }
      into.parts_.push_back({block, {memory, kBlockBytes}, into.published_.size()});
      into.published_.push_back(false);
    }
    wants_room = is_room_wanted_ || room() < reserve_;
    is_room_wanted_ = wants_room;
  }
  if (wants_room) wake_();
}

CellMemory::Claim CellMemory::claim(CellFile& file, uint64_t first, uint64_t count,
                                    Window& window) {
  Claim claimed;
  claim(static_cast<File&>(file), first, count, window, true, claimed);
  return claimed;
}

// Its cell is absent from now on; its memory is still what requests have found.
void CellMemory::evict(uint32_t slot) {
  File& file = *slots_[slot].file;
  const uint64_t block = slots_[slot].block;
  Array& array = *file.arrays_.at(static_cast<uint32_t>(block / kArrayBlocks));
  array.entries[block % kArrayBlocks].store(kAbsent);
  if (--array.cells == 0) remove_array(file, block);
  if (--file.cells_ == 0) file.has_cells_.store(false, std::memory_order_relaxed);
  slots_[slot].block = evicted_;
  evicted_ = slot;
  ++evictions_;
}

void CellMemory::evict_for_room() {
  uint64_t found = room();
  // Twice around: the first time the hand only takes away that something was used.
  for (uint64_t steps = std::min<uint64_t>(2 * uint64_t{fresh_}, kStepsMax);
       steps > 0 && found < reserve_; --steps) {
    if (hand_ >= fresh_) hand_ = 0;
    const uint32_t slot = hand_++;
    bool is_evicted = false;
    change(slot, [&](const SlotState& state) {
      const auto next = state.pass();
      is_evicted = next && next->life == SlotLife::kEvicted;
      return next;
    });
    if (!is_evicted) continue;
    evict(slot);
    ++found;
  }
}

void CellMemory::forget_file(File& file) {
  std::vector<uint32_t> slots;
  for (const auto& [region, array] : file.arrays_)
    for (const auto& entry : array->entries)
      if (const uint32_t seen = entry.load(); is_there(seen)) slots.push_back(slot_in(seen));
  for (const uint32_t slot : slots)
    if (change(slot, [](const SlotState& state) { return state.evict(); })) evict(slot);
}

void CellMemory::forget(std::span<const CellFileKey> files) {
  {
    const Lock guard(mutex_);
    for (const CellFileKey& key : files)
      if (const auto found = files_.find(key); found != files_.end()) forget_file(*found->second);
  }
  wake_();
}

void CellMemory::forget_versions(const Uuid& volume, uint32_t from) {
  const Lock guard(mutex_);
  auto found = files_.lower_bound(CellFileKey::of_version(volume, from));
  while (found != files_.end() && found->first.kind == CellFileKey::Kind::kVersion &&
         found->first.volume == volume) {
    forget_file(*found->second);
    forgotten_.push_back(std::move(found->second));
    found = files_.erase(found);
  }
}

uint64_t CellMemory::count_there(CellFile& cells, uint64_t first, uint64_t count) {
  const auto& file = static_cast<File&>(cells);
  if (!file.has_cells_.load(std::memory_order_relaxed) || !file.has_place(first + count)) return 0;
  const GracePeriod::Request in_flight(requests_);
  uint64_t there = 0;
  for (uint64_t block = first; block < first + count; ++block)
    there += is_there(file.entry_of(block)) ? 1 : 0;
  return there;
}

uint64_t CellMemory::cached_bytes(std::span<const CellFileKey> files) {
  const Lock guard(mutex_);
  uint64_t cells = 0;
  for (const CellFileKey& key : files)
    if (const auto found = files_.find(key); found != files_.end()) cells += found->second->cells_;
  return cells * kBlockBytes;
}

// Files that nobody has and that have no cells.
void CellMemory::drop_unused_files() {
  uint64_t freed = 0;
  const auto is_unused = [&freed](const std::shared_ptr<File>& file) {
    if (file.use_count() > 1 || file->cells_ > 0) return false;
    freed += file->regions_bytes_;
    return true;
  };
  std::erase_if(files_, [&](const auto& known) { return is_unused(known.second); });
  std::erase_if(forgotten_, is_unused);
  used_ -= freed;
}

void CellMemory::maintain() {
  std::vector<uint32_t> slots;
  std::vector<std::unique_ptr<Array>> arrays;
  {
    const Lock guard(mutex_);
    drop_unused_files();
    if (is_room_wanted_) evict_for_room();
    is_room_wanted_ = false;
    for (uint32_t slot = evicted_; slot != kNone; slot = slots_[slot].block) slots.push_back(slot);
    evicted_ = kNone;
    arrays.swap(emptied_);
  }
  if (slots.empty() && arrays.empty()) return;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  const bool are_free = requests_.wait_for_requests_until(deadline);
  const Lock guard(mutex_);
  for (const uint32_t slot : slots) {
    if (are_free) {
      change(slot, [](const SlotState& state) { return state.release(); });
      put_free(slot);
    } else {
      slots_[slot].block = evicted_;
      evicted_ = slot;
    }
  }
  for (auto& array : arrays) {
    if (are_free)
      used_ -= sizeof(Array);
    else
      emptied_.push_back(std::move(array));
  }
}

CellMemoryStats CellMemory::stats() {
  CellMemoryStats stats;
  {
    const Lock guard(mutex_);
    stats.used = used_;
    stats.peak = peak_;
    stats.slots = cells_;
    stats.evictions = evictions_;
    stats.refused = refused_;
  }
  stats.cap = cap_;
  for (const Line& line : lines_) {
    stats.hits += line.hits.load(std::memory_order_relaxed);
    stats.misses += line.misses.load(std::memory_order_relaxed);
  }
  stats.fills = fills_.load(std::memory_order_relaxed);
  stats.fill_bytes = stats.fills * kBlockBytes;
  stats.waits = waits_.load(std::memory_order_relaxed);
  stats.verify_failures = verify_failures_.load(std::memory_order_relaxed);
  stats.prefetch_bytes = ahead_.load(std::memory_order_relaxed) * kBlockBytes;
  stats.prefetch_used = ahead_used_.load(std::memory_order_relaxed) * kBlockBytes;
  return stats;
}

// --- claims

CellMemory::Claim& CellMemory::Claim::operator=(Claim&& other) noexcept {
  abandon();
  memory_ = std::exchange(other.memory_, nullptr);
  file_ = other.file_;
  window_ = other.window_;
  is_ahead_ = other.is_ahead_;
  parts_ = std::move(other.parts_);
  published_ = std::move(other.published_);
  return *this;
}

uint32_t CellMemory::Claim::slot_of(const Part& part, uint64_t block) const {
  return static_cast<uint32_t>((part.memory.data() - memory_->memory_) / kBlockBytes +
                               (block - part.first));
}

void CellMemory::Claim::publish(uint64_t first, uint64_t count) {
  const auto part = std::prev(std::ranges::upper_bound(parts_, first, {}, &Part::first));
  for (uint64_t block = first; block < first + count; ++block) {
    published_[part->place + (block - part->first)] = true;
    const uint32_t slot = slot_of(*part, block);
    memory_->change(slot, [](const SlotState& state) { return state.publish(); });
    std::atomic<uint32_t>& entry = *file_->find_entry(block);
    entry.store(slot + 1);
    entry.notify_all();
  }
  memory_->fills_.fetch_add(count, std::memory_order_relaxed);
  if (is_ahead_) memory_->ahead_.fetch_add(count, std::memory_order_relaxed);
}

void CellMemory::Claim::abandon() noexcept {
  if (memory_ == nullptr) return;
  for (const Part& part : parts_) {
    for (uint64_t block = part.first; block < part.first + part.count(); ++block) {
      if (published_[part.place + (block - part.first)]) continue;
      const uint32_t slot = slot_of(part, block);
      const Lock guard(memory_->mutex_);
      std::atomic<uint32_t>& entry = *file_->find_entry(block);
      entry.store(kAbsent);
      entry.notify_all();
      window_->note_abandoned(slot, is_ahead_);
      memory_->change(slot, [](const SlotState& state) { return state.abandon(); });
      Array& array = *file_->arrays_.at(static_cast<uint32_t>(block / kArrayBlocks));
      if (--array.cells == 0) memory_->remove_array(*file_, block);
      if (--file_->cells_ == 0) file_->has_cells_.store(false, std::memory_order_relaxed);
      memory_->put_free(slot);
    }
  }
  memory_ = nullptr;
  parts_.clear();
}

// --- windows

CellMemory::Window::Window(CellMemory& memory)
    : memory_(memory), belongs_(nullptr, &std::free), read_(nullptr, &std::free) {
  const size_t words = memory.slot_max_ / 64 + 1;
  // Not resident where nothing is set.
  belongs_.reset(static_cast<uint64_t*>(std::calloc(words, sizeof(uint64_t))));
  read_.reset(static_cast<uint64_t*>(std::calloc(words, sizeof(uint64_t))));
  if (!belongs_ || !read_) throw std::bad_alloc();
}

CellMemory::Window::~Window() {
  for (uint32_t word = 0; word <= memory_.slot_max_ / 64; ++word) {
    for (uint64_t bits = belongs_[word]; bits != 0; bits &= bits - 1)
      memory_.change(word * 64 + static_cast<uint32_t>(std::countr_zero(bits)),
                     [](const SlotState& state) { return state.leave(); });
  }
}

std::unique_ptr<CellMemory::Window> CellMemory::open_window() {
  return std::unique_ptr<Window>(new Window(*this));
}

// Whether it was not set before.
bool CellMemory::Window::set(const Bits& bits, uint32_t slot) {
  const std::atomic_ref word(bits[slot / 64]);
  const uint64_t bit = uint64_t{1} << slot % 64;
  if ((word.load(std::memory_order_relaxed) & bit) != 0) return false;
  return (word.fetch_or(bit) & bit) == 0;
}

void CellMemory::Window::clear(const Bits& bits, uint32_t slot) {
  std::atomic_ref(bits[slot / 64]).fetch_and(~(uint64_t{1} << slot % 64));
}

void CellMemory::Window::note_hit(uint32_t slot) {
  if (!set(read_, slot)) return;
  first_touch_hits_.fetch_add(1, std::memory_order_relaxed);
  const std::atomic_ref word(belongs_[slot / 64]);
  if ((word.load() >> slot % 64 & 1) != 0) return;
  // One that is just being evicted belongs to nobody.
  if (!memory_.change(slot, [](const SlotState& state) { return state.join(); })) {
    clear(read_, slot);
    return;
  }
  set(belongs_, slot);
  cells_.fetch_add(1, std::memory_order_relaxed);
}

void CellMemory::Window::note_taken(uint32_t slot, bool is_ahead) {
  set(belongs_, slot);
  cells_.fetch_add(1, std::memory_order_relaxed);
  if (is_ahead)
    ahead_.fetch_add(1, std::memory_order_relaxed);
  else
    set(read_, slot);
}

void CellMemory::Window::note_abandoned(uint32_t slot, bool is_ahead) {
  clear(belongs_, slot);
  clear(read_, slot);
  cells_.fetch_sub(1, std::memory_order_relaxed);
  if (is_ahead) ahead_.fetch_sub(1, std::memory_order_relaxed);
}

WindowUse CellMemory::Window::use() const {
  WindowUse use;
  use.hits = hits_.load(std::memory_order_relaxed);
  use.misses = misses_.load(std::memory_order_relaxed);
  use.cells = cells_.load(std::memory_order_relaxed);
  use.first_touch_hits = first_touch_hits_.load(std::memory_order_relaxed);
  use.prefetched = ahead_.load(std::memory_order_relaxed);
  for (uint32_t word = 0; word <= memory_.slot_max_ / 64; ++word) {
    for (uint64_t bits = std::atomic_ref(belongs_[word]).load(); bits != 0; bits &= bits - 1) {
      const uint32_t slot = word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
      if (SlotState::of(memory_.word_of(slot).load()).is_ahead) ++use.prefetched_unused;
    }
  }
  return use;
}

}  // namespace tplstore
