// Records of the map log's update frames: what happened to the map, in order. A payload is a
// sequence of records, each a RecordHeader that some kinds follow with a body.
#pragma once

#include <cstdint>

namespace tplstore {

enum class RecordKind : uint16_t {
  kUpdate = 1,        // blocks [number, number + count) come from `source` now
  kFreeze = 2,        // current was frozen; a FreezeBody follows
  kResize = 3,        // current's size is `number` bytes now
  kHide = 4,          // version `number` was removed, for those who look
  kCollect = 5,       // hidden version `number` was taken out, and its cells are free
  kPin = 6,           // a fork of version `number` begins; its uuid follows
  kUnpin = 7,         // that fork does not need it any more; its uuid follows
  kFlattenBegin = 8,  // cells of ancestors are freed like own ones from here on
  kFlattenEnd = 9,    // all sources are this volume's own
};

struct RecordHeader {
  uint64_t number_and_kind;  // kind in the upper 16 bits, a number in the lower 48
  uint32_t count;
  uint32_t source;

  static RecordHeader make(RecordKind kind, uint64_t number, uint32_t count = 0,
                           uint32_t source = 0) {
    return {static_cast<uint64_t>(kind) << 48 | number, count, source};
  }
  RecordKind kind() const { return static_cast<RecordKind>(number_and_kind >> 48); }
  uint64_t number() const { return number_and_kind & ((uint64_t{1} << 48) - 1); }
};
static_assert(sizeof(RecordHeader) == 16);
inline constexpr uint64_t kRecordBytes = sizeof(RecordHeader);

// Behind a kFreeze record, whose count is the new current's number and whose source is its parent;
// followed by the frozen version's name, note and origin (20 bytes), if it has one, and padded to
// a multiple of a record.
struct FreezeBody {
  int64_t created_ns;
  uint64_t size_bytes;  // of the new current
  uint16_t name_bytes;
  uint16_t note_bytes;
  uint32_t flags;
  uint32_t reserved[2];
};
inline constexpr uint32_t kFreezeHasOrigin = 1;
inline constexpr uint32_t kFreezeUnswept = 2;    // the frozen version is (map/version_table.h)
inline constexpr uint32_t kFreezeForReader = 4;  // likewise
static_assert(sizeof(FreezeBody) == 32);

}  // namespace tplstore
