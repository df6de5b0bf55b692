// A map from volume to who has it, and waiting for what is being opened or closed by another
// thread.
#include "store/volume_registry.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "base/host.h"

namespace tplstore {
namespace {

// How long a connection waits for the one before it to be gone: closing writes a checkpoint.
constexpr std::chrono::seconds kClosingWaitMax{30};
constexpr std::chrono::milliseconds kLookAgain{20};
using Clock = std::chrono::steady_clock;
// How long a connection waits for what other connections of its VM have begun to change.
constexpr std::chrono::seconds kChangesWaitMax{10};

// Whether the peer's process has ended, though its connection may not have noticed yet. Of a peer
// without a pid that cannot be told.
bool may_have_left(const Peer& peer) {
  return peer.pid == 0 || process_start_time(peer.pid) != peer.start_time;
}

// One of the VM's connections may be gone, given up while the storage was slow, and the server
// still at work on what it asked for. That must not land over what the VM writes from here on.
void wait_for_changes(Volume& volume) {
  if (!volume.wait_for_changes(std::chrono::steady_clock::now() + kChangesWaitMax))
    fail(EBUSY, fmt::format("volume {}", volume.name()),
         "a write that another connection of this VM began more than {} s ago has not ended; "
         "connect again when the storage answers",
         kChangesWaitMax.count());
}

}  // namespace

VolumeRegistry::Attachment::~Attachment() {
  registry_.detach(uuid_, std::move(volume_), is_writer_);
}

std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::attach(const Uuid& uuid,
                                                                   const std::string& name,
                                                                   const Peer& peer, Use use) {
  const auto start = Clock::now();
  Lock guard(mutex_);
  while (true) {
    const auto it = entries_.find(uuid);
    if (it == entries_.end()) break;
    Entry& entry = it->second;
    if (entry.state == State::kOpen && entry.writers > 0) {
      if (peer.is_same_vm(entry.peer)) {
        std::unique_ptr<Attachment> attachment(new Attachment(*this, uuid, entry.volume, true));
        ++entry.writers;
        guard.unlock();
        wait_for_changes(attachment->volume());
        return attachment;
      }
      // Who has asked for nothing is most often a program that only looks at what there is.
      const bool may_leave = entry.is_alone || may_have_left(entry.peer) ||
                             entry.volume->requests() == entry.requests_before;
      const bool waits = may_leave && Clock::now() - start < WriterLock::kWaitMax;
      if (!waits)
        fail(EBUSY, fmt::format("volume {}", name),
             "in use by {} (server pid {} on host {}); "
             "disconnect that first",
             entry.peer.address, getpid(), this_host().host_name);
    } else if (entry.state == State::kOpen && use == Use::kVm && !entry.volume->has_failed()) {
      Peer next = peer;
      std::unique_ptr<Attachment> attachment(new Attachment(*this, uuid, entry.volume, true));
      entry.peer = std::move(next);
      entry.writers = 1;
      entry.is_alone = false;
      entry.requests_before = entry.volume->requests();
      guard.unlock();
      attachment->volume().hand_to(peer);
      return attachment;
    } else if (Clock::now() - start >= kClosingWaitMax) {
      fail(EBUSY, fmt::format("volume {}", name), "is still being opened or closed; try again");
    }
    changed_.wait_for(mutex_, kLookAgain);
  }
  Entry entry;
  entry.peer = peer;
  entry.writers = 1;
  entry.is_alone = use == Use::kAlone;
  Entry& opening = entries_.try_emplace(uuid, entry).first->second;
  guard.unlock();
  return open(uuid, name, entry, opening);
}

std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::attach_for_upkeep(
    const Uuid& uuid, const std::string& name, const Peer& peer) {
  const auto start = Clock::now();
  Lock guard(mutex_);
  for (auto it = entries_.find(uuid); it != entries_.end(); it = entries_.find(uuid)) {
    if (it->second.state == State::kOpen) {
      std::unique_ptr<Attachment> joined(new Attachment(*this, uuid, it->second.volume, false));
      ++it->second.helpers;
      return joined;
    }
    if (Clock::now() - start >= kClosingWaitMax)
      fail(EBUSY, fmt::format("volume {}", name), "is still being opened or closed; try again");
    changed_.wait_for(mutex_, kLookAgain);
  }
  Entry entry;
  entry.peer = peer;
  entry.helpers = 1;
  Entry& opening = entries_.try_emplace(uuid, entry).first->second;
  guard.unlock();
  return open(uuid, name, entry, opening);
}

std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::open(const Uuid& uuid,
                                                                 const std::string& name,
                                                                 const Entry& as, Entry& entry) {
  std::unique_ptr<Attachment> attachment;
  try {
    std::shared_ptr<Volume> volume = Volume::open_for_writing(environment_, uuid, name, as.peer);
    attachment.reset(new Attachment(*this, uuid, std::move(volume), as.writers > 0));
  } catch (...) {
    const Lock guard(mutex_);
    entries_.erase(uuid);
    changed_.notify_all();
    throw;
  }
  const Lock guard(mutex_);
  entry.volume = attachment->volume_;
  entry.state = State::kOpen;
  changed_.notify_all();
  return attachment;
}

std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::find_open(const Uuid& uuid) {
  const Lock guard(mutex_);
  const auto it = entries_.find(uuid);
  if (it == entries_.end() || it->second.state != State::kOpen) return nullptr;
  std::unique_ptr<Attachment> open(new Attachment(*this, uuid, it->second.volume, false));
  ++it->second.helpers;
  return open;
}

void VolumeRegistry::detach(const Uuid& uuid, std::shared_ptr<Volume> volume, bool is_writer) {
  {
    const Lock guard(mutex_);
    Entry& entry = entries_.at(uuid);
    --(is_writer ? entry.writers : entry.helpers);
    if (entry.writers + entry.helpers > 0) return;
    entry.state = State::kClosing;
    entry.volume.reset();
  }
  volume->close();
  volume.reset();
  const Lock guard(mutex_);
  entries_.erase(uuid);
  changed_.notify_all();
}

std::shared_ptr<Volume> VolumeRegistry::reader(const Uuid& uuid, const std::string& name,
                                               const std::function<void(Volume&)>& find) {
  std::shared_ptr<Volume> volume;
  {
    const Lock guard(readers_mutex_);
    if (const auto known = readers_.find(uuid); known != readers_.end())
      volume = known->second.lock();
  }
  if (volume) {
    try {
      find(*volume);
      return volume;
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;  // it may have been made since
    }
  }
  // Without the mutex: how long it takes is a matter of that volume.
  volume = Volume::open_for_reading(environment_, uuid, name);
  find(*volume);
  const Lock guard(readers_mutex_);
  std::erase_if(readers_, [](const auto& known) { return known.second.expired(); });
  readers_[uuid] = volume;
  return volume;
}

bool VolumeRegistry::is_open(const Uuid& uuid) {
  const Lock guard(mutex_);
  const auto it = entries_.find(uuid);
  return it != entries_.end() && it->second.state == State::kOpen;
}

bool VolumeRegistry::is_changing(const Uuid& uuid) {
  const Lock guard(mutex_);
  const auto it = entries_.find(uuid);
  return it != entries_.end() && it->second.state != State::kOpen;
}

std::vector<std::unique_ptr<VolumeRegistry::Attachment>> VolumeRegistry::all_open() {
  std::vector<Uuid> uuids;
  {
    const Lock guard(mutex_);
    for (const auto& [uuid, entry] : entries_) uuids.push_back(uuid);
  }
  std::vector<std::unique_ptr<Attachment>> open;
  for (const Uuid& uuid : uuids)
    if (auto attachment = find_open(uuid)) open.push_back(std::move(attachment));
  return open;
}

std::vector<std::shared_ptr<Volume>> VolumeRegistry::readers() {
  const Lock guard(readers_mutex_);
  std::vector<std::shared_ptr<Volume>> open;
  std::erase_if(readers_, [&open](const auto& entry) {
    auto volume = entry.second.lock();
    if (!volume) return true;
    open.push_back(std::move(volume));
    return false;
  });
  return open;
}

uint32_t VolumeRegistry::connections(const Uuid& uuid) {
  const Lock guard(mutex_);
  const auto it = entries_.find(uuid);
  return it == entries_.end() ? 0 : it->second.writers;
}

}  // namespace tplstore
