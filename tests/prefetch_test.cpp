// Reading a profile ahead: in few requests, of what is not in memory, and nothing wrong enters.
#include "boot/prefetch.h"

#include <doctest/doctest.h>

#include "boot_testing.h"
#include "volume_testing.h"

namespace tplstore::prefetch_test {
using namespace tplstore::testing;

namespace {

struct Reader {
  explicit Reader(const std::vector<std::pair<uint64_t, uint32_t>>& runs,
                  uint64_t cap_bytes = uint64_t{64} << 20)
      : memory(cap_bytes) {
    store.set_recording(false);
    disk = std::make_unique<TestDisk>(store, origin, memory, "vm1");
    window = memory.open_window();
    buffer = PrefetchBuffer::make(memory);
    auto made = std::make_shared<Profile>();
    for (const auto& [first, count] : runs)
      made->runs.push_back({first, kFromTemplate, count, 0, 1, {}});
    profile = made;
  }
  ~Reader() {
    disk.reset();
    buffer.reset();
    window.reset();
  }
  // How many bytes each step has read.
  std::vector<uint64_t> read_all() {
    std::vector<uint64_t> steps;
    Prefetch prefetch(memory, profile, kTestSecret);
    uint64_t before = origin.planned_bytes();
    while (prefetch.step(*disk, *window, buffer->bytes())) {
      steps.push_back(origin.planned_bytes() - before);
      before = origin.planned_bytes();
    }
    requests = prefetch.requests();
    taken_bytes = prefetch.taken_bytes();
    return steps;
  }
  // Throws what reading it throws.
  void check(uint64_t first, uint32_t count) {
    struct Nobody final : ReadFollower {
      CellWindow* begin_read(uint64_t, uint64_t, ReadPlan&) noexcept override { return nullptr; }
      void touch(CellWindow&, uint32_t, uint64_t, uint64_t) noexcept override {}
    } nobody;
    disk->read(nobody, first, count);
  }

  MemoryBackend store;
  TestTemplate origin{store};
  CellMemory memory;
  std::unique_ptr<TestDisk> disk;
  std::unique_ptr<CellMemory::Window> window;
  std::optional<PrefetchBuffer> buffer;
  std::shared_ptr<const Profile> profile;
  uint64_t requests = 0;
  uint64_t taken_bytes = 0;
};

}  // namespace

TEST_CASE("neighbours are read together, and what lies between does not enter") {
  Reader reader({{500, 8}, {100, 8}, {172, 8}, {108, 1}, {245, 1}, {2000, 4}});
  // 100 to 180, which have a gap of 64 blocks at most; 245; 500; 2000 in another file.
  CHECK(reader.read_all() == std::vector<uint64_t>{(80 + 1 + 8 + 4) * kBlockBytes});
  CHECK(reader.requests == 4);
  CHECK(reader.taken_bytes == 30 * kBlockBytes);
  CHECK(reader.memory.stats().fill_bytes == 30 * kBlockBytes);
  CHECK(reader.memory.stats().prefetch_bytes == 30 * kBlockBytes);
  for (const ProfileRun& run : reader.profile->runs) reader.check(run.first, run.count);
  CHECK(reader.origin.planned_bytes() == 93 * kBlockBytes);  // all hits
}

TEST_CASE(
    "no more than four requests at once, of 4 MiB in all, and what is there is not read again") {
  std::vector<std::pair<uint64_t, uint32_t>> runs = {{0, 3000}};
  for (uint64_t i = 0; i < 40; ++i) runs.emplace_back(3100 + 100 * i, 6);
  Reader reader(runs);
  uint64_t sum = 0;
  for (const uint64_t bytes : reader.read_all()) {
    CHECK(bytes <= 4 << 20);
    sum += bytes;
  }
  CHECK(sum == 3240 * kBlockBytes);
  CHECK(reader.requests == 40 + 3);
  for (const uint64_t bytes : reader.read_all()) CHECK(bytes == 0);
  CHECK(reader.requests == 0);
  for (const ProfileRun& run : reader.profile->runs) reader.check(run.first, run.count);
}

TEST_CASE("the profile's hashes are as good as the segments', and a wrong one does no harm") {
  Reader reader({{10, 10}, {3000, 10}});
  auto hashed = std::make_shared<Profile>(*reader.profile);
  for (uint32_t i = 0; i < 20; ++i)
    hashed->hashes.push_back(hash_of(cell_of(kFromTemplate, i < 10 ? 10 + i : 2990 + i)));
  reader.profile = hashed;
  const std::string name = TestTemplate::segment_name(0);
  ByteVector content = reader.store.content(name);
  content[15 * kBlockBytes + 7] ^= std::byte{1};
  reader.store.set_content(name, content);
  reader.read_all();
  CHECK(reader.taken_bytes == 19 * kBlockBytes);
  CHECK(reader.origin.files[2]->asked == 0);

  Reader wrong({{3000, 10}});
  hashed->runs.erase(hashed->runs.begin());
  hashed->hashes.resize(10);
  hashed->hashes[3].low ^= 1;
  wrong.profile = hashed;
  wrong.read_all();
  CHECK(wrong.taken_bytes == 10 * kBlockBytes);
  CHECK(wrong.origin.files[2]->asked == 1);
  wrong.check(3000, 10);
}

TEST_CASE("what is damaged or cannot be read does not enter, and nothing else is lost") {
  Reader reader({{10, 10}, {1500, 10}, {3000, 10}});
  const std::string name = TestTemplate::segment_name(0);
  ByteVector content = reader.store.content(name);
  content[15 * kBlockBytes + 7] ^= std::byte{1};
  reader.store.set_content(name, content);
  reader.store.fail_reads(TestTemplate::segment_name(1), EIO);
  reader.read_all();
  CHECK(reader.taken_bytes == 19 * kBlockBytes);
  reader.store.fail_reads(TestTemplate::segment_name(1), 0);
  const uint64_t read_bytes = reader.origin.planned_bytes();
  reader.check(10, 5);
  reader.check(16, 4);
  reader.check(3000, 10);
  CHECK(reader.origin.planned_bytes() == read_bytes);
  reader.check(1500, 10);  // by who asks
  CHECK(reader.origin.planned_bytes() == read_bytes + 10 * kBlockBytes);
}

TEST_CASE("runs of what the disk has otherwise by now, or of another disk, are passed over") {
  Reader reader({{0, 10}, {100, 10}, {8190, 50}, {uint64_t{1} << 40, 4}});
  reader.disk->write_version(reader.store, 3, 100, 5);
  reader.read_all();
  CHECK(reader.taken_bytes == (10 + 5 + 2) * kBlockBytes);
  reader.disk->go();
  CHECK_THROWS_AS(reader.read_all(), Error);
}

TEST_CASE("where there is no room less is read, and nothing fails") {
  Reader reader({{0, 8000}}, 3 << 20);
  reader.read_all();
  CHECK(reader.taken_bytes > 1 << 20);
  CHECK(reader.memory.stats().peak <= reader.memory.stats().cap);
  reader.check(0, 8000);
}

}  // namespace tplstore::prefetch_test
