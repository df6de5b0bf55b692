// What backend/backend.h promises, on every backend there is. Crashes are in
// memory_backend_test.cpp.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "backend/backend.h"
#include "backend/dir/dir_backend.h"
#include "memory/memory_backend.h"
#include "temporary_directory.h"

namespace tplstore::backend_contract_test {
namespace {

void no_log(const std::string&) {}

struct InMemory {
  MemoryBackend backend;
};

struct InDirectory {
  TemporaryDirectory directory;
  DirBackend backend{directory.path(), false, no_log};
};

struct InDirectoryDirect {
  TemporaryDirectory directory;
  DirBackend backend{directory.path(), true, no_log};
};

// The lesser ways: one descriptor only, no unnamed files.
struct InDirectoryScarce {
  TemporaryDirectory directory;
  DirBackend backend{
      directory.path(), true, no_log, {.descriptor_cap = 1, .without_tmpfile = true}};
};

ByteVector pattern(size_t size, uint64_t seed) {
  ByteVector bytes(size);
  std::mt19937_64 random(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

ByteVector read_all(Object& object, uint64_t offset, size_t size) {
  ByteVector bytes(size, std::byte{0xee});
  object.read(offset, bytes);
  return bytes;
}

template <typename F>
int error_code(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code();
  }
  return 0;
}

// The same in whole units of what data is written in.
uint64_t in_units(const Backend& backend, uint64_t bytes) {
  return round_up(bytes, backend.write_alignment_bytes());
}

using Names = std::vector<std::string>;

const std::pair<std::string, Purpose> kOfEachPurpose[] = {{"a/data.1", Purpose::kData},
                                                          {"a/log", Purpose::kMetadata}};

// All ranges of an object from an offset on, those that touch made one.
std::vector<DataRange> data_ranges(Object& object, uint64_t from = 0) {
  std::vector<DataRange> ranges;
  while (const std::optional<DataRange> found = object.find_data(from)) {
    REQUIRE(found->length > 0);
    REQUIRE(found->offset >= from);
    from = found->offset + found->length;
    if (!ranges.empty() && ranges.back().offset + ranges.back().length == found->offset) {
      ranges.back().length += found->length;
    } else {
      ranges.push_back(*found);
    }
  }
  return ranges;
}

}  // namespace

#define ON_EVERY_BACKEND(name, Fixture) \
  TEST_CASE_TEMPLATE(name, Fixture, InMemory, InDirectory, InDirectoryDirect, InDirectoryScarce)

ON_EVERY_BACKEND("what was written is read back, at any offset and length", Fixture) {
  Fixture fixture;
  const size_t kSize = in_units(fixture.backend, 100'000);
  ByteVector model(kSize, std::byte{0});
  auto object = fixture.backend.create("volumes/v/data.1", kSize, Purpose::kData);
  std::mt19937 random(7);
  for (int i = 0; i < 300; ++i) {
    const size_t offset = in_units(fixture.backend, random() % kSize);
    const size_t length =
        std::min<size_t>(in_units(fixture.backend, random() % 20'000), kSize - offset);
    const ByteVector bytes = pattern(length, i);
    object->write(offset, bytes);
    std::ranges::copy(bytes, model.begin() + offset);
    const size_t from = random() % kSize;
    const size_t count = random() % (kSize - from + 1);
    REQUIRE(
        std::ranges::equal(read_all(*object, from, count), std::span(model).subspan(from, count)));
  }
  CHECK(object->size_bytes() == kSize);
  object.reset();
  CHECK(read_all(*fixture.backend.open("volumes/v/data.1", Access::kRead, Purpose::kData), 0,
                 kSize) == model);
}

ON_EVERY_BACKEND("dropping what is cached loses nothing, synced or not", Fixture) {
  Fixture fixture;
  const size_t kSize = in_units(fixture.backend, 100'000);
  for (const auto& [name, purpose] : kOfEachPurpose) {
    auto object = fixture.backend.create(name, kSize, purpose);
    const ByteVector bytes = pattern(kSize, 1);
    object->write(0, bytes);
    object->drop_cached();
    CHECK(read_all(*object, 0, kSize) == bytes);
    object->sync();
    object->drop_cached();
    CHECK(read_all(*object, 0, kSize) == bytes);
    fixture.backend.open(name, Access::kRead, purpose)->drop_cached();
  }
}

ON_EVERY_BACKEND("an object has the size of its last byte, and reads of metadata as zeroes behind",
                 Fixture) {
  Fixture fixture;
  for (const auto& [name, purpose] : kOfEachPurpose) {
    CAPTURE(name);
    auto object = fixture.backend.create(name, 0, purpose);
    CHECK(object->size_bytes() == 0);
    ByteVector expected(10'000, std::byte{0});
    if (purpose == Purpose::kMetadata) {
      object->write(5000, pattern(100, 1));
      CHECK(object->size_bytes() == 5100);
      std::ranges::copy(pattern(100, 1), expected.begin() + 5000);
      CHECK(read_all(*object, 0, 5100) == ByteVector(expected.begin(), expected.begin() + 5100));
      CHECK(read_all(*object, 0, 10'000) == expected);
      CHECK(read_all(*object, 4096, 4096) ==
            ByteVector(expected.begin() + 4096, expected.begin() + 8192));
      CHECK(read_all(*object, 1 << 20, 4096) == ByteVector(4096, std::byte{0}));
    }
    object->write(4096, pattern(4096, 2));
    CHECK(object->size_bytes() == 8192);
    object->write(8192, Bytes());
    CHECK(object->size_bytes() == 8192);
    CHECK(read_all(*object, 0, 0).empty());
  }
}

ON_EVERY_BACKEND("data that was cut off is an error, never zeroes", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  for (const uint64_t size : {0, 5100, 8192}) {
    CAPTURE(size);
    const std::string name = fmt::format("v/data.{}", size);
    auto object = backend.create(name, size, Purpose::kData);
    for (const uint64_t offset : {uint64_t{0}, uint64_t{4096}, size, uint64_t{1} << 20}) {
      for (const size_t length : {1, 512, 4096, 8192, 100'000}) {
        CAPTURE(offset);
        CAPTURE(length);
        const bool is_within = offset + length <= size;
        CHECK(error_code([&] { read_all(*object, offset, length); }) == (is_within ? 0 : EIO));
      }
    }
    CHECK(error_code([&] { read_all(*object, 1 << 20, 0); }) == 0);
    try {
      read_all(*object, 4096, 8192);
    } catch (const Error& error) {
      const std::string line = error.what();
      CHECK(line.find(name) != std::string::npos);
      CHECK(line.find(fmt::format("{} bytes", size)) != std::string::npos);
    }
    // In a batch the others are read, and an object that is metadata to its reader has zeroes.
    auto as_metadata = backend.open(name, Access::kRead, Purpose::kMetadata);
    ByteVector a(4096, std::byte{1}), b(4096, std::byte{1}), c(10'000, std::byte{1});
    const ReadPiece pieces[] = {
        {as_metadata.get(), 0, a}, {object.get(), 1 << 20, b}, {as_metadata.get(), 4096, c}};
    CHECK(error_code([&] { backend.read_batch(pieces).throw_first(); }) == EIO);
    CHECK(a == ByteVector(4096, std::byte{0}));
    CHECK(c == ByteVector(10'000, std::byte{0}));
  }
}

ON_EVERY_BACKEND("grow never shrinks", Fixture) {
  Fixture fixture;
  auto object = fixture.backend.create("a/data.1", 8192, Purpose::kData);
  object->write(0, pattern(8192, 1));
  object->grow(100);
  CHECK(object->size_bytes() == 8192);
  object->grow(uint64_t{1} << 30);
  CHECK(object->size_bytes() == uint64_t{1} << 30);
  CHECK(object->allocated_bytes() < (1 << 20));
  CHECK(read_all(*object, 0, 8192) == pattern(8192, 1));
  CHECK(error_code([&] { object->grow(UINT64_MAX); }) == EFBIG);
  CHECK(error_code([&] { fixture.backend.create("a/data.2", UINT64_MAX, Purpose::kData); }) ==
        EFBIG);
  CHECK(fixture.backend.list("a") == Names{"data.1"});
}

ON_EVERY_BACKEND("punch reads as zeroes and gives the space back", Fixture) {
  Fixture fixture;
  auto object = fixture.backend.create("a/data.1", 1 << 20, Purpose::kData);
  object->write(0, pattern(1 << 20, 1));
  object->sync();
  CHECK(object->allocated_bytes() >= 1 << 20);
  object->punch(4096, (1 << 20) - 8192);
  object->punch(0, 0);
  CHECK(object->size_bytes() == 1 << 20);
  CHECK(object->allocated_bytes() < (1 << 18));
  ByteVector expected = pattern(1 << 20, 1);
  std::fill(expected.begin() + 4096, expected.end() - 4096, std::byte{0});
  CHECK(read_all(*object, 0, 1 << 20) == expected);
  object->punch(100, 200);
  std::fill(expected.begin() + 100, expected.begin() + 300, std::byte{0});
  CHECK(read_all(*object, 0, 1 << 20) == expected);
}

ON_EVERY_BACKEND("data is found where it was written, synced or not, and not in holes", Fixture) {
  Fixture fixture;
  constexpr uint64_t kMiB = 1 << 20;
  const uint64_t kSize = 64 * kMiB + in_units(fixture.backend, 100);
  const uint64_t tail = in_units(fixture.backend, 10);
  for (const auto& [name, purpose] : kOfEachPurpose) {
    CAPTURE(name);
    auto object = fixture.backend.create(name, kSize, purpose);
    CHECK_FALSE(object->find_data(0));
    // Zeroes that were written are data too, and the last block is a part of one.
    object->write(8 * kMiB, ByteVector(kMiB, std::byte{0}));
    object->write(32 * kMiB, pattern(2 * kMiB, 1));
    object->write(kSize - tail, pattern(tail, 2));
    const uint64_t last = round_down(kSize - 1, kBlockBytes);
    for (const bool is_synced : {false, true}) {
      CAPTURE(is_synced);
      if (is_synced) object->sync();
      const std::vector<DataRange> ranges = data_ranges(*object);
      REQUIRE(ranges.size() == 3);
      CHECK(ranges[0].offset == 8 * kMiB);
      CHECK(ranges[0].length == kMiB);
      CHECK(ranges[1].offset == 32 * kMiB);
      CHECK(ranges[1].length == 2 * kMiB);
      CHECK(ranges[2].offset == last);
      CHECK(ranges[2].length == kSize - last);
    }
    // From within a range, at its last byte, behind it, and from within a hole.
    CHECK(object->find_data(8 * kMiB + 5000)->offset == 8 * kMiB + 5000);
    CHECK(data_ranges(*object, 8 * kMiB + 5000)[0].length == kMiB - 5000);
    CHECK(data_ranges(*object, 9 * kMiB - 1)[0].length == 1);
    CHECK(object->find_data(9 * kMiB)->offset == 32 * kMiB);
    CHECK(object->find_data(9 * kMiB + 1)->offset == 32 * kMiB);
    CHECK(object->find_data(kSize - 1)->length == 1);
    for (const uint64_t behind :
         {kSize, kSize + 1, uint64_t{1} << 50, uint64_t{1} << 63, UINT64_MAX}) {
      CAPTURE(behind);
      CHECK_FALSE(object->find_data(behind));
    }

    object->punch(32 * kMiB + kMiB / 2, kMiB);
    const std::vector<DataRange> punched = data_ranges(*object, 9 * kMiB);
    REQUIRE(punched.size() == 3);
    CHECK(punched[0].offset == 32 * kMiB);
    CHECK(punched[0].length == kMiB / 2);
    CHECK(punched[1].offset == 33 * kMiB + kMiB / 2);
    CHECK(punched[1].length == kMiB / 2);
    object->punch(0, round_up(kSize, kBlockBytes));
    object->grow(2 * kSize);
    CHECK_FALSE(fixture.backend.open(name, Access::kRead, purpose)->find_data(0));
  }
}

ON_EVERY_BACKEND("what is in no data range reads as zeroes, after any writes and punches",
                 Fixture) {
  Fixture fixture;
  const uint64_t kSize = in_units(fixture.backend, 300'000);
  ByteVector model(kSize, std::byte{0});
  auto object = fixture.backend.create("v/data.1", kSize, Purpose::kData);
  std::mt19937 random(13);
  for (int i = 0; i < 200; ++i) {
    const bool is_written = random() % 3 == 0;
    const auto unit = [&](uint64_t bytes) {
      return is_written ? in_units(fixture.backend, bytes) : bytes;
    };
    const uint64_t offset = unit(random() % kSize);
    const uint64_t length = std::min<uint64_t>(unit(random() % 40'000), kSize - offset);
    if (is_written) {
      const ByteVector bytes = pattern(length, i);
      object->write(offset, bytes);
      std::ranges::copy(bytes, model.begin() + offset);
    } else {
      object->punch(offset, length);
      std::fill_n(model.begin() + offset, length, std::byte{0});
    }
    ByteVector found(kSize, std::byte{0});
    for (const DataRange& range : data_ranges(*object)) {
      REQUIRE(range.offset + range.length <= kSize);
      object->read(range.offset, MutableBytes(found).subspan(range.offset, range.length));
    }
    REQUIRE(found == model);
  }
}

ON_EVERY_BACKEND("looking for data does not disturb others, nor they it", Fixture) {
  Fixture fixture;
  constexpr uint64_t kHole = 1 << 20;
  const ByteVector bytes = pattern(64 << 10, 1);
  auto object = fixture.backend.create("v/data.1", 4 * kHole, Purpose::kData);
  object->write(0, bytes);
  object->write(3 * kHole, bytes);
  std::atomic<bool> is_done = false;
  std::thread changing([&] {
    for (int i = 0; i < 300; ++i) {
      object->write(kHole, bytes);
      CHECK(read_all(*object, kHole, bytes.size()) == bytes);
      object->punch(kHole, bytes.size());
      CHECK(read_all(*object, 0, bytes.size()) == bytes);
    }
    is_done = true;
  });
  std::vector<std::thread> looking;
  for (int t = 0; t < 2; ++t) {
    looking.emplace_back([&] {
      do {
        const std::optional<DataRange> first = object->find_data(0);
        const std::optional<DataRange> second = object->find_data(bytes.size());
        const std::optional<DataRange> third = object->find_data(2 * kHole);
        CHECK((first && first->offset == 0 && first->length > 0));
        CHECK((second && second->offset >= kHole && second->offset <= 3 * kHole));
        CHECK((second && second->length > 0));
        CHECK((third && third->offset == 3 * kHole && third->length > 0));
      } while (!is_done);
    });
  }
  changing.join();
  for (std::thread& thread : looking) thread.join();
}

ON_EVERY_BACKEND("opening says at once what is missing or not allowed", Fixture) {
  Fixture fixture;
  CHECK(error_code([&] { fixture.backend.open("nothing", Access::kRead, Purpose::kMetadata); }) ==
        ENOENT);
  CHECK(error_code([&] { fixture.backend.open("no/where", Access::kWrite, Purpose::kMetadata); }) ==
        ENOENT);
  auto object = fixture.backend.create("a/b", 10, Purpose::kMetadata);
  CHECK(error_code([&] { fixture.backend.create("a/b", 10, Purpose::kMetadata); }) == EEXIST);
  CHECK(error_code([&] { fixture.backend.create("a", 10, Purpose::kMetadata); }) == EEXIST);
  CHECK(error_code([&] { fixture.backend.create("a/b/c", 10, Purpose::kMetadata); }) == ENOTDIR);
  CHECK(error_code([&] { fixture.backend.open("a", Access::kRead, Purpose::kMetadata); }) ==
        EISDIR);
  CHECK(error_code([&] { fixture.backend.open("a", Access::kWrite, Purpose::kMetadata); }) ==
        EISDIR);
  auto reader = fixture.backend.open("a/b", Access::kRead, Purpose::kMetadata);
  CHECK(error_code([&] { reader->write(0, pattern(1, 1)); }) == EBADF);
  CHECK(error_code([&] { reader->punch(0, 1); }) == EBADF);
  CHECK(error_code([&] { reader->grow(100); }) == EBADF);
  reader->sync();
}

ON_EVERY_BACKEND("no name leads out of the store", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  for (const std::string name : {"", "/", "..", ".", "../x", "a/../b", "a/./b", "/etc/passwd",
                                 "a//b", "a/", ".hidden", "a/.tmp-1", "a b", "a\nb", "-a"}) {
    CAPTURE(name);
    CHECK(error_code([&] { backend.open(name, Access::kRead, Purpose::kMetadata); }) == EINVAL);
    CHECK(error_code([&] { backend.create(name, 0, Purpose::kMetadata); }) == EINVAL);
    CHECK(error_code([&] { backend.put_new(name, {}); }) == EINVAL);
    CHECK(error_code([&] { backend.get(name, 0); }) == EINVAL);
    CHECK(error_code([&] { backend.remove(name); }) == EINVAL);
    CHECK(error_code([&] { backend.remove_folder(name); }) == EINVAL);
    CHECK(error_code([&] { backend.try_lock(name, LockMode::kShared); }) == EINVAL);
    if (name.empty()) continue;  // the folder of all
    CHECK(error_code([&] { backend.list(name); }) == EINVAL);
    CHECK(error_code([&] { backend.sync_folder(name); }) == EINVAL);
  }
  CHECK(error_code([&] { backend.create(std::string("a\0b", 3), 0, Purpose::kMetadata); }) ==
        EINVAL);
  CHECK(error_code([&] { backend.create(std::string(256, 'a'), 0, Purpose::kMetadata); }) ==
        EINVAL);
  CHECK(backend.list("").empty());
}

ON_EVERY_BACKEND("put_new publishes what is large and of any length, wherever it is in memory",
                 Fixture) {
  Fixture fixture;
  for (const size_t size : {size_t{1} << 20, (size_t{1} << 20) + 5, (size_t{5} << 20) - 1}) {
    const ByteVector content = pattern(size, size);
    AlignedByteVector aligned(size + 1);
    for (const size_t at : {0, 1}) {
      std::ranges::copy(content, aligned.begin() + static_cast<ptrdiff_t>(at));
      const std::string name = fmt::format("large/{}-{}", size, at);
      REQUIRE(fixture.backend.put_new(name, Bytes(aligned).subspan(at, size)));
      const auto object = fixture.backend.open(name, Access::kRead, Purpose::kData);
      CHECK(object->size_bytes() == size);
      CHECK(read_all(*object, 0, size) == content);
    }
  }
}

ON_EVERY_BACKEND("put_new publishes a name once", Fixture) {
  Fixture fixture;
  const ByteVector big = pattern(4 << 20, 3);
  CHECK(fixture.backend.put_new("segments/ab/x", big));
  CHECK_FALSE(fixture.backend.put_new("segments/ab/x", pattern(10, 4)));
  CHECK(fixture.backend.get("segments/ab/x", 4 << 20) == big);
  CHECK(error_code([&] { fixture.backend.get("segments/ab/x", (4 << 20) - 1); }) == EFBIG);
  CHECK(fixture.backend.put_new("empty", {}));
  CHECK(fixture.backend.get("empty", 0) == ByteVector());
  CHECK_FALSE(fixture.backend.get("nothing", 100).has_value());
  CHECK_FALSE(fixture.backend.get("no/where", 100).has_value());
  CHECK_FALSE(fixture.backend.get("empty/inside", 100).has_value());
  CHECK(error_code([&] { fixture.backend.get("segments", 100); }) == EISDIR);
  CHECK_FALSE(fixture.backend.put_new("segments", {}));
  CHECK(fixture.backend.list("segments/ab") == Names{"x"});
}

ON_EVERY_BACKEND("of several that put a new name at once exactly one wins", Fixture) {
  Fixture fixture;
  for (int round = 0; round < 10; ++round) {
    const std::string name = fmt::format("names/{}/x", round);
    std::atomic<int> winners = 0;
    std::atomic<int> winner = -1;
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
      threads.emplace_back([&, i] {
        if (!fixture.backend.put_new(name, pattern(5000, i))) return;
        ++winners;
        winner = i;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(winners == 1);
    CHECK(fixture.backend.get(name, 5000) == pattern(5000, winner));
    CHECK(fixture.backend.list(fmt::format("names/{}", round)) == Names{"x"});
  }
}

ON_EVERY_BACKEND("folders are listed, synced and removed", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  CHECK(backend.list("").empty());
  CHECK(backend.list("volumes").empty());
  backend.create("volumes/b/data.2", 0, Purpose::kData);
  backend.create("volumes/b/data.10", 0, Purpose::kData);
  backend.create("volumes/a/sub/deep/x", 0, Purpose::kMetadata);
  backend.create("volumes-old", 0, Purpose::kMetadata);
  backend.create("volumes.x/y", 0, Purpose::kMetadata);
  CHECK(backend.list("") == Names{"volumes", "volumes-old", "volumes.x"});
  CHECK(backend.list("volumes") == Names{"a", "b"});
  CHECK(backend.list("volumes/b") == Names{"data.10", "data.2"});
  CHECK(backend.list("volumes/b/data.2").empty());
  backend.sync_folder("volumes/b");
  backend.sync_folder("");
  CHECK(error_code([&] { backend.sync_folder("nowhere"); }) == ENOENT);
  CHECK(error_code([&] { backend.sync_folder("volumes-old"); }) == ENOTDIR);

  CHECK(backend.remove("volumes/b/data.2"));
  CHECK_FALSE(backend.remove("volumes/b/data.2"));
  CHECK_FALSE(backend.remove("no/where"));
  CHECK(error_code([&] { backend.remove("volumes/b"); }) == EISDIR);
  CHECK(backend.remove("volumes/b/data.10"));
  CHECK(backend.list("volumes") == Names{"a", "b"});  // a folder stays when it is empty

  backend.remove_folder("volumes/a");
  backend.remove_folder("volumes/a");
  backend.remove_folder("no/where");
  CHECK(error_code([&] { backend.remove_folder("volumes-old"); }) == ENOTDIR);
  CHECK(backend.list("volumes") == Names{"b"});
  CHECK_FALSE(backend.get("volumes/a/sub/deep/x", 10).has_value());
  CHECK(backend.put_new("volumes/a/again", {}));
  CHECK(backend.list("volumes/a") == Names{"again"});
}

ON_EVERY_BACKEND("a removed object works on for those who have it open", Fixture) {
  if (std::is_same_v<Fixture, InDirectoryScarce>) return;  // not when its descriptor was closed
  Fixture fixture;
  auto object = fixture.backend.create("a/x", 0, Purpose::kMetadata);
  object->write(0, pattern(100, 1));
  CHECK(fixture.backend.remove("a/x"));
  auto other = fixture.backend.create("a/x", 0, Purpose::kMetadata);
  CHECK(read_all(*object, 0, 100) == pattern(100, 1));
  CHECK(other->size_bytes() == 0);
}

ON_EVERY_BACKEND("locks exclude each other within one backend", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  CHECK(error_code([&] { backend.try_lock("lock", LockMode::kShared); }) == ENOENT);
  backend.create("lock", 0, Purpose::kMetadata);
  backend.create("other", 0, Purpose::kMetadata);
  auto exclusive = backend.try_lock("lock", LockMode::kExclusive);
  REQUIRE(exclusive);
  CHECK_FALSE(backend.try_lock("lock", LockMode::kExclusive));
  CHECK_FALSE(backend.try_lock("lock", LockMode::kShared));
  CHECK(backend.try_lock("other", LockMode::kExclusive));
  exclusive.reset();
  auto shared = backend.try_lock("lock", LockMode::kShared);
  REQUIRE(shared);
  auto shared_too = backend.try_lock("lock", LockMode::kShared);
  REQUIRE(shared_too);
  CHECK_FALSE(backend.try_lock("lock", LockMode::kExclusive));
  shared.reset();
  CHECK_FALSE(backend.try_lock("lock", LockMode::kExclusive));
  shared_too.reset();
  // Using the object in other ways must not let go of the lock, as POSIX record locks would.
  exclusive = backend.try_lock("lock", LockMode::kExclusive);
  REQUIRE(exclusive);
  backend.open("lock", Access::kWrite, Purpose::kMetadata)->write(0, pattern(1, 1));
  CHECK(backend.get("lock", 10).has_value());
  CHECK_FALSE(backend.try_lock("lock", LockMode::kShared));
}

ON_EVERY_BACKEND("whether an object is locked is told without locking it", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  CHECK(error_code([&] { backend.is_locked("lock"); }) == ENOENT);
  backend.create("lock", 0, Purpose::kMetadata);
  CHECK_FALSE(backend.is_locked("lock"));
  for (const LockMode mode : {LockMode::kShared, LockMode::kExclusive}) {
    const auto held = backend.try_lock("lock", mode);
    CHECK(backend.is_locked("lock"));
  }
  const auto other_slot = backend.try_lock("lock", LockMode::kExclusive, 1);
  CHECK_FALSE(backend.is_locked("lock"));
  CHECK(error_code([&] { backend.is_locked("../lock"); }) == EINVAL);
}

ON_EVERY_BACKEND("the lock of an object is not that of a later one of its name", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  backend.create("lock", 0, Purpose::kMetadata);
  auto first = backend.try_lock("lock", LockMode::kExclusive);
  backend.remove("lock");
  CHECK(error_code([&] { backend.try_lock("lock", LockMode::kExclusive); }) == ENOENT);
  backend.create("lock", 0, Purpose::kMetadata);
  CHECK_FALSE(backend.is_locked("lock"));
  const auto second = backend.try_lock("lock", LockMode::kExclusive);
  CHECK(second);
  first.reset();
  CHECK(backend.is_locked("lock"));
}

ON_EVERY_BACKEND("the locks of an object's slots do not touch each other", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  backend.create("lock", 0, Purpose::kMetadata);
  backend.create("other", 0, Purpose::kMetadata);
  constexpr uint64_t kSlots[] = {0, 1, 2, 4096, kLockSlotMax - 1, kLockSlotMax};
  std::vector<std::unique_ptr<HeldLock>> held;
  for (const uint64_t slot : kSlots) {
    CAPTURE(slot);
    held.push_back(backend.try_lock("lock", LockMode::kExclusive, slot));
    REQUIRE(held.back());
    CHECK_FALSE(backend.try_lock("lock", LockMode::kExclusive, slot));
    CHECK_FALSE(backend.try_lock("lock", LockMode::kShared, slot));
    CHECK(backend.try_lock("other", LockMode::kExclusive, slot));
  }
  CHECK_FALSE(backend.try_lock("lock", LockMode::kShared));  // without a slot it is slot 0
  CHECK(backend.try_lock("lock", LockMode::kExclusive, 3));

  // Letting go of one lets go of that one only, and modes count for each slot alone.
  held[1].reset();
  auto shared = backend.try_lock("lock", LockMode::kShared, 1);
  REQUIRE(shared);
  CHECK(backend.try_lock("lock", LockMode::kShared, 1));
  CHECK_FALSE(backend.try_lock("lock", LockMode::kExclusive, 1));
  for (const uint64_t slot : kSlots) {
    CAPTURE(slot);
    if (slot != 1) CHECK_FALSE(backend.try_lock("lock", LockMode::kShared, slot));
  }
  held[0].reset();
  CHECK(backend.try_lock("lock", LockMode::kExclusive));
  CHECK_FALSE(backend.try_lock("lock", LockMode::kExclusive, 1));

  CHECK(error_code([&] { backend.try_lock("none", LockMode::kShared, 1); }) == ENOENT);
  for (const uint64_t slot : {kLockSlotMax + 1, uint64_t{1} << 63, UINT64_MAX}) {
    CHECK(error_code([&] { backend.try_lock("lock", LockMode::kShared, slot); }) == EINVAL);
  }
}

ON_EVERY_BACKEND("batches do what single calls do", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  std::vector<std::unique_ptr<Object>> objects;
  for (int i = 0; i < 4; ++i) {
    objects.push_back(backend.create(fmt::format("v/{}.{}", i % 2 == 0 ? "data" : "log", i),
                                     4 << 20, i % 2 == 0 ? Purpose::kData : Purpose::kMetadata));
  }
  std::mt19937 random(11);
  for (const bool aligned : {true, false}) {
    CAPTURE(aligned);
    constexpr size_t kPieces = 300;  // more than go to a ring at once
    std::vector<ByteVector> written;
    std::vector<WritePiece> writes;
    std::vector<ByteVector> read(kPieces);
    std::vector<ReadPiece> reads;
    for (size_t i = 0; i < kPieces; ++i) {
      const bool in_blocks = aligned || (i % 2 == 0 && backend.write_alignment_bytes() > 1);
      const size_t length = in_blocks ? 8192 : 1 + random() % 9000;
      const uint64_t offset = i / 4 * 12'288 + (in_blocks ? 0 : random() % 3000);
      written.push_back(pattern(length, random()));
      read[i].resize(length);
      Object* object = objects[i % 4].get();
      writes.push_back({object, offset, Bytes()});
      reads.push_back({object, offset, MutableBytes()});
    }
    for (size_t i = 0; i < kPieces; ++i) {
      writes[i].from = written[i];
      reads[i].into = read[i];
    }
    backend.write_batch(writes).throw_first();
    backend.read_batch(reads).throw_first();
    for (size_t i = 0; i < kPieces; ++i) {
      REQUIRE(read[i] == written[i]);
      REQUIRE(read_all(*reads[i].object, reads[i].offset, read[i].size()) == written[i]);
    }
  }
  backend.read_batch({}).throw_first();
  backend.write_batch({}).throw_first();
  // A tail shorter than a block, a part and all behind the end.
  auto tail = backend.create("v/log.9", 0, Purpose::kMetadata);
  tail->write(0, pattern(5000, 1));
  ByteVector a(4096), b(4096), c(100);
  const ReadPiece pieces[] = {{tail.get(), 4096, a}, {tail.get(), 8192, b}, {tail.get(), 4990, c}};
  backend.read_batch(pieces).throw_first();
  ByteVector expected = pattern(5000, 1);
  expected.resize(12'288);
  CHECK(std::ranges::equal(a, std::span(expected).subspan(4096, 4096)));
  CHECK(std::ranges::equal(b, std::span(expected).subspan(8192, 4096)));
  CHECK(std::ranges::equal(c, std::span(expected).subspan(4990, 100)));
}

ON_EVERY_BACKEND("a batch with an error carries out the rest", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  auto good = backend.create("v/data.1", 1 << 20, Purpose::kData);
  auto unwritable = backend.open("v/data.1", Access::kRead, Purpose::kData);
  const ByteVector bytes = pattern(4096, 1);
  const WritePiece pieces[] = {
      {good.get(), 0, bytes}, {unwritable.get(), 4096, bytes}, {good.get(), 8192, bytes}};
  CHECK(error_code([&] { backend.write_batch(pieces).throw_first(); }) == EBADF);
  CHECK(read_all(*good, 0, 4096) == bytes);
  CHECK(read_all(*good, 4096, 4096) == ByteVector(4096, std::byte{0}));
  CHECK(read_all(*good, 8192, 4096) == bytes);
}

ON_EVERY_BACKEND("a batch tells which of its pieces failed, and why", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  auto object = backend.create("v/data.1", 1 << 20, Purpose::kData);
  for (const size_t count : {1, 2, 300}) {  // alone, and more than go to a ring at once
    CAPTURE(count);
    std::vector<ByteVector> buffers(count, ByteVector(512, std::byte{1}));
    std::vector<ReadPiece> pieces;
    std::vector<size_t> expected;
    for (size_t i = 0; i < count; ++i) {
      const bool is_past_end = i % 3 == 0;
      if (is_past_end) expected.push_back(i);
      pieces.push_back({object.get(), is_past_end ? 1 << 20 : i * 512, buffers[i]});
    }
    const BatchFailures result = backend.read_batch(pieces);
    CHECK_FALSE(result.empty());
    std::vector<size_t> failed;
    for (const BatchFailures::Failure& failure : result.all()) {
      failed.push_back(failure.piece);
      CHECK(error_code([&] { std::rethrow_exception(failure.error); }) == EIO);
    }
    std::ranges::sort(failed);
    CHECK(failed == expected);
    for (size_t i = 0; i < count; ++i)
      if (i % 3 != 0) REQUIRE(buffers[i] == ByteVector(512, std::byte{0}));
  }
}

ON_EVERY_BACKEND("a batch with another backend's object is refused, and nothing of it done",
                 Fixture) {
  Fixture fixture;
  Fixture other;
  auto own = fixture.backend.create("v/data.1", 1 << 20, Purpose::kData);
  auto foreign = other.backend.create("v/data.1", 1 << 20, Purpose::kData);
  const ByteVector bytes = pattern(4096, 1);
  const WritePiece writes[] = {{own.get(), 0, bytes}, {foreign.get(), 0, bytes}};
  CHECK(error_code([&] { fixture.backend.write_batch(writes).throw_first(); }) == EINVAL);
  for (Object* object : {own.get(), foreign.get()})
    CHECK(read_all(*object, 0, 4096) == ByteVector(4096, std::byte{0}));
  ByteVector a(4096, std::byte{1});
  const ReadPiece reads[] = {{own.get(), 0, a}, {foreign.get(), 0, a}};
  CHECK(error_code([&] { fixture.backend.read_batch(reads).throw_first(); }) == EINVAL);
  CHECK(a == ByteVector(4096, std::byte{1}));
  MemoryBackend of_another_kind;
  auto in_memory = of_another_kind.create("x", 4096, Purpose::kData);
  const ReadPiece alone[] = {{in_memory.get(), 0, a}};
  CHECK(error_code([&] { fixture.backend.read_batch(alone).throw_first(); }) == EINVAL);
}

ON_EVERY_BACKEND("data is written in units, and metadata as it comes", Fixture) {
  Fixture fixture;
  Backend& backend = fixture.backend;
  auto data = backend.create("v/data.1", 1 << 20, Purpose::kData);
  auto log = backend.create("v/log", 0, Purpose::kMetadata);
  const int refusal = backend.write_alignment_bytes() > 1 ? EINVAL : 0;
  const ByteVector bytes = pattern(5000, 1);
  CHECK(error_code([&] { data->write(0, bytes); }) == refusal);
  CHECK(error_code([&] { data->write(512, Bytes(bytes).first(4096)); }) == refusal);
  const WritePiece pieces[] = {{data.get(), 8192, Bytes(bytes).first(4096)},
                               {data.get(), 12'288, bytes},
                               {log.get(), 100, bytes}};
  CHECK(error_code([&] { backend.write_batch(pieces).throw_first(); }) == refusal);
  CHECK(read_all(*data, 8192, 4096) == ByteVector(bytes.begin(), bytes.begin() + 4096));
  CHECK(read_all(*log, 100, 5000) == bytes);
}

ON_EVERY_BACKEND("threads that write neighbouring bytes lose none of them", Fixture) {
  Fixture fixture;
  // In blocks shared by several threads, where that can be.
  const size_t kEach = in_units(fixture.backend, 1000);
  constexpr int kThreads = 4;
  auto object =
      fixture.backend.create("v/data.1", 0, Purpose::kData);  // each write may also make it longer
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        object->write((i * kThreads + t) * kEach, pattern(kEach, t * 100 + i));
        if (t == 0) object->grow(i * 1500);
        if (t == 1) object->sync();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < 20; ++i) {
      REQUIRE(read_all(*object, (i * kThreads + t) * kEach, kEach) == pattern(kEach, t * 100 + i));
    }
  }
}

}  // namespace tplstore::backend_contract_test
