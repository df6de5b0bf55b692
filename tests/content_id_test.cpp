#include "template/content_id.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "template_testing.h"
#include "temporary_directory.h"

namespace tplstore::content_id_test {
using namespace tplstore::testing;

namespace {

// What is not zero, in pieces of random length.
ContentId id_of(Bytes disk, std::mt19937_64& random) {
  ContentIdHasher hasher(disk.size());
  for (uint64_t at = 0; at < disk.size();) {
    const uint64_t length =
        std::min<uint64_t>(disk.size() - at, (random() % 700 + 1) * kSectorBytes);
    const Bytes part = disk.subspan(at, length);
    if (!is_zero(part) || random() % 2 == 0) hasher.add(at, part);
    at += length;
  }
  return hasher.finish();
}

}  // namespace

TEST_CASE("the content id is what its definition says, made by another program") {
  if (!run("python3 --version")) {
    MESSAGE("skipped: python3 is not installed");
    return;
  }
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const TemporaryDirectory folder;
  for (const uint64_t size : {uint64_t{512}, kContentPieceBytes, kContentPieceBytes + 512,
                              5 * kContentPieceBytes - 4096}) {
    CAPTURE(size);
    ByteVector disk(size);
    for (uint64_t at = 0; at < size; at += kSectorBytes)
      if (at / kContentPieceBytes % 3 != 1 && random() % 3 == 0)
        disk[at + random() % kSectorBytes] = static_cast<std::byte>(random());
    write_file(folder.path() + "/disk", disk);
    write_file(folder.path() + "/id.py", as_bytes(R"(
import hashlib, struct
disk = open("disk", "rb").read()
whole = hashlib.sha256(struct.pack("<Q", len(disk)))
for at in range(0, len(disk), 4 << 20):
    whole.update(hashlib.sha256(disk[at:at + (4 << 20)]).digest())
print(whole.hexdigest(), file=open("id", "w"))
)"));
    REQUIRE(run("cd " + folder.path() + " && python3 id.py"));
    CHECK(id_of(disk, random).hex() + "\n" == to_text(read_file(folder.path() + "/id")));
  }
}

TEST_CASE("the content id depends on the disk's size and each of its bytes, and on nothing else") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  ByteVector disk(3 * kContentPieceBytes + 8192);
  for (uint64_t at = 0; at < disk.size(); at += 4096 * (random() % 64 + 1))
    disk[at] = static_cast<std::byte>(random() | 1);
  const ContentId id = id_of(disk, random);
  for (int i = 0; i < 5; ++i) CHECK(id_of(disk, random) == id);
  disk[random() % disk.size()] ^= std::byte{1};
  CHECK(id_of(disk, random) != id);
  ByteVector zeroes(disk.size());
  const ContentId zero = id_of(zeroes, random);
  CHECK(ContentIdHasher(zeroes.size()).finish() == zero);
  CHECK(ContentIdHasher(zeroes.size() + 512).finish() != zero);
}

TEST_CASE("a huge disk of holes has a content id at once") {
  ContentIdHasher hasher(uint64_t{64} << 40);
  hasher.add(uint64_t{63} << 40, block_of(1));
  CHECK(hasher.finish() != ContentId{});
}

TEST_CASE("hashing that is given up ends") {
  ContentIdHasher hasher(uint64_t{1} << 40);
  for (uint64_t i = 0; i < 20; ++i) hasher.add(i * kContentPieceBytes, block_of(i + 1));
}

}  // namespace tplstore::content_id_test
