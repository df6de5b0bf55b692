// A volume is handed from the VM that has it to one that stands by, as a live migration needs it.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <array>
#include <atomic>
#include <future>
#include <random>
#include <thread>

#include "base/units.h"
#include "store_testing.h"
#include "temporary_directory.h"

namespace tplstore::hand_over_test {
namespace {

constexpr std::chrono::seconds kArmed{60};

struct Fixture : StoreFixture {
  std::unique_ptr<Disk> source = open("source");
  std::unique_ptr<Disk> destination;

  Fixture() { source->write(0, filled(kBlockBytes, 1), false); }

  std::unique_ptr<Disk> open(const std::string& token) {
    return store->open_export("vm1;writer=" + token, {"127.0.0.1:1", 0, 0});
  }
  void arm_and_stand_by() {
    store->hand_over("vm1", "destination", kArmed);
    destination = open("destination");
  }
  std::future<void> write_later(Disk& disk, int value) {
    return std::async(std::launch::async,
                      [&disk, value] { disk.write(0, filled(kBlockBytes, value), false); });
  }
  int code_of(Disk& disk) {
    return error_code([&] { disk.write(0, filled(kBlockBytes, 9), false); });
  }
  // The destination has the volume, and the source never again.
  void check_moved() {
    CHECK(code_of(*source) == ESHUTDOWN);
    CHECK(error_code([&] { bytes_at(*source, 0); }) == ESHUTDOWN);
    CHECK(error_code([&] { source->flush(); }) == ESHUTDOWN);
    destination->write(kBlockBytes, filled(kBlockBytes, 3), true);
    CHECK(store->show_lock("vm1").writer->token == "destination");
    source.reset();
    destination->write(kBlockBytes, filled(kBlockBytes, 4), true);
    CHECK(error_code([&] { open("source"); }) == EBUSY);
    destination.reset();
    CHECK(error_code([&] { open("source"); }) == EBUSY);
    CHECK(bytes_at(*open("third"), kBlockBytes) == filled(kBlockBytes, 4));
  }
};

void wait_a_moment(const std::future<void>& change) {
  // Most likely it would have been answered by then; if not this shows nothing.
  CHECK(change.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
}

}  // namespace

TEST_CASE_FIXTURE(Fixture,
                  "a volume moves at the standby's first change, once its source has flushed") {
  CHECK(error_code([&] { open("destination"); }) == EBUSY);
  arm_and_stand_by();
  LockInfo lock = store->show_lock("vm1");
  CHECK(lock.state == LockInfo::State::kHandOver);
  REQUIRE(lock.hand_over);
  CHECK(lock.hand_over->to == "destination");
  CHECK(lock.hand_over->has_standby);
  // It reads what the source goes on writing.
  source->write(0, filled(kBlockBytes, 2), false);
  CHECK(bytes_at(*destination, 0) == filled(kBlockBytes, 2));
  CHECK(error_code([&] { open("third"); }) == EBUSY);
  source->flush();
  destination->write(0, filled(kBlockBytes, 3), false);
  CHECK(bytes_at(*destination, 0) == filled(kBlockBytes, 3));
  lock = store->show_lock("vm1");
  CHECK(lock.state == LockInfo::State::kHeld);
  CHECK(lock.epoch == 2);
  CHECK_FALSE(lock.hand_over);
  REQUIRE(lock.losers.size() == 1);
  check_moved();
}

TEST_CASE_FIXTURE(Fixture, "a volume moves without a flush when its source has been quiet") {
  arm_and_stand_by();
  const auto begun = std::chrono::steady_clock::now();
  destination->write(0, filled(kBlockBytes, 2), false);
  CHECK(std::chrono::steady_clock::now() - begun >= kLockQuiet);
  check_moved();
}

TEST_CASE_FIXTURE(Fixture, "a standby that came in time gets the volume after that time too") {
  store->hand_over("vm1", "destination", std::chrono::seconds(2));
  destination = open("destination");
  const int64_t until_ns = store->show_lock("vm1").hand_over->until_ns;
  while (now_unix_ns() < until_ns) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const LockInfo lock = store->show_lock("vm1");
  CHECK(lock.state == LockInfo::State::kHandOver);
  REQUIRE(lock.hand_over);
  CHECK(lock.hand_over->has_standby);
  // The source has not flushed, so this waits until it has been quiet.
  destination->write(0, filled(kBlockBytes, 2), false);
  check_moved();
}

TEST_CASE_FIXTURE(Fixture, "a volume moves when its source leaves") {
  arm_and_stand_by();
  SUBCASE("while a change waits") {
    auto change = write_later(*destination, 2);
    source.reset();
    change.get();
  }
  SUBCASE("before there is one") {
    source.reset();
    CHECK(error_code([&] { open("source"); }) == EBUSY);
    destination->write(0, filled(kBlockBytes, 2), false);
  }
  CHECK(store->show_lock("vm1").writer->token == "destination");
  CHECK(bytes_at(*destination, 0) == filled(kBlockBytes, 2));
  destination.reset();
  CHECK(error_code([&] { open("source"); }) == EBUSY);
}

TEST_CASE_FIXTURE(Fixture,
                  "a source that goes on keeps its volume, and the standby never gets it") {
  arm_and_stand_by();
  auto change = write_later(*destination, 2);
  wait_a_moment(change);
  SUBCASE("writing") { source->write(kBlockBytes, filled(kBlockBytes, 3), false); }
  SUBCASE("zeroing") { source->zero(kBlockBytes, kBlockBytes, false); }
  CHECK(error_code([&] { change.get(); }) == ESHUTDOWN);
  CHECK(error_code([&] { bytes_at(*destination, 0); }) == ESHUTDOWN);
  CHECK(bytes_at(*source, 0) == filled(kBlockBytes, 1));
  source->write(0, filled(kBlockBytes, 4), true);
  destination.reset();
  CHECK(error_code([&] { store->hand_over("vm1", "destination", kArmed); }) == EINVAL);
  source.reset();
  CHECK(error_code([&] { open("destination"); }) == EBUSY);
  CHECK(bytes_at(*open("third"), 0) == filled(kBlockBytes, 4));
}

TEST_CASE_FIXTURE(Fixture, "a hand-over that is off leaves the volume with its source") {
  arm_and_stand_by();
  SUBCASE("because it was cancelled") {
    auto change = write_later(*destination, 2);
    wait_a_moment(change);
    CHECK_FALSE(store->cancel_hand_over("vm1").hand_over);
    CHECK(error_code([&] { change.get(); }) == ESHUTDOWN);
  }
  SUBCASE("because the standby has left") { destination.reset(); }
  SUBCASE("because the lock was broken") {
    const LockInfo lock = store->break_lock("vm1", 1);
    CHECK(lock.state == LockInfo::State::kHandOver);
    CHECK(code_of(*destination) == ESHUTDOWN);
    CHECK(code_of(*source) == ESHUTDOWN);
    return;
  }
  source->write(0, filled(kBlockBytes, 5), true);
  CHECK(error_code([&] { open("destination"); }) == EBUSY);
  CHECK(error_code([&] { store->cancel_hand_over("vm1"); }) == EINVAL);
  CHECK(bytes_at(*source, 0) == filled(kBlockBytes, 5));
}

TEST_CASE_FIXTURE(Fixture, "what cannot be handed over is refused") {
  CHECK(error_code([&] { store->hand_over("vm1", "source", kArmed); }) == EINVAL);
  CHECK(error_code([&] { store->hand_over("vm1", "no/token", kArmed); }) == EINVAL);
  CHECK(error_code([&] { store->hand_over("vm1", "", kArmed); }) == EINVAL);
  CHECK(error_code([&] { store->hand_over("none", "destination", kArmed); }) == ENOENT);
  arm_and_stand_by();
  CHECK(error_code([&] { store->hand_over("vm1", "third", kArmed); }) == EBUSY);
  CHECK(error_code([&] { open("destination"); }) == EBUSY);
  destination.reset();
  source.reset();
  CHECK(error_code([&] { store->hand_over("vm1", "destination", kArmed); }) == EINVAL);
  auto third = open("third");
  third->write(0, filled(kBlockBytes, 2), false);
  CHECK(error_code([&] { store->hand_over("vm1", "source", kArmed); }) == EINVAL);
}

TEST_CASE_FIXTURE(Fixture, "an armed hand-over keeps others out when the source has gone") {
  store->hand_over("vm1", "destination", kArmed);
  source.reset();
  const LockInfo lock = store->show_lock("vm1");
  CHECK(lock.state == LockInfo::State::kHandOver);
  CHECK_FALSE(lock.writer);
  REQUIRE(lock.hand_over);
  CHECK(lock.hand_over->to == "destination");
  CHECK(error_code([&] { open("third"); }) == EBUSY);
  CHECK(error_code([&] { store->remove_volume("vm1"); }) == EBUSY);
  SUBCASE("the destination comes") {
    destination = open("destination");
    destination->write(0, filled(kBlockBytes, 2), true);
  }
  SUBCASE("the source comes back") {
    source = open("source");
    source->write(0, filled(kBlockBytes, 2), true);
  }
  SUBCASE("it is cancelled") {
    CHECK(store->cancel_hand_over("vm1").state == LockInfo::State::kFree);
    open("third")->write(0, filled(kBlockBytes, 2), true);
  }
}

TEST_CASE_FIXTURE(Fixture, "a volume does not move while a change of its source is on its way") {
  arm_and_stand_by();
  source->flush();
  Stall stall(*backend, "data.1");
  auto last = write_later(*source, 2);
  stall.await();
  source->flush();
  auto change = write_later(*destination, 3);
  wait_a_moment(change);
  stall.end();
  last.get();
  change.get();
  CHECK(bytes_at(*destination, 0) == filled(kBlockBytes, 3));
  check_moved();
}

TEST_CASE_FIXTURE(Fixture, "a source changes nothing while the record of its end is written") {
  arm_and_stand_by();
  source->flush();
  std::future<void> late;
  backend->on_write = [&](const std::string& name) {
    if (!name.ends_with("/header") || late.valid()) return;
    late = write_later(*source, 2);
    // Something else comes and goes meanwhile.
    CHECK(store->stats().volumes.size() == 1);
    wait_a_moment(late);
  };
  destination->write(0, filled(kBlockBytes, 3), false);
  backend->on_write = nullptr;
  REQUIRE(late.valid());
  CHECK(error_code([&] { late.get(); }) == ESHUTDOWN);
  CHECK(bytes_at(*destination, 0) == filled(kBlockBytes, 3));
  check_moved();
}

TEST_CASE_FIXTURE(Fixture, "a record that cannot be written moves nothing") {
  arm_and_stand_by();
  source->flush();
  bool has_failed = false;
  backend->on_write = [&](const std::string& name) {
    if (name.ends_with("/header") && !std::exchange(has_failed, true)) fail(EIO, name, "test");
  };
  CHECK(code_of(*destination) == EIO);
  source->write(0, filled(kBlockBytes, 2), true);
  backend->on_write = nullptr;
  CHECK(store->show_lock("vm1").writer->token == "source");
}

TEST_CASE_FIXTURE(Fixture,
                  "a hand-over that cannot be recorded takes nothing from the one who runs") {
  memory->fail_next_sync(header_name(volume_folder(store->show_volume("vm1").uuid)), EIO);
  CHECK(error_code([&] { store->hand_over("vm1", "destination", kArmed); }) == EIO);
  CHECK_FALSE(store->show_lock("vm1").hand_over);
  source->write(0, filled(kBlockBytes, 2), true);
  CHECK(error_code([&] { open("destination"); }) == EBUSY);
  CHECK(error_code([&] { open("third"); }) == EBUSY);
  CHECK(bytes_at(*source, 0) == filled(kBlockBytes, 2));
  // Its end cannot be recorded either, so it is as after a crash.
  source.reset();
  CHECK(error_code([&] { open("third"); }) == EBUSY);
  CHECK(bytes_at(*open("source"), 0) == filled(kBlockBytes, 2));
}

TEST_CASE_FIXTURE(Fixture, "a source is remembered, however many have stood by in vain") {
  for (int i = 0; i < 10; ++i) {
    const std::string token = fmt::format("in-vain-{}", i);
    store->hand_over("vm1", token, kArmed);
    destination = open(token);
    destination.reset();
    source->write(0, filled(kBlockBytes, 1), true);
  }
  arm_and_stand_by();
  destination->write(0, filled(kBlockBytes, 2), true);
  check_moved();
}

TEST_CASE_FIXTURE(Fixture, "what is on its way when the volume is handed on does not land later") {
  Stall stall(*backend, "data.1");
  auto late = write_later(*source, 2);
  stall.await();
  store->break_lock("vm1", 1);
  // It waits until the write has ended, in vain, and goes.
  auto next = std::async(std::launch::async, [this] { return error_code([&] { open("next"); }); });
  while (store->show_lock("vm1").writer->token != "next") std::this_thread::yield();
  arm_and_stand_by();
  auto change = write_later(*destination, 3);
  CHECK(next.get() == EBUSY);
  CHECK(store->show_lock("vm1").writer->token == "destination");
  wait_a_moment(change);
  stall.end();
  late.get();
  change.get();
  CHECK(bytes_at(*destination, 0) == filled(kBlockBytes, 3));
}

// Half a minute each; TPLSTORE_OPERATIONS=2 runs them. A guest's migration waits for the first one,
// in tests/e2e/a-guest-moves-while-it-runs.sh.
TEST_CASE_FIXTURE(Fixture, "no change waits for longer than it may, whatever hangs") {
  if (test_operations(0) < 2) return;
  Stall stall(*backend, "data.1", 3 * kLockChangeWait);
  auto late = write_later(*source, 2);
  stall.await();
  const auto waits_in_vain = [this](Disk& disk) {
    const auto begun = std::chrono::steady_clock::now();
    CHECK(code_of(disk) == ESHUTDOWN);
    const auto waited = std::chrono::steady_clock::now() - begun;
    CHECK(waited >= kLockChangeWait);
    CHECK(waited < kLockChangeWait + std::chrono::seconds(5));
  };
  SUBCASE("the last change of a source, which keeps its volume") {
    arm_and_stand_by();
    waits_in_vain(*destination);
    stall.end();
    late.get();
    CHECK(bytes_at(*source, 0) == filled(kBlockBytes, 2));
    source->write(0, filled(kBlockBytes, 3), true);
    CHECK(code_of(*destination) == ESHUTDOWN);
  }
  SUBCASE("a change of one that has lost the volume, behind which it was handed on") {
    store->break_lock("vm1", 1);
    auto next =
        std::async(std::launch::async, [this] { return error_code([&] { open("next"); }); });
    while (store->show_lock("vm1").writer->token != "next") std::this_thread::yield();
    arm_and_stand_by();
    CHECK(next.get() == EBUSY);
    waits_in_vain(*destination);
    stall.end();
    late.get();
    destination->write(0, filled(kBlockBytes, 3), true);
    CHECK(bytes_at(*destination, 0) == filled(kBlockBytes, 3));
  }
}

TEST_CASE_FIXTURE(Fixture, "a hand-over survives its server") {
  arm_and_stand_by();
  source->flush();
  std::unique_ptr<MemoryBackend> after = memory->clone();
  source.reset();
  destination.reset();
  store.reset();
  Store next(std::make_unique<ForwardingBackend>(*after), {});
  const auto come = [&](const std::string& token) {
    return next.open_export("vm1;writer=" + token, {"127.0.0.1:1", 0, 0});
  };
  CHECK(error_code([&] { come("third"); }) == EBUSY);
  std::unique_ptr<Disk> first;
  std::unique_ptr<Disk> second;
  SUBCASE("the source comes first") {
    first = come("source");
    second = come("destination");
  }
  SUBCASE("the destination comes first") {
    second = come("destination");
    CHECK(bytes_at(*second, 0) == filled(kBlockBytes, 1));
    CHECK(error_code([&] { come("third"); }) == EBUSY);
    first = come("source");
  }
  if (first) first->write(0, filled(kBlockBytes, 2), true);
  second->write(kBlockBytes, filled(kBlockBytes, 3), true);
  CHECK(bytes_at(*second, 0) == filled(kBlockBytes, 2));
  CHECK(code_of(*first) == ESHUTDOWN);
}

TEST_CASE_FIXTURE(Fixture,
                  "nothing that was acknowledged is lost in a hand-over, and nothing comes late") {
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  constexpr uint64_t kBlocks = 4;
  std::unique_ptr<Disk> from = std::move(source);
  for (int round = 0; round < 20; ++round) {
    const std::string token = fmt::format("vm-{}", round);
    store->hand_over("vm1", token, kArmed);
    auto to = open(token);
    // Each writes numbers that rise to a block of its own, and remembers what was acknowledged.
    std::array<uint64_t, kBlocks> acknowledged{};
    std::atomic<bool> ends{false};
    std::vector<std::thread> threads;
    for (uint64_t block = 0; block < kBlocks; ++block)
      threads.emplace_back([&, block] {
        ByteVector bytes(kBlockBytes);
        for (uint64_t number = 1; !ends; ++number) {
          std::memcpy(bytes.data(), &number, sizeof number);
          try {
            from->write(block * kBlockBytes, bytes, false);
          } catch (const Error&) {
            break;
          }
          acknowledged[block] = number;
        }
      });
    const bool stops_first = random() % 2 == 0;
    std::this_thread::yield();
    if (stops_first) {
      ends = true;
      for (std::thread& thread : threads) thread.join();
      from->flush();
    }
    const int code =
        error_code([&] { to->write(kBlocks * kBlockBytes, filled(kBlockBytes, 1), false); });
    Disk& winner = code == 0 ? *to : *from;
    if (stops_first) CHECK(code == 0);
    std::array<ByteVector, kBlocks> seen;
    if (code == 0)
      for (uint64_t block = 0; block < kBlocks; ++block)
        seen[block] = bytes_at(winner, block * kBlockBytes);
    ends = true;
    if (!stops_first)
      for (std::thread& thread : threads) thread.join();
    for (uint64_t block = 0; block < kBlocks; ++block) {
      uint64_t number = 0;
      const ByteVector bytes = bytes_at(winner, block * kBlockBytes);
      std::memcpy(&number, bytes.data(), sizeof number);
      CHECK(number >= acknowledged[block]);
      if (code == 0) CHECK(bytes == seen[block]);
    }
    CHECK(code_of(code == 0 ? *from : *to) == ESHUTDOWN);
    if (code == 0) from = std::move(to);
    from->write(0, ByteVector(kBlockBytes * kBlocks), true);
  }
}

TEST_CASE_FIXTURE(Fixture, "when nobody can tell what is recorded neither of the two goes on") {
  arm_and_stand_by();
  source->flush();
  std::future<void> change;
  backend->around = [&](ForwardingBackend::Call call, const std::string& name,
                        const std::function<void()>& go_on) {
    if (call != ForwardingBackend::Call::kSync || !name.ends_with("/header")) return go_on();
    // What the source begins now waits for the record.
    backend->around = nullptr;
    change = write_later(*source, 2);
    wait_a_moment(change);
    memory->fail_next_sync(name, EIO);
    go_on();
  };
  CHECK(error_code([&] { destination->write(0, filled(kBlockBytes, 3), false); }) == EIO);
  REQUIRE(change.valid());
  CHECK(error_code([&] { change.get(); }) == EIO);
  for (Disk* disk : {source.get(), destination.get()}) {
    CHECK(code_of(*disk) == EIO);
    CHECK(error_code([&] { bytes_at(*disk, 0); }) == EIO);
    CHECK(error_code([&] { disk->flush(); }) == EIO);
  }
  source.reset();
  destination.reset();
  CHECK(bytes_at(*open("source"), 0) == filled(kBlockBytes, 1));
}

TEST_CASE_FIXTURE(Fixture, "a volume is handed over on a full disk") {
  source->write(kBlockBytes, filled(kBlockBytes, 1), true);
  memory->set_capacity_bytes(0);
  arm_and_stand_by();
  CHECK(error_code([&] { source->write(3 * kRegionBytes, filled(kBlockBytes, 2), false); }) ==
        ENOSPC);
  source->flush();
  SUBCASE("by a change that finds its place") {
    destination->write(0, filled(kBlockBytes, 2), true);
  }
  SUBCASE("by one that finds none, and is refused for that alone") {
    CHECK(error_code([&] {
            destination->write(3 * kRegionBytes, filled(kBlockBytes, 2), false);
          }) == ENOSPC);
    destination->write(0, filled(kBlockBytes, 2), true);
  }
  SUBCASE("by its source's leaving") {
    source.reset();
    destination->write(0, filled(kBlockBytes, 2), true);
  }
  CHECK(store->show_lock("vm1").writer->token == "destination");
  if (source) CHECK(code_of(*source) == ESHUTDOWN);
  destination.reset();
  source.reset();
  CHECK(error_code([&] { open("source"); }) == EBUSY);
  CHECK(bytes_at(*open("third"), 0) == filled(kBlockBytes, 2));
}

TEST_CASE("a fork moves while it is flattened, and neither is held up by the other") {
  StoreFixture f;
  const Peer anywhere{"127.0.0.1:1", 0, 0};
  {
    const auto disk = f.store->open_export("vm1", test_peer());
    for (uint64_t region = 0; region < 4; ++region)
      disk->write(region * kRegionBytes, filled(kBlockBytes, 1), true);
  }
  f.store->create_version("vm1", {});
  f.store->fork_volume("fork", "vm1", "1", 0);
  std::unique_ptr<Disk> source = f.store->open_export("fork;writer=source", anywhere);
  source->write(kBlockBytes, filled(kBlockBytes, 2), true);
  f.store->hand_over("fork", "destination", kArmed);
  std::unique_ptr<Disk> destination = f.store->open_export("fork;writer=destination", anywhere);
  bool is_first = true;
  bool is_cancelled = false;
  const auto during = [&](const std::function<void()>& action) {
    f.store->flatten_volume("fork", [&](uint64_t) {
      if (std::exchange(is_first, false)) action();
    });
    CHECK_FALSE(is_first);
  };
  const auto write = [&] { destination->write(2 * kBlockBytes, filled(kBlockBytes, 3), false); };
  SUBCASE("it moves meanwhile") { during(write); }
  SUBCASE("it moves as its source leaves") {
    during([&] {
      source.reset();
      write();
    });
  }
  SUBCASE("it moves after that") {
    during([] {});
    write();
  }
  SUBCASE("the source goes on") {
    is_cancelled = true;
    auto change = std::async(std::launch::async, write);
    during([&] {
      wait_a_moment(change);
      source->write(2 * kBlockBytes, filled(kBlockBytes, 3), true);
    });
    CHECK(error_code([&] { change.get(); }) == ESHUTDOWN);
  }
  Disk& winner = is_cancelled ? *source : *destination;
  const auto loser = is_cancelled ? destination.get() : source.get();
  if (loser != nullptr)
    CHECK(error_code([&] { loser->write(0, filled(kBlockBytes, 9), false); }) == ESHUTDOWN);
  CHECK(f.store->show_lock("fork").writer->token == (is_cancelled ? "source" : "destination"));
  // Nothing of it is the parent's any more.
  f.store->remove_volume("vm1");
  for (uint64_t region = 0; region < 4; ++region)
    CHECK(bytes_at(winner, region * kRegionBytes) == filled(kBlockBytes, 1));
  CHECK(bytes_at(winner, kBlockBytes) == filled(kBlockBytes, 2));
  CHECK(bytes_at(winner, 2 * kBlockBytes) == filled(kBlockBytes, 3));
}

TEST_CASE("with io=direct a volume moves behind the last write of its source") {
  const TemporaryDirectory temporary;
  const std::string location = temporary.path() + "/store";
  Store::init(location);
  const auto store = Store::open(location, {.io = IoMode::kDirect});
  store->create_volume("vm1", kDiskBytes, "");
  const Peer anywhere{"127.0.0.1:1", 0, 0};
  constexpr uint64_t kBytes = 64 * kBlockBytes;
  std::unique_ptr<Disk> source = store->open_export("vm1;writer=0", anywhere);
  source->write(0, filled(kBytes, 0), true);
  std::atomic<int> last{0};
  for (int round = 1; round <= 8; ++round) {
    store->hand_over("vm1", fmt::format("{}", round), kArmed);
    auto destination = store->open_export(fmt::format("vm1;writer={}", round), anywhere);
    // Unaligned, again and again, until it has lost the volume or stops by itself.
    std::atomic<bool> ends{false};
    std::atomic<bool> has_begun{false};
    std::thread vm([&] {
      for (int value = last % 250 + 1; !ends; value = value % 250 + 1) {
        if (error_code([&] { source->write(512, filled(kBytes - 1024, value), false); }) != 0)
          return;
        last = value;
        has_begun = true;
      }
      source->flush();
    });
    while (!has_begun) std::this_thread::yield();
    auto change = std::async(std::launch::async, [&] {
      return error_code([&] { destination->write(0, filled(512, 255), false); });
    });
    if (round % 2 == 0) {
      // Both run: the source stays.
      CHECK(change.get() == ESHUTDOWN);
      ends = true;
      vm.join();
      CHECK(bytes_at(*source, 512, kBytes - 1024) == filled(kBytes - 1024, last));
      continue;
    }
    ends = true;
    vm.join();
    const bool has_moved = change.get() == 0;
    Disk& winner = has_moved ? *destination : *source;
    CHECK(bytes_at(winner, 512, kBytes - 1024) == filled(kBytes - 1024, last));
    Disk& loser = has_moved ? *source : *destination;
    CHECK(error_code([&] { loser.write(0, filled(512, 9), false); }) == ESHUTDOWN);
    if (has_moved) source = std::move(destination);
  }
}

}  // namespace tplstore::hand_over_test
