#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

#include "increment_testing.h"
#include "map/node.h"
#include "restricted_process.h"

namespace tplstore::increment_test {
using namespace tplstore::testing;

TEST_CASE("a change is written, read back, and makes the base what the version is") {
  Place place;
  SparseDisk disk = example_disk();
  IncrementInfo info = example_info(kExampleBytes);
  info.base_created_ns = 1'767'225'500'000'000'001;
  CHECK(place.write(disk, info) == 150 + 200 + 512);
  CHECK(std::filesystem::file_size(place.file) == 128 + 26 + 4 * 40 + 862 + 48);

  IncrementReader reader = IncrementReader::open(place.file);
  CHECK(reader.info().base == info.base);
  CHECK(reader.info().version == info.version);
  CHECK(reader.info().volume_name == "vm1");
  CHECK(reader.info().version_name == "clean");
  CHECK(reader.info().note == "before the upgrade");
  CHECK(reader.info().created_ns == info.created_ns);
  CHECK(reader.info().size_bytes == kExampleBytes);
  CHECK(reader.info().base_size_bytes == 8192);
  CHECK(reader.info().base_created_ns == info.base_created_ns);
  CHECK(reader.data_bytes() == 862);
  CHECK(reader.zero_bytes() == 4096);

  uint64_t last = 0;
  const auto progress = [&](uint64_t done, uint64_t total) {
    CHECK(total == std::filesystem::file_size(place.file));
    CHECK(done >= last);
    last = done;
  };
  reader.verify(progress);
  CHECK(last == std::filesystem::file_size(place.file));

  // What did not change stays, what changed to zeroes is zero.
  SparseDisk target(kExampleBytes), expected(kExampleBytes);
  const ByteVector before = pattern(kExampleBytes, 9);
  target.put(0, before);
  expected.put(0, before);
  expected.put(100, pattern(150, 1));
  expected.put(4096, ByteVector(4096));
  expected.put(9000, pattern(200, 2));
  expected.put(12'288, pattern(512, 3));
  last = 0;
  reader.apply(target, progress);
  CHECK(target.has_content_of(expected));
  CHECK(target.written == std::vector<Range>{{100, 150}, {9000, 200}, {12'288, 512}});
  CHECK(target.zeroed == std::vector<Range>{{4096, 4096}});
}

TEST_CASE("random changes with odd ranges survive the way") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  Place place;
  for (int round = 0; round < 60; ++round) {
    const bool is_large = round % 6 == 0;
    const uint64_t size = (random() % (is_large ? 10'000 : 100) + 1) * kSectorBytes;
    const uint64_t unit = round % 2 == 0 ? 1 : kBlockBytes;
    std::vector<Range> ranges;
    for (uint64_t at = random() % 2 * kBlockBytes; at < size;) {
      const uint64_t length =
          std::min(size - at, (random() % (size / unit / (random() % 4 + 1) + 1) + 1) * unit);
      ranges.push_back({at, length});
      at += length + random() % 3 * unit;
    }
    SparseDisk disk(size, ranges), target(size), expected(size);
    const ByteVector before = pattern(size, random());
    target.put(0, before);
    expected.put(0, before);
    for (const Range& range : ranges) {
      ByteVector content = pattern(range.length, random());
      for (uint64_t at = 0; at < content.size();) {
        const uint64_t length = std::min<uint64_t>(content.size() - at, random() % 20'000 + 1);
        if (random() % 2 == 0) std::fill_n(content.begin() + at, length, std::byte{0});
        at += length;
      }
      disk.put(range.offset, content);
      expected.put(range.offset, content);
    }
    place.write(disk, example_info(size));
    IncrementReader reader = IncrementReader::open(place.file);
    reader.verify();
    reader.apply(target);
    REQUIRE(target.has_content_of(expected));
    uint64_t data_bytes = 0, zero_bytes = 0, range_bytes = 0;
    for (const Range& range : target.written) data_bytes += range.length;
    for (const Range& range : target.zeroed) zero_bytes += range.length;
    for (const Range& range : ranges) range_bytes += range.length;
    REQUIRE(data_bytes == reader.data_bytes());
    REQUIRE(zero_bytes == reader.zero_bytes());
    REQUIRE(data_bytes + zero_bytes == range_bytes);
  }
}

TEST_CASE("changed blocks of zeroes are recorded as zeroes, in one record while they adjoin") {
  Place place;
  constexpr uint64_t kBytes = 64 * kBlockBytes;
  // Neighbouring ranges, as after changes by different versions.
  SparseDisk disk(kBytes, {{0, 16 * kBlockBytes}, {16 * kBlockBytes, 16 * kBlockBytes}});
  disk.put(20 * kBlockBytes, pattern(1, 1));
  CHECK(place.write(disk, example_info(kBytes)) == kBlockBytes);
  CHECK(std::filesystem::file_size(place.file) == 128 + 26 + 3 * 40 + kBlockBytes + 48);
  SparseDisk target(kBytes);
  IncrementReader::open(place.file).apply(target);
  CHECK(target.written == std::vector<Range>{{20 * kBlockBytes, kBlockBytes}});
  CHECK(target.zeroed ==
        std::vector<Range>{{0, 20 * kBlockBytes}, {21 * kBlockBytes, 11 * kBlockBytes}});
}

TEST_CASE("an empty change is a file of its own") {
  Place place;
  SparseDisk disk(1 << 20);
  CHECK(place.write(disk, example_info(1 << 20)) == 0);
  CHECK(std::filesystem::file_size(place.file) == 128 + 26 + 48);
  SparseDisk target(1 << 20);
  IncrementReader reader = IncrementReader::open(place.file);
  reader.verify();
  reader.apply(target);
  CHECK(target.written.empty());
  CHECK(target.zeroed.empty());
}

TEST_CASE("a whole version is a change of nothing") {
  Place place;
  SparseDisk disk = example_disk();
  IncrementInfo info = example_info(kExampleBytes);
  info.base = {};
  info.base_size_bytes = 0;
  info.version_name = info.note = "";
  place.write(disk, info);
  IncrementReader reader = IncrementReader::open(place.file);
  CHECK(reader.info().base.is_nil());
  CHECK(reader.info().base_size_bytes == 0);
  CHECK(reader.info().version_name.empty());
  reader.verify();
  SparseDisk target(kExampleBytes);
  reader.apply(target);
  CHECK(target.has_content_of(disk));
}

TEST_CASE("a change since a template says which one, and goes through a compressed file") {
  Place place;
  SparseDisk disk = example_disk();
  IncrementInfo info = example_info(kExampleBytes);
  info.base = {};
  info.template_name = "debian12";
  info.template_content.bytes.fill(0xab);
  for (const Compression compression : {Compression::kNone, Compression::kZstd}) {
    write_increment(disk, info, place.file, {.may_replace = true, .compression = compression});
    IncrementReader reader = IncrementReader::open(place.file);
    CHECK(reader.info().base.is_nil());
    CHECK(reader.info().is_since_template());
    CHECK(reader.info().template_name == "debian12");
    CHECK(reader.info().template_content == info.template_content);
    CHECK(reader.info().base_size_bytes == 8192);
    CHECK(reader.info().note == "before the upgrade");
    REQUIRE(reader.can_verify());
    reader.verify();
    SparseDisk target(kExampleBytes);
    reader.apply(target);
    CHECK(target.has_content_of(disk));
    CHECK(reader.data_bytes() == 862);
  }
  info.base = example_info(kExampleBytes).base;
  CHECK(thrown_by([&] { place.write(disk, info); }).code == EINVAL);
}

TEST_CASE("the largest disk, with changes far apart and zeroes without end") {
  Place place;
  const uint64_t far = uint64_t{5} << 30, zeroes = uint64_t{3} << 40, last = kVolumeBytesMax - 4096;
  const uint64_t zero_bytes = (uint64_t{1} << 30) + (uint64_t{8} << 20);
  SparseDisk disk(kVolumeBytesMax, {{far, 3 << 20}, {zeroes, zero_bytes}, {last, 4096}});
  disk.put(far, pattern(3 << 20, 1));
  disk.put(last, pattern(4096, 2));
  IncrementInfo info = example_info(kVolumeBytesMax);
  info.base_size_bytes = kVolumeBytesMax;
  CHECK(place.write(disk, info) == (3 << 20) + 4096);
  IncrementReader reader = IncrementReader::open(place.file);
  CHECK(reader.zero_bytes() == zero_bytes);
  reader.verify();
  SparseDisk target(kVolumeBytesMax);
  reader.apply(target);
  CHECK(target.has_content_of(disk));
  // In pieces, so that it can be interrupted.
  CHECK(target.zeroed == std::vector<Range>{{zeroes, 1 << 30}, {zeroes + (1 << 30), 8 << 20}});
  SparseDisk part(kVolumeBytesMax);
  const auto is_one_piece_done = [&] { return part.zeroed.size() == 1; };
  CHECK(thrown_by([&] {
          reader.apply(
              part, [](uint64_t, uint64_t) {}, is_one_piece_done);
        }).code == EINTR);
  CHECK(part.zeroed == std::vector<Range>{{zeroes, 1 << 30}});
  CHECK(std::all_of(target.written.begin(), target.written.end(),
                    [](const Range& range) { return range.length <= kIncrementDataBytesMax; }));
}

TEST_CASE("a change is not applied to a disk of another size") {
  Place place;
  SparseDisk disk = example_disk();
  place.write(disk, example_info(kExampleBytes));
  SparseDisk target(kExampleBytes + 512);
  const Thrown thrown = thrown_by([&] { IncrementReader::open(place.file).apply(target); });
  CHECK(thrown.code == EINVAL);
  CHECK(thrown.text.find("12800 bytes, this one has 13312") != std::string::npos);
  CHECK(target.written.empty());
}

TEST_CASE("what cannot be recorded is refused before anything is written") {
  Place place;
  const auto check = [&](const std::function<void(IncrementInfo&)>& change) {
    SparseDisk disk = example_disk();
    IncrementInfo info = example_info(kExampleBytes);
    change(info);
    CHECK(thrown_by([&] { place.write(disk, info); }).code == EINVAL);
    CHECK(place.names().empty());
  };
  check([](IncrementInfo& info) { info.version = {}; });
  check([](IncrementInfo& info) { info.base.number = 0; });
  check([](IncrementInfo& info) { info.volume_name = ""; });
  check([](IncrementInfo& info) { info.version_name = "17"; });
  check([](IncrementInfo& info) { info.note.resize(kIncrementNoteBytesMax + 1); });
}

TEST_CASE("a file that exists is replaced only when asked, and only a regular one") {
  Place place;
  SparseDisk disk = example_disk();
  const IncrementInfo info = example_info(kExampleBytes);
  write_file(place.file, as_bytes("precious"));
  Thrown thrown = thrown_by([&] { write_increment(disk, info, place.file, {}); });
  CHECK(thrown.code == EEXIST);
  CHECK(thrown.text.find("--force") != std::string::npos);
  CHECK(to_text(read_file(place.file)) == "precious");
  write_increment(disk, info, place.file, {.may_replace = true});
  CHECK(check_file(place.file) == 0);

  const std::string link = place.folder.path() + "/link";
  std::filesystem::create_symlink(place.file, link);
  thrown = thrown_by([&] { write_increment(disk, info, link, {.may_replace = true}); });
  CHECK(thrown.code == EEXIST);
  thrown =
      thrown_by([&] { write_increment(disk, info, place.folder.path(), {.may_replace = true}); });
  CHECK(thrown.code == EEXIST);
  thrown = thrown_by([&] { write_increment(disk, info, place.file + "/no/folder", {}); });
  CHECK(thrown.code == ENOTDIR);
  CHECK(place.names().size() == 2);
}

TEST_CASE("a file that appears under the name meanwhile is not replaced") {
  Place place;
  SparseDisk disk = example_disk();
  IncrementOptions options;
  options.progress = [&](uint64_t, uint64_t) { write_file(place.file, as_bytes("precious")); };
  const auto write = [&] {
    write_increment(disk, example_info(kExampleBytes), place.file, options);
  };
  CHECK(thrown_by(write).code == EEXIST);
  CHECK(to_text(read_file(place.file)) == "precious");
  CHECK(place.names().size() == 1);
}

TEST_CASE("a write that is interrupted at any point leaves nothing, or what was there") {
  Place place;
  SparseDisk disk = example_disk();
  for (const bool is_there : {false, true}) {
    if (is_there) write_file(place.file, as_bytes("precious"));
    int questions = 0, steps = 0;
    IncrementOptions options{.may_replace = true};
    options.interrupted = [&] { return ++questions > steps; };
    for (; steps < 100; ++steps) {
      questions = 0;
      const Thrown thrown = thrown_by(
          [&] { write_increment(disk, example_info(kExampleBytes), place.file, options); });
      if (thrown.code == 0) break;
      REQUIRE(thrown.code == EINTR);
      REQUIRE(place.names().size() == (is_there ? 1 : 0));
      if (is_there) REQUIRE(to_text(read_file(place.file)) == "precious");
    }
    CHECK(steps > 4);
    CHECK(steps < 100);
    CHECK(check_file(place.file) == 0);
    std::filesystem::remove(place.file);
  }
}

TEST_CASE("a write that fails leaves nothing") {
  Place place;
  SparseDisk disk = example_disk();
  disk.fail_read_at = 9000;
  CHECK(thrown_by([&] { place.write(disk, example_info(kExampleBytes)); }).code == EIO);
  CHECK(place.names().empty());

  // A file system that has no more room is played by a limit to the size of files.
  SparseDisk large(8 << 20, {{0, 8 << 20}});
  large.put(0, pattern(8 << 20, 1));
  const int code = in_child([&] {
    const rlimit limit{3 << 20, 3 << 20};
    ::signal(SIGXFSZ, SIG_IGN);
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    return thrown_by([&] { place.write(large, example_info(8 << 20)); }).code;
  });
  CHECK(code == EFBIG);
  CHECK(place.names().empty());

  // It gets its name only after its content is durable.
  SparseDisk good = example_disk();
  const int sync_code = in_child([&] {
    if (!forbid(SYS_fsync)) return 1;
    return thrown_by([&] { place.write(good, example_info(kExampleBytes)); }).code;
  });
  CHECK(sync_code == EPERM);
  CHECK(place.names().empty());
}

TEST_CASE("reading can be interrupted before each record") {
  Place place;
  SparseDisk disk = example_disk();
  place.write(disk, example_info(kExampleBytes));
  IncrementReader reader = IncrementReader::open(place.file);
  const auto no_progress = [](uint64_t, uint64_t) {};
  CHECK(thrown_by([&] { reader.verify(no_progress, [] { return true; }); }).code == EINTR);
  SparseDisk target(kExampleBytes);
  int questions = 0;
  CHECK(thrown_by([&] {
          reader.apply(target, no_progress, [&] { return ++questions > 2; });
        }).code == EINTR);
  CHECK(target.written.size() == 1);
  CHECK(target.zeroed.empty());
}

TEST_CASE("the example of FORMAT.md is what is written") {
  Place place;
  SparseDisk disk(8192, {{0, 8192}});
  disk.put(4096, ByteVector(4096, std::byte{'A'}));
  IncrementInfo info = example_info(8192);
  info.note = "";
  place.write(disk, info);
  const ByteVector bytes = read_file(place.file);
  REQUIRE(bytes.size() == 0x1108);
  const auto word = [&](uint64_t at) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  };
  CHECK(word(0x78) == 0x447783837b56cee7);
  CHECK(word(0xa8) == 0x6ae74f9e38e51b0c);
  CHECK(word(0xc8) == 0xa03de37a157c16bd);
  CHECK(word(0xd0) == 0x69d91b1617f45ea0);
  CHECK(word(0x1100) == 0x61120fa93d4f3aec);
}

}  // namespace tplstore::increment_test
