// Who may write a volume, and who comes next: one function of a state and of what happens, without
// a lock, I/O or a clock. Time, processes and what connections have done come with the events.
//
// The state has a durable part, the record, which the header keeps, and one in memory, which the
// end of the server takes away. A right to write is a ticket: connections that have the owner's are
// in, one that has the standby's may read and its changes wait, and any other one is out for good.
//
// The caller
//   - gives the events of one volume one after the other;
//   - makes the record of a step durable, if it differs, before it does anything else of the step;
//     when that fails the state is what it was;
//   - then tells the connections that are out, and waits until what all others have begun to change
//     has ended, before it lets in the one that asks or does what has waited.
// So no write lands over one of a later owner, nor over a newer one of the same VM.
//
// Who is a loser: the record keeps the VMs that saw the disk last, each with the epoch in which
// that was, and the last epoch in which something was written. A VM that saw it before that, and
// not since, has an old view of it and never gets it again. Nobody can tell what was written in the
// epoch of a server that died; so that counts as written, unless no VM had the volume.
//
// So is the VM whose writes were acknowledged and went with its server; and then also the one that
// it was being handed over to.
//
// Whom the record forgets: the one that is longest ago; but those that come for the first time and
// change nothing, as programs do that only look, never push out the last four others. A loser that
// is forgotten would get the volume again.
//
// Thread safety: pure functions.
#pragma once

#include <array>
#include <chrono>
#include <compare>
#include <cstdint>
#include <variant>

namespace tplstore {

// A VM, told from others as far as it can be; 0 is one that cannot, or none.
using VmId = uint64_t;

struct LockRecord {
  struct Known {
    VmId vm = 0;
    uint64_t epoch = 0;  // in which it saw the disk
    auto operator<=>(const Known&) const = default;
  };

  uint64_t epoch = 0;  // rises whenever the volume changes hands
  bool is_taken = false;
  bool is_servers_own = false;   // taken for no VM, and nothing is written
  VmId owner = 0;                // that has the volume in this epoch, or had it
  uint64_t written_epoch = 0;    // the last one in which something was changed
  std::array<Known, 8> known{};  // the last ones, the newest first, and the owner
  uint64_t hand_over_token = 0;  // of the VM that the volume is about to be handed to; 0: none
  int64_t hand_over_until_ns = 0;
  VmId lost = 0;  // the last one whose acknowledged writes were lost with its server

  bool is_loser(VmId vm) const;
  bool is_armed(int64_t now_ns) const {
    return hand_over_token != 0 && now_ns < hand_over_until_ns;
  }
  auto operator<=>(const LockRecord&) const = default;
};

struct LockState {
  struct Party {
    uint64_t ticket = 0;  // 0: nobody
    VmId vm = 0;
    bool is_multi = false;
    bool is_new = false;  // nothing was known of the VM when it came
    uint32_t connections = 0;
    auto operator<=>(const Party&) const = default;
  };

  LockRecord record;
  // The rest is in memory.
  bool is_held = false;  // the record is of this life of the server, not of one before
  uint64_t last_ticket = 0;
  Party owner;
  Party standby;
  bool is_anybodys() const { return owner.ticket != 0 || standby.ticket != 0; }
  auto operator<=>(const LockState&) const = default;
};

// What is seen of the one who has the volume.
struct OwnerSeen {
  using Duration = std::chrono::milliseconds;
  enum class Process { kUnknown, kLives, kGone, kOfAnotherHost };
  Process process = Process::kUnknown;
  bool has_asked = true;       // it has sent a request
  bool has_in_flight = false;  // one of its requests has not ended
  bool has_flushed = false;    // since it last changed something
  bool has_changed = false;    // something has begun since the standby's change waits
  bool has_written = true;     // it has changed something since it got the volume
  Duration quiet{0};           // since its last request began
  Duration absent{0};  // since this server knows that the one it died under has not come back
};

// Claims on epochs behind the record's, each on the next one, that no record has followed
// (lock/claims.h).
struct ClaimsSeen {
  uint64_t count = 0;
  bool is_other_hosts = false;  // one of them; else they are this host's, and passed over
};

// A connection comes; or the server itself wants the volume, which nobody is connected to.
struct LockConnect {
  bool is_connection = true;
  VmId vm = 0;
  uint64_t token = 0;     // 0: it has none
  bool is_multi = false;  // others of the VM may be there
  bool may_join = false;  // for the moment they may, as an operator says
  uint64_t found = 0;     // the owner's ticket when it asked for the first time
  OwnerSeen owner;
  ClaimsSeen claims = {};         // where this server does not have the volume
  OwnerSeen::Duration waited{0};  // since it asked for the first time
  OwnerSeen::Duration grace{0};   // for the VM whose server died
  int64_t now_ns = 0;
};
// A connection has gone. `stays_open`: the server goes on with the volume for others than VMs.
struct LockLeave {
  uint64_t ticket = 0;
  bool stays_open = false;
  bool has_written = true;   // the owner, since it got the volume
  bool has_changed = false;  // the owner, since the standby's change waits
};
// A change of the standby waits. Asked again until it is answered.
struct LockChange {
  OwnerSeen owner;
  OwnerSeen::Duration waited{0};
};
// What an operator asks for.
struct LockArm {
  VmId vm = 0;  // who has the token, if that tells
  uint64_t token = 0;
  int64_t until_ns = 0;
};
struct LockCancel {};
// What was acknowledged in the last life to the VM that had the volume is lost: it believes in
// writes that are gone, and whoever goes on with its memory does. Whoever was let in meanwhile is
// let out again if that is so.
struct LockLoss {
  VmId vm = 0;
};
struct LockBreak {
  uint64_t epoch = 0;  // that was shown
  bool stays_open = false;
  ClaimsSeen claims = {};  // as with LockConnect
};
using LockEvent =
    std::variant<LockConnect, LockLeave, LockChange, LockArm, LockCancel, LockBreak, LockLoss>;

enum class LockAnswer {
  kYes,
  kWait,        // ask again
  kInUse,       // another VM, or another connection of this one, has it
  kLoser,       // others have written since this VM had it
  kLost,        // what this VM has written is lost
  kLeftBehind,  // it is kept for the VM that was connected when the server died
  kForeign,     // another host's record, or claim
  kHandOver,    // it is kept for the VM that it will be handed to
  kOtherEpoch,  // it has changed hands since the operator looked
  kFree,        // nobody has it
  kOwner,       // it has it already
};

struct LockStep {
  LockState state;
  LockAnswer answer;
  uint64_t ticket = 0;  // of the connection that was let in
};
LockStep step(const LockState& state, const LockEvent& event);

// Whether the epoch after the step needs a claim, which another host may be first to make.
bool needs_claim(const LockState& before, const LockState& after);
// What an operator is shown, and breaks.
uint64_t shown_epoch(const LockRecord& record, const ClaimsSeen& claims);
// Claims on the last epochs that a record has followed stay, for those who read an old record.
inline constexpr uint64_t kClaimsKept = 2;

// How long things take.
inline constexpr std::chrono::seconds kLockIdle{5};         // of a connection that may be replaced
inline constexpr std::chrono::seconds kLockProbeWait{2};    // for one that may only be looking
inline constexpr std::chrono::seconds kLockCloseWait{10};   // for one whose client has gone
inline constexpr std::chrono::seconds kLockQuiet{2};        // of a source that did not flush
inline constexpr std::chrono::seconds kLockChangeWait{30};  // of a standby's change

}  // namespace tplstore
