#include "template/template_image.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <thread>

#include "memory/memory_backend.h"
#include "template/template_disk.h"
#include "template_testing.h"

namespace tplstore::template_image_test {
using namespace tplstore::testing;

namespace {

// A template of 300 blocks with holes, content that repeats, and an end within a block.
struct Example {
  Example(Backend& backend, uint64_t seed) {
    std::mt19937_64 random(seed);
    while (numbers.size() < 300) {
      const uint64_t length = random() % 20 + 1;
      const bool is_hole = random() % 3 == 0;
      for (uint64_t i = 0; i < length; ++i) numbers.push_back(is_hole ? 0 : random() % 1000 + 1);
    }
    numbers.resize(300);
    numbers[299] = 77;
    size_bytes = 300 * kBlockBytes - 1024;
    disk = disk_of(numbers);
    std::fill(disk.begin() + static_cast<ptrdiff_t>(size_bytes), disk.end(), std::byte{0});
    make_template(backend, "t", numbers, size_bytes, 37);
  }
  std::vector<uint64_t> numbers;
  uint64_t size_bytes;
  ByteVector disk;
};

}  // namespace

TEST_CASE("random reads of a template give the bytes of its disk") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  MemoryBackend backend;
  const Example example(backend, seed);
  const auto image = open_image(backend, "t");
  CHECK(image->name() == "t");
  CHECK(image->size_bytes() == example.size_bytes);
  CHECK_FALSE(image->uuid().is_nil());

  std::mt19937_64 random(seed + 1);
  for (int i = 0; i < 3000; ++i) {
    const uint64_t offset = random() % (example.size_bytes + 20000);
    ByteVector into(random() % (i % 10 == 0 ? 400000 : 20000), std::byte{0xee});
    image->read(offset, into);
    ByteVector expected(into.size());
    if (offset < example.disk.size()) {
      const uint64_t count = std::min<uint64_t>(expected.size(), example.disk.size() - offset);
      std::copy_n(example.disk.begin() + static_cast<ptrdiff_t>(offset), count, expected.begin());
    }
    REQUIRE(into == expected);
  }
}

TEST_CASE("runs alternate between data and holes as the disk does") {
  MemoryBackend backend;
  const Example example(backend, 5);
  const auto image = open_image(backend, "t");
  uint64_t block = 0;
  while (block < example.numbers.size()) {
    const auto run = image->run_at(block, example.numbers.size() - block);
    REQUIRE(run.count > 0);
    for (uint64_t i = 0; i < run.count; ++i)
      REQUIRE((example.numbers[block + i] == 0) == run.is_hole);
    block += run.count;
    // The longest: the next one is of the other kind.
    if (block < example.numbers.size()) REQUIRE((example.numbers[block] == 0) != run.is_hole);
  }
  CHECK(image->run_at(0, 1).count == 1);
  CHECK(image->run_at(1000, 50).count == 50);
  CHECK(image->run_at(1000, 50).is_hole);
}

TEST_CASE("a hole needs no segment") {
  MemoryBackend backend;
  make_template(backend, "t", {0, 0, 1}, 3 * kBlockBytes);
  for (const Hash128& name : list_segments(backend)) backend.remove(segment_path(name));
  const auto image = open_image(backend, "t");
  ByteVector into(2 * kBlockBytes, std::byte{1});
  image->read(0, into);
  CHECK(is_zero(into));
  CHECK(thrown_by([&] { image->read(2 * kBlockBytes, into); }).code == EIO);
}

TEST_CASE("a segment that was cut short is an error, not zeroes") {
  MemoryBackend backend;
  make_template(backend, "t", {1, 2, 3}, 3 * kBlockBytes);
  const std::string path = segment_path(list_segments(backend).at(0));
  ByteVector content = backend.get(path, kSegmentBytesMax).value();
  content.resize(kBlockBytes);
  backend.remove(path);
  backend.put_new(path, content);
  const auto image = open_image(backend, "t");
  ByteVector into(kBlockBytes);
  CHECK(thrown_by([&] { image->read(2 * kBlockBytes, into); }).code == EIO);
}

TEST_CASE("an open template is locked against removal, and one being removed is busy") {
  MemoryBackend backend;
  make_template(backend, "t", {1}, kBlockBytes);
  {
    const auto image = open_image(backend, "t");
    CHECK(open_image(backend, "t") != nullptr);
    CHECK(backend.try_lock("templates/t", LockMode::kExclusive) == nullptr);
  }
  const auto lock = backend.try_lock("templates/t", LockMode::kExclusive);
  REQUIRE(lock != nullptr);
  CHECK(thrown_by([&] { open_image(backend, "t"); }).code == EBUSY);
  CHECK(thrown_by([&] { open_image(backend, "u"); }).code == ENOENT);
  CHECK(thrown_by([&] { open_image(backend, "../t"); }).code == EINVAL);
}

TEST_CASE("a damaged manifest is an error") {
  MemoryBackend backend;
  make_template(backend, "t", {1}, kBlockBytes);
  backend.open("templates/t", Access::kWrite, Purpose::kMetadata)->write(40, as_bytes("x"));
  CHECK(thrown_by([&] { open_image(backend, "t"); }).code == EIO);
}

TEST_CASE("many threads read one template, opening its segments at the same time") {
  MemoryBackend backend;
  const Example example(backend, 9);
  const auto image = open_image(backend, "t");
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      ByteVector into(3 * kBlockBytes);
      for (int i = 0; i < 500; ++i) {
        const uint64_t offset = random() % (example.size_bytes - into.size());
        image->read(offset, into);
        if (std::memcmp(into.data(), example.disk.data() + offset, into.size()) != 0) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("a template's disk is read-only, and tells its holes") {
  MemoryBackend backend;
  const Example example(backend, 11);
  TemplateDisk disk(open_image(backend, "t"));
  CHECK_FALSE(disk.is_writable());
  CHECK(disk.allows_multi_conn());
  CHECK(thrown_by([&] { disk.write(0, as_bytes("x"), false); }).code == EROFS);
  CHECK(thrown_by([&] { disk.trim(0, 1, false); }).code == EROFS);
  CHECK(thrown_by([&] { disk.zero(0, 1, false); }).code == EROFS);
  disk.flush();
  disk.cache(0, disk.size_bytes());

  const uint64_t begin = 777, end = disk.size_bytes() - 100;
  uint64_t next = begin;
  disk.extents(begin, end - begin, [&](const Extent& extent) {
    REQUIRE(extent.offset == next);
    REQUIRE(extent.length > 0);
    const uint64_t last = extent.offset + extent.length - 1;
    REQUIRE((example.numbers[extent.offset / kBlockBytes] == 0) == extent.is_hole);
    REQUIRE((example.numbers[last / kBlockBytes] == 0) == extent.is_hole);
    next += extent.length;
    return true;
  });
  CHECK(next == end);
  int calls = 0;
  disk.extents(0, disk.size_bytes(), [&](const Extent&) { return ++calls < 2; });
  CHECK(calls == 2);
  ByteVector into(5000);
  disk.read(123, into);
  CHECK(std::memcmp(into.data(), example.disk.data() + 123, into.size()) == 0);
}

}  // namespace tplstore::template_image_test
