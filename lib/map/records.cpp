// Records as bytes. What is read is checked as far as it can be without the map it is for.
#include "map/records.h"

#include "base/names.h"
#include "map/version_table.h"

namespace tplstore {
namespace {

constexpr uint32_t kFreezeHasOrigin = 1;
constexpr uint32_t kFreezeUnswept = 2;
constexpr uint32_t kFreezeForReader = 4;
constexpr uint32_t kFreezeFlags = kFreezeHasOrigin | kFreezeUnswept | kFreezeForReader;

class RecordEncoder {
 public:
  explicit RecordEncoder(Encoder& to) : to_(to) {}

  void operator()(const UpdateRecord& record) {
    put(RecordKind::kUpdate, record.first, static_cast<uint32_t>(record.count), record.source);
  }
  void operator()(const FreezeRecord& record) {
    put(RecordKind::kFreeze, 0, record.next, record.parent);
    const bool has_origin = !record.origin.is_nil();
    to_.put(FreezeBody{record.created_ns,
                       record.size_bytes,
                       static_cast<uint16_t>(record.name.size()),
                       static_cast<uint16_t>(record.note.size()),
                       (has_origin ? kFreezeHasOrigin : 0) |
                           (record.for_reader ? kFreezeForReader : 0) |
                           (record.is_unswept ? kFreezeUnswept : 0),
                       {}});
    to_.put_bytes(as_bytes(record.name));
    to_.put_bytes(as_bytes(record.note));
    if (has_origin) {
      to_.put(record.origin.volume);
      to_.put(record.origin.number);
    }
    to_.bytes().resize(round_up(to_.size(), kRecordBytes));
  }
  void operator()(const ResizeRecord& record) { put(RecordKind::kResize, record.size_bytes); }
  void operator()(const HideRecord& record) { put(RecordKind::kHide, record.version); }
  void operator()(const CollectRecord& record) { put(RecordKind::kCollect, record.version); }
  void operator()(const PinRecord& record) {
    put(RecordKind::kPin, record.version);
    to_.put(record.fork);
  }
  void operator()(const UnpinRecord& record) {
    put(RecordKind::kUnpin, 0);
    to_.put(record.fork);
  }
  void operator()(const FlattenBeginRecord&) { put(RecordKind::kFlattenBegin, 0); }
  void operator()(const FlattenEndRecord&) { put(RecordKind::kFlattenEnd, 0); }
  void operator()(const PositionRecord& record) { put(RecordKind::kPosition, record.position); }

 private:
  void put(RecordKind kind, uint64_t number, uint32_t count = 0, uint32_t source = 0) {
    to_.put(RecordHeader::make(kind, number, count, source));
  }

  Encoder& to_;
};

[[noreturn]] void impossible(const Decoder& from) {
  fail(EIO, from.object(), "damaged: a record of the map log is impossible");
}

FreezeRecord decode_freeze(const RecordHeader& header, Decoder& from) {
  const auto body = from.take<FreezeBody>();
  FreezeRecord record;
  record.next = header.count;
  record.parent = header.source;
  record.created_ns = body.created_ns;
  record.size_bytes = body.size_bytes;
  record.is_unswept = (body.flags & kFreezeUnswept) != 0;
  record.for_reader = (body.flags & kFreezeForReader) != 0;
  record.name = from.take_text(body.name_bytes);
  record.note = from.take_text(body.note_bytes);
  uint64_t length = sizeof body + body.name_bytes + body.note_bytes;
  if ((body.flags & kFreezeHasOrigin) != 0) {
    record.origin.volume = from.take<Uuid>();
    record.origin.number = from.take<uint32_t>();
    length += sizeof(Uuid) + sizeof(uint32_t);
  }
  from.take_bytes(round_up(length, kRecordBytes) - length);
  const bool is_good = body.flags <= kFreezeFlags && body.size_bytes <= kVolumeBytesMax &&
                       record.note.size() <= kNoteBytesMax &&
                       (record.name.empty() || is_valid_name(record.name));
  if (!is_good) impossible(from);
  return record;
}

}  // namespace

void encode_record(Encoder& to, const MapRecord& record) { std::visit(RecordEncoder(to), record); }

MapRecord decode_record(Decoder& from) {
  const auto header = from.take<RecordHeader>();
  const auto version = static_cast<uint32_t>(header.number());
  switch (header.kind()) {
    case RecordKind::kUpdate:
      return UpdateRecord{{header.number(), header.count}, header.source};
    case RecordKind::kFreeze:
      return decode_freeze(header, from);
    case RecordKind::kResize:
      return ResizeRecord{header.number()};
    case RecordKind::kHide:
      return HideRecord{version};
    case RecordKind::kCollect:
      return CollectRecord{version};
    case RecordKind::kPin:
      return PinRecord{version, from.take<Uuid>()};
    case RecordKind::kUnpin:
      return UnpinRecord{from.take<Uuid>()};
    case RecordKind::kFlattenBegin:
      return FlattenBeginRecord{};
    case RecordKind::kFlattenEnd:
      return FlattenEndRecord{};
    case RecordKind::kPosition:
      return PositionRecord{header.number()};
  }
  fail(EINVAL, from.object(),
       "holds a record of kind {} that this tplstore does not know; "
       "use the newer one that wrote it",
       static_cast<unsigned>(header.kind()));
}

}  // namespace tplstore
