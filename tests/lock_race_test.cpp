// Eight processes race for one volume, in a real directory.
//
// Each claims it as a VM that is new or that had it before, finds out whether it is alone, looks
// for what was flushed last, writes and flushes, and leaves; or is killed, by itself at any call to
// the storage, or by its parent at any moment. Others look at the volume or make versions of it
// meanwhile. Never are two in, never does one write that others have written since, and somebody
// gets in again in no more time than the rules need.
//
// A few hundred winners by default; TPLSTORE_OPERATIONS=10000 is the long run, TPLSTORE_SEED
// repeats the choices of one, though not the order in which processes run.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include "backend/open_backend.h"
#include "store_testing.h"

namespace tplstore::lock_race_test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kProcesses = 8;
constexpr uint64_t kRaceDiskBytes = 1 << 20;
// Nobody waits for a process that has gone, and for one that is alive no more than it takes to be
// done; so much is for a busy machine.
constexpr std::chrono::seconds kStuck{20};
// A VM is remembered for sure until so many others have had the volume since; one that has changed
// nothing until so many have.
constexpr uint64_t kRemembered = 6;
constexpr uint64_t kLookerRemembered = 2;
constexpr size_t kHistory = 64;

// What the processes share.
struct Shared {
  std::atomic<int64_t> inside{0};  // the process that has the volume, or that was killed with it
  std::atomic<uint64_t> wins{0};
  std::atomic<uint64_t> kills{0};
  std::atomic<uint64_t> changes{0};  // wins of another process than the one before
  std::atomic<uint64_t> returns{0};  // wins of VMs that had it before
  std::atomic<uint64_t> losers{0};   // that were refused for what others have written
  std::atomic<int64_t> winner{0};
  std::atomic<bool> has_written[kHistory]{};  // by number of the win
  // What block 0 holds: what is known to be there, and what has begun to be written.
  std::atomic<uint64_t> flushed{0};
  std::atomic<uint64_t> begun{0};
  std::atomic<bool> is_over{false};
  std::atomic<bool> is_broken{false};
  char how[512]{};

  void breaks(const std::string& what) {
    if (is_broken.exchange(true)) return;
    std::strncpy(how, what.c_str(), sizeof how - 1);
  }
  bool goes_on() const { return !is_over && !is_broken; }
};

// A VM that had the volume.
struct Former {
  std::string token;
  uint64_t win = 0;
  uint64_t kills = 0;
};

class Racer {
 public:
  Racer(Shared& shared, const std::string& location, uint64_t seed)
      : shared_(shared),
        random_(seed),
        directory_(open_backend(location, {})),
        peer_{"a racer", getpid(), process_start_time(getpid())} {
    auto between = std::make_unique<ForwardingBackend>(*directory_);
    between->around = [this](ForwardingBackend::Call, const std::string&,
                             const std::function<void()>& go_on) {
      if (calls_left_ == 0) die();
      --calls_left_;
      go_on();
    };
    store_ = std::make_unique<Store>(std::move(between), StoreOptions{});
  }

  void run() {
    while (shared_.goes_on()) {
      calls_left_ = random_.chance(10) ? random_.below(120) : UINT64_MAX;
      try {
        if (random_.chance(16)) {
          look();
        } else if (random_.chance(16)) {
          store_->create_version("vm", {});
        } else {
          race();
        }
      } catch (const Error& error) {
        const std::string what = error.what();
        if (error.code() != EBUSY) shared_.breaks(what);
        if (what.find("others have changed it") != std::string::npos) {
          ++shared_.losers;
          former_.reset();
        }
      }
      // Else who has just left comes first again.
      std::this_thread::sleep_for(std::chrono::microseconds(random_.below(20000)));
    }
  }

 private:
  [[noreturn]] void die() {
    ++shared_.kills;
    kill(getpid(), SIGKILL);
    while (true) pause();
  }

  void look() {
    const LockInfo info = store_->show_lock("vm");
    if (info.size_bytes != kRaceDiskBytes) shared_.breaks("the header shows another size");
  }

  void race() {
    const bool returns = former_ && random_.chance(2);
    Former vm;
    vm.token = returns ? former_->token : fmt::format("{}.{}", getpid(), ++tokens_);
    const auto disk = store_->open_export("vm;writer=" + vm.token, peer_);
    const int64_t before = shared_.inside.exchange(getpid());
    if (before != 0 && process_start_time(before) != 0)
      shared_.breaks(fmt::format("{} has the volume, and {} gets it", before, getpid()));
    vm.win = ++shared_.wins;
    vm.kills = shared_.kills;
    shared_.has_written[vm.win % kHistory] = false;
    if (shared_.winner.exchange(getpid()) != getpid()) ++shared_.changes;
    if (returns) check_return(vm);
    use(*disk, vm);
    former_ = vm;
    if (shared_.inside.exchange(0) != getpid()) shared_.breaks("somebody else came in meanwhile");
  }

  // What others that are remembered have written since must have kept this one out.
  void check_return(const Former& vm) {
    ++shared_.returns;
    const uint64_t since = vm.win - former_->win - 1 + (vm.kills - former_->kills);
    const bool has_written = shared_.has_written[former_->win % kHistory];
    if (since > (has_written ? kRemembered : kLookerRemembered)) return;
    for (uint64_t win = former_->win + 1; win < vm.win; ++win)
      if (shared_.has_written[win % kHistory])
        shared_.breaks(fmt::format("{} comes back after another one has written", vm.token));
  }

  void use(Disk& disk, const Former& vm) {
    uint64_t value = 0;
    const auto bytes = std::as_writable_bytes(std::span<uint64_t, 1>(&value, 1));
    disk.read(0, bytes);
    if (value != shared_.flushed && value != shared_.begun)
      shared_.breaks(fmt::format("{} is there, not {} nor {}", value, shared_.flushed.load(),
                                 shared_.begun.load()));
    shared_.begun = value;
    shared_.flushed = value;
    if (random_.chance(4)) return;
    shared_.has_written[vm.win % kHistory] = true;
    shared_.begun = vm.win;
    disk.write(0, filled_with(vm.win), false);
    disk.write(kBlockBytes * (1 + random_.below(100)), filled_with(vm.win), false);
    disk.flush();
    shared_.flushed = vm.win;
  }

  static ByteVector filled_with(uint64_t value) {
    ByteVector bytes(kBlockBytes);
    for (size_t i = 0; i < bytes.size(); i += sizeof value)
      std::memcpy(bytes.data() + i, &value, sizeof value);
    return bytes;
  }

  Shared& shared_;
  Random random_;
  const std::unique_ptr<Backend> directory_;
  const Peer peer_;
  std::unique_ptr<Store> store_;
  uint64_t calls_left_ = UINT64_MAX;
  uint64_t tokens_ = 0;
  std::optional<Former> former_;
};

class Race {
 public:
  Race(uint64_t seed, uint64_t wins) : random_(seed), wins_(wins) {
    void* memory =
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    shared_ = new (memory) Shared;
    in_child([this] {
      Store::init(location());
      Store::open(location(), {})->create_volume("vm", kRaceDiskBytes, "");
    });
  }
  ~Race() { munmap(shared_, sizeof(Shared)); }

  Shared& run() {
    for (pid_t& racer : racers_) racer = start();
    auto last = Clock::now();
    uint64_t seen = 0;
    while (shared_->wins < wins_ && !shared_->is_broken) {
      await_ends(WNOHANG);
      const auto now = Clock::now();
      if (shared_->wins != seen) {
        gap_max_ = std::max(gap_max_, now - last);
        seen = shared_->wins;
        last = now;
      } else if (now - last > kStuck) {
        shared_->breaks("nobody gets the volume any more");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(random_.below(5000)));
      if (!random_.chance(20)) continue;
      ++shared_->kills;
      kill(racers_[random_.below(kProcesses)], SIGKILL);
    }
    shared_->is_over = true;
    while (await_ends(0)) {
    }
    return *shared_;
  }
  std::string location() const { return directory_.path() + "/store"; }
  std::chrono::milliseconds gap_max() const {
    return std::chrono::duration_cast<std::chrono::milliseconds>(gap_max_);
  }

 private:
  template <typename Work>
  pid_t in_child(Work work, bool waits = true) {
    const pid_t parent = getpid();
    const pid_t child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      try {
        work();
      } catch (const std::exception& error) {
        shared_->breaks(error.what());
      }
      _exit(0);
    }
    REQUIRE(child > 0);
    if (waits) waitpid(child, nullptr, 0);
    return child;
  }
  pid_t start() {
    const uint64_t seed = random_.below(UINT64_MAX);
    return in_child([this, seed] { Racer(*shared_, location(), seed).run(); }, false);
  }
  // Starts another one for one that was killed. False when none is left.
  bool await_ends(int options) {
    while (true) {
      int status = 0;
      const pid_t ended = waitpid(-1, &status, options);
      if (ended <= 0) return ended == 0;
      pid_t& racer = *std::ranges::find(racers_, ended);
      if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) shared_->breaks("a racer crashed");
      if (shared_->goes_on()) racer = start();
    }
  }

  const TemporaryDirectory directory_;
  Random random_;
  const uint64_t wins_;
  Shared* shared_;
  std::array<pid_t, kProcesses> racers_{};
  Clock::duration gap_max_{0};
};

}  // namespace

TEST_CASE("of processes that race for a volume one has it at a time, and somebody always gets it") {
  Race race(test_seed(), test_operations(kIsSanitized ? 60 : 200));
  const Shared& shared = race.run();
  MESSAGE(shared.wins.load(), " wins, ", shared.changes.load(),
          " of them of another process than before, ", shared.returns.load(),
          " of VMs that came back; ", shared.losers.load(), " losers refused; ",
          shared.kills.load(), " kills; at most ", race.gap_max().count(), " ms between two wins");
  CHECK_MESSAGE(!shared.is_broken, std::string(shared.how));
  CHECK(shared.changes > shared.wins / 4);
  CHECK(shared.kills > 0);
  // What is left is sound.
  const auto store = Store::open(race.location(), {});
  uint64_t value = 0;
  store->open_export("vm", new_peer())
      ->read(0, std::as_writable_bytes(std::span<uint64_t, 1>(&value, 1)));
  CHECK((value == shared.flushed || value == shared.begun));
}

}  // namespace tplstore::lock_race_test
