// Objects are files below one open folder. A new one is written under no name, synced, and linked
// (put_new); batches go to the rings piece by piece, each at its file's offset.
#include "backend/dir/dir_backend.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "backend/dir/file_system_kind.h"
#include "backend/object_name.h"

namespace tplstore {
namespace {

constexpr size_t kDescriptorCapMin = 16;
constexpr size_t kDescriptorCapMax = 65536;
constexpr size_t kDirectBytesMin = size_t{1} << 20;

// The rest is for connections and whatever else the process opens.
size_t most_of_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kDescriptorCapMin;
  return std::clamp<size_t>(limit.rlim_cur - limit.rlim_cur / 4, kDescriptorCapMin,
                            kDescriptorCapMax);
}

// What is large goes to the device from where it is, where that can be: it is written once, and a
// copy in the page cache would cost more than the writing. The errno, or 0.
int write_all(int fd, Bytes content) {
  uint64_t done = 0;
  if (content.size() >= kDirectBytesMin &&
      (reinterpret_cast<uintptr_t>(content.data()) % kBlockBytes) == 0 &&
      fcntl(fd, F_SETFL, O_DIRECT) == 0) {
    IoOp op = IoOp::write(fd, 0, content.first(round_down(content.size(), kBlockBytes)), true);
    run_plain(op);
    if (fcntl(fd, F_SETFL, 0) != 0) return errno;
    if (op.error != 0 && op.error != EINVAL) return op.error;
    done = op.done;
  }
  IoOp rest = IoOp::write(fd, done, content.subspan(done), false);
  run_plain(rest);
  return rest.error;
}

// A lock of the open file description of its own descriptor: the end of the process releases it, a
// fork does not, and two of one process exclude each other. One that is exclusive lasts until what
// was being written through rings when the process was killed has ended.
class FileLock final : public HeldLock {
 public:
  FileLock(FileDescriptor fd, LockMode mode, std::shared_ptr<KeptFiles> kept)
      : fd_(std::move(fd)), kept_(mode == LockMode::kExclusive ? std::move(kept) : nullptr) {
    if (kept_) kept_->add(fd_.get());
  }
  ~FileLock() override {
    if (kept_) kept_->remove(fd_.get());
    // Rings may have the file open still. In a child it is the parent's lock.
    if (owner_ != getpid()) return;
    struct flock all {};
    all.l_type = F_UNLCK;
    all.l_whence = SEEK_SET;
    (void)TEMP_FAILURE_RETRY(fcntl(fd_.get(), F_OFD_SETLK, &all));
  }

 private:
  const FileDescriptor fd_;
  const std::shared_ptr<KeptFiles> kept_;
  const pid_t owner_ = getpid();
};

// Lasts as long as a directory is open.
std::shared_ptr<DirResources> resources_of_process() {
  static std::mutex mutex;
  static std::weak_ptr<DirResources> known;
  const std::lock_guard guard(mutex);
  auto resources = known.lock();
  if (!resources) known = resources = std::make_shared<DirResources>(most_of_descriptor_limit());
  return resources;
}

template <typename Piece>
DirObject& object_of(const Piece& piece) {
  return *static_cast<DirObject*>(piece.object);
}
Bytes buffer_of(const ReadPiece& piece) { return piece.into; }
Bytes buffer_of(const WritePiece& piece) { return piece.from; }

// Of one byte, which may be locked whether or not the file is that long.
struct flock lock_of_slot(uint64_t slot, LockMode mode) {
  struct flock lock {};
  lock.l_type = mode == LockMode::kShared ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(slot);
  lock.l_len = 1;
  return lock;
}

bool is_absent(int code) { return code == ENOENT || code == ENOTDIR; }

}  // namespace

DirBackend::DirBackend(const std::string& directory, bool direct, Log log,
                       const DirOptions& options)
    : resources_(options.descriptor_cap == 0
                     ? resources_of_process()
                     : std::make_shared<DirResources>(options.descriptor_cap)),
      storage_(directory,
               FileDescriptor(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
               resources_->cache, std::move(log)),
      // A file without a name gets one by way of /proc.
      has_tmpfile_(!options.without_tmpfile && access("/proc/self/fd", X_OK) == 0),
      file_mode_(options.file_mode),
      before_locking_(options.before_locking) {
  if (!storage_.root) fail_at(errno, "", "opening the directory");
  kind_ = kind_of_file_system(storage_.root.get());
  storage_.fdatasync = options.fdatasync ? options.fdatasync : ::fdatasync;
  if (!direct) return;
  storage_.is_direct = true;
  // Asked once ahead, so that write_alignment_bytes() holds from the start. No answer where an
  // unnamed file cannot be made; then the first data object gives it.
  const FileDescriptor probe(
      openat(storage_.root.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (probe) storage_.set_mode(probe.get(), Purpose::kData);
}

DirBackend::~DirBackend() = default;

void DirBackend::fail_at(int code, std::string_view name, std::string_view action) const {
  fail_errno(code, storage_.describe(name), action);
}

std::string DirBackend::describe() const { return storage_.directory; }

std::optional<StorageSpace> DirBackend::space() {
  struct statvfs status {};
  if (fstatvfs(storage_.root.get(), &status) != 0) fail_at(errno, "", "asking for its space");
  return StorageSpace{status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize};
}

bool DirBackend::is_in_place() {
  struct stat opened;
  struct stat found;
  if (fstat(storage_.root.get(), &opened) != 0) fail_at(errno, "", "looking at the directory");
  if (stat(storage_.directory.c_str(), &found) != 0) {
    if (is_absent(errno)) return false;
    fail_at(errno, "", "looking at the directory");
  }
  return opened.st_dev == found.st_dev && opened.st_ino == found.st_ino;
}

uint32_t DirBackend::write_alignment_bytes() const {
  return storage_.is_direct.load(std::memory_order_relaxed) ? kBlockBytes : 1;
}

size_t DirBackend::open_descriptors() const { return storage_.cache.open_count(); }

uint64_t DirBackend::ring_batches() const { return resources_->rings.ring_batches(); }

// --- objects

// A regular file; none when it is not there.
FileDescriptor DirBackend::open_file(const std::string& name, int access, struct stat& status) {
  check_object_name(name);
  // Without O_NONBLOCK a FIFO put here by mistake would hang us; an object takes it off again.
  FileDescriptor fd = storage_.open(name, access | O_NONBLOCK | O_NOCTTY);
  if (!fd && is_absent(errno)) return {};
  if (!fd || fstat(fd.get(), &status) != 0) fail_at(errno, name, "opening it");
  if (!S_ISREG(status.st_mode)) fail(EISDIR, storage_.describe(name), "not a regular file");
  return fd;
}

std::unique_ptr<Object> DirBackend::open(const std::string& name, Access access, Purpose purpose) {
  struct stat status;
  FileDescriptor fd = open_file(name, access == Access::kWrite ? O_RDWR : O_RDONLY, status);
  if (!fd) fail_at(ENOENT, name, "opening it");
  return std::make_unique<DirObject>(*this, storage_, name, access, purpose, std::move(fd), status);
}

std::unique_ptr<Object> DirBackend::create(const std::string& name, uint64_t size_bytes,
                                           Purpose purpose) {
  check_object_name(name);
  const std::string last(last_part_of(name));
  const FileDescriptor folder = open_folder_of(name, true);
  FileDescriptor fd = storage_.open_with_room([&] {
    return FileDescriptor(openat(folder.get(), last.c_str(),
                                 O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file_mode_));
  });
  if (!fd) fail_at(errno, name, "creating it");
  try {
    storage_.give_to_owner(fd.get());
    struct stat status;
    const auto size = static_cast<off_t>(size_bytes);
    if (size < 0) fail_at(EFBIG, name, "creating it");
    if (size > 0 && ftruncate(fd.get(), size) != 0)
      fail_at(errno, name, fmt::format("giving it a size of {} bytes", size_bytes));
    if (fstat(fd.get(), &status) != 0) fail_at(errno, name, "creating it");
    return std::make_unique<DirObject>(*this, storage_, name, Access::kWrite, purpose,
                                       std::move(fd), status);
  } catch (...) {
    unlinkat(folder.get(), last.c_str(), 0);
    throw;
  }
}

// The descriptor is one that can be synced. Without `make`, none and ENOENT when it is missing.
FileDescriptor DirBackend::open_folder_of(const std::string& name, bool make) {
  const std::string folder(folder_of(name));
  if (!make) return storage_.open(folder, O_RDONLY | O_DIRECTORY);
  FileDescriptor fd =
      storage_.open_with_room([&] { return open_or_make_folder(storage_.root.get(), folder); });
  if (!fd) fail_at(errno, folder, "making the folder");
  return fd;
}

// --- batches

void DirBackend::run_reads(std::span<const ReadPiece> pieces, BatchFailures& failures) {
  run(pieces, failures);
}

void DirBackend::run_writes(std::span<const WritePiece> pieces, BatchFailures& failures) {
  run(pieces, failures);
}

// As many at a time as a ring takes; their operations are on the stack.
template <typename Piece>
void DirBackend::run(std::span<const Piece> pieces, BatchFailures& failures) {
  for (size_t first = 0; first < pieces.size(); first += kRingEntries)
    run_some(pieces.subspan(first, std::min(pieces.size() - first, kRingEntries)), first, failures);
}

// The pieces from `first` on of a batch.
template <typename Piece>
void DirBackend::run_some(std::span<const Piece> pieces, size_t first, BatchFailures& failures) {
  size_t bounce_bytes = 0;
  for (const Piece& piece : pieces)
    bounce_bytes += object_of(piece).bounce_bytes(piece.offset, buffer_of(piece));
  const BounceBuffer bounce(bounce_bytes);
  std::byte* free_bounce = bounce.data();

  std::array<IoOp, kRingEntries> ops;
  std::array<uint8_t, kRingEntries> begun;  // which pieces they are of
  static_assert(kRingEntries <= UINT8_MAX + 1);
  size_t count = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    failures.attempt(first + i, [&] {
      DirObject& object = object_of(pieces[i]);
      const std::optional<IoOp> op = object.begin(pieces[i], free_bounce);
      if (!op) return;
      free_bounce += object.bounce_bytes(pieces[i].offset, buffer_of(pieces[i]));
      ops[count] = *op;
      begun[count++] = static_cast<uint8_t>(i);
    });
  }
  resources_->rings.run_batch(std::span(ops).first(count), storage_.log);
  for (size_t i = 0; i < count; ++i) {
    const Piece& piece = pieces[begun[i]];
    failures.attempt(first + begun[i], [&] { object_of(piece).end(ops[i], piece); });
  }
}

// --- whole contents

bool DirBackend::put_new(const std::string& name, Bytes content) {
  check_object_name(name);
  const std::string folder(folder_of(name));
  const FileDescriptor folder_fd = open_folder_of(name, true);
  struct stat status;
  const bool exists = fstatat(folder_fd.get(), std::string(last_part_of(name)).c_str(), &status,
                              AT_SYMLINK_NOFOLLOW) == 0;
  const bool is_ours = !exists && publish(name, folder_fd.get(), content, true);
  // Also when somebody else was first: who is told that a name exists may rely on it, and the other
  // may not have come to syncing the folder yet.
  sync_path(folder);
  return is_ours;
}

bool DirBackend::put_claim(const std::string& name, Bytes content) {
  if (kind_.reach != StorageKind::Reach::kOneHost) return put_new(name, content);
  check_object_name(name);
  const FileDescriptor folder = open_folder_of(name, true);
  return publish(name, folder.get(), content, false);
}

// False when the name exists. Until the file is whole it has no name, or, where that cannot be, one
// that is no object's.
bool DirBackend::publish(const std::string& name, int folder_fd, Bytes content, bool syncs) {
  struct Temporary {
    ~Temporary() {
      if (!name.empty()) unlinkat(folder_fd, name.c_str(), 0);
    }
    int folder_fd;
    std::string name;
  } temporary{folder_fd, ""};
  const auto make = [&](const char* path, int flags) {
    return storage_.open_with_room([&] {
      return FileDescriptor(openat(folder_fd, path, flags | O_WRONLY | O_CLOEXEC, file_mode_));
    });
  };
  FileDescriptor fd;
  if (has_tmpfile_) fd = make(".", O_TMPFILE);
  // EISDIR is what kernels say that do not know the flag.
  if (!fd && (!has_tmpfile_ || errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
    temporary.name = fmt::format(".tmp-{:016x}", random_u64());  // no object's starts with a dot
    fd = make(temporary.name.c_str(), O_CREAT | O_EXCL);
  }
  if (!fd) fail_at(errno, name, "creating it");
  storage_.give_to_owner(fd.get());
  if (const int error = write_all(fd.get(), content); error != 0)
    fail_at(error, name, "writing it");
  if (syncs && TEMP_FAILURE_RETRY(fsync(fd.get())) != 0) fail_at(errno, name, "syncing it");
  const std::string last(last_part_of(name));
  const int result = temporary.name.empty()
                         ? linkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd.get()).c_str(),
                                  folder_fd, last.c_str(), AT_SYMLINK_FOLLOW)
                         : linkat(folder_fd, temporary.name.c_str(), folder_fd, last.c_str(), 0);
  if (result != 0 && errno != EEXIST) fail_at(errno, name, "linking it");
  return result == 0;
}

std::optional<ByteVector> DirBackend::get(const std::string& name, uint64_t max_bytes) {
  struct stat status;
  const FileDescriptor fd = open_file(name, O_RDONLY, status);
  if (!fd) return {};
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes)
    fail(EFBIG, storage_.describe(name), "has {} bytes where at most {} are expected", size,
         max_bytes);
  ByteVector content(size);
  IoOp op = IoOp::read(fd.get(), 0, content, false);
  run_plain(op);
  if (op.error != 0) fail_at(op.error, name, "reading it");
  content.resize(op.done);
  return content;
}

// --- names

std::vector<std::string> DirBackend::list(const std::string& folder) {
  check_folder_name(folder);
  const FileDescriptor fd = storage_.open(folder, O_RDONLY | O_DIRECTORY);
  if (!fd && is_absent(errno)) return {};
  std::vector<std::string> names;
  if (!fd || read_folder(fd.get(), names) != 0) fail_at(errno, folder, "listing the folder");
  std::erase_if(names, [](const std::string& name) { return !is_object_name_part(name); });
  std::ranges::sort(names);
  return names;
}

bool DirBackend::remove(const std::string& name) {
  check_object_name(name);
  const FileDescriptor folder = open_folder_of(name, false);
  const std::string last(last_part_of(name));
  if (folder && unlinkat(folder.get(), last.c_str(), 0) == 0) return true;
  if (is_absent(errno)) return false;
  fail_at(errno, name, "removing it");
}

void DirBackend::remove_folder(const std::string& folder) {
  check_object_name(folder);
  const auto forget = [&] {
    const Lock lock(mutex_);
    std::erase_if(durable_folders_, [&](const std::string& known) {
      return known == folder || is_beneath(known, folder);
    });
  };
  forget();
  const FileDescriptor parent = open_folder_of(folder, false);
  if (!parent && is_absent(errno)) return;
  if (!parent || remove_tree(parent.get(), std::string(last_part_of(folder))) != 0) {
    fail_at(errno, folder, "removing the folder");
  }
  forget();  // again, for somebody may have synced it while it went
}

void DirBackend::sync_folder(const std::string& folder) {
  check_folder_name(folder);
  sync_path(folder);
}

void DirBackend::sync_path(const std::string& folder) {
  std::string at = folder;
  for (bool must_sync = true; must_sync;) {
    const FileDescriptor fd = storage_.open(at, O_RDONLY | O_DIRECTORY);
    if (!fd || TEMP_FAILURE_RETRY(fsync(fd.get())) != 0) fail_at(errno, at, "syncing the folder");
    if (at.empty()) break;
    const Lock lock(mutex_);
    must_sync = !durable_folders_.contains(at);
    at = std::string(folder_of(at));
  }
  // Another process may have made any of them and not have synced it, hence not only our own.
  const Lock lock(mutex_);
  for (at = folder; !at.empty() && durable_folders_.insert(at).second;) {
    at = std::string(folder_of(at));
  }
}

// --- locks

FileDescriptor DirBackend::open_to_lock(const std::string& name, bool is_shared) {
  FileDescriptor fd = storage_.open(name, O_RDWR | O_NONBLOCK | O_NOCTTY);
  const bool may_not_write = !fd && (errno == EACCES || errno == EPERM || errno == EROFS);
  if (may_not_write && is_shared) fd = storage_.open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!fd) fail_at(is_absent(errno) ? ENOENT : errno, name, "opening it to lock it");
  return fd;
}

// Whether the open file is the one that has the name.
bool DirBackend::is_still(const std::string& name, int fd) {
  const FileDescriptor named = storage_.open(name, O_PATH);
  if (!named && !is_absent(errno)) fail_at(errno, name, "locking it");
  struct stat opened;
  struct stat found;
  return named && fstat(fd, &opened) == 0 && fstat(named.get(), &found) == 0 &&
         opened.st_dev == found.st_dev && opened.st_ino == found.st_ino;
}

std::unique_ptr<HeldLock> DirBackend::try_lock(const std::string& name, LockMode mode,
                                               uint64_t slot) {
  check_object_name(name);
  if (slot > kLockSlotMax) fail(EINVAL, storage_.describe(name), "has no lock slot {}", slot);
  struct flock wanted = lock_of_slot(slot, mode);
  for (;;) {
    FileDescriptor fd = open_to_lock(name, mode == LockMode::kShared);
    if (before_locking_) before_locking_();
    if (TEMP_FAILURE_RETRY(fcntl(fd.get(), F_OFD_SETLK, &wanted)) != 0) {
      if (errno == EAGAIN || errno == EACCES) return nullptr;
      fail_at(errno, name, "locking it");
    }
    // Else it was removed after it was opened, and the next one to come locks another file.
    if (is_still(name, fd.get()))
      return std::make_unique<FileLock>(std::move(fd), mode, resources_->rings.kept_files());
  }
}

bool DirBackend::is_locked(const std::string& name) {
  struct stat status;
  const FileDescriptor fd = open_file(name, O_RDONLY, status);
  if (!fd) fail_at(ENOENT, name, "asking for its lock");
  struct flock asked = lock_of_slot(0, LockMode::kExclusive);
  if (TEMP_FAILURE_RETRY(fcntl(fd.get(), F_OFD_GETLK, &asked)) != 0)
    fail_at(errno, name, "asking for its lock");
  return asked.l_type != F_UNLCK;
}

}  // namespace tplstore
