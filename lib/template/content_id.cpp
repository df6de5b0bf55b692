// SHA-256 by libcrypto, its pieces by a few threads beside the one that reads.
#include "template/content_id.h"

#include <openssl/evp.h>

#include <algorithm>
#include <thread>

namespace tplstore {

class ContentIdHasher::Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1);
  }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void add(Bytes bytes) { check(EVP_DigestUpdate(context_, bytes.data(), bytes.size()) == 1); }
  Digest finish() {
    Digest digest;
    check(EVP_DigestFinal_ex(context_, digest.data(), nullptr) == 1);
    return digest;
  }

 private:
  static void check(bool is_done) {
    if (!is_done) fail(ENOMEM, "SHA-256", "libcrypto cannot make it");
  }
  EVP_MD_CTX* context_;
};

std::string ContentId::hex() const {
  std::string text;
  for (const uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

ContentIdHasher::Digest ContentIdHasher::digest_of(Bytes bytes) {
  Sha256 hash;
  hash.add(bytes);
  return hash.finish();
}

ContentIdHasher::ContentIdHasher(uint64_t disk_bytes)
    : disk_bytes_(disk_bytes),
      zero_end_(digest_of(ByteVector(disk_bytes % kContentPieceBytes))),
      whole_(std::make_unique<Sha256>()) {
  whole_->add(bytes_of(disk_bytes_));
}

// Waits for those that are being hashed.
ContentIdHasher::~ContentIdHasher() = default;

uint64_t ContentIdHasher::length_of(uint64_t piece) const {
  return std::min(kContentPieceBytes, disk_bytes_ - piece * kContentPieceBytes);
}

void ContentIdHasher::begin_piece(uint64_t number) {
  constexpr unsigned kThreadsMax = 4;
  static const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, kThreadsMax);
  current_ = hashing_.size() < threads ? Piece() : take_hashed();
  current_->number = number;
  current_->filled = 0;
  current_->bytes.resize(kContentPieceBytes);
}

void ContentIdHasher::end_piece() {
  current_->bytes.resize(current_->filled);
  current_->bytes.resize(length_of(current_->number));
  hashing_.push_back(std::async(
      std::launch::async,
      [](Piece piece) {
        piece.digest.reset();
        if (!is_zero(piece.bytes)) piece.digest = digest_of(piece.bytes);
        return piece;
      },
      std::move(*current_)));
  current_.reset();
}

// The first of those that are being hashed, when it is.
ContentIdHasher::Piece ContentIdHasher::take_hashed() {
  Piece piece = hashing_.front().get();
  hashing_.pop_front();
  add_zero_pieces(piece.digest ? piece.number : piece.number + 1);
  if (piece.digest) {
    whole_->add(std::as_bytes(std::span(*piece.digest)));
    ++whole_pieces_;
  }
  return piece;
}

void ContentIdHasher::add_zero_pieces(uint64_t end) {
  static const Digest zero_piece = digest_of(ByteVector(kContentPieceBytes));
  for (; whole_pieces_ < end; ++whole_pieces_) {
    const bool is_whole = length_of(whole_pieces_) == kContentPieceBytes;
    whole_->add(std::as_bytes(std::span(is_whole ? zero_piece : zero_end_)));
  }
}

void ContentIdHasher::add(uint64_t offset, Bytes data) {
  ensure(offset <= disk_bytes_ && data.size() <= disk_bytes_ - offset,
         "what is hashed lies within the disk");
  while (!data.empty()) {
    const uint64_t number = offset / kContentPieceBytes, inside = offset % kContentPieceBytes;
    const Bytes part = data.first(std::min<uint64_t>(data.size(), kContentPieceBytes - inside));
    if (current_ && current_->number != number) end_piece();
    if (!current_) begin_piece(number);
    ensure(current_->number == number && inside >= current_->filled,
           "a disk is hashed in ascending order");
    std::memset(current_->bytes.data() + current_->filled, 0, inside - current_->filled);
    std::memcpy(current_->bytes.data() + inside, part.data(), part.size());
    current_->filled = inside + part.size();
    offset += part.size();
    data = data.subspan(part.size());
  }
}

ContentId ContentIdHasher::finish() {
  if (current_) end_piece();
  while (!hashing_.empty()) take_hashed();
  add_zero_pieces((disk_bytes_ + kContentPieceBytes - 1) / kContentPieceBytes);
  return {whole_->finish()};
}

}  // namespace tplstore
