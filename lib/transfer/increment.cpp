// A writer that chains the checksums of its records, and a reader that walks them and believes
// nothing before it has been checked.
#include "transfer/increment.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <optional>
#include <vector>

#include "base/names.h"
#include "transfer/atomic_file.h"
#include "transfer/disk_copy.h"

namespace tplstore {
namespace {

constexpr uint64_t kZeroBytesMax = uint64_t{1} << 30;  // zeroed at a time
constexpr std::string_view kRepair = "copy the file again, or make it again from its store";

bool is_disk_size(uint64_t bytes) {
  return bytes > 0 && bytes % kSectorBytes == 0 && bytes <= kVolumeBytesMax;
}

bool is_version(const VersionIdentity& identity) {
  return !identity.volume.is_nil() && identity.number != 0 && identity.number != UINT32_MAX;
}

bool is_version_name(const std::string& name) {
  return is_valid_name(name) && name.find_first_not_of("0123456789") != std::string::npos;
}

// What is wrong with it; nothing when it is sound. Writing refuses it, reading checks it.
std::optional<std::string> find_fault(const IncrementInfo& info) {
  if (!is_version(info.version)) return "no version";
  if (!info.base.is_nil() && !is_version(info.base)) return "half a base";
  if (!info.base.is_nil() && info.is_since_template()) return "two bases";
  if (info.is_since_template() && !is_valid_name(info.template_name))
    return "a name that no template can have";
  if (!is_disk_size(info.size_bytes)) return fmt::format("a disk of {} bytes", info.size_bytes);
  const bool has_base = !info.base.is_nil() || info.is_since_template();
  if (has_base ? !is_disk_size(info.base_size_bytes) : info.base_size_bytes != 0)
    return fmt::format("a base of {} bytes", info.base_size_bytes);
  if (!is_valid_name(info.volume_name)) return "a name that no volume can have";
  if (!info.version_name.empty() && !is_version_name(info.version_name))
    return "a name that no version can have";
  if (info.note.size() > kIncrementNoteBytesMax) return "a note that is too long";
  return std::nullopt;
}

template <typename T>
Bytes bytes_before(const T& value, size_t offset) {
  return bytes_of(value).first(offset);
}

uint64_t header_checksum(const IncrementHeader& header, Bytes texts) {
  return checksum(texts, checksum(bytes_before(header, offsetof(IncrementHeader, checksum))));
}
uint64_t record_chain(const IncrementRecord& record, uint64_t chain) {
  return checksum(bytes_before(record, offsetof(IncrementRecord, chain)), chain);
}
uint64_t trailer_checksum(const IncrementTrailer& trailer, uint64_t head_checksum) {
  return checksum(bytes_before(trailer, offsetof(IncrementTrailer, checksum)), head_checksum);
}

// Writes the file from its beginning to its end.
class IncrementWriter {
 public:
  IncrementWriter(ByteWriter& stream, const IncrementInfo& info) : stream_(stream) {
    const std::string texts = info.volume_name + info.version_name + info.note + info.template_name;
    IncrementHeader header{};
    header.magic = kIncrementMagic;
    header.format = kIncrementFormat;
    header.base_volume = info.base.volume;
    header.volume = info.version.volume;
    header.base_number = info.base.number;
    header.number = info.version.number;
    header.size_bytes = info.size_bytes;
    header.base_size_bytes = info.base_size_bytes;
    header.created_ns = info.created_ns;
    if (!info.base.is_nil())
      std::memcpy(header.template_content.bytes.data(), &info.base_created_ns,
                  sizeof info.base_created_ns);
    header.volume_name_bytes = static_cast<uint16_t>(info.volume_name.size());
    header.version_name_bytes = static_cast<uint16_t>(info.version_name.size());
    header.note_bytes = static_cast<uint16_t>(info.note.size());
    if (info.is_since_template()) {
      header.features = kIncrementSinceTemplate;
      header.template_name_bytes = static_cast<uint16_t>(info.template_name.size());
      header.template_content = info.template_content;
    }
    header.checksum = header_checksum(header, as_bytes(texts));
    stream_.append(bytes_of(header));
    stream_.append(as_bytes(texts));
    head_checksum_ = header.checksum;
    trailer_.magic = kIncrementTrailerMagic;
    trailer_.chain = header.checksum;
  }

  // Both take ranges in rising order. Zeroes that follow each other become one record.
  void add_zeroes(uint64_t offset, uint64_t length) {
    if (zeroes_ && zeroes_->offset + zeroes_->length == offset) {
      zeroes_->length += length;
      return;
    }
    put_zeroes();
    zeroes_ = IncrementRecord{IncrementKind::kZero, 0, offset, length, 0, 0};
  }
  void add_data(uint64_t offset, Bytes data) {
    put_zeroes();
    put_record({IncrementKind::kData, 0, offset, data.size(), checksum(data), 0});
    stream_.append(data);
    trailer_.data_bytes += data.size();
  }

  // The number of bytes recorded as data.
  uint64_t finish() {
    put_zeroes();
    trailer_.checksum = trailer_checksum(trailer_, head_checksum_);
    stream_.append(bytes_of(trailer_));
    stream_.finish();
    return trailer_.data_bytes;
  }

 private:
  void put_zeroes() {
    if (!zeroes_) return;
    put_record(*zeroes_);
    trailer_.zero_bytes += zeroes_->length;
    zeroes_.reset();
  }

  void put_record(IncrementRecord record) {
    ensure(record.offset >= next_offset_ && record.length > 0,
           "the ranges of an incremental file ascend");
    next_offset_ = record.offset + record.length;
    record.chain = record_chain(record, trailer_.chain);
    trailer_.chain = record.chain;
    ++trailer_.record_count;
    stream_.append(bytes_of(record));
  }

  ByteWriter& stream_;
  uint64_t head_checksum_ = 0;
  IncrementTrailer trailer_{};  // totals and chain so far
  std::optional<IncrementRecord> zeroes_;
  uint64_t next_offset_ = 0;
};

}  // namespace

uint64_t write_increment(Disk& disk, const IncrementInfo& info, const std::string& file,
                         const IncrementOptions& options) {
  if (const auto fault = find_fault(info))
    fail(EINVAL, file, "cannot be written: it has {}", *fault);
  const uint64_t size = disk.size_bytes();
  ensure(size == info.size_bytes, "an incremental file has the size of its disk");
  OutputFile target(file, options.may_replace);
  ByteWriter stream(target.descriptor(), target.name(), options.compression, {},
                    options.interrupted);
  IncrementWriter writer(stream, info);
  const auto tell_progress = [&](uint64_t offset) {
    if (options.interrupted())
      fail(EINTR, target.name(), "{}",
           target.is_stream() ? "interrupted" : "interrupted: nothing was left behind");
    options.progress(offset, size);
  };

  ByteVector buffer(kIncrementDataBytesMax);
  copy_disk(disk, {.piece_bytes = kIncrementDataBytesMax,
                   .unit_bytes = kBlockBytes,
                   .take_buffer = [&] { return MutableBytes(buffer); },
                   .add =
                       [&](uint64_t offset, Bytes run, bool is_zeroes) {
                         if (is_zeroes)
                           writer.add_zeroes(offset, run.size());
                         else
                           writer.add_data(offset, run);
                       },
                   .progress = tell_progress});
  const uint64_t data_bytes = writer.finish();
  tell_progress(size);
  target.publish();
  return data_bytes;
}

template <typename... Args>
void IncrementReader::fail_damaged(fmt::format_string<Args...> what, Args&&... args) const {
  fail(EIO, file_, "damaged: {}; {}", fmt::format(what, std::forward<Args>(args)...), kRepair);
}

IncrementReader IncrementReader::open(const std::string& file,
                                      const IncrementInterrupted& interrupted) {
  IncrementReader reader(std::make_unique<ByteReader>(file, interrupted));
  reader.read_header();
  if (reader.file_bytes_) reader.look_at_end();
  return reader;
}

IncrementReader::IncrementReader(std::unique_ptr<ByteReader> stream)
    : file_(stream->name()), stream_(std::move(stream)), file_bytes_(stream_->file_bytes()) {}

void IncrementReader::take(MutableBytes into) {
  const uint64_t position = stream_->position();
  const size_t count = stream_->read(into);
  if (count < into.size())
    fail_damaged("it ends at byte {}, before what it should have", position + count);
}

// What follows the first bytes of it, which were taken already.
template <typename T>
void IncrementReader::take_rest(T& into, size_t taken) {
  take(std::as_writable_bytes(std::span(&into, 1)).subspan(taken));
}

void IncrementReader::read_header() {
  IncrementHeader header{};
  const size_t count = stream_->read(std::as_writable_bytes(std::span(&header, 1)));
  if (header.magic != kIncrementMagic)
    fail(EINVAL, file_,
         "is not an incremental file, or its beginning is damaged: choose another, or --format raw "
         "for the image of a disk");
  const bool is_since_template = (header.features & kIncrementSinceTemplate) != 0;
  const uint64_t text_bytes = uint64_t{header.volume_name_bytes} + header.version_name_bytes +
                              header.note_bytes +
                              (is_since_template ? header.template_name_bytes : 0);
  records_position_ = sizeof header + text_bytes;
  if (count < sizeof header ||
      (file_bytes_ && *file_bytes_ < records_position_ + sizeof(IncrementTrailer)))
    fail_damaged("{} bytes are less than its header says", file_bytes_.value_or(count));
  ByteVector texts(text_bytes);
  take(texts);
  if (header.checksum != header_checksum(header, texts))
    fail_damaged("the checksum of its header does not match");
  if (header.format != kIncrementFormat || (header.features & ~kIncrementSinceTemplate) != 0)
    fail(EINVAL, file_,
         "has format {} with features {:#x}, this program reads format {}: use a newer tplstore",
         header.format, header.features, kIncrementFormat);
  head_checksum_ = header.checksum;

  Decoder decoder(texts, file_);
  info_.base = {header.base_volume, header.base_number};
  info_.version = {header.volume, header.number};
  info_.volume_name = decoder.take_text(header.volume_name_bytes);
  info_.version_name = decoder.take_text(header.version_name_bytes);
  info_.note = decoder.take_text(header.note_bytes);
  info_.created_ns = header.created_ns;
  info_.size_bytes = header.size_bytes;
  info_.base_size_bytes = header.base_size_bytes;
  if (!info_.base.is_nil())
    std::memcpy(&info_.base_created_ns, header.template_content.bytes.data(),
                sizeof info_.base_created_ns);
  if (is_since_template) {
    info_.template_name = decoder.take_text(header.template_name_bytes);
    info_.template_content = header.template_content;
    if (info_.template_name.empty()) fail_damaged("its header has a template without a name");
  }
  if (const auto fault = find_fault(info_)) fail_damaged("its header has {}", *fault);
}

void IncrementReader::check_trailer(const IncrementTrailer& trailer) const {
  if (trailer.magic != kIncrementTrailerMagic ||
      trailer.checksum != trailer_checksum(trailer, head_checksum_))
    fail_damaged("it does not end as it should: it was cut, or its end was changed");
  if (trailer.data_bytes > info_.size_bytes ||
      trailer.zero_bytes > info_.size_bytes - trailer.data_bytes)
    fail_damaged("it says that it has more than the whole disk");
}

// Before a plain file is read: most of what can have become of it shows there.
void IncrementReader::look_at_end() {
  const uint64_t position = *file_bytes_ - sizeof trailer_;
  if (stream_->read_at(position, std::as_writable_bytes(std::span(&trailer_, 1))) < sizeof trailer_)
    fail_damaged("it has become shorter");
  check_trailer(trailer_);
  // The product is no more than the file has, and the sum of two disk sizes cannot overflow.
  const uint64_t records_bytes = position - records_position_;
  if (trailer_.record_count > records_bytes / sizeof(IncrementRecord) ||
      trailer_.record_count * sizeof(IncrementRecord) + trailer_.data_bytes != records_bytes)
    fail_damaged("{} bytes is not the size that its end says", *file_bytes_);
}

// How far a walk over the records is.
struct IncrementReader::Cursor {
  uint64_t chain;             // up to here
  uint64_t next_offset = 0;   // in the disk: the ranges so far end there
  uint64_t record_count = 0;  // so far, as the sums
  uint64_t data_bytes = 0;
  uint64_t zero_bytes = 0;
  ByteVector buffer;
};

// The next record, which is sound and within bounds; nothing when the trailer came instead.
std::optional<IncrementRecord> IncrementReader::take_record(Cursor& at) {
  const uint64_t start = stream_->position();
  uint64_t beginning = 0;
  take(std::as_writable_bytes(std::span(&beginning, 1)));
  if (beginning == kIncrementTrailerMagic) {
    take_trailer(at);
    return std::nullopt;
  }
  IncrementRecord record{};
  std::memcpy(&record, &beginning, sizeof beginning);
  take_rest(record, sizeof beginning);
  if (record.chain != record_chain(record, at.chain))
    fail_damaged("the record at byte {} is not the one that was written there", start);
  at.chain = record.chain;
  ++at.record_count;

  if (record.kind != IncrementKind::kData && record.kind != IncrementKind::kZero)
    fail_damaged("the record at byte {} is of no known kind", start);
  if (record.offset < at.next_offset || record.offset > info_.size_bytes || record.length == 0 ||
      record.length > info_.size_bytes - record.offset)
    fail_damaged("the range of the record at byte {} is out of order or out of the disk", start);
  at.next_offset = record.offset + record.length;
  if (record.kind == IncrementKind::kZero) {
    at.zero_bytes += record.length;
    return record;
  }
  at.data_bytes += record.length;
  const uint64_t data_end = stream_->position() + record.length;
  if (record.length > kIncrementDataBytesMax ||
      (file_bytes_ && data_end + sizeof trailer_ > *file_bytes_))
    fail_damaged("the record at byte {} has more data than can be", start);
  return record;
}

// Behind its magic. It must be the last, and say what came before it.
void IncrementReader::take_trailer(const Cursor& at) {
  IncrementTrailer trailer{};
  trailer.magic = kIncrementTrailerMagic;
  take_rest(trailer, sizeof trailer.magic);
  check_trailer(trailer);
  if (trailer.record_count != at.record_count || trailer.data_bytes != at.data_bytes ||
      trailer.zero_bytes != at.zero_bytes || trailer.chain != at.chain)
    fail_damaged("its records are not those that its end says");
  std::byte more[1];
  if (stream_->read(more) != 0)
    fail_damaged("it goes on at byte {}, behind its end", stream_->position() - 1);
  trailer_ = trailer;
}

// The data of the record that was taken last; they are in the cursor's buffer.
Bytes IncrementReader::take_data(const IncrementRecord& record, Cursor& at) {
  if (record.kind == IncrementKind::kZero) return {};
  at.buffer.resize(std::max(at.buffer.size(), record.length));
  const MutableBytes data = MutableBytes(at.buffer).first(record.length);
  const uint64_t position = stream_->position();
  take(data);
  if (checksum(data) != record.data_checksum)
    fail_damaged("the checksum of the data at byte {} does not match", position);
  return data;
}

void IncrementReader::go_to_records() {
  if (stream_->position() == records_position_) return;
  stream_->rewind();
  ByteVector before(records_position_);
  take(before);
}

// Calls `consume` with each record and its data, everything about it having been checked.
void IncrementReader::walk(const Consumer& consume, const IncrementProgress& progress,
                           const IncrementInterrupted& interrupted) {
  go_to_records();
  Cursor at{.chain = head_checksum_, .buffer = {}};
  while (true) {
    if (interrupted()) fail(EINTR, file_, "interrupted");
    if (file_bytes_) {
      progress(stream_->position(), *file_bytes_);
    } else {
      progress(at.next_offset, info_.size_bytes);
    }
    const std::optional<IncrementRecord> record = take_record(at);
    if (!record) break;
    consume(*record, take_data(*record, at));
  }
  const uint64_t all = file_bytes_.value_or(info_.size_bytes);
  progress(all, all);
}

void IncrementReader::verify(const IncrementProgress& progress,
                             const IncrementInterrupted& interrupted) {
  walk([](const IncrementRecord&, Bytes) {}, progress, interrupted);
}

void IncrementReader::apply(Disk& into, const IncrementProgress& progress,
                            const IncrementInterrupted& interrupted) {
  if (into.size_bytes() != info_.size_bytes)
    fail(EINVAL, file_, "is for a disk of {} bytes, this one has {}: give it that size first",
         info_.size_bytes, into.size_bytes());
  const auto write = [&](const IncrementRecord& record, Bytes data) {
    if (record.kind == IncrementKind::kData) {
      into.write(record.offset, data, false);
      return;
    }
    for (uint64_t done = 0; done < record.length; done += kZeroBytesMax) {
      if (interrupted()) fail(EINTR, file_, "interrupted");
      into.zero(record.offset + done, std::min(kZeroBytesMax, record.length - done), false);
    }
  };
  walk(write, progress, interrupted);
}

}  // namespace tplstore
