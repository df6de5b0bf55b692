// The list of versions: who descends from whom, what may go, and what stands in the log.
#include "map/version_table.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "template_testing.h"

namespace tplstore::version_table_test {
namespace {

VersionRecord version_of(uint32_t number, uint32_t parent) {
  VersionRecord version;
  version.number = number;
  version.parent = parent;
  version.size_bytes = kBlockBytes;
  return version;
}

// 1 ─ 2 ─ 3 ─ current (5)
//      └ 4
class Lineage {
 public:
  Lineage() {
    for (const auto& [number, parent] : {std::pair{1, 0}, {2, 1}, {3, 2}, {4, 2}})
      table.add(version_of(number, parent));
    current = version_of(5, 3);
    table.link_all(current);
  }
  VersionRecord& at(uint32_t number) { return *table.find(number); }

  VersionTable table;
  VersionRecord current;
};

}  // namespace

TEST_CASE("a removed version goes when at most one descends from it and no fork is pinned to it") {
  Lineage family;
  VersionTable& table = family.table;
  CHECK_FALSE(table.collectible());
  table.hide(family.at(2));
  CHECK_FALSE(table.collectible());
  table.hide(family.at(3));
  CHECK(table.collectible() == 3);
  const Uuid fork = random_uuid();
  table.pins.push_back({3, 0, fork});
  CHECK_FALSE(table.collectible());
  table.hide(family.at(4));
  CHECK(table.collectible() == 4);
  table.take_out(4, family.current);
  // Now 2 has one that descends from it.
  CHECK(table.collectible() == 2);
  table.pins.clear();
  table.take_out(2, family.current);
  CHECK(table.collectible() == 3);
}

TEST_CASE("who descends from a version that goes descends from its parent, and is counted anew") {
  Lineage family;
  VersionTable& table = family.table;
  for (const uint32_t number : {1, 2, 3}) family.at(number).set_own(7);
  family.current.set_own(7);
  family.at(3).file_blocks = 11;
  table.take_out(3, family.current);
  CHECK(table.find(3) == nullptr);
  CHECK(family.current.parent == 2);
  CHECK(table.floor_of(family.current) == 2);
  CHECK(std::set<uint32_t>(family.at(2).children.begin(), family.at(2).children.end()) ==
        std::set<uint32_t>{4, 5});
  CHECK_FALSE(family.current.is_own_known());
  CHECK_FALSE(family.at(2).is_own_known());
  CHECK(family.at(1).is_own_known());
  CHECK(table.removed_files == std::map<uint32_t, uint64_t>{{3, 11}});
  // The first one's child has no ancestor left, and a version without cells leaves no file.
  table.take_out(1, family.current);
  CHECK(family.at(2).parent == 0);
  CHECK(table.floor_of(family.at(2)) == 0);
  CHECK(table.removed_files.size() == 1);
}

TEST_CASE("the floor of a fork's first version is where it began, until it is being flattened") {
  VersionTable table;
  table.sources = {{3, 0, random_uuid()}, {7, 0, random_uuid()}};
  CHECK(table.floor_of(version_of(8, 7)) == 7);
  table.flattens = true;
  CHECK(table.floor_of(version_of(8, 7)) == 0);
}

TEST_CASE("names lead to versions that can be seen, and a hidden one has none") {
  Lineage family;
  VersionTable& table = family.table;
  family.at(4).name = "monday";
  CHECK(table.find_name("monday") == table.find(4));
  CHECK(table.find_name("") == nullptr);
  table.hide(family.at(4));
  CHECK(table.find_name("monday") == nullptr);
  CHECK(family.at(4).name.empty());
}

TEST_CASE("a version for a reader is hidden, but not removed before it is hidden for good") {
  Lineage family;
  VersionRecord version = version_of(6, 5);
  version.flags = kVersionForReader;
  family.table.add(version);
  CHECK(family.at(6).is_hidden());
  CHECK_FALSE(family.at(6).is_removed());
  CHECK(family.table.for_readers() == std::set<uint32_t>{6});
  CHECK_FALSE(family.table.collectible());
  family.table.hide(family.at(6));
  CHECK(family.table.for_readers().empty());
  CHECK(family.table.collectible() == 6);
  // The same is found out when the rows are read.
  family.table.link_all(family.current);
  CHECK(family.table.collectible() == 6);
}

TEST_CASE("a group of versions is read as it was written; another group's is not") {
  constexpr uint64_t kSeed = 9;
  std::map<uint32_t, VersionRecord> written;
  VersionRecord full = version_of(33, 31);
  full.created_ns = -7;
  full.own_blocks = 1;
  full.file_blocks = 2;
  full.foreign_blocks = 3;
  full.flags = kVersionOwnKnown | kVersionUnswept;
  full.name = "monday";
  full.note = "before the upgrade";
  full.origin = {random_uuid(), 4};
  const NodeRef root = NodeRef::of_address(NodeAddress::make(4096, 64));
  written[33] = full;
  written[34] = version_of(34, 33);
  written[64] = version_of(64, 34);  // of the next group
  Encoder bytes;
  encode_group(bytes, kSeed, 1, 70, written, {{33, root}, {34, {}}});
  std::map<uint32_t, VersionRecord> read;
  decode_group(bytes.bytes(), kSeed, 1, "log", read);
  REQUIRE(read.size() == 2);
  const VersionRecord& first = read.at(33);
  CHECK(first.parent == 31);
  CHECK(first.created_ns == -7);
  CHECK(first.own_blocks == 1);
  CHECK(first.file_blocks == 2);
  CHECK(first.foreign_blocks == 3);
  CHECK(first.flags == full.flags);
  CHECK(first.name == full.name);
  CHECK(first.note == full.note);
  CHECK(first.origin == full.origin);
  CHECK(first.root == root);
  CHECK(read.at(34).origin.is_nil());
  const auto code_of = [&](uint32_t group, std::map<uint32_t, VersionRecord> into) {
    return testing::thrown_by([&] { decode_group(bytes.bytes(), kSeed, group, "log", into); }).code;
  };
  CHECK(code_of(1, {}) == 0);
  CHECK(code_of(2, {}) == EIO);
  CHECK(code_of(1, read) == EIO);  // a version that is there twice
}

TEST_CASE("impossible versions are damage") {
  const auto code_of = [](const VersionRecord& version) {
    std::map<uint32_t, VersionRecord> versions;
    versions[version.number] = version;
    Encoder bytes;
    encode_group(bytes, 0, 0, 5, versions, {{version.number, {}}});
    std::map<uint32_t, VersionRecord> read;
    return testing::thrown_by([&] { decode_group(bytes.bytes(), 0, 0, "log", read); }).code;
  };
  const VersionRecord good = version_of(3, 2);
  CHECK(code_of(good) == 0);
  CHECK(code_of(version_of(3, 3)) == EIO);
  CHECK(code_of(version_of(0, 0)) == EIO);
  VersionRecord bad = good;
  bad.size_bytes = kVolumeBytesMax + 1;
  CHECK(code_of(bad) == EIO);
  bad = good;
  bad.name = "a/b";
  CHECK(code_of(bad) == EIO);
  bad = good;
  bad.flags = 1u << 31;
  CHECK(code_of(bad) == EIO);
  bad = good;
  bad.file_blocks = kVolumeBytesMax;
  CHECK(code_of(bad) == EIO);
}

}  // namespace tplstore::version_table_test
