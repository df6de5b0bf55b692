// The writer lock of a volume: a held exclusive lock on its object "lock", and the header that
// says who has it and who may come next.
//
// On one host the held lock is the proof that no other server writes: the kernel releases it when
// its owner's process has ended and its writes have landed. Which VM may have the volume then is a
// matter of the record in the header (lock/lock_state.h). Between hosts the first record is that of
// the one who made the claim on its epoch (lock/claims.h): claim, look at the header again, write.
//
// Whoever removes a volume holds the lock too, whatever else of it is there or damaged. The object
// "lock" is never replaced while a volume has a header: it is made and durable before the header
// is, and removed after it. So where it is missing beside a header nobody can tell whether the
// volume is in use, and it is left alone.
//
// Thread safety: all methods.
// Errors: EBUSY naming the owner, or why the VM may not have the volume, and what to do; what
// reading and writing the header throws.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/log.h"
#include "lock/claims.h"
#include "lock/volume_header.h"

namespace tplstore {

// Who wants a volume.
struct Claim {
  Claim(Peer of) : peer(std::move(of)) {}

  Peer peer;
  bool is_connection = false;  // of a VM; else the program itself wants it
  // For so long a volume is kept for the VM that had it, when its server died and nobody can tell
  // whether the VM lives.
  std::chrono::milliseconds grace = std::chrono::seconds(30);
  // How long that is known of the server of this epoch.
  std::function<std::chrono::milliseconds(uint64_t epoch)> absent = [](uint64_t) {
    return std::chrono::milliseconds(0);
  };
};
// What an operator who hands a volume over to the VM with this one's token asks for.
LockArm arm_event(const Peer& destination, std::chrono::seconds duration);
// What it is to the rules, if it has waited for so long.
LockConnect connect_event(const Claim& claim, std::chrono::milliseconds waited);
// Whether the process lives that was connected, when the volume's lock is free; kOfAnotherHost when
// its host is another one.
OwnerSeen::Process process_of(const WriterInfo& writer);
// What can be seen of the VM of a record of another life.
void look_at_record(OwnerSeen& owner, const VolumeHeader& header,
                    const std::function<std::chrono::milliseconds(uint64_t epoch)>& absent);

class WriterLock {
 public:
  // How long to wait for an owner that is just leaving.
  static constexpr std::chrono::milliseconds kWaitMax{2000};

  // Takes the lock and marks the header as taken, if the record lets this one in. `name` is the
  // volume's, for messages; `log` gets a line when the volume is taken over from a server that
  // died.
  static std::unique_ptr<WriterLock> acquire(Backend& backend, const std::string& folder,
                                             const Uuid& volume, const std::string& name,
                                             const Claim& claim, const Log& log);
  // Takes the lock for a moment, without a claim: the header stays as it is. Nothing when somebody
  // holds it. EBUSY when the header says "taken": its owner died, and what it left is for the next
  // writer to take over.
  static std::unique_ptr<WriterLock> borrow(Backend& backend, const std::string& folder,
                                            const Uuid& volume, const std::string& name);
  // Has something happen to the record of a volume that nobody here has open: EBUSY when somebody
  // has, and for all but a break when another host has, or claims it. `peer`: see apply().
  static LockStep change_record(Backend& backend, const std::string& folder, const Uuid& volume,
                                const std::string& name, const LockEvent& event, const Peer& peer);
  // Releases the lock only; the header goes on saying what it says, as after a crash.
  ~WriterLock() = default;

  // What would happen.
  LockStep ask(const LockEvent& event) const;
  // Lets it happen: what of it must be durable is. `peer` is who connects, or has the token that
  // the volume is handed over to. What could not be written has not happened. If what was before
  // cannot be written either, nobody can tell what a crash would show: so `stop` of when_failed()
  // is called first, in the handler of what it failed with, and from then on this throws EIO;
  // unless the one who has the volume goes on by both, and nobody stood by.
  LockStep apply(const LockEvent& event, const Peer& peer = {});
  // Has to keep everybody from changing the volume, who would do so under a record that may be
  // another one's.
  void when_failed(std::function<void()> stop) { stop_ = std::move(stop); }
  LockState state() const;
  // What the server that had the volume before acquire() had acknowledged to its VM, and was not
  // flushed, is lost: that VM never gets it again. Throws EBUSY when it is the one that has it now,
  // who is let out.
  void lose_writes(const std::string& name);
  // The header is what it was before acquire(), and the claim is gone.
  void put_back();
  // Records a new size; whether the volume is taken stays as it is.
  void resize(uint64_t size_bytes);
  // What the volume takes now; the next record that is written says it, for those who only look.
  void note_usage(const VolumeUsage& usage);
  // The record stays, and says that now.
  void record_usage();
  // Records that the volume does not need its parent any more.
  void forget_parent();

  VolumeHeader header() const;

 private:
  WriterLock() = default;
  void read(Backend& backend, const std::string& folder, const Uuid& volume);
  // Of a volume that was read and that this process does not have: asks, makes the claim that is
  // needed, and lets happen what make_event() gives for the header.
  template <typename MakeEvent>
  LockStep begin(Backend& backend, const std::string& folder, const Peer& peer,
                 const MakeEvent& make_event);
  void remove_claim() noexcept;

  // With change_mutex_ held.
  void put(const VolumeHeader& header);
  void put_record(const LockState& next, const Peer& owner, const Peer& newcomer);

  std::unique_ptr<HeldLock> lock_;
  std::mutex change_mutex_;   // of who changes the header, and with it what is below
  mutable std::mutex mutex_;  // held in addition while that is changed, and by who only looks
  std::unique_ptr<Object> object_;
  HeaderSlots slots_{kHeaderMagic};
  VolumeHeader header_{};
  VolumeHeader found_{};
  LockState state_;
  Peer standby_;
  std::optional<VolumeUsage> usage_;
  std::function<void()> stop_ = [] {};
  bool has_failed_ = false;
  // Where claims are; and what was found of them when it began.
  Backend* backend_ = nullptr;
  std::string folder_;
  ClaimsFound claims_;
  uint64_t claimed_epoch_ = 0;
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

// "unix socket, pid 12 (server pid 4711 on host kvm1) since …", for messages.
std::string describe(const WriterInfo& writer);
// Throws EBUSY, saying why and what to do; `header` is the volume's.
[[noreturn]] void fail_refused(const std::string& name, LockAnswer answer,
                               const VolumeHeader& header, const ClaimsFound& claims = {});
// Throw when that was refused: EBUSY for another epoch, or when somebody stands by; EINVAL when no
// VM had the volume, or for a token that cannot get it.
void fail_unless_broken(const std::string& name, const LockStep& broken);
void fail_unless_armed(const std::string& name, const std::string& token, const LockStep& armed);
// What the header, and claims behind it, tell.
LockInfo lock_info_of(const std::string& name, const VolumeHeader& header,
                      const ClaimsFound& claims = {});

}  // namespace tplstore
