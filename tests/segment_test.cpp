#include "template/segment.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <optional>

#include "forwarding_backend.h"
#include "memory/memory_backend.h"
#include "template/block_source.h"
#include "template_testing.h"

namespace tplstore::segment_test {
using namespace tplstore::testing;

namespace {

Hash128 publish(Backend& backend, const std::vector<uint64_t>& numbers) {
  SegmentBuilder builder(kTestSecret);
  for (const uint64_t number : numbers) {
    const ByteVector block = block_of(number);
    builder.add(block, hash_of(block));
  }
  return publish_segment(builder, backend);
}

std::vector<uint64_t> numbers_up_to(uint64_t count) {
  std::vector<uint64_t> numbers;
  for (uint64_t i = 1; i <= count; ++i) numbers.push_back(i);
  return numbers;
}

ByteVector content_of(Backend& backend, const Hash128& name) {
  return backend.get(segment_path(name), kSegmentBytesMax).value();
}

std::vector<uint32_t> find_damage(Backend& backend, const Hash128& name) {
  BlockSource source(backend);
  const auto segment = source.hold(name, 0);
  const std::vector<Hash128> table = segment->read_table(kTestSecret);
  ByteVector blocks(table.size() * kBlockBytes);
  segment->read(0, blocks);
  return find_damaged_blocks(blocks, 0, table, kTestSecret);
}

}  // namespace

TEST_CASE("a segment has its blocks first, then their hashes, then the trailer") {
  MemoryBackend backend;
  const Hash128 name = publish(backend, {7, 8, 9});
  const ByteVector content = content_of(backend, name);
  REQUIRE(content.size() == 3 * 4096 + 3 * 16 + 64);
  CHECK(segment_path(name) == "segments/" + name.hex().substr(0, 2) + "/" + name.hex());
  for (uint64_t i = 0; i < 3; ++i) {
    const ByteVector block = block_of(7 + i);
    CHECK(
        std::equal(block.begin(), block.end(), content.begin() + static_cast<ptrdiff_t>(i * 4096)));
    Hash128 hash;
    std::memcpy(&hash, content.data() + 3 * 4096 + i * 16, 16);
    CHECK(hash == hash_of(block));
  }
  CHECK(hash_of(Bytes(content).subspan(3 * 4096, 48)) == name);
  CHECK(to_text(Bytes(content).subspan(3 * 4096 + 48, 8)) == "tplsegm1");
}

TEST_CASE("segments of 1 and of 1024 blocks read back whole") {
  MemoryBackend backend;
  for (const uint64_t count : {1, 1024}) {
    const Hash128 name = publish(backend, numbers_up_to(count));
    const auto object = backend.open(segment_path(name), Access::kRead, Purpose::kData);
    CHECK(read_segment_table(*object, name, kTestSecret).size() == count);
    CHECK(find_damage(backend, name).empty());
    CHECK(open_segment(backend, name, static_cast<uint32_t>(count)) != nullptr);
  }
  CHECK(list_segments(backend).size() == 2);
}

TEST_CASE("publishing the same content again is fine, and does not change it") {
  MemoryBackend backend;
  const Hash128 first = publish(backend, {1, 2});
  const ByteVector before = content_of(backend, first);
  CHECK(publish(backend, {1, 2}) == first);
  CHECK(content_of(backend, first) == before);
}

TEST_CASE(
    "publishing over a segment with other bytes is refused, and the builder keeps its blocks") {
  MemoryBackend backend;
  const Hash128 name = publish(backend, {1, 2});
  const auto object = backend.open(segment_path(name), Access::kWrite, Purpose::kData);
  object->write(5000, as_bytes("x"));
  SegmentBuilder builder(kTestSecret);
  for (const uint64_t number : {1, 2}) builder.add(block_of(number), hash_of(block_of(number)));
  const Thrown thrown = thrown_by([&] { publish_segment(builder, backend); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("exists with other bytes") != std::string::npos);
  CHECK(builder.block_count() == 2);
  CHECK(find_damage(backend, name) == std::vector<uint32_t>{1});
}

TEST_CASE("any flipped bit and any cut of a segment is found") {
  MemoryBackend backend;
  const Hash128 name = publish(backend, numbers_up_to(3));
  const ByteVector good = content_of(backend, name);
  const auto is_found = [&](const ByteVector& content) {
    MemoryBackend damaged;
    damaged.put_new(segment_path(name), content);
    bool is_refused = false;
    const Thrown thrown = thrown_by([&] { is_refused = !find_damage(damaged, name).empty(); });
    return is_refused || thrown.code == EIO || thrown.code == EINVAL;
  };
  CHECK_FALSE(is_found(good));
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const auto check_bit = [&](uint64_t bit) {
    ByteVector content = good;
    content[bit / 8] ^= std::byte{1} << (bit % 8);
    CAPTURE(bit);
    CHECK(is_found(content));
  };
  for (int i = 0; i < 200; ++i) check_bit(random() % (good.size() * 8));
  for (uint64_t bit = 3 * 4096 * 8; bit < good.size() * 8; ++bit) check_bit(bit);
  for (int i = 0; i < 200; ++i) {
    ByteVector content = good;
    content.resize(random() % good.size());
    CHECK(is_found(content));
  }
  for (const size_t more : {1, 64, 4112}) {
    ByteVector content = good;
    content.insert(content.end(), more, std::byte{0});
    CHECK(is_found(content));
  }
}

TEST_CASE("a segment that is missing or of another size is not opened") {
  MemoryBackend backend;
  const Hash128 name = publish(backend, {1, 2});
  CHECK(thrown_by([&] { open_segment(backend, name, 3); }).code == EIO);
  CHECK(thrown_by([&] { open_segment(backend, Hash128{1, 2}, 1); }).code == EIO);
}

TEST_CASE("a segment under the name of another one, or of another store, is refused") {
  MemoryBackend backend;
  const Hash128 name = publish(backend, {1, 2});
  const Hash128 other = publish(backend, {3, 4});
  const auto object = backend.open(segment_path(name), Access::kRead, Purpose::kData);
  CHECK(read_segment_table(*object, name, kTestSecret).size() == 2);
  CHECK(thrown_by([&] { read_segment_table(*object, other, kTestSecret); }).code == EIO);
  CHECK(thrown_by([&] { read_segment_table(*object, name, kPublicSecret); }).code == EIO);
}

TEST_CASE("what is not called like a segment is not listed as one") {
  MemoryBackend backend;
  const Hash128 name = publish(backend, {1});
  backend.put_new("segments/zz/readme", as_bytes("x"));
  backend.put_new("segments/00/ff000000000000000000000000000000", as_bytes("x"));
  CHECK(list_segments(backend) == std::vector<Hash128>{name});
}

TEST_CASE("a damaged or missing segment is mended, and only what is wrong is written") {
  MemoryBackend memory;
  ForwardingBackend backend(memory);
  const Hash128 name = publish(memory, numbers_up_to(20));
  const std::string path = segment_path(name);
  const ByteVector sound = memory.content(path);
  const auto with_byte_changed = [&](uint64_t at) {
    ByteVector content = sound;
    content[at] ^= std::byte{1};
    return content;
  };
  ByteVector shorter = sound;
  shorter.resize(sound.size() - 4096);
  ByteVector longer = sound;
  longer.resize(sound.size() + 1);
  struct Damage {
    std::string what;
    std::optional<ByteVector> content;
    int writes;
  };
  const std::vector<Damage> all{{"nothing", sound, 0},
                                {"a block", with_byte_changed(5000), 1},
                                {"the last byte", with_byte_changed(sound.size() - 1), 1},
                                {"a hash", with_byte_changed(20 * kBlockBytes + 17), 1},
                                {"its end is missing", shorter, 0},
                                {"too long", longer, 0},
                                {"gone", std::nullopt, 0}};
  for (const Damage& damage : all) {
    CAPTURE(damage.what);
    memory.remove(path);
    if (damage.content) memory.put_new(path, *damage.content);
    int writes = 0;
    backend.on_write = [&](const std::string&) { ++writes; };
    mend_segment(backend, name, sound, kTestSecret);
    CHECK(memory.content(path) == sound);
    CHECK(writes == damage.writes);
  }
}

TEST_CASE("a block is given up when a sector of it is zeroes") {
  ByteVector block = block_of(1);
  CHECK_FALSE(is_given_up(block));
  std::ranges::fill(MutableBytes(block).subspan(7 * 512 + 1, 511), std::byte{0});
  CHECK_FALSE(is_given_up(block));
  block[7 * 512] = std::byte{0};
  CHECK(is_given_up(block));
  CHECK(is_given_up(ByteVector(kBlockBytes)));
}

TEST_CASE("what was given up of what a segment is mended with is not given up of it") {
  MemoryBackend memory;
  const Hash128 name = publish(memory, numbers_up_to(20));
  const std::string path = segment_path(name);
  const ByteVector whole = memory.content(path);
  const auto without = [&](std::initializer_list<uint64_t> blocks) {
    ByteVector content = whole;
    for (const uint64_t block : blocks)
      std::ranges::fill(MutableBytes(content).subspan(block * kBlockBytes, kBlockBytes),
                        std::byte{0});
    return content;
  };
  memory.set_content(path, without({2, 5}));
  mend_segment(memory, name, without({2, 3, 19}), kTestSecret);
  CHECK(memory.content(path) == without({2}));
  // Damage is given up rather than kept.
  ByteVector damaged = without({});
  damaged[3 * kBlockBytes] ^= std::byte{1};
  memory.set_content(path, damaged);
  mend_segment(memory, name, without({3, 4}), kTestSecret);
  CHECK(memory.content(path) == without({3}));
}

}  // namespace tplstore::segment_test
