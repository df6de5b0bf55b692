// The map by itself, without data: its size in memory and in the log, compaction, eviction, limits.
#include "map/volume_map.h"

#include <doctest/doctest.h>

#include "forwarding_backend.h"
#include "map/creation.h"
#include "volume_testing.h"

namespace tplstore::volume_map_test {
namespace {

using Call = ForwardingBackend::Call;

class MapUnderTest {
 public:
  explicit MapUnderTest(uint64_t size_bytes) {
    create_map(backend_, "v", uuid_, size_bytes);
    open();
  }
  void open() {
    map_ = VolumeMap::open(front_, "v", uuid_, Access::kWrite);
    map_->start_writing([] {}, [] {});
  }
  void reopen() {
    map_->close();
    map_.reset();
    open();
  }
  void assign(uint64_t first, uint64_t count, uint32_t source) {
    LogReservation reserved(*map_, LogReservation::records_for(first, count));
    map_->assign({{first, count}, source}, reserved);
  }
  void write(uint64_t first, uint64_t count = 1) { assign(first, count, map_->current()); }
  uint32_t freeze(const FreezeRequest& request = {}) {
    LogReservation reserved(*map_, VersionChange::kFreezeRecords);
    return map_->change_versions().freeze(request, reserved);
  }
  void resize(uint64_t size_bytes) { map_->change_versions().resize(size_bytes); }
  uint32_t source_of(uint32_t version, uint64_t block) {
    RunList runs;
    map_->find(version, {block, 1}, runs);
    REQUIRE(runs.size() == 1);
    return runs[0].source;
  }
  VolumeMap& operator*() { return *map_; }
  VolumeMap* operator->() { return map_.get(); }
  MemoryBackend& backend() { return backend_; }
  ForwardingBackend& front() { return front_; }
  // Makes the next call of a kind fail.
  void fail_next(Call kind, const std::string& object, int code) {
    front_.around = [=, this](Call call, const std::string& name,
                              const std::function<void()>& go_on) {
      if (call != kind || name != object) return go_on();
      front_.around = nullptr;
      fail_errno(code, object, "doing as the test says");
    };
  }

 private:
  MemoryBackend backend_;
  ForwardingBackend front_{backend_};
  const Uuid uuid_ = random_uuid();
  std::unique_ptr<VolumeMap> map_;
};

constexpr uint64_t kTiB = uint64_t{1} << 40;

int code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return 0;
}

}  // namespace

TEST_CASE("neighbouring blocks of one version are one interval, whatever the order") {
  const uint64_t before = node_memory_bytes();
  MapUnderTest map(kTiB);
  Random random(test_seed());
  std::vector<uint64_t> blocks(kRegionBlocks);
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  for (uint64_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random.below(i)]);
  for (const uint64_t block : blocks) map.write(block);
  // A region that is one interval needs no leaf: four pages are all there is.
  CHECK(node_memory_bytes() - before <= 4 * 600);
  CHECK(map->ask(&MapState::current_record).file_blocks == kRegionBlocks);
}

TEST_CASE("memory is 8 bytes for each interval and 64 for each leaf") {
  const uint64_t before = node_memory_bytes();
  MapUnderTest map(kTiB);
  constexpr uint64_t kRegions = 512;
  for (uint64_t region = 0; region < kRegions; ++region)
    for (uint64_t i = 0; i < 200; ++i) map.write(region * kRegionBlocks + i * 4);
  map.reopen();
  RunList runs;
  for (uint64_t region = 0; region < kRegions; ++region)
    map->find(0, {region * kRegionBlocks, 1}, runs);
  const uint64_t used = node_memory_bytes() - before;
  CHECK(used <= kRegions * (200 * 8 + 64) + (kRegions / 64 + 3) * 600);
  // And all of it can go.
  for (int pass = 0; pass < 3; ++pass)
    while (map->evict_some()) {
    }
  CHECK(node_memory_bytes() - before <= 8 * 600);
  CHECK(map.source_of(0, 4) == map->current());
}

TEST_CASE("versions share what they have in common, in the log too") {
  MapUnderTest map(kTiB);
  constexpr uint64_t kRegions = 4096;
  for (uint64_t region = 0; region < kRegions; ++region)
    for (uint64_t i = 0; i < 50; ++i) map.write(region * kRegionBlocks + i * 3);
  map.freeze();
  map->checkpoint();
  map->compact();
  const uint64_t base_bytes = map->stats().log_bytes;
  // A hundred versions with a few changes each cost little, before and after compaction.
  Random random(test_seed());
  std::vector<std::pair<uint32_t, uint64_t>> written;
  for (int version = 0; version < 100; ++version) {
    for (int i = 0; i < 8; ++i) {
      const uint64_t block = random.below(kRegions) * kRegionBlocks + 1000;
      map.write(block);
      written.emplace_back(map->current(), block);
    }
    map.freeze();
    map->checkpoint();
  }
  map->compact();
  const uint64_t bytes = map->stats().log_bytes - base_bytes;
  CHECK(bytes < 100 * 8 * 2048);
  CHECK(map->versions().size() == 101);
  for (int round = 0; round < 2; ++round) {
    for (const auto& [version, block] : written) CHECK(map.source_of(version, block) == version);
    for (uint64_t region = 0; region < kRegions; region += 97)
      CHECK(map.source_of(50, region * kRegionBlocks + 3) == 1);
    map.reopen();
  }
}

TEST_CASE("a log whose updates are checkpointed wants compaction, and shrinks") {
  MapUnderTest map(kTiB);
  Random random(test_seed());
  for (int i = 0; i < 300'000; ++i) {
    map.write(random.below(64 * kRegionBlocks));
    if (i % 1000 == 0) map->commit();
    if (map->wants(VolumeMap::Upkeep::kCheckpoint)) map->checkpoint();
  }
  map->checkpoint();
  REQUIRE(map->wants(VolumeMap::Upkeep::kCompaction));
  const uint64_t before = map->stats().log_bytes;
  const uint32_t probe = map.source_of(0, 12345);
  map->compact();
  CHECK_FALSE(map->wants(VolumeMap::Upkeep::kCompaction));
  CHECK(map->stats().log_bytes < before / 4);
  CHECK(map.source_of(0, 12345) == probe);
  CHECK(map.backend().list("v") == std::vector<std::string>{"map", "map.2"});
}

TEST_CASE("after a compaction a log wants none, however many versions it has") {
  MapUnderTest map(kTiB);
  for (int i = 0; i < 3000; ++i) {
    map.write(i);
    map.freeze();
    map->commit();
    if (map->wants(VolumeMap::Upkeep::kCheckpoint)) map->checkpoint();
    while (map->wants(VolumeMap::Upkeep::kCompaction)) {
      const uint64_t before = map->stats().log_bytes;
      map->compact();
      REQUIRE(map->stats().log_bytes < before);
    }
  }
  CHECK(map->stats().compactions <= 4);
  map->compact();
  CHECK_FALSE(map->wants(VolumeMap::Upkeep::kCompaction));
  map.reopen();
  CHECK_FALSE(map->wants(VolumeMap::Upkeep::kCompaction));
}

TEST_CASE("a small map leaves a small log when it is closed") {
  MapUnderTest map(kTiB);
  Random random(test_seed());
  for (int i = 0; i < 200'000; ++i) map.write(random.below(256 * kRegionBlocks));
  map->commit();
  const uint32_t probe = map.source_of(0, 12345);
  map.reopen();
  CHECK(map->stats().log_generation == 2);
  CHECK(map->stats().log_bytes < 1 << 20);
  CHECK(map->recovery().was_closed_cleanly);
  CHECK(map.source_of(0, 12345) == probe);
  map.reopen();
  CHECK(map->stats().log_generation == 2);
}

TEST_CASE("recovery replays no more than a checkpoint's worth") {
  MapUnderTest map(kTiB);
  Random random(test_seed());
  for (int i = 0; i < 200'000; ++i) {
    map.write(random.below(16384) * kRegionBlocks + random.below(1024));
    if (i % 500 == 0) map->commit();
    if (map->wants(VolumeMap::Upkeep::kCheckpoint)) map->checkpoint();
  }
  CHECK(map->stats().checkpoints >= 2);
}

TEST_CASE("a full disk refuses updates before they are accepted, and loses none that were") {
  MapUnderTest map(kTiB);
  map.write(7);
  map->commit();
  map.backend().set_capacity_bytes(map.backend().allocated_bytes());
  uint64_t accepted = 0;
  try {
    for (uint64_t i = 0; i < 1'000'000; ++i) {
      map.write(i * 2 * kRegionBlocks % (kTiB / kBlockBytes) + i % 512 * 2);
      ++accepted;
    }
  } catch (const Error& error) {
    CHECK(error.code() == ENOSPC);
  }
  CHECK(accepted < 1'000'000);
  map->commit();
  map.backend().set_capacity_bytes(UINT64_MAX);
  map.open();
  for (uint64_t i = 0; i < accepted; ++i)
    REQUIRE(map.source_of(0, i * 2 * kRegionBlocks % (kTiB / kBlockBytes) + i % 512 * 2) == 1);
}

TEST_CASE("after a failed sync nothing more is accepted") {
  MapUnderTest map(kTiB);
  map.write(1);
  map.backend().fail_next_sync("v/map.1", EIO);
  CHECK_THROWS_AS(map->commit(), Error);
  CHECK_THROWS_AS(map->commit(), Error);
  CHECK_THROWS_AS(LogReservation(*map, 1), Error);
}

TEST_CASE("an update beyond the end of the disk, as large as it is then, is damage") {
  constexpr uint64_t kBlocks = 8;
  MapUnderTest map(kBlocks * kBlockBytes - kSectorBytes);
  const auto reopens = [&] {
    map->commit();
    try {
      map.open();
    } catch (const Error& error) {
      CHECK(error.code() == EIO);
      return false;
    }
    return true;
  };
  map.write(kBlocks - 1);
  CHECK(reopens());
  const uint32_t small = map.freeze();
  map.resize(2 * kBlocks * kBlockBytes);
  map.write(kBlocks, kBlocks);
  CHECK(reopens());
  SUBCASE("before it was rolled back") { map.write(2 * kBlocks - 1, 2); }
  SUBCASE("after it was rolled back to when it was smaller") {
    FreezeRequest request;
    request.parent = small;
    map.freeze(request);
    map.write(kBlocks);
  }
  CHECK_FALSE(reopens());
}

TEST_CASE("a fork whose checkpoint says that an ancestor's version is its own is damaged") {
  MapUnderTest parent(kRegionBytes);
  MemoryBackend& backend = parent.backend();
  const Uuid fork = random_uuid();
  for (int i = 0; i < 2; ++i) parent.freeze();
  constexpr uint32_t kBase = 2;
  parent->create_fork(kBase, "fork", fork);
  const auto opens = [&] {
    return code_of([&] { VolumeMap::open(backend, "fork", fork, Access::kWrite); }) == 0;
  };
  REQUIRE(opens());

  const auto pointer_object = backend.open("fork/map", Access::kWrite, Purpose::kMetadata);
  Superblock<MapPointer> pointers(kMapPointerMagic);
  MapPointer pointer = pointers.read(*pointer_object).value();
  const auto log = MapLog::open(backend, "fork", fork, pointer.generation, Access::kWrite);
  LogPosition after;
  const ByteVector genuine =
      log->read_frame(pointer.checkpoint_offset, FrameKind::kCheckpoint, after);
  CheckpointRecord record;
  std::memcpy(&record, genuine.data(), sizeof record);
  Bytes sources = Bytes(genuine).subspan(sizeof record);
  log->start_writing(log->scan(record.replay_from, 0, [](const LogFrame&) {}));
  // A checkpoint that has all that the genuine one has, and one thing more.
  const auto opens_with = [&](Bytes groups, Bytes rest) {
    Encoder forged;
    forged.put(record);
    forged.put_bytes(groups);
    forged.put_bytes(sources);
    forged.put_bytes(rest);
    pointer.checkpoint_offset =
        log->append(FrameKind::kCheckpoint, forged.bytes(), 0) - sizeof(FrameHeader);
    pointer.clean_sequence = 0;
    log->sync();
    pointers.write(*pointer_object, pointer);
    return opens();
  };
  const auto append_node = [&](Encoder& bytes, uint64_t length) {
    return NodeAddress::make(log->append(FrameKind::kNodes, bytes.bytes(), 0), length);
  };
  CHECK(opens_with({}, {}));
  SUBCASE("a version that is there") {
    record.group_count = 1;
    const auto opens_with_version = [&](uint32_t number) {
      std::map<uint32_t, VersionRecord> versions;
      versions[number].number = number;
      versions[number].size_bytes = kRegionBytes;
      Encoder bytes;
      const uint64_t length =
          encode_group(bytes, log->seed(), 0, record.current, versions, {{number, {}}});
      return opens_with(bytes_of(CheckpointGroup{append_node(bytes, length).word, 0, 0}), {});
    };
    record.current = kBase + 2;
    CHECK(opens_with_version(kBase + 1));
    CHECK_FALSE(opens_with_version(kBase));
  }
  SUBCASE("a version that was removed") {
    record.removed_file_count = 1;
    record.current = kBase + 2;
    CHECK(opens_with({}, bytes_of(RemovedFile{1, kBase + 1, 0})));
    CHECK_FALSE(opens_with({}, bytes_of(RemovedFile{1, kBase, 0})));
  }
  SUBCASE("a file that is free") {
    record.free_node_count = 1;
    record.current = kBase + 2;
    const auto opens_with_free = [&](const FreeRange& range) {
      Encoder bytes;
      const uint64_t length =
          encode_free_ranges(bytes, log->seed(), 0, record.current, std::span(&range, 1));
      return opens_with({}, bytes_of(append_node(bytes, length).word));
    };
    CHECK(opens_with_free({kBase + 1, 0, 0}));
    CHECK_FALSE(opens_with_free({kBase, 0, 0}));
  }
}

TEST_CASE("after a failed sync of the object that names the checkpoint nothing more is written") {
  MapUnderTest map(kTiB);
  for (uint64_t i = 0; i < 1000; ++i) map.write(i * 7);
  map.fail_next(Call::kSync, "v/map", EIO);
  CHECK_THROWS_AS(map->checkpoint(), Error);
  const uint64_t log_bytes = map->stats().log_bytes;
  for (int i = 0; i < 3; ++i) CHECK_THROWS_AS(map->checkpoint(), Error);
  CHECK(map->stats().log_bytes == log_bytes);
  CHECK_THROWS_AS(LogReservation(*map, 1), Error);
  CHECK_THROWS_AS(map->commit(), Error);
  map.open();
  CHECK(map.source_of(0, 7) == 1);
}

TEST_CASE("what a failed compaction leaves is in nobody's way") {
  MapUnderTest map(kTiB);
  for (uint64_t i = 0; i < 1000; ++i) map.write(i * 7);
  // Neither can the new log be made durable nor can it be removed.
  map.front().around = [](Call call, const std::string& name, const std::function<void()>& go_on) {
    if (name == "v/map.2" && (call == Call::kSync || call == Call::kRemove))
      fail_errno(EIO, name, "doing as the test says");
    go_on();
  };
  CHECK_THROWS_AS(map->compact(), Error);
  map.front().around = nullptr;
  map->compact();
  CHECK(map.backend().list("v") == std::vector<std::string>{"map", "map.2"});
  CHECK(map.source_of(0, 7) == 1);
  map.reopen();
  CHECK(map.source_of(0, 7) == 1);
}

TEST_CASE("a compaction that fails at its last step leaves the map that was there") {
  MapUnderTest map(kTiB);
  for (uint64_t i = 0; i < 100; ++i) map.write(i * 100);
  map->checkpoint();
  // Something changes while the new log is made the one that counts, which then cannot be read.
  map.front().around = [&](Call call, const std::string& name, const std::function<void()>& go_on) {
    go_on();
    if (call != Call::kSync || name != "v/map") return;
    map.front().around = nullptr;
    map.write(3);
    map.backend().fail_reads("v/map.2", EIO);
  };
  CHECK_THROWS_AS(map->compact(), Error);
  map.backend().fail_reads("v/map.2", 0);
  for (uint64_t i = 0; i < 100; ++i) REQUIRE(map.source_of(0, i * 100) == 1);
  CHECK(map.source_of(0, 1) == kSourceUnmapped);
  CHECK_THROWS_AS(LogReservation(*map, 1), Error);
  CHECK_THROWS_AS(map->commit(), Error);
  map.open();
  for (uint64_t i = 0; i < 100; ++i) REQUIRE(map.source_of(0, i * 100) == 1);
}

TEST_CASE("a log that is compacted away while its owner loads from it is no error") {
  MapUnderTest map(kTiB);
  for (uint64_t i = 0; i < 100; ++i) map.write(i * 100);
  map.reopen();
  const std::string log = MapLog::object_name("v", map->stats().log_generation);
  map.front().around = [&](Call call, const std::string& name, const std::function<void()>& go_on) {
    if (call != Call::kRead || name != log) return go_on();
    map.front().around = nullptr;
    map->compact();
    // As a backend says that has closed the object meanwhile, to save a descriptor.
    fail_errno(ENOENT, name, "opening it");
  };
  CHECK(map.source_of(0, 300) == 1);
  CHECK(map->stats().compactions == 1);
}

TEST_CASE("an update behind a record of another kind is one of its own") {
  MapUnderTest map(kTiB);
  map.write(0, 8);
  const uint32_t frozen = map.freeze();
  map.assign(0, 1, kSourceZero);
  map->change_versions().hide({frozen});
  map.assign(frozen, 1, kSourceZero);
  map.resize(2 * kTiB);
  map.assign(2 * kTiB / kBlockBytes - 1, 1, kSourceZero);
  map->commit();
  map.open();
  CHECK(map.source_of(0, 0) == kSourceZero);
  CHECK(map.source_of(0, frozen) == kSourceZero);
  CHECK(map.source_of(0, 2 * kTiB / kBlockBytes - 1) == kSourceZero);
  CHECK(map.source_of(0, 7) == frozen);
}

TEST_CASE("updates beside each other are one only when they come from one source") {
  MapUnderTest map(kTiB);
  map.write(0, 2);
  map.assign(2, 1, kSourceZero);
  map.write(3);
  map.write(4);
  map->commit();
  map.open();
  for (uint64_t block = 0; block < 5; ++block) {
    INFO("block " << block);
    CHECK(map.source_of(0, block) == (block == 2 ? kSourceZero : 1));
  }
}

TEST_CASE("what is committed while a checkpoint is written is replayed behind it") {
  MapUnderTest map(kTiB);
  for (uint64_t i = 0; i < 100; ++i) map.write(i * 3);
  map->checkpoint();
  map.write(1);
  // It is written as what differs from the leaf that is there, which is read for that.
  bool is_done = false;
  map.front().around = [&](Call call, const std::string& name, const std::function<void()>& go_on) {
    if (call == Call::kRead && name == "v/map.1") {
      map.front().around = nullptr;
      map.write(kRegionBlocks);
      map->commit();
      is_done = true;
    }
    go_on();
  };
  map->checkpoint();
  REQUIRE(is_done);
  map.open();
  CHECK(map.source_of(0, 1) == 1);
  CHECK(map.source_of(0, kRegionBlocks) == 1);
}

}  // namespace tplstore::volume_map_test
