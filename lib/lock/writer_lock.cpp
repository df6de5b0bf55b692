// Takes the lock, looks at the header under it, and writes itself in; puts the size back at the
// end.
#include "lock/writer_lock.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "backend/object_name.h"
#include "base/host.h"
#include "base/units.h"

namespace tplstore {
namespace {

constexpr std::chrono::milliseconds kRetryInterval{10};

}  // namespace

std::string describe(const WriterInfo& writer) {
  return fmt::format("{} (server pid {} on host {})", writer.peer, writer.server_pid,
                     writer.host_name);
}

std::unique_ptr<HeldLock> try_lock_for(Backend& backend, const std::string& object, LockMode mode,
                                       std::chrono::milliseconds wait) {
  const auto deadline = std::chrono::steady_clock::now() + wait;
  while (true) {
    if (auto lock = backend.try_lock(object, mode)) return lock;
    if (std::chrono::steady_clock::now() >= deadline) return nullptr;
    std::this_thread::sleep_for(kRetryInterval);
  }
}

namespace {

// Names who has the volume, as far as its header can be read.
[[noreturn]] void fail_in_use(Backend& backend, const std::string& folder, const Uuid& volume,
                              const std::string& name) {
  std::string owner;
  try {
    const auto writer = writer_of(read_header(backend, folder, volume));
    owner = writer ? describe(*writer) : "another process that is opening or closing it";
  } catch (const Error& error) {
    owner = fmt::format("another process, which cannot be named ({})", error.what());
  }
  fail(EBUSY, fmt::format("volume {}", name), "in use by {}; disconnect that first", owner);
}

bool has_header(Backend& backend, const std::string& folder) {
  const std::vector<std::string> parts = backend.list(folder);
  return std::find(parts.begin(), parts.end(), last_part_of(header_name(folder))) != parts.end();
}

[[noreturn]] void fail_missing(const std::string& object) {
  fail(EIO, object,
       "is missing, so nobody can tell whether a server has the volume; if none has, make an empty "
       "file of that name and try again");
}

// Takes a lock of a volume that is to be removed; nothing when others hold it for that long. One
// that is missing is made anew if the header is gone too, for then a removal came this far, or a
// creation no further. Whether anything is left to be locked is in `is_there`.
std::unique_ptr<HeldLock> lock_or_make(Backend& backend, const std::string& folder,
                                       const std::string& object, std::chrono::milliseconds wait,
                                       bool& is_there) {
  while (true) {
    try {
      return try_lock_for(backend, object, LockMode::kExclusive, wait);
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;
    }
    if (has_header(backend, folder)) fail_missing(object);
    is_there = !backend.list(folder).empty();
    if (!is_there) return nullptr;
    try {
      backend.create(object, 0, Purpose::kMetadata);
    } catch (const Error& error) {
      if (error.code() != EEXIST) throw;  // somebody else is at it too
    }
  }
}

}  // namespace

RemovalLocks lock_for_removal(Backend& backend, const std::string& folder, const Uuid& volume,
                              const std::string& name) {
  RemovalLocks locks;
  bool is_there = true;
  locks.lock = lock_or_make(backend, folder, lock_name(folder), {}, is_there);
  if (!is_there) return locks;
  if (!locks.lock) fail_in_use(backend, folder, volume, name);
  // Some read for a moment only, to show something.
  locks.readers =
      lock_or_make(backend, folder, readers_name(folder), WriterLock::kWaitMax, is_there);
  if (!locks.readers)
    fail(EBUSY, fmt::format("volume {}", name),
         "one of its versions is being read; disconnect that first");
  return locks;
}

std::unique_ptr<WriterLock> WriterLock::acquire(
    Backend& backend, const std::string& folder, const Uuid& volume, const std::string& name,
    const Peer& peer, const std::function<void(const std::string&)>& log) {
  std::unique_ptr<WriterLock> lock(new WriterLock());
  try {
    lock->lock_ = try_lock_for(backend, lock_name(folder), LockMode::kExclusive, kWaitMax);
  } catch (const Error& error) {
    if (error.code() == ENOENT && has_header(backend, folder)) fail_missing(lock_name(folder));
    throw;
  }
  if (!lock->lock_) fail_in_use(backend, folder, volume, name);
  lock->read(backend, folder, volume);

  VolumeHeader& header = lock->header_;
  if (const auto writer = writer_of(header))
    log(fmt::format("volume {}: taking over from {}, which has died", name, describe(*writer)));
  header.true_size_bytes = disk_size(header);
  header.size_bytes = 0;
  header.is_taken = 1;
  const std::lock_guard guard(lock->mutex_);
  lock->take(peer);
  return lock;
}

void WriterLock::take(const Peer& peer) {
  const HostIdentity& host = this_host();
  ++header_.epoch;
  header_.taken_at_ns = now_unix_ns();
  header_.host_id = host.host_id;
  header_.boot_id = host.boot_id;
  header_.server_pid = static_cast<uint32_t>(getpid());
  header_.server_start_time = process_start_time(getpid());
  put_text(header_.host_name, sizeof header_.host_name, host.host_name);
  put_text(header_.peer, sizeof header_.peer, peer.address);
  slots_.write(*object_, header_);
}

VolumeHeader WriterLock::header() const {
  const std::lock_guard guard(mutex_);
  return header_;
}

void WriterLock::hand_to(const Peer& peer) {
  const std::lock_guard guard(mutex_);
  take(peer);
}

std::unique_ptr<WriterLock> WriterLock::borrow(Backend& backend, const std::string& folder,
                                               const Uuid& volume, const std::string& name) {
  std::unique_ptr<WriterLock> lock(new WriterLock());
  lock->lock_ = backend.try_lock(lock_name(folder), LockMode::kExclusive);
  if (!lock->lock_) return nullptr;
  lock->read(backend, folder, volume);
  if (const auto writer = writer_of(lock->header_))
    fail(EBUSY, fmt::format("volume {}", name),
         "cannot be read as it is now: {} had it, and its server died; it can be when a VM, or a "
         "command like 'tplstore version create {}', has opened it",
         describe(*writer), name);
  return lock;
}

void WriterLock::read(Backend& backend, const std::string& folder, const Uuid& volume) {
  object_ = backend.open(header_name(folder), Access::kWrite, Purpose::kMetadata);
  header_ = read_header(*object_, folder, volume, slots_);
}

// With mutex_ held. What could not be written has not changed.
void WriterLock::put(const VolumeHeader& header) {
  slots_.write(*object_, header);
  header_ = header;
}

void WriterLock::restore(uint64_t size_bytes) {
  const std::lock_guard guard(mutex_);
  VolumeHeader header = header_;
  header.size_bytes = size_bytes;
  header.true_size_bytes = 0;
  header.is_taken = 0;
  put(header);
}

void WriterLock::resize(uint64_t size_bytes) {
  const std::lock_guard guard(mutex_);
  VolumeHeader header = header_;
  (header.is_taken != 0 ? header.true_size_bytes : header.size_bytes) = size_bytes;
  put(header);
}

void WriterLock::forget_parent() {
  const std::lock_guard guard(mutex_);
  VolumeHeader header = header_;
  header.parent = Uuid{};
  header.parent_version = 0;
  header.incompatible_features &= ~kFeatureFork;
  put(header);
}

}  // namespace tplstore
