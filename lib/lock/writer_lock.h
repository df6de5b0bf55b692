// The writer lock of a volume: a held exclusive lock on its object "lock", and the header that
// says so to everybody else.
//
// On one host the held lock is the truth: the kernel releases it when its owner's process ends, so
// getting it proves that no previous owner lives, and is enough to take over. The header's writer
// record is for people and for other hosts.
//
// Whoever removes a volume holds the lock too, whatever else of it is there or damaged. The object
// "lock" is never replaced while a volume has a header: it is made and durable before the header
// is, and removed after it. So where it is missing beside a header nobody can tell whether the
// volume is in use, and it is left alone.
//
// Thread safety: all methods.
// Errors: EBUSY naming the owner; what reading and writing the header throws.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "lock/volume_header.h"

namespace tplstore {

class WriterLock {
 public:
  // How long to wait for an owner that is just leaving.
  static constexpr std::chrono::milliseconds kWaitMax{2000};

  // Takes the lock and marks the header as taken by `peer`. `name` is the volume's, for messages;
  // `log` gets a line when the volume is taken over from an owner that died.
  static std::unique_ptr<WriterLock> acquire(Backend& backend, const std::string& folder,
                                             const Uuid& volume, const std::string& name,
                                             const Peer& peer,
                                             const std::function<void(const std::string&)>& log);
  // Takes the lock for a moment, without a claim: the header stays as it is. Nothing when somebody
  // holds it. EBUSY when the header says "taken": its owner died, and what it left is for the next
  // writer to take over.
  static std::unique_ptr<WriterLock> borrow(Backend& backend, const std::string& folder,
                                            const Uuid& volume, const std::string& name);
  // Releases the lock only; the header goes on saying what it says, as after a crash.
  ~WriterLock() = default;

  // Marks the header as free, with this size, before the lock is released.
  void restore(uint64_t size_bytes);
  // Marks the volume, which stays taken, as taken by another peer.
  void hand_to(const Peer& peer);
  // Records a new size; whether the volume is taken stays as it is.
  void resize(uint64_t size_bytes);
  // Records that the volume does not need its parent any more.
  void forget_parent();

  VolumeHeader header() const;

 private:
  WriterLock() = default;
  void read(Backend& backend, const std::string& folder, const Uuid& volume);

  void take(const Peer& peer);  // with mutex_ held
  void put(const VolumeHeader& header);

  std::unique_ptr<HeldLock> lock_;
  mutable std::mutex mutex_;  // guards all below
  std::unique_ptr<Object> object_;
  HeaderSlots slots_{kHeaderMagic};
  VolumeHeader header_{};
};

// What keeps everybody else out of a volume while it is removed. Both are nothing where not even a
// folder is left.
struct RemovalLocks {
  std::unique_ptr<HeldLock> lock;
  std::unique_ptr<HeldLock> readers;
};
// EBUSY while somebody has the volume or, for longer than a moment, reads one of its versions. EIO,
// saying what to do, when "lock" or "readers" is missing beside a header.
RemovalLocks lock_for_removal(Backend& backend, const std::string& folder, const Uuid& volume,
                              const std::string& name);

// As Backend::try_lock, trying for so long.
std::unique_ptr<HeldLock> try_lock_for(Backend& backend, const std::string& object, LockMode mode,
                                       std::chrono::milliseconds wait);

// "in use by unix socket, pid 12 (server pid 4711 on host kvm1)", for messages.
std::string describe(const WriterInfo& writer);

}  // namespace tplstore
