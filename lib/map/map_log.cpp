// Appends frames sector by sector, and finds the end of a log that a crash has cut.
#include "map/map_log.h"

#include <algorithm>
#include <cerrno>

#include "base/checksum_stream.h"
#include "base/units.h"
#include "map/records.h"

namespace tplstore {
namespace {

constexpr uint64_t kLogMagic = 0x31474f4c50414d54;  // "TMAPLOG1"
constexpr uint32_t kFrameMagic = 0x4d524654;        // "TFRM"
constexpr uint64_t kWindowBytes = 64 << 10;
// What a log of a few changes has, with the zeroes that it is written ahead with. All of that is
// looked at when it is opened: one read brings it, where kernels would guess their way.
constexpr uint64_t kReadAtOnceBytes = 256 << 10;
// Larger ones are not read into memory before their checksum is known to be right.
constexpr uint64_t kFrameBytesBelieved = 4 << 20;
constexpr uint64_t kFrameBytesMax = uint64_t{1} << 30;
constexpr uint64_t kZeroStepBytes = 128 << 10;
constexpr uint64_t kZeroStepBytesMax = 1 << 20;
// Of what behind the end of a log looks like frames.
constexpr uint64_t kProofScanBytesMax = 64 << 20;

// The first sector of a log; says what it is to whoever opens the wrong file.
struct LogHeader {
  uint64_t checksum;  // of what follows
  uint64_t magic;
  Uuid volume;
  uint64_t generation;
};
static_assert(sizeof(LogHeader) == 40);

uint64_t seed_of(const Uuid& volume, uint64_t generation) {
  return checksum(bytes_of(volume), generation);
}

uint64_t header_sum(const LogHeader& header) {
  return checksum(bytes_of(header).subspan(sizeof(uint64_t)));
}

// The room that update records of so many bytes take, in the worst case.
uint64_t frame_cost(uint64_t payload_bytes) {
  return round_up(sizeof(FrameHeader) + payload_bytes + kRecordBytes, kSectorBytes) +
         uint64_t{2} * kSectorBytes;
}

// A sliding view of an object, for reading it from front to back.
class SlidingView {
 public:
  explicit SlidingView(Object& object) : object_(object) {}

  Bytes view(uint64_t offset, uint64_t length) {
    if (offset < start_ || offset + length > start_ + buffer_.size()) {
      buffer_.resize(std::max(length, kWindowBytes));
      object_.read(offset, buffer_);
      start_ = offset;
    }
    return Bytes(buffer_).subspan(offset - start_, length);
  }

 private:
  Object& object_;
  uint64_t start_ = 0;
  ByteVector buffer_;
};

// The checksum of a frame that may be too large to be read at once.
uint64_t checksum_of_frame(Object& object, uint64_t offset, uint64_t length, uint64_t seed) {
  ChecksumStream sum(seed);
  ByteVector piece(kFrameBytesBelieved);
  for (uint64_t at = offsetof(FrameHeader, previous); at < length;) {
    const MutableBytes part = MutableBytes(piece).first(std::min(kFrameBytesBelieved, length - at));
    object.read(offset + at, part);
    sum.add(part);
    at += part.size();
  }
  return sum.value();
}

}  // namespace

std::string MapLog::object_name(const std::string& folder, uint64_t generation) {
  return fmt::format("{}/map.{}", folder, generation);
}

MapLog::MapLog(std::unique_ptr<Object> object, std::string name, const Uuid& volume,
               uint64_t generation)
    : object_(std::move(object)),
      name_(std::move(name)),
      generation_(generation),
      seed_(seed_of(volume, generation)) {}

std::unique_ptr<MapLog> MapLog::create(Backend& backend, const std::string& folder,
                                       const Uuid& volume, uint64_t generation) {
  const std::string name = object_name(folder, generation);
  LogHeader header{0, kLogMagic, volume, generation};
  header.checksum = header_sum(header);
  auto object = backend.create(name, 0, Purpose::kMetadata);
  object->write(0, bytes_of(header));
  return std::unique_ptr<MapLog>(new MapLog(std::move(object), name, volume, generation));
}

std::unique_ptr<MapLog> MapLog::open(Backend& backend, const std::string& folder,
                                     const Uuid& volume, uint64_t generation, Access access) {
  const std::string name = object_name(folder, generation);
  auto object = backend.open(name, access, Purpose::kMetadata);
  if (access == Access::kWrite) settle(*object);
  LogHeader header;
  ByteVector begin(std::clamp(object->size_bytes(), uint64_t{sizeof header}, kReadAtOnceBytes));
  object->read(0, begin);
  std::memcpy(&header, begin.data(), sizeof header);
  if (header.magic != kLogMagic || header.checksum != header_sum(header))
    fail(EIO, name, "damaged: the header of the map log fails its checksum");
  if (header.volume != volume) fail_of_another(name, header.volume, volume);
  if (header.generation != generation)
    fail(EIO, name, "damaged: it is the map log of generation {}", header.generation);
  return std::unique_ptr<MapLog>(new MapLog(std::move(object), name, volume, generation));
}

void MapLog::damaged(uint64_t offset, const std::string& why) const {
  fail(EIO, name_,
       "damaged: the map log is broken at byte {}: {}; restore the volume from a backup", offset,
       why);
}

uint64_t MapLog::frame_checksum(Bytes frame) const {
  return checksum(frame.subspan(offsetof(FrameHeader, previous)), seed_);
}

// Whether a frame may begin with this sector, as far as its header tells.
bool MapLog::is_frame(Bytes sector, uint64_t offset, uint64_t end, FrameHeader& header) const {
  std::memcpy(&header, sector.data(), sizeof header);
  return header.magic == kFrameMagic && header.length % kSectorBytes == 0 &&
         header.length >= kSectorBytes && header.length <= kFrameBytesMax &&
         header.length <= end - std::min(end, offset) &&
         header.payload_bytes <= header.length - sizeof(FrameHeader) &&
         header.name_bytes <= header.payload_bytes;
}

LogPosition MapLog::scan(const LogPosition& from, uint64_t known_sequence,
                         const std::function<void(const LogFrame&)>& visit) {
  const uint64_t end = round_down(object_->size_bytes(), kSectorBytes);
  SlidingView window(*object_);
  const auto has_checksum = [&](const FrameHeader& of, uint64_t offset) {
    return of.checksum == (of.length <= kFrameBytesBelieved
                               ? frame_checksum(window.view(offset, of.length))
                               : checksum_of_frame(*object_, offset, of.length, seed_));
  };
  LogPosition at = from;
  FrameHeader header;
  std::vector<uint64_t> ends;  // of the frames that were read
  uint64_t durable = std::max(known_sequence, from.sequence);
  while (at.offset + kSectorBytes <= end) {
    if (!is_frame(window.view(at.offset, kSectorBytes), at.offset, end, header)) break;
    const bool is_open = header.kind == static_cast<uint16_t>(FrameKind::kOpen);
    const bool follows = header.previous == at.checksum && header.sequence == at.sequence + 1 &&
                         (header.incarnation == at.incarnation || is_open);
    if (!follows || !has_checksum(header, at.offset)) break;
    const Bytes frame = window.view(at.offset, header.length);
    visit({header, frame.subspan(sizeof(FrameHeader), header.payload_bytes)});
    const bool is_unused =
        is_open && header.length == kSectorBytes && header.payload_bytes == header.name_bytes;
    unused_open_ = is_unused ? std::optional(at) : std::nullopt;
    at = {at.offset + header.length, header.sequence, header.checksum, header.incarnation};
    ends.push_back(at.offset);
    durable = std::max(durable, header.durable);
  }
  if (at.sequence < durable)
    damaged(at.offset, fmt::format("frame {} was written for sure, but only {} can be read",
                                   durable, at.sequence));
  const uint64_t durable_end =
      durable == from.sequence ? from.offset : ends[durable - from.sequence - 1];
  if (object_->size_bytes() < durable_end + kProofBytes)
    damaged(object_->size_bytes(), "it ends there, and should be longer");
  // A frame that was appended when the next one of ours was durable already: that one is damaged.
  // Hardly anything that is none looks like it; where much does, somebody has made it.
  uint64_t looked_at_bytes = 0;
  uint64_t data_end = at.offset;
  for (uint64_t offset = at.offset; offset + kSectorBytes <= end; offset += kSectorBytes) {
    if (offset >= data_end) {
      const auto data = object_->find_data(offset);
      if (!data) break;
      offset = std::max(offset, round_down(data->offset, kSectorBytes));
      data_end = data->offset + data->length;
      if (offset + kSectorBytes > end) break;
    }
    if (!is_frame(window.view(offset, kSectorBytes), offset, end, header)) continue;
    if (header.durable <= at.sequence) continue;
    looked_at_bytes += header.length;
    if (looked_at_bytes > kProofScanBytesMax)
      damaged(offset, "too much behind its end looks like frames");
    if (has_checksum(header, offset))
      damaged(at.offset, fmt::format("frame {} cannot be read, though frame {} follows it",
                                     at.sequence + 1, header.sequence));
  }
  return at;
}

ByteVector MapLog::read_frame(uint64_t offset, FrameKind kind, LogPosition& after) {
  const uint64_t end = round_down(object_->size_bytes(), kSectorBytes);
  FrameHeader header;
  ByteVector frame(kSectorBytes);
  object_->read(offset, frame);
  if (offset % kSectorBytes != 0 || !is_frame(frame, offset, end, header))
    damaged(offset, "there should be a checkpoint");
  if (header.length > kFrameBytesBelieved &&
      header.checksum != checksum_of_frame(*object_, offset, header.length, seed_))
    damaged(offset, "the checkpoint fails its checksum");
  frame.resize(header.length);
  object_->read(offset, frame);
  if (header.checksum != frame_checksum(frame) || header.kind != static_cast<uint16_t>(kind))
    damaged(offset, "the checkpoint fails its checksum");
  after = {offset + header.length, header.sequence, header.checksum, header.incarnation};
  return ByteVector(frame.begin() + sizeof(FrameHeader),
                    frame.begin() + sizeof(FrameHeader) + header.payload_bytes);
}

LogPosition MapLog::start_of_life(const LogPosition& at, const LogOpening& opening) const {
  const bool is_one_sector = sizeof(FrameHeader) + opening.payload.size() <= kSectorBytes;
  return is_one_sector ? unused_open_.value_or(at) : at;
}

uint64_t MapLog::named_open_offset() const {
  const Lock guard(mutex_);
  return named_open_offset_;
}

void MapLog::start_writing(const LogPosition& at, Reserve draws_on, const LogOpening& opening) {
  {
    const Lock guard(mutex_);
    tail_ = start_of_life(at, opening);
    if (opening.name_bytes > 0) named_open_offset_ = tail_.offset;
    zeroed_end_ = at.offset;
    count_room();
    if (draws_on == Reserve::kNone) make_room(kSectorBytes);
    do {
      incarnation_ = random_u64();
    } while (incarnation_ == at.incarnation);
  }
  append(FrameKind::kOpen, opening.payload, 0, opening.name_bytes);
  sync();
}

// Sets what can be reserved without making room. Reservations made meanwhile are not lost: both
// sides of the difference are added to, not set.
void MapLog::count_room() {
  const uint64_t fixed = tail_.offset + frame_cost(0) + kReserveBytes + kSectorBytes;
  const int64_t total = static_cast<int64_t>(zeroed_end_) - static_cast<int64_t>(fixed);
  room_ += total - total_room_;
  total_room_ = total;
}

void MapLog::make_room(uint64_t bytes) {
  const uint64_t needed =
      tail_.offset + bytes + frame_cost(reserved_) + kReserveBytes + kSectorBytes;
  if (needed <= zeroed_end_) return;
  const uint64_t step = std::clamp(tail_.offset / 8, kZeroStepBytes, kZeroStepBytesMax);
  const uint64_t end = round_up(needed, kSectorBytes) + step;
  static const ByteVector zeroes(kZeroStepBytes);
  uint64_t piece = kZeroStepBytes;
  while (zeroed_end_ < end) {
    const uint64_t length = std::min(end - zeroed_end_, piece);
    try {
      object_->write(zeroed_end_, Bytes(zeroes).first(length));
      zeroed_end_ += length;
    } catch (const Error&) {
      // A full disk: what room there is counts to the last sector.
      if (std::exchange(piece, uint64_t{kSectorBytes}) > kSectorBytes) continue;
      count_room();
      if (zeroed_end_ >= needed) return;
      throw;
    }
  }
  count_room();
}

void MapLog::reserve(uint64_t bytes, Reserve draws_on) {
  reserved_ += bytes;
  if (room_.fetch_sub(static_cast<int64_t>(bytes)) >= static_cast<int64_t>(bytes)) return;
  const Lock guard(mutex_);
  try {
    make_room(0);
  } catch (...) {
    // What makes room must not fail for want of it.
    constexpr uint64_t kDrawable[] = {0, kTrimReserveBytes, kReserveBytes - 2 * kProofBytes};
    const auto drawable = static_cast<int64_t>(kDrawable[static_cast<size_t>(draws_on)]);
    if (drawable > 0 && room_ + drawable >= 0) return;
    unreserve(bytes);
    throw;
  }
}

void MapLog::unreserve(uint64_t bytes) {
  ensure(reserved_.fetch_sub(bytes) >= bytes, "what is given back was reserved");
  room_ += static_cast<int64_t>(bytes);
}

void MapLog::adopt_reserved(uint64_t bytes) noexcept {
  reserved_ += bytes;
  room_ -= static_cast<int64_t>(bytes);
  try {
    const Lock guard(mutex_);
    make_room(0);
  } catch (const std::exception&) {
    // The next reservation fails, until there is room.
  }
}

uint64_t MapLog::append(FrameKind kind, Bytes payload, uint64_t reserved, uint16_t name_bytes) {
  const uint64_t length = round_up(sizeof(FrameHeader) + payload.size(), kSectorBytes);
  if (length > kFrameBytesMax)
    fail(EFBIG, name_, "a frame of {} is more than a map log takes at once", format_size(length));
  ByteVector frame(length);
  if (!payload.empty())
    std::memcpy(frame.data() + sizeof(FrameHeader), payload.data(), payload.size());

  const Lock guard(mutex_);
  if (has_failed_) fail(EIO, name_, "the map log could not be written before");
  ensure(reserved_ >= reserved, "an append ends reservations that were made");
  const uint64_t needed_end = tail_.offset + length + kProofBytes;
  try {
    if (reserved == 0 || needed_end > zeroed_end_) make_room(length);
  } catch (...) {
    // On a full disk a volume can still be opened: its reserve takes that frame.
    if (kind != FrameKind::kOpen || needed_end > zeroed_end_) throw;
  }
  FrameHeader header{kFrameMagic,
                     static_cast<uint32_t>(length),
                     0,
                     tail_.checksum,
                     incarnation_,
                     tail_.sequence + 1,
                     durable_,
                     static_cast<uint32_t>(payload.size()),
                     static_cast<uint16_t>(kind),
                     name_bytes};
  std::memcpy(frame.data(), &header, sizeof header);
  header.checksum = frame_checksum(frame);
  std::memcpy(frame.data(), &header, sizeof header);
  try {
    object_->write(tail_.offset, frame);
  } catch (...) {
    has_failed_ = true;  // what of it is there is unknown
    throw;
  }
  const uint64_t payload_offset = tail_.offset + sizeof(FrameHeader);
  tail_ = {tail_.offset + length, header.sequence, header.checksum, incarnation_};
  zeroed_end_ = std::max(zeroed_end_, tail_.offset);
  unreserve(reserved);
  count_room();
  return payload_offset;
}

void MapLog::sync() {
  uint64_t sequence;
  {
    const Lock guard(mutex_);
    sequence = tail_.sequence;
  }
  try {
    object_->sync();
  } catch (...) {
    const Lock guard(mutex_);
    has_failed_ = true;
    throw;
  }
  const Lock guard(mutex_);
  durable_ = std::max(durable_, sequence);
}

uint64_t MapLog::reserved_bytes() const { return reserved_; }

LogPosition MapLog::position() const {
  const Lock guard(mutex_);
  return tail_;
}

uint64_t MapLog::written_bytes() const {
  const Lock guard(mutex_);
  return std::max(zeroed_end_, tail_.offset);
}

bool MapLog::has_failed() const {
  const Lock guard(mutex_);
  return has_failed_;
}

}  // namespace tplstore
