// Volumes: what the model test cannot bring about, each by itself.
#include "volume/volume.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <future>
#include <mutex>
#include <thread>

#include "forwarding_backend.h"
#include "temporary_directory.h"
#include "volume_testing.h"

namespace tplstore::volume_test {
namespace {

ByteVector filled(uint64_t length, int value) {
  return ByteVector(length, static_cast<std::byte>(value));
}

struct Fixture {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  ForwardingBackend backend{*memory};
  Uuid uuid = random_uuid();
  std::unique_ptr<Volume> volume;

  explicit Fixture(uint64_t size_bytes = kRegionBytes) {
    create_volume(backend, uuid, size_bytes, nullptr);
    volume = open_volume(backend, uuid);
  }
  ~Fixture() {
    if (volume) volume->close();
  }
};

}  // namespace

TEST_CASE("a split block that gets another source while its rest is read is read again") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  f.volume->versions().create({});
  // The next first write reads the rest of block 0 from version 1. Just then somebody else writes
  // another part of the block, and a version is made: the rest comes from version 2 now.
  unsigned times = 0;
  f.backend.on_read = [&](const std::string& name) {
    if (!name.ends_with("data.1") || times++ != 0) return;
    f.volume->write(0, filled(kSectorBytes, 2), false);
    f.volume->versions().create({});
  };
  f.volume->write(kSectorBytes, filled(kSectorBytes, 3), false);
  f.backend.on_read = nullptr;
  REQUIRE(times > 0);
  ByteVector expected = filled(kBlockBytes, 1);
  std::fill_n(expected.begin(), kSectorBytes, std::byte{2});
  std::fill_n(expected.begin() + kSectorBytes, kSectorBytes, std::byte{3});
  CHECK(read_bytes(*f.volume, 0, 0, kBlockBytes) == expected);
}

TEST_CASE(
    "a split block of current that is overwritten and frozen while its rest is read is read "
    "again") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  // A write of a part of block 0, which is current's, and of block 1, which is not.
  unsigned times = 0;
  const auto meanwhile = [&] {
    if (times++ != 0) return;
    f.volume->write(0, filled(kSectorBytes, 2), false);
    f.volume->versions().create({});
  };
  f.backend.on_read = [&](const std::string& name) {
    if (name.ends_with("data.1")) meanwhile();
  };
  f.volume->write(kSectorBytes, filled(kBlockBytes, 3), false);
  f.backend.on_read = nullptr;
  meanwhile();  // unless it was read
  ByteVector expected = filled(kBlockBytes, 3);
  std::fill_n(expected.begin(), kSectorBytes, std::byte{2});
  CHECK(read_bytes(*f.volume, 0, 0, kBlockBytes) == expected);
}

TEST_CASE("a first write is not kept waiting by overwrites beside it") {
  Fixture f;
  f.volume->write(0, filled(4 * kBlockBytes, 1), false);
  f.backend.on_write = [](const std::string&) { std::this_thread::yield(); };
  std::atomic<bool> is_done{false};
  std::atomic<bool> was_given_up{false};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread)
    threads.emplace_back([&, thread] {
      const ByteVector bytes = filled(kBlockBytes, thread);
      while (!is_done && !was_given_up) {
        f.volume->write(thread % 4 * kBlockBytes, bytes, false);
        if (std::chrono::steady_clock::now() >= deadline) was_given_up = true;
      }
    });
  for (uint64_t block = 4; block < 8; ++block)
    f.volume->write(block * kBlockBytes, filled(kBlockBytes, 9), false);
  is_done = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(!was_given_up);
}

TEST_CASE("changes of the header come one after the other") {
  Fixture f;
  f.volume->versions().create({"small", "", {}});
  f.volume->resize(2 * kRegionBytes);
  std::mutex mutex;
  std::condition_variable changed;
  bool is_overtaken = false;
  enum { kNone, kFirst, kOver } state = kNone;
  std::thread other;
  f.backend.on_write = [&](const std::string& name) {
    if (!name.ends_with("/header")) return;
    std::unique_lock guard(mutex);
    // The rollback is at it: somebody else comes.
    if (state == kNone) {
      state = kFirst;
      other = std::thread([&] { f.volume->resize(3 * kRegionBytes); });
      changed.wait_for(guard, std::chrono::milliseconds(200), [&] { return is_overtaken; });
      state = kOver;
    } else if (state == kFirst) {
      is_overtaken = true;
      changed.notify_all();
    }
  };
  f.volume->versions().rollback("small");
  other.join();
  f.backend.on_write = nullptr;
  CHECK(!is_overtaken);
  CHECK(read_header(f.backend, volume_folder(f.uuid), f.uuid).true_size_bytes == 3 * kRegionBytes);
}

TEST_CASE("a first write that is slow to read the rest of its block does not hold up a version") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  f.volume->versions().create({});
  std::promise<void> reads;
  std::promise<void> goes_on;
  std::thread writer;
  std::atomic<bool> is_first{true};
  f.backend.on_read = [&](const std::string& name) {
    if (!name.ends_with("data.1") || !is_first.exchange(false)) return;
    reads.set_value();
    goes_on.get_future().wait();
  };
  writer = std::thread([&] { f.volume->write(100, filled(50, 2), false); });
  reads.get_future().wait();
  const uint32_t number =
      f.volume->versions().create({}).number;  // would wait for ever if it waited
  goes_on.set_value();
  writer.join();
  CHECK(number == 2);
  f.backend.on_read = nullptr;
  ByteVector expected = filled(kBlockBytes, 1);
  std::fill_n(expected.begin() + 100, 50, std::byte{2});
  CHECK(read_bytes(*f.volume, 0, 0, kBlockBytes) == expected);
  CHECK(read_bytes(*f.volume, 2, 0, kBlockBytes) == filled(kBlockBytes, 1));
}

TEST_CASE("overwriting a block of the current version changes no metadata") {
  Fixture f;
  f.volume->write(0, filled(kRegionBytes, 1), true);
  const VolumeStats before = f.volume->stats();
  for (int i = 0; i < 100; ++i) f.volume->write(i * 1000, filled(3000, i), i % 10 == 0);
  f.volume->flush();
  const VolumeStats after = f.volume->stats();
  CHECK(after.map.log_bytes == before.map.log_bytes);
  CHECK(after[Counter::kFirstWrites] == before[Counter::kFirstWrites]);
}

TEST_CASE("trimming gives space back at once, and nothing older shows through") {
  Fixture f;
  f.volume->write(0, filled(64 * kBlockBytes, 1), true);
  f.volume->versions().create({"kept", "", {}});
  f.volume->write(0, filled(32 * kBlockBytes, 2), true);
  const uint64_t before = f.memory->allocated_bytes();
  f.volume->trim(0, 32 * kBlockBytes, true);
  CHECK(f.memory->allocated_bytes() <= before - 31 * kBlockBytes);
  CHECK(is_zero(read_bytes(*f.volume, 0, 0, 32 * kBlockBytes)));
  CHECK(read_bytes(*f.volume, 1, 0, 64 * kBlockBytes) == filled(64 * kBlockBytes, 1));
  // A part of a trimmed block that is written again has zeroes around it.
  f.volume->write(100, filled(10, 3), true);
  CHECK(is_zero(read_bytes(*f.volume, 0, 110, kBlockBytes)));
}

TEST_CASE("a full disk fails the write, keeps the old bytes, and lets trims make room") {
  Fixture f;
  f.volume->write(0, filled(16 * kBlockBytes, 1), true);
  f.volume->versions().create({});
  f.memory->set_capacity_bytes(f.memory->allocated_bytes() + 4 * kBlockBytes);
  int refused = 0;
  for (uint64_t block = 0; block < 16; ++block) {
    try {
      f.volume->write(block * kBlockBytes, filled(kBlockBytes, 2), true);
    } catch (const Error& error) {
      CHECK(error.code() == ENOSPC);
      CHECK(read_bytes(*f.volume, 0, block * kBlockBytes, kBlockBytes) == filled(kBlockBytes, 1));
      ++refused;
    }
  }
  CHECK(refused > 0);
  CHECK(refused < 16);
  f.volume->trim(0, 16 * kBlockBytes, true);
  f.volume->write(15 * kBlockBytes, filled(kBlockBytes, 4), true);
  CHECK(read_bytes(*f.volume, 0, 15 * kBlockBytes, kBlockBytes) == filled(kBlockBytes, 4));
  CHECK(read_bytes(*f.volume, 1, 0, 16 * kBlockBytes) == filled(16 * kBlockBytes, 1));
}

TEST_CASE("on a full disk a volume can be opened again and again, and be trimmed") {
  Fixture f(64 * kRegionBytes);
  uint64_t blocks = 0;
  f.volume->write(0, filled(64 * kBlockBytes, 1), true);
  f.memory->set_capacity_bytes(f.memory->allocated_bytes() + 40 * kBlockBytes);
  try {
    for (blocks = 64; blocks < 16384; blocks += 2)
      f.volume->write(blocks * kBlockBytes, filled(kBlockBytes, 2), blocks % 16 == 0);
  } catch (const Error& error) {
    CHECK(error.code() == ENOSPC);
  }
  REQUIRE(blocks < 16384);
  for (int i = 0; i < 40; ++i) {
    f.volume->close();
    f.volume = open_volume(f.backend, f.uuid);
    CHECK(read_bytes(*f.volume, 0, 0, 64 * kBlockBytes) == filled(64 * kBlockBytes, 1));
  }
  f.volume->trim(0, 64 * kBlockBytes, true);
  CHECK(is_zero(read_bytes(*f.volume, 0, 0, 64 * kBlockBytes)));
  f.volume->write(0, filled(kBlockBytes, 3), true);
}

TEST_CASE("after a failed sync writes and flushes fail until the volume is opened again") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), true);
  f.volume->write(0, filled(kBlockBytes, 2), false);
  f.memory->fail_next_sync(volume_folder(f.uuid) + "/data.1", EIO);
  CHECK_THROWS_AS(f.volume->flush(), Error);
  CHECK_THROWS_AS(f.volume->flush(), Error);
  CHECK_THROWS_AS(f.volume->write(0, filled(kBlockBytes, 3), false), Error);
  f.volume->close();
  f.volume = open_volume(f.backend, f.uuid);
  f.volume->write(0, filled(kBlockBytes, 3), true);
  CHECK(read_bytes(*f.volume, 0, 0, kBlockBytes) == filled(kBlockBytes, 3));
}

TEST_CASE("a reader follows the log into its next generation") {
  Fixture f;
  for (int i = 0; i < 50; ++i) f.volume->write(i * 2 * kBlockBytes, filled(kBlockBytes, i), false);
  f.volume->versions().create({});
  f.volume->checkpoint();
  const auto reader = Volume::open_for_reading(environment_on(f.backend), f.uuid, "vm");
  for (int i = 0; i < 3; ++i) f.volume->compact_log();
  for (int i = 0; i < 50; ++i)
    CHECK(read_bytes(*reader, 1, i * 2 * kBlockBytes, kBlockBytes) == filled(kBlockBytes, i));
}

TEST_CASE("sizes: growing, refusing to shrink, and rolling back to a smaller one") {
  Fixture f(kRegionBytes + kSectorBytes);
  f.volume->write(kRegionBytes, filled(kSectorBytes, 1), false);
  f.volume->versions().create({"small", "", {}});
  CHECK_THROWS_AS(f.volume->resize(kRegionBytes), Error);
  f.volume->resize(2 * kRegionBytes);
  f.volume->write(2 * kRegionBytes - 100, filled(100, 2), false);
  CHECK(is_zero(read_bytes(*f.volume, 0, kRegionBytes + kSectorBytes, kSectorBytes)));
  f.volume->versions().rollback("small");
  CHECK(f.volume->size_bytes() == kRegionBytes + kSectorBytes);
  f.volume->resize(2 * kRegionBytes);
  CHECK(
      is_zero(read_bytes(*f.volume, 0, kRegionBytes + kSectorBytes, kRegionBytes - kSectorBytes)));
  CHECK(f.volume->versions().find("2").size_bytes == 2 * kRegionBytes);
}

TEST_CASE("a version that wrote nothing has no data file") {
  Fixture f;
  f.volume->versions().create({});
  f.volume->versions().create({});
  f.volume->close();
  f.volume.reset();
  std::vector<std::string> files;
  for (const std::string& name : f.backend.list(volume_folder(f.uuid)))
    if (name.starts_with("data.")) files.push_back(name);
  CHECK(files == std::vector<std::string>{"data.3"});
  f.volume = open_volume(f.backend, f.uuid);
}

TEST_CASE("version names are unique and are not numbers") {
  Fixture f;
  f.volume->versions().create({"a", "", {}});
  CHECK_THROWS_AS(f.volume->versions().create({"a", "", {}}), Error);
  CHECK_THROWS_AS(f.volume->versions().create({"7", "", {}}), Error);
  CHECK_THROWS_AS(f.volume->versions().create({"../x", "", {}}), Error);
  CHECK(f.volume->versions().find("a").number == 1);
  CHECK_THROWS_AS(f.volume->versions().find("b"), Error);
  CHECK(f.volume->versions().list().size() == 2);
}

TEST_CASE("a hole is not forgotten before it is durable, whenever a checkpoint comes") {
  Fixture f;
  f.volume->write(0, filled(8 * kBlockBytes, 1), false);
  f.volume->versions().create({});
  f.volume->write(0, filled(4 * kBlockBytes, 2), false);
  f.volume->versions().create({});
  f.volume->write(4 * kBlockBytes, filled(2 * kBlockBytes, 3), false);
  f.volume->versions().create({});
  // Of one file, a hole that is made and a hole that is about to be.
  f.volume->versions().remove({"1"});
  f.volume->space().run();
  f.volume->versions().remove({"2"});
  size_t events = 0;
  f.backend.on_punch = [&](const std::string& name) {
    if (!name.ends_with("data.1") || events != 0) return;
    f.volume->checkpoint();
    events = f.memory->event_count();
  };
  f.volume->space().run();
  f.backend.on_punch = nullptr;
  REQUIRE(events > 0);
  f.volume->checkpoint();
  f.volume.reset();
  for (const size_t crash : {events, f.memory->event_count()}) {
    INFO((crash == events ? "before it is made" : "when it is durable"));
    const auto after = f.memory->crash(crash, MemoryBackend::Crash::kLoseUnsynced, 0);
    const auto volume = open_volume(*after, f.uuid);
    volume->space().run();
    check_no_leak(*after, f.uuid, kRegionBytes);
  }
}

TEST_CASE("a hole that is made while a checkpoint syncs others is listed by that checkpoint") {
  Fixture f;
  f.volume->write(0, filled(8 * kBlockBytes, 1), false);
  f.volume->versions().create({});
  f.volume->versions().remove({"1"});
  f.volume->space().run();
  // Of the removed version's file current has all; what it replaces becomes free at once.
  f.volume->write(0, filled(kBlockBytes, 2), false);
  f.volume->space().run();
  f.volume->write(4 * kBlockBytes, filled(kBlockBytes, 2), false);
  unsigned times = 0;
  f.backend.on_synced = [&](const std::string& name) {
    if (name.ends_with("data.1") && times++ == 0) f.volume->space().run();
  };
  f.volume->checkpoint();
  f.backend.on_synced = nullptr;
  REQUIRE(times > 0);
  f.volume.reset();
  const auto after =
      f.memory->crash(f.memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
  REQUIRE(allocated_cells(*after, f.uuid).contains({1, 4}));
  const auto volume = open_volume(*after, f.uuid);
  volume->space().run();
  check_no_leak(*after, f.uuid, kRegionBytes);
}

TEST_CASE("a write that lands while a flush syncs its file is not taken for synced") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), true);
  f.volume->write(0, filled(kBlockBytes, 2), false);
  unsigned times = 0;
  f.backend.on_synced = [&](const std::string& name) {
    if (name.ends_with("data.1") && times++ == 0) f.volume->write(0, filled(kBlockBytes, 3), false);
  };
  f.volume->flush();
  f.backend.on_synced = nullptr;
  REQUIRE(times > 0);
  f.volume->flush();
  f.volume.reset();
  const auto after =
      f.memory->crash(f.memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
  CHECK(read_bytes(*open_volume(*after, f.uuid), 0, 0, kBlockBytes) == filled(kBlockBytes, 3));
}

namespace {

// Returns when a thread of this process sleeps.
void wait_until_asleep(pid_t thread) {
  while (true) {
    std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
    std::string pid, name, state;
    file >> pid >> name >> state;
    if (!file || state == "S") return;  // it may have ended, too
    std::this_thread::yield();
  }
}

}  // namespace

TEST_CASE("a flush that comes while another one runs is not answered with that one") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  size_t events = 0;
  std::thread second;
  std::atomic<pid_t> id{0};
  f.backend.on_synced = [&](const std::string& name) {
    if (!name.ends_with("data.1") || second.joinable()) return;
    // The first flush has made its cut, and has synced this file.
    second = std::thread([&] {
      f.volume->write(kBlockBytes, filled(kBlockBytes, 2), false);
      id = gettid();
      f.volume->flush();
      events = f.memory->event_count();
    });
    while (id == 0) std::this_thread::yield();
    wait_until_asleep(id);
  };
  f.volume->flush();
  second.join();
  f.backend.on_synced = nullptr;
  f.volume.reset();
  const auto after = f.memory->crash(events, MemoryBackend::Crash::kLoseUnsynced, 0);
  const auto volume = open_volume(*after, f.uuid);
  CHECK(read_bytes(*volume, 0, kBlockBytes, kBlockBytes) == filled(kBlockBytes, 2));
}

namespace {

// The error of a request, or 0.
template <typename F>
int error_code(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code();
  }
  return 0;
}

}  // namespace

TEST_CASE("on a full disk trims that free nothing end, and deletions and openings go on") {
  Fixture f;
  constexpr unsigned kVersions = 16;
  f.volume->write(0, filled(kRegionBytes, 1), false);
  for (unsigned i = 0; i < kVersions; ++i) f.volume->versions().create({});
  f.memory->set_capacity_bytes(f.memory->allocated_bytes());
  int code = 0;
  for (uint64_t block = 0; block < kRegionBlocks && code == 0; ++block)
    code = error_code([&] { f.volume->trim(block * kBlockBytes, kBlockBytes, true); });
  CHECK(code == ENOSPC);
  // Removing these frees nothing, since the last version has all there is.
  for (unsigned version = 1; version < kVersions; ++version) {
    INFO("version " << version);
    CHECK(error_code([&] { f.volume->versions().remove({std::to_string(version)}); }) == 0);
    CHECK(error_code([&] { f.volume->space().run(); }) == 0);
    if (version % 8 != 0) continue;
    f.volume.reset();
    REQUIRE(error_code([&] { f.volume = open_volume(f.backend, f.uuid); }) == 0);
  }
  CHECK(f.volume->versions().list().size() == 2);
  f.memory->set_capacity_bytes(UINT64_MAX);
}

TEST_CASE("on a full disk trims that free cells go on") {
  Fixture f;
  f.volume->write(0, filled(kRegionBytes, 1), false);
  f.volume->versions().create({});
  SUBCASE("current's own") { f.volume->write(0, filled(kRegionBytes, 2), true); }
  SUBCASE("of a version that was removed") {
    f.volume->versions().remove({"1"});
    f.volume->space().run();
  }
  f.memory->set_capacity_bytes(f.memory->allocated_bytes());
  for (uint64_t block = 0; block < kRegionBlocks; ++block) {
    INFO("block " << block);
    REQUIRE(error_code([&] { f.volume->trim(block * kBlockBytes, kBlockBytes, true); }) == 0);
    f.volume->space().run();
  }
  f.memory->set_capacity_bytes(UINT64_MAX);
}

namespace {

// Fails the next call of a kind on the object, once.
void fail_next(ForwardingBackend& backend, ForwardingBackend::Call kind, const std::string& object,
               int code) {
  backend.around = [&backend, kind, object, code](ForwardingBackend::Call call,
                                                  const std::string& name,
                                                  const std::function<void()>& go_on) {
    if (call != kind || name != object) return go_on();
    backend.around = nullptr;
    fail_errno(code, object, "doing as the test says");
  };
}

}  // namespace

TEST_CASE("a version can be made after an attempt whose new file could not be made durable") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  fail_next(f.backend, ForwardingBackend::Call::kSyncFolder, volume_folder(f.uuid), EIO);
  CHECK_THROWS_AS(f.volume->versions().create({}), Error);
  CHECK(f.volume->versions().create({}).number == 1);
  f.volume->write(0, filled(kBlockBytes, 2), true);
  CHECK(read_bytes(*f.volume, 1, 0, kBlockBytes) == filled(kBlockBytes, 1));
  CHECK(read_bytes(*f.volume, 0, 0, kBlockBytes) == filled(kBlockBytes, 2));
}

TEST_CASE("a flush says it when a sync failed while space was given back") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), true);
  // A crash: what current's file has beyond the map is looked for in the background.
  f.volume.reset();
  f.volume = open_volume(f.backend, f.uuid);
  f.volume->write(0, filled(kBlockBytes, 2), false);
  fail_next(f.backend, ForwardingBackend::Call::kSync, DataFiles::name_of(volume_folder(f.uuid), 1),
            EIO);
  f.volume->maintain(false);
  CHECK_FALSE(f.backend.around);
  CHECK_THROWS_AS(f.volume->flush(), Error);
  CHECK_THROWS_AS(read_bytes(*f.volume, 0, 0, kBlockBytes), Error);
}

TEST_CASE("upkeep that fails says so once, and writes nothing until some time has passed") {
  Fixture f;
  f.volume.reset();
  std::vector<std::string> lines;
  VolumeEnvironment environment = environment_on(f.backend);
  environment.log = [&](const std::string& line) { lines.push_back(line); };
  f.volume = Volume::open_for_writing(environment, f.uuid, "vm", test_peer());
  const ByteVector block = filled(kBlockBytes, 1);
  for (int i = 0; i < 50'000; ++i) {
    f.volume->write(0, block, false);
    f.volume->trim(0, kBlockBytes, i % 1000 == 0);
  }
  f.volume->checkpoint();
  lines.clear();
  int attempts = 0;
  f.backend.around = [&](ForwardingBackend::Call call, const std::string& name,
                         const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kCreate && name.find("/map.") != std::string::npos)
      ++attempts;
    if (call == ForwardingBackend::Call::kCreate) fail_errno(ENOSPC, "the disk", "writing to it");
    go_on();
  };
  for (int i = 0; i < 20; ++i) f.volume->maintain(false);
  CHECK(attempts >= 1);
  CHECK(attempts < 5);
  // Of the compaction, and of the next version's file.
  CHECK(lines.size() == 2);
  f.backend.around = nullptr;
  f.volume->maintain(false);
  CHECK(lines.size() == 2);
}

TEST_CASE("space is given back with pauses as long as the guest writes, and there is room") {
  Fixture f;
  f.volume->write(0, filled(4 * kBlockBytes, 1), true);
  f.volume->versions().create({});
  f.volume->versions().remove({"1"});
  f.volume->maintain(false);
  // Each block that is replaced leaves a cell that nobody needs.
  std::vector<std::string> punched;
  f.backend.on_punch = [&](const std::string& name) { punched.push_back(name); };
  const auto replace = [&](uint64_t block) {
    f.volume->write(block * kBlockBytes, filled(kBlockBytes, 2), false);
    f.volume->maintain(false);
  };
  f.memory->set_capacity_bytes(uint64_t{1} << 40);
  replace(0);
  CHECK(punched.empty());
  f.volume->maintain(false);
  CHECK(punched.empty());
  SUBCASE("the guest rests") {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    f.volume->maintain(false);
    CHECK(punched.size() == 1);
  }
  SUBCASE("room is scarce") {
    f.memory->set_capacity_bytes(uint64_t{1} << 30);
    replace(1);
    CHECK(punched.size() >= 1);
  }
  f.backend.on_punch = nullptr;
}

TEST_CASE("a version is not made while a write is under way") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  std::thread other;
  std::atomic<pid_t> id{0};
  std::atomic<bool> is_made{false};
  bool was_made = false;
  f.backend.on_write = [&](const std::string& name) {
    if (!name.ends_with("data.1") || other.joinable()) return;
    other = std::thread([&] {
      id = gettid();
      f.volume->versions().create({});
      is_made = true;
    });
    while (id == 0) std::this_thread::yield();
    wait_until_asleep(id);
    was_made = is_made;
  };
  f.volume->write(0, filled(kBlockBytes, 2), false);
  other.join();
  f.backend.on_write = nullptr;
  CHECK_FALSE(was_made);
  CHECK(read_bytes(*f.volume, 1, 0, kBlockBytes) == filled(kBlockBytes, 2));
}

TEST_CASE("of two first writes to one block neither takes the other's bytes back") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  f.volume->versions().create({});
  std::thread other;
  std::atomic<pid_t> id{0};
  f.backend.on_write = [&](const std::string& name) {
    if (!name.ends_with("data.2") || other.joinable()) return;
    other = std::thread([&] {
      id = gettid();
      f.volume->write(kSectorBytes, filled(kSectorBytes, 3), false);
    });
    while (id == 0) std::this_thread::yield();
    wait_until_asleep(id);
  };
  f.volume->write(0, filled(kSectorBytes, 2), false);
  other.join();
  f.backend.on_write = nullptr;
  ByteVector expected = filled(kBlockBytes, 1);
  std::fill_n(expected.begin(), kSectorBytes, std::byte{2});
  std::fill_n(expected.begin() + kSectorBytes, kSectorBytes, std::byte{3});
  CHECK(read_bytes(*f.volume, 0, 0, kBlockBytes) == expected);
}

TEST_CASE("what a first write that failed has written of its blocks is no leak") {
  Fixture f;
  f.volume->write(0, filled(3 * kBlockBytes, 1), false);
  f.volume->versions().create({});
  // The parts of the blocks at both ends, and the block between them, are written one by one.
  int writes = 0;
  f.backend.around = [&](ForwardingBackend::Call call, const std::string& name,
                         const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kWrite && name.ends_with("data.2") && ++writes == 3)
      fail_errno(ENOSPC, name, "writing to it");
    go_on();
  };
  CHECK(error_code([&] { f.volume->write(kSectorBytes, filled(2 * kBlockBytes, 2), false); }) ==
        ENOSPC);
  f.backend.around = nullptr;
  CHECK(writes == 3);
  CHECK(read_bytes(*f.volume, 0, 0, 3 * kBlockBytes) == filled(3 * kBlockBytes, 1));
  f.volume->close();
  f.volume.reset();
  check_no_leak(*f.memory, f.uuid, kRegionBytes);
}

TEST_CASE("what was written to a version that a crash takes back is no leak") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), true);
  f.volume->write(0, filled(kBlockBytes, 2), false);
  // Writes go to the next version as soon as this one is frozen, and that is not durable yet.
  size_t events = 0;
  f.backend.on_synced = [&](const std::string& name) {
    if (!name.ends_with("data.1") || events != 0) return;
    std::thread([&] { f.volume->write(kBlockBytes, filled(kBlockBytes, 3), false); }).join();
    events = f.memory->event_count();
  };
  f.volume->versions().create({});
  f.backend.on_synced = nullptr;
  REQUIRE(events > 0);
  f.volume.reset();
  const auto after = f.memory->crash(events, MemoryBackend::Crash::kKill, 0);
  REQUIRE(allocated_cells(*after, f.uuid).contains({2, 1}));
  const auto volume = open_volume(*after, f.uuid);
  CHECK(volume->versions().current().number == 1);
  CHECK(read_bytes(*volume, 0, 0, kBlockBytes) == filled(kBlockBytes, 2));
  volume->space().run();
  check_no_leak(*after, f.uuid, kRegionBytes);
}

TEST_CASE("a cell is not given back before the update that frees it is durable") {
  Fixture f;
  f.volume->write(0, filled(kBlockBytes, 1), false);
  f.volume->versions().create({});
  f.volume->versions().remove({"1"});
  f.volume->space().run();
  // Current alone has the block of the removed version, and lets go of it.
  f.volume->write(0, filled(kBlockBytes, 2), false);
  size_t events = 0;
  f.backend.on_synced = [&](const std::string& name) {
    if (!name.ends_with("data.2") || events != 0) return;
    std::thread([&] { f.volume->space().run(std::chrono::milliseconds(100)); }).join();
    events = f.memory->event_count();
  };
  f.volume->flush();
  f.backend.on_synced = nullptr;
  REQUIRE(events > 0);
  f.volume.reset();
  const auto after = f.memory->crash(events, MemoryBackend::Crash::kKill, 0);
  CHECK(read_bytes(*open_volume(*after, f.uuid), 0, 0, kBlockBytes) == filled(kBlockBytes, 1));
}

TEST_CASE("zeroing a part of a block behind the template's end takes no space") {
  Fixture f;
  import_test_template(f.backend, "golden", filled(2 * kBlockBytes, 7));
  const Uuid uuid = random_uuid();
  create_volume(f.backend, uuid, kRegionBytes,
                environment_on(f.backend).open_template("golden").get());
  const auto volume = open_volume(f.backend, uuid);
  volume->zero(4 * kBlockBytes + 100, 200, false);
  CHECK(volume->stats()[Counter::kFirstWrites] == 0);
  volume->zero(kBlockBytes + 100, 200, false);
  CHECK(volume->stats()[Counter::kFirstWrites] == 1);
  CHECK(read_bytes(*volume, 0, kBlockBytes, 100) == filled(100, 7));
  CHECK(is_zero(read_bytes(*volume, 0, kBlockBytes + 100, 200)));
  volume->close();
}

}  // namespace tplstore::volume_test
