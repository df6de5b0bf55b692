// Records: what happens to a map, one change each. MapState::apply() says what they mean; the map
// log's update frames are sequences of them, each a RecordHeader that some kinds follow with a
// body.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "base/bytes.h"
#include "base/volume_types.h"
#include "map/interval.h"

namespace tplstore {

// Blocks come from that source now.
using UpdateRecord = Run;
// Current was frozen, and version `next` began with the root of `parent` and a size.
struct FreezeRecord {
  uint32_t next = 0;
  uint32_t parent = 0;
  int64_t created_ns = 0;
  uint64_t size_bytes = 0;
  bool is_unswept = false;  // the frozen one; see map/version_table.h
  bool for_reader = false;  // likewise
  std::string name;
  std::string note;
  VersionIdentity origin;  // nil unless it was imported
};
// Current's size grew.
struct ResizeRecord {
  uint64_t size_bytes;
};
// A version was removed, for those who look.
struct HideRecord {
  uint32_t version;
};
// A hidden version was taken out, and its cells are free.
struct CollectRecord {
  uint32_t version;
};
// A fork of a version begins; it does not need it any more.
struct PinRecord {
  uint32_t version;
  Uuid fork;
};
struct UnpinRecord {
  Uuid fork;
};
// Cells of ancestors are freed like own ones from here on; all sources are this volume's own.
struct FlattenBeginRecord {};
struct FlattenEndRecord {};

// Changes nothing: the records before it are those that the journal has up to this position
// (map/update_journal.h).
struct PositionRecord {
  uint64_t position;
};

using MapRecord =
    std::variant<UpdateRecord, FreezeRecord, ResizeRecord, HideRecord, CollectRecord, PinRecord,
                 UnpinRecord, FlattenBeginRecord, FlattenEndRecord, PositionRecord>;

// Appends a record's bytes.
void encode_record(Encoder& to, const MapRecord& record);
// Takes the next record; EIO when no map can have it, EINVAL when its kind is not known.
MapRecord decode_record(Decoder& from);

// --- bytes in the log

enum class RecordKind : uint16_t {
  kUpdate = 1,  // `number` is the first block
  kFreeze = 2,  // `count` is the next version, `source` its parent; a FreezeBody follows
  kResize = 3,  // `number` is the size
  kHide = 4,    // `number` is the version
  kCollect = 5,
  kPin = 6,    // likewise; the fork's uuid follows
  kUnpin = 7,  // the fork's uuid follows
  kFlattenBegin = 8,
  kFlattenEnd = 9,
  kPosition = 10,  // `number` is the position
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

// Followed by the frozen version's name, note and origin (20 bytes), if it has one, and padded to
// a multiple of a record.
struct FreezeBody {
  int64_t created_ns;
  uint64_t size_bytes;  // of the new current
  uint16_t name_bytes;
  uint16_t note_bytes;
  uint32_t flags;
  uint32_t reserved[2];
};
static_assert(sizeof(FreezeBody) == 32);

}  // namespace tplstore
