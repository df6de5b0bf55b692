// Linear probing over an array of keys and one of places. The high bits of a key say where it
// belongs, so a larger table is filled without hashing anything again.
#include "transfer/block_index.h"

#include <algorithm>

#include "template/block_source.h"
#include "template/store_identity.h"
#include "template/table_cache.h"

namespace tplstore {
namespace {

constexpr unsigned kBlockBits = 10;
static_assert(kSegmentBlocksMax == 1u << kBlockBits);
constexpr uint32_t kSegmentsMax = (1u << (32 - kBlockBits)) - 1;
constexpr uint64_t kCapacityMin = 1024;

constexpr uint64_t capacity_for(uint64_t block_count) {
  return std::max(kCapacityMin, block_count + block_count / 4 + 1);
}

}  // namespace

uint64_t BlockIndex::load(const TemplateStorage& storage, BlockSource& blocks) {
  const HashSecret secret = load_identity(storage.store).secret;
  const std::vector<Hash128> names = list_segments(storage.segments);
  reserve(used_ + names.size() * kSegmentBlocksMax);
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

void BlockIndex::rebuild(uint64_t capacity) {
  std::vector<uint64_t> old_keys(capacity);
  std::vector<uint32_t> old_locations(capacity);
  old_keys.swap(keys_);
  old_locations.swap(locations_);
  for (uint64_t i = 0; i < old_locations.size(); ++i) {
    if (old_locations[i] != 0) place(old_keys[i], old_locations[i]);
  }
}

void BlockIndex::reserve(uint64_t block_count) {
  if (capacity_for(block_count) > keys_.size()) rebuild(capacity_for(block_count));
}

void BlockIndex::insert(const Hash128& hash, BlockLocation location) {
  ensure(location.block < kSegmentBlocksMax, "a segment has at most 1024 blocks");
  if (location.segment >= kSegmentsMax) return;
  const uint32_t packed = (location.segment << kBlockBits | location.block) + 1;
  if (const auto known = find_slots(hash.low); known.count == kCandidatesMax) {
    locations_[known.slots[kCandidatesMax - 1]] = packed;
    return;
  }
  if ((used_ + 1) * 5 > keys_.size() * 4) rebuild(std::max(kCapacityMin, keys_.size() * 3 / 2));
  place(hash.low, packed);
  ++used_;
}

BlockIndex::Slots BlockIndex::find_slots(uint64_t key) const {
  Slots found;
  if (keys_.empty()) return found;
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
  return keys_.capacity() * sizeof(uint64_t) + locations_.capacity() * sizeof(uint32_t) +
         segments_.capacity() * sizeof(SegmentEntry) + names_.size() * 48;
}

}  // namespace tplstore
