// Records of the map log's update frames: what happened to the map, in order. A payload is a
// sequence of records, each a RecordHeader that some kinds follow with a body.
#pragma once

#include <cstdint>

namespace tplstore {

enum class RecordKind : uint16_t {
  kUpdate = 1,  // blocks [block, block + count) come from `source` now
  kFreeze = 2,  // current was frozen; a FreezeBody follows
  kResize = 3,  // current's size is `block` bytes now
};

struct RecordHeader {
  uint64_t block_and_kind;  // kind in the upper 16 bits, a number in the lower 48
  uint32_t count;
  uint32_t source;

  static RecordHeader make(RecordKind kind, uint64_t number, uint32_t count, uint32_t source) {
    return {static_cast<uint64_t>(kind) << 48 | number, count, source};
  }
  RecordKind kind() const { return static_cast<RecordKind>(block_and_kind >> 48); }
  uint64_t number() const { return block_and_kind & ((uint64_t{1} << 48) - 1); }
};
static_assert(sizeof(RecordHeader) == 16);
inline constexpr uint64_t kRecordBytes = sizeof(RecordHeader);

// Behind a kFreeze record, whose count is the new current's number and whose source is its parent;
// followed by the frozen version's name and note, and padded to a multiple of a record.
struct FreezeBody {
  int64_t created_ns;
  uint64_t size_bytes;  // of the new current
  uint16_t name_bytes;
  uint16_t note_bytes;
  uint32_t reserved[3];
};
static_assert(sizeof(FreezeBody) == 32);

}  // namespace tplstore
