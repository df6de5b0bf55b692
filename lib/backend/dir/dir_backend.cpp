// Objects are files below one open folder. A new one is written under no name, synced, and linked
// (put_new); batches go to the rings piece by piece, each at its file's offset.
#include "backend/dir/dir_backend.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "backend/object_name.h"

namespace tplstore {
namespace {

// Pieces handed to a ring at once; their operations are on the stack.
constexpr size_t kBatchMax = 128;
constexpr size_t kDescriptorCapMin = 16;
constexpr size_t kDescriptorCapMax = 65536;
constexpr std::string_view kTemporaryPrefix = ".tmp-";  // no object's name starts with a dot

// The rest is for connections and whatever else the process opens.
size_t most_of_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kDescriptorCapMin;
  return std::clamp<size_t>(limit.rlim_cur - limit.rlim_cur / 4, kDescriptorCapMin,
                            kDescriptorCapMax);
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
    while (fcntl(fd_.get(), F_OFD_SETLK, &all) != 0 && errno == EINTR) {
    }
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

DirObject& object_of(Object* object) { return *static_cast<DirObject*>(object); }

bool is_absent(int code) { return code == ENOENT || code == ENOTDIR; }

}  // namespace

DirBackend::DirBackend(const std::string& directory, bool direct,
                       std::function<void(const std::string&)> log, const DirOptions& options)
    : resources_(options.descriptor_cap == 0
                     ? resources_of_process()
                     : std::make_shared<DirResources>(options.descriptor_cap)),
      storage_(directory,
               FileDescriptor(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
               resources_->cache, std::move(log)),
      has_tmpfile_(!options.without_tmpfile),
      file_mode_(options.file_mode),
      before_locking_(options.before_locking) {
  if (!storage_.root) fail_at(errno, "", "opening the directory");
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

uint32_t DirBackend::write_alignment_bytes() const {
  return storage_.is_direct.load(std::memory_order_relaxed) ? kBlockBytes : 1;
}

size_t DirBackend::open_descriptors() const { return storage_.cache.open_count(); }

uint64_t DirBackend::ring_batches() const { return resources_->rings.ring_batches(); }

// --- objects

std::unique_ptr<Object> DirBackend::open(const std::string& name, Access access, Purpose purpose) {
  check_object_name(name);
  // Without O_NONBLOCK a FIFO put here by mistake would hang us; the object takes it off again.
  FileDescriptor fd =
      storage_.open(name, (access == Access::kWrite ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_NOCTTY);
  if (!fd) fail_at(is_absent(errno) ? ENOENT : errno, name, "opening it");
  struct stat status;
  if (fstat(fd.get(), &status) != 0) fail_at(errno, name, "opening it");
  if (!S_ISREG(status.st_mode)) fail(EISDIR, storage_.describe(name), "not a regular file");
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
    if (size > 0 && ftruncate(fd.get(), size) != 0) {
      fail_at(errno, name, fmt::format("giving it a size of {} bytes", size_bytes));
    }
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
  for (size_t first = 0; first < pieces.size(); first += kBatchMax)
    read_some(pieces.subspan(first, std::min(pieces.size() - first, kBatchMax)), first, failures);
}

// The pieces from `first` on of a batch.
void DirBackend::read_some(std::span<const ReadPiece> pieces, size_t first,
                           BatchFailures& failures) {
  if (pieces.size() == 1)
    return failures.attempt(first,
                            [&] { pieces[0].object->read(pieces[0].offset, pieces[0].into); });
  size_t bounce_bytes = 0;
  for (const ReadPiece& piece : pieces) {
    bounce_bytes += object_of(piece.object).bounce_bytes(piece.offset, piece.into);
  }
  const BounceBuffer bounce(bounce_bytes);
  std::byte* free_bounce = bounce.data();

  std::array<IoOp, kBatchMax> ops;
  std::array<uint8_t, kBatchMax> begun;  // which pieces they are of
  size_t count = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    failures.attempt(first + i, [&] {
      DirObject& object = object_of(pieces[i].object);
      ops[count] = object.begin_read(pieces[i].offset, pieces[i].into, free_bounce);
      free_bounce += object.bounce_bytes(pieces[i].offset, pieces[i].into);
      begun[count++] = static_cast<uint8_t>(i);
    });
  }
  resources_->rings.run_batch(std::span(ops).first(count), storage_.log);
  for (size_t i = 0; i < count; ++i) {
    const ReadPiece& piece = pieces[begun[i]];
    DirObject& object = object_of(piece.object);
    object.end_read(ops[i], piece.offset, piece.into);
    failures.attempt(first + begun[i], [&] { object.check(ops[i]); });
  }
}

void DirBackend::run_writes(std::span<const WritePiece> pieces, BatchFailures& failures) {
  for (size_t first = 0; first < pieces.size(); first += kBatchMax)
    write_some(pieces.subspan(first, std::min(pieces.size() - first, kBatchMax)), first, failures);
}

void DirBackend::write_some(std::span<const WritePiece> pieces, size_t first,
                            BatchFailures& failures) {
  const auto write_alone = [&](size_t i) {
    failures.attempt(first + i, [&] { pieces[i].object->write(pieces[i].offset, pieces[i].from); });
  };
  if (pieces.size() == 1) return write_alone(0);
  size_t bounce_bytes = 0;
  for (const WritePiece& piece : pieces) {
    bounce_bytes += object_of(piece.object).bounce_bytes(piece.offset, piece.from);
  }
  const BounceBuffer bounce(bounce_bytes);
  std::byte* free_bounce = bounce.data();

  std::array<IoOp, kBatchMax> ops;
  std::array<uint8_t, kBatchMax> begun;  // which pieces they are of
  std::array<uint8_t, kBatchMax> alone;
  size_t count = 0;
  size_t alone_count = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    failures.attempt(first + i, [&] {
      DirObject& object = object_of(pieces[i].object);
      const auto op = object.begin_write(pieces[i].offset, pieces[i].from, free_bounce);
      if (!op) {
        alone[alone_count++] = static_cast<uint8_t>(i);
        return;
      }
      free_bounce += object.bounce_bytes(pieces[i].offset, pieces[i].from);
      ops[count] = *op;
      begun[count++] = static_cast<uint8_t>(i);
    });
  }
  resources_->rings.run_batch(std::span(ops).first(count), storage_.log);
  for (size_t i = 0; i < count; ++i) {
    DirObject& object = object_of(pieces[begun[i]].object);
    object.end_write();
    failures.attempt(first + begun[i], [&] { object.check(ops[i]); });
  }
  // Only now: at their gates they would wait for the transfers above.
  for (size_t i = 0; i < alone_count; ++i) write_alone(alone[i]);
}

// --- whole contents

bool DirBackend::put_new(const std::string& name, Bytes content) {
  check_object_name(name);
  const std::string folder(folder_of(name));
  const FileDescriptor folder_fd = open_folder_of(name, true);
  struct stat status;
  const bool exists = fstatat(folder_fd.get(), std::string(last_part_of(name)).c_str(), &status,
                              AT_SYMLINK_NOFOLLOW) == 0;
  const bool is_ours = !exists && publish(name, folder_fd.get(), content);
  // Also when somebody else was first: who is told that a name exists may rely on it, and the other
  // may not have come to syncing the folder yet.
  sync_path(folder);
  return is_ours;
}

bool DirBackend::publish(const std::string& name, int folder_fd, Bytes content) {
  if (!has_tmpfile_) return publish_named(name, folder_fd, content);
  const FileDescriptor fd = storage_.open_with_room([&] {
    return FileDescriptor(openat(folder_fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, file_mode_));
  });
  if (!fd) {
    // EISDIR is what kernels say that do not know the flag.
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
      fail_at(errno, name, "creating it");
    return publish_named(name, folder_fd, content);
  }
  storage_.give_to_owner(fd.get());
  write_and_sync(fd.get(), name, content);
  const std::string last(last_part_of(name));
  const std::string link_source = fmt::format("/proc/self/fd/{}", fd.get());
  if (linkat(AT_FDCWD, link_source.c_str(), folder_fd, last.c_str(), AT_SYMLINK_FOLLOW) == 0) {
    return true;
  }
  if (errno == EEXIST) return false;
  if (errno != ENOENT) fail_at(errno, name, "linking it");
  return publish_named(name, folder_fd, content);  // no /proc here
}

bool DirBackend::publish_named(const std::string& name, int folder_fd, Bytes content) {
  const std::string temporary = fmt::format("{}{:016x}", kTemporaryPrefix, random_u64());
  const FileDescriptor fd = storage_.open_with_room([&] {
    return FileDescriptor(
        openat(folder_fd, temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, file_mode_));
  });
  if (!fd) fail_at(errno, name, "creating it");
  int code = 0;
  try {
    storage_.give_to_owner(fd.get());
    write_and_sync(fd.get(), name, content);
    const std::string last(last_part_of(name));
    if (linkat(folder_fd, temporary.c_str(), folder_fd, last.c_str(), 0) != 0) code = errno;
  } catch (...) {
    unlinkat(folder_fd, temporary.c_str(), 0);
    throw;
  }
  unlinkat(folder_fd, temporary.c_str(), 0);
  if (code != 0 && code != EEXIST) fail_at(code, name, "linking it");
  return code == 0;
}

void DirBackend::write_and_sync(int fd, const std::string& name, Bytes content) {
  IoOp op = IoOp::write(fd, 0, content, false);
  run_plain(op);
  if (op.error != 0) fail_at(op.error, name, "writing it");
  while (fsync(fd) != 0) {
    if (errno != EINTR) fail_at(errno, name, "syncing it");
  }
}

std::optional<ByteVector> DirBackend::get(const std::string& name, uint64_t max_bytes) {
  check_object_name(name);
  const FileDescriptor fd = storage_.open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!fd) {
    if (is_absent(errno)) return {};
    fail_at(errno, name, "opening it");
  }
  struct stat status;
  if (fstat(fd.get(), &status) != 0) fail_at(errno, name, "asking for its size");
  if (!S_ISREG(status.st_mode)) fail(EISDIR, storage_.describe(name), "not a regular file");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    fail(EFBIG, storage_.describe(name), "has {} bytes where at most {} are expected", size,
         max_bytes);
  }
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
  FileDescriptor fd = storage_.open(folder, O_RDONLY | O_DIRECTORY);
  if (!fd) {
    if (is_absent(errno)) return {};
    fail_at(errno, folder, "opening the folder");
  }
  std::vector<std::string> names;
  if (read_folder(std::move(fd), names) != 0) fail_at(errno, folder, "listing the folder");
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
    std::lock_guard lock(mutex_);
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
    if (!fd) fail_at(errno, at, "opening the folder");
    while (fsync(fd.get()) != 0) {
      if (errno != EINTR) fail_at(errno, at, "syncing the folder");
    }
    if (at.empty()) break;
    std::lock_guard lock(mutex_);
    must_sync = !durable_folders_.contains(at);
    at = std::string(folder_of(at));
  }
  // Another process may have made any of them and not have synced it, hence not only our own.
  std::lock_guard lock(mutex_);
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
  const bool is_shared = mode == LockMode::kShared;
  struct flock wanted {};
  wanted.l_type = is_shared ? F_RDLCK : F_WRLCK;
  // A byte may be locked whether or not the file is that long.
  wanted.l_whence = SEEK_SET;
  wanted.l_start = static_cast<off_t>(slot);
  wanted.l_len = 1;
  for (;;) {
    FileDescriptor fd = open_to_lock(name, is_shared);
    if (before_locking_) before_locking_();
    while (fcntl(fd.get(), F_OFD_SETLK, &wanted) != 0) {
      if (errno == EAGAIN || errno == EACCES) return nullptr;
      if (errno != EINTR) fail_at(errno, name, "locking it");
    }
    // Else it was removed after it was opened, and the next one to come locks another file.
    if (is_still(name, fd.get()))
      return std::make_unique<FileLock>(std::move(fd), mode, resources_->rings.kept_files());
  }
}

bool DirBackend::is_locked(const std::string& name) {
  check_object_name(name);
  const FileDescriptor fd = storage_.open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!fd) fail_at(is_absent(errno) ? ENOENT : errno, name, "asking for its lock");
  struct flock asked {};
  asked.l_type = F_WRLCK;
  asked.l_whence = SEEK_SET;
  asked.l_len = 1;
  while (fcntl(fd.get(), F_OFD_GETLK, &asked) != 0) {
    if (errno != EINTR) fail_at(errno, name, "asking for its lock");
  }
  return asked.l_type != F_UNLCK;
}

}  // namespace tplstore
