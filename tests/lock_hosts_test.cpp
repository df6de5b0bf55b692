// Every run of two hosts that have one store and whose file locks do not meet is visited, with the
// library's own function deciding who may have a volume (lock/lock_state.h).
//
// The world. A host's server takes its own lock, reads the record, looks for claims, makes one,
// reads the record again, writes it, removes old claims; each is a step of its own, and any time
// may pass between two of them. Then it writes, lets VMs come and go, and ends; or opening fails
// and it puts back what it found. It may be killed at any step, with a write on its way that lands
// later: not before that its lock is free. An operator looks, and breaks what he was shown by the
// same steps, having made sure that the other host has no server and nothing on its way. That host
// may start one again at any moment from there on.
//
//   S1  A host never has a volume, nor a write on its way, while another one has the volume.
//   S2  The record says who has it.
//   L1  A host gets a volume that no other one has, or has claimed, without an operator; also after
//       a kill at any step.
//   L2  With an operator, some host gets it.
//
// Each rule is then taken away, and a run is found that breaks what it is for.
#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "explorer_testing.h"
#include "lock/lock_state.h"

namespace tplstore::lock_hosts_test {
namespace {

constexpr uint64_t kEpochMax = 4;
constexpr size_t kHosts = 2;
using HostNumber = uint8_t;  // 0: none

enum class Without {
  kNothing,
  kClaim,          // reading the record and writing it are all
  kSecondLook,     // the record is not read again when the claim is made
  kKeptClaim,      // a claim is removed before the record follows it
  kForeignRecord,  // another host's record is taken over
  kForeignClaim,   // another host's claim is passed over
  kPassingOver,    // nor is one's own
  kClaimOfBreak,   // an operator's break makes none
  kSureOperator,   // he makes sure of nothing
};

enum class At : uint8_t { kAway, kRead, kLooked, kClaimed, kDecided, kWritten, kHas, kPutBack };

struct Host {
  At at = At::kAway;
  bool is_break = false;     // it is the operator's
  uint64_t shown_epoch = 0;  // to him
  LockRecord read = {};      // what stood in the header
  HostNumber read_host = 0;
  LockState next = {};     // what is decided, and then what it has
  bool is_on_way = false;  // a write
  auto operator<=>(const Host&) const = default;
};

struct World {
  LockRecord record;
  HostNumber record_host = 0;
  std::array<HostNumber, kEpochMax + 3> claims{};  // who has made that of each epoch
  std::array<Host, kHosts> hosts;
  int kills = 1, failures = 1, breaks = 1;  // that may still come
  auto operator<=>(const World&) const = default;
};

class Explorer {
 public:
  explicit Explorer(Without without) : without_(without) {}
  Violation explore();

 private:
  struct Edge {
    uint32_t from, to;
    size_t host;
    const char* label;
    bool is_operators;
  };

  bool is(Without without) const { return without_ == without; }
  void add(const World& world, size_t host, const char* label, bool is_operators = false);
  void steps_of(const World& world, size_t h);
  void decide(const World& world, size_t h);
  void steps_of_owner(const World& world, size_t h);
  ClaimsSeen look(const World& world, size_t h, const LockRecord& record) const;
  void remove_old_claims(World& world) const;
  const char* look_for_broken(const World& world) const;
  bool is_anothers(const World& world, size_t h) const;
  Violation find_stuck(size_t host) const;
  std::vector<std::string> run_to(uint32_t index) const;

  const Without without_;
  std::map<World, uint32_t> index_of_;
  std::vector<const World*> worlds_;
  std::vector<uint32_t> first_edge_;
  std::vector<Edge> edges_;
  uint32_t current_ = 0;
  bool has_wrong_claims_ = false;
};

HostNumber number_of(size_t h) { return static_cast<HostNumber>(h + 1); }

ClaimsSeen Explorer::look(const World& world, size_t h, const LockRecord& record) const {
  ClaimsSeen seen;
  for (uint64_t epoch = record.epoch + 1; world.claims[epoch] != 0; ++epoch) {
    ++seen.count;
    const bool is_own = world.claims[epoch] == number_of(h);
    if (is_own ? is(Without::kPassingOver) : !is(Without::kForeignClaim))
      seen.is_other_hosts = true;
  }
  return seen;
}

void Explorer::decide(const World& world, size_t h) {
  World next = world;
  Host& host = next.hosts[h];
  const ClaimsSeen claims = look(world, h, host.read);
  LockState state;
  state.record = host.read;
  LockStep decided{state, LockAnswer::kFree};
  if (host.is_break) {
    decided = step(state, LockBreak{host.shown_epoch, false, claims});
  } else {
    LockConnect event;
    event.claims = claims;
    const bool is_own = host.read_host == number_of(h) || is(Without::kForeignRecord);
    event.owner.process = is_own ? OwnerSeen::Process::kGone : OwnerSeen::Process::kOfAnotherHost;
    decided = step(state, event);
  }
  if (decided.answer != LockAnswer::kYes) {
    host = {.is_on_way = host.is_on_way};
    return add(next, h, "is refused");
  }
  if (!needs_claim(state, decided.state)) has_wrong_claims_ = true;
  if (decided.state.record.epoch > kEpochMax) return;  // long enough
  host.next = decided.state;
  host.at = At::kLooked;
  add(next, h, "looks for claims, and may go on");
}

void Explorer::remove_old_claims(World& world) const {
  const uint64_t end = world.record.epoch + 1 - std::min(world.record.epoch + 1, kClaimsKept);
  std::fill_n(world.claims.begin(), std::min<uint64_t>(end, world.claims.size()), 0);
}

void Explorer::steps_of_owner(const World& world, size_t h) {
  const Host& host = world.hosts[h];
  const auto change = [&](const LockEvent& event, const char* label) {
    World next = world;
    const LockStep taken = step(host.next, event);
    if (taken.answer != LockAnswer::kYes || taken.state.record.epoch > kEpochMax) return;
    if (needs_claim(host.next, taken.state)) has_wrong_claims_ = true;
    next.record = taken.state.record;
    next.record_host = number_of(h);
    next.hosts[h].next = taken.state;
    next.hosts[h].next.last_ticket = taken.state.owner.ticket;
    if (!taken.state.is_held) next.hosts[h] = {};
    if (next.record.epoch != world.record.epoch) remove_old_claims(next);
    add(next, h, label);
  };
  if (!host.is_on_way) {
    World next = world;
    next.hosts[h].is_on_way = true;
    add(next, h, "begins to write");
    const uint64_t ticket = host.next.owner.ticket;
    if (ticket != 0) {
      change(LockLeave{.ticket = ticket, .stays_open = false}, "has its VM end, and closes");
      change(LockLeave{.ticket = ticket, .stays_open = true}, "has its VM end, and goes on");
    } else {
      change(LockLeave{}, "closes");
      change(LockConnect{}, "has a VM come");
    }
  }
}

void Explorer::steps_of(const World& world, size_t h) {
  const Host& host = world.hosts[h];
  const Host& other = world.hosts[1 - h];
  World next = world;
  Host& changed = next.hosts[h];
  if (host.is_on_way) {
    World landed = world;
    landed.hosts[h].is_on_way = false;
    add(landed, h, "has a write land");
  }
  if (host.at != At::kAway && world.kills > 0) {
    World killed = world;
    --killed.kills;
    killed.hosts[h] = {.is_on_way = host.is_on_way};
    add(killed, h, "is killed");
  }
  switch (host.at) {
    case At::kAway: {
      if (host.is_on_way) return;  // the lock is not free before
      changed.at = At::kRead;
      changed.read = world.record;
      changed.read_host = world.record_host;
      add(next, h, "starts, and reads the record");
      const bool is_sure = other.at == At::kAway && !other.is_on_way;
      if (world.breaks == 0 || !(is_sure || is(Without::kSureOperator))) return;
      --next.breaks;
      changed.is_break = true;
      changed.shown_epoch = shown_epoch(world.record, look(world, h, world.record));
      return add(next, h, "is told by an operator to break the lock, and reads the record", true);
    }
    case At::kRead:
      return decide(world, h);
    case At::kLooked: {
      const bool has_claims =
          !is(Without::kClaim) && !(host.is_break && is(Without::kClaimOfBreak));
      HostNumber& claim = next.claims[host.next.record.epoch];
      changed.at = !has_claims ? At::kDecided : claim == 0 ? At::kClaimed : At::kRead;
      if (changed.at == At::kRead) {
        changed.next = {};
        return add(next, h, "is not the first to claim the epoch");
      }
      if (has_claims) claim = number_of(h);
      return add(next, h, has_claims ? "claims the epoch" : "claims nothing");
    }
    case At::kClaimed: {
      const bool is_same = world.record == host.read && world.record_host == host.read_host;
      if (is(Without::kKeptClaim)) next.claims[host.next.record.epoch] = 0;
      if (is_same || is(Without::kSecondLook)) {
        changed.at = At::kDecided;
        return add(next, h, "reads the record again");
      }
      changed.at = At::kRead;
      changed.next = {};
      changed.read = world.record;
      changed.read_host = world.record_host;
      return add(next, h, "reads the record again, which is another one");
    }
    case At::kDecided:
      next.record = host.next.record;
      next.record_host = number_of(h);
      changed.at = At::kWritten;
      return add(next, h, "writes the record");
    case At::kWritten: {
      remove_old_claims(next);
      if (host.is_break) {
        changed = {};
        return add(next, h, "has broken the lock");
      }
      changed.at = At::kHas;
      changed.read = {};
      changed.read_host = 0;
      add(next, h, "has the volume");
      if (world.failures == 0) return;
      World failed = world;
      --failed.failures;
      remove_old_claims(failed);
      failed.record = host.read;
      failed.record_host = host.read_host;
      failed.hosts[h].at = At::kPutBack;
      return add(failed, h, "cannot open it, and puts the record back");
    }
    case At::kHas:
      return steps_of_owner(world, h);
    case At::kPutBack:
      next.claims[host.next.record.epoch] = 0;
      changed = {};
      return add(next, h, "removes its claim");
  }
}

const char* Explorer::look_for_broken(const World& world) const {
  for (size_t h = 0; h < kHosts; ++h) {
    const Host& host = world.hosts[h];
    if (host.at != At::kHas) continue;
    const Host& other = world.hosts[1 - h];
    if (other.at == At::kHas || other.is_on_way) return "S1: two hosts have the volume";
    // What comes before S1 where a rule is missing.
    if (!is(Without::kNothing)) continue;
    if (world.record != host.next.record || world.record_host != number_of(h))
      return "S2: the record does not say who has the volume";
  }
  return nullptr;
}

void Explorer::add(const World& world, size_t host, const char* label, bool is_operators) {
  const auto [known, is_new] = index_of_.try_emplace(world, static_cast<uint32_t>(worlds_.size()));
  edges_.push_back({current_, known->second, host, label, is_operators});
  if (!is_new) return;
  worlds_.push_back(&known->first);
  first_edge_.push_back(static_cast<uint32_t>(edges_.size() - 1));
}

std::vector<std::string> Explorer::run_to(uint32_t index) const {
  std::vector<std::string> run;
  while (index != 0) {
    const Edge& edge = edges_[first_edge_[index]];
    run.push_back(std::string(edge.host == 0 ? "A " : "B ") + edge.label);
    index = edge.from;
  }
  std::reverse(run.begin(), run.end());
  return run;
}

// Whether another host has the volume, is about to, or has left something that says so.
bool Explorer::is_anothers(const World& world, size_t h) const {
  if (world.record.is_taken && world.record_host != number_of(h)) return true;
  for (uint64_t epoch = world.record.epoch + 1; world.claims[epoch] != 0; ++epoch)
    if (world.claims[epoch] != number_of(h)) return true;
  return world.hosts[1 - h].at != At::kAway;
}

// Worlds from which a host, or any (kHosts), never gets the volume.
Violation Explorer::find_stuck(size_t host) const {
  const bool is_any = host == kHosts;
  std::vector<std::vector<uint32_t>> before(worlds_.size());
  for (const Edge& edge : edges_)
    if (is_any || (edge.host == host && !edge.is_operators)) before[edge.to].push_back(edge.from);
  std::vector<char> reaches(worlds_.size(), 0);
  std::deque<uint32_t> todo;
  const auto has = [](const World& world, size_t h) { return world.hosts[h].at == At::kHas; };
  for (uint32_t i = 0; i < worlds_.size(); ++i) {
    const World& world = *worlds_[i];
    if (!(is_any ? has(world, 0) || has(world, 1) : has(world, host))) continue;
    reaches[i] = 1;
    todo.push_back(i);
  }
  for (; !todo.empty(); todo.pop_front())
    for (const uint32_t from : before[todo.front()])
      if (!std::exchange(reaches[from], 1)) todo.push_back(from);
  for (uint32_t i = 0; i < worlds_.size(); ++i) {
    const World& world = *worlds_[i];
    // A few more steps must be possible.
    if (reaches[i] || world.record.epoch + 3 > kEpochMax) continue;
    if (is_any ? world.breaks == 0 : is_anothers(world, host)) continue;
    return {is_any ? "L2: no host ever gets the volume" : "L1: a host never gets the volume",
            run_to(i), worlds_.size()};
  }
  return {"", {}, worlds_.size()};
}

Violation Explorer::explore() {
  worlds_.push_back(&index_of_.try_emplace(World(), 0).first->first);
  first_edge_.push_back(0);
  for (current_ = 0; current_ < worlds_.size(); ++current_) {
    const World& world = *worlds_[current_];
    if (const char* broken = look_for_broken(world))
      return {broken, run_to(current_), worlds_.size()};
    for (size_t h = 0; h < kHosts; ++h) steps_of(world, h);
  }
  if (has_wrong_claims_) return {"an epoch needs a claim that should not, or none", {}, 0};
  for (size_t host = 0; host <= kHosts; ++host)
    if (Violation finding = find_stuck(host); !finding.broken.empty()) return finding;
  return {"", {}, worlds_.size()};
}

}  // namespace

TEST_CASE("of two hosts whose file locks do not meet one has the volume, in every run") {
  const auto finding = Explorer(Without::kNothing).explore();
  MESSAGE(finding.worlds, " worlds");
  CHECK_MESSAGE(finding.broken.empty(), text_of(finding));
}

TEST_CASE("without any one of the rules between hosts there is a run that breaks what it is for") {
  struct Variant {
    Without without;
    const char* name;
    const char* breaks;
  };
  const Variant variants[] = {
      {Without::kClaim, "there are no claims", "S1"},
      {Without::kSecondLook, "who has claimed does not look again", "S1"},
      {Without::kKeptClaim, "a claim goes before the record follows", "S1"},
      {Without::kForeignRecord, "another host's record is taken over", "S1"},
      {Without::kForeignClaim, "another host's claim is passed over", "S1"},
      {Without::kPassingOver, "one's own claim is not passed over", "L1"},
      {Without::kClaimOfBreak, "an operator's break makes no claim", "S1"},
      {Without::kSureOperator, "the operator has not made sure", "S1"},
  };
  for (const Variant& variant : variants) {
    const auto finding = Explorer(variant.without).explore();
    MESSAGE(std::string(variant.name), ", ", finding.worlds, " worlds: ", text_of(finding));
    CHECK_MESSAGE(finding.broken.starts_with(variant.breaks), std::string(variant.name), ": ",
                  text_of(finding));
  }
}

}  // namespace tplstore::lock_hosts_test
