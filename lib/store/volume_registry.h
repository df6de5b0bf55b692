// The volumes that this process has open: one Volume for all connections of its writer, and one
// for all readers of its frozen versions.
//
// An Attachment keeps a volume open. The one that goes last closes it, cleanly. Attaching waits
// for a volume that is being opened or closed; who gets it, waits or is refused the rules decide
// (lock/lock_state.h). A connection that joins or replaces others waits until what they have begun
// to change has ended; what they ask for after they were replaced, or lost the volume in another
// way, is refused. The changes of a VM that stands by wait here until they may be made, and those
// of the one that has the volume for the moment in which that is decided. What the store does
// itself is in no VM's way: it works beside a VM; a VM takes over a volume that is open for nothing
// else, and waits a moment for work that must be alone.
//
// Thread safety: all methods. Errors: EBUSY naming the owner, and what opening throws.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "store/store.h"
#include "volume/volume.h"

namespace tplstore {

class VolumeRegistry {
  using Clock = std::chrono::steady_clock;

 public:
  class Attachment {
   public:
    ~Attachment();
    Attachment(const Attachment&) = delete;
    Volume& volume() const { return *volume_; }
    const Uuid& uuid() const { return uuid_; }
    // Of a connection: it may have it later, or lose it.
    const Volume::Right& right() const { return right_; }

   private:
    friend class VolumeRegistry;
    Attachment(VolumeRegistry& registry, const Uuid& uuid, std::shared_ptr<const Peer> peer,
               bool is_alone)
        : registry_(registry), uuid_(uuid), peer_(std::move(peer)), is_alone_(is_alone) {
      right_.wait = [this] { registry_.await_right(*this); };
    }

    VolumeRegistry& registry_;
    const Uuid uuid_;
    const std::shared_ptr<const Peer> peer_;  // whose connection it is, if it is one
    const bool is_alone_;
    std::shared_ptr<Volume> volume_;  // nothing as long as it is being opened
    uint64_t ticket_ = 0;             // of a connection
    Volume::Right right_;
  };

  // `grace`: see Claim.
  VolumeRegistry(VolumeEnvironment environment, std::chrono::milliseconds grace)
      : environment_(std::move(environment)), grace_(grace) {}

  enum class Use { kVm, kAlone };

  // Opens the volume for a connection of this peer, or lets it in beside or instead of others of
  // its VM. kAlone: for the store's own work that no VM may be connected for.
  std::unique_ptr<Attachment> attach(const Uuid& uuid, const std::string& name, const Peer& peer,
                                     Use use = Use::kVm);
  // Keeps the volume open for work beside a VM, if there is one; opened for that if it is not open.
  std::unique_ptr<Attachment> attach_for_upkeep(const Uuid& uuid, const std::string& name,
                                                const Peer& peer);
  // Keeps a volume open that is open for writing; nothing when it is not, or is being closed.
  std::unique_ptr<Attachment> find_open(const Uuid& uuid);
  // The volume for reading frozen versions; opened anew when `find`, which looks for one, throws
  // ENOENT.
  std::shared_ptr<Volume> reader(const Uuid& uuid, const std::string& name,
                                 const std::function<void(Volume&)>& find);

  bool is_open(const Uuid& uuid);
  // Whether it is being opened or closed.
  bool is_changing(const Uuid& uuid);
  // All that are open for writing, and those open for reading.
  std::vector<std::unique_ptr<Attachment>> all_open();
  std::vector<std::shared_ptr<Volume>> readers();
  uint32_t connections(const Uuid& uuid);
  // Who may write a volume that is open here; nothing when it is not.
  std::optional<LockInfo> lock_info(const Uuid& uuid);
  // Has something happen to the lock of a volume that is open here, at an operator's wish; nothing
  // when it is not. `peer`: see WriterLock.
  std::optional<LockStep> change_lock(const Uuid& uuid, LockEvent event, const Peer& peer);
  // For so long one more connection of the VM that has the volume is let in beside the one that it
  // has; false when none has.
  bool let_join(const Uuid& uuid, Clock::duration duration);
  // The program ends: what VMs are connected to stays theirs when it is closed from now on.
  void keep_records() { keeps_records_ = true; }
  // Likewise, and now, under the connections: none of them gets anything any more but ESHUTDOWN,
  // nor does who comes. Waits until what the store itself does, and what is being changed, has
  // ended, and closes what is open; volumes where that takes too long, or fails, are left as by a
  // crash. To be called once.
  Left leave() EXCLUDES(mutex_);

 private:
  enum class State { kOpening, kOpen, kClosing };
  struct Entry {
    State state = State::kOpening;
    std::shared_ptr<Volume> volume;
    std::vector<Attachment*> attached;
    // Of the owner.
    uint64_t ticket = 0;
    std::shared_ptr<const Peer> peer;
    uint64_t epoch = 0;
    bool is_alone = false;
    bool is_draining = false;      // what others had begun to change when it came has not ended yet
    uint64_t requests_before = 0;  // that the volume had had when it came
    uint64_t writes_before = 0;
    // When it was seen last that it had asked for something.
    uint64_t requests_seen = 0;
    Clock::time_point quiet_since{};
    // Of the standby whose change waits, and of what its source has changed since it does.
    uint64_t waiting_ticket = 0;
    uint64_t writes_when_waiting = 0;
    uint64_t writes_seen = 0;
    Clock::time_point unchanged_since{};
    Clock::time_point joins_until{};  // the owner may have another connection
    bool is_handing_over = false;     // by the change that waits; one does it at a time
  };
  // A server that has died, and since when that is known.
  struct Death {
    uint64_t epoch = 0;
    Clock::time_point known_since{};
  };

  // Opens a volume that nobody here has, under the entry that was made for it; without the volume
  // that goes.
  std::unique_ptr<Attachment> open(const Uuid& uuid, const std::string& name, const Peer& peer,
                                   bool is_connection, bool is_alone) EXCLUDES(mutex_);
  // What the rules are told of the owner, and of one that has waited for so long.
  LockConnect look(const Uuid& uuid, Entry& entry, const Peer& peer, Clock::time_point now,
                   Clock::duration waited) REQUIRES(mutex_);
  bool let_in(Attachment& attachment, const LockConnect& event) EXCLUDES(mutex_);
  std::unique_ptr<Attachment> add(const Uuid& uuid, Entry& entry,
                                  std::shared_ptr<const Peer> peer = nullptr) REQUIRES(mutex_);
  // Gives each connection the right that it has by the lock's state.
  void give_rights(Entry& entry) noexcept REQUIRES(mutex_);
  void begin_ownership(Entry& entry, const Attachment& attachment) noexcept REQUIRES(mutex_);
  // Of a connection that has to wait for its right to change something.
  void await_right(Attachment& attachment) EXCLUDES(mutex_);
  LockChange look_at_source(Entry& entry, Clock::duration waited) REQUIRES(mutex_);
  bool hand_over(Entry& entry, Clock::duration waited) REQUIRES(mutex_);
  void wait_for_changes(const Attachment& attachment) EXCLUDES(mutex_);
  void detach(Attachment& attachment) noexcept EXCLUDES(mutex_);
  void fail_if_leaving(const std::string& name) const REQUIRES(mutex_);
  void end(const Uuid& uuid) EXCLUDES(mutex_);
  std::chrono::milliseconds absent(const Uuid& uuid, uint64_t epoch) EXCLUDES(deaths_mutex_);

  const VolumeEnvironment environment_;
  const std::chrono::milliseconds grace_;
  std::atomic<bool> keeps_records_{false};
  Mutex mutex_;  // not held while volumes are opened or closed
  ConditionVariable changed_;
  std::map<Uuid, Entry> entries_ GUARDED_BY(mutex_);
  bool leaves_ GUARDED_BY(mutex_) = false;
  Mutex deaths_mutex_;
  std::map<Uuid, Death> deaths_ GUARDED_BY(deaths_mutex_);
  Mutex readers_mutex_;
  std::map<Uuid, std::weak_ptr<Volume>> readers_ GUARDED_BY(readers_mutex_);
};

}  // namespace tplstore
