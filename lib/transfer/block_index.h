// Where the store already has a block: content hash → (segment, block), in memory, for an import.
//
// A flat open-addressing table with linear probing, 12 bytes per slot: 64 bits of the hash and a
// packed location. It is filled to 92 % at most and grows by a fifth, so it takes 13 to 15.7 bytes
// per block; while it grows it gives back the old one page by page, so it takes no more then. A
// segment's name adds 100 bytes. A store of 1 TiB of unique template data needs 4 GiB.
//
// A find is a hint, never a proof: half a hash is kept, and XXH3 is no MAC.
// Whoever references a block compares its bytes first (transfer/block_matcher.h).
//
// Limit: 2^22 - 1 segments (16 TiB of data); what lies beyond is not indexed and is stored again.
// Thread safety: none; one import's.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "template/origin.h"
#include "template/segment.h"

namespace tplstore {

struct BlockLocation {
  uint32_t segment;  // the index's own number of the segment
  uint32_t block;
  bool operator==(const BlockLocation&) const = default;
};

class BlockIndex {
 public:
  // Equal content can be in several places (it was given up in some, or two imports ran at once).
  // Of more than these the first and the last are kept.
  static constexpr size_t kCandidatesMax = 4;
  struct Candidates {
    std::array<BlockLocation, kCandidatesMax> locations;
    size_t count = 0;
    std::span<const BlockLocation> all() const& { return {locations.data(), count}; }
    std::span<const BlockLocation> all() const&& = delete;  // it would point to what is gone
  };

  // Indexes all segments of the store, opening those that are in no table cache
  // (template/table_cache.h). Segments whose table cannot be read are left out: their
  // blocks are stored again. How many those are.
  uint64_t load(const TemplateStorage& storage, BlockSource& blocks);

  // A segment that is there, with all its blocks.
  void add_stored(const Hash128& name, const std::vector<Hash128>& table);
  bool has_segment(const Hash128& name) const { return names_.contains(name); }

  // The number of a segment that is being built. It has no blocks for anybody but find() until it
  // is named.
  uint32_t begin_segment();
  void name_segment(uint32_t segment, const Hash128& name, uint32_t block_count);
  void insert(const Hash128& hash, BlockLocation location);
  Candidates find(const Hash128& hash) const;

  struct SegmentEntry {
    Hash128 name;
    uint32_t block_count;  // 0 while it is being built, and if it never came to be
  };
  const SegmentEntry& segment(uint32_t number) const { return segments_[number]; }
  uint32_t segment_count() const { return static_cast<uint32_t>(segments_.size()); }
  uint64_t block_count() const { return used_; }
  uint64_t memory_bytes() const;

 private:
  // Zeroes at first, which take no memory until they are written to.
  template <typename T>
  class Pages {
   public:
    explicit Pages(uint64_t count = 0);
    Pages(Pages&& other) noexcept
        : items_(std::exchange(other.items_, nullptr)), count_(std::exchange(other.count_, 0)) {}
    Pages& operator=(Pages&& other) noexcept {
      std::swap(items_, other.items_);
      std::swap(count_, other.count_);
      return *this;
    }
    ~Pages();
    T& operator[](uint64_t i) { return items_[i]; }
    const T& operator[](uint64_t i) const { return items_[i]; }
    uint64_t size() const { return count_; }
    // Gives back what the items before this one took.
    void forget_before(uint64_t i);

   private:
    T* items_ = nullptr;
    uint64_t count_ = 0;
  };
  struct Slots {
    std::array<uint64_t, kCandidatesMax> slots;
    size_t count = 0;
  };
  Slots find_slots(uint64_t key) const;
  void place(uint64_t key, uint32_t packed);
  uint64_t home(uint64_t key) const;
  void grow();

  Pages<uint64_t> keys_;
  Pages<uint32_t> locations_;  // 0: free; else segment << 10 | block, plus 1
  uint64_t used_ = 0;
  std::vector<SegmentEntry> segments_;
  std::set<Hash128> names_;
};

}  // namespace tplstore
