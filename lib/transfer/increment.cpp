// A writer that chains the checksums of its records, and a reader that walks them and believes
// nothing before it has been checked.
#include "transfer/increment.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
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
  if (!is_disk_size(info.size_bytes)) return fmt::format("a disk of {} bytes", info.size_bytes);
  if (info.base.is_nil() ? info.base_size_bytes != 0 : !is_disk_size(info.base_size_bytes))
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
  IncrementWriter(int descriptor, const std::string& file, const IncrementInfo& info)
      : file_(file), descriptor_(descriptor) {
    const std::string texts = info.volume_name + info.version_name + info.note;
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
    header.volume_name_bytes = static_cast<uint16_t>(info.volume_name.size());
    header.version_name_bytes = static_cast<uint16_t>(info.version_name.size());
    header.note_bytes = static_cast<uint16_t>(info.note.size());
    header.checksum = header_checksum(header, as_bytes(texts));
    append(bytes_of(header));
    append(as_bytes(texts));
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
    append(data);
    trailer_.data_bytes += data.size();
  }

  // Makes all of it durable; the number of bytes recorded as data.
  uint64_t finish() {
    put_zeroes();
    trailer_.checksum = trailer_checksum(trailer_, head_checksum_);
    append(bytes_of(trailer_));
    write_out();
    if (::fsync(descriptor_) != 0) fail_errno(errno, file_, "syncing");
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
    append(bytes_of(record));
  }

  void append(Bytes bytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    if (buffer_.size() >= kIncrementDataBytesMax) write_out();
  }

  void write_out() {
    for (Bytes rest = buffer_; !rest.empty();) {
      const ssize_t count = ::write(descriptor_, rest.data(), rest.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail_errno(errno, file_, "writing");
      rest = rest.subspan(static_cast<size_t>(count));
    }
    buffer_.clear();
  }

  const std::string& file_;
  const int descriptor_;
  ByteVector buffer_;
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
  check_publish_target(file, options.may_replace);
  AtomicFile target(file);
  IncrementWriter writer(target.descriptor(), file, info);
  const auto tell_progress = [&](uint64_t offset) {
    if (options.interrupted()) fail(EINTR, file, "interrupted: nothing was left behind");
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
  target.publish(options.may_replace);
  return data_bytes;
}

template <typename... Args>
void IncrementReader::fail_damaged(fmt::format_string<Args...> what, Args&&... args) const {
  fail(EIO, file_, "damaged: {}; {}", fmt::format(what, std::forward<Args>(args)...), kRepair);
}

IncrementReader IncrementReader::open(const std::string& file) {
  // O_NONBLOCK: a named pipe must not make us wait for its writer.
  FileDescriptor descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!descriptor) fail_errno(errno, file, "opening the incremental file");
  IncrementReader reader(file, std::move(descriptor));
  reader.read_header();
  reader.read_trailer();
  return reader;
}

IncrementReader::IncrementReader(std::string file, FileDescriptor descriptor)
    : file_(std::move(file)), descriptor_(std::move(descriptor)) {
  struct stat status {};
  if (::fstat(descriptor_.get(), &status) != 0)
    fail_errno(errno, file_, "looking at the incremental file");
  if (!S_ISREG(status.st_mode))
    fail(EINVAL, file_, "is not a regular file: copy the incremental file into one");
  file_bytes_ = static_cast<uint64_t>(status.st_size);
}

void IncrementReader::read(uint64_t position, MutableBytes into) const {
  while (!into.empty()) {
    const ssize_t count =
        ::pread(descriptor_.get(), into.data(), into.size(), static_cast<off_t>(position));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno(errno, file_, "reading");
    if (count == 0) fail_damaged("it ends at byte {}, before what it should have", position);
    position += static_cast<uint64_t>(count);
    into = into.subspan(static_cast<size_t>(count));
  }
}

void IncrementReader::read_header() {
  IncrementHeader header{};
  const uint64_t head_bytes = std::min<uint64_t>(file_bytes_, sizeof header);
  read(0, std::as_writable_bytes(std::span(&header, 1)).first(head_bytes));
  if (header.magic != kIncrementMagic)
    fail(EINVAL, file_, "is not an incremental file, or its beginning is damaged: choose another");
  const uint64_t text_bytes =
      uint64_t{header.volume_name_bytes} + header.version_name_bytes + header.note_bytes;
  records_position_ = sizeof header + text_bytes;
  if (file_bytes_ < records_position_ + sizeof(IncrementTrailer))
    fail_damaged("{} bytes are less than its header says", file_bytes_);
  ByteVector texts(text_bytes);
  read(sizeof header, texts);
  if (header.checksum != header_checksum(header, texts))
    fail_damaged("the checksum of its header does not match");
  if (header.format != kIncrementFormat || header.features != 0)
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
  if (const auto fault = find_fault(info_)) fail_damaged("its header has {}", *fault);
}

void IncrementReader::read_trailer() {
  const uint64_t position = file_bytes_ - sizeof trailer_;
  read(position, std::as_writable_bytes(std::span(&trailer_, 1)));
  if (trailer_.magic != kIncrementTrailerMagic ||
      trailer_.checksum != trailer_checksum(trailer_, head_checksum_))
    fail_damaged("it does not end as it should: it was cut, or its end was changed");
  if (trailer_.data_bytes > info_.size_bytes ||
      trailer_.zero_bytes > info_.size_bytes - trailer_.data_bytes)
    fail_damaged("it says that it has more than the whole disk");
  // The product is no more than the file has, and the sum of two disk sizes cannot overflow.
  const uint64_t records_bytes = position - records_position_;
  if (trailer_.record_count > records_bytes / sizeof(IncrementRecord) ||
      trailer_.record_count * sizeof(IncrementRecord) + trailer_.data_bytes != records_bytes)
    fail_damaged("{} bytes is not the size that its end says", file_bytes_);
}

// How far a walk over the records is.
struct IncrementReader::Cursor {
  uint64_t position;         // in the file
  uint64_t chain;            // up to here
  uint64_t next_offset = 0;  // in the disk: the ranges so far end there
  uint64_t zero_bytes = 0;   // in the ranges so far
  ByteVector buffer;
};

// The record at the cursor, which is sound and within bounds.
IncrementRecord IncrementReader::take_record(Cursor& at) const {
  const uint64_t start = at.position, end = file_bytes_ - sizeof trailer_;
  IncrementRecord record{};
  if (end - at.position < sizeof record) fail_damaged("a record is missing at byte {}", start);
  read(at.position, std::as_writable_bytes(std::span(&record, 1)));
  at.position += sizeof record;
  if (record.chain != record_chain(record, at.chain))
    fail_damaged("the record at byte {} is not the one that was written there", start);
  at.chain = record.chain;

  if (record.kind != IncrementKind::kData && record.kind != IncrementKind::kZero)
    fail_damaged("the record at byte {} is of no known kind", start);
  if (record.offset < at.next_offset || record.offset > info_.size_bytes || record.length == 0 ||
      record.length > info_.size_bytes - record.offset)
    fail_damaged("the range of the record at byte {} is out of order or out of the disk", start);
  at.next_offset = record.offset + record.length;
  if (record.kind == IncrementKind::kZero)
    at.zero_bytes += record.length;
  else if (record.length > kIncrementDataBytesMax || record.length > end - at.position)
    fail_damaged("the record at byte {} has more data than can be", start);
  return record;
}

// The data of the record that was taken last; they are in the cursor's buffer.
Bytes IncrementReader::take_data(const IncrementRecord& record, Cursor& at) const {
  if (record.kind == IncrementKind::kZero) return {};
  at.buffer.resize(std::max(at.buffer.size(), record.length));
  const MutableBytes data = MutableBytes(at.buffer).first(record.length);
  read(at.position, data);
  if (checksum(data) != record.data_checksum)
    fail_damaged("the checksum of the data at byte {} does not match", at.position);
  at.position += data.size();
  return data;
}

// Calls `consume` with each record and its data, everything about it having been checked.
void IncrementReader::walk(const Consumer& consume, const IncrementProgress& progress,
                           const IncrementInterrupted& interrupted) const {
  Cursor at{.position = records_position_, .chain = head_checksum_, .buffer = {}};
  for (uint64_t i = 0; i < trailer_.record_count; ++i) {
    if (interrupted()) fail(EINTR, file_, "interrupted");
    progress(at.position, file_bytes_);
    const IncrementRecord record = take_record(at);
    consume(record, take_data(record, at));
  }
  if (at.position != file_bytes_ - sizeof trailer_ || at.chain != trailer_.chain ||
      at.zero_bytes != trailer_.zero_bytes)
    fail_damaged("its records are not those that its end says");
  progress(file_bytes_, file_bytes_);
}

void IncrementReader::verify(const IncrementProgress& progress,
                             const IncrementInterrupted& interrupted) const {
  walk([](const IncrementRecord&, Bytes) {}, progress, interrupted);
}

void IncrementReader::apply(Disk& into, const IncrementProgress& progress,
                            const IncrementInterrupted& interrupted) const {
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
