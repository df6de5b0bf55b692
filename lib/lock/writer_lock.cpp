// Takes the lock, looks at the header under it, and writes down what is decided.
#include "lock/writer_lock.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "backend/lock.h"
#include "backend/object_name.h"
#include "base/host.h"
#include "base/units.h"

namespace tplstore {
namespace {

// Each is another host's having been first.
constexpr int kClaimTries = 8;

// Who has a volume that is open for no VM.
Peer server_itself() {
  Peer peer;
  peer.pid = getpid();
  peer.start_time = own_start_time();
  peer.address = fmt::format("the server itself, pid {}", peer.pid);
  peer.is_vm = false;
  return peer;
}

}  // namespace

std::string describe(const WriterInfo& writer) {
  return fmt::format("{} (server pid {} on host {}) since {}", writer.peer, writer.server_pid,
                     writer.host_name, format_time(writer.since_ns));
}

OwnerSeen::Process process_of(const WriterInfo& writer) {
  using Process = OwnerSeen::Process;
  const HostIdentity& host = this_host();
  if (!host.is_same(writer.host_id, writer.boot_id)) return Process::kOfAnotherHost;
  // What the server, or a tool, had for itself is over when it has let go of the lock.
  const bool was_servers_own =
      writer.peer_pid == writer.server_pid && writer.peer_start_time == writer.server_start_time;
  if (was_servers_own) return Process::kGone;
  if (writer.peer_pid == 0) return Process::kUnknown;
  const bool lives = writer.boot_id == host.boot_id &&
                     process_start_time(writer.peer_pid) == writer.peer_start_time;
  return lives ? Process::kLives : Process::kGone;
}

void look_at_record(OwnerSeen& owner, const VolumeHeader& header,
                    const std::function<std::chrono::milliseconds(uint64_t epoch)>& absent) {
  const auto writer = writer_of(header);
  if (!writer) return;
  owner.process = process_of(*writer);
  owner.absent = absent(writer->epoch);
}

LockArm arm_event(const Peer& destination, std::chrono::seconds duration) {
  return {vm_id(destination), token_id(destination.token),
          now_unix_ns() + std::chrono::nanoseconds(duration).count()};
}

LockConnect connect_event(const Claim& claim, std::chrono::milliseconds waited) {
  LockConnect event;
  event.is_connection = claim.is_connection;
  event.vm = vm_id(claim.peer);
  event.token = token_id(claim.peer.token);
  event.is_multi = claim.peer.is_multi;
  event.waited = waited;
  event.grace = claim.grace;
  event.now_ns = now_unix_ns();
  return event;
}

void fail_refused(const std::string& name, LockAnswer answer, const VolumeHeader& header,
                  const ClaimsFound& claims) {
  const std::string object = fmt::format("volume {}", name);
  const auto writer = claims.other ? claims.other : writer_of(header);
  const std::string owner = writer ? describe(*writer) : "another process";
  const std::string breaks = fmt::format("'tplstore lock break {} --epoch {}'", name,
                                         shown_epoch(record_of(header), claims.seen));
  switch (answer) {
    case LockAnswer::kLoser:
      fail(EBUSY, object,
           "others have changed it since this VM had it, so it must not go on with what it knows; "
           "start the VM anew, under another token if it has one (see 'tplstore lock show {}')",
           name);
    case LockAnswer::kLost:
      fail(EBUSY, object,
           "what this VM, or the one that it goes on for, had written last is lost with the server "
           "that it was connected to, so it must not go on with what it knows; start the VM anew, "
           "under another token if it has one (see 'tplstore lock show {}')",
           name);
    case LockAnswer::kLeftBehind:
      fail(EBUSY, object,
           "kept for {}, which was connected when that server ended and may come back; {} ends "
           "that",
           owner, breaks);
    case LockAnswer::kForeign:
      fail(EBUSY, object,
           "in use by {}, or left by that host; when you have made sure that it writes no more, {} "
           "frees it",
           owner, breaks);
    case LockAnswer::kHandOver:
      fail(EBUSY, object, "kept for writer {}, to which it is handed over until {}",
           get_text(header.hand_over_token), format_time(header.hand_over_until_ns));
    default:
      fail(EBUSY, object, "in use by {}; disconnect that first", owner);
  }
}

LockInfo lock_info_of(const std::string& name, const VolumeHeader& header,
                      const ClaimsFound& claims) {
  const LockRecord record = record_of(header);
  LockInfo info;
  info.volume = name;
  info.epoch = shown_epoch(record, claims.seen);
  info.size_bytes = disk_size(header);
  info.writer = claims.other ? claims.other : writer_of(header);
  if (info.writer) {
    const bool is_foreign = process_of(*info.writer) == OwnerSeen::Process::kOfAnotherHost;
    info.state = is_foreign ? LockInfo::State::kForeign : LockInfo::State::kCrashed;
    info.has_written = true;  // as far as anybody knows
  }
  for (const KnownVm& known : header.known)
    if (record.is_loser(known.vm))
      info.losers.push_back({get_text(known.peer), known.epoch, known.vm == record.lost});
  if (record.is_armed(now_unix_ns())) {
    info.hand_over = {get_text(header.hand_over_token), false, header.hand_over_until_ns};
    if (!info.writer) info.state = LockInfo::State::kHandOver;
  }
  return info;
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

// Where the header cannot be read the last claim tells which host had the volume: EBUSY when that
// is another one, which may have it still.
void fail_if_claimed_elsewhere(Backend& backend, const std::string& folder, const Uuid& volume,
                               const std::string& name) {
  constexpr std::string_view kPrefix = "owner.";
  uint64_t last = 0;
  for (const std::string& part : backend.list(folder)) {
    if (!part.starts_with(kPrefix)) continue;
    uint64_t epoch = 0;
    const auto [end, error] =
        std::from_chars(part.data() + kPrefix.size(), part.data() + part.size(), epoch);
    if (error == std::errc() && end == part.data() + part.size()) last = std::max(last, epoch);
  }
  if (last == 0) return;
  const ClaimsFound claims = find_claims(backend, folder, volume, last - 1);
  if (!claims.other) return;
  fail(
      EBUSY, fmt::format("volume {}", name),
      "its header cannot be read, and the last to have it, and perhaps the one who has it, was a "
      "server on host {} (pid {}, since {}); when you have made sure that nothing there writes any "
      "more, remove {} and try again",
      claims.other->host_name, claims.other->server_pid, format_time(claims.other->since_ns),
      claim_name(folder, last));
}

// EBUSY when a VM may come back to the volume, whose lock is held. Of this host's VMs nobody can
// tell where the header cannot be read.
void fail_if_left_behind(Backend& backend, const std::string& folder, const Uuid& volume,
                         const std::string& name) {
  VolumeHeader header;
  try {
    header = read_header(backend, folder, volume);
  } catch (const Error& error) {
    if (error.code() != ENOENT && error.code() != EIO) throw;
    if (error.code() == EIO) fail_if_claimed_elsewhere(backend, folder, volume, name);
    return;
  }
  LockState state;
  state.record = record_of(header);
  Claim claim(server_itself());
  claim.is_connection = false;
  LockConnect event = connect_event(claim, std::chrono::milliseconds(0));
  if (const auto writer = writer_of(header)) event.owner.process = process_of(*writer);
  const ClaimsFound claims = find_claims(backend, folder, volume, header.epoch);
  event.claims = claims.seen;
  const LockStep taken = step(state, event);
  if (taken.answer != LockAnswer::kYes) fail_refused(name, taken.answer, header, claims);
}

}  // namespace

RemovalLocks lock_for_removal(Backend& backend, const std::string& folder, const Uuid& volume,
                              const std::string& name) {
  RemovalLocks locks;
  bool is_there = true;
  locks.lock = lock_or_make(backend, folder, lock_name(folder), {}, is_there);
  if (!is_there) return locks;
  if (!locks.lock) fail_in_use(backend, folder, volume, name);
  fail_if_left_behind(backend, folder, volume, name);
  // Some read for a moment only, to show something.
  locks.readers =
      lock_or_make(backend, folder, readers_name(folder), WriterLock::kWaitMax, is_there);
  if (!locks.readers)
    fail(EBUSY, fmt::format("volume {}", name),
         "one of its versions is being read; disconnect that first");
  return locks;
}

std::unique_ptr<WriterLock> WriterLock::acquire(Backend& backend, const std::string& folder,
                                                const Uuid& volume, const std::string& name,
                                                const Claim& claim, const Log& log) {
  std::unique_ptr<WriterLock> lock(new WriterLock());
  try {
    lock->lock_ = try_lock_for(backend, lock_name(folder), LockMode::kExclusive, kWaitMax);
  } catch (const Error& error) {
    if (error.code() == ENOENT && has_header(backend, folder)) fail_missing(lock_name(folder));
    throw;
  }
  if (!lock->lock_) fail_in_use(backend, folder, volume, name);
  lock->read(backend, folder, volume);

  std::optional<WriterInfo> writer;
  const LockStep taken = lock->begin(backend, folder, claim.peer, [&](const ClaimsSeen& claims) {
    writer = writer_of(lock->header_);
    LockConnect event = connect_event(claim, std::chrono::milliseconds(0));
    event.claims = claims;
    look_at_record(event.owner, lock->header_, claim.absent);
    return event;
  });
  if (taken.answer != LockAnswer::kYes)
    fail_refused(name, taken.answer, lock->header_, lock->claims_);
  if (writer)
    log(LogLevel::kNotice,
        fmt::format("volume {}: taking over from {}, which is gone", name, describe(*writer)));
  return lock;
}

template <typename MakeEvent>
LockStep WriterLock::begin(Backend& backend, const std::string& folder, const Peer& peer,
                           const MakeEvent& make_event) {
  const Uuid volume = header_.volume;
  for (int i = 0; i < kClaimTries; ++i) {
    claims_ = find_claims(backend, folder, volume, header_.epoch);
    const LockEvent event = make_event(claims_.seen);
    const LockStep asked = ask(event);
    const bool is_yes = asked.answer == LockAnswer::kYes;
    if (is_yes && !needs_claim(state_, asked.state)) return apply(event, peer);
    // Of another host's claim the record may be there by now, and gone again.
    if (!is_yes && !claims_.other) return asked;
    const uint64_t epoch = asked.state.record.epoch;
    if (is_yes && !make_claim(backend, folder, volume, epoch, header_.epoch)) continue;
    const VolumeHeader now = read_header(backend, folder, volume);
    if (std::memcmp(&now, &header_, sizeof now) != 0) {
      read(backend, folder, volume);
      continue;
    }
    if (!is_yes) return asked;
    backend_ = &backend;
    folder_ = folder;
    claimed_epoch_ = epoch;
    try {
      return apply(event, peer);
    } catch (...) {
      if (!has_failed_) remove_claim();
      throw;
    }
  }
  fail(EBUSY, folder, "other hosts take the volume, again and again; try again");
}

LockStep WriterLock::ask(const LockEvent& event) const {
  const std::lock_guard guard(mutex_);
  return step(state_, event);
}

LockStep WriterLock::apply(const LockEvent& event, const Peer& peer) {
  const std::lock_guard change(change_mutex_);
  if (has_failed_)
    fail(EIO, "volume", "its header could not be written before; disconnect and connect again");
  LockStep next = step(state_, event);
  Peer newcomer = peer;  // before the record is written: nothing fails after that
  if (next.state.record != state_.record) {
    const bool is_servers_own = next.state.owner.ticket == 0;
    const bool is_newcomers = std::holds_alternative<LockConnect>(event);
    put_record(next.state, is_newcomers ? peer : is_servers_own ? server_itself() : standby_, peer);
  }
  const bool is_new_standby = next.state.standby.ticket != state_.standby.ticket;
  if (is_new_standby && next.state.standby.ticket != 0) standby_ = std::move(newcomer);
  const std::lock_guard guard(mutex_);
  state_ = next.state;
  return next;
}

// `owner` is who has the volume when the epoch is a new one; `newcomer` who else may be new.
void WriterLock::put_record(const LockState& next, const Peer& owner, const Peer& newcomer) {
  const LockRecord& record = next.record;
  VolumeHeader header = header_;
  const uint64_t size_bytes = disk_size(header_);
  header.is_taken = record.is_taken ? 1 : 0;
  header.size_bytes = record.is_taken ? 0 : size_bytes;
  header.true_size_bytes = record.is_taken ? size_bytes : 0;
  header.is_servers_own = record.is_servers_own ? 1 : 0;
  header.incompatible_features &= ~kFeatureJournal;
  if (record.is_taken) header.incompatible_features |= kFeatureJournal;
  header.owner = record.owner;
  header.written_epoch = record.written_epoch;
  if (usage_) put_usage(header, *usage_);
  if (record.epoch != header.epoch) {
    const HostIdentity& host = this_host();
    header.epoch = record.epoch;
    header.taken_at_ns = now_unix_ns();
    header.host_id = host.host_id;
    header.boot_id = host.boot_id;
    header.server_pid = static_cast<uint32_t>(getpid());
    header.server_start_time = own_start_time();
    put_text(header.host_name, sizeof header.host_name, host.host_name);
    put_text(header.peer, sizeof header.peer, owner.address);
    put_text(header.token, sizeof header.token, owner.token);
    header.peer_pid = owner.pid;
    header.peer_start_time = owner.start_time;
  }
  for (size_t i = 0; i < record.known.size(); ++i) {
    const LockRecord::Known& one = record.known[i];
    KnownVm& known = header.known[i];
    const auto before = std::ranges::find(header_.known, one.vm, &KnownVm::vm);
    if (before != std::end(header_.known)) {
      known = *before;
    } else {
      const Peer& peer = one.vm == vm_id(newcomer) ? newcomer : standby_;
      known = {};
      put_text(known.peer, sizeof known.peer, peer.address);
    }
    known.vm = one.vm;
    known.epoch = one.epoch;
  }
  if (record.hand_over_token == 0) {
    put_text(header.hand_over_token, sizeof header.hand_over_token, "");
  } else if (record.hand_over_token == token_id(newcomer.token)) {
    put_text(header.hand_over_token, sizeof header.hand_over_token, newcomer.token);
  }
  header.hand_over_until_ns = record.hand_over_until_ns;
  header.lost = record.lost;
  const uint64_t epoch_before = header_.epoch;
  try {
    put(header);
  } catch (...) {
    // Nobody can tell which of the two a crash would show. Once the old one is there again: that.
    try {
      put(header_);
    } catch (...) {
      // Both say that the one who has it goes on, as when a hand-over is armed that nobody has come
      // for yet: then the worst is that it is armed, or known who came for it, after a crash.
      const bool is_owner_sure = record.epoch == state_.record.epoch &&
                                 record.is_taken == state_.record.is_taken &&
                                 state_.standby.ticket == 0;
      if (!is_owner_sure) {
        has_failed_ = true;
        stop_();
      }
    }
    throw;
  }
  if (header.epoch != epoch_before && backend_ != nullptr)
    remove_old_claims(*backend_, folder_, epoch_before, header.epoch);
}

LockState WriterLock::state() const {
  const std::lock_guard guard(mutex_);
  return state_;
}

VolumeHeader WriterLock::header() const {
  const std::lock_guard guard(mutex_);
  return header_;
}

void WriterLock::lose_writes(const std::string& name) {
  const LockRecord before = record_of(found_);
  const bool was_vms = before.is_taken && !before.is_servers_own;
  const LockAnswer answer = apply(LockLoss{was_vms ? before.owner : 0}).answer;
  if (answer == LockAnswer::kYes) return;
  found_ = header();
  fail_refused(name, answer, found_);
}

void WriterLock::put_back() {
  const std::lock_guard change(change_mutex_);
  put(found_);
  remove_claim();
}

// The header does not follow it any more. Should it stay it is passed over.
void WriterLock::remove_claim() noexcept {
  try {
    if (claimed_epoch_ != 0) backend_->remove(claim_name(folder_, claimed_epoch_));
  } catch (const std::exception&) {
    // As after a crash.
  }
}

LockStep WriterLock::change_record(Backend& backend, const std::string& folder, const Uuid& volume,
                                   const std::string& name, const LockEvent& event,
                                   const Peer& peer) {
  WriterLock lock;
  lock.lock_ = try_lock_for(backend, lock_name(folder), LockMode::kExclusive, kWaitMax);
  if (!lock.lock_) fail_in_use(backend, folder, volume, name);
  lock.read(backend, folder, volume);
  const LockStep changed = lock.begin(backend, folder, peer, [&](const ClaimsSeen& claims) {
    LockEvent with_claims = event;
    if (auto* broken = std::get_if<LockBreak>(&with_claims)) {
      broken->claims = claims;
      return with_claims;
    }
    // A hand-over is for the host to prepare that has the volume.
    const auto writer = writer_of(lock.header_);
    const bool is_others = claims.is_other_hosts ||
                           (writer && process_of(*writer) == OwnerSeen::Process::kOfAnotherHost);
    if (is_others) fail_refused(name, LockAnswer::kForeign, lock.header_, lock.claims_);
    return with_claims;
  });
  return changed;
}

void fail_unless_broken(const std::string& name, const LockStep& broken) {
  const std::string object = fmt::format("volume {}", name);
  if (broken.answer == LockAnswer::kOtherEpoch)
    fail(EBUSY, object,
         "it has changed hands since: its epoch is {}; look at it again with 'tplstore lock show "
         "{}'",
         broken.state.record.epoch, name);
  if (broken.answer != LockAnswer::kYes)
    fail(EINVAL, object, "no VM has it, so there is nothing to break");
}

void fail_unless_armed(const std::string& name, const std::string& token, const LockStep& armed) {
  const std::string object = fmt::format("volume {}", name);
  switch (armed.answer) {
    case LockAnswer::kYes:
      return;
    case LockAnswer::kInUse:
      fail(EBUSY, object,
           "a VM stands by for it already; 'tplstore volume handover {} --cancel' ends that", name);
    case LockAnswer::kLoser:
      fail(EINVAL, object,
           "others have changed it since writer {} had it, who never gets it again; give the "
           "destination another token",
           token);
    case LockAnswer::kOwner:
      fail(EINVAL, object,
           "writer {} is the VM that has it; the destination needs a token of its own", token);
    default:
      fail(EINVAL, object, "no VM has it, so there is nothing to hand over");
  }
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
  const ClaimsFound claims = find_claims(backend, folder, volume, lock->header_.epoch);
  if (claims.other) fail_refused(name, LockAnswer::kForeign, lock->header_, claims);
  return lock;
}

void WriterLock::read(Backend& backend, const std::string& folder, const Uuid& volume) {
  object_ = backend.open(header_name(folder), Access::kWrite, Purpose::kMetadata);
  // Who died while writing it may have left the newer slot in the page cache only. What is put here
  // goes into the other one, and both would be in doubt at the next crash.
  settle(*object_);
  header_ = found_ = read_header(*object_, folder, volume, slots_);
  state_.record = record_of(header_);
}

// What could not be written has not changed.
void WriterLock::put(const VolumeHeader& header) {
  slots_.write(*object_, header);
  const std::lock_guard guard(mutex_);
  header_ = header;
}

void WriterLock::resize(uint64_t size_bytes) {
  const std::lock_guard change(change_mutex_);
  VolumeHeader header = header_;
  (header.is_taken != 0 ? header.true_size_bytes : header.size_bytes) = size_bytes;
  put(header);
}

void WriterLock::note_usage(const VolumeUsage& usage) {
  const std::lock_guard change(change_mutex_);
  usage_ = usage;
}

void WriterLock::record_usage() {
  const std::lock_guard change(change_mutex_);
  if (!usage_ || has_failed_) return;
  VolumeHeader header = header_;
  put_usage(header, *usage_);
  put(header);
}

void WriterLock::forget_parent() {
  const std::lock_guard change(change_mutex_);
  VolumeHeader header = header_;
  header.parent = Uuid{};
  header.parent_version = 0;
  header.incompatible_features &= ~kFeatureFork;
  put(header);
}

}  // namespace tplstore
