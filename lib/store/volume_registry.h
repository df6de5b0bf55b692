// The volumes that this process has open: one Volume for all connections of its writer, and one
// for all readers of its frozen versions.
//
// An Attachment keeps a volume open. The one that goes last closes it, cleanly. Attaching waits
// for a volume that is being opened or closed; it is refused while another VM has the volume,
// after a while if that one has asked for nothing yet: it may only be looking what there is. A
// connection that joins others of its VM waits until what they have begun to change has ended.
// What the store does itself is in no VM's way: it works beside a VM; a VM takes over a volume that
// is open for nothing else, and waits a moment for work that must be alone.
//
// Thread safety: all methods. Errors: EBUSY naming the owner, and what opening throws.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "volume/volume.h"

namespace tplstore {

class VolumeRegistry {
 public:
  class Attachment {
   public:
    ~Attachment();
    Attachment(const Attachment&) = delete;
    Volume& volume() const { return *volume_; }
    const Uuid& uuid() const { return uuid_; }

   private:
    friend class VolumeRegistry;
    Attachment(VolumeRegistry& registry, const Uuid& uuid, std::shared_ptr<Volume> volume,
               bool is_writer)
        : registry_(registry), uuid_(uuid), volume_(std::move(volume)), is_writer_(is_writer) {}

    VolumeRegistry& registry_;
    const Uuid uuid_;
    std::shared_ptr<Volume> volume_;
    const bool is_writer_;
  };

  explicit VolumeRegistry(VolumeEnvironment environment) : environment_(std::move(environment)) {}

  enum class Use { kVm, kAlone };

  // Opens the volume for this peer, or joins the peer's other connections. kAlone: for the store's
  // own work that no VM may be connected for.
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

 private:
  enum class State { kOpening, kOpen, kClosing };
  struct Entry {
    State state = State::kOpening;
    std::shared_ptr<Volume> volume;
    Peer peer;
    uint64_t requests_before = 0;  // that the volume had had when the peer came
    uint32_t writers = 0;
    uint32_t helpers = 0;
    bool is_alone = false;
  };

  // Opens the volume that `entry`, which began as `as`, is of; without it the entry goes.
  std::unique_ptr<Attachment> open(const Uuid& uuid, const std::string& name, const Entry& as,
                                   Entry& entry) EXCLUDES(mutex_);
  void detach(const Uuid& uuid, std::shared_ptr<Volume> volume, bool is_writer) EXCLUDES(mutex_);

  const VolumeEnvironment environment_;
  Mutex mutex_;  // not held while volumes are opened or closed
  ConditionVariable changed_;
  std::map<Uuid, Entry> entries_ GUARDED_BY(mutex_);
  Mutex readers_mutex_;
  std::map<Uuid, std::weak_ptr<Volume>> readers_ GUARDED_BY(readers_mutex_);
};

}  // namespace tplstore
