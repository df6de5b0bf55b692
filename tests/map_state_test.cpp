// The state of a map by itself: random records against a model of arrays, what is free and when,
// and that records, and checkpoints, lead to the same state again.
#include "map/map_state.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "map/checkpoint.h"
#include "map/update_batch.h"
#include "volume_testing.h"

namespace tplstore::map_state_test {
namespace {

// Blocks around the end of a region; what lies elsewhere is nothing else.
constexpr uint64_t kFirst = kRegionBlocks - 32;
constexpr uint64_t kBlocks = 64;
constexpr uint64_t kDiskBytes = 4 * kRegionBytes;

// A state, what of it waits for a commit, and a log for its nodes.
class StateUnderTest {
 public:
  StateUnderTest() : log_(MapLog::create(backend_, "v", random_uuid(), 1)) {
    log_->start_writing(MapLog::start());
    VersionRecord first;
    first.number = 1;
    first.size_bytes = kDiskBytes;
    first.set_own(0);
    state = MapState(std::move(first), {}, {}, 0);
  }

  // Applies what a map would, and records it as that does.
  void apply(MapRecord record) {
    REQUIRE(state.allows(record));
    const MapRecord original = record;
    MapState::Applied applied = apply_and_load(state, record);
    pending.make_room(1024);
    if (const auto* update = std::get_if<UpdateRecord>(&original)) {
      if (applied.has_changed) pending.add_update(*update);
      return;
    }
    Encoder bytes;
    encode_record(bytes, original);
    pending.add(bytes.bytes(), bytes.size());
  }
  MapState::Applied apply_and_load(MapState& to, MapRecord& record) {
    MapState::Applied all;
    while (true) {
      const MapState::Applied applied = to.apply(record);
      all.has_changed = all.has_changed || applied.has_changed;
      if (!applied.missing) return all;
      to.install(0, *applied.missing, read_node(*log_, *applied.missing));
      ++loads;
    }
  }
  uint32_t source_of(MapState& of, uint32_t version, uint64_t block) {
    while (true) {
      RunList runs;
      const VersionRecord* record = std::as_const(of).find(version);
      REQUIRE(record != nullptr);
      const auto missing = find(record->root, {block, 1}, runs);
      if (!missing) return runs[0].source;
      of.install(version, *missing, read_node(*log_, *missing));
    }
  }
  void run_removals() {
    TreeReader reader(log_, mutex_);
    while (const auto removal = state.next_removal())
      state.finish_removal(find_lone_cells(reader, *removal));
  }
  uint64_t count_own(uint32_t version) {
    if (const auto known = state.own_blocks(version)) return *known;
    TreeReader reader(log_, mutex_);
    const Removal removal = state.begin_count(version);
    return state.finish_count(version, count_lone_cells(reader, removal));
  }
  // Writes a checkpoint, and lets go of all nodes; returns where it is.
  uint64_t checkpoint() {
    run_removals();
    state.free_ranges().cut();
    state.free_ranges().commit();
    MapSnapshot snapshot = state.take_snapshot();
    CheckpointWriter writer(*log_);
    TreeReader reader(log_, mutex_);
    writer.write_nodes(snapshot, reader);
    snapshot.live_bytes = state.usage().live_bytes;
    const uint64_t offset = writer.write(snapshot, log_->position());
    state.note_written(snapshot, writer.nodes());
    for (int pass = 0; pass < 3; ++pass)
      while (state.evict_some()) {
      }
    return offset;
  }
  MapState read_back(uint64_t offset) { return read_checkpoint(*log_, offset).state; }
  // Another state is the same, field by field.
  void check_same(MapState& other) {
    check_same(state.current(), other.current());
    const VersionTable& a = state.table();
    const VersionTable& b = other.table();
    REQUIRE(a.all().size() == b.all().size());
    for (const auto& [number, version] : a.all()) {
      REQUIRE(b.find(number) != nullptr);
      check_same(version, *b.find(number));
    }
    CHECK(a.pins == b.pins);
    CHECK(a.flattens == b.flattens);
    CHECK(a.sources.size() == b.sources.size());
    CHECK(a.removed_files == b.removed_files);
    CHECK(a.for_readers() == b.for_readers());
    CHECK(a.collectible() == b.collectible());
    CHECK(state.unswept_versions() == other.unswept_versions());
    CHECK(state.free_ranges().outstanding() == other.free_ranges().outstanding());
    CHECK(state.wants_collection() == other.wants_collection());
  }

  MapState state;
  UpdateBatch pending;
  uint64_t loads = 0;

 private:
  void check_same(const VersionRecord& a, const VersionRecord& b) {
    CAPTURE(a.number);
    CHECK(a.number == b.number);
    CHECK(a.parent == b.parent);
    CHECK(a.created_ns == b.created_ns);
    CHECK(a.size_bytes == b.size_bytes);
    CHECK(a.own_blocks == b.own_blocks);
    CHECK(a.file_blocks == b.file_blocks);
    CHECK(a.foreign_blocks == b.foreign_blocks);
    CHECK(a.flags == b.flags);
    CHECK(a.name == b.name);
    CHECK(a.note == b.note);
    CHECK(a.origin == b.origin);
    CHECK(std::set<uint32_t>(a.children.begin(), a.children.end()) ==
          std::set<uint32_t>(b.children.begin(), b.children.end()));
  }

  MemoryBackend backend_;
  std::shared_ptr<MapLog> log_;
  SpinningSharedMutex mutex_;
};

// What the disk of each version looks like, block by block, and which cells have data.
class Model {
 public:
  explicit Model(StateUnderTest& map) : map_(map) { sources_[1].fill(kSourceUnmapped); }

  // One random change, and versions taken out that can be.
  void change(Random& random) {
    const MapState& state = map_.state;
    const uint32_t current = state.current().number;
    std::vector<uint32_t> shown;
    for (const auto& [number, version] : state.table().all())
      if (!version.is_removed()) shown.push_back(number);
    const auto pick = [&] { return shown[random.below(shown.size())]; };
    const uint64_t dice = random.below(1000);
    if (dice < 950) {
      const uint64_t first = random.below(kBlocks);
      const uint64_t count = 1 + random.below(random.chance(4) ? kBlocks - first : 3);
      const uint32_t kinds[] = {current, current, current, kSourceZero, kSourceUnmapped};
      update(first, std::min(count, kBlocks - first), kinds[random.below(5)]);
    } else if (dice < 970) {
      freeze(random, shown.empty() || random.chance(2) ? current : pick());
    } else if (dice < 985) {
      if (!shown.empty()) map_.apply(HideRecord{pick()});
    } else if (dice < 990) {
      if (!shown.empty()) map_.apply(PinRecord{pick(), random_uuid()});
    } else if (dice < 996) {
      const auto& pins = state.table().pins;
      if (!pins.empty()) map_.apply(UnpinRecord{pins[random.below(pins.size())].fork});
    } else {
      map_.apply(ResizeRecord{state.current().size_bytes + kSectorBytes});
    }
    while (const auto version = state.table().collectible()) {
      map_.apply(CollectRecord{*version});
      sources_.erase(*version);
      if (random.chance(2)) break;
    }
  }

  void check_sources(MapState& state) {
    for (const auto& [version, sources] : sources_)
      for (uint64_t i = 0; i < kBlocks; ++i) {
        CAPTURE(version);
        CAPTURE(i);
        REQUIRE(map_.source_of(state, version, kFirst + i) == sources[i]);
      }
  }
  // A cell has data exactly as long as a version has it that is there.
  void check_cells() {
    std::map<Cell, std::set<uint32_t>> users;
    for (const auto& [version, sources] : sources_)
      for (uint64_t i = 0; i < kBlocks; ++i)
        if (sources[i] != kSourceZero && sources[i] != kSourceUnmapped)
          users[{sources[i], i}].insert(version);
    map_.run_removals();
    map_.state.free_ranges().cut();
    map_.state.free_ranges().commit();
    for (const FreeRange& range : map_.state.free_ranges().take(SIZE_MAX))
      std::erase_if(allocated_, [&](const Cell& cell) {
        const uint64_t block = kFirst + cell.second;
        const bool is_freed =
            cell.first == range.source &&
            (range.is_whole_file() || (block >= range.first && block < range.first + range.count));
        if (is_freed) REQUIRE_FALSE(users.contains(cell));
        return is_freed;
      });
    map_.state.free_ranges().finish({});
    for (const auto& [cell, versions] : users) REQUIRE(allocated_.contains(cell));
    REQUIRE(allocated_.size() == users.size());
    // What removing a version would free is what it alone has.
    std::map<uint32_t, uint64_t> own;
    for (const auto& [cell, versions] : users)
      if (versions.size() == 1) ++own[*versions.begin()];
    for (const auto& [version, sources] : sources_) {
      const VersionRecord* record = std::as_const(map_.state).find(version);
      if (record->children.size() > 1 || map_.state.table().is_pinned(version)) continue;
      CAPTURE(version);
      CHECK(map_.count_own(version) == own[version]);
    }
    const uint32_t current = map_.state.current().number;
    CHECK(map_.state.current().file_blocks ==
          static_cast<uint64_t>(
              std::count(sources_[current].begin(), sources_[current].end(), current)));
  }

 private:
  void update(uint64_t first, uint64_t count, uint32_t source) {
    const uint32_t current = map_.state.current().number;
    map_.apply(UpdateRecord{{kFirst + first, count}, source});
    for (uint64_t i = first; i < first + count; ++i) {
      uint32_t& at = sources_[current][i];
      // Current's own cells are punched by who trims them.
      if (at == current && source != current) allocated_.erase({current, i});
      if (source == current) allocated_.insert({current, i});
      at = source;
    }
  }
  void freeze(Random& random, uint32_t parent) {
    const uint32_t current = map_.state.current().number;
    FreezeRecord record;
    record.next = current + 1;
    record.parent = parent;
    record.created_ns = static_cast<int64_t>(random.below(1000));
    record.size_bytes = std::as_const(map_.state).find(parent)->size_bytes;
    record.is_unswept = random.chance(2);
    if (random.chance(2)) record.name = fmt::format("v{}", current);
    if (random.chance(2)) record.note = std::string(random.below(100), 'n');
    if (random.chance(2)) record.origin = {random_uuid(), 7};
    record.for_reader = record.name.empty() && random.chance(4);
    map_.apply(record);
    sources_[current + 1] = sources_[parent];
  }

  StateUnderTest& map_;
  std::map<uint32_t, std::array<uint32_t, kBlocks>> sources_;
  std::set<Cell> allocated_;  // as (source, index of the block)
};

}  // namespace

TEST_CASE(
    "records do what a model of arrays does, and every cell is freed once, when nothing has it") {
  Random random(test_seed());
  for (uint64_t round = 0; round < test_operations(kIsSanitized ? 20 : 500); ++round) {
    StateUnderTest map;
    Model model(map);
    for (int i = 0; i < 2000; ++i) {
      model.change(random);
      if (random.chance(50)) model.check_cells();
      if (random.chance(500)) map.checkpoint();
    }
    model.check_sources(map.state);
    model.check_cells();
  }
}

TEST_CASE("what a crash may have left is outstanding until it is swept") {
  StateUnderTest under_test;
  CHECK_FALSE(under_test.state.has_outstanding());
  under_test.state.note_swept(0, false);
  CHECK(under_test.state.has_outstanding());
  under_test.state.note_swept(1);
  CHECK_FALSE(under_test.state.has_outstanding());
}

TEST_CASE("a node that is not in memory is an answer, and the update goes on where it stopped") {
  StateUnderTest map;
  // More than fits a slot of a page, in two regions.
  for (const uint64_t block : {0, 2, 4, 32, 34}) map.apply(UpdateRecord{kFirst + block, 1, 1});
  map.checkpoint();
  UpdateRecord record{kFirst + 1, 40, kSourceZero};
  const MapState::Applied applied = map.state.apply(record);
  REQUIRE(applied.missing);
  CHECK(applied.missing->level == 1);  // pages further up stay
  CHECK_FALSE(applied.has_changed);
  CHECK(record.count == 40);
  // When all but the second region's leaf is there, the first one's part is done.
  map.source_of(map.state, 0, kFirst);
  const MapState::Applied first = map.state.apply(record);
  REQUIRE(first.missing);
  CHECK(first.missing->level == 0);
  CHECK(first.has_changed);
  CHECK(record.first == kRegionBlocks);
  CHECK(record.count == 9);
  map.source_of(map.state, 0, kRegionBlocks);
  CHECK_FALSE(map.state.apply(record).missing);
  CHECK(record.count == 0);
  for (uint64_t i = 0; i < kBlocks; ++i)
    CHECK(map.source_of(map.state, 0, kFirst + i) == (i == 0    ? 1
                                                      : i <= 40 ? kSourceZero
                                                                : kSourceUnmapped));
}

TEST_CASE("a state that is replayed from the records of its changes is the same") {
  Random random(test_seed());
  for (uint64_t round = 0; round < test_operations(kIsSanitized ? 20 : 500); ++round) {
    StateUnderTest map;
    StateUnderTest replayed;
    Model model(map);
    const auto replay = [&] {
      const UpdateBatch::Cut cut = map.pending.cut();
      Decoder decoder(cut.records, "log");
      while (!decoder.empty()) {
        MapRecord record = decode_record(decoder);
        REQUIRE(replayed.state.allows(record));
        replayed.apply_and_load(replayed.state, record);
      }
      map.state.free_ranges().cut();
      replayed.state.free_ranges().cut();
    };
    for (int i = 0; i < 1000; ++i) {
      model.change(random);
      // Which may be at any time after the record, and in any step of a replay.
      if (random.chance(30)) map.run_removals();
      if (random.chance(100)) replay();
    }
    replay();
    map.run_removals();
    replayed.run_removals();
    replay();
    map.check_same(replayed.state);
    model.check_sources(replayed.state);
    for (const auto& [number, version] : map.state.table().all())
      CHECK(map.count_own(number) == replayed.count_own(number));
  }
}

TEST_CASE("a state that is read back from a checkpoint is the same") {
  Random random(test_seed());
  for (uint64_t round = 0; round < test_operations(kIsSanitized ? 5 : 30); ++round) {
    StateUnderTest map;
    Model model(map);
    for (int checkpoint = 0; checkpoint < 10; ++checkpoint) {
      // Few changes, perhaps, none of which marks the rows that they change by itself.
      for (uint64_t i = random.chance(2) ? 300 : random.below(20); i > 0; --i) model.change(random);
      MapState copy = map.read_back(map.checkpoint());
      map.check_same(copy);
      model.check_sources(copy);
      CHECK(copy.usage().live_bytes == map.state.usage().live_bytes);
    }
    CHECK(map.loads > 0);
  }
}

TEST_CASE("what cannot follow on what happened is not allowed") {
  StateUnderTest map;
  FreezeRecord freeze;
  freeze.next = 2;
  freeze.parent = 1;
  freeze.size_bytes = kDiskBytes;
  CHECK(map.state.allows(freeze));
  CHECK_FALSE(map.state.allows(HideRecord{1}));
  CHECK_FALSE(map.state.allows(CollectRecord{1}));
  CHECK_FALSE(map.state.allows(PinRecord{1, random_uuid()}));
  map.apply(freeze);
  CHECK_FALSE(map.state.allows(freeze));
  freeze.next = 3;
  CHECK(map.state.allows(freeze));
  freeze.parent = 3;
  CHECK_FALSE(map.state.allows(freeze));
  freeze.parent = 1;
  map.apply(freeze);  // a rollback: version 1 has two children
  CHECK(map.state.allows(HideRecord{1}));
  CHECK_FALSE(map.state.allows(CollectRecord{1}));
  CHECK(map.state.allows(CollectRecord{2}));
  CHECK_FALSE(map.state.allows(ResizeRecord{kDiskBytes - 1}));
  CHECK_FALSE(map.state.allows(ResizeRecord{kVolumeBytesMax + 1}));
  CHECK(map.state.allows(ResizeRecord{kDiskBytes}));
  const uint64_t end = kDiskBytes / kBlockBytes;
  CHECK(map.state.allows(UpdateRecord{end - 1, 1, 3}));
  CHECK_FALSE(map.state.allows(UpdateRecord{end - 1, 2, 3}));
  CHECK_FALSE(map.state.allows(UpdateRecord{0, 0, 3}));
  CHECK_FALSE(map.state.allows(UpdateRecord{0, 1, 4}));
  CHECK(map.state.allows(UpdateRecord{0, 1, kSourceUnmapped}));
}

}  // namespace tplstore::map_state_test
