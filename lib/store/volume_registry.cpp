// A map from volume to who has it, and waiting for what is being opened or closed by another
// thread.
#include "store/volume_registry.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "base/host.h"
#include "base/log.h"
#include "base/units.h"

namespace tplstore {
namespace {

// How long a connection waits for the one before it to be gone: closing writes a checkpoint.
constexpr std::chrono::seconds kClosingWaitMax{30};
constexpr std::chrono::milliseconds kLookAgain{20};
// How long a connection waits for what others have begun to change.
constexpr std::chrono::seconds kChangesWaitMax{10};
// How long a program that ends waits for what is under way.
constexpr std::chrono::seconds kLeaveWaitMax{30};
constexpr size_t kClosersMax = 8;

std::chrono::milliseconds milliseconds_of(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(duration);
}

// Of what has happened, whether there is memory for the line or not.
template <typename... Arguments>
void log_if_possible(const Log& log, fmt::format_string<Arguments...> text,
                     Arguments&&... arguments) noexcept {
  try {
    log(fmt::format(text, std::forward<Arguments>(arguments)...));
  } catch (const std::exception&) {
  }
}

}  // namespace

VolumeRegistry::Attachment::~Attachment() {
  if (volume_) registry_.detach(*this);
}

// One of the connections may be gone, given up while the storage was slow, or put out, and the
// server still at work on what it asked for. That must not land over what comes from here on.
void VolumeRegistry::wait_for_changes(const Attachment& attachment) {
  Volume& volume = attachment.volume();
  if (!volume.wait_for_changes(Clock::now() + kChangesWaitMax))
    fail(EBUSY, fmt::format("volume {}", volume.name()),
         "a write that another connection began more than {} s ago has not ended; "
         "connect again when the storage answers",
         kChangesWaitMax.count());
}

std::chrono::milliseconds VolumeRegistry::absent(const Uuid& uuid, uint64_t epoch) {
  const auto now = Clock::now();
  const Lock guard(deaths_mutex_);
  Death& death = deaths_[uuid];
  if (death.epoch != epoch) death = {epoch, now};
  return milliseconds_of(now - death.known_since);
}

LockConnect VolumeRegistry::look(const Uuid& uuid, Entry& entry, const Peer& peer,
                                 Clock::time_point now, Clock::duration waited) {
  Volume& volume = *entry.volume;
  const uint64_t requests = volume.requests();
  if (requests != entry.requests_seen) {
    entry.requests_seen = requests;
    entry.quiet_since = now;
  }
  Claim claim(peer);
  claim.is_connection = true;
  claim.grace = grace_;
  LockConnect event = connect_event(claim, milliseconds_of(waited));
  event.may_join = now < entry.joins_until;
  if (!volume.writer_lock().state().is_held) {
    // Open for one that stands by; the one before has not come back yet.
    look_at_record(event.owner, volume.writer_lock().header(),
                   [&](uint64_t epoch) { return absent(uuid, epoch); });
  } else if (entry.peer && entry.peer->pid != 0) {
    const bool lives = process_start_time(entry.peer->pid) == entry.peer->start_time;
    event.owner.process = lives ? OwnerSeen::Process::kLives : OwnerSeen::Process::kGone;
  }
  event.owner.has_asked = !entry.is_alone && requests != entry.requests_before;
  event.owner.quiet = milliseconds_of(now - entry.quiet_since);
  event.owner.has_in_flight = !volume.wait_for_changes(now);
  return event;
}

void VolumeRegistry::begin_ownership(Entry& entry, const Attachment& attachment) noexcept {
  entry.ticket = attachment.ticket_;
  entry.peer = attachment.peer_;
  entry.is_alone = attachment.is_alone_;
  entry.joins_until = {};  // that was another one's
  entry.is_draining = true;
  entry.requests_before = entry.requests_seen = entry.volume->requests();
  entry.quiet_since = Clock::now();
  // What replaces a connection goes on with what that has written.
  const uint64_t epoch = entry.volume->writer_lock().state().record.epoch;
  if (std::exchange(entry.epoch, epoch) != epoch) entry.writes_before = entry.volume->writes();
}

// Who is out is so before it is seen what of theirs is on its way.
void VolumeRegistry::give_rights(Entry& entry) noexcept {
  using Right = Volume::Right::State;
  if (leaves_) {
    for (Attachment* attachment : entry.attached) attachment->right_.state = Right::kLost;
    return changed_.notify_all();
  }
  const LockState state = entry.volume->writer_lock().state();
  size_t losers = 0;
  const auto give = [&](uint64_t ticket, Right right) {
    for (Attachment* attachment : entry.attached)
      if (attachment->ticket_ == ticket && ticket != 0) attachment->right_.state = right;
  };
  for (Attachment* attachment : entry.attached) {
    const uint64_t ticket = attachment->ticket_;
    if (ticket == 0 || ticket == state.standby.ticket) continue;
    if (ticket == state.owner.ticket) {
      if (ticket != entry.ticket) begin_ownership(entry, *attachment);
    } else if (attachment->right_.state.exchange(Right::kLost) != Right::kLost) {
      ++losers;
    }
  }
  give(state.standby.ticket, Right::kWaits);
  if (entry.is_draining) entry.is_draining = !entry.volume->wait_for_changes(Clock::now());
  const bool waits = entry.is_handing_over || entry.is_draining;
  give(state.owner.ticket, waits ? Right::kWaits : Right::kHas);
  changed_.notify_all();
  if (losers == 0) return;
  const bool is_known = entry.peer && entry.ticket == state.owner.ticket;
  log_if_possible(environment_.log,
                  "volume {}: {} connection(s) have lost it, and what they ask for is refused; in "
                  "use now by {}",
                  entry.volume->name(), losers,
                  is_known                  ? entry.peer->address.c_str()
                  : state.owner.ticket == 0 ? "nobody"
                                            : "another VM");
}

// Nothing fails once the attachment is there: the mutex that its end takes is held.
std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::add(const Uuid& uuid, Entry& entry,
                                                                std::shared_ptr<const Peer> peer) {
  entry.attached.reserve(entry.attached.size() + 1);
  std::unique_ptr<Attachment> attachment(new Attachment(*this, uuid, std::move(peer), false));
  attachment->volume_ = entry.volume;
  entry.attached.push_back(attachment.get());
  return attachment;
}

std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::attach(const Uuid& uuid,
                                                                   const std::string& name,
                                                                   const Peer& peer, Use use) {
  Lock guard(mutex_);
  // Who has been quiet since the first look has been so for as long as this has waited, exactly.
  auto now = Clock::now();
  const auto start = now;
  std::optional<uint64_t> found;
  fail_if_leaving(name);
  for (auto it = entries_.find(uuid); it != entries_.end();
       it = entries_.find(uuid), now = Clock::now()) {
    Entry& entry = it->second;
    if (!found) found = entry.ticket;
    const bool is_open = entry.state == State::kOpen;
    const bool is_owned = is_open && entry.volume->writer_lock().state().is_anybodys();
    if (is_owned || (is_open && use == Use::kVm && !entry.volume->has_failed())) {
      LockConnect event = look(uuid, entry, peer, now, now - start);
      event.found = *found;
      const LockAnswer answer = entry.volume->writer_lock().ask(event).answer;
      if (answer == LockAnswer::kYes) {
        std::unique_ptr<Attachment> attachment =
            add(uuid, entry, std::make_shared<const Peer>(peer));
        if (event.may_join) entry.joins_until = {};  // one comes by it, and no more
        guard.unlock();
        if (let_in(*attachment, event)) return attachment;
        attachment.reset();
        guard.lock();
        continue;
      }
      if (answer != LockAnswer::kWait)
        fail_refused(name, answer, entry.volume->writer_lock().header());
    } else if (now - start >= kClosingWaitMax) {
      fail(EBUSY, fmt::format("volume {}", name), "is still being opened or closed; try again");
    }
    changed_.wait_for(mutex_, kLookAgain);
    fail_if_leaving(name);
  }
  entries_.try_emplace(uuid);
  guard.unlock();
  return open(uuid, name, peer, /*is_connection=*/true, use == Use::kAlone);
}

// Has the rules let in who asked, and waits until nothing of before can land any more. False when
// they do not any more.
bool VolumeRegistry::let_in(Attachment& attachment, const LockConnect& event) {
  const LockStep taken = attachment.volume().writer_lock().apply(event, *attachment.peer_);
  if (taken.answer != LockAnswer::kYes) return false;
  {
    const Lock guard(mutex_);
    attachment.ticket_ = taken.ticket;
    give_rights(entries_.at(attachment.uuid()));
  }
  if (taken.ticket != taken.state.standby.ticket) wait_for_changes(attachment);
  return true;
}

LockChange VolumeRegistry::look_at_source(Entry& entry, Clock::duration waited) {
  Volume& volume = *entry.volume;
  const auto now = Clock::now();
  LockChange event;
  event.owner.has_in_flight = !volume.wait_for_changes(now);
  const uint64_t writes = volume.writes();
  const uint64_t standby = volume.writer_lock().state().standby.ticket;
  if (std::exchange(entry.waiting_ticket, standby) != standby) {
    entry.writes_when_waiting = entry.writes_seen = writes;
    entry.unchanged_since = now;
  }
  if (std::exchange(entry.writes_seen, writes) != writes) entry.unchanged_since = now;
  event.owner.has_changed = writes != entry.writes_when_waiting;
  event.owner.has_flushed = volume.has_flushed();
  event.owner.quiet = milliseconds_of(now - entry.unchanged_since);
  event.waited = milliseconds_of(waited);
  return event;
}

// Whether a change of the standby has an answer now, which is carried out. Between the look at the
// source that counts and the record of what comes of it the source can begin nothing: its changes
// wait too.
bool VolumeRegistry::hand_over(Entry& entry, Clock::duration waited) {
  WriterLock& lock = entry.volume->writer_lock();
  if (lock.ask(look_at_source(entry, waited)).answer == LockAnswer::kWait) return false;
  entry.is_handing_over = true;
  give_rights(entry);
  const LockChange event = look_at_source(entry, waited);
  const bool has_answer = lock.ask(event).answer != LockAnswer::kWait;
  if (has_answer) {
    // The header is written without the mutex. Meanwhile the entry stays, for the one that waits is
    // in it; and whatever else has happened to the lock then, its state says who may do what.
    mutex_.unlock();
    try {
      lock.apply(event);
    } catch (...) {
      mutex_.lock();
      entry.is_handing_over = false;
      give_rights(entry);
      throw;
    }
    mutex_.lock();
  }
  entry.is_handing_over = false;
  give_rights(entry);
  return has_answer;
}

void VolumeRegistry::await_right(Attachment& attachment) {
  const auto start = Clock::now();
  const Lock guard(mutex_);
  Entry& entry = entries_.at(attachment.uuid());
  while (true) {
    if (entry.is_draining) give_rights(entry);
    if (attachment.right_.state != Volume::Right::State::kWaits) return;
    const bool stands_by = attachment.ticket_ == entry.volume->writer_lock().state().standby.ticket;
    const Clock::duration waited = Clock::now() - start;
    if (stands_by && !entry.is_handing_over && hand_over(entry, waited)) continue;
    if (waited >= kLockChangeWait)
      fail(ESHUTDOWN, fmt::format("volume {}", entry.volume->name()),
           "what others began to change more than {} s ago has not ended, so nothing else is "
           "changed; connect again when the storage answers",
           kLockChangeWait.count());
    changed_.wait_for(mutex_, kLookAgain);
  }
}

std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::attach_for_upkeep(
    const Uuid& uuid, const std::string& name, const Peer& peer) {
  const auto start = Clock::now();
  Lock guard(mutex_);
  fail_if_leaving(name);
  for (auto it = entries_.find(uuid); it != entries_.end(); it = entries_.find(uuid)) {
    if (it->second.state == State::kOpen) return add(uuid, it->second);
    if (Clock::now() - start >= kClosingWaitMax)
      fail(EBUSY, fmt::format("volume {}", name), "is still being opened or closed; try again");
    changed_.wait_for(mutex_, kLookAgain);
    fail_if_leaving(name);
  }
  entries_.try_emplace(uuid);
  guard.unlock();
  return open(uuid, name, peer, /*is_connection=*/false, /*is_alone=*/false);
}

// What can fail is done before the volume is claimed.
std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::open(const Uuid& uuid,
                                                                 const std::string& name,
                                                                 const Peer& peer,
                                                                 bool is_connection,
                                                                 bool is_alone) {
  try {
    Claim claim(peer);
    claim.is_connection = is_connection;
    claim.grace = grace_;
    claim.absent = [this, &uuid](uint64_t epoch) { return absent(uuid, epoch); };
    std::unique_ptr<Attachment> attachment(
        new Attachment(*this, uuid, std::make_shared<const Peer>(peer), is_alone));
    {
      const Lock guard(mutex_);
      entries_.at(uuid).attached.push_back(attachment.get());
    }
    std::shared_ptr<Volume> volume = Volume::open_for_writing(environment_, uuid, name, claim);
    attachment->ticket_ = volume->writer_lock().state().last_ticket;
    const Lock guard(mutex_);
    Entry& entry = entries_.at(uuid);
    entry.volume = attachment->volume_ = std::move(volume);
    entry.state = State::kOpen;
    give_rights(entry);
    return attachment;
  } catch (...) {
    end(uuid);
    throw;
  }
}

void VolumeRegistry::end(const Uuid& uuid) {
  const Lock guard(mutex_);
  entries_.erase(uuid);
  changed_.notify_all();
}

std::unique_ptr<VolumeRegistry::Attachment> VolumeRegistry::find_open(const Uuid& uuid) {
  const Lock guard(mutex_);
  const auto it = entries_.find(uuid);
  if (leaves_ || it == entries_.end() || it->second.state != State::kOpen) return nullptr;
  return add(uuid, it->second);
}

// The connection's end is told while the volume is open still, or with its closing if it is the
// last that keeps it so.
void VolumeRegistry::detach(Attachment& attachment) noexcept {
  Lock guard(mutex_);
  Entry& entry = entries_.at(attachment.uuid());
  if (leaves_) {
    // Its VM may come back; leave() closes the volume.
    std::erase(entry.attached, &attachment);
    return changed_.notify_all();
  }
  LockLeave leave{.ticket = std::exchange(attachment.ticket_, 0)};
  const std::shared_ptr<Volume> volume = attachment.volume_;
  const uint64_t writes = volume->writes();
  leave.has_written = entry.is_alone || writes != entry.writes_before;
  leave.has_changed = entry.waiting_ticket != 0 && writes != entry.writes_when_waiting &&
                      entry.waiting_ticket == volume->writer_lock().state().standby.ticket;
  const bool is_lost = attachment.right_.state == Volume::Right::State::kLost;
  const bool keeps_record = keeps_records_ && leave.ticket != 0 && !is_lost;
  if (leave.ticket != 0 && entry.attached.size() > 1 && !keeps_record) {
    guard.unlock();
    leave.stays_open = true;
    try {
      volume->writer_lock().apply(leave);
    } catch (const std::exception& error) {
      // The header goes on naming this VM, as after a crash.
      log_if_possible(environment_.log, "volume {}: {}", volume->name(), error.what());
    }
    guard.lock();
    leave = {};
  }
  std::erase(entry.attached, &attachment);
  give_rights(entry);
  if (leaves_ || !entry.attached.empty()) return;
  entry.state = State::kClosing;
  entry.volume.reset();
  guard.unlock();
  attachment.volume_.reset();
  volume->close(keeps_record ? std::nullopt : std::optional(leave));
  end(attachment.uuid());
}

void VolumeRegistry::fail_if_leaving(const std::string& name) const {
  if (leaves_) fail(ESHUTDOWN, fmt::format("volume {}", name), "this server is about to end");
}

Left VolumeRegistry::leave() {
  keep_records();
  const auto deadline = Clock::now() + kLeaveWaitMax;
  // Whoever is letting a connection in or out, hands the volume over, or works on it for the store.
  const auto is_at_work = [](const Entry& entry) {
    return entry.state != State::kOpen || entry.is_handing_over ||
           std::ranges::any_of(entry.attached, [](const Attachment* attachment) {
             return attachment->ticket_ == 0 || attachment->is_alone_;
           });
  };
  struct Leaving {
    std::shared_ptr<Volume> volume;
    bool is_clean = false;
  };
  std::vector<Leaving> leaving;
  Left left;
  {
    const Lock guard(mutex_);
    leaves_ = true;
    for (auto& [uuid, entry] : entries_)
      if (entry.state == State::kOpen) give_rights(entry);
    while (Clock::now() < deadline &&
           std::ranges::any_of(entries_, is_at_work, &decltype(entries_)::value_type::second))
      changed_.wait_for(mutex_, kLookAgain);
    for (auto& [uuid, entry] : entries_) {
      if (is_at_work(entry)) {
        left.unclean.push_back(entry.volume ? entry.volume->name() : uuid.text());
      } else {
        leaving.push_back({entry.volume});
        entry.state = State::kClosing;
      }
    }
  }
  std::atomic<size_t> next{0};
  const auto close = [&]() noexcept {
    for (size_t i = next++; i < leaving.size(); i = next++) {
      Volume& volume = *leaving[i].volume;
      const bool is_anybodys = volume.writer_lock().state().is_anybodys();
      leaving[i].is_clean = volume.wait_for_changes(deadline) &&
                            volume.close(is_anybodys ? std::nullopt : std::optional(LockLeave{}));
    }
  };
  {
    std::vector<std::jthread> closers;
    try {
      while (closers.size() + 1 < std::min(kClosersMax, leaving.size()))
        closers.emplace_back(close);
    } catch (const std::exception&) {
      // One is enough.
    }
    close();
  }
  for (const Leaving& one : leaving) {
    if (one.is_clean) ++left.closed;
    if (!one.is_clean) left.unclean.push_back(one.volume->name());
  }
  for (const std::string& name : left.unclean)
    environment_.log(fmt::format(
        "volume {}: could not be closed before the server's end, the next opening recovers it",
        name));
  return left;
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
  if (it == entries_.end() || it->second.state != State::kOpen) return 0;
  return it->second.volume->writer_lock().state().owner.connections;
}

bool VolumeRegistry::let_join(const Uuid& uuid, Clock::duration duration) {
  const Lock guard(mutex_);
  const auto it = entries_.find(uuid);
  if (it == entries_.end() || it->second.state != State::kOpen) return false;
  if (it->second.volume->writer_lock().state().owner.connections == 0) return false;
  it->second.joins_until = Clock::now() + duration;
  return true;
}

std::optional<LockInfo> VolumeRegistry::lock_info(const Uuid& uuid) {
  const Lock guard(mutex_);
  const auto it = entries_.find(uuid);
  if (it == entries_.end() || it->second.state != State::kOpen) return std::nullopt;
  const Entry& entry = it->second;
  WriterLock& lock = entry.volume->writer_lock();
  const LockState state = lock.state();
  const VolumeHeader header = lock.header();
  LockInfo info = lock_info_of(entry.volume->name(), header);
  // It has come in time, and is there after that too.
  if (state.standby.ticket != 0)
    info.hand_over = {get_text(header.hand_over_token), true, header.hand_over_until_ns};
  if (state.is_held) {
    info.state = info.hand_over ? LockInfo::State::kHandOver : LockInfo::State::kHeld;
    info.has_written = entry.is_alone || entry.volume->writes() != entry.writes_before;
  }
  info.connections = state.owner.connections;
  return info;
}

std::optional<LockStep> VolumeRegistry::change_lock(const Uuid& uuid, LockEvent event,
                                                    const Peer& peer) {
  const auto open = find_open(uuid);
  if (!open) return std::nullopt;
  if (LockBreak* breaking = std::get_if<LockBreak>(&event)) breaking->stays_open = true;
  const LockStep changed = open->volume().writer_lock().apply(event, peer);
  const Lock guard(mutex_);
  give_rights(entries_.at(uuid));
  return changed;
}

}  // namespace tplstore
