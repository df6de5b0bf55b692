#include "transfer/byte_stream.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include "increment_testing.h"

namespace tplstore::byte_stream_test {
using namespace tplstore::testing;

namespace {

bool never() { return false; }

ByteVector packed(Bytes content, Compression compression, bool has_size) {
  const TemporaryDirectory folder;
  const std::string file = folder.path() + "/packed";
  const FileDescriptor out(::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(out.get() >= 0);
  ByteWriter writer(out.get(), file, compression,
                    has_size ? std::optional<uint64_t>(content.size()) : std::nullopt, never);
  // In pieces of all sizes.
  for (size_t done = 0, piece = 1; done < content.size(); piece = piece * 3 + 1) {
    const size_t count = std::min(piece, content.size() - done);
    writer.append(content.subspan(done, count));
    done += count;
  }
  writer.finish();
  return read_file(file);
}

ByteVector concatenated(ByteVector a, const ByteVector& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Source {
  TemporaryDirectory folder;
  std::string file = folder.path() + "/source";

  explicit Source(Bytes content) { write_file(file, content); }
  ByteReader open(bool unpacks = true) const { return ByteReader(file, never, unpacks); }
  ByteVector content() const {
    ByteReader reader = open();
    ByteVector all, piece(100'003);
    while (const size_t count = reader.read(piece)) {
      all.insert(all.end(), piece.begin(), piece.begin() + count);
      if (count < piece.size()) break;
    }
    CHECK(reader.position() == all.size());
    return all;
  }
};

}  // namespace

TEST_CASE("what goes out comes in again, compressed or not, in one frame or in several") {
  const ByteVector content = concatenated(pattern(3 << 20, 1), ByteVector(1 << 20));
  CHECK(packed(content, Compression::kNone, false) == content);
  CHECK(Source(content).content() == content);
  for (const bool has_size : {false, true}) {
    const ByteVector zstd = packed(content, Compression::kZstd, has_size);
    CHECK(zstd.size() < content.size());
    const Source source(zstd);
    CHECK(source.content() == content);
    ByteReader reader = source.open();
    CHECK(reader.is_compressed());
    CHECK_FALSE(reader.file_bytes());
    CHECK(reader.size_bytes() ==
          (has_size ? std::optional<uint64_t>(content.size()) : std::nullopt));
    ByteVector half(content.size() / 2);
    for (int i = 0; i < 2; ++i) {
      CHECK(reader.read(half) == half.size());
      CHECK(std::equal(half.begin(), half.end(), content.begin()));
      reader.rewind();
    }
    CHECK(Source(concatenated(zstd, zstd)).content() == concatenated(content, content));
  }
  CHECK(Source({}).content().empty());
  CHECK(Source(packed({}, Compression::kZstd, true)).content().empty());
}

TEST_CASE("a raw image that begins like zstd can be taken for what it is") {
  const ByteVector zstd = packed(pattern(10'000, 1), Compression::kZstd, true);
  const Source source(zstd);
  ByteReader reader = source.open(false);
  CHECK_FALSE(reader.is_compressed());
  CHECK(reader.file_bytes() == zstd.size());
  ByteVector content(zstd.size());
  CHECK(reader.read(content) == content.size());
  CHECK(content == zstd);
}

TEST_CASE("compressed data that were cut or changed are refused") {
  const ByteVector content = pattern(200'000, 1);
  const ByteVector zstd = packed(content, Compression::kZstd, false);
  for (const size_t size : {size_t{5}, size_t{100}, zstd.size() / 2, zstd.size() - 1}) {
    CAPTURE(size);
    const Source source(Bytes(zstd).first(size));
    const Thrown thrown = thrown_by([&] { source.content(); });
    CHECK(thrown.code == EIO);
    CHECK(thrown.text.find("cut off") != std::string::npos);
  }
  for (const size_t at : {size_t{50}, zstd.size() / 2, zstd.size() - 1}) {
    ByteVector bad = zstd;
    bad[at] ^= std::byte{1};
    const Source source(bad);
    CHECK(thrown_by([&] { source.content(); }).code == EIO);
  }
  const Source followed(concatenated(zstd, pattern(100, 2)));
  CHECK(thrown_by([&] { followed.content(); }).code == EIO);
}

TEST_CASE(
    "compressed data neither take as much memory as they want, nor unpack before they are read") {
  // A frame that wants a window of 1 GiB.
  const uint8_t wants[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0x01, 0x00, 0x00};
  const Source source(std::as_bytes(std::span(wants)));
  const Thrown thrown = thrown_by([&] { source.content(); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("128 MiB") != std::string::npos);

  // Of what unpacks to much more, only what is asked for is made.
  ByteVector bomb = packed(ByteVector(16 << 20), Compression::kZstd, false);
  CHECK(bomb.size() < 4096);
  for (int i = 0; i < 6; ++i) bomb = concatenated(bomb, bomb);
  const Source large(bomb);
  ByteReader reader = large.open();
  ByteVector some(1000);
  CHECK(reader.read(some) == some.size());
  CHECK(reader.position() == some.size());
}

TEST_CASE("what cannot be read from its beginning to its end is refused") {
  const TemporaryDirectory folder;
  CHECK(thrown_by([&] { ByteReader(folder.path() + "/none", never); }).code == ENOENT);
  CHECK(thrown_by([&] { ByteReader(folder.path(), never); }).code == EINVAL);
  CHECK(thrown_by([&] { ByteReader("/dev/null", never); }).code == EINVAL);
}

TEST_CASE("a pipe whose reader has gone, or does not read, ends a writer") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  FileDescriptor reader(ends[0]);
  const FileDescriptor writer(ends[1]);
  const ByteVector content = pattern(4 << 20, 1);
  int asked = 0;
  CHECK(thrown_by([&] {
          ByteWriter stream(writer.get(), "pipe", Compression::kNone, {},
                            [&] { return ++asked > 18; });
          // When the pipe is full it waits, and asks.
          for (int i = 0; i < 100; ++i) stream.append(Bytes(content).first(1 << 20));
        }).code == EINTR);
  ::signal(SIGPIPE, SIG_IGN);
  reader.reset();
  const Thrown thrown = thrown_by([&] {
    ByteWriter stream(writer.get(), "pipe", Compression::kNone, {}, never);
    stream.append(content);
  });
  CHECK(thrown.code == EPIPE);
  CHECK(thrown.text == "pipe: whoever reads it has gone before all was written");
}

}  // namespace tplstore::byte_stream_test
