// The segments of a store somewhere else: found, not found, and moved.
#include "template/origin.h"

#include <doctest/doctest.h>

#include "forwarding_backend.h"
#include "import_testing.h"
#include "memory/memory_backend.h"
#include "template/move_origin.h"
#include "template/template_catalog.h"
#include "template_testing.h"
#include "transfer/importer.h"

namespace tplstore::origin_test {
using namespace tplstore::testing;

namespace {

// What can be had at which location; "" is the store.
struct World {
  std::map<std::string, std::unique_ptr<MemoryBackend>> places;
  uint64_t calls_left = UINT64_MAX;  // then everything fails

  World() = default;
  World(World&&) = default;
  World(const World& other) {
    for (const auto& [location, place] : other.places) places[location] = place->clone();
  }
  void add(const std::string& location) { places[location] = std::make_unique<MemoryBackend>(); }
  std::unique_ptr<Backend> open(const std::string& location) {
    if (!places.contains(location)) fail(ENOENT, location, "is not there");
    auto backend = std::make_unique<ForwardingBackend>(*places[location]);
    backend->around = [this](auto, const std::string&, const std::function<void()>& go_on) {
      if (calls_left == 0) fail(EIO, "test", "stopped");
      --calls_left;
      go_on();
    };
    return backend;
  }
  OpenLocation opener() {
    return [this](const std::string& location) { return open(location); };
  }
  void crash(MemoryBackend::Crash kind, uint64_t seed) {
    for (auto& [location, place] : places) place = place->crash(place->event_count(), kind, seed);
    calls_left = UINT64_MAX;
  }
  bool has_segments(const std::string& location) {
    return !list_segments(*places[location]).empty();
  }
};

// One process with the store.
struct Process {
  explicit Process(World& world)
      : store(world.open("")), origin(*store, world.opener()), move{world.opener()} {}
  TemplateStorage templates() { return {*store, origin}; }
  ByteVector read(const std::string& name) {
    BlockSource blocks(origin);
    return read_whole(*TemplateImage::open(*store, blocks, name));
  }
  OriginMove move_to(const std::string& location) { return move_origin(*store, location, move); }

  std::unique_ptr<Backend> store;
  Origin origin;
  OriginMoveOptions move;
};

const ByteVector kDisk = disk_of({1, 2, 0, 3, 4, 5});

// A store with template "t", and two directories.
World world_of_one() {
  World world;
  for (const std::string location : {"", "/a", "/b"}) world.add(location);
  make_store(*world.places[""]);
  make_template(*world.places[""], "t", {1, 2, 0, 3, 4, 5}, kDisk.size(), 2);
  return world;
}

std::vector<std::string> nobody() { return {}; }

}  // namespace

TEST_CASE("segments are moved to a directory, to another one, and back, while they are read") {
  World world = world_of_one();
  Process process(world), server(world);
  BlockSource blocks(server.origin);
  const auto image = TemplateImage::open(*server.store, blocks, "t");
  ByteVector part(kBlockBytes);
  image->read(0, part);  // opens one of three
  std::string before;
  for (const std::string location : {"/a", "/b", ""}) {
    CAPTURE(location);
    REQUIRE(world.has_segments(before));
    CHECK(thrown_by([&] { process.move_to(before); }).code == EINVAL);
    uint64_t last_done = 0;
    process.move.progress = [&](uint64_t done, uint64_t all) {
      CHECK(all == 3);
      last_done = done;
    };
    const OriginMove moved = process.move_to(location);
    CHECK(last_done == 3);
    CHECK(moved.segments == 3);
    CHECK(moved.copied_bytes == 2 * segment_object_bytes(2) + segment_object_bytes(1));
    CHECK(moved.left.empty());
    CHECK_FALSE(world.has_segments(before));
    CHECK(world.has_segments(location));
    for (const std::string other : {"/a", "/b"})
      CHECK(world.places[other]->list("").empty() == (other != location));
    CHECK(process.origin.location() == location);
    ByteVector disk(kDisk.size());
    image->read(0, disk);
    CHECK(disk == kDisk);
    CHECK(verify_template(process.templates(), "t", {}).is_sound());
    // What is imported by who has not heard of it yet goes there, and so does gc.
    const auto source = [] { return std::make_unique<MemorySource>(disk_of({1, 8, 9})); };
    CHECK(import_from(server.templates(), "u", source, {}).stored_bytes == 2 * kBlockBytes);
    CHECK(list_segments(*world.places[location]).size() == 4);
    CHECK(process.read("u") == disk_of({1, 8, 9}));
    CHECK(remove_template(server.templates(), "u", nobody).removed_segments == 1);
    before = location;
  }
  CHECK(world.places[""]->list("segments").size() > 0);
}

TEST_CASE("where segments cannot be found it is said why, and they are found again") {
  World world = world_of_one();
  Process(world).move_to("/a");
  Process process(world);
  CHECK(process.read("t") == kDisk);
  const auto message = [&] {
    Process fresh(world);
    fresh.read("t");
    return std::string();
  };
  auto away = std::move(world.places["/a"]);
  world.places.erase("/a");
  CHECK(thrown_by(message).code == EIO);
  CHECK(thrown_by(message).text.find(
            "/a: the templates' segments are here and cannot be reached") != std::string::npos);
  Process waiting(world);
  CHECK(thrown_by([&] { waiting.origin.check(); }).code == EIO);
  // An empty mount point, and another store's.
  world.add("/a");
  CHECK(thrown_by(message).text.find("is it mounted?") != std::string::npos);
  claim_origin(*world.places["/a"], random_uuid(), random_uuid());
  CHECK(thrown_by(message).text.find("is it mounted?") != std::string::npos);
  CHECK(thrown_by([&] { waiting.read("t"); }).code == EIO);
  // Nothing is made there, and nothing is lost.
  const auto source = [] { return std::make_unique<MemorySource>(disk_of({7})); };
  CHECK(thrown_by([&] { import_from(waiting.templates(), "u", source, {}); }).code == EIO);
  CHECK(thrown_by([&] { gc(waiting.templates()); }).code == EIO);
  CHECK(world.places["/a"]->list("") == std::vector<std::string>{kOriginObject});
  CHECK(list_templates(*waiting.store).at(0).state == "ready");
  world.places["/a"] = std::move(away);
  CHECK(waiting.read("t") == kDisk);
  CHECK(Process(world).read("t") == kDisk);

  world.places[""]->set_content("origin.1", as_bytes("nowhere"));
  CHECK(thrown_by(message).text.find("origin.1: damaged") != std::string::npos);
}

TEST_CASE("what is another store's, damaged or being moved is not moved") {
  World world = world_of_one();
  Process process(world);
  claim_origin(*world.places["/b"], random_uuid(), random_uuid());
  CHECK(thrown_by([&] { process.move_to("/b"); }).code == EEXIST);
  make_template(*world.places["/a"], "x", {1}, kBlockBytes);
  CHECK(thrown_by([&] { process.move_to("/a"); }).code == EEXIST);
  world.add("/a");
  {
    const auto import = world.places[""]->try_lock("gc.lock", LockMode::kShared);
    CHECK(thrown_by([&] { process.move_to("/a"); }).code == EBUSY);
    const auto move = world.places[""]->try_lock("gc.lock", LockMode::kExclusive, 1);
    CHECK(thrown_by([&] { process.move_to("/a"); }).code == EBUSY);
    CHECK(leave_former_origins(*process.store, world.opener()).empty());
  }
  CHECK(world.has_segments("/a"));  // for the next time
  const std::string path = segment_path(list_segments(*world.places[""])[1]);
  ByteVector content = world.places[""]->content(path);
  content[5] ^= std::byte{1};
  world.places[""]->set_content(path, content);
  const Thrown thrown = thrown_by([&] { process.move_to("/a"); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find(path) == 0);
  CHECK(thrown_by([&] { process.move_to(""); }).code == EINVAL);
  content[5] ^= std::byte{1};
  world.places[""]->set_content(path, content);
  // What was copied before and is not there any more does not stay; what is other is copied anew.
  world.places["/a"]->put_new(segment_path({1, 2}), as_bytes("old"));
  world.places["/a"]->set_content(path, as_bytes("other"));
  process.move.interrupted = [] { return true; };
  CHECK(thrown_by([&] { process.move_to("/a"); }).code == EINTR);
  process.move.interrupted = {};
  process.move_to("/a");
  CHECK(list_segments(*world.places["/a"]).size() == 3);
  CHECK(process.read("t") == kDisk);
}

TEST_CASE("what was given up of a segment is not taken for damage, and takes no space there") {
  World world = world_of_one();
  Process process(world);
  const auto import_numbers = [&](const std::string& name, uint64_t first, uint64_t count) {
    std::vector<uint64_t> numbers;
    for (uint64_t i = 0; i < count; ++i) numbers.push_back(first + i);
    import_from(process.templates(), name,
                [&] { return std::make_unique<MemorySource>(disk_of(numbers)); }, {});
    return disk_of(numbers);
  };
  import_numbers("u", 100, 200);
  const ByteVector disk = import_numbers("v", 150, 10);
  CHECK(remove_template(process.templates(), "u", nobody).freed_bytes == 190 * kBlockBytes);
  const uint64_t before = world.places[""]->allocated_bytes();
  process.move_to("/a");
  CHECK(process.read("v") == disk);
  CHECK(verify_template(process.templates(), "v", {}).is_sound());
  CHECK(world.places["/a"]->allocated_bytes() < before);
}

TEST_CASE(
    "a move that ends anywhere has moved nothing or all, and goes on when it is begun again") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  World first = world_of_one();
  World moved(first);
  Process(moved).move_to("/a");
  int before = 0, after = 0;
  for (const bool is_apart : {false, true}) {
    CAPTURE(is_apart);
    const std::string from = is_apart ? "/a" : "", to = is_apart ? "" : "/b";
    for (uint64_t calls = 0;; ++calls) {
      CAPTURE(calls);
      bool has_ended = false;
      for (int round = 0; round < 3; ++round) {
        World world(is_apart ? moved : first);
        {
          Process process(world);
          world.calls_left = calls;
          has_ended = thrown_by([&] { process.move_to(to); }).code == 0 && world.calls_left > 0;
        }
        const auto kind = round == 0   ? MemoryBackend::Crash::kKill
                          : round == 1 ? MemoryBackend::Crash::kLoseUnsynced
                                       : MemoryBackend::Crash::kRandom;
        world.crash(kind, seed + calls * 3 + static_cast<uint64_t>(round));
        Process process(world);
        REQUIRE(process.read("t") == kDisk);
        REQUIRE(verify_template(process.templates(), "t", {}).is_sound());
        const std::string now = process.origin.location();
        REQUIRE((now == from || now == to));
        ++(now == from ? before : after);
        // Another process may be the first to come.
        if (calls % 2 == 0) {
          gc(process.templates());
          leave_former_origins(*process.store, world.opener());
        }
        if (now == from) process.move_to(to);
        REQUIRE(process.read("t") == kDisk);
        leave_former_origins(*process.store, world.opener());
        REQUIRE_FALSE(world.has_segments(from));
        if (!from.empty()) REQUIRE(world.places[from]->list("").empty());
        REQUIRE(list_origin_places(*process.store).size() == 2);
        world.crash(MemoryBackend::Crash::kLoseUnsynced, 0);
        REQUIRE(Process(world).read("t") == kDisk);
      }
      if (has_ended) break;
    }
  }
  CHECK(before > 20);
  CHECK(after > 5);
}

TEST_CASE("a program that knows nothing of it does not take a store whose segments are apart") {
  World world = world_of_one();
  CHECK(load_identity(*world.places[""]).incompatible_features == 0);
  const HashSecret secret = load_identity(*world.places[""]).secret;
  Process(world).move_to("/a");
  const StoreIdentity identity = load_identity(*world.places[""]);
  CHECK(identity.incompatible_features == kFeatureOriginApart);
  CHECK(std::memcmp(&identity.secret, &secret, sizeof secret) == 0);
}

}  // namespace tplstore::origin_test
