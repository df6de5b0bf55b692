// What a crash, or a failing disk, may do to the lock of a volume.
//
// Scripts of claims, releases, breaks and hand-overs are recorded, each step acknowledged before
// the next begins. After a crash behind any write and sync the header is, whole, the one of the
// last step that was acknowledged or the one of the step that was under way; whom each of them lets
// in is written down here, by hand. Who gets in may crash too, at each of its own writes. And what
// a step could not write has not happened, as far as this life of the server goes, which decides
// nothing any more.
#include <algorithm>
#include <cerrno>
#include <functional>

#include "base/names.h"
#include "base/units.h"
#include "store_testing.h"
#include "volume/creation.h"

namespace tplstore::lock_crash_test {
namespace {

using Crash = MemoryBackend::Crash;
constexpr Crash kCrashes[] = {Crash::kKill, Crash::kLoseUnsynced, Crash::kRandom};
constexpr uint64_t kRandomCrashes = 6;  // of each place
constexpr std::chrono::hours kLong{1};

// A VM with a name of one letter, of which nobody can tell whether it lives.
Peer vm_of(char name) {
  Peer peer{fmt::format("VM {}", name), 0, 0};
  peer.token = std::string(1, name);
  return peer;
}
VmId id_of(char name) { return vm_id(vm_of(name)); }

// What follows from a header when nothing more is known: who gets the volume at once, and who else
// when the VM that is connected, as far as the header says, has not come back in time.
struct Verdict {
  std::string at_once;
  std::string late;
};

// One life of a server after the other.
class World {
 public:
  World(Backend& backend, const Uuid& uuid) : backend_(backend), uuid_(uuid) {}

  void claim(char vm, std::chrono::milliseconds grace) {
    Claim claim(vm_of(vm));
    claim.is_connection = true;
    claim.grace = grace;
    lock_ = WriterLock::acquire(backend_, folder(), uuid_, "vm", claim, [](const std::string&) {});
    owner_ = lock_->state().owner.ticket;
  }
  void put_back() {
    lock_->put_back();
    lock_.reset();
  }
  void leave(bool has_written, bool stays_open = false) {
    lock_->apply(LockLeave{owner_, stays_open, has_written, false});
    owner_ = lock_->state().owner.ticket;
  }
  void close() {
    lock_->apply(LockLeave{});
    lock_.reset();
  }
  void crash() { lock_.reset(); }
  void break_open() { apply(LockBreak{lock_->header().epoch, true}); }
  void break_unowned() {
    const uint64_t epoch = read_header(backend_, folder(), uuid_).epoch;
    const LockStep broken =
        WriterLock::change_record(backend_, folder(), uuid_, "vm", LockBreak{epoch, false}, {});
    CHECK(broken.answer == LockAnswer::kYes);
  }
  void resize() { lock_->resize(disk_size(lock_->header()) + kBlockBytes); }
  void arm(char vm) {
    // In each world the same.
    static const int64_t until_ns = now_unix_ns() + std::chrono::nanoseconds(kLong).count();
    apply(LockArm{id_of(vm), id_of(vm), until_ns}, vm_of(vm));
  }
  void cancel() { apply(LockCancel{}); }
  void stand_by(char vm) {
    Claim claim(vm_of(vm));
    claim.is_connection = true;
    const LockStep in = lock_->apply(connect_event(claim, {}), vm_of(vm));
    CHECK(in.answer == LockAnswer::kYes);
    CHECK(in.state.standby.ticket == in.ticket);
  }
  void change_of_standby(bool source_has_changed) {
    LockChange change;
    change.owner.has_flushed = true;
    change.owner.has_changed = source_has_changed;
    const LockAnswer answer = lock_->apply(change).answer;
    CHECK(answer == (source_has_changed ? LockAnswer::kLoser : LockAnswer::kYes));
  }

  void apply(const LockEvent& event, const Peer& peer = {}) {
    const LockAnswer answer = lock_->apply(event, peer).answer;
    CHECK(answer == LockAnswer::kYes);
  }

  WriterLock* lock() const { return lock_.get(); }
  std::string folder() const { return volume_folder(uuid_); }

 private:
  Backend& backend_;
  const Uuid uuid_;
  std::unique_ptr<WriterLock> lock_;
  uint64_t owner_ = 0;
};

struct Step {
  const char* what;
  std::function<void(World&)> act;
  Verdict then;
  bool decides = true;  // by the rules, whatever it writes
};
using Script = std::vector<Step>;

const Script& owners() {
  static const Script script{
      {"", [](World&) {}, {"abcdex", ""}},
      {"a claims", [](World& w) { w.claim('a', kLong); }, {"a", "bcdex"}},
      {"a leaves", [](World& w) { w.leave(true); }, {"abcdex", ""}},
      {"a's server ends", [](World& w) { w.crash(); }, {"abcdex", ""}},
      {"b claims", [](World& w) { w.claim('b', kLong); }, {"b", "cdex"}},
      {"b's opening fails", [](World& w) { w.put_back(); }, {"abcdex", ""}, false},
      {"b claims again", [](World& w) { w.claim('b', kLong); }, {"b", "cdex"}},
      {"b leaves and has written nothing", [](World& w) { w.leave(false); }, {"abcdex", ""}},
      {"b's server ends", [](World& w) { w.crash(); }, {"abcdex", ""}},
      {"b claims a third time", [](World& w) { w.claim('b', kLong); }, {"b", "cdex"}},
      {"b leaves while the server works", [](World& w) { w.leave(true, true); }, {"bcdex", ""}},
      {"the server closes", [](World& w) { w.close(); }, {"bcdex", ""}},
      {"c claims", [](World& w) { w.claim('c', kLong); }, {"c", "dex"}},
      {"the volume grows", [](World& w) { w.resize(); }, {"c", "dex"}},
      {"c is put out", [](World& w) { w.break_open(); }, {"dex", ""}},
      {"the server closes", [](World& w) { w.close(); }, {"dex", ""}},
      {"d claims", [](World& w) { w.claim('d', kLong); }, {"d", "ex"}},
      {"d's server dies", [](World& w) { w.crash(); }, {"d", "ex"}},
      {"e takes over", [](World& w) { w.claim('e', {}); }, {"e", "x"}},
      {"e leaves and has written nothing", [](World& w) { w.leave(false); }, {"dex", ""}},
      {"e's server ends", [](World& w) { w.crash(); }, {"dex", ""}},
      {"d claims again", [](World& w) { w.claim('d', kLong); }, {"d", "x"}},
      {"d's server dies again", [](World& w) { w.crash(); }, {"d", "x"}},
      {"d's record is broken", [](World& w) { w.break_unowned(); }, {"x", ""}},
  };
  return script;
}

const Script& hand_overs() {
  static const Script script{
      {"", [](World&) {}, {"pqrstx", ""}},
      {"p claims", [](World& w) { w.claim('p', kLong); }, {"p", "qrstx"}},
      // Whom it will be handed to may stand by at once.
      {"armed for q", [](World& w) { w.arm('q'); }, {"pq", ""}},
      {"q stands by", [](World& w) { w.stand_by('q'); }, {"pq", ""}},
      {"q changes", [](World& w) { w.change_of_standby(false); }, {"q", "rstx"}},
      {"p goes", [](World& w) { w.leave(true); }, {"q", "rstx"}},
      {"q's server dies", [](World& w) { w.crash(); }, {"q", "rstx"}},
      {"q comes back", [](World& w) { w.claim('q', kLong); }, {"q", "rstx"}},
      {"armed for r", [](World& w) { w.arm('r'); }, {"qr", ""}},
      {"cancelled", [](World& w) { w.cancel(); }, {"q", "rstx"}},
      {"armed for r again", [](World& w) { w.arm('r'); }, {"qr", ""}},
      {"r stands by", [](World& w) { w.stand_by('r'); }, {"qr", ""}},
      {"cancelled under r", [](World& w) { w.cancel(); }, {"q", "stx"}},
      {"armed for s", [](World& w) { w.arm('s'); }, {"qs", ""}},
      {"s stands by", [](World& w) { w.stand_by('s'); }, {"qs", ""}},
      {"q wins", [](World& w) { w.change_of_standby(true); }, {"q", "tx"}},
      {"armed for t", [](World& w) { w.arm('t'); }, {"qt", ""}},
      {"t stands by", [](World& w) { w.stand_by('t'); }, {"qt", ""}},
      {"q leaves", [](World& w) { w.leave(true); }, {"t", "x"}},
      {"t leaves and has written nothing", [](World& w) { w.leave(false); }, {"qtx", ""}},
  };
  return script;
}

// All but how often it was written.
VolumeHeader essence(VolumeHeader header) {
  header.prefix = {};
  return header;
}
bool same(const VolumeHeader& a, const VolumeHeader& b) {
  return std::ranges::equal(bytes_of(a), bytes_of(b));
}

// What the header was after each step of a script.
class Recorded {
 public:
  explicit Recorded(const Script& script) : script_(script) {
    backend_ = memory_store();
    create_volume(*backend_, uuid_, 1 << 20, nullptr);
    backend_->set_recording(false);
    first_ = backend_->clone();
    backend_->set_recording(true);
    World world(*backend_, uuid_);
    for (const Step& step : script) {
      INFO(std::string(step.what));
      step.act(world);
      states_.push_back({backend_->event_count(), header(*backend_)});
    }
  }

  const MemoryBackend& backend() const { return *backend_; }
  const Uuid& uuid() const { return uuid_; }
  const Script& script() const { return script_; }
  VolumeHeader header(Backend& backend) const {
    return essence(read_header(backend, volume_folder(uuid_), uuid_));
  }
  const VolumeHeader& header_after(size_t step) const { return states_[step].header; }
  // The last step that was acknowledged when so much had happened.
  size_t step_at(uint64_t events) const {
    size_t last = 0;
    while (last + 1 < states_.size() && states_[last + 1].events <= events) ++last;
    return last;
  }
  // Which of these two steps the header is of.
  size_t step_of(const VolumeHeader& found, size_t sure) const {
    const size_t next = std::min(sure + 1, states_.size() - 1);
    if (same(found, states_[sure].header)) return sure;
    const bool is_next = same(found, states_[next].header);
    REQUIRE_MESSAGE(is_next, "epoch ", found.epoch, ", taken ", found.is_taken, ", owner ",
                    get_text(found.peer), ": neither of '", std::string(script_[sure].what),
                    "' nor of '", std::string(script_[next].what), "'");
    return next;
  }
  // The same volume before the script, and after its first `steps`.
  std::unique_ptr<MemoryBackend> fresh() const { return first_->clone(); }
  void play(World& world, size_t steps) const {
    for (size_t i = 0; i < steps; ++i) script_[i].act(world);
  }

 private:
  struct State {
    uint64_t events;
    VolumeHeader header;
  };

  const Script& script_;
  const Uuid uuid_ = random_uuid();
  std::unique_ptr<MemoryBackend> backend_;
  std::unique_ptr<MemoryBackend> first_;
  std::vector<State> states_;
};

std::string names_in(const Script& script) {
  std::string names;
  for (const Step& step : script)
    for (const char name : step.then.at_once + step.then.late)
      if (names.find(name) == std::string::npos) names += name;
  return names;
}

// Those who get the volume, each in a world of its own.
std::string let_in(const Recorded& recorded, const MemoryBackend& after,
                   std::chrono::milliseconds grace) {
  std::string names;
  for (const char name : names_in(recorded.script())) {
    const auto own = after.clone();
    World world(*own, recorded.uuid());
    try {
      world.claim(name, grace);
      names += name;
    } catch (const Error& error) {
      INFO(error.what());
      REQUIRE(error.code() == EBUSY);
    }
  }
  std::ranges::sort(names);
  return names;
}

void check_verdict(const Recorded& recorded, const MemoryBackend& after, const Verdict& wanted) {
  std::string late = wanted.at_once + wanted.late;
  std::string at_once = wanted.at_once;
  std::ranges::sort(late);
  std::ranges::sort(at_once);
  REQUIRE(let_in(recorded, after, kLong) == at_once);
  REQUIRE(let_in(recorded, after, {}) == late);
}

// One who gets in may be cut short too: then the header is what it was, or that one's.
void check_second_crash(const Recorded& recorded, MemoryBackend& after, char name, size_t sure,
                        Random& random) {
  World world(after, recorded.uuid());
  world.claim(name, {});
  const VolumeHeader claimed = recorded.header(after);
  for (CrashWalker walker(after);; walker.advance()) {
    for (const Crash kind : kCrashes) {
      for (uint64_t i = 0; i < (kind == Crash::kRandom ? kRandomCrashes : 1); ++i) {
        const auto again = walker.crash(kind, random.below(UINT64_MAX));
        INFO("second crash " << static_cast<int>(kind) << " of " << name << " behind event "
                             << walker.event_count());
        const VolumeHeader found = recorded.header(*again);
        const bool is_claimed = same(found, claimed);
        if (walker.is_at_end()) REQUIRE(is_claimed);
        if (!is_claimed) recorded.step_of(found, sure);
      }
    }
    if (walker.is_at_end()) break;
  }
}

// In which way a write or a sync of the header fails.
enum class Fault {
  kNotDone,  // nothing has happened
  kDone,     // all has happened
  kLost,     // of a sync: what was written is seen, and not durable, as with Linux
};

// Fails the `nth` of the writes and syncs of headers, from 0 on.
class HeaderFault {
 public:
  HeaderFault(MemoryBackend& memory, ForwardingBackend& between, uint64_t nth, Fault fault) {
    between.around = [this, &memory, nth, fault](ForwardingBackend::Call call,
                                                 const std::string& name,
                                                 const std::function<void()>& go_on) {
      using Call = ForwardingBackend::Call;
      const bool counts =
          name.ends_with("/header") && (call == Call::kWrite || call == Call::kSync);
      if (!counts || count_++ != nth) return go_on();
      has_struck_ = true;
      if (fault == Fault::kDone) go_on();
      if (fault == Fault::kLost && call == Call::kSync) {
        is_lost_ = true;
        memory.fail_next_sync(name, EIO);
        go_on();
      }
      fail(EIO, name, "the test's disk fails");
    };
  }
  bool has_struck() const { return has_struck_; }
  bool is_lost() const { return is_lost_; }

 private:
  uint64_t count_ = 0;
  bool has_struck_ = false;
  bool is_lost_ = false;
};

}  // namespace

TEST_CASE("a crash of a lock leaves a header of before or after, and who may have the volume") {
  Random random(test_seed());
  for (const Script* script : {&owners(), &hand_overs()}) {
    const Recorded recorded(*script);
    uint64_t states = 0;
    for (CrashWalker walker(recorded.backend());; walker.advance()) {
      const uint64_t events = walker.event_count();
      const size_t sure = recorded.step_at(events);
      for (const Crash kind : kCrashes) {
        for (uint64_t i = 0; i < (kind == Crash::kRandom ? kRandomCrashes : 1); ++i) {
          if (kIsSanitized && !random.chance(6)) continue;
          INFO("crash " << static_cast<int>(kind) << " behind event " << events << " after '"
                        << std::string((*script)[sure].what) << "'");
          const auto after = walker.crash(kind, random.below(UINT64_MAX));
          const size_t is = recorded.step_of(recorded.header(*after), sure);
          const Verdict& wanted = (*script)[is].then;
          check_verdict(recorded, *after, wanted);
          const std::string late = wanted.at_once + wanted.late;
          check_second_crash(recorded, *after, late[random.below(late.size())], sure, random);
          ++states;
        }
      }
      if (walker.is_at_end()) break;
    }
    MESSAGE(states << " states");
    CHECK(states > 50);
  }
}

TEST_CASE("what could not be written has not happened, or nothing is decided any more") {
  Random random(test_seed());
  uint64_t failures = 0;
  for (const Script* script : {&owners(), &hand_overs()}) {
    const Recorded recorded(*script);
    for (size_t i = 1; i < script->size(); ++i) {
      for (const Fault fault : {Fault::kNotDone, Fault::kDone, Fault::kLost}) {
        for (uint64_t nth = 0;; ++nth) {
          INFO("'" << std::string((*script)[i].what) << "', call " << nth << ", fault "
                   << static_cast<int>(fault));
          const auto memory = recorded.fresh();
          memory->set_recording(true);
          ForwardingBackend between(*memory);
          World world(between, recorded.uuid());
          recorded.play(world, i);
          const VolumeHeader before = recorded.header(*memory);
          const LockState state = world.lock() ? world.lock()->state() : LockState{};
          HeaderFault header_fault(*memory, between, nth, fault);
          bool has_stopped = false;
          if (world.lock()) world.lock()->when_failed([&] { has_stopped = true; });
          const int code = error_code([&] { (*script)[i].act(world); });
          if (!header_fault.has_struck()) {
            CHECK(code == 0);
            break;
          }
          between.around = nullptr;
          REQUIRE(code == EIO);
          ++failures;
          const LockRecord next = record_of(recorded.header_after(i));
          const bool decides = (*script)[i].decides && record_of(before) != next;
          // By both the owner goes on.
          const bool is_owner_sure = next.epoch == state.record.epoch &&
                                     next.is_taken == state.record.is_taken &&
                                     state.standby.ticket == 0;
          if (world.lock()) {
            CHECK(world.lock()->state() == state);
            CHECK(same(essence(world.lock()->header()), before));
            if (decides) CHECK(has_stopped == (header_fault.is_lost() && !is_owner_sure));
            if (has_stopped) CHECK(error_code([&] { world.leave(true); }) == EIO);
          }
          for (const Crash kind : kCrashes) {
            const auto after = memory->crash(memory->event_count(), kind, random.below(UINT64_MAX));
            // Whoever comes looks at what is durable.
            settle(*after->open(world.folder() + "/header", Access::kWrite, Purpose::kMetadata));
            const VolumeHeader found = recorded.header(*after);
            const bool is_before = same(found, before);
            if (decides && !header_fault.is_lost()) REQUIRE(is_before);
            REQUIRE(record_of(found) == (is_before ? record_of(before) : next));
            check_verdict(recorded, *after, (*script)[is_before ? i - 1 : i].then);
          }
          if (!decides || header_fault.is_lost()) continue;
          (*script)[i].act(world);
          REQUIRE(record_of(recorded.header(*memory)) == next);
        }
      }
    }
  }
  CHECK(failures > 200);
}

TEST_CASE("a volume is not served on when nobody can tell whose it is after a crash") {
  const auto memory = memory_store();
  const Uuid uuid = random_uuid();
  create_volume(*memory, uuid, 1 << 20, nullptr);
  Claim source(vm_of('p'));
  source.is_connection = true;
  const auto volume = Volume::open_for_writing(environment_on(*memory), uuid, "vm", source);
  volume->write(0, filled(kBlockBytes, 1), true);
  WriterLock& lock = volume->writer_lock();
  lock.apply(LockArm{id_of('q'), id_of('q'), INT64_MAX}, vm_of('q'));
  Claim destination(vm_of('q'));
  destination.is_connection = true;
  lock.apply(connect_event(destination, {}), vm_of('q'));
  memory->fail_next_sync(header_name(volume_folder(uuid)), EIO);
  LockChange change;
  change.owner.has_flushed = true;
  CHECK(error_code([&] { lock.apply(change); }) == EIO);
  CHECK(volume->has_failed());
  ByteVector bytes(kBlockBytes);
  CHECK(error_code([&] { volume->write(0, filled(kBlockBytes, 2), false); }) == EIO);
  CHECK(error_code([&] { volume->trim(0, kBlockBytes, false); }) == EIO);
  CHECK(error_code([&] { volume->read(0, 0, bytes); }) == EIO);
  CHECK(error_code([&] { volume->flush(); }) == EIO);
  volume->close();
  // It was not handed over, as it turns out.
  CHECK(get_text(read_header(*memory, volume_folder(uuid), uuid).peer) == "VM q");
  const auto again = Volume::open_for_writing(environment_on(*memory), uuid, "vm", source);
  again->read(0, 0, bytes);
  CHECK(bytes == filled(kBlockBytes, 1));
}

TEST_CASE("a connection that joins or replaces one of its VM writes nothing to the header") {
  const Recorded recorded(owners());
  const auto backend = recorded.fresh();
  World world(*backend, recorded.uuid());
  world.claim('a', kLong);
  backend->set_recording(true);
  Claim again(vm_of('a'));
  again.is_connection = true;
  LockConnect event = connect_event(again, {});
  event.owner.quiet = kLockIdle;
  event.found = world.lock()->state().owner.ticket;
  const LockStep replaced = world.lock()->apply(event, vm_of('a'));
  CHECK(replaced.answer == LockAnswer::kYes);
  CHECK(replaced.state.owner.connections == 1);
  CHECK(backend->event_count() == 0);
}

}  // namespace tplstore::lock_crash_test
