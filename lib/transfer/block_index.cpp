// Linear probing over an array of keys and one of places. The high bits of a key say where it
// belongs, so a larger table is filled without hashing anything again.
#include "transfer/block_index.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "template/block_source.h"
#include "template/store_identity.h"
#include "template/table_cache.h"

namespace tplstore {
namespace {

constexpr unsigned kBlockBits = 10;
static_assert(kSegmentBlocksMax == 1u << kBlockBits);
constexpr uint32_t kSegmentsMax = (1u << (32 - kBlockBits)) - 1;
constexpr uint64_t kCapacityMin = 1024;

}  // namespace

template <typename T>
BlockIndex::Pages<T>::Pages(uint64_t count) : count_(count) {
  if (count == 0) return;
  void* memory = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  items_ = static_cast<T*>(memory);
}

template <typename T>
BlockIndex::Pages<T>::~Pages() {
  if (items_ != nullptr) munmap(items_, count_ * sizeof(T));
}

template <typename T>
void BlockIndex::Pages<T>::forget_before(uint64_t i) {
  (void)madvise(items_, round_down(i * sizeof(T), kBlockBytes), MADV_DONTNEED);
}

template class BlockIndex::Pages<uint64_t>;
template class BlockIndex::Pages<uint32_t>;

uint64_t BlockIndex::load(const TemplateStorage& storage, BlockSource& blocks) {
  const HashSecret secret = load_identity(storage.store).secret;
  const std::vector<Hash128> names = list_segments(storage.segments);
  uint64_t unreadable = 0;
  TableCache cache(storage.segments, secret, names);
  cache.read([&](const Hash128& name, const TableCache::Table& table) { add_stored(name, table); });
  for (const Hash128& name : names) {
    if (cache.has(name)) continue;
    try {
      const TableCache::Table table = blocks.hold(name, 0)->read_table(secret);
      add_stored(name, table);
      cache.add(name, table);
    } catch (const Error&) {
      ++unreadable;
    }
  }
  cache.write();
  return unreadable;
}

void BlockIndex::add_stored(const Hash128& name, const std::vector<Hash128>& table) {
  const uint32_t number = begin_segment();
  name_segment(number, name, static_cast<uint32_t>(table.size()));
  for (uint32_t block = 0; block < table.size(); ++block) insert(table[block], {number, block});
}

uint32_t BlockIndex::begin_segment() {
  segments_.push_back({});
  return segment_count() - 1;
}

void BlockIndex::name_segment(uint32_t segment, const Hash128& name, uint32_t block_count) {
  segments_[segment] = {name, block_count};
  names_.insert(name);
}

// The high bits of the key choose the slot, so a table of any size can be rebuilt from its keys.
uint64_t BlockIndex::home(uint64_t key) const {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((Wide{key} * keys_.size()) >> 64);
}

void BlockIndex::place(uint64_t key, uint32_t packed) {
  uint64_t slot = home(key);
  while (locations_[slot] != 0) slot = slot + 1 == locations_.size() ? 0 : slot + 1;
  keys_[slot] = key;
  locations_[slot] = packed;
}

// In rising order of the keys, but for a few at the end.
void BlockIndex::grow() {
  constexpr uint64_t kStep = 1 << 20;
  const uint64_t capacity = std::max(kCapacityMin, keys_.size() / 5 * 6);
  Pages<uint64_t> keys(capacity);
  Pages<uint32_t> locations(capacity);
  std::swap(keys, keys_);
  std::swap(locations, locations_);
  for (uint64_t i = 0; i < locations.size(); ++i) {
    if (i % kStep == 0) {
      keys.forget_before(i);
      locations.forget_before(i);
    }
    if (locations[i] != 0) place(keys[i], locations[i]);
  }
}

void BlockIndex::insert(const Hash128& hash, BlockLocation location) {
  ensure(location.block < kSegmentBlocksMax, "a segment has at most 1024 blocks");
  if (location.segment >= kSegmentsMax) return;
  const uint32_t packed = (location.segment << kBlockBits | location.block) + 1;
  if (const auto known = find_slots(hash.low); known.count == kCandidatesMax) {
    locations_[known.slots[kCandidatesMax - 1]] = packed;
    return;
  }
  if ((used_ + 1) * 25 > keys_.size() * 23) grow();
  place(hash.low, packed);
  ++used_;
}

BlockIndex::Slots BlockIndex::find_slots(uint64_t key) const {
  Slots found;
  if (keys_.size() == 0) return found;
  uint64_t slot = home(key);
  while (locations_[slot] != 0 && found.count < kCandidatesMax) {
    if (keys_[slot] == key) found.slots[found.count++] = slot;
    slot = slot + 1 == locations_.size() ? 0 : slot + 1;
  }
  return found;
}

BlockIndex::Candidates BlockIndex::find(const Hash128& hash) const {
  const Slots slots = find_slots(hash.low);
  Candidates found;
  for (; found.count < slots.count; ++found.count) {
    const uint32_t packed = locations_[slots.slots[found.count]] - 1;
    found.locations[found.count] = {packed >> kBlockBits, packed & (kSegmentBlocksMax - 1)};
  }
  return found;
}

uint64_t BlockIndex::memory_bytes() const {
  return keys_.size() * (sizeof(uint64_t) + sizeof(uint32_t)) +
         segments_.capacity() * sizeof(SegmentEntry) + names_.size() * 48;
}

}  // namespace tplstore
