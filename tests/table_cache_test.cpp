// What an import need not open segments for.
#include "template/table_cache.h"

#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>

#include "backend/dir/dir_backend.h"
#include "forwarding_backend.h"
#include "memory/memory_backend.h"
#include "template_testing.h"
#include "temporary_directory.h"
#include "transfer/block_index.h"

namespace tplstore::table_cache_test {
using namespace tplstore::testing;

namespace {

std::vector<uint64_t> numbers_from(uint64_t first, uint64_t count) {
  std::vector<uint64_t> numbers;
  for (uint64_t i = 0; i < count; ++i) numbers.push_back(first + i);
  return numbers;
}

// Segments of one block each.
void add_segments(Backend& backend, const std::string& name, uint64_t first, uint64_t count) {
  make_template(backend, name, numbers_from(first, count), count * kBlockBytes, 1);
}

// How many segments an import would open at its start; checks that it knows these blocks then.
uint64_t segments_opened(MemoryBackend& memory, const std::vector<uint64_t>& numbers) {
  ForwardingBackend backend(memory);
  uint64_t opened = 0;
  backend.around = [&](ForwardingBackend::Call call, const std::string& name,
                       const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kOpen && name.starts_with("segments/")) ++opened;
    go_on();
  };
  BlockSource blocks(backend);
  BlockIndex index;
  CHECK(index.load(backend, blocks) == 0);
  CHECK(index.block_count() == numbers.size());
  for (const uint64_t number : numbers) {
    const ByteVector block = block_of(number);
    const auto found = index.find(hash_of(block));
    REQUIRE(found.count == 1);
    const auto& segment = index.segment(found.locations[0].segment);
    ByteVector there(kBlockBytes);
    blocks.hold(segment.name, segment.block_count)->read(0, there);
    REQUIRE(there == block);
  }
  return opened - numbers.size();  // the comparison opens each once
}

std::string only_object(MemoryBackend& backend) {
  const auto names = backend.list("tables");
  REQUIRE(names.size() == 1);
  return "tables/" + names[0];
}

}  // namespace

TEST_CASE("the second import opens no segment, and a later one those that are new") {
  MemoryBackend backend;
  add_segments(backend, "a", 1, 40);
  std::vector<uint64_t> numbers = numbers_from(1, 40);
  CHECK(segments_opened(backend, numbers) == 40);
  CHECK(segments_opened(backend, numbers) == 0);
  add_segments(backend, "b", 41, 5);
  numbers = numbers_from(1, 45);
  CHECK(segments_opened(backend, numbers) == 5);
  CHECK(segments_opened(backend, numbers) == 5);  // too few for an object
  add_segments(backend, "c", 46, 30);
  numbers = numbers_from(1, 75);
  CHECK(segments_opened(backend, numbers) == 35);
  CHECK(segments_opened(backend, numbers) == 0);
  CHECK(backend.content(only_object(backend)).size() == 75 * (24 + 16));
}

TEST_CASE("segments that are gone are not found, and their tables go") {
  MemoryBackend backend;
  add_segments(backend, "a", 1, 64);
  segments_opened(backend, numbers_from(1, 64));
  const std::string before = only_object(backend);
  for (uint64_t number = 33; number <= 64; ++number) {
    SegmentBuilder builder(kTestSecret);
    builder.add(block_of(number), hash_of(block_of(number)));
    backend.remove(segment_path(builder.name()));
  }
  CHECK(segments_opened(backend, numbers_from(1, 32)) == 0);
  add_segments(backend, "b", 100, 32);
  std::vector<uint64_t> numbers = numbers_from(1, 32), more = numbers_from(100, 32);
  numbers.insert(numbers.end(), more.begin(), more.end());
  CHECK(segments_opened(backend, numbers) == 32);
  CHECK(only_object(backend) != before);
  CHECK(backend.content(only_object(backend)).size() == 64 * (24 + 16));
  for (const Hash128& name : list_segments(backend)) backend.remove(segment_path(name));
  CHECK(segments_opened(backend, {}) == 0);
  CHECK(backend.list("tables").empty());
}

TEST_CASE("a table that is damaged, cut or of another store is passed over") {
  MemoryBackend backend;
  add_segments(backend, "a", 1, 33);
  const std::vector<uint64_t> numbers = numbers_from(1, 33);
  segments_opened(backend, numbers);
  const ByteVector sound = backend.content(only_object(backend));
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 60; ++i) {
    ByteVector content = sound;
    const size_t at = random() % content.size();
    CAPTURE(at);
    if (i % 3 == 0)
      content.resize(at);
    else
      content[at] ^= std::byte{1} << random() % 8;
    backend.set_content(only_object(backend), content);
    const bool is_reserved = i % 3 != 0 && at % 40 >= 20 && at % 40 < 24;
    const uint64_t opened = segments_opened(backend, numbers);
    CHECK(opened == (is_reserved ? 0 : 33 - at / 40));
    backend.remove_folder("tables");
    backend.set_content("tables/1", sound);
  }
  // The names alone do not make it right.
  MemoryBackend other;
  put_identity(other, random_secret());
  add_segments(other, "a", 1, 33);
  for (const std::string& name : other.list("tables")) other.remove("tables/" + name);
  other.set_content("tables/7", sound);
  BlockSource blocks(other);
  BlockIndex index;
  CHECK(index.load(other, blocks) == 0);
  CHECK(index.segment_count() == 33);
}

// TPLSTORE_OPERATIONS: how many segments; says how long what took.
TEST_CASE("very many segments cost an import a listing and a read of few objects") {
  const char* many = std::getenv("TPLSTORE_OPERATIONS");
  const uint64_t count = many == nullptr ? 300 : std::stoull(many);
  const TemporaryDirectory folder;
  DirBackend backend(folder.path(), false, {});
  put_identity(backend, kTestSecret);
  std::mt19937_64 random(5);
  for (uint64_t i = 0; i < count; ++i) {
    // As they are after publishing; not synced, which takes most of the time.
    MemoryBackend memory;
    SegmentBuilder builder(kTestSecret);
    ByteVector block(kBlockBytes);
    const uint64_t number = random();
    std::memcpy(block.data(), &number, sizeof number);
    builder.add(block, hash_of(block));
    const std::string path = segment_path(publish_segment(builder, memory));
    backend.create(path, 0, Purpose::kData)->write(0, memory.content(path));
  }
  const auto timed = [&](const std::string& what, const auto& step) {
    if (many != nullptr) run("sync; echo 3 >/proc/sys/vm/drop_caches");
    const auto begin = std::chrono::steady_clock::now();
    step();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (many != nullptr) MESSAGE(what << ": " << seconds.count() << " s");
  };
  const auto load = [&](BlockIndex& index) {
    BlockSource blocks(backend);
    CHECK(index.load(backend, blocks) == 0);
    CHECK(index.segment_count() == count);
    CHECK(index.block_count() == count);
  };
  BlockIndex first, again;
  timed("the first import's start", [&] { load(first); });
  timed("listing", [&] { CHECK(list_segments(backend).size() == count); });
  timed("reading the tables", [&] {
    for (const std::string& name : backend.list("tables")) backend.get("tables/" + name, 1 << 30);
  });
  timed("another import's start", [&] { load(again); });
  if (many != nullptr)
    MESSAGE(again.memory_bytes() << " bytes of index for " << count << " segments of a block");
}

TEST_CASE("where nothing can be written, an import does without") {
  MemoryBackend memory;
  add_segments(memory, "a", 1, 40);
  ForwardingBackend backend(memory);
  backend.around = [&](ForwardingBackend::Call call, const std::string&,
                       const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kPutNew) fail(EROFS, "test", "read-only");
    go_on();
  };
  BlockSource blocks(backend);
  BlockIndex index;
  CHECK(index.load(backend, blocks) == 0);
  CHECK(index.segment_count() == 40);
  CHECK(memory.list("tables").empty());
}

}  // namespace tplstore::table_cache_test
