// A batch fills a ring and waits for all of it; what came back short ends by plain calls. Without
// io_uring (no memory for it, or not allowed) the same operations run one after the other.
#include "backend/dir/io_ring.h"

#include <fmt/format.h>
#include <liburing.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/bytes.h"

namespace tplstore {
namespace {

// Of one entry of a ring, whose lengths have 32 bits; a round number keeps O_DIRECT aligned.
constexpr size_t kTransferBytesMax = size_t{1} << 30;

// A read with O_DIRECT that stopped between two blocks has met the end of the file, or an error
// in mid-range. Only the file's size tells them apart: zeroes must never stand in for an error.
// Returns whether the operation is at its end.
bool settle_direct_read(IoOp& op, size_t started_at) noexcept {
  struct stat status;
  if (fstat(op.fd, &status) != 0) {
    op.error = errno;
    return true;
  }
  if (op.offset + op.done >= static_cast<uint64_t>(status.st_size)) return true;
  const size_t whole = round_down(op.done, kBlockBytes);
  if (whole <= started_at) {
    op.error = EIO;
    return true;
  }
  op.done = whole;  // read the rest again, from where O_DIRECT allows to
  return false;
}

// Takes the result of one call, bytes or -errno. Returns whether the operation is at its end.
bool settle(IoOp& op, int64_t result) noexcept {
  if (result < 0) {
    op.error = static_cast<int>(-result);
    return true;
  }
  if (result == 0) {
    // A read has met the end of the file. A write that moves nothing would never end.
    if (op.kind == IoOp::Kind::kWrite) op.error = EIO;
    return true;
  }
  const size_t started_at = op.done;
  op.done += static_cast<size_t>(result);
  if (op.done >= op.length) return true;
  if (!op.is_direct || op.done % kBlockBytes == 0) return false;
  if (op.kind == IoOp::Kind::kRead) return settle_direct_read(op, started_at);
  op.done = round_down(op.done, kBlockBytes);  // write the torn block again, whole
  if (op.done <= started_at) op.error = EIO;
  return op.error != 0;
}

// Writes through the page cache are copies: the calling thread does them in a microsecond, while a
// ring hands each to a worker thread first (measured on ext4: 3 to 20 times slower).
bool is_worth_a_ring(const IoOp& op) { return op.kind == IoOp::Kind::kRead || op.is_direct; }

bool is_ring_write(const IoOp& op) { return op.kind == IoOp::Kind::kWrite && is_worth_a_ring(op); }

bool is_plain_forced() {
  const char* value = std::getenv("TPLSTORE_NO_IO_URING");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace

void run_plain(IoOp& op) noexcept {
  if (op.done >= op.length) return;
  for (;;) {
    const auto at = static_cast<off_t>(op.offset + op.done);
    const ssize_t result = op.kind == IoOp::Kind::kRead
                               ? pread(op.fd, op.data + op.done, op.length - op.done, at)
                               : pwrite(op.fd, op.data + op.done, op.length - op.done, at);
    if (result < 0 && errno == EINTR) continue;
    if (settle(op, result < 0 ? -errno : result)) return;
  }
}

void KeptFiles::add(int fd) {
  const Lock lock(mutex_);
  fds_.push_back(fd);
  changes_.fetch_add(1, std::memory_order_release);
}

void KeptFiles::remove(int fd) noexcept {
  const Lock lock(mutex_);
  std::erase(fds_, fd);
  changes_.fetch_add(1, std::memory_order_release);
}

// One ring, used by one thread at a time.
struct IoRingPool::Ring {
  io_uring ring{};
  pid_t owner = 0;         // who made it; 0 while it is not made
  bool is_broken = false;  // holds entries that must never be submitted: drop it
  bool has_kept_files = false;
  uint64_t kept_changes = 0;  // of the files that are registered now

  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (is_ours()) {
      io_uring_queue_exit(&ring);
    } else if (owner != 0) {
      // Its memory stayed with the parent, and something else may be mapped there by now.
      close(ring.ring_fd);
    }
  }
  bool is_ours() const { return owner == getpid(); }

  // 0, or -errno.
  int make() noexcept {
    const int result = io_uring_queue_init(kRingEntries, &ring, 0);
    if (result < 0) return result;
    owner = getpid();
    io_uring_ring_dontfork(&ring);
    return 0;
  }

  // At most kRingEntries operations.
  void run(std::span<IoOp> ops) noexcept;

  // Registers the files to be kept, while nothing is in flight. False when the kernel refuses to.
  bool keep(KeptFiles& files) noexcept {
    if (files.changes_.load(std::memory_order_acquire) == kept_changes) [[likely]]
      return true;
    const Lock lock(files.mutex_);
    if (has_kept_files && io_uring_unregister_files(&ring) < 0) return false;
    has_kept_files = false;
    const auto count = static_cast<unsigned>(files.fds_.size());
    if (count > 0 && io_uring_register_files(&ring, files.fds_.data(), count) < 0) return false;
    has_kept_files = count > 0;
    kept_changes = files.changes_.load(std::memory_order_relaxed);
    return true;
  }

 private:
  void queue(IoOp& op) noexcept {
    io_uring_sqe* entry = io_uring_get_sqe(&ring);
    const auto length = static_cast<unsigned>(std::min(op.length, kTransferBytesMax));
    if (op.kind == IoOp::Kind::kRead) {
      io_uring_prep_read(entry, op.fd, op.data, length, op.offset);
    } else {
      io_uring_prep_write(entry, op.fd, op.data, length, op.offset);
    }
    io_uring_sqe_set_data(entry, &op);
  }

  // Takes what has ended, and brings to its end by plain calls what came back short, or what the
  // kernel could not take in this way: Linux 5.1 to 5.5 do not know these operations. How many.
  size_t reap() noexcept {
    size_t count = 0;
    io_uring_cqe* completion;
    for (; io_uring_peek_cqe(&ring, &completion) == 0; ++count) {
      IoOp& op = *static_cast<IoOp*>(io_uring_cqe_get_data(completion));
      const int result = completion->res;
      io_uring_cqe_seen(&ring, completion);
      const bool is_refused =
          result == -EAGAIN || result == -EINTR || result == -ECANCELED || result == -EINVAL;
      if (is_refused || !settle(op, result)) run_plain(op);
    }
    return count;
  }
};

void IoRingPool::Ring::run(std::span<IoOp> ops) noexcept {
  size_t queued = 0;  // submitted or not, whose end is not seen
  for (IoOp& op : ops) {
    if (op.length > 0 && is_worth_a_ring(op)) {
      queue(op);
      ++queued;
    } else {
      run_plain(op);
    }
  }
  while (queued > 0) {
    const int result = io_uring_submit_and_wait(&ring, static_cast<unsigned>(queued));
    queued -= reap();
    if (result >= 0 || result == -EINTR) continue;
    is_broken = queued > 0 && io_uring_sq_ready(&ring) == queued;
    if (is_broken) break;
    // What the kernel took must end before anything else, and does so without us.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!is_broken) return;
  for (unsigned i = *ring.sq.khead; i != ring.sq.sqe_tail; ++i) {
    const io_uring_sqe& entry = ring.sq.sqes[i & ring.sq.ring_mask];
    run_plain(*reinterpret_cast<IoOp*>(static_cast<uintptr_t>(entry.user_data)));
  }
}

IoRingPool::IoRingPool(size_t rings_max) : is_forbidden_(is_plain_forced()), rings_max_(rings_max) {
  free_.reserve(rings_max);
}

IoRingPool::~IoRingPool() = default;

void IoRingPool::run_batch(std::span<IoOp> ops, const Log& log) noexcept {
  if (!is_forbidden_ && std::ranges::count_if(ops, is_worth_a_ring) > 1) {
    if (std::unique_ptr<Ring> ring = take_ring(log)) {
      const bool may_run = std::ranges::none_of(ops, is_ring_write) || ring->keep(*kept_);
      while (may_run && !ring->is_broken && !ops.empty()) {
        const size_t count = std::min(ops.size(), kRingEntries);
        ring->run(ops.first(count));
        ops = ops.subspan(count);
      }
      give_back(std::move(ring), may_run);
    }
  }
  for (IoOp& op : ops) run_plain(op);
}

std::unique_ptr<IoRingPool::Ring> IoRingPool::take_ring(const Log& log) noexcept {
  const Lock lock(mutex_);
  while (!free_.empty()) {
    std::unique_ptr<Ring> ring = std::move(free_.back());
    free_.pop_back();
    if (ring->is_ours()) return ring;
    --rings_made_;  // it was made before a fork
  }
  if (rings_made_ >= rings_max_) return nullptr;

  std::unique_ptr<Ring> ring(new (std::nothrow) Ring);
  const int result = ring ? ring->make() : -ENOMEM;
  if (result == 0) {
    ++rings_made_;
    return ring;
  }
  rings_max_ = rings_made_;
  if (rings_made_ == 0 && !has_logged_ && log) {
    has_logged_ = true;
    try {
      log(LogLevel::kNotice,
          fmt::format("io_uring cannot be used here ({}); reading and writing without it",
                      std::strerror(-result)));
    } catch (...) {
      // A log that fails must not fail a read.
    }
  }
  return nullptr;
}

void IoRingPool::give_back(std::unique_ptr<Ring> ring, bool has_run) noexcept {
  const Lock lock(mutex_);
  if (has_run) ++ring_batches_;
  if (ring->is_broken) {
    --rings_made_;
  } else {
    free_.push_back(std::move(ring));  // within what was reserved
  }
}

uint64_t IoRingPool::ring_batches() const {
  const Lock lock(mutex_);
  return ring_batches_;
}

}  // namespace tplstore
