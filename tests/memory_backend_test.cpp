// What a crash does to a MemoryBackend, and its faults.
#include "memory/memory_backend.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace tplstore::memory_backend_test {
using Crash = MemoryBackend::Crash;

namespace {

constexpr uint64_t kSeeds = 200;

ByteVector filled(size_t size, int value) {
  return ByteVector(size, static_cast<std::byte>(value));
}

ByteVector read_all(Object& object, uint64_t offset, size_t size) {
  ByteVector bytes(size, std::byte{0xee});
  object.read(offset, bytes);
  return bytes;
}

std::unique_ptr<MemoryBackend> crash_at_end(const MemoryBackend& backend, Crash kind,
                                            uint64_t seed = 0) {
  return backend.crash(backend.event_count(), kind, seed);
}

bool has(const MemoryBackend& backend, const std::string& name) {
  try {
    backend.content(name);
  } catch (const Error& error) {
    REQUIRE((error.code() == ENOENT || error.code() == EISDIR));
    return false;
  }
  return true;
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

// What all objects hold, by name.
std::map<std::string, ByteVector> contents(MemoryBackend& backend, const std::string& folder = "") {
  std::map<std::string, ByteVector> found;
  for (const std::string& last : backend.list(folder)) {
    const std::string name = folder.empty() ? last : folder + "/" + last;
    if (has(backend, name)) {
      found[name] = backend.content(name);
    } else {
      found.merge(contents(backend, name));
    }
  }
  return found;
}

}  // namespace

TEST_CASE("a kill loses nothing, a power failure what was not synced") {
  MemoryBackend backend;
  auto object = backend.create("v/data", 4096, Purpose::kMetadata);
  object->sync();
  backend.sync_folder("v");
  object->write(0, filled(1024, 1));
  object->sync();
  object->write(512, filled(1024, 2));

  ByteVector all = filled(4096, 0);
  std::fill_n(all.begin(), 512, std::byte{1});
  std::fill_n(all.begin() + 512, 1024, std::byte{2});
  ByteVector durable = filled(4096, 0);
  std::fill_n(durable.begin(), 1024, std::byte{1});
  CHECK(crash_at_end(backend, Crash::kKill)->content("v/data") == all);
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->content("v/data") == durable);
  CHECK(backend.content("v/data") == all);
}

TEST_CASE("after a kill the unsynced can still be lost, or synced by whoever comes next") {
  MemoryBackend backend;
  auto object = backend.create("v/data", 0, Purpose::kMetadata);
  object->sync();
  backend.sync_folder("v");
  object->write(0, filled(512, 1));
  backend.create("v/other", 0, Purpose::kMetadata);

  auto killed = crash_at_end(backend, Crash::kKill);
  CHECK(killed->event_count() == 0);
  CHECK(killed->content("v/data") == filled(512, 1));
  auto lost = killed->crash(0, Crash::kLoseUnsynced, 0);
  CHECK(lost->content("v/data").empty());
  CHECK_FALSE(has(*lost, "v/other"));

  killed->open("v/data", Access::kRead, Purpose::kMetadata)->sync();
  killed->sync_folder("v");
  CHECK(killed->event_count() == 2);
  auto kept = crash_at_end(*killed, Crash::kLoseUnsynced);
  CHECK(kept->content("v/data") == filled(512, 1));
  CHECK(has(*kept, "v/other"));
  CHECK(killed->crash(0, Crash::kLoseUnsynced, 0)->content("v/data").empty());
  // Killed twice, then without power.
  auto again = crash_at_end(backend, Crash::kKill)->crash(0, Crash::kKill, 0);
  CHECK(again->crash(0, Crash::kLoseUnsynced, 0)->content("v/data").empty());
  // What a power failure left is durable.
  auto left = crash_at_end(backend, Crash::kRandom, 3);
  CHECK(contents(*left->crash(0, Crash::kLoseUnsynced, 0)) == contents(*left));
}

TEST_CASE("each sector holds the durable value or one written since, and any of them happens") {
  MemoryBackend backend;
  auto object = backend.create("v/data", 8 * 512, Purpose::kMetadata);
  object->write(0, filled(8 * 512, 1));
  object->sync();
  backend.sync_folder("v");
  object->write(0, filled(8 * 512, 2));
  object->write(512, filled(512, 3));
  object->write(1024 + 100, filled(50, 4));

  std::vector<std::set<int>> seen(8);
  bool is_torn = false;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const ByteVector content = crash_at_end(backend, Crash::kRandom, seed)->content("v/data");
    REQUIRE(content.size() == 8 * 512);
    for (size_t s = 0; s < 8; ++s) {
      const Bytes sector = Bytes(content).subspan(s * 512, 512);
      const int value = static_cast<int>(sector[110]);
      seen[s].insert(value);
      const Bytes rest = s == 2 ? sector.first(100) : sector;
      const int whole = s == 2 && value == 4 ? 2 : value;
      REQUIRE(std::ranges::equal(rest, filled(rest.size(), whole)));
    }
    is_torn |= content[0] != content[7 * 512];
  }
  CHECK(seen[0] == std::set{1, 2});
  CHECK(seen[1] == std::set{1, 2, 3});
  CHECK(seen[2] == std::set{1, 2, 4});
  CHECK(is_torn);
}

TEST_CASE("punches stick by sectors, and one that stuck whole gives its space back") {
  MemoryBackend backend;
  auto object = backend.create("v/data", uint64_t{1} << 40, Purpose::kMetadata);
  object->write(0, filled(16'384, 1));
  object->sync();
  backend.sync_folder("v");
  object->punch(512, uint64_t{1} << 39);
  bool was_freed = false;
  bool was_lost = false;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    auto after = crash_at_end(backend, Crash::kRandom, seed);
    auto reopened = after->open("v/data", Access::kRead, Purpose::kMetadata);
    CHECK(read_all(*reopened, 0, 512) == filled(512, 1));
    for (uint64_t s = 1; s < 32; ++s) {
      const ByteVector sector = read_all(*reopened, s * 512, 512);
      REQUIRE((sector == filled(512, 1) || sector == filled(512, 0)));
    }
    was_freed |= reopened->allocated_bytes() == 4096;
    was_lost |= read_all(*reopened, 0, 16'384) == filled(16'384, 1);
  }
  CHECK(was_freed);
  CHECK(was_lost);
}

TEST_CASE("growth is kept or lost, and what stuck behind a lost end is gone") {
  MemoryBackend backend;
  auto object = backend.create("v/log", 0, Purpose::kMetadata);
  object->write(0, filled(100, 1));
  object->sync();
  backend.sync_folder("v");
  object->write(100, filled(1000, 2));
  object->grow(5000);
  std::set<uint64_t> sizes;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    auto after = crash_at_end(backend, Crash::kRandom, seed);
    auto reopened = after->open("v/log", Access::kWrite, Purpose::kMetadata);
    const uint64_t size = reopened->size_bytes();
    sizes.insert(size);
    CHECK(read_all(*reopened, 0, 100) == filled(100, 1));
    reopened->grow(10'000);
    CHECK(read_all(*reopened, size, 5000) == filled(5000, 0));
  }
  CHECK(sizes == std::set<uint64_t>{100, 1100, 5000});
}

TEST_CASE("a name is durable when its folder was synced, and the folder with it") {
  MemoryBackend backend;
  auto object = backend.create("volumes/u/header", 0, Purpose::kMetadata);
  object->write(0, filled(512, 1));
  object->sync();
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->list("").empty());
  backend.sync_folder("volumes");
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->list("volumes") ==
        std::vector<std::string>{"u"});
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->list("volumes/u").empty());
  backend.sync_folder("volumes/u");
  backend.create("volumes/u/later", 0, Purpose::kMetadata);
  auto after = crash_at_end(backend, Crash::kLoseUnsynced);
  CHECK(after->content("volumes/u/header") == filled(512, 1));
  CHECK(after->list("volumes/u") == std::vector<std::string>{"header"});
  // A synced name without synced content is there, and empty.
  backend.create("volumes/u/empty", 4096, Purpose::kMetadata)->write(0, filled(512, 1));
  backend.sync_folder("volumes/u");
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->content("volumes/u/empty").empty());
}

TEST_CASE("created and removed names are kept or lost each by itself") {
  MemoryBackend backend;
  backend.put_new("v/old", filled(10, 1));
  backend.put_new("v/stays", filled(10, 2));
  backend.create("v/new", 0, Purpose::kMetadata)->write(0, filled(512, 3));
  backend.remove("v/old");
  backend.create("v/old", 0, Purpose::kMetadata);
  std::set<std::vector<std::string>> lists;
  std::set<ByteVector> olds;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    auto after = crash_at_end(backend, Crash::kRandom, seed);
    lists.insert(after->list("v"));
    CHECK(after->content("v/stays") == filled(10, 2));
    if (has(*after, "v/old")) olds.insert(after->content("v/old"));
  }
  CHECK(lists.size() == 4);
  CHECK(olds == std::set<ByteVector>{{}, filled(10, 1)});
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->content("v/old") == filled(10, 1));
  backend.sync_folder("v");
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->content("v/old").empty());
}

TEST_CASE("put_new is there whole or not at all") {
  MemoryBackend backend;
  backend.put_new("a/b/c", filled(10'000, 1));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    CHECK(backend.crash(0, Crash::kRandom, seed)->list("").empty());
    CHECK(backend.crash(1, Crash::kRandom, seed)->content("a/b/c") == filled(10'000, 1));
  }
}

TEST_CASE("a removed folder is gone for good once the folder above is synced") {
  MemoryBackend backend;
  backend.put_new("volumes/u/header", filled(10, 1));
  backend.put_new("volumes/u/sub/x", filled(10, 2));
  backend.remove_folder("volumes/u");
  CHECK(backend.list("volumes").empty());
  CHECK(has(*crash_at_end(backend, Crash::kLoseUnsynced), "volumes/u/sub/x"));
  bool was_mixed = false;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    auto after = crash_at_end(backend, Crash::kRandom, seed);
    was_mixed |= has(*after, "volumes/u/header") != has(*after, "volumes/u/sub/x");
  }
  CHECK(was_mixed);
  SUBCASE("when nothing came after it") {
    backend.sync_folder("volumes");
    CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->list("volumes").empty());
  }
  SUBCASE("when it was made again") {
    backend.create("volumes/u/header", 0, Purpose::kMetadata);
    backend.sync_folder("volumes");
    for (uint64_t seed = 0; seed < 20; ++seed) {
      auto after = crash_at_end(backend, Crash::kRandom, seed);
      CHECK_FALSE(has(*after, "volumes/u/sub/x"));
      if (has(*after, "volumes/u/header")) CHECK(after->content("volumes/u/header").empty());
    }
  }
}

TEST_CASE("an open object that lost its name may come back with what was written to it") {
  MemoryBackend backend;
  backend.put_new("v/x", filled(512, 1));
  auto object = backend.open("v/x", Access::kWrite, Purpose::kMetadata);
  backend.remove("v/x");
  object->write(0, filled(512, 2));
  object->sync();
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->content("v/x") == filled(512, 2));
}

TEST_CASE("crashes at all prefixes agree with one that plays the trace by itself") {
  MemoryBackend backend;
  std::mt19937_64 random(5);
  std::vector<std::unique_ptr<Object>> objects;
  std::vector<std::map<std::string, ByteVector>> visible = {contents(backend)};
  auto note = [&] {
    // Every call but those that change nothing is one event.
    if (backend.event_count() == visible.size()) visible.push_back(contents(backend));
    REQUIRE(backend.event_count() == visible.size() - 1);
  };
  for (int i = 0; i < 400; ++i) {
    const std::string name = fmt::format("f{}/o{}", random() % 3, random() % 4);
    switch (random() % 8) {
      case 0:
        if (!has(backend, name))
          objects.push_back(backend.create(name, random() % 5000, Purpose::kMetadata));
        break;
      case 1:
        backend.put_new(name, filled(random() % 3000, i));
        break;
      case 2:
        backend.remove(name);
        break;
      case 3:
        error_code([&] { backend.sync_folder(name.substr(0, 2)); });
        break;
      case 4:
        if (random() % 8 == 0) backend.remove_folder(name.substr(0, 2));
        break;
      default:
        if (objects.empty()) break;
        Object& object = *objects[random() % objects.size()];
        const uint64_t offset = random() % 20'000;
        switch (random() % 4) {
          case 0:
            object.punch(offset, random() % 10'000);
            break;
          case 1:
            object.sync();
            break;
          default:
            object.write(offset, filled(random() % 5000, i));
        }
    }
    note();
  }
  CrashWalker walker(backend);
  for (size_t n = 0; n <= backend.event_count(); ++n) {
    walker.advance_to(n);
    REQUIRE(contents(*walker.crash(Crash::kKill, 0)) == visible[n]);
    for (const Crash kind : {Crash::kLoseUnsynced, Crash::kRandom}) {
      REQUIRE(contents(*walker.crash(kind, n)) == contents(*backend.crash(n, kind, n)));
    }
  }
  CHECK(walker.is_at_end());
  CHECK(contents(*backend.crash(10, Crash::kKill, 0)) == visible[10]);  // and backwards
}

TEST_CASE("events say what they were") {
  MemoryBackend backend;
  backend.create("v/x", 10, Purpose::kMetadata)->write(3, filled(4, 1));
  backend.sync_folder("v");
  REQUIRE(backend.event_count() == 3);
  CHECK(backend.describe_event(0) == "create v/x: 10 bytes");
  CHECK(backend.describe_event(1) == "write v/x: 4 bytes at 3");
  CHECK(backend.describe_event(2) == "sync_folder v");
}

TEST_CASE("without recording there is a current state and nothing else") {
  MemoryBackend backend;
  backend.set_recording(false);
  auto object = backend.create("v/x", 0, Purpose::kMetadata);
  object->write(0, filled(8192, 1));
  auto removed = backend.create("v/y", 0, Purpose::kMetadata);
  backend.remove("v/y");
  removed->write(0, filled(10, 1));
  CHECK(read_all(*removed, 0, 10) == filled(10, 1));
  removed.reset();
  CHECK(backend.event_count() == 0);
  CHECK(contents(*backend.clone()) == contents(backend));
  backend.set_recording(true);
  object->write(0, filled(512, 2));
  CHECK(backend.event_count() == 1);
  CHECK(crash_at_end(backend, Crash::kLoseUnsynced)->content("v/x") == filled(8192, 1));
}

TEST_CASE("a clone goes its own way") {
  MemoryBackend backend;
  auto object = backend.create("v/x", 0, Purpose::kMetadata);
  object->write(0, filled(10, 1));
  auto copy = backend.clone();
  object->write(0, filled(10, 2));
  copy->open("v/x", Access::kWrite, Purpose::kMetadata)->write(5, filled(10, 3));
  CHECK(backend.content("v/x") == filled(10, 2));
  CHECK(copy->content("v/x").size() == 15);
  CHECK_FALSE(has(*crash_at_end(*copy, Crash::kLoseUnsynced), "v/x"));
}

TEST_CASE("a full backend takes overwrites, and more when something was punched") {
  MemoryBackend backend;
  backend.set_capacity_bytes(4 * 4096);
  auto object = backend.create("v/x", 1 << 20, Purpose::kMetadata);
  object->write(0, filled(3 * 4096, 1));
  CHECK(error_code([&] { object->write(2 * 4096, filled(3 * 4096, 2)); }) == ENOSPC);
  CHECK(read_all(*object, 2 * 4096, 4096) == filled(4096, 1));
  CHECK(error_code([&] { backend.put_new("v/y", filled(5000, 1)); }) == ENOSPC);
  object->write(100, filled(3 * 4096, 3));
  CHECK(backend.allocated_bytes() == 4 * 4096);
  object->write(0, filled(4 * 4096, 4));
  CHECK(error_code([&] { object->write(4 * 4096, filled(1, 5)); }) == ENOSPC);
  object->punch(4096, 2 * 4096);
  object->write(4 * 4096, filled(1, 5));
  CHECK(backend.put_new("v/y", filled(4096, 1)));
  object->sync();
  backend.sync_folder("v");
  auto after = crash_at_end(backend, Crash::kLoseUnsynced);
  CHECK(error_code([&] { after->put_new("v/z", filled(1, 1)); }) == ENOSPC);
  CHECK(after->remove("v/y"));
  CHECK(after->put_new("v/z", filled(1, 1)));
}

TEST_CASE("syncs and reads fail when told to") {
  MemoryBackend backend;
  auto object = backend.create("v/x", 0, Purpose::kMetadata);
  object->write(0, filled(10, 1));
  backend.sync_folder("v");
  backend.fail_next_sync("v/", EIO);
  backend.create("w", 0, Purpose::kMetadata)->sync();
  CHECK(error_code([&] { object->sync(); }) == EIO);
  CHECK(error_code([&] { object->sync(); }) == EIO);
  CHECK(error_code([&] { object->write(0, filled(1, 1)); }) == EIO);
  backend.fail_reads("v/", EIO);
  CHECK(error_code([&] { read_all(*object, 0, 1); }) == EIO);
  CHECK(error_code([&] { backend.get("v/x", 100); }) == EIO);
  ByteVector byte(1);
  const ReadPiece pieces[] = {{object.get(), 0, byte}, {object.get(), 1, byte}};
  CHECK(error_code([&] { backend.read_batch(pieces).throw_first(); }) == EIO);
  backend.fail_reads("v/", 0);
  CHECK(backend.get("v/x", 100) == filled(10, 1));
}

TEST_CASE(
    "a failed sync loses what it should have made durable, and only a look at the disk tells") {
  MemoryBackend backend;
  auto object = backend.create("v/x", 8192, Purpose::kMetadata);
  object->write(0, filled(512, 1));
  object->sync();
  backend.sync_folder("v");
  auto other = backend.open("v/x", Access::kWrite, Purpose::kMetadata);
  object->write(0, filled(1024, 2));
  object->write(9000, filled(10, 2));
  object->punch(4096, 4096);
  backend.fail_next_sync("v/x", EIO, 0);
  CHECK(error_code([&] { object->sync(); }) == EIO);
  CHECK(error_code([&] { object->write(0, filled(1, 1)); }) == EIO);
  // Who had it open is told too; who opens it later is not.
  CHECK(error_code([&] { other->sync(); }) == EIO);
  auto later = backend.open("v/x", Access::kWrite, Purpose::kMetadata);
  later->write(1024, filled(512, 3));
  later->sync();
  CHECK(read_all(*later, 0, 1024) == filled(1024, 2));

  const auto check_disk = [](MemoryBackend& at) {
    const auto look = at.open("v/x", Access::kRead, Purpose::kMetadata);
    CHECK(read_all(*look, 0, 512) == filled(512, 1));
    CHECK(read_all(*look, 512, 512) == filled(512, 0));
    CHECK(read_all(*look, 1024, 512) == filled(512, 3));
    CHECK(look->size_bytes() == 9010);
    CHECK(read_all(*look, 9000, 10) == filled(10, 0));
  };
  check_disk(*crash_at_end(backend, Crash::kLoseUnsynced));
  check_disk(*crash_at_end(backend, Crash::kRandom));
  // The process that is killed leaves the pages behind.
  const auto killed = crash_at_end(backend, Crash::kKill);
  CHECK(read_all(*killed->open("v/x", Access::kRead, Purpose::kMetadata), 0, 1024) ==
        filled(1024, 2));
  check_disk(*crash_at_end(*killed, Crash::kLoseUnsynced));

  later->write(2048, filled(512, 4));
  later->drop_cached();
  CHECK(read_all(*later, 2048, 512) == filled(512, 4));
  check_disk(backend);
  check_disk(*backend.clone());
  later->sync();
  check_disk(*crash_at_end(backend, Crash::kLoseUnsynced));
}

TEST_CASE("a sync fails after as many others as was asked for, or not at all") {
  MemoryBackend backend;
  auto object = backend.create("v/x", 0, Purpose::kMetadata);
  backend.fail_next_sync("v/", EIO, 2);
  object->sync();
  object->sync();
  CHECK(error_code([&] { object->sync(); }) == EIO);
  backend.fail_next_sync("v/", EIO);
  backend.fail_next_sync("v/", 0);
  backend.open("v/x", Access::kWrite, Purpose::kMetadata)->sync();
}

TEST_CASE("damage is durable and seen by open objects") {
  MemoryBackend backend;
  auto object = backend.create("v/x", 100, Purpose::kMetadata);
  backend.set_content("v/x", filled(50, 7));
  backend.set_content("v/new", filled(5, 8));
  CHECK(object->size_bytes() == 50);
  CHECK(read_all(*object, 0, 50) == filled(50, 7));
  auto after = crash_at_end(backend, Crash::kLoseUnsynced);
  CHECK(after->content("v/x") == filled(50, 7));
  CHECK(after->content("v/new") == filled(5, 8));
}

TEST_CASE("a crash lets go of all locks") {
  MemoryBackend backend;
  backend.put_new("lock", {});
  auto lock = backend.try_lock("lock", LockMode::kExclusive);
  CHECK(crash_at_end(backend, Crash::kKill)->try_lock("lock", LockMode::kExclusive));
  CHECK_FALSE(backend.try_lock("lock", LockMode::kShared));
}

}  // namespace tplstore::memory_backend_test
