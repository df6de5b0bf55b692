// SHA-256 by libcrypto, its pieces by a few threads beside the one that reads.
#include "template/content_id.h"

#include <openssl/evp.h>

#include <algorithm>
#include <optional>

namespace tplstore {
namespace {

constexpr unsigned kThreadsMax = 4;

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1);
  }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void add(Bytes bytes) { check(EVP_DigestUpdate(context_, bytes.data(), bytes.size()) == 1); }
  std::array<uint8_t, 32> finish() {
    std::array<uint8_t, 32> digest;
    check(EVP_DigestFinal_ex(context_, digest.data(), nullptr) == 1);
    return digest;
  }

 private:
  static void check(bool is_done) {
    if (!is_done) fail(ENOMEM, "SHA-256", "libcrypto cannot make it");
  }
  EVP_MD_CTX* context_;
};

std::array<uint8_t, 32> sha256(Bytes bytes) {
  Sha256 hash;
  hash.add(bytes);
  return hash.finish();
}

const std::array<uint8_t, 32>& zero_piece_digest() {
  static const std::array<uint8_t, 32> digest = sha256(ByteVector(kContentPieceBytes));
  return digest;
}

}  // namespace

std::string ContentId::hex() const {
  std::string text;
  for (const uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

ContentIdHasher::ContentIdHasher(uint64_t disk_bytes)
    : disk_bytes_(disk_bytes), zero_end_(sha256(ByteVector(disk_bytes % kContentPieceBytes))) {}

ContentIdHasher::~ContentIdHasher() {
  {
    const Lock guard(mutex_);
    waiting_.clear();
  }
  end_threads();
}

// They come to the end of what waits.
void ContentIdHasher::end_threads() {
  {
    const Lock guard(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

uint64_t ContentIdHasher::length_of(uint64_t piece) const {
  return std::min(kContentPieceBytes, disk_bytes_ - piece * kContentPieceBytes);
}

void ContentIdHasher::begin_piece(uint64_t number) {
  Lock guard(mutex_);
  // Two for each thread, so that none waits for the caller, and one for the caller.
  const unsigned threads_max = std::clamp(std::thread::hardware_concurrency(), 1u, kThreadsMax);
  while (free_.empty() && pieces_ > 2 * threads_max && !error_) changed_.wait(mutex_);
  if (error_) std::rethrow_exception(error_);
  if (free_.empty()) {
    current_ = std::make_unique<Piece>();
    current_->bytes.resize(kContentPieceBytes);
    ++pieces_;
  } else {
    current_ = std::move(free_.back());
    free_.pop_back();
  }
  current_->number = number;
  current_->filled = 0;
  // One more as long as all that there are have work.
  if (threads_.size() < threads_max && threads_.size() <= waiting_.size())
    threads_.emplace_back([this] { run(); });
}

void ContentIdHasher::end_piece() {
  Piece& piece = *current_;
  const uint64_t length = length_of(piece.number);
  if (piece.filled < length)
    std::memset(piece.bytes.data() + piece.filled, 0, length - piece.filled);
  {
    const Lock guard(mutex_);
    waiting_.push_back(std::move(current_));
  }
  changed_.notify_all();
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

void ContentIdHasher::run() {
  Lock guard(mutex_);
  while (true) {
    while (waiting_.empty() && !ends_) changed_.wait(mutex_);
    if (waiting_.empty()) return;
    std::unique_ptr<Piece> piece = std::move(waiting_.front());
    waiting_.pop_front();
    guard.unlock();
    std::optional<Digest> digest;
    std::exception_ptr error;
    try {
      const Bytes bytes = Bytes(piece->bytes).first(length_of(piece->number));
      if (!is_zero(bytes)) digest = sha256(bytes);
    } catch (...) {
      error = std::current_exception();
    }
    guard.lock();
    try {
      if (digest) digests_.emplace_back(piece->number, *digest);
      free_.push_back(std::move(piece));
    } catch (...) {
      error = std::current_exception();
    }
    if (error) error_ = error;
    changed_.notify_all();
  }
}

ContentId ContentIdHasher::finish() {
  if (current_) end_piece();
  end_threads();
  const Lock guard(mutex_);
  if (error_) std::rethrow_exception(error_);
  std::sort(digests_.begin(), digests_.end());

  Sha256 all;
  all.add(bytes_of(disk_bytes_));
  const uint64_t count = (disk_bytes_ + kContentPieceBytes - 1) / kContentPieceBytes;
  auto next = digests_.begin();
  for (uint64_t number = 0; number < count; ++number) {
    const Digest* digest =
        length_of(number) == kContentPieceBytes ? &zero_piece_digest() : &zero_end_;
    if (next != digests_.end() && next->first == number) digest = &(next++)->second;
    all.add(std::as_bytes(std::span(*digest)));
  }
  return {all.finish()};
}

}  // namespace tplstore
