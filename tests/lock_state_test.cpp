// Every run of a small world is visited: VMs, the network, operators and kills of the server in any
// order, with the library's own function deciding who may write (lock/lock_state.h).
//
// The world. P is the VM that has the volume. Q is the VM that it is handed to, or another one, or
// one that was started with a copy of P's token. X is a third VM that has no business here; it may
// be started twice, and is a new VM each time. VMs behave as qemu does: the destination of a
// migration connects and reads while P runs; P stops and flushes; Q runs, and its first change
// comes later, without a flush or a read before it; P stays connected until it quits. A migration
// may fail while P is stopped: then Q ends and P runs again. Once, as a "misuse", whoever drives it
// lets both run. A VM may lose a connection, with a change on its way or without, and connect
// again; what it has lost is still there for the server until that notices, which may be never. The
// server may be killed; VMs come back in any order. An operator may look, and break the lock of
// what he has seen some time later. Time is "just now" or "long ago", whichever is worse.
//
// What a server does with what it is told is in the world too: it makes the record durable, puts
// the others out, waits until what they have begun has ended, and lets in the one that asks. It
// looks at what the source of a hand-over does some time before it decides.
//
//   S1  Two VMs never have a change on its way at once, nor lands one of a VM that is not to write.
//   S2  Who had the volume never writes again after another VM has; without misuse the destination
//       of a migration neither, after the source has gone on.
//   S3  A write of a connection that was given up never lands over a newer one of the same VM.
//   S4  Without a kill, a cut, a break and misuse nobody gets the volume while P or Q lives, unless
//       Q has not come in time.
//   S5  Who connects, or waits for a hand-over, never puts out a connection that is at work.
//   S6  After a kill nobody gets the volume while the process that was connected lives, or before
//       its time to come back is over.
//   S7  Once the source has written while the standby's change waits, the standby never writes.
//   S8  What an operator breaks is what he was shown.
//   L1  A change that waits can always still be answered.
//   L2  After a completed migration, without misuse, kill, cut or a third VM, Q gets to write
//       without the help of time.
//   L3  The VM that was connected when the server was killed gets the volume at once.
//   L4  When all others have gone, or their time is over, X can get the volume.
//   L5  A VM with a token whose network was cut gets in again, though the server never notices.
//
// Each rule is then taken away, by keeping from the function what it would need, or by not doing
// what it says; and a run is found that breaks what the rule is for. What is printed with -s is the
// run.
#include "lock/lock_state.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "explorer_testing.h"
#include "volume_testing.h"

namespace tplstore::lock_state_test {
namespace {

using namespace std::chrono_literals;
using Seen = OwnerSeen;
using Process = OwnerSeen::Process;

constexpr Seen::Duration kLong = 1h;
constexpr Seen::Duration kGrace = 30s;
constexpr int64_t kArmedUntil = 1;  // now is 0, or late

enum class Without {
  kNothing,
  kFlushOrQuiet,  // the hand-over moves at once
  kQuiet,         // it moves after a flush only
  kDurableHandOver,
  kRecord,      // that the volume is taken is in memory only
  kLosers,      // nobody remembers who had it
  kHandingOn,   // the source's end frees the volume
  kWaitForOld,  // changes of other connections are not waited for
  kPuttingOut,  // who has lost the lock is not told
  kSourceWins,
  kIdle,           // a connection is replaced at once
  kPatience,       // everybody may come after a kill
  kCrashWrites,    // what was not seen to be written before a kill counts as not written
  kComparedEpoch,  // a break takes what there is
};

struct Setup {
  const char* name;
  bool has_hand_over = false;
  bool has_token = true;
  bool is_multi = false;
  bool is_unix = true;
  bool is_copy = false;  // Q has P's token, and none tells them apart
  bool flushes = true;
  Without without = Without::kNothing;
  int kills = 1, cuts = 1, misuses = 1, starts_of_x = 1, breaks = 0;
};

enum class Life : uint8_t { kNone, kIncoming, kRuns, kStopped, kGone };
enum class Change : uint8_t { kNone, kWaits, kGoes };

struct Vm {
  VmId id = 0;
  Life life = Life::kNone;
  uint64_t ticket = 0;       // of its connection; 0: none
  bool is_out = false;       // what that was told
  bool is_entering = false;  // let in, but for what others have begun
  Change change = Change::kNone;
  uint64_t old_ticket = 0;  // of a connection that it has given up and the server has
  bool has_old_change = false;
  bool has_acknowledged = false;  // a newer change than that
  bool has_seen = false;          // the disk
  bool is_stale = false;          // others have written since it saw the disk
  bool is_beaten = false;         // its change waited when the source wrote

  bool lives() const { return life != Life::kNone && life != Life::kGone; }
  auto operator<=>(const Vm&) const = default;
};

enum : size_t { kP, kQ, kX };
constexpr const char* kNames[] = {"P", "Q", "X"};

struct World {
  LockState lock;
  bool is_up = true;
  std::array<Vm, 3> vms;
  bool is_dirty = false;     // P has changed something since its last flush
  bool has_written = false;  // the owner, since it got the volume
  bool has_looked = false;   // at the source, which did this:
  bool saw_in_flight = false, saw_flush = false;
  bool is_wanted = false;    // by the standby, which has begun to change something
  bool has_changed = false;  // the source, since then
  bool is_late = false;      // the time for the hand-over is over
  uint64_t shown_epoch = 0;  // to the operator
  VmId shown_owner = 0;
  int kills = 0, cuts = 0, misuses = 0, starts_of_x = 0, breaks = 0;  // that may still come
  const char* broken = nullptr;

  auto operator<=>(const World&) const = default;
};

// Epochs and tickets that differ in nothing but how often there were others before are the same.
void forget_numbers(World& world) {
  LockRecord& record = world.lock.record;
  std::vector<uint64_t*> epochs = {&record.epoch, &record.written_epoch, &world.shown_epoch};
  for (LockRecord::Known& known : record.known) epochs.push_back(&known.epoch);
  std::vector<uint64_t> values = {0};
  for (const uint64_t* epoch : epochs) values.push_back(*epoch);
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  for (uint64_t* epoch : epochs)
    *epoch = std::lower_bound(values.begin(), values.end(), *epoch) - values.begin();

  LockState& lock = world.lock;
  const uint64_t owner = lock.owner.ticket, standby = lock.standby.ticket;
  constexpr uint64_t kOwner = 1, kStandby = 2, kOut = 3;
  const auto rename = [&](uint64_t& ticket) {
    if (ticket == 0) return;
    ticket = ticket == owner ? kOwner : ticket == standby ? kStandby : kOut;
  };
  for (Vm& vm : world.vms) {
    rename(vm.ticket);
    rename(vm.old_ticket);
  }
  rename(lock.owner.ticket);
  rename(lock.standby.ticket);
  lock.last_ticket = kOut;
}

class Explorer {
 public:
  explicit Explorer(const Setup& setup) : setup_(setup) {}

  Violation explore();

 private:
  struct Edge {
    uint32_t from, to;
    const char* label;
    size_t vm;
  };

  bool is(Without without) const { return setup_.without == without; }
  void add(World world, size_t vm, const char* label);
  void all_steps(const World& world);
  void steps_of_vm(const World& world, size_t v);
  void steps_of_migration(const World& world);
  void steps_of_changes(const World& world, size_t v);
  void steps_of_server(const World& world);
  void connect(const World& world, size_t v);
  LockStep decide(const World& world, const LockEvent& event) const;
  void take(World& world, const LockState& state) const;
  void leave(World& world, uint64_t ticket) const;
  void land(World& world, size_t v, bool is_old) const;
  Process process_of(const World& world) const;
  bool is_clean(const World& world) const {
    return world.kills == setup_.kills && world.cuts == setup_.cuts &&
           world.misuses == setup_.misuses && world.breaks == setup_.breaks;
  }
  bool has_other_changes(const World& world, size_t v) const;
  const char* look_for_lost(const World& world) const;

  std::vector<char> can_reach(const std::function<bool(const World&)>& good,
                              const std::function<bool(const Edge&)>& allowed) const;
  std::string label_of(const Edge& edge) const;
  std::vector<std::string> run_to(uint32_t index) const;

  const Setup setup_;
  std::map<World, uint32_t> index_of_;
  std::vector<const World*> worlds_;
  std::vector<uint32_t> first_edge_;  // by which each was reached
  std::vector<Edge> edges_;
  uint32_t current_ = 0;
};

// --- the server

LockStep Explorer::decide(const World& world, const LockEvent& event) const {
  LockState state = world.lock;
  if (is(Without::kLosers)) state.record.written_epoch = 0;
  const bool hands_on = !is(Without::kHandingOn) || !std::holds_alternative<LockLeave>(event);
  LockState::Party standby;
  if (!hands_on && state.owner.ticket == std::get<LockLeave>(event).ticket)
    standby = std::exchange(state.standby, {});
  LockStep result = step(state, event);
  if (standby.ticket != 0) result.state.standby = standby;
  if (is(Without::kCrashWrites) && !world.lock.is_held)
    result.state.record.written_epoch = world.lock.record.written_epoch;
  return result;
}

// The record is durable, and then everybody is told.
void Explorer::take(World& world, const LockState& state) const {
  if (state.record.epoch != world.lock.record.epoch) world.has_written = false;
  world.lock = state;
  for (Vm& vm : world.vms) {
    const bool has_right = vm.ticket == state.owner.ticket || vm.ticket == state.standby.ticket;
    if (vm.ticket != 0 && !has_right && !is(Without::kPuttingOut)) vm.is_out = true;
  }
}

void Explorer::leave(World& world, uint64_t ticket) const {
  bool stays_open = false;
  for (const Vm& vm : world.vms)
    for (const uint64_t other : {vm.ticket, vm.old_ticket})
      if (other != 0 && other != world.lock.owner.ticket && other != world.lock.standby.ticket)
        stays_open = true;
  const bool is_beaten = world.has_changed && !is(Without::kSourceWins);
  take(world, decide(world, LockLeave{ticket, stays_open, world.has_written, is_beaten}).state);
}

// Whether others' changes, or others of its own, are on their way.
bool Explorer::has_other_changes(const World& world, size_t v) const {
  for (size_t other = 0; other < world.vms.size(); ++other) {
    const Vm& vm = world.vms[other];
    if (vm.has_old_change || (other != v && vm.change == Change::kGoes)) return true;
  }
  return false;
}

Process Explorer::process_of(const World& world) const {
  if (!setup_.is_unix) return Process::kUnknown;
  for (const Vm& vm : world.vms)
    if (vm.id == world.lock.record.owner && vm.lives()) return Process::kLives;
  return Process::kGone;
}

void Explorer::connect(const World& world, size_t v) {
  const Vm& vm = world.vms[v];
  for (const auto waited : {Seen::Duration(0), kLong})
    for (const auto quiet : {Seen::Duration(0), kLong})
      for (const auto absent : {Seen::Duration(0), kLong}) {
        LockConnect event;
        event.now_ns = world.is_late ? kArmedUntil : 0;
        event.vm = setup_.has_token || setup_.is_unix ? vm.id : 0;
        event.token = setup_.has_token ? vm.id : 0;
        event.is_multi = setup_.is_multi;
        event.found = world.lock.owner.ticket;
        event.waited = waited;
        event.grace = kGrace;
        event.owner.process = process_of(world);
        event.owner.quiet = quiet;
        event.owner.absent = absent;
        bool is_at_work = false;  // a connection that would be put out
        for (const Vm& other : world.vms) {
          if (other.ticket == 0 || other.ticket != world.lock.owner.ticket) continue;
          is_at_work = is_at_work || quiet < kLong || other.change == Change::kGoes;
        }
        for (const Vm& other : world.vms)
          if (other.change == Change::kGoes || other.has_old_change)
            event.owner.has_in_flight = true;
        if (is(Without::kIdle)) {
          event.owner.quiet = kLong;
          event.owner.has_in_flight = false;
        }
        if (is(Without::kPatience)) event.owner.process = Process::kGone;

        const LockStep result = decide(world, event);
        if (result.answer == LockAnswer::kLoser) {
          World refused = world;
          refused.vms[v].life = Life::kGone;
          add(refused, v, "comes, and is refused for good");
        }
        if (result.answer != LockAnswer::kYes) continue;
        World next = world;
        const bool puts_out = world.lock.owner.connections > 0 &&
                              result.state.owner.ticket != world.lock.owner.ticket;
        if (puts_out && is_at_work) next.broken = "S5: a connection that works is put out";
        const bool is_left_behind =
            world.lock.record.is_taken && !world.lock.is_held && !world.lock.record.is_servers_own;
        const bool is_owner = result.ticket == result.state.owner.ticket;
        if (is_left_behind && is_owner && world.lock.record.owner != event.vm &&
            (process_of(world) == Process::kLives || (!setup_.is_unix && absent < kGrace)))
          next.broken = "S6: others come in before the one that was connected";
        const bool may_be_lost = world.is_late && world.vms[kQ].ticket == 0;
        if (v == kX && is_owner && is_clean(world) && !setup_.is_copy && !may_be_lost)
          for (const size_t other : {kP, kQ})
            if (world.vms[other].lives() && !world.lock.record.is_loser(world.vms[other].id) &&
                (other == kP || setup_.has_hand_over))
              next.broken = "S4: a third VM slips in";
        if (result.state.standby.ticket != world.lock.standby.ticket)
          next.is_wanted = next.has_changed = false;
        take(next, result.state);
        next.vms[v].ticket = result.ticket;
        next.vms[v].is_out = false;
        next.vms[v].is_entering = true;
        add(next, v, is_owner ? "comes, and has the volume" : "comes, and stands by");
      }
}

void Explorer::steps_of_server(const World& world) {
  if (world.is_up && world.kills > 0) {
    World next = world;
    --next.kills;
    next.is_up = false;
    next.lock = LockState{};
    next.lock.record = world.lock.record;
    if (is(Without::kDurableHandOver)) next.lock.record.hand_over_token = 0;
    if (is(Without::kRecord)) next.lock.record.is_taken = false;
    if (is(Without::kDurableHandOver)) next.lock.record.hand_over_until_ns = 0;
    next.has_written = next.has_looked = next.is_wanted = next.has_changed = false;
    for (Vm& vm : next.vms) {
      vm.ticket = vm.old_ticket = 0;
      vm.is_out = vm.is_entering = vm.has_old_change = vm.has_acknowledged = false;
      vm.is_beaten = false;  // that nobody remembers
      vm.change = Change::kNone;
    }
    add(next, kP, "(the server is killed)");
  }
  if (!world.is_up) {
    World next = world;
    next.is_up = true;
    add(next, kP, "(the server starts)");
    return;
  }
  if (world.lock.record.hand_over_token != 0 && !world.is_late) {
    World next = world;
    next.is_late = true;
    add(next, kP, "(the time for the hand-over is over)");
  }
  if (world.breaks > 0) {
    World looked = world;
    looked.shown_epoch = world.lock.record.epoch;
    looked.shown_owner = world.lock.record.owner;
    add(looked, kP, "(an operator looks)");
  }
  if (world.breaks > 0 && world.shown_epoch != 0) {
    LockBreak event{world.shown_epoch, false};
    if (is(Without::kComparedEpoch)) event.epoch = world.lock.record.epoch;
    for (const Vm& vm : world.vms)
      event.stays_open = event.stays_open || vm.ticket != 0 || vm.old_ticket != 0;
    const LockStep result = decide(world, event);
    World next = world;
    --next.breaks;
    next.shown_epoch = 0;
    if (result.answer == LockAnswer::kYes && world.shown_owner != world.lock.record.owner)
      next.broken = "S8: the lock of another VM is broken";
    next.shown_owner = 0;
    take(next, result.state);
    add(next, kP, "(the operator breaks the lock)");
  }
}

// --- the VMs

void Explorer::steps_of_vm(const World& world, size_t v) {
  const Vm& vm = world.vms[v];
  if (vm.lives() && vm.ticket == 0 && world.is_up) connect(world, v);
  if (vm.is_entering && (is(Without::kWaitForOld) || !has_other_changes(world, v))) {
    World next = world;
    next.vms[v].is_entering = false;
    next.vms[v].has_seen = true;
    add(next, v, "is let in");
  }
  const bool starts = (v == kX && !vm.lives() && world.starts_of_x > 0) ||
                      (v == kQ && vm.life == Life::kNone && !setup_.has_hand_over);
  if (starts && vm.old_ticket == 0) {
    World next = world;
    next.vms[v] = Vm{};
    next.vms[v].id = v == kQ ? (setup_.is_copy ? 1 : 2) : 2 + world.starts_of_x;
    if (v == kX) --next.starts_of_x;
    next.vms[v].life = Life::kRuns;
    add(next, v, "is started");
  }
  const bool may_end = v == kX || !setup_.has_hand_over || vm.life == Life::kGone;
  if (vm.lives() && may_end && vm.change != Change::kGoes && vm.old_ticket == 0) {
    World next = world;
    Vm& gone = next.vms[v];
    const uint64_t ticket = std::exchange(gone.ticket, 0);
    gone.life = Life::kGone;
    gone.change = Change::kNone;
    gone.is_out = gone.is_entering = false;
    if (ticket != 0) leave(next, ticket);
    add(next, v, "ends");
  }
  if (vm.life == Life::kRuns && vm.ticket != 0 && !vm.is_entering && v != kX && world.cuts > 0 &&
      vm.old_ticket == 0) {
    World next = world;
    Vm& cut = next.vms[v];
    --next.cuts;
    cut.old_ticket = std::exchange(cut.ticket, 0);
    cut.has_old_change = cut.change == Change::kGoes;
    cut.change = Change::kNone;
    cut.is_out = cut.has_acknowledged = false;
    add(next, v, "gives its connection up");
  }
  if (vm.old_ticket != 0 && !vm.has_old_change) {
    World next = world;
    leave(next, std::exchange(next.vms[v].old_ticket, 0));
    add(next, v, "is noticed to have left a connection");
  }
}

void Explorer::steps_of_migration(const World& world) {
  const Vm& p = world.vms[kP];
  const Vm& q = world.vms[kQ];
  const auto change = [&](size_t v, const char* label, const std::function<void(World&)>& what) {
    World next = world;
    what(next);
    add(next, v, label);
  };
  const auto end = [&](World& next, size_t v) {
    Vm& vm = next.vms[v];
    vm.life = Life::kGone;
    vm.change = Change::kNone;
    vm.is_out = vm.is_entering = false;
    if (const uint64_t ticket = std::exchange(vm.ticket, 0)) leave(next, ticket);
  };
  const bool p_is_idle = p.change == Change::kNone;
  if (p.life == Life::kRuns && q.life == Life::kNone && world.is_up &&
      world.lock.owner.ticket != 0 && world.lock.owner.ticket == p.ticket &&
      world.lock.record.hand_over_token == 0)
    change(kP, "(the hand-over to Q is armed)", [&](World& next) {
      take(next, decide(world, LockArm{2, 2, kArmedUntil}).state);
    });
  if (q.life == Life::kNone && world.lock.record.hand_over_token != 0 && world.is_up)
    change(kQ, "is started and waits for its memory", [&](World& next) {
      next.vms[kQ].id = 2;
      next.vms[kQ].life = Life::kIncoming;
    });
  if (p.life == Life::kRuns && p.ticket != 0 && !p.is_entering && p_is_idle &&
      q.life == Life::kIncoming)
    change(kP, "stops, qemu flushes", [&](World& next) {
      next.vms[kP].life = Life::kStopped;
      if (setup_.flushes) next.is_dirty = false;
    });
  if (p.life == Life::kRuns && p_is_idle && world.is_dirty && setup_.flushes && p.ticket != 0 &&
      !p.is_entering)
    change(kP, "flushes", [](World& next) { next.is_dirty = false; });
  if (p.life == Life::kStopped && q.life == Life::kIncoming && q.ticket != 0) {
    change(kQ, "runs: the migration is complete",
           [](World& next) { next.vms[kQ].life = Life::kRuns; });
    change(kP, "runs again and Q ends: the migration fails", [&](World& next) {
      end(next, kQ);
      next.vms[kP].life = Life::kRuns;
    });
  }
  if (world.misuses > 0 && q.ticket != 0) {
    if (p.life == Life::kRuns && q.life == Life::kIncoming)
      change(kQ, "runs too: MISUSE", [](World& next) {
        next.vms[kQ].life = Life::kRuns;
        --next.misuses;
      });
    if (p.life == Life::kStopped && q.life == Life::kRuns)
      change(kP, "runs again too: MISUSE", [](World& next) {
        next.vms[kP].life = Life::kRuns;
        --next.misuses;
      });
  }
  if (p.life == Life::kStopped && p.old_ticket == 0)
    change(kP, "quits", [&](World& next) { end(next, kP); });
  if (q.lives() && q.change != Change::kGoes && q.old_ticket == 0 && q.life == Life::kRuns)
    change(kQ, "ends", [&](World& next) { end(next, kQ); });
}

void Explorer::land(World& world, size_t v, bool is_old) const {
  Vm& vm = world.vms[v];
  for (size_t other = 0; other < world.vms.size(); ++other) {
    Vm& another = world.vms[other];
    if (other == v) continue;
    if (another.change == Change::kGoes || another.has_old_change)
      world.broken = "S1: two VMs write at once";
    // What a migration's destination knows is what its source has written, while that is the one
    // that runs; and that has done again what it gave up. Nobody can tell VMs with one token apart.
    const bool is_its_source =
        v == kP && other == kQ && setup_.has_hand_over &&
        (another.life == Life::kIncoming || is_old || world.misuses < setup_.misuses);
    if (another.has_seen && !is_its_source && !(setup_.is_copy && v != kX && other != kX))
      another.is_stale = true;
  }
  if (vm.is_stale) world.broken = "S2: who had the volume before writes again";
  if (vm.is_beaten) world.broken = "S7: the standby writes though the source has gone on";
  if (is_old && vm.has_acknowledged) world.broken = "S3: an old write lands over a newer one";
  const bool is_owners = world.lock.owner.ticket != 0 &&
                         (is_old ? vm.old_ticket : vm.ticket) == world.lock.owner.ticket;
  if (is_owners) world.has_written = true;
  if (v == kP) world.is_dirty = true;
  if (is_old) {
    vm.has_old_change = false;
  } else {
    vm.change = Change::kNone;
    vm.has_acknowledged = vm.has_old_change;
  }
}

void Explorer::steps_of_changes(const World& world, size_t v) {
  const Vm& vm = world.vms[v];
  if (vm.has_old_change) {
    World next = world;
    land(next, v, true);
    add(next, v, "has a write land that it gave up");
  }
  if (vm.change == Change::kGoes) {
    World next = world;
    land(next, v, false);
    add(next, v, "has its write land");
  }
  const bool is_in = vm.ticket != 0 && !vm.is_entering && world.is_up;
  if (!is_in) return;
  if (vm.is_out) {
    World next = world;
    next.vms[v].life = Life::kGone;
    next.vms[v].change = Change::kNone;
    const uint64_t ticket = std::exchange(next.vms[v].ticket, 0);
    leave(next, ticket);
    next.vms[v].is_out = false;
    if (vm.change != Change::kGoes && vm.old_ticket == 0) add(next, v, "is out, and ends");
    return;
  }
  if (vm.life == Life::kRuns && vm.change == Change::kNone) {
    World next = world;
    const bool waits = vm.ticket == world.lock.standby.ticket;
    next.vms[v].change = waits ? Change::kWaits : Change::kGoes;
    if (waits) {
      next.has_looked = false;
      next.is_wanted = true;
    } else if (v == kP && world.is_wanted && world.lock.standby.ticket != 0) {
      next.has_changed = true;
      // When the server has looked already, what it saw counts.
      if (!world.has_looked) next.vms[kQ].is_beaten = true;
    }
    add(next, v, waits ? "changes something, and waits" : "changes something");
  }
  if (vm.change != Change::kWaits) return;
  if (vm.ticket == world.lock.owner.ticket &&
      (!has_other_changes(world, v) || is(Without::kWaitForOld))) {
    World next = world;
    next.vms[v].change = Change::kGoes;
    next.has_looked = false;
    add(next, v, "has what waited go on");
  }
  if (vm.ticket != world.lock.standby.ticket) return;
  const Vm& p = world.vms[kP];
  World looked = world;
  looked.has_looked = true;
  looked.saw_in_flight = p.change == Change::kGoes || p.has_old_change;
  looked.saw_flush = !world.is_dirty;
  if (!world.has_looked) add(looked, kQ, "waits, and the server looks at P");
  if (!world.has_looked) return;
  for (const auto waited : {Seen::Duration(0), kLong})
    for (const auto quiet : {Seen::Duration(0), kLong}) {
      LockChange event;
      event.waited = waited;
      event.owner.has_in_flight = world.saw_in_flight;
      event.owner.has_flushed = world.saw_flush;
      event.owner.has_changed = world.has_changed && !is(Without::kSourceWins);
      event.owner.quiet = is(Without::kQuiet) ? Seen::Duration(0) : quiet;
      event.owner.has_written = world.has_written;
      if (is(Without::kFlushOrQuiet)) {
        event.owner.has_in_flight = false;
        event.owner.has_flushed = true;
      }
      const LockStep result = decide(world, event);
      World next = world;
      next.has_looked = false;
      if (result.answer != LockAnswer::kWait) take(next, result.state);
      const bool moves = result.answer == LockAnswer::kYes;
      const bool has_source = world.lock.owner.connections > 0;
      const bool is_at_work = world.saw_in_flight || (!world.saw_flush && quiet == 0s);
      if (moves && has_source && is_at_work) next.broken = "S5: a source that works is put out";
      add(next, kQ,
          moves                                ? "gets the volume"
          : result.answer == LockAnswer::kWait ? "waits on"
          : waited == kLong                    ? "has waited too long"
                                               : "is beaten by P");
    }
}

// --- exploring

const char* Explorer::look_for_lost(const World& world) const {
  const LockState& lock = world.lock;
  const LockRecord& record = lock.record;
  if (lock.owner.ticket != 0 && (!lock.is_held || !record.is_taken || lock.owner.connections == 0 ||
                                 (lock.owner.vm != 0 && record.owner != lock.owner.vm)))
    return "a record that does not say who has the volume";
  if (world.is_up && record.is_taken && !lock.is_held && record.owner != 0) {
    LockConnect event;
    event.vm = event.token = record.owner;
    event.grace = kGrace;
    event.owner.process = Process::kLives;
    if (!record.is_loser(record.owner) && decide(world, event).answer != LockAnswer::kYes)
      return "L3: the VM that was connected does not come back at once";
  }
  return nullptr;
}

void Explorer::add(World world, size_t vm, const char* label) {
  forget_numbers(world);
  if (world == *worlds_[current_]) return;
  if (world.broken == nullptr) world.broken = look_for_lost(world);
  const auto [known, is_new] =
      index_of_.try_emplace(std::move(world), static_cast<uint32_t>(worlds_.size()));
  edges_.push_back({current_, known->second, label, vm});
  if (!is_new) return;
  worlds_.push_back(&known->first);
  first_edge_.push_back(static_cast<uint32_t>(edges_.size() - 1));
}

void Explorer::all_steps(const World& world) {
  for (size_t v = 0; v < world.vms.size(); ++v) {
    steps_of_vm(world, v);
    steps_of_changes(world, v);
  }
  if (setup_.has_hand_over) steps_of_migration(world);
  steps_of_server(world);
}

std::vector<char> Explorer::can_reach(const std::function<bool(const World&)>& good,
                                      const std::function<bool(const Edge&)>& allowed) const {
  std::vector<std::vector<uint32_t>> before(worlds_.size());
  for (const Edge& edge : edges_)
    if (allowed(edge)) before[edge.to].push_back(edge.from);
  std::vector<char> reaches(worlds_.size(), 0);
  std::deque<uint32_t> todo;
  for (uint32_t i = 0; i < worlds_.size(); ++i)
    if (good(*worlds_[i])) {
      reaches[i] = 1;
      todo.push_back(i);
    }
  while (!todo.empty()) {
    const uint32_t to = todo.front();
    todo.pop_front();
    for (const uint32_t from : before[to]) {
      if (reaches[from]) continue;
      reaches[from] = 1;
      todo.push_back(from);
    }
  }
  return reaches;
}

std::string Explorer::label_of(const Edge& edge) const {
  const std::string label = edge.label;
  return label[0] == '(' ? label : std::string(kNames[edge.vm]) + " " + label;
}

std::vector<std::string> Explorer::run_to(uint32_t index) const {
  std::vector<std::string> run;
  while (index != 0) {
    const Edge& edge = edges_[first_edge_[index]];
    run.push_back(label_of(edge));
    index = edge.from;
  }
  std::reverse(run.begin(), run.end());
  return run;
}

Violation Explorer::explore() {
  World start;
  start.kills = setup_.kills;
  start.cuts = setup_.cuts;
  start.misuses = setup_.misuses;
  start.starts_of_x = setup_.starts_of_x;
  start.breaks = setup_.breaks;
  start.vms[kP].id = 1;
  start.vms[kP].life = Life::kRuns;
  LockConnect first;
  first.vm = first.token = 1;
  first.is_multi = setup_.is_multi;
  const LockStep begun = step(start.lock, first);
  start.lock = begun.state;
  start.vms[kP].ticket = begun.ticket;
  start.vms[kP].has_seen = true;
  forget_numbers(start);
  worlds_.push_back(&index_of_.try_emplace(start, 0).first->first);
  first_edge_.push_back(0);
  for (current_ = 0; current_ < worlds_.size(); ++current_) {
    const World& world = *worlds_[current_];
    if (world.broken != nullptr) return {world.broken, run_to(current_), worlds_.size()};
    all_steps(world);
  }

  const auto any = [](const Edge&) { return true; };
  const auto is_label = [](const Edge& edge, const char* part) {
    return std::string(edge.label).find(part) != std::string::npos;
  };
  const auto find = [&](const char* broken, const std::vector<char>& reaches,
                        const std::function<bool(const World&)>& where) {
    for (uint32_t i = 0; i < worlds_.size(); ++i)
      if (!reaches[i] && where(*worlds_[i])) return Violation{broken, run_to(i), worlds_.size()};
    return Violation{"", {}, worlds_.size()};
  };
  const auto is_owner = [](const World& world, size_t v) {
    const Vm& vm = world.vms[v];
    return vm.ticket != 0 && vm.ticket == world.lock.owner.ticket && !vm.is_entering;
  };
  for (const size_t v : {kP, kQ, kX}) {
    const Violation finding =
        find("L1: a change waits for ever",
             can_reach([v](const World& w) { return w.vms[v].change != Change::kWaits; }, any),
             [v](const World& w) { return w.vms[v].change == Change::kWaits; });
    if (!finding.broken.empty()) return finding;
  }
  if (setup_.has_hand_over) {
    const Violation finding = find(
        "L2: the destination never gets in",
        can_reach(
            [&](const World& w) { return is_owner(w, kQ) && w.vms[kQ].change == Change::kGoes; },
            [&](const Edge& edge) {
              for (const char* help :
                   {"too long", "is over", "ends", "quits", "killed", "gives", "MISUSE"})
                if (is_label(edge, help)) return false;
              return edge.vm != kX;
            }),
        [&](const World& w) {
          const Vm& p = w.vms[kP];
          const Vm& q = w.vms[kQ];
          const bool is_complete = p.life != Life::kRuns && q.life == Life::kRuns;
          return is_complete && w.is_up && !w.is_late && w.cuts == setup_.cuts &&
                 w.misuses == setup_.misuses && w.breaks == setup_.breaks && !q.is_stale &&
                 !w.lock.record.is_loser(q.id) && w.vms[kX].ticket == 0;
        });
    if (!finding.broken.empty()) return finding;
  }
  Violation finding =
      find("L4: a VM never gets in",
           can_reach([&](const World& w) { return is_owner(w, kX); }, any), [](const World& w) {
             return w.is_up && w.vms[kX].life == Life::kRuns && !w.vms[kX].is_stale &&
                    !w.vms[kP].lives() && !w.vms[kQ].lives() && w.vms[kX].ticket == 0 &&
                    !w.lock.record.is_loser(w.vms[kX].id);
           });
  if (!finding.broken.empty() || !setup_.has_token || setup_.has_hand_over) return finding;
  return find("L5: a VM that was cut off never gets in again",
              can_reach([&](const World& w) { return is_owner(w, kP); },
                        [&](const Edge& edge) { return !is_label(edge, "noticed"); }),
              [](const World& w) {
                const Vm& p = w.vms[kP];
                // What another one wrote before a kill nobody knows.
                const bool is_left_behind = w.lock.record.is_taken && !w.lock.is_held;
                return w.is_up && p.life == Life::kRuns && p.ticket == 0 && !p.is_stale &&
                       (!is_left_behind || w.lock.record.owner == p.id) &&
                       !w.lock.record.is_loser(p.id) && !w.vms[kQ].lives() && !w.vms[kX].lives();
              });
}

}  // namespace

TEST_CASE("in every run one VM writes, and no other one after it has lost the volume") {
  const Setup setups[] = {
      {.name = "hand-over on a Unix socket", .has_hand_over = true},
      {.name = "hand-over over TCP", .has_hand_over = true, .is_unix = false},
      {.name = "hand-over, cache=unsafe", .has_hand_over = true, .flushes = false},
      {.name = "hand-over with multi-conn", .has_hand_over = true, .is_multi = true},
      {.name = "tokens on a Unix socket", .breaks = 1},
      {.name = "tokens over TCP", .is_unix = false, .breaks = 1},
      {.name = "tokens with multi-conn", .is_multi = true, .breaks = 1},
      {.name = "processes without tokens", .has_token = false, .breaks = 1},
      {.name = "a copied token", .is_unix = false, .is_copy = true, .breaks = 1},
  };
  for (const Setup& setup : setups) {
    if (kIsSanitized && (!setup.is_unix || setup.is_multi)) continue;  // for the time it takes
    const auto finding = Explorer(setup).explore();
    MESSAGE(std::string(setup.name), ": ", finding.worlds, " worlds");
    CHECK_MESSAGE(finding.broken.empty(), std::string(setup.name), ": ", text_of(finding));
  }
}

TEST_CASE("the record remembers the last eight VMs that saw the disk") {
  LockState state;
  for (VmId vm = 1; vm <= 9; ++vm) {
    LockConnect event;
    event.vm = vm;
    const LockStep connected = step(state, event);
    REQUIRE(connected.answer == LockAnswer::kYes);
    state = step(connected.state, LockLeave{.ticket = connected.ticket}).state;
  }
  CHECK_FALSE(state.record.is_taken);
  CHECK(state.record.epoch == 9);
  CHECK_FALSE(state.record.is_loser(1));  // forgotten
  for (VmId vm = 2; vm <= 8; ++vm) CHECK(state.record.is_loser(vm));
  CHECK_FALSE(state.record.is_loser(9));  // it has seen what it wrote itself
  CHECK_FALSE(state.record.is_loser(0));
}

TEST_CASE("a VM whose writes were lost never gets the volume again, nor who goes on for it") {
  const auto connect = [](LockRecord record, VmId vm, uint64_t token = 0) {
    LockState state;
    state.record = record;
    LockConnect event;
    event.vm = vm;
    event.token = token;
    event.owner.process = OwnerSeen::Process::kGone;
    return step(state, event);
  };
  const LockRecord left = connect({}, 1).state.record;
  SUBCASE("it comes back itself") {
    const LockStep lost = step(connect(left, 1).state, LockLoss{1});
    CHECK(lost.answer == LockAnswer::kLost);
    CHECK_FALSE(lost.state.record.is_taken);
    CHECK(connect(lost.state.record, 1).answer == LockAnswer::kLost);
    CHECK(connect(lost.state.record, 2).answer == LockAnswer::kYes);
  }
  SUBCASE("another one comes, and the server dies again") {
    const LockStep lost = step(connect(left, 2).state, LockLoss{1});
    CHECK(lost.answer == LockAnswer::kYes);
    CHECK(lost.state.owner.vm == 2);
    CHECK(connect(lost.state.record, 1).answer == LockAnswer::kLost);
    CHECK(connect(lost.state.record, 2).answer == LockAnswer::kYes);
  }
  SUBCASE("it was being handed over") {
    LockRecord armed = left;
    armed.hand_over_token = 5;
    armed.hand_over_until_ns = 1;
    const LockStep stands_by = connect(armed, 2, 5);
    REQUIRE(stands_by.state.standby.vm == 2);
    const LockStep lost = step(stands_by.state, LockLoss{1});
    CHECK(lost.answer == LockAnswer::kLost);
    CHECK(connect(lost.state.record, 1).answer == LockAnswer::kLost);
    CHECK(connect(lost.state.record, 2).answer != LockAnswer::kYes);
    CHECK(connect(lost.state.record, 3).answer == LockAnswer::kYes);
  }
  SUBCASE("nobody knows who it was") {
    const LockStep connected = connect(left, 0);
    CHECK(step(connected.state, LockLoss{0}).state == connected.state);
  }
}

TEST_CASE("programs that only look do not make the record forget who must not write again") {
  LockState state;
  VmId next_vm = 1;
  const auto come_and_go = [&](VmId vm, bool writes) {
    LockConnect event;
    event.vm = vm;
    const LockStep connected = step(state, event);
    REQUIRE(connected.answer == LockAnswer::kYes);
    state =
        step(connected.state, LockLeave{.ticket = connected.ticket, .has_written = writes}).state;
  };
  const auto look = [&](int times) {
    for (; times > 0; --times) come_and_go(100 + next_vm++, false);
  };
  for (const VmId vm : {1, 2, 3, 4}) {
    look(20);
    come_and_go(vm, true);
  }
  look(20);
  for (const VmId vm : {1, 2, 3}) CHECK(state.record.is_loser(vm));
  CHECK_FALSE(state.record.is_loser(4));

  SUBCASE("one that writes in a later life of its connection counts as one that writes") {
    come_and_go(4, false);
    look(20);
    come_and_go(5, true);
    CHECK(state.record.is_loser(4));
  }
  SUBCASE("one that has looked and comes back after a write is refused") {
    const VmId looker = 100 + next_vm;
    look(3);
    come_and_go(5, true);
    CHECK(state.record.is_loser(looker));
  }
}

TEST_CASE("without any one of the rules there is a run that breaks what it is for") {
  struct Variant {
    Setup setup;
    const char* breaks;
  };
  const Variant variants[] = {
      {{.name = "the hand-over moves at once",
        .has_hand_over = true,
        .without = Without::kFlushOrQuiet},
       "S5"},
      {{.name = "it moves after a flush only, and qemu flushes nothing",
        .has_hand_over = true,
        .flushes = false,
        .without = Without::kQuiet},
       "L2"},
      {{.name = "the hand-over is in memory only",
        .has_hand_over = true,
        .without = Without::kDurableHandOver},
       "L2"},
      {{.name = "that the volume is taken is in memory only", .without = Without::kRecord}, "S2"},
      {{.name = "nobody remembers who had it", .without = Without::kLosers}, "S2"},
      {{.name = "the source's end frees the volume",
        .has_hand_over = true,
        .without = Without::kHandingOn,
        .misuses = 0},
       "S4"},
      {{.name = "changes of other connections are not waited for",
        .is_multi = true,
        .without = Without::kWaitForOld},
       "S3"},
      {{.name = "who has lost the lock is not told", .without = Without::kPuttingOut, .breaks = 1},
       "S1"},
      {{.name = "the source does not win", .has_hand_over = true, .without = Without::kSourceWins},
       "S7"},
      {{.name = "a connection is replaced at once",
        .is_unix = false,
        .is_copy = true,
        .without = Without::kIdle},
       "S5"},
      {{.name = "everybody may come after a kill", .without = Without::kPatience}, "S6"},
      {{.name = "what nobody saw written counts as not written", .without = Without::kCrashWrites},
       "S2"},
      {{.name = "a break takes what there is", .without = Without::kComparedEpoch, .breaks = 1},
       "S8"},
  };
  for (const Variant& variant : variants) {
    const auto finding = Explorer(variant.setup).explore();
    MESSAGE(std::string(variant.setup.name), ": ", text_of(finding));
    CHECK_MESSAGE(finding.broken.starts_with(variant.breaks), std::string(variant.setup.name), ": ",
                  text_of(finding));
  }
}

}  // namespace tplstore::lock_state_test
