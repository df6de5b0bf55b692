// Writes packs, and believes nothing of one that is not under the store's secret.
#include "boot/pack.h"

#include <algorithm>
#include <bit>
#include <optional>

#include "backend/layout.h"
#include "template/segment.h"

namespace tplstore {
namespace {

constexpr uint32_t kChunkBlocks = 256;
constexpr uint64_t kTailBytes = 256 << 10;
constexpr auto kSegmentKind = static_cast<uint32_t>(CellFileKey::Kind::kSegment);
constexpr auto kVersionKind = static_cast<uint32_t>(CellFileKey::Kind::kVersion);
static_assert(kSegmentKind == 0 && kVersionKind == 1);  // as they are stored

uint64_t description_bytes(uint64_t block_count, uint64_t piece_count) {
  return round_up(
      piece_count * sizeof(PackPiece) + block_count * sizeof(Hash128) + sizeof(PackTrailer),
      kBlockBytes);
}

// What is wrong with it; nothing when it is sound. Encoding asserts it, decoding checks it.
std::optional<std::string> find_fault(const PackDescription& description) {
  uint64_t blocks = 0;
  for (const PackPiece& piece : description.pieces) {
    uint32_t file_blocks = UINT32_MAX;
    if (piece.kind == kSegmentKind) {
      file_blocks = piece.number;
      if (file_blocks == 0 || file_blocks > kSegmentBlocksMax)
        return fmt::format("a segment of {} blocks", file_blocks);
    } else if (piece.kind != kVersionKind) {
      return fmt::format("a piece of kind {}", piece.kind);
    }
    if (piece.count == 0 || piece.first >= file_blocks || piece.count > file_blocks - piece.first)
      return "a piece past its file's end";
    blocks += piece.count;
  }
  if (blocks != description.hashes.size() || blocks > kPackBlocksMax)
    return "pieces that are not as long as the pack";
  return std::nullopt;
}

}  // namespace

NumberedObject template_pack(const Uuid& template_uuid) {
  return {std::string(paths::kPacks), template_uuid.text()};
}

NumberedObject volume_pack(const Uuid& volume) {
  return {fmt::format("{}/{}", paths::kVolumes, volume.text()), "pack"};
}

PackPiece PackPiece::of(const CellFileKey& key, uint32_t first, uint32_t count) {
  const bool is_segment = key.kind == CellFileKey::Kind::kSegment;
  return {is_segment ? key.segment : std::bit_cast<Hash128>(key.volume), key.number, first, count,
          is_segment ? kSegmentKind : kVersionKind};
}

CellFileKey PackPiece::key() const {
  return kind == kSegmentKind ? CellFileKey::of_segment(file, number)
                              : CellFileKey::of_version(std::bit_cast<Uuid>(file), number);
}

uint64_t pack_description_bytes(uint32_t block_count, uint32_t piece_count) {
  return description_bytes(block_count, piece_count);
}

ByteVector encode_pack(const PackDescription& description, const HashSecret& secret) {
  const auto fault = find_fault(description);
  ensure(!fault, fault ? *fault : "a pack is sound before it is written");
  Encoder encoder;
  encoder.put_bytes(std::as_bytes(std::span(description.pieces)));
  encoder.put_bytes(std::as_bytes(std::span(description.hashes)));
  PackTrailer trailer{};
  trailer.owner = description.owner;
  trailer.block_count = description.block_count();
  trailer.piece_count = static_cast<uint32_t>(description.pieces.size());
  trailer.magic = kPackMagic;
  trailer.format = kPackFormat;
  ByteVector& bytes = encoder.bytes();
  bytes.resize(description_bytes(trailer.block_count, trailer.piece_count) - sizeof trailer);
  encoder.put(trailer);
  const size_t hash_at = bytes.size() - sizeof trailer.hash;
  const Hash128 hash = content_hash(Bytes(bytes).first(hash_at), secret);
  std::memcpy(bytes.data() + hash_at, &hash, sizeof hash);
  return std::move(bytes);
}

PackDescription decode_pack(Bytes bytes, const std::string& object, const HashSecret& secret) {
  PackTrailer trailer;
  if (bytes.size() < sizeof trailer) fail(EIO, object, "damaged: too short for a pack");
  std::memcpy(&trailer, bytes.last(sizeof trailer).data(), sizeof trailer);
  if (trailer.magic != kPackMagic) fail(EIO, object, "damaged, or not complete: no pack");
  if (trailer.format != kPackFormat)
    fail(EINVAL, object, "has format {}, this program reads format {}: use a newer tplstore",
         trailer.format, kPackFormat);
  if (trailer.hash != content_hash(bytes.first(bytes.size() - sizeof trailer.hash), secret) ||
      bytes.size() != description_bytes(trailer.block_count, trailer.piece_count))
    fail(EIO, object, "damaged, or of another store: its description is not what it was");
  PackDescription description;
  description.owner = trailer.owner;
  description.pieces.resize(trailer.piece_count);
  description.hashes.resize(trailer.block_count);
  Decoder decoder(bytes, object);
  const Bytes pieces = decoder.take_bytes(uint64_t{trailer.piece_count} * sizeof(PackPiece));
  const Bytes hashes = decoder.take_bytes(uint64_t{trailer.block_count} * sizeof(Hash128));
  if (!pieces.empty()) std::memcpy(description.pieces.data(), pieces.data(), pieces.size());
  if (!hashes.empty()) std::memcpy(description.hashes.data(), hashes.data(), hashes.size());
  if (const auto fault = find_fault(description)) fail(EIO, object, "damaged: {}", *fault);
  return description;
}

Pack::Pack(Backend& store, const std::string& path, const HashSecret& secret)
    : path_(path),
      secret_(secret),
      object_(store.open(path, Access::kRead, Purpose::kData)),
      object_bytes_(object_->size_bytes()) {
  if (object_bytes_ < kBlockBytes || object_bytes_ % kBlockBytes != 0)
    fail(EIO, path, "damaged: no pack has {} bytes", object_bytes_);
  // The description is likely to be in it.
  ByteVector tail(std::min<uint64_t>(object_bytes_, kTailBytes));
  object_->read(object_bytes_ - tail.size(), tail);
  PackTrailer trailer;
  std::memcpy(&trailer, tail.data() + tail.size() - sizeof trailer, sizeof trailer);
  if (trailer.magic != kPackMagic || trailer.block_count > kPackBlocksMax ||
      trailer.piece_count > trailer.block_count ||
      object_bytes_ != uint64_t{trailer.block_count} * kBlockBytes +
                           description_bytes(trailer.block_count, trailer.piece_count))
    fail(EIO, path, "damaged, or not complete: no pack");
  const uint64_t bytes = description_bytes(trailer.block_count, trailer.piece_count);
  if (bytes > tail.size()) {
    tail.resize(bytes);
    object_->read(object_bytes_ - bytes, tail);
  }
  description_ = decode_pack(Bytes(tail).last(bytes), path, secret);
}

uint64_t Pack::memory_bytes() const {
  return description_.pieces.size() * sizeof(PackPiece) +
         description_.hashes.size() * sizeof(Hash128);
}

bool Pack::is_sound(uint32_t index, Bytes block) const {
  return content_hash(block, secret_) == description_.hashes[index];
}

std::unique_ptr<Pack> open_pack(Backend& store, const NumberedObject& object, const Uuid& owner,
                                const HashSecret& secret, bool* is_damaged) {
  std::vector<uint64_t> numbers = object.numbers(store);
  for (; !numbers.empty(); numbers.pop_back()) {
    try {
      auto pack = std::make_unique<Pack>(store, object.path(numbers.back()), secret);
      if (pack->description().owner == owner) return pack;
    } catch (const Error&) {
      // Without it the profile is read block by block.
    }
    if (is_damaged != nullptr) *is_damaged = true;
  }
  return nullptr;
}

bool make_pack(Backend& store, const NumberedObject& object, const Uuid& owner,
               const std::vector<PackPiece>& pieces, const HashSecret& secret,
               const std::function<void(size_t piece, uint32_t skip, MutableBytes into)>& read) {
  PackDescription description{owner, pieces, {}};
  uint64_t block_count = 0;
  for (const PackPiece& piece : pieces) block_count += piece.count;
  if (block_count == 0 || block_count > kPackBlocksMax) return false;
  description.hashes.reserve(block_count);

  const std::vector<uint64_t> numbers = object.numbers(store);
  const uint64_t number = numbers.empty() ? 1 : numbers.back() + 1;
  const uint64_t data_bytes = block_count * kBlockBytes;
  std::unique_ptr<Object> made;
  try {
    made = store.create(object.path(number),
                        data_bytes + description_bytes(block_count, pieces.size()), Purpose::kData);
  } catch (const Error& error) {
    if (error.code() == EEXIST) return false;
    throw;
  }
  try {
    ByteVector chunk;
    uint64_t at = 0;
    const auto write_chunk = [&] {
      made->write(at, chunk);
      at += chunk.size();
      chunk.clear();
    };
    for (size_t i = 0; i < pieces.size(); ++i) {
      for (uint32_t done = 0; done < pieces[i].count;) {
        const size_t begin = chunk.size();
        const uint32_t count = std::min(pieces[i].count - done,
                                        kChunkBlocks - static_cast<uint32_t>(begin / kBlockBytes));
        chunk.resize(begin + size_t{count} * kBlockBytes);
        const MutableBytes blocks = MutableBytes(chunk).subspan(begin);
        read(i, done, blocks);
        for (size_t from = 0; from < blocks.size(); from += kBlockBytes)
          description.hashes.push_back(content_hash(blocks.subspan(from, kBlockBytes), secret));
        done += count;
        if (chunk.size() == size_t{kChunkBlocks} * kBlockBytes) write_chunk();
      }
    }
    if (!chunk.empty()) write_chunk();
    made->sync();
    made->write(data_bytes, encode_pack(description, secret));
    made->sync();
    store.sync_folder(object.folder);
  } catch (...) {
    made.reset();
    store.remove(object.path(number));
    throw;
  }
  object.remove_below(store, number);
  return true;
}

}  // namespace tplstore
