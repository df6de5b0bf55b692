// The tree of a map: in memory against an array, shared between versions, loaded and let go; and in
// the log: written, read, and compared.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>

#include "map/tree.h"
#include "map/tree_reader.h"
#include "map/tree_writer.h"
#include "volume_testing.h"

namespace tplstore {
namespace {

constexpr uint64_t kRegion = 70;  // not below the first page of any level but the root
constexpr uint32_t kCurrent = 9;

AssignEffect assign_to(NodeRef& root, uint64_t region, uint32_t first, uint32_t count,
                       uint32_t source, uint32_t current = kCurrent) {
  RunList before;
  REQUIRE_FALSE(find(root, region, first, count, before));
  AssignEffect effect;
  assign(root, region, first, count, source, current, effect);
  return effect;
}

uint32_t source_of(const NodeRef& root, uint64_t region, uint32_t block) {
  RunList runs;
  REQUIRE_FALSE(find(root, region, block, 1, runs));
  return runs[0].source;
}

using Blocks = std::array<uint32_t, kRegionBlocks>;

void check_blocks(const NodeRef& root, uint64_t region, const Blocks& blocks) {
  RunList runs;
  REQUIRE_FALSE(find(root, region, 0, kRegionBlocks, runs));
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
    for (const NodeRef& root : roots) plan(writer, root.node(), {});
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
  NodeRef load(const MissingNode& missing) { return NodeRef::adopt(read_node(*log, missing)); }
  void find_loading(NodeRef& root, uint64_t region) {
    RunList runs;
    while (const auto missing = find(root, region, 0, 1, runs)) {
      Node* node = read_node(*log, *missing);
      install(root, *missing, node);
    }
  }

 private:
  MemoryBackend backend_;

 public:
  std::unique_ptr<MapLog> log;
  SpinningSharedMutex mutex;
  size_t nodes_written = 0;
  size_t full_nodes = 0;
  uint64_t bytes_written = 0;

 private:
  void plan(TreeWriter& writer, Node* node, TreeWriter::Place place) {
    if (writer.link(node, place)) return;
    if (node->is_leaf()) {
      writer.add_leaf(place, node->version, static_cast<Leaf*>(node)->intervals(), node->address,
                      node);
      return;
    }
    TreeWriter::PlannedPage* page = writer.add_page(place, node->version, node);
    const auto& slots = static_cast<Page*>(node)->slots;
    for (uint32_t i = 0; i < kPageSlots; ++i) {
      if (slots[i].is_node() && slots[i].node()->is_dirty) {
        plan(writer, slots[i].node(), {page, i});
      } else {
        page->words[i] = slots[i].disk_word();
      }
    }
  }
};

// The root as it stands on the disk.
NodeRef on_disk(const NodeRef& root) { return NodeRef::of_address(root.node()->address); }

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
  for (uint32_t i = 0; i < 10; ++i) assign_to(root, kRegion, 2 * i, 1, 1);
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
  for (uint32_t i = 0; i < 10; ++i) assign_to(root, kRegion, 2 * i, 1, 1);
  logged.write({root});
  NodeRef read = on_disk(root);
  RunList runs;
  for (uint32_t level = kPageLevels + 1; level-- > 0;) {
    const auto missing = find(read, kRegion, 0, 1, runs);
    REQUIRE(missing);
    CHECK(missing->level == level);
    CHECK(missing->index == kRegion >> (6 * level));
    CHECK(runs.size() == 0);
    Node* node = read_node(*logged.log, *missing);
    install(read, *missing, node);
  }
  CHECK(source_of(read, kRegion, 2) == 1);
  CHECK(source_of(read, kRegion, 3) == kSourceUnmapped);
}

TEST_CASE("what is installed where something else is by now changes nothing") {
  LogOfTrees logged;
  NodeRef root;
  for (uint32_t i = 0; i < 10; ++i) assign_to(root, kRegion, 2 * i, 1, 1);
  logged.write({root});
  NodeRef read = on_disk(root);
  RunList runs;
  const auto missing = find(read, kRegion, 0, 1, runs);
  REQUIRE(missing);
  Node* late = read_node(*logged.log, *missing);
  logged.find_loading(read, kRegion);
  assign_to(read, kRegion, 0, 1, kCurrent);
  install(read, *missing, late);
  CHECK(source_of(read, kRegion, 0) == kCurrent);
}

TEST_CASE("the evictor lets go of what is written and was not looked at, and of nothing else") {
  LogOfTrees logged;
  NodeRef root;
  for (uint64_t region = 0; region < 100; ++region)
    for (uint32_t i = 0; i < 10; ++i) assign_to(root, region, 2 * i, 1, 1);
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
  REQUIRE_FALSE(find(root, 50, 0, 1, runs));
  pass();
  const uint64_t kept = loaded_bytes(root);
  CHECK(kept < all / 2);
  CHECK_FALSE(find(root, 50, 0, 1, runs));
  CHECK(find(root, 51, 0, 1, runs));
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
    NodeRef read = on_disk(root);
    logged.find_loading(read, kRegion);
    check_blocks(read, kRegion, blocks);
  }
  CHECK(differences > 20);
  CHECK(full_leaves >= 2);
}

TEST_CASE("what trees share is written once, and a walk of their difference skips it") {
  LogOfTrees logged;
  NodeRef root;
  for (uint64_t region = 0; region < 200; ++region)
    for (uint32_t i = 0; i < 10; ++i) assign_to(root, region, 2 * i, 1, 1);
  const NodeRef frozen = root;
  assign_to(root, 77, 1, 1, kCurrent);
  assign_to(root, 150, 0, 4, kSourceUnmapped);
  logged.write({frozen, root});
  // 200 leaves and their pages, and two paths to a leaf, which have the upper pages in common.
  CHECK(logged.nodes_written == (200 + 4 + 1 + 1 + 1) + (2 + 2 + 3));
  for (const bool from_log : {false, true}) {
    CAPTURE(from_log);
    const NodeRef a = from_log ? on_disk(frozen) : frozen;
    const NodeRef b = from_log ? on_disk(root) : root;
    TreeReader reader(*logged.log, logged.mutex);
    std::vector<uint32_t> regions;
    const auto visit = [&](uint32_t region, const std::vector<Interval>& x,
                           const std::vector<Interval>& y) {
      regions.push_back(region);
      CHECK(x.size() == 10);
      CHECK(y != x);
    };
    reader.walk_difference(a, b, 0, 1 << 20, visit);
    CHECK(regions == std::vector<uint32_t>{77, 150});
    regions.clear();
    reader.walk_difference(a, b, 78, 150, visit);
    CHECK(regions.empty());
    reader.walk_difference(a, a, 0, 1 << 20, visit);
    CHECK(regions.empty());
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
  TreeReader reader(*logged.log, logged.mutex);
  std::vector<uint32_t> regions;
  reader.walk_removal(version, root, ancestor, [&](const TreeReader::Removal& region) {
    regions.push_back(region.region);
    CHECK(region.version.size() == 2);
    CHECK(region.successor.size() == 3);
  });
  CHECK(regions == std::vector<uint32_t>{1});
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
  TreeReader reader(*logged.log, logged.mutex);
  std::vector<std::pair<uint32_t, size_t>> seen;
  reader.walk_all({first, second, on_disk(second), root, NodeRef()}, 0, kRegionsMax,
                  [&](uint32_t region, const std::vector<NodeRef>& slots) {
                    seen.emplace_back(region, slots.size());
                  });
  CHECK(seen == std::vector<std::pair<uint32_t, size_t>>{{5, 2}, {6, 1}});
}

}  // namespace tplstore
