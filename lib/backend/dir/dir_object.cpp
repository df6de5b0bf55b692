// First the cache of descriptors, a clock over the open objects; then the object: every call uses
// its descriptor for as long as it takes, and reopens it when the cache has closed it.
#include "backend/dir/dir_object.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace tplstore {
namespace {

bool is_aligned(uint64_t value) { return value % kBlockBytes == 0; }

// The error of a read past the end of data; no errno is negative.
constexpr int kPastEnd = -1;

// O_NOATIME where we may: a read shall cost no look at the file's times, and change none.
bool set_flags(int fd, int flags) {
  return fcntl(fd, F_SETFL, flags | O_NOATIME) == 0 || fcntl(fd, F_SETFL, flags) == 0;
}

}  // namespace

// --- DescriptorCache

// Files are closed without the mutex: where a file system hangs in that, others go on.

void DescriptorCache::add(DirObject& object) {
  {
    const Lock lock(mutex_);
    open_.push_back(&object);
    object.cache_slot_ = open_.size() - 1;
  }
  while (open_count() > cap_count_ && close_one()) {
  }
}

void DescriptorCache::drop(DirObject& object) {
  FileDescriptor taken;
  const Lock lock(mutex_);
  if ((object.state_.load(std::memory_order_acquire) & DirObject::kOpen) == 0) return;
  forget_locked(object);
  taken.reset(object.fd_);
}

bool DescriptorCache::close_one() {
  FileDescriptor taken;
  const Lock lock(mutex_);
  taken = take_idle_locked();
  return static_cast<bool>(taken);
}

size_t DescriptorCache::open_count() const {
  const Lock lock(mutex_);
  return open_.size();
}

void DescriptorCache::forget_locked(DirObject& object) {
  open_.back()->cache_slot_ = object.cache_slot_;
  open_[object.cache_slot_] = open_.back();
  open_.pop_back();
}

FileDescriptor DescriptorCache::take_idle_locked() {
  // Two rounds: the first takes the mark of use away, the second finds it still gone.
  for (size_t steps = 2 * open_.size(); steps > 0; --steps) {
    hand_ = hand_ + 1 < open_.size() ? hand_ + 1 : 0;
    DirObject& object = *open_[hand_];
    uint32_t state = object.state_.load(std::memory_order_relaxed);
    if ((state & (DirObject::kUsers | DirObject::kUnsynced)) != 0) continue;
    if ((state & DirObject::kUsed) != 0) {
      object.state_.fetch_and(~DirObject::kUsed, std::memory_order_relaxed);
      continue;
    }
    // Fails when somebody has used it or written to it since.
    if (!object.state_.compare_exchange_strong(
            state, (state & ~DirObject::kOpen) | DirObject::kMoving, std::memory_order_acq_rel)) {
      continue;
    }
    forget_locked(object);
    FileDescriptor taken(std::exchange(object.fd_, -1));
    object.state_.fetch_and(~DirObject::kMoving, std::memory_order_release);
    object.state_.notify_all();
    return taken;
  }
  return {};
}

// --- DirStorage

std::string DirStorage::describe(std::string_view name) const {
  return name.empty() ? directory : fmt::format("{}/{}", directory, name);
}

bool DirStorage::set_mode(int fd, Purpose purpose) {
  if (purpose == Purpose::kData && is_direct.load(std::memory_order_relaxed)) {
    if (set_flags(fd, O_DIRECT)) return true;
    if (is_direct.exchange(false) && log) {
      log(fmt::format("{}: the file system refuses O_DIRECT ({}); using the page cache", directory,
                      std::strerror(errno)));
    }
  }
  set_flags(fd, 0);
  return false;
}

void DirStorage::give_to_owner(int fd) {
  if (give_to_owner_of(root.get(), fd) == 0 || has_kept_files.exchange(true) || !log) return;
  log(fmt::format(
      "{}: files that are made here cannot be given to the owner of the directory ({}); "
      "servers of that user may not be able to open them",
      directory, std::strerror(errno)));
}

// --- DirObject

class DirObject::Use {
 public:
  explicit Use(DirObject& object) : object_(object), fd_(object.begin_use()) {}
  ~Use() { object_.end_use(); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  int fd() const { return fd_; }

 private:
  DirObject& object_;
  const int fd_;
};

DirObject::DirObject(Backend& owner, DirStorage& storage, std::string name, Access access,
                     Purpose purpose, FileDescriptor fd, const struct stat& status)
    : Object(owner),
      access_(access),
      is_data_(purpose == Purpose::kData),
      is_direct_(storage.set_mode(fd.get(), purpose)),
      fd_(fd.release()),
      size_floor_bytes_(static_cast<uint64_t>(status.st_size)),
      storage_(storage),
      name_(std::move(name)),
      device_(status.st_dev),
      inode_(status.st_ino) {
  storage_.cache.add(*this);
}

DirObject::~DirObject() { storage_.cache.drop(*this); }

int DirObject::begin_use() {
  const uint32_t before = state_.fetch_add(1, std::memory_order_acquire);
  if ((before & kOpen) == 0) [[unlikely]] {
    try {
      open_again();
    } catch (...) {
      end_use();
      throw;
    }
  }
  if ((before & kUsed) == 0) state_.fetch_or(kUsed, std::memory_order_relaxed);
  return fd_;
}

void DirObject::end_use() noexcept { state_.fetch_sub(1, std::memory_order_release); }

// Of those who use it one opens it and the others wait.
void DirObject::open_again() {
  uint32_t state = state_.load(std::memory_order_acquire);
  while ((state & kOpen) == 0) {
    if ((state & kMoving) != 0) {
      state_.wait(state, std::memory_order_acquire);
      state = state_.load(std::memory_order_acquire);
      continue;
    }
    if (!state_.compare_exchange_weak(state, state | kMoving, std::memory_order_acquire)) continue;
    const auto end_moving = [this](uint32_t opened) {
      state_.fetch_xor(kMoving | opened, std::memory_order_release);
      state_.notify_all();
    };
    try {
      open_file_again();
    } catch (...) {
      end_moving(0);
      throw;
    }
    end_moving(kOpen);
    return;
  }
}

void DirObject::open_file_again() {
  // What is not a file by now must not hold up whoever opens it.
  const int flags = (access_ == Access::kWrite ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_NOCTTY;
  FileDescriptor fd = storage_.open(name_, flags);
  struct stat now;
  if (fd ? fstat(fd.get(), &now) != 0 : errno != ENOENT || !find_)
    fail_here(errno, "opening it again");
  const bool is_same = fd && now.st_dev == device_ && now.st_ino == inode_;
  if (!is_same && !find_)
    fail(ENOENT, storage_.describe(name_), "the file was removed and another has its name");
  if (!is_same) fd = find_elsewhere();
  // What is elsewhere may be where O_DIRECT is not: whole blocks can be read nevertheless.
  if (!set_flags(fd.get(), is_direct_ ? O_DIRECT : 0) && is_same)
    fail_here(errno, "opening it again");
  // It is used, so that it is not closed before it is marked as open.
  storage_.cache.add(*this);
  fd_ = fd.release();
}

FileDescriptor DirObject::find_elsewhere() {
  const std::unique_ptr<Object> found = find_();
  auto* const file = dynamic_cast<DirObject*>(found.get());
  if (file == nullptr) fail(ENOENT, storage_.describe(name_), "is not in a directory any more");
  const Use use(*file);
  FileDescriptor fd =
      storage_.open_with_room([&] { return FileDescriptor(fcntl(use.fd(), F_DUPFD_CLOEXEC, 0)); });
  if (!fd) fail_here(errno, "opening it again");
  return fd;
}

void DirObject::fail_here(int code, std::string_view action) const {
  fail_errno(code, storage_.describe(name_), action);
}

void DirObject::check(const IoOp& op) {
  if (op.error == 0) [[likely]]
    return;
  if (op.error == kPastEnd)
    fail(EIO, storage_.describe(name_),
         "has {} bytes, and {} bytes at {} were to be read: it was cut short; restore it from a "
         "backup",
         size_bytes(), op.length, op.offset);
  fail_here(op.error,
            fmt::format("{} {} bytes at {}", op.kind == IoOp::Kind::kRead ? "reading" : "writing",
                        op.length, op.offset));
}

void DirObject::ensure_sound() const {
  if ((state_.load(std::memory_order_relaxed) & kFailed) != 0)
    fail(EIO, storage_.describe(name_),
         "an earlier sync failed, so data may be lost; it must be opened again");
}

void DirObject::ensure_writable() const {
  if (access_ != Access::kWrite)
    fail(EBADF, storage_.describe(name_), "written to, but opened for reading");
  ensure_sound();
}

size_t DirObject::bounce_bytes(uint64_t offset, Bytes buffer) const {
  if (!is_direct_ || (is_aligned(offset) && is_aligned(buffer.size()) &&
                      is_aligned(reinterpret_cast<uintptr_t>(buffer.data())))) {
    return 0;
  }
  return round_up(offset + buffer.size(), kBlockBytes) - round_down(offset, kBlockBytes);
}

std::optional<IoOp> DirObject::begin(const ReadPiece& piece, std::byte* bounce) {
  const size_t bytes = bounce_bytes(piece.offset, piece.into);
  const int fd = begin_use();
  if (bytes == 0) return IoOp::read(fd, piece.offset, piece.into, is_direct_);
  return IoOp::read(fd, round_down(piece.offset, kBlockBytes), MutableBytes(bounce, bytes), true);
}

void DirObject::end(IoOp& op, const ReadPiece& piece) {
  end_use();
  const MutableBytes into = piece.into;
  const size_t skipped = piece.offset - op.offset;  // of a bounce buffer
  const size_t count = op.done > skipped ? std::min(op.done - skipped, into.size()) : 0;
  if (op.data + skipped != into.data() && count > 0) {
    std::memcpy(into.data(), op.data + skipped, count);
  }
  if (count < into.size()) [[unlikely]] {
    // Past the end of the file.
    std::memset(into.data() + count, 0, into.size() - count);
    if (is_data_ && op.error == 0) op.error = kPastEnd;
  }
  check(op);
}

std::optional<IoOp> DirObject::begin(const WritePiece& piece, std::byte* bounce) {
  Bytes from = piece.from;
  if (from.empty()) return {};
  const uint64_t end_bytes = piece.offset + from.size();
  if (is_direct_ && !(is_aligned(piece.offset) && is_aligned(from.size())))
    fail(EINVAL, storage_.describe(name_), "what bypasses the page cache is written in blocks");
  ensure_writable();
  if (bounce_bytes(piece.offset, from) > 0) {
    std::memcpy(bounce, from.data(), from.size());
    from = Bytes(bounce, from.size());
  }
  if (end_bytes <= size_floor_bytes_.load(std::memory_order_relaxed)) [[likely]]
    return IoOp::write(begin_use(), piece.offset, from, is_direct_);
  const Lock lock(size_mutex_);
  IoOp op = IoOp::write(begin_use(), piece.offset, from, is_direct_);
  run_plain(op);
  end(op, piece);
  raise_size_floor(end_bytes);
  return {};
}

// The mark comes after the write and before the use ends: a sync that began before the write ended
// has not taken it away, and until now the use kept the descriptor open.
void DirObject::end(IoOp& op, const WritePiece&) {
  if ((state_.load(std::memory_order_relaxed) & kUnsynced) == 0) {
    state_.fetch_or(kUnsynced, std::memory_order_relaxed);
  }
  end_use();
  check(op);
}

template <typename Piece>
void DirObject::transfer(const Piece& piece, Bytes buffer) {
  const BounceBuffer bounce(bounce_bytes(piece.offset, buffer));
  if (std::optional<IoOp> op = begin(piece, bounce.data())) {
    run_plain(*op);
    end(*op, piece);
  }
}

void DirObject::read(uint64_t offset, MutableBytes into) {
  transfer(ReadPiece{this, offset, into}, into);
}

void DirObject::write(uint64_t offset, Bytes from) {
  transfer(WritePiece{this, offset, from}, from);
}

void DirObject::punch(uint64_t offset, uint64_t length) {
  if (length == 0) return;
  const Use use(*this);
  ensure_writable();
  constexpr int kMode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (TEMP_FAILURE_RETRY(fallocate(use.fd(), kMode, static_cast<off_t>(offset),
                                   static_cast<off_t>(length))) != 0 &&
      errno != EOPNOTSUPP)
    fail_here(errno, fmt::format("punching {} bytes at {}", length, offset));
}

void DirObject::grow(uint64_t size_bytes) {
  const Use use(*this);
  ensure_writable();
  const auto size = static_cast<off_t>(size_bytes);
  if (size < 0) fail_here(EFBIG, "growing it");
  const Lock lock(size_mutex_);
  if (this->size_bytes() < size_bytes && TEMP_FAILURE_RETRY(ftruncate(use.fd(), size)) != 0)
    fail_here(errno, fmt::format("growing it to {} bytes", size_bytes));
  raise_size_floor(size_bytes);
}

void DirObject::raise_size_floor(uint64_t size_bytes) {
  if (size_bytes > size_floor_bytes_.load(std::memory_order_relaxed))
    size_floor_bytes_.store(size_bytes, std::memory_order_relaxed);
}

void DirObject::sync() {
  // Alone, so that the one that the kernel tells of a failure has marked it before the next asks.
  const Lock lock(sync_mutex_);
  const Use use(*this);
  ensure_sound();
  state_.fetch_and(~kUnsynced, std::memory_order_relaxed);
  if (TEMP_FAILURE_RETRY(storage_.fdatasync(use.fd())) == 0) return;
  const int code = errno;
  state_.fetch_or(kFailed, std::memory_order_relaxed);
  fail_here(code, "syncing it");
}

void DirObject::drop_cached() {
  const Use use(*this);
  const int code = posix_fadvise(use.fd(), 0, 0, POSIX_FADV_DONTNEED);
  if (code != 0) fail_here(code, "dropping its cached pages");
}

struct stat DirObject::status() {
  const Use use(*this);
  struct stat now;
  if (fstat(use.fd(), &now) != 0) fail_here(errno, "asking for its size");
  return now;
}

uint64_t DirObject::size_bytes() { return static_cast<uint64_t>(status().st_size); }

uint64_t DirObject::allocated_bytes() { return static_cast<uint64_t>(status().st_blocks) * 512; }

std::optional<uint64_t> DirObject::seek(int fd, uint64_t offset, int whence) {
  const off_t found = lseek(fd, static_cast<off_t>(offset), whence);
  if (found >= 0) return static_cast<uint64_t>(found);
  if (errno == ENXIO) return {};
  // A file system that knows no holes: all of the file is data, and its end is the only hole.
  if (errno != EINVAL && errno != EOPNOTSUPP) fail_here(errno, "asking where it has data");
  const uint64_t size = size_bytes();
  if (offset >= size) return {};
  return whence == SEEK_DATA ? offset : size;
}

std::optional<DataRange> DirObject::find_data(uint64_t offset) {
  if (offset > INT64_MAX) return {};  // no file goes that far
  const Use use(*this);
  for (;;) {
    const std::optional<uint64_t> begin = seek(use.fd(), offset, SEEK_DATA);
    if (!begin) return {};
    // Between the two questions the data may be punched, and what whole blocks of O_DIRECT added to
    // the file may be cut off again. Then there was nothing here.
    const std::optional<uint64_t> end = seek(use.fd(), *begin, SEEK_HOLE);
    if (!end) return {};
    if (*end > *begin) return DataRange{*begin, *end - *begin};
    offset = *begin;
  }
}

}  // namespace tplstore
