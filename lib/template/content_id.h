// The content id of a disk: the one name of its content that other stores understand.
//
//   SHA-256 over: the disk's size in bytes (8 bytes, little-endian), then, for each 4 MiB of the
//   disk in order, the SHA-256 of these bytes; the last piece is as long as the disk goes on.
//
// So it depends on the disk's bytes alone, not on how they are stored or what is a hole. What reads
// as zeroes costs nothing: the digest of a zero piece is made once. Pieces are hashed in threads of
// its own, while the caller goes on.
//
// Thread safety: one thread. Errors: what a thread's failure was, at the next call.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/mutex.h"

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
  ContentIdHasher(const ContentIdHasher&) = delete;
  ContentIdHasher& operator=(const ContentIdHasher&) = delete;

  // Bytes of the disk, in ascending order and within it; what is left out is zero. Takes a copy.
  void add(uint64_t offset, Bytes data);
  // When all of the disk was added; the last call.
  ContentId finish();

 private:
  using Digest = std::array<uint8_t, 32>;
  struct Piece {
    uint64_t number = 0;
    uint64_t filled = 0;  // up to here the bytes are the disk's
    ByteVector bytes;
  };

  uint64_t length_of(uint64_t piece) const;
  void begin_piece(uint64_t number);
  void end_piece();
  void run();
  void end_threads();

  const uint64_t disk_bytes_;
  std::unique_ptr<Piece> current_;
  Digest zero_end_;  // of zeroes as long as the last piece, when that is shorter

  Mutex mutex_;
  ConditionVariable changed_;
  std::deque<std::unique_ptr<Piece>> waiting_ GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Piece>> free_ GUARDED_BY(mutex_);
  unsigned pieces_ GUARDED_BY(mutex_) = 0;  // that exist
  // Of pieces that are not zero, in any order.
  std::vector<std::pair<uint64_t, Digest>> digests_ GUARDED_BY(mutex_);
  std::exception_ptr error_ GUARDED_BY(mutex_);
  bool ends_ GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;
};

}  // namespace tplstore
