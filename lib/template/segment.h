// Segments: the immutable objects that hold the data of templates.
//
//   | block 0 | block 1 | ... | block n-1 | table: n hashes | trailer |
//     4096 bytes each                       16 bytes each     64 bytes
//
// Block i is at i * 4096, so a template's runs address a segment without any header in the way.
// The table has the XXH3-128 of every block; the segment's name is the XXH3-128 of the table, so
// any part of a segment can be verified alone: a block against the table, the table against the
// name. Both are made with the store's secret (template/store_identity.h), so a segment of another
// store does not have its name. The object is "segments/<first two hex digits>/<all 32 hex
// digits>". n is 1 to 1024.
//
// XXH3 is no MAC, and guests may have seen what their blocks share. Therefore nothing here takes
// equal names for equal content: publishing under a name that exists compares byte by byte.
//
// Thread safety: functions, all; a SegmentBuilder belongs to one thread.
// Errors: EIO for anything that is damaged, with what is wrong and what to do.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace tplstore {

inline constexpr uint32_t kSegmentBlocksMax = 1024;
inline constexpr uint64_t kSegmentMagic = 0x316d6765736c7074;  // "tplsegm1"
inline constexpr uint32_t kSegmentFormat = 2;

struct SegmentTrailer {
  uint64_t magic;
  uint32_t format;
  uint32_t block_count;
  Hash128 table_hash;  // the segment's name
  uint8_t reserved[24];
  uint64_t checksum;  // of the 56 bytes before it
};
static_assert(sizeof(SegmentTrailer) == 64);
static_assert(offsetof(SegmentTrailer, format) == 8);
static_assert(offsetof(SegmentTrailer, block_count) == 12);
static_assert(offsetof(SegmentTrailer, table_hash) == 16);
static_assert(offsetof(SegmentTrailer, reserved) == 32);
static_assert(offsetof(SegmentTrailer, checksum) == 56);

constexpr uint64_t segment_table_offset(uint32_t block_count) {
  return uint64_t{block_count} * kBlockBytes;
}
constexpr uint64_t segment_object_bytes(uint32_t block_count) {
  return uint64_t{block_count} * (kBlockBytes + sizeof(Hash128)) + sizeof(SegmentTrailer);
}
inline constexpr uint64_t kSegmentBytesMax = segment_object_bytes(kSegmentBlocksMax);

std::string segment_folder(const Hash128& name);
std::string segment_path(const Hash128& name);

// Names of all objects in the store that are called like segments, in ascending order.
std::vector<Hash128> list_segments(Backend& backend);

class BlockSource;

// Collects blocks in the order in which they will stand in the segment.
class SegmentBuilder {
 public:
  explicit SegmentBuilder(const HashSecret& secret);

  uint32_t block_count() const { return static_cast<uint32_t>(hashes_.size()); }
  bool empty() const { return hashes_.empty(); }
  bool full() const { return hashes_.size() == kSegmentBlocksMax; }
  Bytes block(uint32_t index) const;
  // All of them. They stay there until something is added after they were published.
  Bytes blocks() const { return content_; }
  const Hash128& hash(uint32_t index) const { return hashes_.at(index); }

  // Takes a copy of one block; not when full. `hash` is its content_hash with the secret. Its
  // place.
  uint32_t add(Bytes block, const Hash128& hash);
  // The name it would be published under now; not when empty.
  Hash128 name() const;
  enum class Outcome {
    kNew,
    kThere,       // the name exists with the same bytes, and that one serves
    kOtherBytes,  // the name exists with other bytes; nothing was done, and the builder keeps its
                  // blocks
  };
  // Publishes what was collected, durably, and is empty afterwards.
  Outcome publish(Backend& backend, BlockSource& blocks);

 private:
  HashSecret secret_;
  std::vector<Hash128> hashes_;
  AlignedByteVector content_;  // the blocks; table and trailer are added by publish
};

// When nothing else can be done about kOtherBytes: EIO.
[[noreturn]] void fail_other_bytes(const Hash128& name);

// Makes a segment that is damaged or missing what it should be, durably: `sound`, all of its
// object, but for blocks that were given up there and not here. Others may read it meanwhile;
// whoever calls this sees to it that nobody removes it.
void mend_segment(Backend& backend, const Hash128& name, ByteVector sound,
                  const HashSecret& secret);

// How many blocks a segment has whose object has so many bytes; nothing when none has.
std::optional<uint32_t> segment_block_count(uint64_t object_bytes);
// The table in what stands behind the blocks, with everything checked but the size.
std::vector<Hash128> decode_segment_table(Bytes bytes, uint32_t block_count, const Hash128& name,
                                          const HashSecret& secret);
// The table of an open segment, with everything checked: size, trailer, table against name.
std::vector<Hash128> read_segment_table(Object& segment, const Hash128& name,
                                        const HashSecret& secret);

// Opens a segment that has `block_count` blocks; 0 when nobody knows. EIO when it is missing or not
// of that size; does not read it.
std::unique_ptr<Object> open_segment(Backend& backend, const Hash128& name, uint32_t block_count);

// Those of the blocks of a segment, from `first` on, that do not have their hash in its table.
std::vector<uint32_t> find_damaged_blocks(Bytes blocks, uint32_t first,
                                          const std::vector<Hash128>& table,
                                          const HashSecret& secret);
// Whether a block that does not have its hash was given up: it is zeroes, or was being made so,
// sector by sector, when the host crashed. Damage of that kind means nothing where nobody refers to
// the block.
bool is_given_up(Bytes block);

}  // namespace tplstore
