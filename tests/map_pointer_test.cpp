// The object that says which log of a map counts.
#include "map/map_pointer.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "memory/memory_backend.h"
#include "template_testing.h"

namespace tplstore::map_pointer_test {
namespace {

constexpr const char* kName = "v/map";

}  // namespace

TEST_CASE("a pointer is read as it was written last, by one who writes and by one who reads") {
  MemoryBackend backend;
  const Uuid volume = random_uuid();
  const auto log = MapLog::create(backend, "v", volume, 3);
  log->start_writing(MapLog::start());
  MapPointerObject::create(backend, "v", volume, *log, 8192);
  {
    const MapPointerObject made(backend, "v", volume, Access::kRead);
    CHECK(made.value().generation == 3);
    CHECK(made.value().checkpoint_offset == 8192);
    CHECK(made.value().clean_sequence == log->position().sequence);
  }
  const auto next = MapLog::create(backend, "v", volume, 4);
  MapPointerObject pointer(backend, "v", volume, Access::kWrite);
  pointer.write(*next, 4608, 0, 0);
  for (const Access access : {Access::kRead, Access::kWrite}) {
    const MapPointerObject read(backend, "v", volume, access);
    CHECK(read.value().generation == 4);
    CHECK(read.value().checkpoint_offset == 4608);
    CHECK(read.value().clean_sequence == 0);
    CHECK(pointer.value().generation == 4);
  }
}

TEST_CASE("a pointer of another volume, or with both slots damaged, is refused") {
  MemoryBackend backend;
  const Uuid volume = random_uuid();
  const auto log = MapLog::create(backend, "v", volume, 1);
  MapPointerObject::create(backend, "v", volume, *log, 4096);
  const auto code_of = [&](const Uuid& of) {
    return testing::thrown_by([&] { MapPointerObject(backend, "v", of, Access::kRead); }).code;
  };
  CHECK(code_of(volume) == 0);
  CHECK(code_of(random_uuid()) == EIO);
  const auto object = backend.open(kName, Access::kWrite, Purpose::kMetadata);
  const ByteVector zeroes(sizeof(MapPointer));
  object->write(0, zeroes);
  CHECK(code_of(volume) == 0);
  object->write(kSlotBytes, zeroes);
  CHECK(code_of(volume) == EIO);
}

}  // namespace tplstore::map_pointer_test
