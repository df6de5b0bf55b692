#include "transfer/block_index.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <map>

#include "memory/memory_backend.h"
#include "template_testing.h"
#include "transfer/block_matcher.h"

namespace tplstore::block_index_test {
using namespace tplstore::testing;

namespace {

constexpr uint32_t kNoneBuilt = UINT32_MAX;

bool has(const BlockIndex::Candidates& found, BlockLocation location) {
  return std::find(found.all().begin(), found.all().end(), location) != found.all().end();
}

BlockMatcher::Wanted wanted(const ByteVector& block) {
  return {hash_of(block), block, std::nullopt};
}

}  // namespace

TEST_CASE("an index finds what was inserted, while it grows") {
  BlockIndex index;
  CHECK(index.find({1, 2}).count == 0);
  std::mt19937_64 random(3);
  std::map<Hash128, BlockLocation> model;
  for (uint32_t i = 0; i < 20000; ++i) {
    const Hash128 hash{random(), random()};
    const BlockLocation location{i / 1024, i % 1024};
    index.insert(hash, location);
    model[hash] = location;
  }
  for (const auto& [hash, location] : model) REQUIRE(has(index.find(hash), location));
  for (int i = 0; i < 1000; ++i) REQUIRE(index.find({random(), random()}).count == 0);
  CHECK(index.block_count() == 20000);
  CHECK(index.memory_bytes() <= 16 * 20000);
}

TEST_CASE("an index takes 16 bytes per block at most, also while it grows") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  MESSAGE("skipped: sanitizers take memory of their own");
#else
  // Of this process, at most since it was asked to count anew.
  const auto peak_bytes = [] {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
    return 0ull;
  };
  std::ofstream("/proc/self/clear_refs") << "5";
  const uint64_t before = peak_bytes();
  BlockIndex index;
  std::mt19937_64 random(4);
  for (const uint32_t count : {400'000, 1'000'000, 2'500'000, 4'000'000}) {
    for (auto i = static_cast<uint32_t>(index.block_count()); i < count; ++i)
      index.insert({random(), random()}, {i / 1024, i % 1024});
    CAPTURE(count);
    // What is given back goes in steps of 12 MiB.
    CHECK(peak_bytes() - before <= 16 * uint64_t{count} + (12 << 20));
    CHECK(index.memory_bytes() <= 16 * uint64_t{count});
  }
#endif
}

TEST_CASE("hashes that all fall in the same place are all found") {
  BlockIndex index;
  for (uint32_t i = 0; i < 3000; ++i) index.insert({0, UINT64_MAX - i}, {0, i % 1024});
  for (uint32_t i = 0; i < 3000; ++i) REQUIRE(has(index.find({0, UINT64_MAX - i}), {0, i % 1024}));
}

TEST_CASE("equal hashes keep a few places and no more, the last one among them") {
  BlockIndex index;
  for (uint32_t i = 0; i < 1000; ++i) index.insert({1, 1}, {0, i});
  const auto found = index.find({1, 1});
  CHECK(found.count == BlockIndex::kCandidatesMax);
  CHECK(has(found, {0, 0}));
  CHECK(has(found, {0, 999}));
  CHECK(index.block_count() == BlockIndex::kCandidatesMax);
}

TEST_CASE("loading indexes every segment of the store but the damaged") {
  MemoryBackend backend;
  make_template(backend, "a", {1, 2, 3, 4, 5}, 5 * kBlockBytes, 2);
  make_template(backend, "b", {9}, kBlockBytes);
  BlockSource blocks(backend);
  BlockIndex index;
  CHECK(index.load(backend, blocks) == 0);
  CHECK(index.segment_count() == 4);
  CHECK(index.block_count() == 6);
  for (const uint64_t number : {1, 2, 3, 4, 5, 9}) {
    const auto found = index.find(hash_of(block_of(number)));
    REQUIRE(found.count == 1);
    const auto& segment = index.segment(found.locations[0].segment);
    const auto object = backend.open(segment_path(segment.name), Access::kRead, Purpose::kData);
    ByteVector bytes(kBlockBytes);
    object->read(found.locations[0].block * uint64_t{kBlockBytes}, bytes);
    CHECK(bytes == block_of(number));
  }
  const auto object =
      backend.open(segment_path(list_segments(backend)[0]), Access::kWrite, Purpose::kData);
  object->write(object->size_bytes() - 1, as_bytes("x"));
  BlockIndex again;
  CHECK(again.load(backend, blocks) == 1);
  CHECK(again.segment_count() == 3);
}

TEST_CASE("a match needs equal bytes, not just an equal hash") {
  MemoryBackend backend;
  make_template(backend, "a", {1, 2}, 2 * kBlockBytes);
  BlockSource blocks(backend);
  BlockIndex index;
  index.load(backend, blocks);
  const ByteVector other = block_of(3), same = block_of(2);
  index.insert(hash_of(other), {0, 0});  // as if 1 and 3 collided
  BlockMatcher matcher(blocks, index);
  std::vector<BlockMatcher::Wanted> batch = {wanted(other), wanted(same)};
  matcher.match(batch, std::nullopt, kNoneBuilt);
  CHECK_FALSE(batch[0].match);
  REQUIRE(batch[1].match);
  CHECK(*batch[1].match == BlockLocation{0, 1});
}

TEST_CASE("behind a colliding place the right one is still found") {
  MemoryBackend backend;
  make_template(backend, "a", {1, 2, 3}, 3 * kBlockBytes);
  BlockSource blocks(backend);
  BlockIndex index;
  index.load(backend, blocks);
  const ByteVector block = block_of(3);
  const Hash128 hash = hash_of(block);
  BlockIndex colliding;
  colliding.load(backend, blocks);
  colliding.insert(hash, {0, 0});
  BlockMatcher matcher(blocks, colliding);
  // The colliding place continues the previous block, so it is tried first.
  std::vector<BlockMatcher::Wanted> batch = {wanted(block)};
  matcher.match(batch, BlockLocation{0, UINT32_MAX}, kNoneBuilt);
  REQUIRE(batch[0].match);
  CHECK(*batch[0].match == BlockLocation{0, 2});
}

TEST_CASE("of equal places the one that continues the previous block is taken") {
  MemoryBackend backend;
  make_template(backend, "a", {5, 6}, 2 * kBlockBytes);
  make_template(backend, "b", {7, 5, 6}, 3 * kBlockBytes);
  BlockSource blocks(backend);
  BlockIndex index;
  index.load(backend, blocks);
  const auto places = index.find(hash_of(block_of(6)));
  REQUIRE(places.count == 2);
  BlockMatcher matcher(blocks, index);
  const ByteVector five = block_of(5), six = block_of(6);
  for (const BlockLocation& place : places.all()) {
    // Behind block 5 of each of the two.
    std::vector<BlockMatcher::Wanted> batch = {wanted(six)};
    matcher.match(batch, BlockLocation{place.segment, place.block - 1}, kNoneBuilt);
    REQUIRE(batch[0].match);
    CHECK(*batch[0].match == place);
    // And within one batch.
    batch = {wanted(five), wanted(six)};
    matcher.match(batch, BlockLocation{place.segment, place.block - 2}, kNoneBuilt);
    REQUIRE((batch[0].match && batch[1].match));
    CHECK(batch[0].match->segment == batch[1].match->segment);
  }
}

TEST_CASE("blocks that really collide are told apart") {
  const auto [first, second] = colliding_blocks(kTestSecret);
  REQUIRE(first != second);
  REQUIRE(hash_of(first) == hash_of(second));
  MemoryBackend backend;
  make_store(backend);
  SegmentBuilder builder(kTestSecret);
  builder.add(first, hash_of(first));
  publish_segment(builder, backend);
  BlockSource blocks(backend);
  BlockIndex index;
  index.load(backend, blocks);
  BlockMatcher matcher(blocks, index);
  std::vector<BlockMatcher::Wanted> batch = {wanted(second), wanted(first)};
  matcher.match(batch, std::nullopt, kNoneBuilt);
  CHECK_FALSE(batch[0].match);
  CHECK(batch[1].match);
}

TEST_CASE("a place that cannot be read is not a match") {
  MemoryBackend backend;
  make_template(backend, "a", {1}, kBlockBytes);
  BlockSource blocks(backend);
  BlockIndex index;
  index.load(backend, blocks);
  backend.remove(segment_path(list_segments(backend)[0]));
  BlockMatcher matcher(blocks, index);
  const ByteVector block = block_of(1);
  std::vector<BlockMatcher::Wanted> batch = {wanted(block)};
  matcher.match(batch, std::nullopt, kNoneBuilt);
  CHECK_FALSE(batch[0].match);
}

}  // namespace tplstore::block_index_test
