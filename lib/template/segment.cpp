// Blocks, their table and the trailer are put together in memory and published at once.
#include "template/segment.h"

#include <algorithm>

#include "template/block_source.h"

namespace tplstore {
namespace {

constexpr std::string_view kRepairSegment =
    "restore this object from a backup or remove the templates that use it and import them again";

// One piece of a segment as it is read for comparing: few reads, little memory.
constexpr uint64_t kPieceBytes = uint64_t{1} << 20;

uint64_t trailer_checksum(const SegmentTrailer& trailer) {
  return checksum(bytes_of(trailer).first(offsetof(SegmentTrailer, checksum)));
}

Bytes table_bytes(const std::vector<Hash128>& table) { return std::as_bytes(std::span(table)); }

// Whether the segment `name` is there with exactly these bytes.
bool has_content(BlockSource& blocks, const Hash128& name, uint32_t block_count, Bytes expected) {
  const auto segment = blocks.hold(name, block_count);
  ByteVector buffer(kPieceBytes);
  for (uint64_t offset = 0; offset < expected.size(); offset += kPieceBytes) {
    const Bytes piece = expected.subspan(offset, std::min(kPieceBytes, expected.size() - offset));
    const MutableBytes into = MutableBytes(buffer).first(piece.size());
    segment->read_at_origin(offset, into);
    if (std::memcmp(piece.data(), into.data(), piece.size()) != 0) return false;
  }
  return true;
}

}  // namespace

std::string segment_folder(const Hash128& name) { return "segments/" + name.hex().substr(0, 2); }

std::string segment_path(const Hash128& name) {
  const std::string hex = name.hex();
  return "segments/" + hex.substr(0, 2) + "/" + hex;
}

namespace {

// None where there is a symbolic link instead of a folder.
std::vector<std::string> entries_of(Backend& backend, const std::string& folder) {
  try {
    return backend.list(folder);
  } catch (const Error& error) {
    if (error.code() == ELOOP || error.code() == ENOTDIR) return {};
    throw;
  }
}

}  // namespace

std::vector<Hash128> list_segments(Backend& backend) {
  std::vector<Hash128> names;
  for (const std::string& folder : backend.list("segments")) {
    if (folder.size() != 2) continue;
    for (const std::string& entry : entries_of(backend, "segments/" + folder)) {
      Hash128 name;
      if (parse_hash(entry, name) && entry.starts_with(folder)) names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

SegmentBuilder::SegmentBuilder(const HashSecret& secret) : secret_(secret) {
  hashes_.reserve(kSegmentBlocksMax);
  content_.reserve(kSegmentBytesMax);
}

Bytes SegmentBuilder::block(uint32_t index) const {
  ensure(index < block_count(), "a block of a segment being built is one that was added");
  return Bytes(content_).subspan(uint64_t{index} * kBlockBytes, kBlockBytes);
}

uint32_t SegmentBuilder::add(Bytes block, const Hash128& hash) {
  ensure(!full(), "a segment has at most 1024 blocks");
  ensure(block.size() == kBlockBytes, "a block has 4096 bytes");
  content_.insert(content_.end(), block.begin(), block.end());
  hashes_.push_back(hash);
  return block_count() - 1;
}

Hash128 SegmentBuilder::name() const {
  ensure(!empty(), "a segment has at least one block");
  return content_hash(table_bytes(hashes_), secret_);
}

SegmentBuilder::Outcome SegmentBuilder::publish(Backend& backend, BlockSource& blocks) {
  SegmentTrailer trailer{};
  trailer.magic = kSegmentMagic;
  trailer.format = kSegmentFormat;
  trailer.block_count = block_count();
  trailer.table_hash = name();
  trailer.checksum = trailer_checksum(trailer);

  const Bytes table = table_bytes(hashes_);
  const Bytes end = bytes_of(trailer);
  const uint64_t data_bytes = content_.size();
  content_.insert(content_.end(), table.begin(), table.end());
  content_.insert(content_.end(), end.begin(), end.end());
  ensure(content_.size() == segment_object_bytes(trailer.block_count),
         "a segment is as long as its block count says");

  Outcome outcome = Outcome::kNew;
  try {
    if (!backend.put_new(segment_path(trailer.table_hash), content_)) {
      if (!has_content(blocks, trailer.table_hash, trailer.block_count, content_)) {
        content_.resize(data_bytes);
        return Outcome::kOtherBytes;
      }
      outcome = Outcome::kThere;
      // Whoever put it may not have made its name durable yet; what we publish relies on it.
      backend.sync_folder(segment_folder(trailer.table_hash));
    }
  } catch (...) {
    content_.resize(data_bytes);
    throw;
  }
  content_.clear();
  hashes_.clear();
  return outcome;
}

void fail_other_bytes(const Hash128& name) {
  fail(EIO, segment_path(name),
       "exists with other bytes than those that would get this name: it is damaged, or two "
       "contents have the same hash; run 'tplstore template verify', and if it is damaged {}",
       kRepairSegment);
}

namespace {

// Those of the blocks of `sound` that do not have their hash are taken from the segment, where they
// have it.
void keep_sound_blocks(Object& segment, const Hash128& name, MutableBytes sound,
                       const HashSecret& secret) {
  const uint32_t block_count = segment_block_count(sound.size()).value_or(0);
  const uint64_t data_bytes = segment_table_offset(block_count);
  const auto table = decode_segment_table(sound.subspan(data_bytes), block_count, name, secret);
  ByteVector there(kBlockBytes);
  for (const uint32_t block : find_damaged_blocks(sound.first(data_bytes), 0, table, secret)) {
    const uint64_t offset = uint64_t{block} * kBlockBytes;
    try {
      segment.read(offset, there);
    } catch (const Error&) {  // it is given up here too
      continue;
    }
    if (content_hash(there, secret) == table[block])
      std::ranges::copy(there, sound.subspan(offset).begin());
  }
}

}  // namespace

void mend_segment(Backend& backend, const Hash128& name, ByteVector sound,
                  const HashSecret& secret) {
  const std::string path = segment_path(name);
  std::unique_ptr<Object> object;
  try {
    object = backend.open(path, Access::kWrite, Purpose::kData);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
  }
  if (object) keep_sound_blocks(*object, name, sound, secret);
  if (!object || object->size_bytes() != sound.size() || backend.write_alignment_bytes() != 1) {
    object.reset();
    if (backend.remove(path)) backend.sync_folder(segment_folder(name));
    backend.put_new(path, sound);
    return;
  }
  // In place, so that those who read the rest of it meanwhile find it.
  ByteVector there(kBlockBytes);
  for (uint64_t offset = 0; offset < sound.size(); offset += kBlockBytes) {
    const Bytes piece =
        Bytes(sound).subspan(offset, std::min<uint64_t>(kBlockBytes, sound.size() - offset));
    const MutableBytes into = MutableBytes(there).first(piece.size());
    bool is_sound = false;
    try {
      object->read(offset, into);
      is_sound = std::memcmp(into.data(), piece.data(), piece.size()) == 0;
    } catch (const Error&) {  // what cannot be read is written
    }
    if (!is_sound) object->write(offset, piece);
  }
  object->sync();
}

std::optional<uint32_t> segment_block_count(uint64_t object_bytes) {
  constexpr uint64_t kBytesPerBlock = kBlockBytes + sizeof(Hash128);
  if (object_bytes < segment_object_bytes(1) || object_bytes > kSegmentBytesMax ||
      (object_bytes - sizeof(SegmentTrailer)) % kBytesPerBlock != 0)
    return {};
  return static_cast<uint32_t>((object_bytes - sizeof(SegmentTrailer)) / kBytesPerBlock);
}

std::vector<Hash128> decode_segment_table(Bytes bytes, uint32_t block_count, const Hash128& name,
                                          const HashSecret& secret) {
  const std::string path = segment_path(name);
  Decoder decoder(bytes, path);
  const Bytes table = decoder.take_bytes(uint64_t{block_count} * sizeof(Hash128));
  const auto trailer = decoder.take<SegmentTrailer>();
  if (trailer.magic != kSegmentMagic || trailer.checksum != trailer_checksum(trailer))
    fail(EIO, path, "damaged: its trailer is not that of a segment; {}", kRepairSegment);
  if (trailer.format != kSegmentFormat)
    fail(EINVAL, path, "has format {}, this program reads format {}: use a newer tplstore",
         trailer.format, kSegmentFormat);
  if (trailer.block_count != block_count)
    fail(EIO, path, "damaged: its size is that of {} blocks, its trailer says {}; {}", block_count,
         trailer.block_count, kRepairSegment);
  if (trailer.table_hash != name || content_hash(table, secret) != name)
    fail(EIO, path,
         "damaged, or of another store: its table of hashes does not have the segment's name; {}",
         kRepairSegment);

  std::vector<Hash128> hashes(block_count);
  std::memcpy(hashes.data(), table.data(), table.size());
  return hashes;
}

std::vector<Hash128> read_segment_table(Object& segment, const Hash128& name,
                                        const HashSecret& secret) {
  const uint64_t size = segment.size_bytes();
  const auto block_count = segment_block_count(size);
  if (!block_count)
    fail(EIO, segment_path(name), "damaged: {} bytes is not the size of a segment; {}", size,
         kRepairSegment);
  const uint64_t table_offset = segment_table_offset(*block_count);
  ByteVector bytes(size - table_offset);
  segment.read(table_offset, bytes);
  return decode_segment_table(bytes, *block_count, name, secret);
}

std::unique_ptr<Object> open_segment(Backend& backend, const Hash128& name, uint32_t block_count) {
  std::unique_ptr<Object> segment;
  const std::string path = segment_path(name);
  try {
    segment = backend.open(path, Access::kRead, Purpose::kData);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
    fail(EIO, path, "a template needs this segment and it is missing; {}", kRepairSegment);
  }
  const uint64_t size = segment->size_bytes();
  if (block_count != 0 && size != segment_object_bytes(block_count))
    fail(EIO, path, "damaged: has {} bytes instead of {}; {}", size,
         segment_object_bytes(block_count), kRepairSegment);
  return segment;
}

std::vector<uint32_t> find_damaged_blocks(Bytes blocks, uint32_t first,
                                          const std::vector<Hash128>& table,
                                          const HashSecret& secret) {
  std::vector<uint32_t> damaged;
  for (uint32_t block = first; !blocks.empty(); ++block, blocks = blocks.subspan(kBlockBytes))
    if (content_hash(blocks.first(kBlockBytes), secret) != table.at(block))
      damaged.push_back(block);
  return damaged;
}

bool is_given_up(Bytes block) {
  for (; !block.empty(); block = block.subspan(kSectorBytes))
    if (is_zero(block.first(kSectorBytes))) return true;
  return false;
}

}  // namespace tplstore
