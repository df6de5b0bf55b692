#include "transfer/importer.h"

#include <doctest/doctest.h>
#include <xxhash.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "forwarding_backend.h"
#include "import_testing.h"
#include "memory/memory_backend.h"
#include "template/import_journal.h"
#include "template/template_image.h"
#include "template_testing.h"
#include "temporary_directory.h"

namespace tplstore::importer_test {
using namespace tplstore::testing;

namespace {

// What a test of who comes first wants: a segment is there before anything else happens.
const ImportOptions kOneByOne{.segments_at_once_max = 0};

ByteVector read_template(Backend& backend, const std::string& name) {
  return read_whole(*open_image(backend, name));
}

// Of all segments; each must have a sound table.
uint64_t stored_blocks(Backend& backend) {
  uint64_t blocks = 0;
  for (const Hash128& name : list_segments(backend)) {
    const auto object = backend.open(segment_path(name), Access::kRead, Purpose::kData);
    blocks += read_segment_table(*object, name, kTestSecret).size();
  }
  return blocks;
}

std::vector<uint64_t> numbers_from(uint64_t first, uint64_t count) {
  std::vector<uint64_t> numbers;
  for (uint64_t i = 0; i < count; ++i) numbers.push_back(first + i);
  return numbers;
}

std::vector<uint64_t> joined(std::vector<uint64_t> a, const std::vector<uint64_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<std::string> nobody() { return {}; }

}  // namespace

TEST_CASE("a plain image becomes a template with one run per segment") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector disk = disk_of(numbers_from(1, 2500));
  std::vector<uint64_t> progress;
  const ImportResult result =
      import_disk(backend, "plain", disk, {.progress = [&](uint64_t done, uint64_t total) {
                    CHECK(total == disk.size());
                    CHECK((progress.empty() || done >= progress.back()));
                    progress.push_back(done);
                  }});
  CHECK(progress.front() == 0);
  CHECK(progress.back() == disk.size());
  CHECK(read_template(backend, "plain") == disk);
  const Manifest manifest = load_manifest(backend, "plain").value();
  CHECK(manifest.segments.size() == 3);
  CHECK(manifest.runs.size() == 3);
  CHECK(manifest.source == "memory?");
  CHECK(result.stored_bytes == disk.size());
  CHECK(result.referenced_bytes == 0);
  CHECK(result.zero_bytes == 0);
  CHECK(result.info.state == "ready");
  CHECK(result.info.size_bytes == disk.size());
  CHECK(result.info.data_bytes == disk.size());
  CHECK(result.info.unique_bytes == disk.size());
  CHECK(result.info.segments == 3);
  CHECK(result.info.uuid == manifest.uuid);
  CHECK(result.info.created_ns > 0);
  CHECK(backend.list("imports").empty());
  CHECK(verify_template(backend, "plain", {}).is_sound());
}

TEST_CASE("zeroes are holes, an odd end is kept, and an image of zeroes stores nothing") {
  MemoryBackend backend;
  make_store(backend);
  ByteVector disk = disk_of({1, 0, 0, 2, 0, 3});
  disk.resize(disk.size() - 1536);
  const ImportResult result = import_disk(backend, "odd", disk);
  CHECK(result.stored_bytes == 3 * kBlockBytes);
  CHECK(result.zero_bytes == 3 * kBlockBytes);
  CHECK(read_template(backend, "odd") == disk);
  CHECK(import_disk(backend, "zero", ByteVector(1 << 20)).info.data_bytes == 0);
  CHECK(is_zero(read_template(backend, "zero")));
  CHECK(list_segments(backend).size() == 1);
}

TEST_CASE("equal blocks within an image are stored once") {
  MemoryBackend backend;
  make_store(backend);
  // Repeats within a piece, in the segment being built, and in one just published.
  std::vector<uint64_t> numbers = {1, 1, 2, 1};
  numbers = joined(numbers, numbers_from(3, 1100));
  numbers = joined(numbers, {1, 2, 3, 1099, 1100, 1101});
  const ByteVector disk = disk_of(numbers);
  const ImportResult result = import_disk(backend, "t", disk);
  CHECK(result.stored_bytes == 1102 * kBlockBytes);
  CHECK(result.referenced_bytes == 8 * kBlockBytes);
  CHECK(stored_blocks(backend) == 1102);
  CHECK(read_template(backend, "t") == disk);
}

TEST_CASE("two images share the blocks they have in common") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector first = disk_of(joined(numbers_from(1, 300), {0, 0, 900}));
  const ByteVector second = disk_of(joined({5000, 0}, joined(numbers_from(100, 150), {6000})));
  import_disk(backend, "first", first);
  const ImportResult result = import_disk(backend, "second", second);
  CHECK(result.stored_bytes == 2 * kBlockBytes);
  CHECK(result.referenced_bytes == 150 * kBlockBytes);
  CHECK(stored_blocks(backend) == 301 + 2);
  CHECK(read_template(backend, "first") == first);
  CHECK(read_template(backend, "second") == second);
  // The shared part is one run, not 150.
  CHECK(load_manifest(backend, "second")->runs.size() == 3);

  CHECK(show_template(backend, "first").unique_bytes == 0);
  CHECK(show_template(backend, "second").unique_bytes == 2 * kBlockBytes);
  const auto templates = list_templates(backend);
  REQUIRE(templates.size() == 2);
  CHECK(templates[0].name == "first");
  CHECK(templates[1].data_bytes == 152 * kBlockBytes);

  // An equal image costs a manifest.
  CHECK(import_disk(backend, "third", second).stored_bytes == 0);
  CHECK(stored_blocks(backend) == 303);
}

TEST_CASE("an image whose blocks take too much to list is refused before all of it is read") {
  MemoryBackend backend;
  make_store(backend);
  // Two blocks again and again: each takes a run of its own.
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 4096; ++i) numbers.insert(numbers.end(), {1, 2, 2, 1});
  const ByteVector disk = disk_of(numbers);
  uint64_t read_bytes = 0;
  const Thrown thrown = thrown_by([&] {
    import_disk(backend, "t", disk,
                {.progress = [&](uint64_t done, uint64_t) { read_bytes = done; },
                 .manifest_bytes_max = 64 << 10});
  });
  CHECK(thrown.code == EFBIG);
  CHECK(thrown.text.find("t: ") == 0);
  CHECK(thrown.text.find("too fragmented") != std::string::npos);
  CHECK(read_bytes > 0);
  CHECK(read_bytes < disk.size() / 2);
  CHECK(list_templates(backend).at(0).state == "failed");
  CHECK(list_templates(backend).at(0).problem.find("too fragmented") != std::string::npos);
  // What fits exactly is a template, and one byte less is refused.
  const uint64_t needed = [&] {
    import_disk(backend, "whole", disk);
    return backend.content(manifest_path("whole")).size();
  }();
  const auto import_with = [&](const std::string& name, uint64_t bytes_max) {
    return thrown_by([&] { import_disk(backend, name, disk, {.manifest_bytes_max = bytes_max}); });
  };
  CHECK(import_with("other", needed).code == 0);
  CHECK(import_with("again", needed - 1).code == EFBIG);
  CHECK(read_template(backend, "other") == disk);
}

TEST_CASE("blocks with equal hashes and different bytes stay different") {
  MemoryBackend backend;
  make_store(backend);
  // A segment that claims another block's hash, as if the two collided.
  SegmentBuilder builder(kTestSecret);
  builder.add(block_of(1), hash_of(block_of(2)));
  builder.add(block_of(3), hash_of(block_of(3)));
  publish_segment(builder, backend);
  const ByteVector disk = disk_of({2, 3, 2});
  const ImportResult result = import_disk(backend, "t", disk);
  CHECK(result.stored_bytes == kBlockBytes);
  CHECK(read_template(backend, "t") == disk);
}

TEST_CASE("blocks that really collide are both kept, within an image and between two") {
  const auto [a, b] = colliding_blocks(kTestSecret);
  const auto join = [](std::initializer_list<ByteVector> blocks) {
    ByteVector disk;
    for (const ByteVector& block : blocks) disk.insert(disk.end(), block.begin(), block.end());
    return disk;
  };
  MemoryBackend backend;
  make_store(backend);
  const ByteVector first = join({a, b, a, b}), second = join({block_of(1), b, a});
  CHECK(import_disk(backend, "first", first).stored_bytes == 2 * kBlockBytes);
  CHECK(import_disk(backend, "second", second).stored_bytes == kBlockBytes);
  CHECK(read_template(backend, "first") == first);
  CHECK(read_template(backend, "second") == second);
  MemoryBackend other;
  make_store(other);
  import_disk(other, "a", join({a, block_of(2)}));
  CHECK(import_disk(other, "b", join({b, block_of(3)})).stored_bytes == 2 * kBlockBytes);
  CHECK(read_template(other, "b") == join({b, block_of(3)}));
}

TEST_CASE("equal content has other names in another store, and its names verify") {
  MemoryBackend a, b;
  make_store(a, random_secret());
  make_store(b, random_secret());
  const ByteVector disk = disk_of(joined(numbers_from(1, 1100), {0, 0, 7}));
  const auto imported_a = import_disk(a, "t", disk), imported_b = import_disk(b, "t", disk);
  const auto names_a = list_segments(a), names_b = list_segments(b);
  REQUIRE(names_a.size() == 2);
  REQUIRE(names_b.size() == 2);
  for (const Hash128& name : names_a)
    CHECK(std::find(names_b.begin(), names_b.end(), name) == names_b.end());
  CHECK(verify_template(a, "t", {}).is_sound());
  CHECK(verify_template(b, "t", {}).is_sound());
  // What other stores understand is the same.
  CHECK(imported_a.info.content_id == imported_b.info.content_id);
  CHECK(imported_a.info.content_id.size() == 64);
  CHECK(show_template(a, "t").content_id == imported_a.info.content_id);

  // A segment of the other store does not have its name here.
  b.put_new(segment_path(names_a[0]), a.content(segment_path(names_a[0])));
  const auto foreign = b.open(segment_path(names_a[0]), Access::kRead, Purpose::kData);
  const HashSecret secret = load_identity(b).secret;
  const Thrown thrown = thrown_by([&] { read_segment_table(*foreign, names_a[0], secret); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("of another store") != std::string::npos);
}

TEST_CASE("blocks that were made to collide do not in a store whose secret their maker lacks") {
  const auto [first, second] = colliding_blocks(kPublicSecret);
  REQUIRE(first != second);
  // Blocks, and so segments too, as everybody computes them.
  const auto public_hash = [](const ByteVector& block) {
    const XXH128_hash_t hash = XXH3_128bits(block.data(), block.size());
    return std::pair(hash.high64, hash.low64);
  };
  REQUIRE(public_hash(first) == public_hash(second));
  for (const bool is_reversed : {false, true}) {
    CAPTURE(is_reversed);
    MemoryBackend a, b;
    make_store(a, random_secret());
    make_store(b, random_secret());
    const ByteVector& one = is_reversed ? second : first;
    const ByteVector& other = is_reversed ? first : second;
    const auto check = [&](const std::string& name, const ByteVector& disk) {
      CHECK(read_template(a, name) == disk);
      CHECK(verify_template(a, name, {}).is_sound());
    };
    import_disk(a, "t", one);
    import_disk(a, "u", other);
    const std::vector<Hash128> names = list_segments(a);
    REQUIRE(names.size() == 2);
    import_disk(b, "t", one);
    CHECK(list_segments(b).at(0) != names[0]);
    CHECK(list_segments(b).at(0) != names[1]);
    check("t", one);
    check("u", other);
    // One after the other, the first one's segment gone between them.
    remove_template(a, "t", nobody);
    gc(a);
    CHECK(list_segments(a).size() == 1);
    check("u", other);
    CHECK(import_disk(a, "t", one).stored_bytes == kBlockBytes);
    remove_template(a, "u", nobody);
    gc(a);
    check("t", one);
    CHECK(import_disk(a, "u", other).stored_bytes == kBlockBytes);
    check("t", one);
    check("u", other);
    CHECK(list_segments(a) == names);
  }
}

TEST_CASE("verifying reads what a template is made of once, and all of its segments") {
  MemoryBackend memory;
  make_store(memory);
  import_disk(memory, "t", disk_of(joined(numbers_from(1, 2 * 1024), {7, 7})));
  ForwardingBackend backend(memory);
  std::map<std::string, int> reads;
  backend.on_read = [&](const std::string& name) { ++reads[name]; };
  CHECK(verify_template(backend, "t", {}).is_sound());
  const Manifest whole = load_manifest(memory, "t").value();
  REQUIRE(whole.segments.size() == 2);
  REQUIRE(whole.runs.size() == 4);
  // Its blocks, its table; the first one's block 6 once more for each time that the disk has it.
  CHECK(reads[segment_path(whole.segments[0].name)] == 2 + 2);
  CHECK(reads[segment_path(whole.segments[1].name)] == 2);

  // No run refers to most of the first one, nor to the last block of the second one.
  Manifest part = whole;
  part.runs = {{0, 0, 3, 1}, {1, 1, 0, 1023}};
  memory.set_content("templates/t", encode_manifest(part));
  const auto damage = [&](size_t segment, uint64_t block) {
    const std::string path = segment_path(part.segments[segment].name);
    ByteVector content = memory.content(path);
    content[block * kBlockBytes + 100] ^= std::byte{1};
    memory.set_content(path, content);
  };
  damage(0, 2);
  damage(0, 1023);
  damage(1, 1023);
  uint64_t last_done = 0;
  const VerifyReport report = verify_template(backend, "t", [&](uint64_t done, uint64_t total) {
    CHECK(total == 2 * kSegmentBlocksMax * uint64_t{kBlockBytes});
    last_done = done;
  });
  CHECK(last_done == 2 * kSegmentBlocksMax * uint64_t{kBlockBytes});
  REQUIRE(report.damage.size() == 2);
  CHECK(report.damage[0].blocks == std::vector<uint32_t>{2, 1023});
  CHECK(report.damage[1].blocks == std::vector<uint32_t>{1023});
  CHECK(report.blocks == 2 * 1024);
  CHECK_FALSE(report.has_content_id);
}

TEST_CASE("verifying tells when sound segments are not the disk that was imported") {
  MemoryBackend backend;
  make_store(backend);
  import_disk(backend, "t", disk_of({1, 2, 3}));
  CHECK(verify_template(backend, "t", {}).is_sound());
  Manifest manifest = load_manifest(backend, "t").value();
  REQUIRE(manifest.runs.size() == 1);
  manifest.runs = {{0, 0, 1, 1}, {1, 0, 0, 1}, {2, 0, 2, 1}};
  backend.set_content("templates/t", encode_manifest(manifest));
  const VerifyReport report = verify_template(backend, "t", {});
  CHECK(report.damage.empty());
  CHECK_FALSE(report.has_content_id);
  CHECK_FALSE(report.is_sound());
}

TEST_CASE("a journal of another template or store is refused, and can be removed") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector disk = disk_of(numbers_from(1, 1500));
  thrown_by([&] {
    import_from(backend, "a",
                [&] { return std::make_unique<MemorySource>(disk, 1200 * kBlockBytes); }, {});
  });
  REQUIRE(backend.list("imports") == std::vector<std::string>{"a"});
  backend.put_new("imports/b", backend.content("imports/a"));
  CHECK(load_journal(backend, "a").has_value());
  CHECK(thrown_by([&] { load_journal(backend, "b"); }).code == EIO);
  CHECK(thrown_by([&] { import_disk(backend, "b", disk); }).code == EIO);
  CHECK(thrown_by([&] { gc(backend); }).code == EIO);
  remove_template(backend, "b", nobody);
  CHECK(gc(backend).kept_segments == 1);
}

TEST_CASE("a segment whose whole table collides stops the import with advice") {
  MemoryBackend backend;
  make_store(backend);
  SegmentBuilder builder(kTestSecret);
  builder.add(block_of(1), hash_of(block_of(2)));
  publish_segment(builder, backend);
  const Thrown thrown = thrown_by([&] { import_disk(backend, "t", disk_of({2})); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("tplstore template verify") != std::string::npos);
  CHECK(thrown_by([&] { open_image(backend, "t"); }).code == ENOENT);
}

TEST_CASE("random images against a store that fills up read back as they are") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  MemoryBackend backend;
  make_store(backend);
  backend.set_recording(false);
  std::vector<ByteVector> disks;
  for (int i = 0; i < 12; ++i) {
    std::vector<uint64_t> numbers;
    const uint64_t count = random() % 1500 + 1;
    while (numbers.size() < count) {
      const uint64_t length = random() % 40 + 1, first = random() % 2000;
      const int kind = static_cast<int>(random() % 4);
      for (uint64_t k = 0; k < length; ++k)
        numbers.push_back(kind == 0 ? 0 : kind == 1 ? 7 : first + k);
    }
    ByteVector disk = disk_of(numbers);
    disk.resize(disk.size() - random() % 8 * 512);
    const ImportResult result = import_disk(backend, fmt::format("t{}", i), disk);
    CHECK(result.stored_bytes + result.referenced_bytes == result.info.data_bytes);
    disks.push_back(std::move(disk));
  }
  for (size_t i = 0; i < disks.size(); ++i)
    CHECK(read_template(backend, fmt::format("t{}", i)) == disks[i]);
  CHECK(stored_blocks(backend) <= 2040);  // every content once
  // Removing some keeps the others whole.
  for (size_t i = 0; i < disks.size(); i += 2)
    remove_template(backend, fmt::format("t{}", i), nobody);
  for (size_t i = 1; i < disks.size(); i += 2) {
    CHECK(read_template(backend, fmt::format("t{}", i)) == disks[i]);
    CHECK(verify_template(backend, fmt::format("t{}", i), {}).is_sound());
  }
  for (size_t i = 1; i < disks.size(); i += 2)
    remove_template(backend, fmt::format("t{}", i), nobody);
  CHECK(list_segments(backend).empty());
}

TEST_CASE("a segment whose blocks were given up is not in the way of one like it") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector disk = disk_of(joined(numbers_from(1, 40), {0, 7, 40}));
  SegmentBuilder builder(kTestSecret);
  for (uint64_t i = 1; i <= 40; ++i) builder.add(block_of(i), hash_of(block_of(i)));
  const std::string path = segment_path(publish_segment(builder, backend));
  ByteVector content = backend.content(path);
  std::fill_n(content.begin(), 40 * kBlockBytes, std::byte{0});
  backend.set_content(path, content);
  CHECK(import_disk(backend, "t", disk).stored_bytes == 40 * kBlockBytes);
  CHECK(backend.content(path) == content);
  CHECK(list_segments(backend).size() == 2);
  CHECK(import_disk(backend, "again", disk).stored_bytes == 0);
  for (const std::string name : {"t", "again"}) {
    CHECK(read_template(backend, name) == disk);
    CHECK(verify_template(backend, name, {}).is_sound());
  }
  CHECK(load_manifest(backend, "t")->segments.size() == 1);
}

TEST_CASE("what a segment that is on its way has is not stored again") {
  MemoryBackend memory;
  make_store(memory);
  ForwardingBackend backend(memory);
  // Segments are there no sooner than all is read.
  std::mutex mutex;
  std::condition_variable changed;
  bool is_read = false;
  backend.around = [&](ForwardingBackend::Call call, const std::string& name,
                       const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kPutNew && name.starts_with("segments/")) {
      std::unique_lock guard(mutex);
      changed.wait(guard, [&] { return is_read; });
    }
    go_on();
  };
  const ByteVector disk = disk_of(joined(numbers_from(1, 1500), numbers_from(400, 900)));
  const ImportResult result =
      import_disk(backend, "t", disk, {.progress = [&](uint64_t done, uint64_t total) {
                    if (done != total) return;
                    const std::lock_guard guard(mutex);
                    is_read = true;
                    changed.notify_all();
                  }});
  CHECK(result.stored_bytes == 1500 * kBlockBytes);
  CHECK(read_template(backend, "t") == disk);
  CHECK(verify_template(backend, "t", {}).is_sound());
}

TEST_CASE("names that are taken or wrong are refused before the image is looked at") {
  MemoryBackend backend;
  make_store(backend);
  import_disk(backend, "t", disk_of({1}));
  const auto never = []() -> std::unique_ptr<ImageSource> {
    FAIL("opened");
    return nullptr;
  };
  CHECK(thrown_by([&] { import_from(backend, "t", never, {}); }).code == EEXIST);
  CHECK(thrown_by([&] { import_from(backend, "../t", never, {}); }).code == EINVAL);
  const auto lock = backend.try_lock("gc.lock", LockMode::kExclusive);
  CHECK(thrown_by([&] { import_from(backend, "u", never, {}); }).code == EBUSY);
}

TEST_CASE("a source that is refused leaves nothing behind") {
  MemoryBackend backend;
  make_store(backend);
  CHECK(thrown_by([&] { import_template(backend, "t", "/does/not/exist", {}); }).code == ENOENT);
  CHECK(list_templates(backend).empty());
  CHECK(backend.list("imports").empty());
}

TEST_CASE("one name is imported once at a time, and nothing is removed meanwhile") {
  MemoryBackend backend;
  make_store(backend);
  int calls = 0;
  import_disk(backend, "t", disk_of(numbers_from(1, 300)), {.progress = [&](uint64_t, uint64_t) {
                if (++calls != 2) return;
                CHECK(thrown_by([&] { import_disk(backend, "t", disk_of({1})); }).code == EBUSY);
                CHECK(thrown_by([&] { gc(backend); }).code == EBUSY);
                CHECK(thrown_by([&] { remove_template(backend, "t", nobody); }).code == EBUSY);
                import_disk(backend, "other", disk_of({400, 401}));
                REQUIRE(list_templates(backend).size() == 2);
                CHECK(list_templates(backend)[1].state == "importing");
                CHECK(thrown_by([&] { open_image(backend, "t"); }).code == ENOENT);
              }});
  CHECK(calls > 2);
  CHECK(list_templates(backend)[1].state == "ready");
}

TEST_CASE("an image larger than is allowed is refused, and leaves nothing behind") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector disk = disk_of({1, 2});
  const Thrown thrown =
      thrown_by([&] { import_disk(backend, "t", disk, {.size_bytes_max = disk.size() - 1}); });
  CHECK(thrown.code == EFBIG);
  CHECK(thrown.text.find("--max-size") != std::string::npos);
  CHECK(list_templates(backend).empty());
  import_disk(backend, "t", disk, {.size_bytes_max = disk.size()});
}

TEST_CASE("an import finds what another one has stored since it began, running or complete") {
  const ByteVector disk = disk_of(numbers_from(1, 2500));
  for (const bool is_cut : {false, true}) {
    CAPTURE(is_cut);
    MemoryBackend backend;
    make_store(backend);
    // When the first one has 128, 1024 - 128 and 2048 blocks.
    for (const uint64_t at : {128, 896, 2048}) {
      const std::string name = fmt::format("first{}", at);
      uint64_t others = 0;
      ByteVector own = disk;
      for (size_t i = 0; i < own.size(); i += kBlockBytes) own[i + 9] ^= std::byte(at / 128);
      const ImportResult result = import_disk(
          backend, name, own,
          {.progress =
               [&](uint64_t done, uint64_t) {
                 if (done != at * kBlockBytes) return;
                 const auto open = [&] {
                   return std::make_unique<MemorySource>(own,
                                                         is_cut ? 2400 * kBlockBytes : UINT64_MAX);
                 };
                 try {
                   others = import_from(backend, name + "-other", open, kOneByOne).stored_bytes;
                 } catch (const Error&) {
                   REQUIRE(is_cut);
                 }
               },
           .segments_at_once_max = 0});
      const uint64_t published = at / 1024 * 1024 * kBlockBytes;
      // Once each; what was being built when the other one was cut off is this one's.
      if (!is_cut) CHECK(others == own.size() - published);
      const uint64_t of_other = (is_cut ? 2048 * kBlockBytes : own.size()) - published;
      CHECK(result.stored_bytes == own.size() - of_other);
      CHECK(read_template(backend, name) == own);
      CHECK(verify_template(backend, name, {}).is_sound());
    }
  }
}

TEST_CASE("two imports of one image at once store it once, but for what both are just storing") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (const size_t at_once_max : {size_t{0}, ImportOptions().segments_at_once_max}) {
    CAPTURE(at_once_max);
    MemoryBackend backend;
    make_store(backend);
    backend.set_recording(false);
    const uint64_t block_count = 6000;
    // Some of it twice, some of it there before.
    std::vector<uint64_t> numbers = numbers_from(1, block_count);
    for (int i = 0; i < 200; ++i) numbers[random() % block_count] = numbers[random() % block_count];
    const ByteVector disk = disk_of(numbers);
    import_disk(backend, "before", disk_of(numbers_from(3000, 500)));

    // They take turns, each for as many pieces as the dice say.
    std::mutex mutex;
    std::condition_variable changed;
    size_t turn = 0;
    uint64_t steps = 0;
    bool has_ended[2] = {};
    const auto pass_on = [&](size_t who) {
      std::unique_lock guard(mutex);
      if (steps == 0) steps = random() % 6 + 1;
      if (--steps == 0 && !has_ended[1 - who]) {
        turn = 1 - who;
        changed.notify_all();
      }
      changed.wait(guard, [&] { return turn == who; });
    };
    const auto import_one = [&](size_t who) {
      {
        std::unique_lock guard(mutex);
        changed.wait(guard, [&] { return turn == who; });
      }
      import_disk(backend, fmt::format("t{}", who), disk,
                  {.progress = [&](uint64_t, uint64_t) { pass_on(who); },
                   .segments_at_once_max = at_once_max});
      const std::lock_guard guard(mutex);
      has_ended[who] = true;
      turn = 1 - who;
      changed.notify_all();
    };
    std::thread other([&] { import_one(1); });
    import_one(0);
    other.join();
    for (const std::string name : {"t0", "t1"}) {
      CHECK(read_template(backend, name) == disk);
      CHECK(verify_template(backend, name, {}).is_sound());
    }
    CHECK(stored_blocks(backend) <= block_count + 2 * (at_once_max + 1) * kSegmentBlocksMax);
    for (const std::string name : {"t0", "before"}) remove_template(backend, name, nobody);
    CHECK(read_template(backend, "t1") == disk);
  }
}

TEST_CASE("an import that failed goes on from where it was, or is removed") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector disk = disk_of(numbers_from(1, 2200));
  const auto failing = [&] { return std::make_unique<MemorySource>(disk, 2100 * kBlockBytes); };
  CHECK(thrown_by([&] { import_from(backend, "t", failing, {}); }).code == EIO);
  const auto unfinished = show_template(backend, "t");
  CHECK(unfinished.state == "failed");
  CHECK(unfinished.problem == "memory: failed on the way");
  CHECK(unfinished.size_bytes == disk.size());
  CHECK(unfinished.segments == 2);
  CHECK(unfinished.created_ns > 0);
  CHECK(gc(backend).removed_segments == 0);  // they are kept for the next import

  auto other = backend.clone();
  CHECK(remove_template(*other, "t", nobody).removed_segments == 2);
  CHECK(list_templates(*other).empty());

  const ImportResult result = import_disk(backend, "t", disk);
  CHECK(result.referenced_bytes == 2048 * kBlockBytes);
  CHECK(result.stored_bytes == 152 * kBlockBytes);
  CHECK(read_template(backend, "t") == disk);
  CHECK(backend.list("imports").empty());
}

TEST_CASE("what an unfinished import refers to is kept for it") {
  MemoryBackend backend;
  make_store(backend);
  import_disk(backend, "first", disk_of(numbers_from(1, 10)));
  const ByteVector disk = disk_of(joined(numbers_from(1, 10), numbers_from(100, 1200)));
  const auto failing = [&] { return std::make_unique<MemorySource>(disk, 1150 * kBlockBytes); };
  CHECK(thrown_by([&] { import_from(backend, "t", failing, {}); }).code == EIO);
  CHECK(remove_template(backend, "first", nobody).removed_segments == 0);
  const ImportResult result = import_disk(backend, "t", disk);
  CHECK(result.referenced_bytes == (10 + 1024) * kBlockBytes);
  CHECK(read_template(backend, "t") == disk);
}

TEST_CASE("an interruption ends an import soon, with EINTR") {
  MemoryBackend backend;
  make_store(backend);
  bool is_interrupted = false;
  const Thrown thrown = thrown_by([&] {
    import_disk(backend, "t", disk_of(numbers_from(1, 1500)),
                {.progress = [&](uint64_t done, uint64_t) { is_interrupted = done > 600 * 4096; },
                 .interrupted = [&] { return is_interrupted; }});
  });
  CHECK(thrown.code == EINTR);
  CHECK(show_template(backend, "t").state == "failed");
  CHECK(show_template(backend, "t").problem.starts_with("interrupted"));
  // The next one has not failed yet.
  import_disk(backend, "t", disk_of({1}), {.progress = [&](uint64_t done, uint64_t) {
                if (done > 0) return;
                CHECK(show_template(backend, "t").state == "importing");
                CHECK(load_journal(backend, "t")->failure.empty());
              }});
  CHECK(show_template(backend, "t").problem.empty());
}

TEST_CASE("a full store ends an import, and removing what it stored makes room") {
  MemoryBackend backend;
  make_store(backend);
  backend.set_capacity_bytes(6 << 20);
  const ByteVector disk = disk_of(numbers_from(1, 2000));
  CHECK(thrown_by([&] { import_disk(backend, "t", disk, kOneByOne); }).code == ENOSPC);
  CHECK(show_template(backend, "t").state == "failed");
  CHECK(remove_template(backend, "t", nobody).freed_bytes > 4 << 20);
  import_disk(backend, "u", disk_of(numbers_from(1, 1000)));
  CHECK(verify_template(backend, "u", {}).is_sound());
}

TEST_CASE("a crash at any moment of an import leaves nothing or all, and importing again works") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  MemoryBackend backend;
  make_store(backend);
  const ByteVector first = disk_of(numbers_from(1, 30));
  const ByteVector second = disk_of(joined(joined({0, 5, 6, 0}, numbers_from(100, 1030)), {9, 0}));
  import_disk(backend, "first", first);
  const size_t begin = backend.event_count();
  import_disk(backend, "second", second);

  CrashWalker walker(backend);
  walker.advance_to(begin);
  int ready = 0, failed = 0, absent = 0;
  for (;; walker.advance()) {
    for (int round = 0; round < 5; ++round) {
      const auto kind = round == 0   ? MemoryBackend::Crash::kKill
                        : round == 1 ? MemoryBackend::Crash::kLoseUnsynced
                                     : MemoryBackend::Crash::kRandom;
      const size_t event_count = walker.event_count();
      CAPTURE(event_count);
      CAPTURE(round);
      const auto after = walker.crash(kind, seed + event_count * 8 + round);
      REQUIRE(read_template(*after, "first") == first);
      std::string state;
      for (const TemplateInfo& info : list_templates(*after)) {
        if (info.name == "second") state = info.state;
        REQUIRE((info.state == "failed") == (info.problem.find("killed") != std::string::npos));
      }
      REQUIRE((state.empty() || state == "failed" || state == "ready"));
      const auto check_ready = [&](Backend& store) {
        REQUIRE(read_template(store, "second") == second);
        REQUIRE(verify_template(store, "second", {}).is_sound());
      };
      // No segment is ever without a root, so gc has nothing to do; on some, before going on.
      if (round % 2 == 0) REQUIRE(gc(*after).removed_segments == 0);
      if (state == "ready") {
        ++ready;
        check_ready(*after);
        REQUIRE(thrown_by([&] { import_disk(*after, "second", second); }).code == EEXIST);
      } else {
        ++(state.empty() ? absent : failed);
        REQUIRE(thrown_by([&] { open_image(*after, "second"); }).code == ENOENT);
        // The first segment need not be stored again once it was stored under its journal.
        const bool has_segment = stored_blocks(*after) >= 30 + kSegmentBlocksMax;
        const ImportResult result = import_disk(*after, "second", second);
        REQUIRE(result.info.state == "ready");
        REQUIRE((!has_segment || result.stored_bytes <= 6 * kBlockBytes));
        check_ready(*after);
        // What was reported as imported survives a power failure right away.
        check_ready(*after->crash(after->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0));
      }
      REQUIRE(read_template(*after, "first") == first);
      // Nothing is left that nobody needs, once gc has run.
      gc(*after);
      REQUIRE(after->list("imports").empty());
      REQUIRE(stored_blocks(*after) == 30 + 1030);
    }
    if (walker.is_at_end()) break;
  }
  CHECK(ready > 0);
  CHECK(failed > 0);
  CHECK(absent > 0);
}

TEST_CASE("a crash at any moment of a removal leaves whole templates only") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  MemoryBackend backend;
  make_store(backend);
  const ByteVector first = disk_of(numbers_from(1, 30)), second = disk_of(numbers_from(20, 30));
  import_disk(backend, "first", first);
  import_disk(backend, "second", second);
  const size_t begin = backend.event_count();
  remove_template(backend, "first", nobody);
  remove_template(backend, "second", nobody);
  CrashWalker walker(backend);
  walker.advance_to(begin);
  for (;; walker.advance()) {
    for (int round = 0; round < 5; ++round) {
      const auto kind = round == 0   ? MemoryBackend::Crash::kKill
                        : round == 1 ? MemoryBackend::Crash::kLoseUnsynced
                                     : MemoryBackend::Crash::kRandom;
      const auto after = walker.crash(kind, seed + walker.event_count() * 8 + round);
      for (const TemplateInfo& info : list_templates(*after)) {
        REQUIRE(info.state == "ready");
        REQUIRE(read_template(*after, info.name) == (info.name == "first" ? first : second));
      }
      gc(*after);
      for (const TemplateInfo& info : list_templates(*after))
        REQUIRE(verify_template(*after, info.name, {}).is_sound());
      // Nor does a power failure on top bring back a template without its segments.
      const auto again = after->crash(after->event_count(), kind, seed + round);
      for (const TemplateInfo& info : list_templates(*again))
        REQUIRE(verify_template(*again, info.name, {}).is_sound());
      const auto lost = after->crash(after->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
      for (const TemplateInfo& info : list_templates(*lost))
        REQUIRE(verify_template(*lost, info.name, {}).is_sound());
      if (list_templates(*after).empty()) REQUIRE(list_segments(*after).empty());
    }
    if (walker.is_at_end()) break;
  }
}

TEST_CASE("what only a removed template needed of a segment is given up, and nothing else") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector first = disk_of(numbers_from(1, 1024));
  // Shares half of it, in pieces; between them are runs that are worth it and one that is not.
  std::vector<uint64_t> numbers = joined(numbers_from(1, 200), numbers_from(216, 1));
  numbers = joined(joined(numbers, numbers_from(232, 300)), numbers_from(548, 11));
  const ByteVector second = disk_of(joined(numbers, numbers_from(5000, 20)));
  import_disk(backend, "first", first);
  import_disk(backend, "second", second);
  REQUIRE(list_segments(backend).size() == 2);
  CHECK(gc(backend).freed_bytes == 0);

  const uint64_t before = backend.allocated_bytes();
  const GcResult result = remove_template(backend, "first", nobody);
  CHECK(result.removed_segments == 0);
  CHECK(result.kept_segments == 2);
  // From 532 and from 559 on; 201 to 215 and 217 to 231 are one block short.
  CHECK(result.freed_bytes == (16 + 466) * kBlockBytes);
  const uint64_t manifest_pages = 1;
  CHECK(before - backend.allocated_bytes() == result.freed_bytes + manifest_pages * kBlockBytes);
  const auto check_second = [&](const std::string& name) {
    CHECK(read_template(backend, name) == second);
    const VerifyReport report = verify_template(backend, name, {});
    CHECK(report.is_sound());
    CHECK(report.blocks == 1024 + 20);
  };
  check_second("second");
  CHECK(gc(backend).freed_bytes == 0);

  // What was given up is stored again where it is needed again, and is then found.
  const ImportResult again = import_disk(backend, "first", first);
  CHECK(again.stored_bytes == result.freed_bytes);
  CHECK(read_template(backend, "first") == first);
  CHECK(verify_template(backend, "first", {}).is_sound());
  CHECK(import_disk(backend, "third", first).stored_bytes == 0);
  check_second("second");

  // Where some template needs what is zeroes, all that have the segment say so.
  import_disk(backend, "fourth", disk_of(numbers_from(1, 10)));
  CHECK(verify_template(backend, "fourth", {}).is_sound());
  const std::string path = segment_path(load_manifest(backend, "second")->segments[0].name);
  ByteVector content = backend.content(path);
  const auto at = content.begin() + 531 * ptrdiff_t{kBlockBytes};
  std::fill(at - kBlockBytes, at, std::byte{0});
  backend.set_content(path, content);
  for (const std::string name : {"second", "fourth"}) {
    const VerifyReport report = verify_template(backend, name, {});
    REQUIRE(report.damage.size() == 1);
    CHECK(report.damage[0].blocks == std::vector<uint32_t>{530});
  }
}

TEST_CASE("what an unfinished import has stored or found is not given up") {
  MemoryBackend backend;
  make_store(backend);
  const ByteVector first = disk_of(numbers_from(1, 400));
  import_disk(backend, "first", first);
  import_disk(backend, "second", disk_of(numbers_from(1, 50)));
  const ByteVector third = disk_of(joined(numbers_from(300, 101), numbers_from(1000, 1200)));
  const auto failing = [&] { return std::make_unique<MemorySource>(third, 1150 * kBlockBytes); };
  CHECK(thrown_by([&] { import_from(backend, "third", failing, {}); }).code == EIO);
  CHECK(remove_template(backend, "first", nobody).freed_bytes == 0);
  CHECK(import_disk(backend, "third", third).stored_bytes == (1200 - 1024) * kBlockBytes);
  CHECK(gc(backend).freed_bytes == (400 - 50 - 101) * kBlockBytes);
  CHECK(read_template(backend, "third") == third);
}

TEST_CASE("whatever stops the giving up of blocks, every template reads right") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  MemoryBackend backend;
  make_store(backend);
  // Two segments that are needed in part, one of them by two, and one that is not needed.
  std::map<std::string, ByteVector> disks;
  disks["first"] = disk_of(numbers_from(1, 200));
  disks["second"] = disk_of(joined(numbers_from(1, 30), numbers_from(2000, 60)));
  disks["third"] = disk_of(joined(numbers_from(100, 80), numbers_from(2040, 20)));
  disks["fourth"] = disk_of(numbers_from(3000, 20));
  for (const auto& [name, disk] : disks) import_disk(backend, name, disk);
  disks["again"] = disks["first"];
  const size_t begin = backend.event_count();
  for (const std::string name : {"first", "second", "fourth"})
    remove_template(backend, name, nobody);

  const auto check_all = [&](Backend& store) {
    for (const TemplateInfo& info : list_templates(store)) {
      REQUIRE(info.state == "ready");
      REQUIRE(read_template(store, info.name) == disks[info.name]);
      REQUIRE(verify_template(store, info.name, {}).is_sound());
    }
  };
  CrashWalker walker(backend);
  walker.advance_to(begin);
  int punches = 0;
  for (;; walker.advance()) {
    for (int round = 0; round < 4; ++round) {
      const auto kind = round == 0   ? MemoryBackend::Crash::kKill
                        : round == 1 ? MemoryBackend::Crash::kLoseUnsynced
                                     : MemoryBackend::Crash::kRandom;
      const size_t event_count = walker.event_count();
      CAPTURE(event_count);
      CAPTURE(round);
      const auto after = walker.crash(kind, seed + event_count * 8 + round);
      for (const TemplateInfo& info : list_templates(*after))
        REQUIRE(read_template(*after, info.name) == disks[info.name]);
      // Begun again, or after an import of what is half gone.
      if (round % 2 == 0) gc(*after);
      import_disk(*after, "again", disks["again"]);
      gc(*after);
      check_all(*after);
      check_all(*after->crash(after->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0));
    }
    if (walker.is_at_end()) break;
    if (backend.describe_event(walker.event_count()).starts_with("punch")) ++punches;
  }
  CHECK(punches > 3);
}

TEST_CASE("an import of what is just being given up waits for the next time") {
  MemoryBackend memory;
  make_store(memory);
  const ByteVector first = disk_of(numbers_from(1, 100)), second = disk_of(numbers_from(1, 50));
  import_disk(memory, "first", first);
  import_disk(memory, "second", second);
  ForwardingBackend backend(memory);
  int punches = 0;
  backend.on_punch = [&](const std::string&) {
    ++punches;
    CHECK(thrown_by([&] { import_disk(memory, "third", first); }).code == EBUSY);
    CHECK(read_template(memory, "second") == second);
  };
  remove_template(backend, "first", nobody);
  CHECK(punches == 1);
  import_disk(memory, "third", first);
  CHECK(read_template(memory, "third") == first);
}

TEST_CASE("a template in use is not removed") {
  MemoryBackend backend;
  make_store(backend);
  import_disk(backend, "t", disk_of({1, 2}));
  {
    const auto image = open_image(backend, "t");
    CHECK(thrown_by([&] { remove_template(backend, "t", nobody); }).code == EBUSY);
  }
  const Thrown thrown = thrown_by([&] {
    remove_template(backend, "t", [] { return std::vector<std::string>{"vm1", "vm2"}; });
  });
  CHECK(thrown.code == EBUSY);
  CHECK(thrown.text.find("vm1, vm2") != std::string::npos);
  CHECK(read_template(backend, "t") == disk_of({1, 2}));
  const GcResult result = remove_template(backend, "t", nobody);
  CHECK(result.removed_segments == 1);
  CHECK(result.freed_bytes == segment_object_bytes(2));
  CHECK(thrown_by([&] { remove_template(backend, "t", nobody); }).code == ENOENT);
  CHECK(thrown_by([&] { show_template(backend, "t"); }).code == ENOENT);
  CHECK(thrown_by([&] { verify_template(backend, "t", {}); }).code == ENOENT);
}

TEST_CASE("gc removes nothing while a manifest is damaged, and all that is unused afterwards") {
  MemoryBackend backend;
  make_store(backend);
  import_disk(backend, "good", disk_of({1, 2}));
  import_disk(backend, "bad", disk_of({2, 3}));
  SegmentBuilder builder(kTestSecret);
  builder.add(block_of(9), hash_of(block_of(9)));
  publish_segment(builder, backend);
  ByteVector content = backend.content("templates/bad");
  content[60] ^= std::byte{1};
  backend.set_content("templates/bad", content);

  const Thrown thrown = thrown_by([&] { gc(backend); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("templates/bad") != std::string::npos);
  CHECK(list_segments(backend).size() == 3);
  CHECK(thrown_by([&] { show_template(backend, "bad"); }).code == EIO);
  const auto templates = list_templates(backend);
  REQUIRE(templates.size() == 2);
  CHECK(templates[0].state == "damaged");
  CHECK(templates[1].state == "ready");

  // Removing another template works, though its space stays for now.
  const Thrown removal = thrown_by([&] { remove_template(backend, "good", nobody); });
  CHECK(removal.text.find("removed, but its space is not freed") != std::string::npos);
  CHECK(list_templates(backend).size() == 1);
  CHECK(remove_template(backend, "bad", nobody).removed_segments == 3);
}

TEST_CASE("verifying finds damaged, cut and missing segments, and names them") {
  MemoryBackend backend;
  make_store(backend);
  import_disk(backend, "t", disk_of(numbers_from(1, 3 * 1024)));
  uint64_t last_done = 0;
  const VerifyReport sound = verify_template(backend, "t", [&](uint64_t done, uint64_t total) {
    CHECK(total == 3 * 4 << 20);
    last_done = done;
  });
  CHECK(sound.is_sound());
  CHECK(sound.segments == 3);
  CHECK(sound.blocks == 3 * 1024);
  CHECK(last_done == 3 * 4 << 20);

  const Manifest manifest = load_manifest(backend, "t").value();
  ByteVector content = backend.content(segment_path(manifest.segments[0].name));
  content[5 * 4096 + 17] ^= std::byte{4};
  content[1023 * 4096] ^= std::byte{4};
  backend.set_content(segment_path(manifest.segments[0].name), content);
  content = backend.content(segment_path(manifest.segments[1].name));
  content.resize(content.size() - 4112);
  backend.set_content(segment_path(manifest.segments[1].name), content);
  backend.remove(segment_path(manifest.segments[2].name));

  const VerifyReport report = verify_template(backend, "t", {});
  REQUIRE(report.damage.size() == 3);
  CHECK(report.damage[0].blocks == std::vector<uint32_t>{5, 1023});
  CHECK_FALSE(report.damage[0].is_missing);
  CHECK(report.damage[1].problem.find("instead of") != std::string::npos);
  CHECK(report.damage[2].is_missing);
  CHECK(report.damage[2].segment == manifest.segments[2].name);
  CHECK(report.blocks == 1024);
  backend.fail_reads("segments/", EIO);
  CHECK(verify_template(backend, "t", {}).damage.size() == 3);

  // Importing it again under another name does not trust what is damaged.
  backend.fail_reads("segments/", 0);
  const ByteVector disk = disk_of({6, 7});
  CHECK(import_disk(backend, "u", disk).unreadable_segments == 1);
  CHECK(read_template(backend, "u") == disk);
}

TEST_CASE("an image file is imported through qemu-nbd") {
  if (!have_qemu()) {
    MESSAGE("skipped: qemu-img and qemu-nbd are not installed");
    return;
  }
  const TemporaryDirectory folder;
  MemoryBackend backend;
  make_store(backend);
  const ByteVector disk =
      disk_of(joined(numbers_from(1, 40), joined(std::vector<uint64_t>(60), {1, 50})));
  write_file(folder.path() + "/disk.raw", disk);
  REQUIRE(run("qemu-img convert -f raw -O qcow2 -c " + folder.path() + "/disk.raw " +
              folder.path() + "/disk.qcow2"));
  const ImportResult result = import_template(backend, "q", folder.path() + "/disk.qcow2", {});
  CHECK(read_template(backend, "q") == disk);
  CHECK(result.info.source == folder.path() + "/disk.qcow2 (qcow2)");
  CHECK(result.stored_bytes == 41 * kBlockBytes);
  CHECK(result.zero_bytes == 60 * kBlockBytes);
  CHECK(import_template(backend, "r", folder.path() + "/disk.raw", {}).stored_bytes == 0);
  CHECK(read_template(backend, "r") == disk);
}

}  // namespace tplstore::importer_test
