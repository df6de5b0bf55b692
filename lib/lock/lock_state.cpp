// The rules, one function for each kind of event.
#include "lock/lock_state.h"

#include <algorithm>

namespace tplstore {
namespace {

// The one that has the volume, or had it last, is not forgotten for those who only stood by.
void remember(LockRecord& record, VmId vm, uint64_t epoch) {
  if (vm == 0) return;
  auto& known = record.known;
  auto place = std::find_if(known.begin(), known.end(),
                            [vm](const LockRecord::Known& one) { return one.vm == vm; });
  if (place == known.end()) {
    --place;
    if (record.owner != 0 && place->vm == record.owner) --place;
  }
  std::move_backward(known.begin(), place, place + 1);
  known.front() = {vm, epoch};
}

bool knows(const LockRecord& record, VmId vm) {
  return std::ranges::find(record.known, vm, &LockRecord::Known::vm) != record.known.end();
}

// One that came for the first time and has changed nothing is no newer than the last four others.
void put_behind_others(LockRecord& record, VmId vm) {
  auto& known = record.known;
  const auto place = std::ranges::find(known, vm, &LockRecord::Known::vm);
  const auto end =
      std::ranges::find(known.begin(), known.begin() + 5, VmId{0}, &LockRecord::Known::vm);
  if (place < end) std::rotate(place, place + 1, end);
}

void end_hand_over(LockState& state) {
  state.standby = {};
  state.record.hand_over_token = 0;
  state.record.hand_over_until_ns = 0;
}

// The standby's view of the disk is older than what the source goes on with.
void lose_standby(LockState& state) {
  remember(state.record, state.standby.vm, 0);
  state.record.written_epoch = state.record.epoch;
  end_hand_over(state);
}

// What a server left that died.
bool is_of_another_life(const LockState& state) { return state.record.is_taken && !state.is_held; }

// Whether the VM saw the disk before the one that has it, which goes on changing it.
bool has_older_view(const LockRecord& record, VmId vm) {
  LockRecord known = record;
  known.written_epoch = record.epoch;
  return known.is_loser(vm);
}

uint64_t written_epoch(const LockState& state) {
  const LockRecord& record = state.record;
  const bool is_unknown = is_of_another_life(state) && !record.is_servers_own;
  return is_unknown ? record.epoch : record.written_epoch;
}

// The volume is `vm`'s, or the server's own, in an epoch of its own.
void claim(LockState& state, VmId vm, bool is_servers_own = false, uint64_t passed_over = 0) {
  LockRecord& record = state.record;
  record.written_epoch = written_epoch(state);
  record.epoch += passed_over + 1;
  record.is_taken = true;
  record.is_servers_own = is_servers_own;
  remember(record, vm, record.epoch);
  record.owner = vm;
  state.is_held = true;
}

// Nobody has it, or the server by itself.
void release(LockState& state, bool stays_open) {
  state.owner = {};
  if (stays_open) return claim(state, 0, true);
  state.record.is_taken = false;
  state.is_held = false;
}

void move_to_standby(LockState& state) {
  const LockState::Party standby = state.standby;
  claim(state, standby.vm);
  state.owner = standby;
  end_hand_over(state);
}

LockStep let_in(LockState state, LockState::Party LockState::*party, const LockConnect& event,
                bool is_new = false) {
  (state.*party) = {.ticket = ++state.last_ticket,
                    .vm = event.vm,
                    .is_multi = event.is_multi,
                    .is_new = is_new,
                    .connections = 1};
  return {state, LockAnswer::kYes, state.last_ticket};
}

LockStep join(LockState state, LockState::Party LockState::*party) {
  ++(state.*party).connections;
  return {state, LockAnswer::kYes, (state.*party).ticket};
}

// For one who may go by itself: for so long it is waited for, as long as it asks for nothing.
LockAnswer wait_for(const LockConnect& event, std::chrono::seconds patience) {
  const bool is_quiet = !event.owner.has_asked || event.owner.quiet >= event.waited;
  return is_quiet && event.waited < patience ? LockAnswer::kWait : LockAnswer::kInUse;
}

LockStep on(const LockState& state, const LockConnect& event) {
  using Process = OwnerSeen::Process;
  const LockRecord& record = state.record;
  const OwnerSeen& owner = event.owner;
  const bool was_owner = event.vm != 0 && event.vm == record.owner;
  const bool is_armed = record.is_armed(event.now_ns);
  const bool is_to_have_it = is_armed && event.token == record.hand_over_token;
  const bool is_left = is_of_another_life(state);

  LockRecord known = record;
  known.written_epoch = written_epoch(state);
  if (known.is_loser(event.vm))
    return {state, event.vm == record.lost ? LockAnswer::kLost : LockAnswer::kLoser};
  if (is_left && owner.process == Process::kOfAnotherHost) return {state, LockAnswer::kForeign};
  if (!state.is_held && event.claims.is_other_hosts) return {state, LockAnswer::kForeign};

  if (state.owner.connections > 0 && was_owner) {
    const bool may_join = (state.owner.is_multi && event.is_multi) || event.may_join;
    if (may_join) return join(state, &LockState::owner);
    // A token tells that it is the VM itself that gave the other connection up, if that is idle;
    // but not if it has come while this one waits, whose client may be the one that has gone.
    const bool was_there = event.found == state.owner.ticket;
    if (event.token != 0 && was_there && !owner.has_in_flight && owner.quiet >= kLockIdle)
      return let_in(state, &LockState::owner, event);
    return {state, wait_for(event, kLockCloseWait)};
  }

  // There is a source, or there was one when the server died.
  if (is_to_have_it && !was_owner && (state.owner.connections > 0 || is_left)) {
    if (has_older_view(record, event.vm)) return {state, LockAnswer::kLoser};
    if (state.standby.ticket == 0) {
      LockState next = state;
      remember(next.record, event.vm, record.epoch);
      return let_in(next, &LockState::standby, event);
    }
    const bool joins = state.standby.vm == event.vm && state.standby.is_multi && event.is_multi;
    return joins ? join(state, &LockState::standby) : LockStep{state, LockAnswer::kInUse};
  }

  if (state.owner.connections > 0) {
    const bool may_look = owner.process == Process::kUnknown || !owner.has_asked;
    return {state, owner.process == Process::kGone ? wait_for(event, kLockCloseWait)
                   : may_look                      ? wait_for(event, kLockProbeWait)
                                                   : LockAnswer::kInUse};
  }
  if (is_armed && !is_to_have_it && !was_owner) return {state, LockAnswer::kHandOver};
  const bool may_come_back = owner.process == Process::kLives ||
                             (owner.process == Process::kUnknown && owner.absent < event.grace);
  if (is_left && !record.is_servers_own && !was_owner && may_come_back)
    return {state, LockAnswer::kLeftBehind};

  LockState next = state;
  if (!is_armed && next.standby.ticket != 0) lose_standby(next);
  // To one that stands by for it the owner that comes back is the same.
  if (is_armed && was_owner)
    for (LockRecord::Known& one : next.record.known)
      if (one.epoch == record.epoch) one.epoch += event.claims.count + 1;
  claim(next, event.vm, !event.is_connection, event.claims.count);
  if (is_to_have_it || !is_armed) end_hand_over(next);
  if (!event.is_connection) return {next, LockAnswer::kYes};
  return let_in(next, &LockState::owner, event, !knows(record, event.vm));
}

LockStep on(LockState state, const LockLeave& event) {
  if (state.standby.ticket != 0 && event.ticket == state.standby.ticket) {
    if (--state.standby.connections == 0) end_hand_over(state);
  } else if (state.owner.ticket != 0 && event.ticket == state.owner.ticket) {
    if (--state.owner.connections > 0) return {state, LockAnswer::kYes};
    if (event.has_written) {
      state.record.written_epoch = state.record.epoch;
    } else if (state.owner.is_new) {
      put_behind_others(state.record, state.owner.vm);
    }
    if (state.standby.ticket != 0 && event.has_changed) lose_standby(state);
    if (state.standby.ticket != 0) {
      move_to_standby(state);
    } else {
      release(state, event.stays_open);
    }
    return {state, LockAnswer::kYes};
  }
  if (state.is_held && !state.is_anybodys() && !event.stays_open) release(state, false);
  return {state, LockAnswer::kYes};
}

LockStep on(LockState state, const LockChange& event) {
  if (state.standby.ticket == 0) return {state, LockAnswer::kLoser};
  const bool has_source = state.owner.connections > 0;
  const OwnerSeen& source = event.owner;
  // Both run. Who has written goes on.
  if (has_source && source.has_changed) {
    lose_standby(state);
    return {state, LockAnswer::kLoser};
  }
  const bool has_ended = source.has_flushed || source.quiet >= kLockQuiet;
  if (!has_source || (!source.has_in_flight && has_ended)) {
    move_to_standby(state);
    // The change comes at once.
    state.record.written_epoch = state.record.epoch;
    return {state, LockAnswer::kYes, state.owner.ticket};
  }
  // It came in time: that is over when it must not wait any longer, and not before.
  if (event.waited < kLockChangeWait) return {state, LockAnswer::kWait};
  lose_standby(state);
  return {state, LockAnswer::kLoser};
}

LockStep on(LockState state, const LockArm& event) {
  const LockRecord& record = state.record;
  if (!record.is_taken || record.is_servers_own) return {state, LockAnswer::kFree};
  if (event.vm != 0 && event.vm == record.owner) return {state, LockAnswer::kOwner};
  if (has_older_view(record, event.vm)) return {state, LockAnswer::kLoser};
  if (state.standby.ticket != 0) return {state, LockAnswer::kInUse};
  state.record.hand_over_token = event.token;
  state.record.hand_over_until_ns = event.until_ns;
  return {state, LockAnswer::kYes};
}

LockStep on(LockState state, const LockCancel&) {
  if (state.record.hand_over_token == 0) return {state, LockAnswer::kFree};
  if (state.standby.ticket != 0) lose_standby(state);
  end_hand_over(state);
  return {state, LockAnswer::kYes};
}

LockStep on(LockState state, const LockLoss& event) {
  if (event.vm == 0) return {state, LockAnswer::kYes};
  remember(state.record, event.vm, 0);
  state.record.lost = event.vm;
  const bool stands_by = state.standby.ticket != 0;
  if (stands_by) lose_standby(state);
  if (!stands_by && state.owner.vm != event.vm) return {state, LockAnswer::kYes};
  release(state, false);
  return {state, LockAnswer::kLost};
}

LockStep on(LockState state, const LockBreak& event) {
  LockRecord& record = state.record;
  if (event.epoch != shown_epoch(record, event.claims)) return {state, LockAnswer::kOtherEpoch};
  const bool is_servers_own = state.is_held && state.owner.ticket == 0;
  const bool is_anybodys = record.is_taken || event.claims.is_other_hosts;
  if (!is_anybodys || is_servers_own) return {state, LockAnswer::kFree};
  end_hand_over(state);
  release(state, event.stays_open);
  // An epoch that is nobody's: so all who had the volume are losers.
  if (!event.stays_open) {
    record.epoch += event.claims.count + 1;
    record.owner = 0;
  }
  record.written_epoch = record.epoch;
  return {state, LockAnswer::kYes};
}

}  // namespace

bool LockRecord::is_loser(VmId vm) const {
  const auto one =
      std::find_if(known.begin(), known.end(), [vm](const Known& other) { return other.vm == vm; });
  return vm != 0 && one != known.end() && one->epoch < written_epoch;
}

bool needs_claim(const LockState& before, const LockState& after) {
  return !before.is_held && after.record.epoch != before.record.epoch;
}

uint64_t shown_epoch(const LockRecord& record, const ClaimsSeen& claims) {
  return claims.is_other_hosts ? record.epoch + claims.count : record.epoch;
}

LockStep step(const LockState& state, const LockEvent& event) {
  return std::visit([&state](const auto& of_kind) { return on(state, of_kind); }, event);
}

}  // namespace tplstore
