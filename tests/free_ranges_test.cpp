// Free ranges: how they are joined and written down, and how far each has got.
#include "map/free_ranges.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "map/interval.h"
#include "map/node.h"
#include "template_testing.h"

namespace tplstore::free_ranges_test {

std::ostream& operator<<(std::ostream& to, const FreeRange& range) {
  return to << range.source << ":" << range.first << "+" << range.count;
}

namespace {

using Ranges = std::vector<FreeRange>;

Ranges joined(Ranges ranges) {
  join_free_ranges(ranges);
  return ranges;
}

constexpr FreeRange kA{1, 4, 100};
constexpr FreeRange kB{2, 4, 100};
constexpr FreeRange kC{3, 4, 100};

// Decided, and as durable as the change that caused it.
void add_durable(FreeRanges& free, const FreeRange& range) {
  free.make_room(1);
  free.add(range);
  free.cut();
  free.commit();
}

}  // namespace

TEST_CASE("neighbours of one file are joined, whatever their order; others are not") {
  CHECK(joined({{2, 4, 20}, {1, 4, 20}, {1, 4, 10}, {1, 6, 14}, {1, 1, 25}}) ==
        Ranges{{1, 14, 10}, {1, 1, 25}, {2, 4, 20}});
  CHECK(joined({{1, 10, 0}, {1, 2, 4}, {1, 10, 5}}) == Ranges{{1, 15, 0}});
  CHECK(joined({{1, UINT32_MAX, 0}, {1, 1, UINT32_MAX}}).size() == 2);
}

TEST_CASE("what is part of a file that goes is dropped") {
  CHECK(joined({{1, 4, 10}, {1, 0, 0}, {1, 1, 3}, {2, 4, 10}}) == Ranges{{1, 0, 0}, {2, 4, 10}});
}

TEST_CASE("a range may be punched when a commit whose cut came after it is durable, not before") {
  FreeRanges free;
  free.add(kA);
  CHECK(free.wants_commit());
  CHECK(free.take(10).empty());
  CHECK(free.outstanding().empty());  // nor would it be so after a crash
  free.cut();
  CHECK_FALSE(free.wants_commit());
  CHECK(free.outstanding() == Ranges{kA});
  free.add(kB);
  CHECK(free.take(10).empty());
  free.commit();
  CHECK(free.waiting() == 1);
  CHECK(free.take(10) == Ranges{kA});
  CHECK_FALSE(free.is_empty());
}

TEST_CASE("a range is outstanding until its hole is durable") {
  FreeRanges free;
  add_durable(free, kA);
  add_durable(free, kB);
  CHECK(free.take(1).size() == 1);
  CHECK(free.outstanding() == Ranges{kA, kB});
  free.finish({});
  CHECK(free.outstanding() == Ranges{kA, kB});
  REQUIRE(free.begin_sync());
  CHECK_FALSE(free.take_synced());
  // What is punched now is not part of that sync.
  CHECK(free.take(1) == Ranges{kB});
  free.finish({});
  free.end_sync();
  CHECK(free.outstanding() == Ranges{kB});
  CHECK(free.take_synced());
  CHECK_FALSE(free.take_synced());
  REQUIRE(free.begin_sync());
  free.end_sync();
  CHECK(free.outstanding().empty());
  CHECK_FALSE(free.begin_sync());
  CHECK(free.is_empty());
}

TEST_CASE("what could not be punched is taken again, by itself, or when it is to be tried again") {
  FreeRanges free;
  for (const FreeRange& range : {kA, kB, kC}) add_durable(free, range);
  CHECK(free.take(2) == Ranges{kA, kB});
  free.give_back();
  CHECK(free.take(10) == Ranges{kA, kB, kC});
  // Nobody said what became of those.
  CHECK(free.take(10) == Ranges{kA, kB, kC});
  free.finish({kB.source});
  CHECK(free.take(10).empty());
  CHECK_FALSE(free.is_empty());
  CHECK(free.outstanding() == Ranges{kA, kB, kC});
  free.retry();
  CHECK(free.take(10) == Ranges{kB});
}

TEST_CASE("free ranges are read as they were written, in their own place only") {
  constexpr uint64_t kSeed = 5;
  const Ranges ranges{{1, 0, 0}, {3, 1, 0}, {3, 7, uint64_t{1} << 33}, {9, UINT32_MAX, 4}};
  Encoder bytes;
  encode_free_ranges(bytes, kSeed, 2, 10, ranges);
  Ranges read;
  decode_free_ranges(bytes.bytes(), kSeed, 2, "log", read);
  CHECK(read == ranges);
  const auto code_of = [&](uint64_t seed, uint32_t index) {
    return testing::thrown_by([&] { decode_free_ranges(bytes.bytes(), seed, index, "log", read); })
        .code;
  };
  CHECK(code_of(kSeed, 3) == EIO);
  CHECK(code_of(kSeed + 1, 2) == EIO);
}

TEST_CASE("a free range of no file, or beyond the largest disk, is damage") {
  constexpr uint64_t kBlocksMax = kRegionsMax * kRegionBlocks;
  const auto code_of = [](uint64_t source, uint64_t first, uint64_t count) {
    Encoder bytes;
    const uint64_t start = begin_node(bytes, NodeKind::kFree, 0, 1, 1);
    for (const uint64_t number : {source, first, count}) bytes.put_varint(number);
    end_node(bytes, start, 0, 0);
    Ranges read;
    return testing::thrown_by([&] { decode_free_ranges(bytes.bytes(), 0, 0, "log", read); }).code;
  };
  CHECK(code_of(1, kBlocksMax - 1, 1) == 0);
  CHECK(code_of(0, 0, 1) == EIO);
  CHECK(code_of(kSourceUnmapped, 0, 1) == EIO);
  CHECK(code_of(1, kBlocksMax - 1, 2) == EIO);
  CHECK(code_of(1, UINT64_MAX, 1) == EIO);
  CHECK(code_of(1, 0, uint64_t{UINT32_MAX} + 1) == EIO);
}

}  // namespace tplstore::free_ranges_test
