// Who waits for whose packs, and for how long; and what becomes of who waits.
#include <doctest/doctest.h>

#include "boot/pack.h"
#include "boot/profile_store.h"
#include "boot/read_ahead.h"
#include "boot_host.h"
#include "forwarding_backend.h"

namespace tplstore::pack_queue_test {
using namespace tplstore::testing;
namespace {

constexpr uint32_t kFar = 4 * kRegionBlocks;  // where the other template's boots read

// A template that boots read so many blocks of, from `first` on, in runs that are no neighbours.
std::vector<ProfileRun> runs_from(uint64_t first, uint32_t count) {
  std::vector<ProfileRun> runs;
  for (uint32_t i = 0; i < count; ++i) runs.push_back({first + i * 8, kFromTemplate, 8, 0, 1, {}});
  return runs;
}

void put_profile_of(Host& host, const TestTemplate& origin, const std::vector<ProfileRun>& runs) {
  Profile profile;
  profile.owner = origin.uuid;
  profile.size_bytes = TestTemplate::kBytes;
  profile.boots = 1;
  profile.runs = runs;
  REQUIRE(put_profile(host.store, template_profile(origin.uuid), 0, profile));
}

void put_pack_of(Host& host, const TestTemplate& origin, const std::vector<ProfileRun>& runs) {
  std::vector<PackPiece> pieces;
  for (const ProfileRun& run : runs)
    pieces.push_back(
        PackPiece::of(TestTemplate::key(static_cast<uint32_t>(run.first / kRegionBlocks)),
                      static_cast<uint32_t>(run.first % kRegionBlocks), run.count));
  REQUIRE(make_pack(host.store, template_pack(origin.uuid), origin.uuid, pieces, kTestSecret,
                    [&](size_t piece, uint32_t skip, MutableBytes into) {
                      for (size_t i = 0; i < into.size() / kBlockBytes; ++i) {
                        const ByteVector cell =
                            cell_of(kFromTemplate, runs[piece].first + skip + i);
                        std::ranges::copy(cell, into.begin() + i * kBlockBytes);
                      }
                    }));
}

}  // namespace

TEST_CASE("a boot that waited for another's pack begins when that boot is over") {
  Host host(uint64_t{64} << 20);
  MemoryBackend elsewhere;
  TestTemplate another(elsewhere);
  const auto runs = runs_from(0, 500), other_runs = runs_from(kFar, 64);
  put_profile_of(host, host.origin, runs);
  put_pack_of(host, host.origin, runs);
  put_profile_of(host, another, other_runs);
  const auto vm1 = host.disk("vm1");
  const auto vm2 = std::make_shared<TestDisk>(host.store, another, host.boot->memory(), "vm2");
  const auto follower1 = host.boot->follow(vm1), follower2 = host.boot->follow(vm2);
  host.wait(0);
  vm1->on_with_cells = [&] { host.boot->done(vm1->volume()); };  // while its pack is read
  vm1->read(*follower1, 0, 1);
  vm1->read(*follower1, 1, 1);
  vm2->read(*follower2, 0, 1);
  vm2->read(*follower2, kFar, 1);
  host.wait(0);  // all that is to be done now
  std::vector<CellFileKey> far;
  for (uint32_t i = 4; i < 8; ++i) far.push_back(TestTemplate::key(i));
  CHECK(host.boot->memory().cached_bytes(far) == 64 * 8 * kBlockBytes);
}

TEST_CASE("who connects while a pack is read is known by its profile's beginning afterwards") {
  Host host(uint64_t{64} << 20);
  MemoryBackend elsewhere;
  TestTemplate another(elsewhere);
  const auto runs = runs_from(0, 500), other_runs = runs_from(kFar, 64);
  put_profile_of(host, host.origin, runs);
  put_pack_of(host, host.origin, runs);
  put_profile_of(host, another, other_runs);
  const auto vm1 = host.disk("vm1");
  const auto vm2 = std::make_shared<TestDisk>(host.store, another, host.boot->memory(), "vm2");
  std::unique_ptr<ReadFollower> follower2;
  const auto follower1 = host.boot->follow(vm1);
  host.wait(0);
  vm1->on_with_cells = [&] {
    if (!follower2) follower2 = host.boot->follow(vm2);
    host.boot->done(vm1->volume());
  };
  vm1->read(*follower1, 0, 1);
  vm1->read(*follower1, 1, 1);
  host.wait(0);
  REQUIRE(follower2);
  // It boots without its first block: by three of its profile's first reads in their order.
  for (uint64_t i = 0; i < 4; ++i) vm2->read(*follower2, kFar + i * 8, 8);
  CHECK(host.boot->done(vm2->volume()));
}

TEST_CASE(
    "who connects while a pack is read that has no room is known by its profile's beginning") {
  Host host(uint64_t{8} << 20);
  MemoryBackend elsewhere;
  TestTemplate another(elsewhere);
  const auto runs = runs_from(0, 500), other_runs = runs_from(kFar, 64);
  put_profile_of(host, host.origin, runs);
  put_pack_of(host, host.origin, runs);
  put_profile_of(host, another, other_runs);
  const auto vm1 = host.disk("vm1");
  const auto vm2 = std::make_shared<TestDisk>(host.store, another, host.boot->memory(), "vm2");
  std::unique_ptr<ReadFollower> follower2;
  const auto follower1 = host.boot->follow(vm1);
  host.wait(0);
  vm1->on_with_cells = [&] {
    if (!follower2) follower2 = host.boot->follow(vm2);
    fail(EIO, "vm1", "its map cannot be read");
  };
  vm1->read(*follower1, 0, 1);
  vm1->read(*follower1, 1, 1);
  host.wait(0);
  REQUIRE(follower2);
  for (uint64_t i = 0; i < 4; ++i) vm2->read(*follower2, kFar + i * 8, 8);
  CHECK(host.boot->done(vm2->volume()));
}

TEST_CASE("a boot that is over holds nothing while its reading waits for another's pack") {
  Host host(uint64_t{64} << 20);
  MemoryBackend elsewhere;
  TestTemplate another(elsewhere);
  const auto runs = runs_from(0, 500), other_runs = runs_from(kFar, 64);
  put_profile_of(host, host.origin, runs);
  put_pack_of(host, host.origin, runs);
  put_profile_of(host, another, other_runs);
  put_pack_of(host, another, other_runs);
  BootOptions options;
  options.cap_bytes = uint64_t{64} << 20;
  options.clock_ms = [&] { return host.now_ms.load(); };
  BootAlarms alarms;
  CellMemory& memory = host.boot->memory();
  BootWindows windows(options, memory, alarms);
  ReadAhead ahead(options, host.store, kTestSecret, memory, windows);
  const auto vm1 = host.disk("vm1");
  const auto vm2 = std::make_shared<TestDisk>(host.store, another, memory, "vm2");
  auto follower1 = windows.follow(vm1), follower2 = windows.follow(vm2);
  vm1->read(*follower1, 0, 1);
  vm1->read(*follower1, 1, 1);
  REQUIRE(ahead.step());
  vm2->read(*follower2, 0, 1);
  vm2->read(*follower2, kFar, 1);
  host.now_ms += 1001;
  // The pack is 16 MB, of which this reads 4: so it is not over yet.
  REQUIRE(ahead.step());
  host.now_ms += 1001;
  REQUIRE(ahead.step());
  std::weak_ptr<TestDisk> disk2 = vm2;
  windows.done(vm2->volume());
  windows.take_ended();
  ahead.step();
  CHECK(disk2.use_count() <= 2);  // vm2 and the windows' own
  ahead.stop();
  follower1.reset();
  follower2.reset();
  while (windows.take_ended()) {
  }
}

TEST_CASE("who has no pack is read ahead for after a second, however long another's pack takes") {
  Host host(uint64_t{64} << 20);
  MemoryBackend elsewhere;
  TestTemplate another(elsewhere);
  const auto runs = runs_from(0, 500), other_runs = runs_from(kFar, 64);
  put_profile_of(host, host.origin, runs);
  put_pack_of(host, host.origin, runs);
  put_profile_of(host, another, other_runs);
  BootOptions options;
  options.cap_bytes = uint64_t{64} << 20;
  options.clock_ms = [&] { return host.now_ms.load(); };
  BootAlarms alarms;
  CellMemory& memory = host.boot->memory();
  BootWindows windows(options, memory, alarms);
  ReadAhead ahead(options, host.store, kTestSecret, memory, windows);
  const auto vm1 = host.disk("vm1");
  const auto vm2 = std::make_shared<TestDisk>(host.store, another, memory, "vm2");
  auto follower1 = windows.follow(vm1), follower2 = windows.follow(vm2);
  vm1->read(*follower1, 0, 1);
  vm1->read(*follower1, 1, 1);
  REQUIRE(ahead.step());
  vm2->read(*follower2, 0, 1);
  vm2->read(*follower2, kFar, 1);
  host.now_ms += 1001;
  // The pack is 16 MB, of which this reads 4: so it is not over yet.
  REQUIRE(ahead.step());
  host.now_ms += 1001;
  REQUIRE(ahead.step());
  std::vector<CellFileKey> far;
  for (uint32_t i = 4; i < 8; ++i) far.push_back(TestTemplate::key(i));
  CHECK(memory.cached_bytes(far) > 32 * kBlockBytes);
  ahead.stop();
  follower1.reset();
  follower2.reset();
  while (windows.take_ended()) {
  }
}

TEST_CASE("a window that nothing follows ends, though its first block is read again and again") {
  Host host;
  const auto disk = host.disk("vm1");
  const auto follower = host.boot->follow(disk);
  bool has_ended = false;
  for (int i = 0; i < 100; ++i) {  // a multipath daemon looks whether the disk is there
    disk->read(*follower, 0, 1);
    host.wait(10'000);
    host.boot->memory().forget(std::vector{TestTemplate::key(0)});
    host.wait(0);
    has_ended |= host.boot->memory().stats().slots == 0;  // what a window has stays
  }
  CHECK(has_ended);
}

TEST_CASE("warm says what could not be read") {
  Host host;
  const auto runs = runs_from(0, 64);
  put_profile_of(host, host.origin, runs);
  host.store.fail_reads(TestTemplate::segment_name(0), EIO);
  const auto disk = host.template_disk();
  const BootWarm warm = host.boot->warm(
      *disk, [](uint64_t, uint64_t) {}, [] { return false; });
  CHECK(host.boot->show(*disk).cached_bytes == 0);
  CHECK(warm.wanted_bytes == 64 * 8 * kBlockBytes);
  CHECK(warm.cached_bytes == 0);
}

TEST_CASE("where packs cannot be listed the profile is read without") {
  Host host;
  const auto runs = runs_from(0, 64);
  put_profile_of(host, host.origin, runs);
  ForwardingBackend store(host.store);
  store.around = [](ForwardingBackend::Call call, const std::string& name,
                    const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kList && name.starts_with("packs"))
      fail(EACCES, name, "cannot be listed");
    go_on();
  };
  BootOptions options;
  options.cap_bytes = uint64_t{32} << 20;
  options.huge_pages = false;
  Boot boot(options, store, kTestSecret);
  const auto vm1 = std::make_shared<TestDisk>(host.store, host.origin, boot.memory(), "vm1");
  const auto follower1 = boot.follow(vm1);
  vm1->read(*follower1, 0, 1);
  vm1->read(*follower1, 1, 1);
  boot.tend();
  CHECK(boot.memory().stats().prefetch_bytes > 60 * 8 * kBlockBytes);
}

}  // namespace tplstore::pack_queue_test
