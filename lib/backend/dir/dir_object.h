// An open file of a DirBackend, and the cache of descriptors that closes idle ones, whatever
// directories they are of.
//
// A DirObject exists as long as its owner wants; its descriptor is closed when more are open than
// the cap allows and it has been idle, and opened again by the next use. Then it must be the same
// file, or one that its finder gives: an object whose name was removed or replaced meanwhile
// answers ENOENT.
//
// Using a descriptor counts its users with one atomic addition; only taking one in and closing one
// take the cache's mutex. A file is opened again without it: who needs that object waits, nobody
// else. Invariants:
//  - a descriptor is closed only while nobody uses it and no write on it awaits a sync: the
//    kernel reports a failed write-back once, to the descriptors that were open then;
//  - after a failed sync the object is dead for writing: write() and sync() throw EIO, for the
//    kernel may have dropped the data and a second sync would call it durable;
//  - a file gets longer only with size_mutex_ held, so growing never shrinks it.
//
// All transfers say their offset. The position of a descriptor is nobody's, since find_data() moves
// it while others use the descriptor.
//
// With O_DIRECT all transfers are whole aligned blocks of the file: a read of less, and one into or
// a write from memory that is not aligned, goes through a bounce buffer; a write of less is EINVAL.
//
// Thread safety: all methods. Errors: Error with the system's errno and the path of the file. The
// DirStorage must outlive its objects.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/dir/bounce_buffer.h"
#include "backend/dir/io_ring.h"
#include "base/files.h"
#include "base/log.h"
#include "base/mutex.h"

namespace tplstore {

class DirObject;

// The open descriptors, in the order of a clock's hand.
class DescriptorCache {
 public:
  explicit DescriptorCache(size_t cap_count) : cap_count_(cap_count) {}

  // Takes in an object that has just been opened, and closes idle ones over the cap.
  void add(DirObject& object);
  // Forgets an object that ends.
  void drop(DirObject& object);
  // Closes one idle descriptor; false when there is none.
  bool close_one();
  size_t open_count() const;

 private:
  // Takes an idle descriptor out, for the caller to close; none when there is none.
  FileDescriptor take_idle_locked() REQUIRES(mutex_);
  void forget_locked(DirObject& object) REQUIRES(mutex_);

  const size_t cap_count_;
  mutable Mutex mutex_;
  std::vector<DirObject*> open_ GUARDED_BY(mutex_);
  size_t hand_ GUARDED_BY(mutex_) = 0;
};

// What a DirBackend and its objects share.
struct DirStorage {
  DirStorage(std::string directory_path, FileDescriptor root_fd, DescriptorCache& shared_cache,
             Log logger)
      : directory(std::move(directory_path)),
        root(std::move(root_fd)),
        cache(shared_cache),
        log(std::move(logger)) {}

  std::string describe(std::string_view name) const;
  // Calls `open`, which gives a descriptor or sets errno, closing idle objects and trying again as
  // long as the process is out of descriptors.
  template <typename F>
  FileDescriptor open_with_room(F open) {
    for (;;) {
      FileDescriptor fd = open();
      if (fd || (errno != EMFILE && errno != ENFILE)) return fd;
      const int refused_with = errno;
      if (!cache.close_one()) {
        errno = refused_with;
        return fd;
      }
    }
  }
  FileDescriptor open(const std::string& name, int flags) {
    return open_with_room([&] { return open_beneath(root.get(), name, flags); });
  }
  // Sets the mode that an object's descriptor works in; true when that is O_DIRECT, which data gets
  // if it is wanted and possible.
  bool set_mode(int fd, Purpose purpose);

  // Gives a file that was just made to the owner of the directory, if root made it.
  void give_to_owner(int fd);

  const std::string directory;
  const FileDescriptor root;
  DescriptorCache& cache;
  const Log log;
  std::function<int(int)> fdatasync;
  std::atomic<bool> is_direct{false};
  std::atomic<bool> has_kept_files{false};  // that could not be given to the owner
};

class alignas(64) DirObject final : public Object {
 public:
  // `status` is the file's, `fd` is open with the access.
  DirObject(Backend& owner, DirStorage& storage, std::string name, Access access, Purpose purpose,
            FileDescriptor fd, const struct stat& status);
  ~DirObject() override;

  void read(uint64_t offset, MutableBytes into) override;
  void write(uint64_t offset, Bytes from) override;
  void punch(uint64_t offset, uint64_t length) override;
  void grow(uint64_t size_bytes) override;
  void sync() override;
  void drop_cached() override;
  uint64_t size_bytes() override;
  uint64_t allocated_bytes() override;
  std::optional<DataRange> find_data(uint64_t offset) override;
  void set_finder(const std::function<std::unique_ptr<Object>()>& find) override { find_ = find; }

  // The parts of read() and write(), for batches. The bytes that a piece needs of a bounce buffer;
  // what is to be run, or nothing when it was a write that had to be alone, and is done; and its
  // end, which every begin that gave an operation is followed by when that has run.
  size_t bounce_bytes(uint64_t offset, Bytes buffer) const;
  std::optional<IoOp> begin(const ReadPiece& piece, std::byte* bounce);
  std::optional<IoOp> begin(const WritePiece& piece, std::byte* bounce);
  void end(IoOp& op, const ReadPiece& piece);
  void end(IoOp& op, const WritePiece& piece);

 private:
  friend class DescriptorCache;
  class Use;

  template <typename Piece>
  void transfer(const Piece& piece, Bytes buffer);
  int begin_use();
  void end_use() noexcept;
  void open_again();
  void open_file_again();
  FileDescriptor find_elsewhere();
  void ensure_sound() const;
  void ensure_writable() const;
  void check(const IoOp& op);
  void raise_size_floor(uint64_t size_bytes) REQUIRES(size_mutex_);
  struct stat status();
  // Where data or a hole begins at or behind `offset`; nothing when none does.
  std::optional<uint64_t> seek(int fd, uint64_t offset, int whence);
  [[noreturn]] void fail_here(int code, std::string_view action) const;

  // Bits of state_ above the count of users.
  static constexpr uint32_t kOpen = 1u << 31;      // fd_ is a descriptor
  static constexpr uint32_t kUnsynced = 1u << 30;  // a write has ended since the last sync began
  static constexpr uint32_t kUsed = 1u << 29;      // since the clock's hand last passed
  static constexpr uint32_t kFailed = 1u << 28;    // a sync failed
  static constexpr uint32_t kMoving = 1u << 27;    // fd_ is being opened or closed
  static constexpr uint32_t kUsers = kMoving - 1;

  // What every transfer looks at is in one cache line, for there may be very many objects.
  const Access access_;
  const bool is_data_;
  const bool is_direct_;
  std::atomic<uint32_t> state_{kOpen | kUsed};
  int fd_;  // written by who has set kMoving, read by its users
  // The file is at least this long: writes below it need no mutex.
  std::atomic<uint64_t> size_floor_bytes_;
  DirStorage& storage_;
  size_t cache_slot_ = 0;  // the cache's
  const std::string name_;
  const dev_t device_;
  const ino_t inode_;
  std::function<std::unique_ptr<Object>()> find_;
  Mutex size_mutex_;  // one change of size at a time
  Mutex sync_mutex_;  // one sync at a time, for the kernel tells a failure to one of them only
};

}  // namespace tplstore
