// The map log: one append-only object "map.<generation>" of checksummed frames.
//
// A frame is a header and a payload, padded to whole sectors, so that no durable sector is ever
// written again. Its checksum covers the log's identity (volume uuid and generation, as the seed),
// its sequence number, the incarnation and the checksum of the frame before it: a frame is valid
// only as the successor of exactly one other. An *incarnation* is one life of a writer; it begins
// with an open frame, so a frame of an earlier life that is still there after a crash can never
// pass for a successor.
//
// The log is written ahead with zeroes, so that appending changes no file size (fdatasync stays
// cheap) and cannot run out of space: reserve() sets space aside for an update before the write
// that causes it is accepted, and kReserveBytes stay free beyond that. On a full disk, what frees
// cells may draw on them: trims only on the first kTrimReserveBytes, so that whatever guests do the
// rest is there for removing versions and forks, and for the open frame.
//
// Recovery reads until the first frame that is not valid. Anything that proves it had been durable
// makes that damage (Error EIO), not the end of the log: a later frame that says so, a clean close
// or a checkpoint behind it, or an object that ends too early (behind every durable frame there
// are at least kProofBytes).
//
// Thread safety: all methods, once start_writing() or scan() has returned.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "base/bytes.h"
#include "base/mutex.h"

namespace tplstore {

// How far a reservation may draw on the log's reserve when the disk is full.
enum class Reserve { kNone, kTrims, kDeletions };

enum class FrameKind : uint16_t { kOpen = 1, kUpdates = 2, kNodes = 3, kCheckpoint = 4 };

struct FrameHeader {
  uint32_t magic;
  uint32_t length;       // of the frame with its padding, in bytes
  uint64_t checksum;     // XXH3-64 of the frame from `previous` on, seeded with the log's seed
  uint64_t previous;     // checksum of the frame before; 0 for the first
  uint64_t incarnation;  // random, one for each life of a writer
  uint64_t sequence;     // 1, 2, …
  uint64_t durable;      // the last sequence number known to be durable when this was appended
  uint32_t payload_bytes;
  uint16_t kind;
  uint16_t name_bytes;  // of an open frame's payload, which name the journal; records follow
};
static_assert(sizeof(FrameHeader) == 56 && offsetof(FrameHeader, kind) == 52);

// Where a log goes on: behind a frame.
struct LogPosition {
  uint64_t offset;       // of the next frame
  uint64_t sequence;     // of the frame before it
  uint64_t checksum;     // of the frame before it
  uint64_t incarnation;  // of the frame before it
};
static_assert(sizeof(LogPosition) == 32);

struct LogFrame {
  FrameHeader header;
  Bytes payload;
};

// What an open frame says: bytes that name the life's journal, and behind them records that were in
// the last one's.
struct LogOpening {
  ByteVector payload = {};
  uint16_t name_bytes = 0;
};

class MapLog {
 public:
  static constexpr uint64_t kFirstFrameOffset = 4096;  // behind the log's own header
  static constexpr uint64_t kReserveBytes = 64 << 10;
  static constexpr uint64_t kTrimReserveBytes = 16 << 10;
  static constexpr uint64_t kProofBytes = 4096;

  static std::string object_name(const std::string& folder, uint64_t generation);
  // Makes a log that must not exist; durable after the caller syncs the folder and the log.
  static std::unique_ptr<MapLog> create(Backend& backend, const std::string& folder,
                                        const Uuid& volume, uint64_t generation);
  // ENOENT when there is none; EIO when it is not this volume's. For writing it is settled first.
  static std::unique_ptr<MapLog> open(Backend& backend, const std::string& folder,
                                      const Uuid& volume, uint64_t generation, Access access);

  static LogPosition start() { return {kFirstFrameOffset, 0, 0, 0}; }

  // Reads frames from `from` on and gives each to `visit`. `known_sequence` is a frame that is
  // known to be durable. Returns where the log goes on; EIO for damage.
  LogPosition scan(const LogPosition& from, uint64_t known_sequence,
                   const std::function<void(const LogFrame&)>& visit);
  // The single frame at `offset`; EIO unless it is valid by itself.
  ByteVector read_frame(uint64_t offset, FrameKind kind, LogPosition& after);
  // Bytes of a node.
  void read(uint64_t offset, MutableBytes into) { object_->read(offset, into); }

  // Where the next life begins when scan() has found that the log goes on at `at`: where the last
  // one did, if its open frame has no records and nothing has followed it, so that lives that
  // change nothing take no space. Both frames are one sector, and a crash leaves the old one or the
  // new one.
  LogPosition start_of_life(const LogPosition& at, const LogOpening& opening) const;
  // Begins to write there: zeroes what follows, writes an open frame of a new incarnation, and
  // makes it and all before it durable.
  void start_writing(const LogPosition& at, Reserve draws_on = Reserve::kDeletions,
                     const LogOpening& opening = {}) EXCLUDES(mutex_);
  // That frame's, if it names a journal; else 0.
  uint64_t named_open_offset() const EXCLUDES(mutex_);

  // From then on `bytes` more of update records can be appended; ENOSPC.
  void reserve(uint64_t bytes, Reserve draws_on) EXCLUDES(mutex_);
  void unreserve(uint64_t bytes);
  uint64_t reserved_bytes() const;
  // Reserves what another log had reserved, whether there is room or not: what cannot be appended
  // then says so.
  void adopt_reserved(uint64_t bytes) noexcept EXCLUDES(mutex_);
  // Appends a frame; `reserved` bytes of reservations end with it. Returns the payload's offset.
  uint64_t append(FrameKind kind, Bytes payload, uint64_t reserved, uint16_t name_bytes = 0)
      EXCLUDES(mutex_);
  // Makes all that was appended before the call durable.
  void sync() EXCLUDES(mutex_);

  LogPosition position() const EXCLUDES(mutex_);    // of the tail
  uint64_t written_bytes() const EXCLUDES(mutex_);  // with what is zeroed ahead
  uint64_t seed() const { return seed_; }
  uint64_t generation() const { return generation_; }
  const std::string& name() const { return name_; }
  bool has_failed() const EXCLUDES(mutex_);

 private:
  MapLog(std::unique_ptr<Object> object, std::string name, const Uuid& volume, uint64_t generation);
  uint64_t frame_checksum(Bytes frame) const;
  bool is_frame(Bytes sector, uint64_t offset, uint64_t end, FrameHeader& header) const;
  void make_room(uint64_t bytes) REQUIRES(mutex_);
  void count_room() REQUIRES(mutex_);
  [[noreturn]] void damaged(uint64_t offset, const std::string& why) const;

  std::unique_ptr<Object> object_;
  const std::string name_;
  const uint64_t generation_;
  const uint64_t seed_;
  // What is before the open frame at the end, if one is and says nothing that is needed.
  std::optional<LogPosition> unused_open_;

  mutable Mutex mutex_;  // held during appends, not syncs
  LogPosition tail_ GUARDED_BY(mutex_) = start();
  uint64_t incarnation_ GUARDED_BY(mutex_) = 0;
  uint64_t named_open_offset_ GUARDED_BY(mutex_) = 0;
  uint64_t durable_ GUARDED_BY(mutex_) = 0;
  uint64_t zeroed_end_ GUARDED_BY(mutex_) = 0;
  bool has_failed_ GUARDED_BY(mutex_) = false;
  int64_t total_room_ GUARDED_BY(mutex_) = 0;  // room_ and what is reserved together
  // What is reserved, and what more may be without making room.
  std::atomic<uint64_t> reserved_{0};
  std::atomic<int64_t> room_{0};
};

}  // namespace tplstore
