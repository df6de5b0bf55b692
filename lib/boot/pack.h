// A pack: the cells that boots of a template read, or of a volume that has some of its own, in
// order, as one object, so that a slow storage reads them in few long requests.
//
//   | block 0 | block 1 | … | block n-1 | pieces, 32 bytes each | hashes, 16 each | 0… | trailer |
//
// A piece says which blocks of which segment, or of which frozen version's data file, the next
// blocks of the pack are. The description,
// which is all behind the blocks, has a hash that is made with the store's secret, and each block
// is compared with its own before it is used. So a pack that is damaged, torn, or another store's
// is passed over, and one that is old is as good as a new one for what it has.
//
// It is written like any data, the trailer with the rest of the description last; until then it is
// one that is passed over.
//
// Thread safety: functions, all; a Pack, all methods. Errors: EIO when it is damaged, EINVAL when
// it has a newer format, and the backend's.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/read_plan.h"
#include "boot/profile_store.h"
#include "template/cell_cache.h"

namespace tplstore {

inline constexpr uint64_t kPackMagic = 0x316b6361706c7074;  // "tplpack1"
inline constexpr uint32_t kPackFormat = 1;
inline constexpr uint32_t kPackBlocksMax = uint32_t{1} << 19;

struct PackPiece {
  Hash128 file;     // the segment's name, or the volume's uuid
  uint32_t number;  // blocks of the whole segment, or the version
  uint32_t first;   // block of it
  uint32_t count;
  uint32_t kind;  // a CellFileKey::Kind

  static PackPiece of(const CellFileKey& key, uint32_t first, uint32_t count);
  CellFileKey key() const;
};
static_assert(sizeof(PackPiece) == 32);
static_assert(offsetof(PackPiece, number) == 16 && offsetof(PackPiece, first) == 20);
static_assert(offsetof(PackPiece, count) == 24 && offsetof(PackPiece, kind) == 28);

struct PackTrailer {
  Uuid owner;  // the template or the volume
  uint32_t block_count;
  uint32_t piece_count;
  uint8_t reserved[64];
  uint64_t magic;
  uint32_t format;
  uint32_t reserved_too;
  Hash128 hash;  // of the description, up to here, with the secret
};
static_assert(sizeof(PackTrailer) == 120);

struct PackDescription {
  Uuid owner;
  std::vector<PackPiece> pieces;
  std::vector<Hash128> hashes;  // of each block

  uint32_t block_count() const { return static_cast<uint32_t>(hashes.size()); }
};

NumberedObject template_pack(const Uuid& template_uuid);
NumberedObject volume_pack(const Uuid& volume);

// What stands behind the blocks: whole blocks. Asserts that it is sound.
ByteVector encode_pack(const PackDescription& description, const HashSecret& secret);
// How many bytes that is.
uint64_t pack_description_bytes(uint32_t block_count, uint32_t piece_count);
PackDescription decode_pack(Bytes bytes, const std::string& object, const HashSecret& secret);

class Pack {
 public:
  // Looks at its description.
  Pack(Backend& store, const std::string& path, const HashSecret& secret);

  const PackDescription& description() const { return description_; }
  uint64_t object_bytes() const { return object_bytes_; }
  uint64_t memory_bytes() const;
  // Blocks from `first` on.
  void plan_read(uint32_t first, MutableBytes into, ReadPlan& plan) const {
    plan.add(*object_, uint64_t{first} * kBlockBytes, into);
  }
  bool is_sound(uint32_t index, Bytes block) const;

 private:
  const std::string path_;
  const HashSecret secret_;
  const std::unique_ptr<Object> object_;
  uint64_t object_bytes_ = 0;
  PackDescription description_;
};

// The newest one that is sound; `is_damaged` is set where there is one that is not.
std::unique_ptr<Pack> open_pack(Backend& store, const NumberedObject& object, const Uuid& owner,
                                const HashSecret& secret, bool* is_damaged = nullptr);

// Makes the pack of these pieces, durably, and removes those before it. `read` gives the blocks of
// a piece from `skip` on, checked. False when another one came first.
bool make_pack(Backend& store, const NumberedObject& object, const Uuid& owner,
               const std::vector<PackPiece>& pieces, const HashSecret& secret,
               const std::function<void(size_t piece, uint32_t skip, MutableBytes into)>& read);

}  // namespace tplstore
