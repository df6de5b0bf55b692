// The tree of a map: in memory against an array, shared between versions, loaded and let go; and in
// the log: written, read, and compared.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>

#include "map/comparison.h"
#include "map/tree.h"
#include "map/tree_copy.h"
#include "volume_testing.h"

namespace tplstore::map_tree_test {
namespace {

constexpr uint64_t kRegion = 70;  // not below the first page of any level but the root
constexpr uint32_t kCurrent = 9;

AssignEffect assign_to(NodeRef& root, uint64_t region, uint32_t first, uint32_t count,
                       uint32_t source, uint32_t current = kCurrent) {
  RunList before;
  REQUIRE_FALSE(find(root, {region * kRegionBlocks + first, count}, before));
  AssignEffect effect;
  assign(root, {{region * kRegionBlocks + first, count}, source}, current, effect);
  return effect;
}

uint32_t source_of(const NodeRef& root, uint64_t region, uint32_t block) {
  RunList runs;
  REQUIRE_FALSE(find(root, {region * kRegionBlocks + block, 1}, runs));
  return runs[0].source;
}

using Blocks = std::array<uint32_t, kRegionBlocks>;

void check_blocks(const NodeRef& root, uint64_t region, const Blocks& blocks) {
  RunList runs;
  REQUIRE_FALSE(find(root, {region * kRegionBlocks, kRegionBlocks}, runs));
  uint64_t at = region * kRegionBlocks;
  for (size_t i = 0; i < runs.size(); ++i) {
    REQUIRE(runs[i].first == at);
    for (uint64_t block = at; block < at + runs[i].count; ++block)
      REQUIRE(blocks[block % kRegionBlocks] == runs[i].source);
    at += runs[i].count;
  }
  CHECK(at == (region + 1) * kRegionBlocks);
}

// A log, and trees in it.
class LogOfTrees {
 public:
  LogOfTrees() : log(MapLog::create(backend_, "v", random_uuid(), 1)) {
    log->start_writing(MapLog::start());
  }
  // Writes what of trees is in memory, and takes it for written; each node once. What there was of
  // a node before is the base of a leaf that may be a difference.
  void write(const std::vector<NodeRef>& roots) {
    TreeWriter writer(*log);
    TreeReader reader(log, mutex);
    std::vector<NodeRef> written_roots(roots.size());
    for (size_t i = 0; i < roots.size(); ++i)
      writer.add_changed(reader, roots[i], {&written_roots[i]});
    writer.finish();
    for (const TreeWriter::Written& written : writer.written()) {
      written.node->address = written.address;
      written.node->is_dirty = false;
    }
    nodes_written = writer.written().size();
    full_nodes = static_cast<size_t>(
        std::count_if(writer.written().begin(), writer.written().end(),
                      [](const TreeWriter::Written& written) { return written.is_full; }));
    bytes_written = writer.written_bytes();
  }
  void find_loading(NodeRef& root, uint64_t region) {
    RunList runs;
    while (const auto missing = find(root, {region * kRegionBlocks, 1}, runs)) {
      install(root, *missing, read_node(*log, *missing));
    }
  }

 private:
  MemoryBackend backend_;

 public:
  std::shared_ptr<MapLog> log;
  SpinningSharedMutex mutex;
  size_t nodes_written = 0;
  size_t full_nodes = 0;
  uint64_t bytes_written = 0;
};

// Ten intervals of version 1.
void assign_ten(NodeRef& root, uint64_t region) {
  for (uint32_t i = 0; i < 10; ++i) assign_to(root, region, 2 * i, 1, 1);
}

}  // namespace

TEST_CASE("a tree holds what was assigned last") {
  Random random(test_seed());
  NodeRef root;
  Blocks blocks;
  blocks.fill(kSourceUnmapped);
  const uint32_t sources[] = {kCurrent, 3, kSourceZero, kSourceUnmapped};
  for (int i = 0; i < 5000; ++i) {
    const auto first = static_cast<uint32_t>(random.below(kRegionBlocks));
    const auto count =
        static_cast<uint32_t>(1 + random.below(random.chance(20) ? kRegionBlocks - first : 5));
    const uint32_t within = std::min<uint32_t>(count, kRegionBlocks - first);
    const uint32_t source = sources[random.below(4)];
    assign_to(root, kRegion, first, within, source);
    std::fill_n(blocks.begin() + first, within, source);
    if (i % 100 == 0) check_blocks(root, kRegion, blocks);
  }
  check_blocks(root, kRegion, blocks);
  CHECK(source_of(root, kRegion + 1, 0) == kSourceUnmapped);
  CHECK(source_of(root, kRegionsMax - 1, 0) == kSourceUnmapped);
}

TEST_CASE("a version is a root that was copied: what is assigned later is not in it") {
  NodeRef root;
  assign_ten(root, kRegion);
  const NodeRef frozen = root;
  const uint64_t before = node_memory_bytes();
  assign_to(root, kRegion, 1, 1, kCurrent);
  CHECK(source_of(frozen, kRegion, 1) == kSourceUnmapped);
  CHECK(source_of(root, kRegion, 1) == kCurrent);
  // The path is copied once.
  const uint64_t copied = node_memory_bytes() - before;
  CHECK(copied > 0);
  assign_to(root, kRegion, 3, 1, kCurrent);
  CHECK(node_memory_bytes() - before < copied + 100);
}

TEST_CASE("a region that is one interval takes no leaf, and loses the one that it had") {
  NodeRef root;
  assign_to(root, kRegion, 0, kRegionBlocks, 1);
  const uint64_t pages_only = node_memory_bytes();
  assign_to(root, kRegion, 5, 1, 2);
  CHECK(node_memory_bytes() > pages_only);
  assign_to(root, kRegion, 5, 1, 1);
  CHECK(node_memory_bytes() == pages_only);
  CHECK(source_of(root, kRegion, 5) == 1);
}

TEST_CASE("a tree in the log is read node by node; who asks is told which one is missing") {
  LogOfTrees logged;
  NodeRef root;
  assign_ten(root, kRegion);
  logged.write({root});
  NodeRef read = root.on_disk();
  RunList runs;
  for (uint32_t level = kPageLevels + 1; level-- > 0;) {
    const auto missing = find(read, {kRegion * kRegionBlocks, 1}, runs);
    REQUIRE(missing);
    CHECK(missing->level == level);
    CHECK(missing->index == kRegion >> (6 * level));
    CHECK(runs.size() == 0);
    install(read, *missing, read_node(*logged.log, *missing));
  }
  CHECK(source_of(read, kRegion, 2) == 1);
  CHECK(source_of(read, kRegion, 3) == kSourceUnmapped);
}

TEST_CASE("what is installed where something else is by now changes nothing") {
  LogOfTrees logged;
  NodeRef root;
  assign_ten(root, kRegion);
  logged.write({root});
  NodeRef read = root.on_disk();
  RunList runs;
  const auto missing = find(read, {kRegion * kRegionBlocks, 1}, runs);
  REQUIRE(missing);
  const NodeRef late = read_node(*logged.log, *missing);
  logged.find_loading(read, kRegion);
  assign_to(read, kRegion, 0, 1, kCurrent);
  install(read, *missing, late);
  CHECK(source_of(read, kRegion, 0) == kCurrent);
}

TEST_CASE("the evictor lets go of what is written and was not looked at, and of nothing else") {
  LogOfTrees logged;
  NodeRef root;
  for (uint64_t region = 0; region < 100; ++region) assign_ten(root, region);
  uint64_t cursor = 0;
  const auto pass = [&] {
    do {
      evict(root, cursor, 8);
    } while (cursor != 0);
  };
  const uint64_t all = loaded_bytes(root);
  for (int i = 0; i < 3; ++i) pass();
  CHECK(loaded_bytes(root) == all);  // nothing is written
  logged.write({root});
  pass();
  CHECK(loaded_bytes(root) == all);  // all of it was looked at just now
  RunList runs;
  REQUIRE_FALSE(find(root, {50 * kRegionBlocks, 1}, runs));
  pass();
  const uint64_t kept = loaded_bytes(root);
  CHECK(kept < all / 2);
  CHECK_FALSE(find(root, {50 * kRegionBlocks, 1}, runs));
  CHECK(find(root, {51 * kRegionBlocks, 1}, runs));
  logged.find_loading(root, 51);
  CHECK(source_of(root, 51, 2) == 1);
}

TEST_CASE("what a small change of a large leaf writes is the difference, and not forever") {
  LogOfTrees logged;
  NodeRef root;
  for (uint32_t i = 0; i < 400; ++i) assign_to(root, kRegion, 2 * i, 1, 1 + i % 3);
  logged.write({root});
  CHECK(logged.full_nodes == kPageLevels + 1);
  const uint64_t full_bytes = logged.bytes_written;
  uint32_t differences = 0;
  uint32_t full_leaves = 0;
  for (uint32_t i = 0; i < 40; ++i) {
    assign_to(root, kRegion, 2 * i, 1, kCurrent);
    logged.write({root});
    CHECK(logged.nodes_written == kPageLevels + 1);
    const bool is_full = logged.full_nodes == kPageLevels + 1;
    (is_full ? full_leaves : differences) += 1;
    if (!is_full) CHECK(logged.bytes_written < full_bytes / 2);
    const StoredLeaf leaf = read_leaf(
        *logged.log,
        [&] {
          NodeRef slot = root;
          for (uint32_t level = kPageLevels; level > 0; --level)
            slot = static_cast<Page*>(slot.node())->slots[kRegion >> (6 * (level - 1)) & 63];
          return slot.node()->address;
        }(),
        kRegion);
    CHECK(leaf.depth <= kLeafDeltasMax);
    CHECK(leaf.delta_bytes <= leaf.full_bytes);
    Blocks blocks;
    blocks.fill(kSourceUnmapped);
    for (uint32_t j = 0; j < 400; ++j) blocks[2 * j] = j <= i ? kCurrent : 1 + j % 3;
    NodeRef read = root.on_disk();
    logged.find_loading(read, kRegion);
    check_blocks(read, kRegion, blocks);
  }
  CHECK(differences > 20);
  CHECK(full_leaves >= 2);
}

TEST_CASE("what trees share is written once, and a walk of their difference skips it") {
  LogOfTrees logged;
  NodeRef root;
  for (uint64_t region = 0; region < 200; ++region) assign_ten(root, region);
  const NodeRef frozen = root;
  assign_to(root, 77, 1, 1, kCurrent);
  assign_to(root, 150, 0, 4, kSourceUnmapped);
  logged.write({frozen, root});
  // 200 leaves and their pages, and two paths to a leaf, which have the upper pages in common.
  CHECK(logged.nodes_written == (200 + 4 + 1 + 1 + 1) + (2 + 2 + 3));
  for (const bool from_log : {false, true}) {
    CAPTURE(from_log);
    const NodeRef a = from_log ? frozen.on_disk() : frozen;
    const NodeRef b = from_log ? root.on_disk() : root;
    TreeReader reader(logged.log, logged.mutex);
    using Change = std::array<uint64_t, 3>;  // a block, its source before, and after
    const auto changes = [&](const NodeRef& to, uint64_t begin_region, uint64_t end_region) {
      std::vector<Change> all;
      find_difference(
          reader, a, to,
          {begin_region * kRegionBlocks + 1, (end_region - begin_region) * kRegionBlocks - 1},
          [&](const Run& before, const Run& after) {
            CHECK(before.first == after.first);
            CHECK(before.count == 1);
            all.push_back({after.first, before.source, after.source});
          });
      return all;
    };
    const Change first{77 * kRegionBlocks + 1, kSourceUnmapped, kCurrent};
    CHECK(changes(b, 0, 1 << 20) ==
          std::vector<Change>{first,
                              {150 * kRegionBlocks, 1, kSourceUnmapped},
                              {150 * kRegionBlocks + 2, 1, kSourceUnmapped}});
    CHECK(changes(b, 77, 78) == std::vector<Change>{first});
    CHECK(changes(b, 78, 150).empty());
    CHECK(changes(a, 0, 1 << 20).empty());
    // What is the same is not even looked at.
    std::vector<uint32_t> regions;
    reader.walk(
        {a, b}, 0, kRegionsMax,
        [&](const std::vector<NodeRef>& slots, uint32_t) {
          return !reader.is_same(slots[0], slots[1]);
        },
        [&](uint32_t region, const std::vector<NodeRef>&) { regions.push_back(region); });
    CHECK(regions == std::vector<uint32_t>{77, 150});
  }
}

TEST_CASE("a removal is compared where neither who comes after nor the ancestor has the same") {
  LogOfTrees logged;
  NodeRef root;
  for (uint64_t region = 0; region < 3; ++region) assign_to(root, region, 0, 8, 1, 1);
  const NodeRef ancestor = root;
  assign_to(root, 0, 0, 2, 2, 2);  // the successor keeps that
  assign_to(root, 1, 0, 2, 2, 2);  // and replaces that
  const NodeRef version = root;
  assign_to(root, 1, 0, 1, 3, 3);
  TreeReader reader(logged.log, logged.mutex);
  const LoneCells cells = find_lone_cells(reader, {1, version, root, ancestor});
  CHECK(cells.ranges == std::vector<FreeRange>{{2, 1, kRegionBlocks}});
  CHECK(cells.counts == std::map<uint32_t, uint64_t>{{2, 1}});
  CHECK(count_lone_cells(reader, {1, version, root, ancestor}) == 1);
  // Without a successor, what the ancestor has is told by the floor only where regions differ.
  const LoneCells more = find_lone_cells(reader, {0, version, {}, ancestor});
  CHECK(more.counts == std::map<uint32_t, uint64_t>{{1, 12}, {2, 4}});
  CHECK(find_lone_cells(reader, {1, version, {}, ancestor}).counts ==
        std::map<uint32_t, uint64_t>{{2, 4}});
}

TEST_CASE("a walk of all trees sees each different slot of a region once") {
  LogOfTrees logged;
  NodeRef root;
  assign_to(root, 5, 0, 8, 1, 1);
  assign_to(root, 5, 100, 8, 1, 1);
  const NodeRef first = root;
  assign_to(root, 6, 0, 8, 2, 2);
  const NodeRef second = root;
  assign_to(root, 5, 0, 1, 3, 3);
  logged.write({first, second, root});
  TreeReader reader(logged.log, logged.mutex);
  const std::vector<NodeRef> roots = {first, second, second.on_disk(), root, NodeRef()};
  std::vector<std::pair<uint32_t, size_t>> seen;
  reader.walk(
      roots, 0, kRegionsMax,
      [&](std::vector<NodeRef>& slots, uint32_t) {
        reader.remove_duplicates(slots);
        return !slots.empty();
      },
      [&](uint32_t region, const std::vector<NodeRef>& slots) {
        seen.emplace_back(region, slots.size());
      });
  CHECK(seen == std::vector<std::pair<uint32_t, size_t>>{{5, 2}, {6, 1}});
  const std::vector<FreeRange> ones{{1, 8, 5 * kRegionBlocks}, {1, 8, 5 * kRegionBlocks + 100}};
  CHECK(find_cells_up_to(1, reader, roots, 0, kRegionsMax) == ones);
  CHECK(find_cells_up_to(2, reader, roots, 6, 7) ==
        std::vector<FreeRange>{{2, 8, 6 * kRegionBlocks}});
}

TEST_CASE("a tree that is copied into another log is the same there, and costs what it changed") {
  LogOfTrees logged;
  LogOfTrees other;
  NodeRef root;
  for (uint64_t region = 0; region < 200; ++region) assign_ten(root, region);
  logged.write({root});
  const NodeRef frozen = root.on_disk();
  assign_to(root, 77, 1, 1, kCurrent);
  TreeCopier copier(logged.log, other.log, logged.mutex);
  const CopiedTree base = copier.copy(frozen);
  CHECK(copier.data_blocks() == 2000);
  const uint64_t whole_bytes = copier.written_bytes();
  const CopiedTree changed = copier.copy(root, base);
  CHECK(copier.written_bytes() - whole_bytes < whole_bytes / 10);
  const CopiedTree again = copier.copy(root, changed);
  CHECK(again.copy == changed.copy);

  Blocks blocks;
  blocks.fill(kSourceUnmapped);
  for (uint32_t i = 0; i < 10; ++i) blocks[2 * i] = 1;
  NodeRef read = base.copy;
  for (uint64_t region = 0; region < 200; ++region) {
    other.find_loading(read, region);
    check_blocks(read, region, blocks);
  }
  read = changed.copy;
  blocks[1] = kCurrent;
  other.find_loading(read, 77);
  check_blocks(read, 77, blocks);

  // What has changed since is taken along in memory: what is the same leads to the copy.
  assign_to(root, 78, 1, 1, kCurrent);
  const TreeCopier::Relocation relocation = copier.plan_relocation(root, changed);
  CHECK(relocation.nodes.size() == kPageLevels + 1);
  for (const auto& [slot, copy] : relocation.slots) *slot = copy;
  for (const auto& [node, address] : relocation.nodes) node->address = address;
  other.find_loading(root, 77);
  check_blocks(root, 77, blocks);
  check_blocks(root, 78, blocks);
}

}  // namespace tplstore::map_tree_test
