// The map log by itself: which frames follow which, and what counts as damage.
#include "map/map_log.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "volume_testing.h"

namespace tplstore::map_log_test {
namespace {

struct Fixture {
  MemoryBackend backend;
  const Uuid uuid = random_uuid();
  const std::string name = MapLog::object_name("v", 1);

  // What the updates frames of the log say, one letter each, and where it goes on.
  std::string scan(MapLog& log, LogPosition& end) {
    std::string letters;
    end = log.scan(MapLog::start(), 0, [&](const LogFrame& frame) {
      if (frame.header.kind == static_cast<uint16_t>(FrameKind::kUpdates))
        letters += static_cast<char>(frame.payload[0]);
    });
    return letters;
  }
  std::string letters() {
    LogPosition end{};
    return scan(*MapLog::open(backend, "v", uuid, 1, Access::kRead), end);
  }
  // The next life of a writer.
  std::unique_ptr<MapLog> next_life() {
    auto log = MapLog::open(backend, "v", uuid, 1, Access::kWrite);
    LogPosition end{};
    scan(*log, end);
    log->start_writing(end);
    return log;
  }
};

void append(MapLog& log, const std::string& letters) {
  for (const char letter : letters)
    log.append(FrameKind::kUpdates, as_bytes(std::string(16, letter)), 0);
}

void replace(ByteVector& bytes, uint64_t at, Bytes by) {
  std::copy(by.begin(), by.end(), bytes.begin() + static_cast<ptrdiff_t>(at));
}

}  // namespace

TEST_CASE("frames that a former life left behind the end of the log are no part of it again") {
  Fixture f;
  uint64_t begin = 0;
  ByteVector left;
  {
    const auto log = MapLog::create(f.backend, "v", f.uuid, 1);
    log->start_writing(MapLog::start());
    begin = log->position().offset;
    append(*log, "abcdef");
    left = f.backend.content(f.name);
    CHECK(f.letters() == "abcdef");
  }
  // The power fails: of these frames the first one is lost, and the others are not.
  std::fill_n(left.begin() + static_cast<ptrdiff_t>(begin), kSectorBytes, std::byte{0});
  f.backend.set_content(f.name, left);
  CHECK(f.letters().empty());
  const auto log = f.next_life();
  // It may append the very same, and fail at any time, with or without its zeroes behind the end.
  std::string appended;
  for (const char letter : {'a', 'b', 'c'}) {
    const uint64_t end = log->position().offset;
    ByteVector bytes = f.backend.content(f.name);
    CHECK(is_zero(Bytes(bytes).subspan(end, MapLog::kReserveBytes)));
    replace(bytes, end, Bytes(left).subspan(end, begin + 16 * kSectorBytes - end));
    MemoryBackend failed;
    failed.set_content(f.name, bytes);
    const auto after = MapLog::open(failed, "v", f.uuid, 1, Access::kRead);
    LogPosition found{};
    CHECK(f.scan(*after, found) == appended);
    CHECK(found.offset == end);
    append(*log, std::string(1, letter));
    appended += letter;
  }
}

TEST_CASE("a log that lost its end is damaged, and no shorter one") {
  Fixture f;
  const auto log = MapLog::create(f.backend, "v", f.uuid, 1);
  log->start_writing(MapLog::start());
  const uint64_t begin = log->position().offset;
  append(*log, "abc");
  log->sync();
  const ByteVector bytes = f.backend.content(f.name);
  for (uint64_t end = begin; end < log->position().offset; end += kSectorBytes) {
    f.backend.set_content(f.name, Bytes(bytes).first(end));
    CHECK_THROWS_AS(f.letters(), Error);
  }
  f.backend.set_content(f.name, bytes);
  CHECK(f.letters() == "abc");
}

TEST_CASE("damage to the frame that a life began with is told when something follows it") {
  Fixture f;
  {
    const auto log = MapLog::create(f.backend, "v", f.uuid, 1);
    log->start_writing(MapLog::start());
    append(*log, "a");
  }
  const auto log = f.next_life();
  const uint64_t open_frame = log->position().offset - kSectorBytes;
  append(*log, "b");
  CHECK(f.letters() == "ab");
  ByteVector bytes = f.backend.content(f.name);
  bytes[open_frame + offsetof(FrameHeader, incarnation)] ^= std::byte{1};
  f.backend.set_content(f.name, bytes);
  CHECK_THROWS_AS(f.letters(), Error);
}

TEST_CASE("lives that write nothing take no space, and what they follow stays") {
  Fixture f;
  {
    const auto log = MapLog::create(f.backend, "v", f.uuid, 1);
    log->start_writing(MapLog::start());
    append(*log, "ab");
    log->sync();
  }
  const uint64_t tail = f.next_life()->position().offset;
  for (int i = 0; i < 10; ++i) CHECK(f.next_life()->position().offset == tail);
  {
    const auto log = f.next_life();
    append(*log, "c");
    log->sync();
  }
  CHECK(f.letters() == "abc");
  CHECK(f.next_life()->position().offset > tail);
}

TEST_CASE("a hole behind the end of the log is not looked through") {
  Fixture f;
  {
    const auto log = MapLog::create(f.backend, "v", f.uuid, 1);
    log->start_writing(MapLog::start());
    append(*log, "ab");
    log->sync();
  }
  f.backend.open(f.name, Access::kWrite, Purpose::kMetadata)->grow(uint64_t{8} << 40);
  CHECK(f.letters() == "ab");
}

}  // namespace tplstore::map_log_test
