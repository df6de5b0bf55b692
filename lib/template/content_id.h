// The content id of a disk: the one name of its content that other stores understand.
//
//   SHA-256 over: the disk's size in bytes (8 bytes, little-endian), then, for each 4 MiB of the
//   disk in order, the SHA-256 of these bytes; the last piece is as long as the disk goes on.
//
// So it depends on the disk's bytes alone, not on how they are stored or what is a hole. What reads
// as zeroes costs nothing: the digest of a zero piece is made once. Pieces are hashed in threads of
// their own, while the caller goes on.
//
// Thread safety: one thread. Errors: what a thread's failure was, at a later call.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"

namespace tplstore {

struct ContentId {
  std::array<uint8_t, 32> bytes = {};
  bool operator==(const ContentId&) const = default;
  std::string hex() const;  // 64 lower-case digits
};
static_assert(sizeof(ContentId) == 32);

inline constexpr uint64_t kContentPieceBytes = uint64_t{4} << 20;

class ContentIdHasher {
 public:
  explicit ContentIdHasher(uint64_t disk_bytes);
  ~ContentIdHasher();

  // Bytes of the disk, in ascending order and within it; what is left out is zero. Takes a copy.
  void add(uint64_t offset, Bytes data);
  // When all of the disk was added; the last call.
  ContentId finish();

 private:
  class Sha256;
  using Digest = std::array<uint8_t, 32>;
  struct Piece {
    uint64_t number = 0;
    uint64_t filled = 0;  // up to here the bytes are the disk's
    ByteVector bytes;
    std::optional<Digest> digest;  // when it was hashed and is not zero
  };

  static Digest digest_of(Bytes bytes);
  uint64_t length_of(uint64_t piece) const;
  void begin_piece(uint64_t number);
  void end_piece();
  Piece take_hashed();
  void add_zero_pieces(uint64_t end);

  const uint64_t disk_bytes_;
  const Digest zero_end_;  // of zeroes as long as the last piece, when that is shorter
  std::optional<Piece> current_;
  std::deque<std::future<Piece>> hashing_;  // in their order
  std::unique_ptr<Sha256> whole_;
  uint64_t whole_pieces_ = 0;  // that it has
};

}  // namespace tplstore
