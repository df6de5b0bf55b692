// Incremental files that are damaged, cut, put together from others, or made to do harm.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "increment_testing.h"
#include "map/node.h"
#include "volume_testing.h"

namespace tplstore::increment_damage_test {
using namespace tplstore::testing;

namespace {

// An incremental file as a program could write that has other ideas of what may be in it.
struct Forgery {
  static constexpr uint64_t kDiskBytes = 4 * uint64_t{kIncrementDataBytesMax};

  IncrementHeader header{};
  std::string texts;
  std::vector<std::pair<IncrementRecord, ByteVector>> records;
  std::function<void(IncrementTrailer&)> change_trailer = [](IncrementTrailer&) {};

  Forgery() {
    header.magic = kIncrementMagic;
    header.format = kIncrementFormat;
    header.volume = random_uuid();
    header.number = 1;
    header.size_bytes = kDiskBytes;
    set_texts("vm1", "", "");
  }
  void set_base(uint64_t size_bytes) {
    header.base_volume = header.volume;
    header.base_number = 7;
    header.base_size_bytes = size_bytes;
  }
  void set_template(const std::string& name, uint64_t size_bytes) {
    texts += name;
    header.features = kIncrementSinceTemplate;
    header.template_name_bytes = static_cast<uint16_t>(name.size());
    header.base_size_bytes = size_bytes;
  }
  void set_texts(const std::string& volume, const std::string& version, const std::string& note) {
    texts = volume + version + note;
    header.volume_name_bytes = static_cast<uint16_t>(volume.size());
    header.version_name_bytes = static_cast<uint16_t>(version.size());
    header.note_bytes = static_cast<uint16_t>(note.size());
  }
  IncrementRecord& add_zeroes(uint64_t offset, uint64_t length) {
    records.push_back({{IncrementKind::kZero, 0, offset, length, 0, 0}, {}});
    return records.back().first;
  }
  IncrementRecord& add_data(uint64_t offset, uint64_t length) {
    ByteVector data = pattern(length, offset);
    const uint64_t sum = checksum(data);
    records.push_back({{IncrementKind::kData, 0, offset, length, sum, 0}, std::move(data)});
    return records.back().first;
  }
  ByteVector content() const {
    Encoder to;
    IncrementHeader head = header;
    head.checksum = checksum(as_bytes(texts), checksum(bytes_of(head).first(120)));
    to.put(head);
    to.put_bytes(as_bytes(texts));
    IncrementTrailer trailer{kIncrementTrailerMagic, records.size(), 0, 0, head.checksum, 0};
    for (auto [record, data] : records) {
      record.chain = checksum(bytes_of(record).first(32), trailer.chain);
      trailer.chain = record.chain;
      (record.kind == IncrementKind::kData ? trailer.data_bytes : trailer.zero_bytes) +=
          record.length;
      to.put(record);
      to.put_bytes(data);
    }
    change_trailer(trailer);
    trailer.checksum = checksum(bytes_of(trailer).first(40), head.checksum);
    to.put(trailer);
    return std::move(to.bytes());
  }
  // What reading it as `file` ends with; empty when it is accepted.
  std::string refusal(const std::string& file) const {
    write_file(file, content());
    return thrown_by([&] { IncrementReader::open(file).verify(); }).text;
  }
};

}  // namespace

TEST_CASE("any flipped bit is refused, and nothing wrong is ever applied") {
  Place place;
  SparseDisk disk = example_disk();
  place.write(disk, example_info(kExampleBytes));
  SparseDisk whole(kExampleBytes);
  IncrementReader::open(place.file).apply(whole);
  ByteVector bytes = read_file(place.file);
  const std::string other = place.folder.path() + "/flipped";
  write_file(other, bytes);
  const int fd = ::open(other.c_str(), O_WRONLY | O_CLOEXEC);
  REQUIRE(fd >= 0);
  const auto put_byte = [&](uint64_t at) {
    REQUIRE(::pwrite(fd, &bytes[at], 1, static_cast<off_t>(at)) == 1);
  };
  for (uint64_t bit = 0; bit < bytes.size() * 8; ++bit) {
    CAPTURE(bit);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    put_byte(bit / 8);
    const Thrown thrown = thrown_by([&] { IncrementReader::open(other).verify(); });
    REQUIRE(thrown.code == (bit < 64 ? EINVAL : EIO));
    REQUIRE(thrown.text.find(other) == 0);
    if (bit % 8 == bit / 8 % 8) {  // one bit of each byte
      SparseDisk target(kExampleBytes);
      REQUIRE(thrown_by([&] { IncrementReader::open(other).apply(target); }).code != 0);
      REQUIRE(target.written.size() <= whole.written.size());
      REQUIRE(std::equal(target.written.begin(), target.written.end(), whole.written.begin()));
      for (const Range& range : target.written) {
        ByteVector is(range.length), should_be(range.length);
        target.read(range.offset, is);
        disk.read(range.offset, should_be);
        REQUIRE(is == should_be);
      }
    }
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    put_byte(bit / 8);
  }
  ::close(fd);
  CHECK(check_file(other) == 0);
}

TEST_CASE("a file that was cut or has more behind it is refused when it is opened") {
  Place place;
  SparseDisk disk = example_disk();
  place.write(disk, example_info(kExampleBytes));
  const ByteVector good = read_file(place.file);
  for (uint64_t size = 0; size < good.size(); ++size) {
    CAPTURE(size);
    write_file(place.file, Bytes(good).first(size));
    REQUIRE(thrown_by([&] { IncrementReader::open(place.file); }).code ==
            (size < 8 ? EINVAL : EIO));
  }
  for (const uint64_t more : {1, 8, 40, 48, 4096}) {
    ByteVector longer = good;
    longer.resize(good.size() + more);
    write_file(place.file, longer);
    CHECK(thrown_by([&] { IncrementReader::open(place.file); }).code == EIO);
    // The end in its place, and something in between.
    std::copy_n(good.end() - 48, 48, longer.end() - 48);
    write_file(place.file, longer);
    CHECK(thrown_by([&] { IncrementReader::open(place.file); }).code == EIO);
  }
}

TEST_CASE("a file that is cut after it was opened is refused") {
  Place place;
  SparseDisk disk = example_disk();
  place.write(disk, example_info(kExampleBytes));
  IncrementReader reader = IncrementReader::open(place.file);
  reader.verify();
  REQUIRE(::truncate(place.file.c_str(), 400) == 0);
  const Thrown thrown = thrown_by([&] { reader.verify(); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("it ends at byte 400,") != std::string::npos);
}

TEST_CASE("records that were moved, dropped, repeated or put in from another file are refused") {
  Place place;
  Forgery forgery;
  for (uint64_t i = 0; i < 4; ++i) forgery.add_data(i * 512, 512);
  REQUIRE(forgery.refusal(place.file).empty());
  constexpr uint64_t kFirst = 131, kEach = 40 + 512;
  const auto records_of = [&](ByteVector content) {
    std::vector<ByteVector> records;
    for (auto at = content.begin() + kFirst; at + kEach < content.end(); at += kEach)
      records.emplace_back(at, at + kEach);
    return records;
  };
  // The header of `forgery`, these records, and an end that fits them but for the chain.
  const auto check_refused = [&](const std::vector<ByteVector>& records) {
    const ByteVector good = forgery.content();
    Encoder to;
    to.put_bytes(Bytes(good).first(kFirst));
    for (const ByteVector& record : records) to.put_bytes(record);
    IncrementTrailer trailer{};
    std::memcpy(&trailer, good.data() + good.size() - sizeof trailer, sizeof trailer);
    trailer.record_count = records.size();
    trailer.data_bytes = records.size() * 512;
    IncrementHeader header{};
    std::memcpy(&header, good.data(), sizeof header);
    trailer.checksum = checksum(bytes_of(trailer).first(40), header.checksum);
    to.put(trailer);
    write_file(place.file, to.bytes());
    IncrementReader reader = IncrementReader::open(place.file);
    CHECK(thrown_by([&] { reader.verify(); }).code == EIO);
  };

  const std::vector<ByteVector> good = records_of(forgery.content());
  REQUIRE(good.size() == 4);
  check_refused({good[0], good[2], good[1], good[3]});
  check_refused({good[0], good[1], good[1], good[3]});
  check_refused({good[0], good[1], good[2], good[3], good[3]});
  check_refused({good[1], good[2], good[3]});
  check_refused({good[0], good[2], good[3]});
  check_refused({good[0], good[1], good[2]});
  check_refused({});
  Forgery other = forgery;
  other.header.number = 2;
  check_refused(records_of(other.content()));
}

TEST_CASE("what is wrong behind right checksums is refused") {
  Place place;
  REQUIRE(Forgery().refusal(place.file).empty());
  // The reason must be the one that is meant; none when it is to be accepted.
  const auto check = [&](const std::string& reason, const std::function<void(Forgery&)>& change) {
    Forgery forgery;
    change(forgery);
    const std::string refusal = forgery.refusal(place.file);
    CAPTURE(reason);
    CAPTURE(refusal);
    CHECK(refusal.empty() == reason.empty());
    CHECK(refusal.find(reason) != std::string::npos);
  };
  using F = Forgery;
  check("is not an incremental file", [](F& f) { f.header.magic = 1; });
  check("use a newer tplstore", [](F& f) { f.header.format = 2; });
  check("use a newer tplstore", [](F& f) { f.header.features = 2; });
  check("", [](F& f) { f.set_template("golden", 512); });
  check("a base of 0 bytes", [](F& f) { f.set_template("golden", 0); });
  check("no template can have", [](F& f) { f.set_template("../golden", 512); });
  check("a template without a name", [](F& f) { f.set_template("", 512); });
  check("less than its header says", [](F& f) {
    f.set_template("golden", 512);
    f.header.template_name_bytes = UINT16_MAX;
  });
  check("two bases", [](F& f) {
    f.set_template("golden", 512);
    f.set_base(512);
  });
  // Without the bit these are reserved, and nobody's business.
  check("", [](F& f) { f.header.template_name_bytes = 17; });
  check("no version", [](F& f) { f.header.volume = {}; });
  check("no version", [](F& f) { f.header.number = 0; });
  check("no version", [](F& f) { f.header.number = UINT32_MAX; });
  check("half a base", [](F& f) { f.header.base_volume = random_uuid(); });
  check("half a base", [](F& f) { f.header.base_number = 1; });
  check("a base of 512 bytes", [](F& f) { f.header.base_size_bytes = 512; });
  check("a base of 0 bytes", [](F& f) { f.set_base(0); });
  check("a base of 513 bytes", [](F& f) { f.set_base(513); });
  check("", [](F& f) { f.set_base(1024); });
  check("a disk of 0 bytes", [](F& f) { f.header.size_bytes = 0; });
  check("a disk of 4097 bytes", [](F& f) { f.header.size_bytes = 4097; });
  check("a disk of", [](F& f) { f.header.size_bytes = kVolumeBytesMax + 512; });
  check("less than its header says", [](F& f) { f.header.volume_name_bytes = UINT16_MAX; });
  check("no volume can have", [](F& f) { f.set_texts("", "", ""); });
  check("no volume can have", [](F& f) { f.set_texts("../", "", ""); });
  check("no version can have", [](F& f) { f.set_texts("vm1", "v@", ""); });
  check("no version can have", [](F& f) { f.set_texts("vm1", "17", ""); });
  check("", [](F& f) { f.set_texts("vm1", "v7", std::string(kIncrementNoteBytesMax, '\x1b')); });
  check("a note that is too long",
        [](F& f) { f.set_texts("vm1", "v7", std::string(kIncrementNoteBytesMax + 1, 'n')); });

  constexpr uint64_t kSize = Forgery::kDiskBytes;
  const std::string range = "out of order or out of the disk";
  check("", [](F& f) { f.add_zeroes(0, kSize); });
  check("", [](F& f) { f.add_data(kSize - 512, 512); });
  check("", [](F& f) { f.add_data(0, kIncrementDataBytesMax); });
  check("no known kind", [](F& f) { f.add_zeroes(0, 512).kind = IncrementKind{0}; });
  check("no known kind", [](F& f) { f.add_zeroes(0, 512).kind = IncrementKind{3}; });
  check(range, [](F& f) { f.add_zeroes(0, 0); });
  check(range, [](F& f) { f.add_data(0, 0); });
  check(range, [](F& f) { f.add_zeroes(512, kSize); });
  check(range, [](F& f) { f.add_zeroes(kSize, 512); });
  check(range, [](F& f) { f.add_zeroes(UINT64_MAX - 511, 512); });
  check(range, [](F& f) {
    f.add_zeroes(512, UINT64_MAX - 511);
    f.change_trailer = [](IncrementTrailer& trailer) { trailer.zero_bytes = 0; };
  });
  check(range, [](F& f) { f.add_data(kSize - 511, 512); });
  check(range, [](F& f) {
    f.add_data(0, 512);
    f.add_data(511, 512);
  });
  check(range, [](F& f) {
    f.add_data(4096, 512);
    f.add_zeroes(0, 512);
  });
  check("more data than can be", [](F& f) { f.add_data(0, kIncrementDataBytesMax + 1); });
  check("more data than can be", [](F& f) {
    f.add_data(0, 1024);
    f.records[0].second.resize(512);
    f.change_trailer = [](IncrementTrailer& trailer) { trailer.data_bytes = 512; };
  });
  check("not the one that was written there", [](F& f) {
    f.add_data(0, 512);
    f.records[0].second.resize(1024);
    f.change_trailer = [](IncrementTrailer& trailer) { trailer.data_bytes = 1024; };
  });
  check("checksum of the data", [](F& f) { f.add_data(0, 512).data_checksum ^= 1; });
  check("not the size", [](F& f) {
    f.add_data(0, 512);
    f.records[0].second.resize(511);
  });

  const auto check_trailer = [&](const std::string& reason,
                                 const std::function<void(IncrementTrailer&)>& change) {
    check(reason, [&](F& f) {
      f.add_data(0, 520);
      f.add_zeroes(520, 4096);
      f.change_trailer = change;
    });
  };
  using T = IncrementTrailer;
  const std::string totals = "its records are not those that its end says";
  check_trailer("", [](T&) {});
  check_trailer("does not end as it should", [](T& trailer) { trailer.magic ^= 1; });
  check_trailer("not the size", [](T& trailer) { trailer.record_count = 1; });
  check_trailer("not the size", [](T& trailer) { trailer.record_count = UINT64_MAX; });
  // As many bytes of records, modulo 2^64, as there are.
  check_trailer("not the size", [](T& trailer) { trailer.record_count += uint64_t{1} << 61; });
  check_trailer("not the size", [](T& trailer) { trailer.data_bytes = 0; });
  check_trailer("more than the whole disk", [](T& trailer) { trailer.data_bytes = UINT64_MAX; });
  check_trailer("more than the whole disk", [](T& trailer) { trailer.zero_bytes = UINT64_MAX; });
  check_trailer("more than the whole disk", [](T& trailer) { trailer.zero_bytes = kSize - 519; });
  check_trailer(totals, [](T& trailer) { trailer.zero_bytes = 0; });
  check_trailer(totals, [](T& trailer) { trailer.chain ^= 1; });
  // The same number of bytes in another way.
  check_trailer(totals, [](T& trailer) {
    trailer.record_count = 15;
    trailer.data_bytes = 0;
  });
  check_trailer(totals, [](T& trailer) {
    trailer.record_count = 1;
    trailer.data_bytes = 560;
  });
  check_trailer(totals, [](T& trailer) {
    trailer.record_count = 0;
    trailer.data_bytes = 600;
  });
}

TEST_CASE("compressed files that are damaged, cut or go on are refused, whatever is in them") {
  Place place;
  SparseDisk disk = example_disk();
  const IncrementOptions options{.may_replace = true, .compression = Compression::kZstd};
  write_increment(disk, example_info(kExampleBytes), place.file, options);
  const ByteVector good = read_file(place.file);
  CHECK(check_file(place.file) == 0);
  for (uint64_t size = 0; size < good.size(); size += size < 32 ? 1 : 7) {
    CAPTURE(size);
    write_file(place.file, Bytes(good).first(size));
    REQUIRE(check_file(place.file) != 0);
  }
  for (uint64_t byte = 0; byte < good.size(); byte += byte < 32 ? 1 : 5) {
    CAPTURE(byte);
    ByteVector bad = good;
    bad[byte] ^= std::byte{0x10};
    write_file(place.file, bad);
    // Some bits of a frame mean nothing to what is unpacked.
    if (check_file(place.file) != 0) continue;
    SparseDisk target(kExampleBytes);
    IncrementReader::open(place.file).apply(target);
    REQUIRE(target.has_content_of(disk));
  }
  ByteVector longer = good;
  longer.insert(longer.end(), good.begin(), good.end());
  write_file(place.file, longer);
  const Thrown thrown = thrown_by([&] { IncrementReader::open(place.file).verify(); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("behind its end") != std::string::npos);
}

TEST_CASE("whatever is put together at random is refused, or changes nothing beside its disk") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const auto one_of = [&](std::initializer_list<uint64_t> values) {
    return *(values.begin() + random() % values.size());
  };
  constexpr uint64_t kSize = Forgery::kDiskBytes;
  const auto odd_number = [&] {
    return one_of({0, 1, 40, 511, 512, 4096, kIncrementDataBytesMax, kIncrementDataBytesMax + 1,
                   kSize - 512, kSize, kVolumeBytesMax, uint64_t{1} << 63, UINT64_MAX - 511,
                   UINT64_MAX, random()});
  };
  Place place;
  uint64_t accepted = 0;
  for (uint64_t i = 0, count = test_operations(kIsSanitized ? 150 : 600); i < count; ++i) {
    CAPTURE(i);
    Forgery forgery;
    const uint64_t faults = random() % 3;  // of which some do no harm
    if (random() % 3 == 0) forgery.set_base(4096);
    if (random() % 4 == 0) forgery.set_template("golden", 4096);
    for (uint64_t at = 0, records = random() % 5; records > 0; --records) {
      const uint64_t length = 1 + random() % 5000;
      random() % 2 == 0 ? forgery.add_data(at, length) : forgery.add_zeroes(at, length);
      at += length + random() % 9000;
    }
    for (uint64_t fault = 0; fault < faults; ++fault) {
      auto& records = forgery.records;
      const uint64_t number = odd_number();
      const bool has_records = !records.empty();
      IncrementRecord* const record =
          has_records ? &records[random() % records.size()].first : nullptr;
      switch (random() % 10) {
        case 0:
          forgery.header.size_bytes = number;
          break;
        case 1:
          forgery.header.base_size_bytes = number;
          break;
        case 2:
          forgery.header.note_bytes = static_cast<uint16_t>(number);
          break;
        case 3:
          forgery.header.features = static_cast<uint32_t>(number);
          break;
        case 4:
          if (record) record->offset = number;
          break;
        case 5:
          if (record) record->length = number;
          break;
        case 6:
          if (record) record->kind = IncrementKind(static_cast<uint32_t>(number));
          break;
        case 7:
          if (has_records) records.push_back(records[random() % records.size()]);
          break;
        case 8:
          if (has_records) records[random() % records.size()].second.resize(random() % 9000);
          break;
        default:
          forgery.change_trailer = [which = random() % 3, number](IncrementTrailer& trailer) {
            (which == 0   ? trailer.record_count
             : which == 1 ? trailer.data_bytes
                          : trailer.zero_bytes) = number;
          };
      }
    }
    ByteVector content = forgery.content();
    if (random() % 8 == 0) content.resize(random() % content.size());
    if (random() % 8 == 0) content[random() % content.size()] ^= std::byte{4};
    if (random() % 2 == 0) {
      const FileDescriptor out(
          ::open(place.file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
      ByteWriter writer(out.get(), place.file, Compression::kZstd, {}, [] { return false; });
      writer.append(content);
      writer.finish();
    } else {
      write_file(place.file, content);
    }
    const Thrown thrown = thrown_by([&] {
      IncrementReader reader = IncrementReader::open(place.file);
      SparseDisk target(reader.info().size_bytes);
      reader.apply(target);
    });
    INFO(thrown.text);
    REQUIRE((thrown.code == 0 || thrown.code == EIO || thrown.code == EINVAL));
    accepted += thrown.code == 0 ? 1 : 0;
  }
  CHECK(accepted > 10);
}

TEST_CASE("what is no incremental file is refused, with a reason") {
  Place place;
  CHECK(thrown_by([&] { IncrementReader::open(place.file); }).code == ENOENT);
  CHECK(thrown_by([&] { IncrementReader::open(place.folder.path()); }).code == EINVAL);
  write_file(place.file, {});
  CHECK(check_file(place.file) == EINVAL);
  write_file(place.file, as_bytes("#!/bin/sh\n"));
  CHECK(check_file(place.file) == EINVAL);
  const std::string pipe = place.folder.path() + "/pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(thrown_by([&] { IncrementReader::open(pipe); }).code == EINVAL);
}

}  // namespace tplstore::increment_damage_test
