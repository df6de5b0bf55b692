// Packs: what is read from one is what was put in, or nothing is.
#include "boot/pack.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "memory/memory_backend.h"
#include "template_testing.h"
#include "volume_testing.h"

namespace tplstore::pack_test {
using namespace tplstore::testing;

namespace {

// Three pieces, the second of a version, and longer than what is written at once.
const std::vector<PackPiece> kPieces = {
    {{1, 1}, 1024, 1000, 24, 0}, {{2, 2}, 3, 70'000, 300, 1}, {{3, 3}, 7, 6, 1, 0}};
constexpr uint32_t kBlocks = 325;

// What a cell holds is told by its file and place.
ByteVector cell_of(const PackPiece& piece, uint32_t index) {
  return block_of(piece.file.low * 10'000 + piece.first + index);
}

void read_cells(size_t piece, uint32_t skip, MutableBytes into) {
  for (uint32_t i = 0; i < into.size() / kBlockBytes; ++i)
    std::ranges::copy(cell_of(kPieces[piece], skip + i),
                      into.subspan(size_t{i} * kBlockBytes).begin());
}

bool make(Backend& store, const Uuid& uuid, const HashSecret& secret = kTestSecret) {
  return make_pack(store, template_pack(uuid), uuid, kPieces, secret, read_cells);
}

// How many blocks of the pack are sound; every one of these is right.
uint32_t count_sound(const Pack& pack) {
  uint32_t index = 0, sound = 0;
  for (const PackPiece& piece : pack.description().pieces)
    for (uint32_t i = 0; i < piece.count; ++i, ++index) {
      ByteVector block(kBlockBytes);
      ReadPlan plan;
      pack.plan_read(index, block, plan);
      plan.run();
      if (!pack.is_sound(index, block)) continue;
      REQUIRE(block == cell_of(piece, i));
      ++sound;
    }
  return sound;
}

}  // namespace

TEST_CASE("a pack has the cells it was made of; a new one takes its place") {
  MemoryBackend store;
  const Uuid uuid = random_uuid();
  bool is_damaged = false;
  CHECK_FALSE(open_pack(store, template_pack(uuid), uuid, kTestSecret, &is_damaged));
  CHECK(make(store, uuid));
  CHECK(make(store, uuid));
  CHECK(template_pack(uuid).numbers(store) == std::vector<uint64_t>{2});
  const auto pack = open_pack(store, template_pack(uuid), uuid, kTestSecret, &is_damaged);
  REQUIRE(pack);
  CHECK_FALSE(is_damaged);
  CHECK(pack->description().block_count() == kBlocks);
  CHECK(count_sound(*pack) == kBlocks);
  CHECK(pack->object_bytes() == store.content("packs/" + uuid.text() + ".2").size());
}

TEST_CASE("a pack whose description is long is read as well") {
  MemoryBackend store;
  store.set_recording(false);
  const Uuid uuid = random_uuid();
  std::vector<PackPiece> pieces;
  for (uint32_t i = 0; i < 6000; ++i) pieces.push_back({{1, 1 + i % 50}, 1024, i / 50, 1, 0});
  const auto read = [](size_t piece, uint32_t, MutableBytes into) {
    std::memcpy(into.data(), &piece, sizeof piece);
  };
  CHECK(make_pack(store, template_pack(uuid), uuid, pieces, kTestSecret, read));
  const auto pack = open_pack(store, template_pack(uuid), uuid, kTestSecret);
  REQUIRE(pack);
  CHECK(pack->description().pieces.size() == 6000);
  CHECK(pack->description().pieces.back().key() == pieces.back().key());
  CHECK(pack->description().block_count() == 6000);
}

TEST_CASE("a pack of another template or store is none") {
  MemoryBackend store;
  const Uuid uuid = random_uuid(), other = random_uuid();
  make(store, uuid);
  bool is_damaged = false;
  CHECK_FALSE(open_pack(store, template_pack(uuid), uuid, random_secret(), &is_damaged));
  CHECK(is_damaged);
  store.set_content("packs/" + other.text() + ".1", store.content("packs/" + uuid.text() + ".1"));
  CHECK_FALSE(open_pack(store, template_pack(other), other, kTestSecret));
}

TEST_CASE("whatever is damaged of a pack, no wrong block is sound") {
  MemoryBackend store;
  store.set_recording(false);
  const Uuid uuid = random_uuid();
  make(store, uuid);
  const std::string name = "packs/" + uuid.text() + ".1";
  const ByteVector sound = store.content(name);
  std::mt19937_64 random(test_seed());
  for (int i = 0; i < 40; ++i) {
    ByteVector bytes = sound;
    const bool is_tail = random() % 2 == 0;
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      const uint64_t data_bytes = uint64_t{kBlocks} * kBlockBytes;
      const uint64_t at =
          is_tail ? data_bytes + random() % (bytes.size() - data_bytes) : random() % data_bytes;
      bytes[at] ^= static_cast<std::byte>(1 + random() % 255);
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    if (random() % 8 == 0) bytes.insert(bytes.begin(), kBlockBytes, std::byte{1});
    store.set_content(name, bytes);
    bool is_damaged = false;
    const auto pack = open_pack(store, template_pack(uuid), uuid, kTestSecret, &is_damaged);
    REQUIRE(bool(pack) != is_damaged);
    if (pack) REQUIRE(count_sound(*pack) < kBlocks);
  }
}

TEST_CASE("what is read wrong while it is made leaves the old pack") {
  MemoryBackend store;
  const Uuid uuid = random_uuid();
  make(store, uuid);
  CHECK(thrown_by([&] {
          make_pack(store, template_pack(uuid), uuid, kPieces, kTestSecret,
                    [](size_t, uint32_t, MutableBytes) { fail(EIO, "segment", "damaged"); });
        }).code == EIO);
  CHECK(template_pack(uuid).numbers(store) == std::vector<uint64_t>{1});
  CHECK(open_pack(store, template_pack(uuid), uuid, kTestSecret));
}

TEST_CASE("after a crash at any place there is a pack that is right, or none") {
  MemoryBackend store;
  const Uuid uuid = random_uuid();
  make(store, uuid);
  const uint64_t seed = test_seed();
  uint64_t whole = 0, none = 0;
  for (CrashWalker walker(store);; walker.advance()) {
    for (uint64_t i = 0; i < 4; ++i) {
      const auto after = walker.crash(MemoryBackend::Crash::kRandom, seed + i);
      const auto pack = open_pack(*after, template_pack(uuid), uuid, kTestSecret);
      (pack ? whole : none) += 1;
      if (pack) REQUIRE(count_sound(*pack) == kBlocks);
      if (walker.is_at_end()) REQUIRE(pack);
    }
    if (walker.is_at_end()) break;
  }
  CHECK(whole > 0);
  CHECK(none > 0);
}

}  // namespace tplstore::pack_test
