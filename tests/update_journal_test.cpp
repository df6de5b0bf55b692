// The journal's ring and what the next life takes from it; journals as files of a host.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory_journals.h"
#include "store/journal_files.h"
#include "temporary_directory.h"
#include "volume_testing.h"

namespace tplstore::update_journal_test {
namespace {

constexpr uint64_t kRingBytes = 4 * kRecordBytes;

struct Life {
  Life() {
    name.id = random_uuid();
    name.boot = place.boot();
    journal.begin(place.create(volume, name.id, name.path), volume, name);
  }
  void put(uint64_t first, uint32_t count = 1) {
    journal.put(bytes_of(RecordHeader::make(RecordKind::kUpdate, first, count, 1)));
  }
  std::optional<std::vector<uint64_t>> left(uint64_t from) {
    const auto bytes = read_journal(*place.open(name.path), volume, name, from);
    if (!bytes) return std::nullopt;
    std::vector<uint64_t> firsts;
    Decoder decoder(*bytes, "journal");
    while (!decoder.empty()) firsts.push_back(decoder.take<RecordHeader>().number());
    return firsts;
  }

  MemoryJournals place{kRingBytes};
  const Uuid volume = random_uuid();
  JournalName name;
  UpdateJournal journal;
};

using Firsts = std::vector<uint64_t>;

}  // namespace

TEST_CASE("what was put behind a position is there, in order, around the ring's end too") {
  Life life;
  CHECK(life.left(0) == Firsts{});
  for (uint64_t first = 1; first <= 3; ++first) life.put(first);
  CHECK(life.left(0) == Firsts{1, 2, 3});
  CHECK(life.left(2 * kRecordBytes) == Firsts{3});
  CHECK_FALSE(life.left(4 * kRecordBytes));
  CHECK_FALSE(life.left(8));
  life.journal.release(2 * kRecordBytes);
  for (uint64_t first = 4; first <= 6; ++first) life.put(first);
  CHECK(life.left(2 * kRecordBytes) == Firsts{3, 4, 5, 6});
  CHECK_FALSE(life.left(kRecordBytes));
}

TEST_CASE("the last record grows where it is") {
  Life life;
  for (uint64_t first = 1; first <= 4; ++first) {
    life.put(first);
    life.journal.grow_last(RecordHeader::make(RecordKind::kUpdate, first, 7, 1));
  }
  const auto bytes = read_journal(*life.place.open(life.name.path), life.volume, life.name, 0);
  Decoder decoder(bytes.value(), "journal");
  for (uint64_t first = 1; first <= 4; ++first) {
    const auto record = decoder.take<RecordHeader>();
    CHECK(record.number() == first);
    CHECK(record.count == 7);
  }
}

TEST_CASE("what there was no room for makes the rest count again when a commit covers it") {
  Life life;
  for (uint64_t first = 1; first <= 5; ++first) life.put(first);
  life.journal.grow_last(RecordHeader::make(RecordKind::kUpdate, 5, 7, 1));
  CHECK_FALSE(life.left(0));
  CHECK_FALSE(life.left(4 * kRecordBytes));
  life.journal.release(4 * kRecordBytes);
  life.put(6);
  CHECK_FALSE(life.left(4 * kRecordBytes));
  CHECK(life.left(5 * kRecordBytes) == Firsts{6});
  life.journal.spoil();
  life.journal.release(6 * kRecordBytes);
  CHECK_FALSE(life.left(6 * kRecordBytes));
}

TEST_CASE("a journal that is another's, or damaged, does not count") {
  Life life;
  life.put(1);
  REQUIRE(life.left(0));
  const MutableBytes bytes = life.place.bytes_of(life.name.path);
  for (size_t at = 0; at < 72; ++at) {
    bytes[at] ^= std::byte{1};
    CHECK_FALSE(life.left(0));
    bytes[at] ^= std::byte{1};
  }
  REQUIRE(life.left(0));
  JournalName other = life.name;
  other.id = random_uuid();
  CHECK_FALSE(read_journal(*life.place.open(life.name.path), life.volume, other, 0));
  CHECK_FALSE(read_journal(*life.place.open(life.name.path), random_uuid(), life.name, 0));
  // An end that no ring can have.
  const uint64_t end = 1000 * kRecordBytes;
  std::memcpy(bytes.data() + offsetof(JournalHeader, end), &end, sizeof end);
  CHECK_FALSE(life.left(0));
}

TEST_CASE("a journal's name is in the log as it was") {
  for (const std::string& path : {std::string(), std::string("/run/a"), std::string(384, 'x')}) {
    const JournalName name{random_uuid(), random_uuid(), path};
    const ByteVector bytes = encode_journal_name(name);
    CHECK(bytes.size() % kRecordBytes == 0);
    Decoder decoder(bytes, "log");
    const JournalName read = decode_journal_name(decoder);
    CHECK(decoder.empty());
    CHECK(read.id == name.id);
    CHECK(read.boot == name.boot);
    CHECK(read.path == name.path);
  }
}

TEST_CASE("who serves no disks does not say that a journal is lost, and names it") {
  const auto memory = memory_store();
  const Uuid uuid = random_uuid();
  create_volume(*memory, uuid, 2 * kRegionBytes, nullptr);
  MemoryJournals journals;
  VolumeEnvironment environment = environment_on(*memory);
  environment.journals = &journals;
  Claim claim(new_peer());
  claim.is_connection = true;
  const auto open = [&](const Claim& by) {
    return Volume::open_for_writing(environment, uuid, "vm", by);
  };
  open(claim)->write(0, ByteVector(kBlockBytes, std::byte{1}), false);
  const std::string path = journals.paths().at(0);
  const auto left = journals.left();

  // It can use one that it sees, and keeps none.
  const auto before = memory->clone();
  {
    environment.journals = left.get();
    left->is_server = false;
    const auto volume = open(new_peer());
    CHECK(read_bytes(*volume, 0, 0, 1)[0] == std::byte{1});
    CHECK(left->paths().empty());
  }
  environment.journals = &journals;
  journals.clear();
  VolumeEnvironment other = environment_on(*before);
  other.journals = &journals;
  journals.is_server = false;
  std::string refused;
  try {
    Volume::open_for_writing(other, uuid, "vm", new_peer());
  } catch (const Error& error) {
    refused = error.what();
  }
  CHECK(refused.find(path) != std::string::npos);
  // The header is as it was: a server tells the VM.
  journals.is_server = true;
  CHECK_THROWS_WITH_AS(Volume::open_for_writing(other, uuid, "vm", claim),
                       doctest::Contains("is lost with the server"), Error);
  Claim anew(new_peer());
  anew.is_connection = true;
  const auto volume = Volume::open_for_writing(other, uuid, "vm", anew);
  CHECK(read_bytes(*volume, 0, 0, 1)[0] == std::byte{0});
  CHECK(lock_info_of("vm", volume->writer_lock().header()).losers.at(0).has_lost);
}

TEST_CASE("a journal's file is its owner's, there as a whole, locked, and the store's own") {
  const TemporaryDirectory directory;
  std::vector<std::string> lines;
  const auto log = [&](const std::string& line) { lines.push_back(line); };
  const Uuid store = random_uuid();
  const Uuid volume = random_uuid();
  JournalFiles files(
      store, [&] { return directory.path(); }, log);
  std::string path;
  auto memory = files.create(volume, random_uuid(), path);
  REQUIRE(memory);
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  CHECK(status.st_blocks * 512 >= status.st_size);
  CHECK(memory->bytes().size() == static_cast<size_t>(status.st_size));
  CHECK_THROWS_WITH_AS(files.open(path), doctest::Contains("another process has it"), Error);
  memory->bytes()[5000] = std::byte{7};
  memory.reset();
  CHECK(files.open(path)->bytes()[5000] == std::byte{7});

  std::string second;
  files.create(volume, random_uuid(), second);
  files.remove_others(volume, second);
  CHECK_FALSE(files.open(path));
  CHECK(files.open(second));
  // What a log names may be anything.
  const std::string foreign = directory.path() + "/" + store.text() + "/precious";
  REQUIRE(FileDescriptor(::open(foreign.c_str(), O_CREAT | O_WRONLY, 0600)));
  CHECK_FALSE(files.open(foreign));
  files.remove(foreign);
  CHECK(::access(foreign.c_str(), F_OK) == 0);
  REQUIRE(::truncate(second.c_str(), 0) == 0);
  CHECK_FALSE(files.open(second));

  JournalFiles nowhere(
      store, [] { return std::string("/proc/nowhere"); }, log);
  CHECK_FALSE(nowhere.create(volume, random_uuid(), path));
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("/proc/nowhere") != std::string::npos);
}

}  // namespace tplstore::update_journal_test
