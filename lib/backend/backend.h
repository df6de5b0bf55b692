// The one seam to storage: sparse, byte-addressed, named objects.
//
// Everything above this interface works on any backend: `DirBackend` (a local directory),
// `MemoryBackend` (for tests: records every change and can lose what was not synced), and later
// Ceph. So nothing above it may need rename, truncation or preallocation to be cheap, and nothing
// below it knows what a template or a volume is.
//
// Object names are relative paths of lower-case words, digits and names that `base/names.h` allows,
// e.g. "volumes/<uuid>/map.1"; a name's *folder* is what stands before its last '/'.
//
// Durability: object content is durable after sync(); the existence of a created object, and the
// absence of a removed one, after sync_folder() of its folder. put_new() is durable on return,
// put_claim() is not.
// Without those a crash may keep or lose each change by itself, content by 512-byte sectors.
//
// Thread safety: all methods of Backend, Object and HeldLock may be called from any thread;
// concurrent writes to overlapping bytes leave either's bytes, sector by sector.
//
// Errors: Error with the system's errno; ENOENT where an object is not there, ENOSPC when full.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"

namespace tplstore {

enum class Access { kRead, kWrite };

// What an object is for. Whoever opens it says so, and always the same.
enum class Purpose {
  kMetadata,  // what describes a store: small, and kept in caches by who stores it
  kData,      // blocks of disks, of which no more is read than was written: may pass by caches
};

enum class LockMode { kShared, kExclusive };

// Where a store is, and who can have it at the same time. Between hosts locks need not meet.
struct StorageKind {
  enum class Reach { kOneHost, kHosts, kUnknown };
  std::string name;  // "ext4", "NFS"
  Reach reach = Reach::kOneHost;
};

// What there is room for in all, and what is left of it for us.
struct StorageSpace {
  uint64_t total_bytes;
  uint64_t free_bytes;
};

struct DataRange {
  uint64_t offset;
  uint64_t length;  // never 0
};

class Backend;

// An open object. Closing (destroying) it does not sync.
class Object {
 public:
  explicit Object(Backend& owner) : owner_(owner) {}
  virtual ~Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  // The backend whose batches it may be in.
  Backend& owner() const { return owner_; }

  // Fills `into`; bytes never written read as zeroes. So do those past the end of metadata; to read
  // such of data is EIO: what was there has been cut off.
  virtual void read(uint64_t offset, MutableBytes into) = 0;
  virtual void write(uint64_t offset, Bytes from) = 0;
  // Gives the space of the range back; it reads as zeroes afterwards. Does nothing where the
  // storage cannot do it, hence only for bytes that nothing will read.
  virtual void punch(uint64_t offset, uint64_t length) = 0;
  // Grows a sparse object; never shrinks it. EFBIG when the storage cannot hold that size.
  virtual void grow(uint64_t size_bytes) = 0;
  // Makes what was written, punched and grown before the call durable. Throws when that
  // failed, now or since this Object was opened: what should have become durable may be lost then,
  // though reads go on showing it and a later sync, of another Object, says nothing.
  virtual void sync() = 0;
  // Lets go of what is kept in memory of the content, but for what was written since the last sync:
  // reads show what the storage has, also where a sync failed. Does nothing where nothing is kept.
  virtual void drop_cached() = 0;

  virtual uint64_t size_bytes() = 0;
  virtual uint64_t allocated_bytes() = 0;
  // The first range at or behind `offset` that may occupy space, synced or not; nothing when there
  // is none up to the end. It may end before the data does: the next call goes on from its end.
  // Bytes outside of all ranges occupy nothing and read as zeroes. Where the storage cannot tell,
  // the range is all from `offset` to the end. What is written or punched during the call may be
  // seen or not.
  virtual std::optional<DataRange> find_data(uint64_t offset) = 0;

  // Its content never changes, and may be moved: where it is not under its name any more when it
  // has to be opened again, `find` opens what has its content now. Comes before it is used.
  virtual void set_finder(const std::function<std::unique_ptr<Object>()>&) {}

 private:
  Backend& owner_;
};

// Makes what an earlier life left of an object durable, as far as it can be, and what is read of it
// from now on that which is durable.
inline void settle(Object& object) {
  object.sync();
  object.drop_cached();
}

struct ReadPiece {
  Object* object;
  uint64_t offset;
  MutableBytes into;
};

struct WritePiece {
  Object* object;
  uint64_t offset;
  Bytes from;
};

// What failed of a batch, piece by piece; the others are done.
class [[nodiscard]] BatchFailures {
 public:
  struct Failure {
    size_t piece;  // its index in the batch
    std::exception_ptr error;
  };
  bool empty() const { return failures_.empty() && !is_incomplete_; }
  // In no order. std::bad_alloc when there was no memory to tell.
  const std::vector<Failure>& all() const {
    if (is_incomplete_) throw std::bad_alloc();
    return failures_;
  }
  // Throws the error of the first piece that has one.
  void throw_first() const {
    if (empty()) [[likely]]
      return;
    std::rethrow_exception(std::ranges::min_element(all(), {}, &Failure::piece)->error);
  }

  // For backends: does a part of what a piece needs.
  template <typename Step>
  void attempt(size_t piece, Step step) noexcept {
    try {
      step();
    } catch (...) {
      try {
        failures_.push_back({piece, std::current_exception()});
      } catch (...) {
        is_incomplete_ = true;
      }
    }
  }

 private:
  std::vector<Failure> failures_;
  bool is_incomplete_ = false;
};

// An object has a lock per slot, and the locks of different slots do not touch each other. So one
// object can stand for many things that are locked one by one.
constexpr uint64_t kLockSlotMax = uint64_t{1} << 40;

// A lock that is held until destroyed, by this open file and not by the process: two HeldLocks on
// one slot exclude each other within one process too, and the end of the process releases it.
class HeldLock {
 public:
  virtual ~HeldLock() = default;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Opens an existing object. Opening for reading never changes anything.
  virtual std::unique_ptr<Object> open(const std::string& name, Access access, Purpose purpose) = 0;
  // Creates an object that must not exist (EEXIST), sparse and of this size, open for writing.
  virtual std::unique_ptr<Object> create(const std::string& name, uint64_t size_bytes,
                                         Purpose purpose) = 0;

  // Several pieces at once, of any objects of this backend; returns when all have ended. EINVAL,
  // and nothing is done, when an object is another backend's.
  BatchFailures read_batch(std::span<const ReadPiece> pieces) {
    check_owned(pieces);
    BatchFailures failures;
    run_reads(pieces, failures);
    return failures;
  }
  BatchFailures write_batch(std::span<const WritePiece> pieces) {
    check_owned(pieces);
    BatchFailures failures;
    run_writes(pieces, failures);
    return failures;
  }

  // Publishes `content` under a new name, atomically and durably: after a crash the object is
  // there whole or not at all. False, and nothing changed, when the name exists.
  virtual bool put_new(const std::string& name, Bytes content) = 0;
  // The same for what decides between the living and means nothing after a crash of all: of storage
  // that one host has it is not durable, and a crash may leave it there without its content.
  virtual bool put_claim(const std::string& name, Bytes content) { return put_new(name, content); }
  // The whole content of an object, or nothing when it does not exist; EFBIG past `max_bytes`.
  virtual std::optional<ByteVector> get(const std::string& name, uint64_t max_bytes) = 0;

  // Last parts of the names in a folder, sorted; empty when the folder does not exist. Folders
  // inside it are listed too.
  virtual std::vector<std::string> list(const std::string& folder) = 0;
  // False when there was no such object.
  virtual bool remove(const std::string& name) = 0;
  // Removes a folder with all that is in it; nothing happens when there is none.
  virtual void remove_folder(const std::string& folder) = 0;
  virtual void sync_folder(const std::string& folder) = 0;

  // Nothing when somebody else holds it. The object must exist (ENOENT); EINVAL for a slot past
  // kLockSlotMax. A lock that is given is of the object that has this name then: never of one that
  // was removed since it was looked for, while others may lock a new one of that name.
  virtual std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode,
                                             uint64_t slot) = 0;
  // The lock of an object that has just one: slot 0.
  std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode) {
    return try_lock(name, mode, 0);
  }
  // Whether anybody holds the lock of that object, in either mode. Takes nothing, so that asking
  // is in nobody's way. ENOENT.
  virtual bool is_locked(const std::string& name) = 0;

  // Writes of data and their offsets are multiples of this many bytes (EINVAL): 1, or kBlockBytes
  // where the page cache is bypassed.
  virtual uint32_t write_alignment_bytes() const = 0;
  // For messages: "/srv/store", "memory".
  virtual std::string describe() const = 0;
  virtual StorageKind kind() const { return {"memory"}; }
  // Nothing where that cannot be told.
  virtual std::optional<StorageSpace> space() { return {}; }
  // Whether what is open is what its location leads to: not when it was unmounted since, or
  // something else mounted over it.
  virtual bool is_in_place() { return true; }

 private:
  // A backend that can do no better does them one after the other.
  virtual void run_reads(std::span<const ReadPiece> pieces, BatchFailures& failures) {
    for (size_t i = 0; i < pieces.size(); ++i)
      failures.attempt(i, [&] { pieces[i].object->read(pieces[i].offset, pieces[i].into); });
  }
  virtual void run_writes(std::span<const WritePiece> pieces, BatchFailures& failures) {
    for (size_t i = 0; i < pieces.size(); ++i)
      failures.attempt(i, [&] { pieces[i].object->write(pieces[i].offset, pieces[i].from); });
  }
  template <typename Piece>
  void check_owned(std::span<const Piece> pieces) const {
    for (const Piece& piece : pieces)
      if (&piece.object->owner() != this)
        fail(EINVAL, describe(), "was given an object of {} in a batch",
             piece.object->owner().describe());
  }
};

}  // namespace tplstore
