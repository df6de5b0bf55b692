// VMs lose their connections while the storage stalls, and come back.
//
// Each VM has a volume and writes blocks whose values only rise. It gives a connection up with
// writes in flight, which the server goes on with, connects again under its token, and finds of
// each block what it wrote last or one of the writes that it gave up; from then on nothing of
// before may land any more, and what was flushed stays, at the end through a power cut too. Writes
// and syncs stall at random.
//
// A few hundred reconnects by default; TPLSTORE_OPERATIONS=1000 is the long run. The seed is
// printed; it does not fix the order of threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <future>
#include <thread>

#include "store_testing.h"

namespace tplstore::reconnect_test {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kVms = 12;
constexpr uint64_t kBlocks = 24;
constexpr uint64_t kGivenUpMax = 6;
// No request stalls for longer than that, so nobody may be refused for it.
constexpr milliseconds kShortStall{60};
// Longer than a connection has to be idle before it is replaced.
constexpr milliseconds kLongStall = kLockIdle + milliseconds(700);

// Of the next write to data of this thread: how long it takes, else that is a matter of chance; and
// who waits until it is under way.
thread_local milliseconds stall_of_thread{0};
thread_local std::promise<void>* begins = nullptr;

struct Server {
  explicit Server(uint64_t seed) : random_(seed) {
    auto between = std::make_unique<ForwardingBackend>(*memory);
    between->around = [this](ForwardingBackend::Call call, const std::string& name,
                             const std::function<void()>& go_on) {
      const bool is_write = call == ForwardingBackend::Call::kWrite;
      if (is_write || call == ForwardingBackend::Call::kSync)
        std::this_thread::sleep_for(stall(is_write && name.find("/data.") != std::string::npos));
      go_on();
    };
    store = std::make_unique<Store>(std::move(between), StoreOptions{});
  }

  std::unique_ptr<MemoryBackend> memory = memory_store();
  std::unique_ptr<Store> store;

 private:
  milliseconds stall(bool is_data) {
    if (is_data && begins != nullptr) std::exchange(begins, nullptr)->set_value();
    if (is_data && stall_of_thread.count() > 0) return std::exchange(stall_of_thread, {});
    const std::lock_guard guard(mutex_);
    return random_.chance(12) ? milliseconds(random_.below(kShortStall.count())) : milliseconds(0);
  }

  std::mutex mutex_;
  Random random_;
};

class Vm {
 public:
  enum class Kind { kOne, kMulti };

  Vm(Server& server, size_t number, Kind kind, uint64_t seed)
      : server_(server), name_(fmt::format("vm{}", number)), kind_(kind), random_(seed) {
    server_.store->create_volume(name_, kBlocks * kBlockBytes, "");
    disk_ = connect();
  }
  ~Vm() {
    for (auto& one : given_up_) one.get();
  }

  void live(uint64_t reconnects) {
    for (uint64_t i = 0; i < reconnects && is_good_; ++i) {
      work();
      give_up();
      disk_ = connect();
      find();
    }
    work();
    disk_->flush();
  }

  // Its connection stays where the network lost it, with a write that takes long.
  void is_cut_off() {
    std::shared_ptr<Disk> old = disk_;
    const uint64_t value = ++last_value_;
    may_be_[0].push_back(value);
    std::atomic<bool> has_ended{false};
    auto late = begin([&] {
      stall_of_thread = kLongStall;
      old->write(0, content(value), false);
      has_ended = true;
    });
    disk_ = connect();
    check(has_ended, "it is let in while its own write is in flight");
    late.get();
    check(error_code([&] { old->write(0, content(1), false); }) == ESHUTDOWN,
          "what was replaced writes");
    find();
  }

  // What a power cut leaves.
  void check_after(Store& store) {
    const auto disk = store.open_export(export_name(), peer());
    for (uint64_t block = 0; block < kBlocks; ++block)
      check(read(*disk, block) == values_[block], "what was flushed is gone after a power cut");
  }

  bool is_good() const { return is_good_; }
  const std::string& what() const { return what_; }

 private:
  static Peer peer() { return {"127.0.0.1:1", 0, 0}; }
  std::string export_name() const {
    return fmt::format("{};writer=T{}", name_, kind_ == Kind::kMulti ? ";multi" : "");
  }
  std::shared_ptr<Disk> connect() {
    try {
      return server_.store->open_export(export_name(), peer());
    } catch (const Error& error) {
      check(false, error.what());
      throw;
    }
  }

  static ByteVector content(uint64_t value) {
    ByteVector bytes(kBlockBytes);
    for (size_t i = 0; i < bytes.size(); i += sizeof value)
      std::memcpy(bytes.data() + i, &value, sizeof value);
    return bytes;
  }
  // A block that is not all of one value reads as one that was never written.
  static uint64_t read(Disk& disk, uint64_t block) {
    const ByteVector bytes = bytes_at(disk, block * kBlockBytes);
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), sizeof value);
    return bytes == content(value) ? value : UINT64_MAX;
  }
  void check(bool is_true, const std::string& what) {
    if (is_true || !is_good_) return;
    is_good_ = false;
    what_ = fmt::format("{}: {}", name_, what);
  }

  void work() {
    for (uint64_t count = 1 + random_.below(6); count > 0; --count) {
      const uint64_t block = random_.below(kBlocks);
      values_[block] = ++last_value_;
      disk_->write(block * kBlockBytes, content(values_[block]), random_.chance(6));
    }
    if (random_.chance(2)) disk_->flush();
    if (random_.chance(8)) server_.store->create_version(name_, {});
    compare();
  }
  void compare() {
    for (uint64_t block = 0; block < kBlocks; ++block) {
      const uint64_t value = read(*disk_, block);
      check(value == values_[block],
            fmt::format("block {} is {} instead of {}", block, value, values_[block]));
    }
  }

  // Returns when the write that it makes is under way.
  template <typename Write>
  static std::future<void> begin(Write write) {
    std::promise<void> promise;
    auto written = std::async(std::launch::async, [&promise, write] {
      begins = &promise;
      write();
    });
    promise.get_future().wait();
    return written;
  }

  // The server goes on with what was asked for, and then finds that the client has gone.
  void give_up() {
    std::vector<std::future<void>> writes;
    for (uint64_t count = 1 + random_.below(kGivenUpMax); count > 0; --count) {
      const uint64_t block = random_.below(kBlocks);
      const uint64_t value = ++last_value_;
      may_be_[block].push_back(value);
      writes.push_back(begin([disk = disk_.get(), block, value] {
        disk->write(block * kBlockBytes, content(value), false);
      }));
    }
    given_up_.push_back(std::async(std::launch::async, [disk = std::exchange(disk_, nullptr),
                                                        writes = std::move(writes)]() mutable {
      // A write that came when another connection had replaced this one is refused.
      for (auto& write : writes) error_code([&] { write.get(); });
      disk.reset();
    }));
  }

  // After which nothing may land any more.
  void find() {
    for (uint64_t block = 0; block < kBlocks; ++block) {
      std::vector<uint64_t> allowed = std::exchange(may_be_[block], {});
      allowed.push_back(values_[block]);
      values_[block] = read(*disk_, block);
      check(std::ranges::count(allowed, values_[block]) > 0,
            fmt::format("block {} is {} after a reconnect", block, values_[block]));
    }
  }

  Server& server_;
  const std::string name_;
  const Kind kind_;
  Random random_;
  std::shared_ptr<Disk> disk_;
  std::vector<std::future<void>> given_up_;
  uint64_t last_value_ = 0;
  std::array<uint64_t, kBlocks> values_{};
  std::array<std::vector<uint64_t>, kBlocks> may_be_;
  bool is_good_ = true;
  std::string what_;
};

}  // namespace

TEST_CASE("what a VM has flushed stays when its connections are cut while the storage stalls") {
  const uint64_t seed = test_seed();
  Server server(seed);
  const uint64_t each = (test_operations(kIsSanitized ? 120 : 360) + kVms - 1) / kVms;
  std::vector<std::unique_ptr<Vm>> vms;
  for (size_t i = 0; i < kVms; ++i)
    vms.push_back(
        std::make_unique<Vm>(server, i, i % 2 == 0 ? Vm::Kind::kOne : Vm::Kind::kMulti, seed + i));
  // Two that are of no other process' making are cut off for good.
  std::vector<std::unique_ptr<Vm>> cut_off;
  for (size_t i = 0; i < 2; ++i)
    cut_off.push_back(std::make_unique<Vm>(server, kVms + i, Vm::Kind::kOne, seed + kVms + i));
  std::vector<std::future<void>> lives;
  for (const auto& vm : vms)
    lives.push_back(std::async(std::launch::async, [&vm = *vm, each] { vm.live(each); }));
  for (const auto& vm : cut_off)
    lives.push_back(std::async(std::launch::async, [&vm = *vm] {
      vm.is_cut_off();
      vm.live(1);
    }));
  for (auto& life : lives) CHECK_NOTHROW(life.get());
  for (auto& vm : cut_off) vms.push_back(std::move(vm));
  for (const auto& vm : vms) CHECK_MESSAGE(vm->is_good(), vm->what());
  MESSAGE((each * kVms), " reconnects");

  const auto after =
      server.memory->crash(server.memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, seed);
  Store next(std::make_unique<ForwardingBackend>(*after), StoreOptions{});
  for (const auto& vm : vms) {
    vm->check_after(next);
    CHECK_MESSAGE(vm->is_good(), vm->what());
  }
}

}  // namespace tplstore::reconnect_test
