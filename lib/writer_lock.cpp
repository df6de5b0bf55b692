#include "writer_lock.h"

#include <unistd.h>

#include <cerrno>
#include <thread>

#include "host.h"
#include "names.h"

namespace tplstore {
namespace {

constexpr std::chrono::milliseconds kRetryInterval{10};

}  // namespace

std::string describe(const WriterInfo& writer) {
  return fmt::format("{} (server pid {} on host {})", writer.peer, writer.server_pid,
                     writer.host_name);
}

std::unique_ptr<WriterLock> WriterLock::acquire(
    Backend& backend, const std::string& folder, const std::string& name, const Peer& peer,
    const std::function<void(const std::string&)>& log) {
  std::unique_ptr<WriterLock> lock(new WriterLock());
  const auto deadline = std::chrono::steady_clock::now() + kWaitMax;
  while (!(lock->lock_ = backend.try_lock(folder + "/lock", LockMode::kExclusive))) {
    if (std::chrono::steady_clock::now() >= deadline) {
      const auto writer = writer_of(read_header(backend, folder));
      fail(EBUSY, fmt::format("volume {}", name), "in use by {}; disconnect that first",
           writer ? describe(*writer) : "another process that is opening or closing it");
    }
    std::this_thread::sleep_for(kRetryInterval);
  }
  lock->object_ = backend.open(header_name(folder), Access::kWrite);
  lock->header_ = read_header(*lock->object_, header_name(folder), lock->slots_);

  VolumeHeader& header = lock->header_;
  if (const auto writer = writer_of(header)) {
    log(fmt::format("volume {}: taking over from {}, which has died", name, describe(*writer)));
    lock->took_over_ = true;
  }
  const HostIdentity& host = this_host();
  header.true_size_bytes = disk_size(header);
  header.size_bytes = 0;
  header.is_taken = 1;
  ++header.epoch;
  header.taken_at_ns = now_unix_ns();
  header.host_id = host.host_id;
  header.boot_id = host.boot_id;
  header.server_pid = static_cast<uint32_t>(getpid());
  header.server_start_time = process_start_time(getpid());
  put_text(header.host_name, sizeof header.host_name, host.host_name);
  put_text(header.peer, sizeof header.peer, peer.address);
  lock->slots_.write(*lock->object_, header);
  return lock;
}

void WriterLock::restore(uint64_t size_bytes) {
  header_.size_bytes = size_bytes;
  header_.true_size_bytes = 0;
  header_.is_taken = 0;
  slots_.write(*object_, header_);
}

void WriterLock::resize(uint64_t size_bytes) {
  header_.true_size_bytes = size_bytes;
  slots_.write(*object_, header_);
}

void WriterLock::forget_parent() {
  header_.parent = Uuid{};
  header_.parent_version = 0;
  header_.incompatible_features &= ~kFeatureFork;
  slots_.write(*object_, header_);
}

}  // namespace tplstore
