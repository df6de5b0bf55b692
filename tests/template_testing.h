// What the tests of templates share: patterns, files, and templates made
// without an image. Header only; each test's.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "template/manifest.h"
#include "template/segment.h"
#include "template/store_identity.h"
#include "template/template_image.h"

namespace tplstore::testing {

// One block whose content is told by a number; 0 is a block of zeroes.
inline ByteVector block_of(uint64_t number) {
  ByteVector block(kBlockBytes);
  if (number == 0) return block;
  std::mt19937_64 random(number);
  for (size_t i = 0; i < block.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(block.data() + i, &word, sizeof word);
  }
  return block;
}

// What the stores of tests have for a secret: 0, 1, 2, …
inline const HashSecret kTestSecret = [] {
  HashSecret secret;
  for (size_t i = 0; i < sizeof secret.bytes; ++i) secret.bytes[i] = static_cast<uint8_t>(i);
  return secret;
}();
inline Hash128 hash_of(Bytes bytes) { return content_hash(bytes, kTestSecret); }

// What the library takes where no secret is given: known to everybody.
inline const HashSecret kPublicSecret = [] {
  HashSecret secret;
  // XXH3's own, as far as colliding_blocks() needs it.
  const uint8_t head[] = {0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c};
  std::memcpy(secret.bytes, head, sizeof head);
  return secret;
}();

// Two different blocks with the same XXH3-128 under a secret. The hash adds up products of the two
// halves of each word, mixed with words of the secret, and the words themselves. Where one half
// equals its part of the secret the product is zero, so what is added to one such word can be taken
// from another.
inline std::pair<ByteVector, ByteVector> colliding_blocks(const HashSecret& secret) {
  std::pair<ByteVector, ByteVector> blocks{block_of(4711), {}};
  const auto poke = [](ByteVector& block, uint64_t offset, uint32_t low, uint32_t high) {
    std::memcpy(block.data() + offset, &low, 4);
    std::memcpy(block.data() + offset + 4, &high, 4);
  };
  uint32_t first, second;
  std::memcpy(&first, secret.bytes, 4);
  std::memcpy(&second, secret.bytes + 8, 4);
  poke(blocks.first, 0, first, 5);
  poke(blocks.first, 64, second, 9);
  blocks.second = blocks.first;
  poke(blocks.second, 0, first, 6);
  poke(blocks.second, 64, second, 8);
  return blocks;
}

inline ByteVector disk_of(const std::vector<uint64_t>& numbers) {
  ByteVector disk;
  for (const uint64_t number : numbers) {
    const ByteVector block = block_of(number);
    disk.insert(disk.end(), block.begin(), block.end());
  }
  return disk;
}

// Writes a file, with holes where there are whole blocks of zeroes.
inline void write_file(const std::string& path, Bytes content) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) fail_errno(errno, path, "open");
  bool is_written = ftruncate(fd, static_cast<off_t>(content.size())) == 0;
  for (uint64_t at = 0; at < content.size(); at += kBlockBytes) {
    const Bytes block = content.subspan(at, std::min<uint64_t>(kBlockBytes, content.size() - at));
    if (!is_zero(block))
      is_written = is_written && pwrite(fd, block.data(), block.size(), static_cast<off_t>(at)) ==
                                     static_cast<ssize_t>(block.size());
  }
  close(fd);
  if (!is_written) fail(EIO, path, "cannot write it");
}

inline ByteVector read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Bytes bytes = as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

// A shell command of the test's own making.
inline bool run(const std::string& command) {
  return std::system(("(" + command + ") >/dev/null 2>&1").c_str()) == 0;
}
inline bool have_qemu() { return run("qemu-img --version") && run("qemu-nbd --version"); }

// The code and message of the Error that `step` throws; code 0 when it throws none.
struct Thrown {
  int code = 0;
  std::string text;
};
template <typename F>
Thrown thrown_by(const F& step) {
  try {
    step();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

// With segments that nobody else holds.
inline std::shared_ptr<TemplateImage> open_image(Backend& backend, const std::string& name) {
  struct Alone {
    Alone(Backend& backend, const std::string& name)
        : blocks(backend), image(TemplateImage::open(backend, blocks, name)) {}
    BlockSource blocks;
    const std::shared_ptr<TemplateImage> image;
  };
  const auto alone = std::make_shared<Alone>(backend, name);
  return {alone, alone->image.get()};
}

inline Hash128 publish_segment(SegmentBuilder& builder, Backend& backend) {
  BlockSource blocks(backend);
  const Hash128 name = builder.name();
  if (builder.publish(backend, blocks) == SegmentBuilder::Outcome::kOtherBytes)
    fail_other_bytes(name);
  return name;
}

// The identity of a store, of any format; false when there is one.
inline bool put_identity(Backend& backend, const HashSecret& secret,
                         uint32_t format = kStoreFormat) {
  StoreIdentity identity{};
  identity.magic = kStoreMagic;
  identity.format = format;
  identity.uuid = random_uuid();
  identity.secret = secret;
  // Older formats had no secret.
  const Bytes object = bytes_of(identity).first(format < 3 ? 56 : sizeof identity);
  identity.checksum = checksum(object.subspan(8));
  return backend.put_new(kIdentityObject, object);
}

// Makes what a store has before the first import.
inline void make_store(Backend& backend, const HashSecret& secret = kTestSecret) {
  put_identity(backend, secret);
  backend.create("gc.lock", 0, Purpose::kMetadata)->sync();
  backend.sync_folder("");
}

// Publishes a template with these blocks, each segment holding `blocks_per_segment`.
inline void make_template(Backend& backend, const std::string& name,
                          const std::vector<uint64_t>& numbers, uint64_t size_bytes,
                          uint32_t blocks_per_segment = kSegmentBlocksMax) {
  put_identity(backend, kTestSecret);
  const StoreIdentity identity = load_identity(backend);
  Manifest manifest;
  manifest.name = name;
  manifest.store = identity.uuid;
  manifest.uuid = random_uuid();
  manifest.size_bytes = size_bytes;
  manifest.created_ns = 1'700'000'000'000'000'000;
  manifest.source = "test";
  ContentIdHasher content_id(size_bytes);
  SegmentBuilder builder(identity.secret);
  uint32_t segment = 0;
  const auto publish = [&] {
    const uint32_t block_count = builder.block_count();
    manifest.segments.push_back({publish_segment(builder, backend), block_count, 0});
    ++segment;
  };
  for (uint64_t i = 0; i < numbers.size(); ++i) {
    if (numbers[i] == 0) continue;
    const ByteVector block = block_of(numbers[i]);
    manifest.append_block(i, segment, builder.add(block, content_hash(block, identity.secret)));
    content_id.add(i * kBlockBytes, Bytes(block).first(std::min<uint64_t>(
                                        kBlockBytes, size_bytes - i * kBlockBytes)));
    if (builder.block_count() == blocks_per_segment) publish();
  }
  if (!builder.empty()) publish();
  manifest.content_id = content_id.finish();
  if (!backend.put_new(manifest_path(name), encode_manifest(manifest)))
    fail(EEXIST, name, "exists");
}

}  // namespace tplstore::testing
