// The incremental file: what changed between two versions of a volume, or since the template that
// it was made from, for carrying it to another store.
//
//   | header | names and note | record | data | record | data | ... | trailer |
//     128 bytes                 40 bytes, up to 1 MiB               48 bytes
//
// A record says that a range of the disk has the data that follows it, at most 1 MiB, or reads as
// zeroes, at any length. Records ascend and do not overlap; what is in none of them is as in the
// base. Each record has the checksum of its data, and one of its own that is seeded with that of
// the record before, the first with the header's: so none can be changed, dropped, repeated or
// moved. The trailer has the end of that chain and the totals. lib/FORMAT.md has every byte.
//
// It is written and read from its beginning to its end, so it may come and go through a pipe, and
// may be compressed as a whole (transfer/byte_stream.h). Of a plain file the end is looked at
// first.
//
// Everything in a file is untrusted: each length, offset and count is checked before it is used.
// Only what has a right checksum is taken for what it says.
//
// Thread safety: functions, all; an IncrementReader is for one thread.
// Errors: EIO for a file that is damaged or cut, EINVAL for what is no incremental file or was
// written by a newer format, EINTR when `interrupted` said so, else the system's errno. What a Disk
// and a stream throw is passed on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/disk.h"
#include "base/volume_types.h"
#include "template/content_id.h"
#include "transfer/byte_stream.h"

namespace tplstore {

inline constexpr uint64_t kIncrementMagic = 0x3172636e696c7074;         // "tplincr1"
inline constexpr uint64_t kIncrementTrailerMagic = 0x6572636e696c7074;  // "tplincre"
inline constexpr uint32_t kIncrementFormat = 1;
inline constexpr uint32_t kIncrementSinceTemplate = 1;                 // a feature bit
inline constexpr uint32_t kIncrementDataBytesMax = uint32_t{1} << 20;  // of one record
inline constexpr uint32_t kIncrementNoteBytesMax = 4096;

struct IncrementHeader {
  uint64_t magic;
  uint32_t format;
  uint32_t features;  // bits that a reader must know
  Uuid base_volume;   // both base fields are zeroes when no version is the base
  Uuid volume;
  uint32_t base_number;
  uint32_t number;
  uint64_t size_bytes;
  uint64_t base_size_bytes;
  int64_t created_ns;
  uint16_t volume_name_bytes;
  uint16_t version_name_bytes;
  uint16_t note_bytes;
  uint16_t template_name_bytes;  // these two with kIncrementSinceTemplate only, else reserved
  // Of a base that is a version the first 8 bytes say when that was frozen, and the rest is
  // reserved.
  ContentId template_content;
  uint64_t checksum;  // of all before it (as the seed) and of the names and the note behind it
};
static_assert(sizeof(IncrementHeader) == 128);
static_assert(offsetof(IncrementHeader, features) == 12);
static_assert(offsetof(IncrementHeader, base_volume) == 16);
static_assert(offsetof(IncrementHeader, volume) == 32);
static_assert(offsetof(IncrementHeader, base_number) == 48);
static_assert(offsetof(IncrementHeader, number) == 52);
static_assert(offsetof(IncrementHeader, size_bytes) == 56);
static_assert(offsetof(IncrementHeader, base_size_bytes) == 64);
static_assert(offsetof(IncrementHeader, created_ns) == 72);
static_assert(offsetof(IncrementHeader, volume_name_bytes) == 80);
static_assert(offsetof(IncrementHeader, version_name_bytes) == 82);
static_assert(offsetof(IncrementHeader, note_bytes) == 84);
static_assert(offsetof(IncrementHeader, template_name_bytes) == 86);
static_assert(offsetof(IncrementHeader, template_content) == 88);
static_assert(offsetof(IncrementHeader, checksum) == 120);

enum class IncrementKind : uint32_t { kData = 1, kZero = 2 };

struct IncrementRecord {
  IncrementKind kind;
  uint32_t reserved;
  uint64_t offset;         // in the disk
  uint64_t length;         // of a data record at most kIncrementDataBytesMax
  uint64_t data_checksum;  // of the data that follows; 0 of zeroes
  uint64_t chain;          // checksum of the 32 bytes before it, seeded with the chain so far
};
static_assert(sizeof(IncrementRecord) == 40);
static_assert(offsetof(IncrementRecord, offset) == 8);
static_assert(offsetof(IncrementRecord, length) == 16);
static_assert(offsetof(IncrementRecord, data_checksum) == 24);
static_assert(offsetof(IncrementRecord, chain) == 32);

struct IncrementTrailer {
  uint64_t magic;
  uint64_t record_count;
  uint64_t data_bytes;  // sums of the records' lengths
  uint64_t zero_bytes;
  uint64_t chain;     // of the last record; the header's checksum when there is none
  uint64_t checksum;  // of the 40 bytes before it, seeded with the header's checksum
};
static_assert(sizeof(IncrementTrailer) == 48);
static_assert(offsetof(IncrementTrailer, record_count) == 8);
static_assert(offsetof(IncrementTrailer, data_bytes) == 16);
static_assert(offsetof(IncrementTrailer, zero_bytes) == 24);
static_assert(offsetof(IncrementTrailer, chain) == 32);
static_assert(offsetof(IncrementTrailer, checksum) == 40);

struct IncrementInfo {
  VersionIdentity base;     // nil: the file has a whole version, or is based on a template
  VersionIdentity version;  // what a disk is after the change
  std::string volume_name;
  std::string version_name;      // empty when it has none
  std::string note;              // any bytes
  int64_t created_ns = 0;        // when the version was frozen
  uint64_t size_bytes = 0;       // of the version
  uint64_t base_size_bytes = 0;  // 0 without a base
  int64_t base_created_ns = 0;   // when the base was frozen; 0 where that is not known
  // The template that it is based on, if it is: the name that it has in the store that it came
  // from, and what it is called everywhere.
  std::string template_name;
  ContentId template_content;

  bool is_since_template() const { return !template_name.empty(); }
};

// `done_bytes` rises from call to call.
using IncrementProgress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;
using IncrementInterrupted = std::function<bool()>;

struct IncrementOptions {
  bool may_replace = false;
  Compression compression = Compression::kNone;
  IncrementProgress progress = [](uint64_t, uint64_t) {};  // of the disk
  IncrementInterrupted interrupted = [] { return false; };
};

// Writes all that `disk` has as data: its extents that are no holes are what changed. Blocks of
// zeroes among them are recorded as zeroes. The disk is `info.size_bytes` large. The file appears
// under its name only when it is whole and durable; a failed or interrupted call leaves nothing
// behind, but for what has gone to standard output ("-"). EEXIST when it is there and may not be
// replaced. The number of bytes recorded as data.
uint64_t write_increment(Disk& disk, const IncrementInfo& info, const std::string& file,
                         const IncrementOptions& options);

class IncrementReader {
 public:
  // Checks the header, and of a plain file the trailer, and that it has the size that they give.
  static IncrementReader open(
      const std::string& file, const IncrementInterrupted& interrupted = [] { return false; });

  const std::string& name() const { return file_; }  // for messages
  const IncrementInfo& info() const { return info_; }
  // What the trailer says, when it was read: before of a plain file, else at the end.
  uint64_t data_bytes() const { return trailer_.data_bytes; }
  uint64_t zero_bytes() const { return trailer_.zero_bytes; }

  // Whether it can be read more than once, so that verify() may come before apply().
  bool can_verify() const { return stream_->can_rewind(); }

  // Reads everything once and checks it. Progress, here and in apply(), is of a plain file's bytes,
  // else of the disk.
  void verify(
      const IncrementProgress& progress = [](uint64_t, uint64_t) {},
      const IncrementInterrupted& interrupted = [] { return false; });

  // Makes the change to a disk of info().size_bytes that has the content of the base. Everything is
  // checked again before it is written, and the first thing that is wrong ends it, with what came
  // before it written: so verify() comes first where it can. What it wrote is durable after
  // into.flush().
  void apply(
      Disk& into, const IncrementProgress& progress = [](uint64_t, uint64_t) {},
      const IncrementInterrupted& interrupted = [] { return false; });

 private:
  using Consumer = std::function<void(const IncrementRecord& record, Bytes data)>;
  struct Cursor;

  explicit IncrementReader(std::unique_ptr<ByteReader> stream);

  void take(MutableBytes into);
  template <typename T>
  void take_rest(T& into, size_t taken);
  void read_header();
  void check_trailer(const IncrementTrailer& trailer) const;
  void look_at_end();
  std::optional<IncrementRecord> take_record(Cursor& at);
  void take_trailer(const Cursor& at);
  Bytes take_data(const IncrementRecord& record, Cursor& at);
  void go_to_records();
  void walk(const Consumer& consume, const IncrementProgress& progress,
            const IncrementInterrupted& interrupted);
  template <typename... Args>
  [[noreturn]] void fail_damaged(fmt::format_string<Args...> what, Args&&... args) const;

  std::string file_;
  std::unique_ptr<ByteReader> stream_;
  std::optional<uint64_t> file_bytes_;  // of a plain file
  IncrementInfo info_;
  uint64_t records_position_ = 0;  // where the first record is
  uint64_t head_checksum_ = 0;     // the header's
  IncrementTrailer trailer_{};
};

}  // namespace tplstore
