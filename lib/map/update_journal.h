// Records that no commit covers yet, kept where they outlive the process: in memory that is shared
// with nobody and lasts as long as the host is up.
//
// Data that was written is in the page cache, or on the disk, when a process dies; what would be
// gone is what the map has learnt since its last commit. So each record that enters the pending
// list is copied into a ring here, under the same lock, before anything rests on it: an answer, an
// overwrite or a punch of what it leads to. The next life finds by the log which journal the last
// one kept (JournalName, in its open frame) and from which position on the log lacks what is in it
// (PositionRecord, and checkpoints).
//
//   position   how many bytes of records have been put since the life began; only rises
//   whole from all that was put from this position on is there: behind what a commit has covered,
//              whose space is used again, and behind a record that found no room. What a journal
//              has counts only if the position that the log has got to is not before it.
//   spoilt     it never counts again: data that the records lead to may be gone
//
// A process stops between two instructions, and what it has stored is there. So records are stored
// before the end that says they are, and "whole from" before the space is used again; there is no
// checksum of the records, of which the last one may grow in place, by one store of 8 bytes.
//
// Who makes such memory, and finds it again, is whoever hands in a JournalPlace.
//
// Thread safety: of UpdateJournal none but for is_filling(), the map's lock guards it; of a
// JournalPlace all methods.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "map/records.h"

namespace tplstore {

// What the log says of the journal of a life.
struct JournalName {
  Uuid id;           // nil: none was kept, and nothing is lost without it
  Uuid boot;         // of the host, while the life lasted
  std::string path;  // empty: one was to be kept, and there was no place for it
  bool is_named() const { return !id.is_nil(); }
};
inline constexpr size_t kJournalPathBytesMax = 384;  // with it an open frame is one sector
ByteVector encode_journal_name(const JournalName& name);
JournalName decode_journal_name(Decoder& from);

// While there is one, nobody else has that memory.
class JournalMemory {
 public:
  virtual ~JournalMemory() = default;
  virtual MutableBytes bytes() = 0;
};

class JournalPlace {
 public:
  virtual ~JournalPlace() = default;
  virtual Uuid boot() const = 0;
  // Whether this process serves disks. Then it keeps journals, and may say that one is lost: others
  // may just not see it.
  virtual bool is_servers() const = 0;
  // Makes a journal's memory, all zeroes, all of it there, and says where. Nothing when there is no
  // place for it; the log says why.
  virtual std::unique_ptr<JournalMemory> create(const Uuid& volume, const Uuid& id,
                                                std::string& path) = 0;
  // Nothing when it is not there. Errors: EBUSY when somebody has it; why it cannot be read.
  virtual std::unique_ptr<JournalMemory> open(const std::string& path) = 0;
  // Removes one, and all of the volume that can be found but `kept`. What cannot be removed stays.
  virtual void remove(const std::string& path) noexcept = 0;
  virtual void remove_others(const Uuid& volume, const std::string& kept) noexcept = 0;
};

// The first bytes of the memory; the ring follows.
struct JournalHeader {
  uint64_t checksum;  // of what follows, up to the reserved bytes
  uint64_t magic;
  Uuid volume;
  Uuid id;
  Uuid boot;
  uint64_t ring_bytes;
  uint64_t reserved[7];
  // These change; each is stored as a whole.
  uint64_t end;  // the position behind the last record
  uint64_t whole_from;
};
static_assert(sizeof(JournalHeader) == 144 && offsetof(JournalHeader, end) == 128);
inline constexpr uint64_t kJournalHeaderBytes = 4096;
inline constexpr uint64_t kJournalSpoilt = UINT64_MAX;

class UpdateJournal {
 public:
  // From here on records are kept there. None has been put yet.
  void begin(std::unique_ptr<JournalMemory> memory, const Uuid& volume, const JournalName& name);
  bool is_kept() const { return memory_ != nullptr; }

  void put(Bytes records) noexcept {
    const uint64_t end = end_ + records.size();
    if (ring_ != nullptr) {
      if (end - released_ <= ring_bytes_) {
        copy(records);
      } else {
        // What comes behind it is whole again, once a commit covers it.
        at_ = end % ring_bytes_;
        raise_whole_from(end);
      }
      store(header_->end, end);
      used_bytes_.store(end - released_, std::memory_order_relaxed);
    }
    end_ = end;
  }
  // The last record that was put is this one now: its first 8 bytes are the same.
  void grow_last(const RecordHeader& record) noexcept {
    if (ring_ == nullptr || whole_from_ >= end_) return;
    uint64_t word = 0;
    std::memcpy(&word, &record.count, sizeof word);
    const uint64_t at = (at_ == 0 ? ring_bytes_ : at_) - sizeof word;
    store(*reinterpret_cast<uint64_t*>(ring_ + at), word);
  }
  uint64_t end() const { return end_; }
  // What was put before this position is durable in the log.
  void release(uint64_t position) noexcept;
  void spoil() noexcept { raise_whole_from(kJournalSpoilt); }
  // Whether so many eighths of it are in use.
  bool is_filling(uint64_t eighths) const {
    return 8 * used_bytes_.load(std::memory_order_relaxed) >= eighths * ring_bytes_;
  }

 private:
  static void store(uint64_t& word, uint64_t value) {
    std::atomic_ref<uint64_t>(word).store(value, std::memory_order_release);
  }
  void copy(Bytes records) noexcept {
    if (records.size() != kRecordBytes) return copy_long(records);
    std::memcpy(ring_ + at_, records.data(), kRecordBytes);
    at_ += kRecordBytes;
    if (at_ == ring_bytes_) at_ = 0;
  }
  void copy_long(Bytes records) noexcept;
  void raise_whole_from(uint64_t position) noexcept;

  std::unique_ptr<JournalMemory> memory_;
  JournalHeader* header_ = nullptr;
  std::byte* ring_ = nullptr;
  uint64_t ring_bytes_ = UINT64_MAX / 8;
  uint64_t at_ = 0;  // where the next record goes in the ring
  uint64_t end_ = 0;
  uint64_t released_ = 0;
  uint64_t whole_from_ = 0;
  std::atomic<uint64_t> used_bytes_{0};
};

// Of another life's journal, whose memory is untrusted: all records behind a position, as bytes.
// Nothing when it is not that journal, or does not have all of them.
std::optional<ByteVector> read_journal(JournalMemory& memory, const Uuid& volume,
                                       const JournalName& name, uint64_t from);
void spoil_journal(JournalMemory& memory);

}  // namespace tplstore
