// Superblocks: an object with one is whole after any crash, and after damage to either slot.
#include "backend/superblock.h"

#include <doctest/doctest.h>

#include <array>

#include "volume_testing.h"

namespace tplstore::superblock_test {
namespace {

// Takes several sectors, each of which a device writes or does not.
struct Wide {
  SlotPrefix prefix;
  std::array<uint64_t, 3 * kSectorBytes / sizeof(uint64_t)> values;
};

constexpr uint64_t kMagic = 0x31656469775f7374;

Wide wide(uint64_t value) {
  Wide wide{};
  wide.values.fill(value);
  return wide;
}

// What is read, of which all words are the same; nothing when neither slot is valid.
std::optional<uint64_t> value_in(Backend& backend) {
  Superblock<Wide> superblock(kMagic);
  const auto object = backend.open("pair", Access::kRead, Purpose::kMetadata);
  const auto read = superblock.read(*object);
  if (!read) return std::nullopt;
  for (const uint64_t value : read->values) REQUIRE(value == read->values[0]);
  return read->values[0];
}

std::unique_ptr<Object> create_pair(MemoryBackend& backend, Superblock<Wide>& superblock,
                                    uint64_t value) {
  auto object = backend.create("pair", 0, Purpose::kMetadata);
  object->write(0, superblock.initial(wide(value)));
  object->sync();
  backend.sync_folder("");
  return object;
}

}  // namespace

TEST_CASE(
    "after a crash in the middle of an update a superblock has the old value or the new one") {
  MemoryBackend backend;
  Superblock<Wide> superblock(kMagic);
  const auto object = create_pair(backend, superblock, 0);
  std::vector<size_t> written;  // events when it had the value
  for (uint64_t value = 1; value <= 3; ++value) {
    superblock.write(*object, wide(value));
    written.push_back(backend.event_count());
  }
  Random random(test_seed());
  const size_t made = backend.event_count() - 3 * 4;
  for (size_t events = made; events <= backend.event_count(); ++events) {
    uint64_t done = 0;
    while (done < written.size() && written[done] <= events) ++done;
    for (int i = 0; i < 60; ++i) {
      const auto kind =
          i == 0 ? MemoryBackend::Crash::kLoseUnsynced : MemoryBackend::Crash::kRandom;
      const auto after = backend.crash(events, kind, random.below(UINT64_MAX));
      INFO("behind event " << events - made << " of the updates");
      const auto value = value_in(*after);
      REQUIRE(value);
      CHECK((*value == done ||
             (events > (done == 0 ? made : written[done - 1]) && *value == done + 1)));
    }
  }
}

TEST_CASE("behind an update either slot may be damaged, and the other one has its value") {
  MemoryBackend backend;
  Superblock<Wide> superblock(kMagic);
  const auto object = create_pair(backend, superblock, 0);
  for (uint64_t value = 1; value <= 2; ++value) {
    superblock.write(*object, wide(value));
    for (uint64_t slot = 0; slot < 2; ++slot) {
      INFO("slot " << slot);
      const auto damaged = backend.clone();
      damaged->open("pair", Access::kWrite, Purpose::kMetadata)
          ->write(slot * kSlotBytes + 700, as_bytes("x"));
      CHECK(value_in(*damaged) == value);
    }
  }
}

TEST_CASE("an update that fails leaves a superblock its old value, and the next one succeeds") {
  for (const unsigned skipped : {0u, 1u}) {
    MemoryBackend backend;
    Superblock<Wide> superblock(kMagic);
    auto object = create_pair(backend, superblock, 1);
    backend.fail_next_sync("pair", EIO, skipped);
    CHECK_THROWS_AS(superblock.write(*object, wide(2)), Error);
    object = backend.open("pair", Access::kWrite, Purpose::kMetadata);
    settle(*object);
    Superblock<Wide> again(kMagic);
    const auto read = again.read(*object);
    REQUIRE(read);
    CHECK(read->values[0] == 1 + skipped);
    again.write(*object, wide(3));
    const auto after = backend.crash(backend.event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
    CHECK(value_in(*after) == 3);
  }
}

}  // namespace tplstore::superblock_test
