#include "template/manifest.h"

#include <doctest/doctest.h>

#include "memory/memory_backend.h"
#include "template_testing.h"

namespace tplstore::manifest_test {
using namespace tplstore::testing;

namespace {

Manifest example() {
  Manifest manifest;
  manifest.name = std::string("t");
  manifest.store = random_uuid();
  manifest.uuid = random_uuid();
  manifest.content_id.bytes.fill(0xc5);
  manifest.size_bytes = 64 * kBlockBytes - 512;
  manifest.created_ns = 1'700'000'000'123'456'789;
  manifest.source = "/images/debian.qcow2 (qcow2)";
  manifest.segments = {{{1, 2}, 10, 0}, {{3, 4}, 1024, 0}};
  manifest.runs = {{0, 0, 0, 10}, {10, 1, 1000, 24}, {63, 1, 0, 1}};
  return manifest;
}

void put_checksum(ByteVector& bytes) {
  const uint64_t head = checksum(Bytes(bytes).first(136));
  const uint64_t sum = checksum(Bytes(bytes).subspan(144), head);
  std::memcpy(bytes.data() + 136, &sum, sizeof sum);
}

void check_refused(const std::function<void(ByteVector&)>& change, int code) {
  ByteVector bytes = encode_manifest(example());
  change(bytes);
  put_checksum(bytes);
  CHECK(thrown_by([&] { decode_manifest(bytes, "templates/t"); }).code == code);
}

template <typename T>
void poke(ByteVector& bytes, uint64_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

}  // namespace

TEST_CASE("a manifest reads back as it was written") {
  const Manifest manifest = example();
  const ByteVector bytes = encode_manifest(manifest);
  CHECK(bytes.size() == 144 + 32 + 2 * 24 + 3 * 16);
  CHECK(to_text(Bytes(bytes).first(8)) == "tplmani1");
  const Manifest read = decode_manifest(bytes, "templates/t");
  CHECK(read.name == manifest.name);
  CHECK(read.store == manifest.store);
  CHECK(read.uuid == manifest.uuid);
  CHECK(read.content_id == manifest.content_id);
  CHECK(read.size_bytes == manifest.size_bytes);
  CHECK(read.created_ns == manifest.created_ns);
  CHECK(read.source == manifest.source);
  REQUIRE(read.segments.size() == 2);
  CHECK(read.segments[1].name == Hash128{3, 4});
  CHECK(read.segments[1].block_count == 1024);
  REQUIRE(read.runs.size() == 3);
  CHECK(read.runs[1].block == 10);
  CHECK(read.runs[1].segment == 1);
  CHECK(read.runs[1].segment_block == 1000);
  CHECK(read.runs[1].count == 24);
  CHECK(read.data_bytes() == 35 * kBlockBytes);
}

TEST_CASE("a manifest without data and without a source reads back") {
  Manifest manifest;
  manifest.name = std::string("t");
  manifest.store = random_uuid();
  manifest.uuid = random_uuid();
  manifest.size_bytes = kTemplateBytesMax;
  const Manifest read = decode_manifest(encode_manifest(manifest), "templates/t");
  CHECK(read.runs.empty());
  CHECK(read.size_bytes == kTemplateBytesMax);
}

TEST_CASE("any flipped bit and any cut of a manifest is an error") {
  const ByteVector good = encode_manifest(example());
  for (uint64_t bit = 0; bit < good.size() * 8; ++bit) {
    ByteVector bytes = good;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    CAPTURE(bit);
    CHECK(thrown_by([&] { decode_manifest(bytes, "templates/t"); }).code == EIO);
  }
  for (uint64_t size = 0; size < good.size(); ++size) {
    const Bytes bytes = Bytes(good).first(size);
    CHECK(thrown_by([&] { decode_manifest(bytes, "templates/t"); }).code == EIO);
  }
}

TEST_CASE("a manifest that is wrong behind a right checksum is refused") {
  check_refused([](ByteVector& b) { poke<uint32_t>(b, 8, 3); }, EINVAL);        // newer format
  check_refused([](ByteVector& b) { poke<uint32_t>(b, 12, 1); }, EINVAL);       // unknown feature
  check_refused([](ByteVector& b) { poke<uint64_t>(b, 0, 1); }, EIO);           // other magic
  check_refused([](ByteVector& b) { poke<uint64_t>(b, 32, 0); }, EIO);          // no size
  check_refused([](ByteVector& b) { poke<uint64_t>(b, 32, 4097); }, EIO);       // odd size
  check_refused([](ByteVector& b) { poke<uint64_t>(b, 32, 16 * 4096); }, EIO);  // run past it
  check_refused([](ByteVector& b) { poke<uint64_t>(b, 32, UINT64_MAX - 511); }, EIO);
  check_refused([](ByteVector& b) { poke<uint32_t>(b, 48, 3); }, EIO);           // segment count
  check_refused([](ByteVector& b) { poke<uint32_t>(b, 52, UINT32_MAX); }, EIO);  // run count
  check_refused([](ByteVector& b) { poke<uint32_t>(b, 56, UINT32_MAX); }, EIO);  // source length
  check_refused([](ByteVector& b) { poke<uint32_t>(b, 60, UINT32_MAX); }, EIO);  // name length
  check_refused([](ByteVector& b) { poke<uint32_t>(b, 60, 0); }, EIO);           // no name
  check_refused([](ByteVector& b) { b[144] = std::byte{'/'}; }, EIO);  // no name it can have
  check_refused([](ByteVector& b) { std::memset(b.data() + 64, 0, 16); }, EIO);  // no store
  const uint64_t segments = 144 + 32, runs = segments + 2 * 24;
  check_refused([&](ByteVector& b) { poke<uint32_t>(b, segments + 16, 0); }, EIO);
  check_refused([&](ByteVector& b) { poke<uint32_t>(b, segments + 16, 1025); }, EIO);
  check_refused([&](ByteVector& b) { poke<uint32_t>(b, segments + 16, 9); }, EIO);  // run past it
  check_refused([&](ByteVector& b) { poke<uint64_t>(b, runs + 16, 9); }, EIO);      // overlap
  check_refused([&](ByteVector& b) { poke<uint64_t>(b, runs + 32, 5); }, EIO);      // order
  check_refused([&](ByteVector& b) { poke<uint64_t>(b, runs + 32, UINT64_MAX); }, EIO);
  check_refused([&](ByteVector& b) { poke<uint32_t>(b, runs + 8, 2); }, EIO);   // no such segment
  check_refused([&](ByteVector& b) { poke<uint16_t>(b, runs + 14, 0); }, EIO);  // empty run
  check_refused([&](ByteVector& b) { poke<uint16_t>(b, runs + 12, 1); }, EIO);  // past its end
  check_refused([&](ByteVector& b) { b.resize(b.size() - 16); }, EIO);
  check_refused([&](ByteVector& b) { b.resize(b.size() + 16); }, EIO);
  check_refused([](ByteVector& b) { std::memset(b.data() + 16, 0, 16); }, EIO);  // no uuid
}

TEST_CASE("random bytes behind a right checksum never do harm") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const ByteVector good = encode_manifest(example());
  for (int i = 0; i < 5000; ++i) {
    ByteVector bytes = good;
    for (uint64_t changes = random() % 8 + 1; changes > 0; --changes)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 64));
    if (bytes.size() >= 144) put_checksum(bytes);
    try {
      const Manifest manifest = decode_manifest(bytes, "templates/t");
      for (const TemplateRun& run : manifest.runs) {
        REQUIRE(run.segment < manifest.segments.size());
        REQUIRE(run.segment_block + run.count <= manifest.segments[run.segment].block_count);
        REQUIRE(run.end() <= blocks_of(manifest.size_bytes));
      }
    } catch (const Error& error) {
      REQUIRE((error.code() == EIO || error.code() == EINVAL));
    }
  }
}

TEST_CASE("appended blocks merge into runs only where both sides continue") {
  Manifest manifest;
  manifest.append_block(0, 0, 0);
  manifest.append_block(1, 0, 1);
  manifest.append_block(3, 0, 2);   // a hole before it
  manifest.append_block(4, 0, 9);   // elsewhere in the segment
  manifest.append_block(5, 1, 10);  // another segment
  REQUIRE(manifest.runs.size() == 4);
  CHECK(manifest.runs[0].count == 2);
}

TEST_CASE("a template that does not exist has no manifest") {
  MemoryBackend backend;
  CHECK_FALSE(load_manifest(backend, "none"));
  CHECK_FALSE(load_manifest_uuid(backend, "none"));
  make_store(backend);
  Manifest manifest = example();
  manifest.store = load_identity(backend).uuid;
  backend.put_new("templates/t", encode_manifest(manifest));
  CHECK(load_manifest_uuid(backend, "t") == manifest.uuid);
  CHECK(load_manifest(backend, "t")->uuid == manifest.uuid);
}

TEST_CASE("a manifest under another name, or in another store, is refused") {
  MemoryBackend backend, other;
  make_template(backend, "a", {1, 2}, 2 * kBlockBytes);
  backend.put_new("templates/b", backend.content("templates/a"));
  const Thrown misplaced = thrown_by([&] { load_manifest(backend, "b"); });
  CHECK(misplaced.code == EIO);
  CHECK(misplaced.text.find("it is the manifest of template a") != std::string::npos);
  CHECK(load_manifest(backend, "a")->name == "a");

  make_store(other);
  other.put_new("templates/a", backend.content("templates/a"));
  const Thrown foreign = thrown_by([&] { load_manifest(other, "a"); });
  CHECK(foreign.code == EIO);
  CHECK(foreign.text.find("of another store") != std::string::npos);
}

TEST_CASE("the example of FORMAT.md is what is written") {
  MemoryBackend backend;
  SegmentBuilder builder(kTestSecret);
  const ByteVector block(kBlockBytes, std::byte{'A'});
  builder.add(block, hash_of(block));
  const Hash128 name = publish_segment(builder, backend);
  CHECK(name.hex() == "46399eb98bd3bb9b609aaac693a256fa");
  const ByteVector segment = backend.content(segment_path(name));
  uint64_t sum = 0;
  std::memcpy(&sum, segment.data() + segment.size() - 8, 8);
  CHECK(sum == 0xef8924dce3fbbf64);

  Manifest manifest;
  manifest.name = std::string("a");
  REQUIRE(parse_uuid("2d9a61f4-0b3c-4f15-8e77-c6a1940de352", manifest.store));
  REQUIRE(parse_uuid("6f1d3a52-8c07-4e4b-9f60-2b7a51c0d9e4", manifest.uuid));
  ContentIdHasher content_id(3 * kBlockBytes);
  content_id.add(0, block);
  content_id.add(2 * kBlockBytes, block);
  manifest.content_id = content_id.finish();
  CHECK(manifest.content_id.hex() ==
        "027be14cc05a0bb34f2d67328655c185808f2f5eabcbe89f85d326b25396535c");
  manifest.size_bytes = 3 * kBlockBytes;
  manifest.created_ns = 1'767'225'600'000'000'000;
  manifest.source = "/img/a.raw (raw)";
  manifest.segments = {{name, 1, 0}};
  manifest.runs = {{0, 0, 0, 1}, {2, 0, 0, 1}};
  const ByteVector bytes = encode_manifest(manifest);
  REQUIRE(bytes.size() == 0xe0);
  std::memcpy(&sum, bytes.data() + 136, 8);
  CHECK(sum == 0x3d886481981bbc6b);
}

}  // namespace tplstore::manifest_test
