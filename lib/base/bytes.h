// Byte ranges, checksums, and reading and writing of fixed-layout structs.
//
// Everything on disk is little-endian and is laid out by plain structs of fixed-width integers, so
// on the hosts we support a struct is copied as it is. Thread safety: pure functions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace tplstore {

static_assert(std::endian::native == std::endian::little,
              "the formats on disk are little-endian and are copied, not converted");

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;
using ByteVector = std::vector<std::byte>;

// Memory that begins where O_DIRECT wants it, so that what is written from it needs no copy.
template <typename T>
struct BlockAligned {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{4096};

  BlockAligned() = default;
  template <typename U>
  BlockAligned(const BlockAligned<U>&) {}
  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
  }
  void deallocate(T* memory, size_t) noexcept { ::operator delete(memory, kAlignment); }
  bool operator==(const BlockAligned&) const = default;
};
using AlignedByteVector = std::vector<std::byte, BlockAligned<std::byte>>;

inline constexpr uint32_t kSectorBytes = 512;    // what a device writes whole or not at all
inline constexpr uint32_t kBlockBytes = 4096;    // the unit of the map and of deduplication
inline constexpr uint32_t kRegionBlocks = 1024;  // one leaf of the map
inline constexpr uint64_t kRegionBytes = uint64_t{kRegionBlocks} * kBlockBytes;
inline constexpr uint64_t kRegionsMax = uint64_t{1} << 24;               // what a map can address
inline constexpr uint64_t kVolumeBytesMax = kRegionsMax * kRegionBytes;  // 64 TiB

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}
constexpr uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }
constexpr uint64_t blocks_of(uint64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes; }

inline Bytes as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }
inline std::string to_text(Bytes bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// The bytes of one fixed-layout struct.
template <typename T>
requires std::is_trivially_copyable_v<T> Bytes bytes_of(const T& value) {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

bool is_zero(Bytes bytes);

// XXH3 with 64 bits, the checksum of everything on disk. `seed` ties a checksum to its place.
uint64_t checksum(Bytes bytes, uint64_t seed = 0);

// XXH3 with 128 bits: names content. Compares and prints in the order of its hex digits.
struct Hash128 {
  uint64_t high = 0;
  uint64_t low = 0;
  auto operator<=>(const Hash128&) const = default;
  std::string hex() const;  // 32 lower-case digits
};
static_assert(sizeof(Hash128) == 16);
// What a store's hashes are made with: who does not know it cannot make two contents with one name.
struct HashSecret {
  uint8_t bytes[192] = {};
};
static_assert(sizeof(HashSecret) == 192);
HashSecret random_secret();
Hash128 content_hash(Bytes bytes, const HashSecret& secret);
bool parse_hash(std::string_view hex, Hash128& into);  // false unless 32 lower-case hex digits

// Reads structs and byte runs from untrusted bytes; running past the end throws Error(EIO, object).
class Decoder {
 public:
  Decoder(Bytes bytes, std::string object) : bytes_(bytes), object_(std::move(object)) {}

  template <typename T>
  requires std::is_trivially_copyable_v<T> T take() {
    T value;
    std::memcpy(&value, take_bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }
  Bytes take_bytes(uint64_t count) {
    if (count > bytes_.size()) fail(EIO, object_, "damaged: a record ends before its content does");
    Bytes taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }
  std::string take_text(uint64_t count) { return to_text(take_bytes(count)); }
  // One unsigned LEB128 number.
  uint64_t take_varint();
  bool empty() const { return bytes_.empty(); }
  const std::string& object() const { return object_; }

 private:
  Bytes bytes_;
  std::string object_;
};

// Appends structs and byte runs to a vector that it owns.
class Encoder {
 public:
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void put(const T& value) { put_bytes(bytes_of(value)); }
  void put_bytes(Bytes bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void put_varint(uint64_t value);
  uint64_t size() const { return bytes_.size(); }
  ByteVector& bytes() { return bytes_; }

 private:
  ByteVector bytes_;
};

// A 128-bit random identity of a volume, a template, a log.
struct Uuid {
  uint8_t bytes[16] = {};
  auto operator<=>(const Uuid&) const = default;
  std::string text() const;  // 8-4-4-4-12 lower-case hex digits
  bool is_nil() const { return *this == Uuid{}; }
};
static_assert(sizeof(Uuid) == 16);
Uuid random_uuid();
bool parse_uuid(std::string_view text, Uuid& into);  // false unless in the form of text()
// Throws Error(EIO): an object of volume `found` lies where one of volume `wanted` belongs.
[[noreturn]] void fail_of_another(const std::string& object, const Uuid& found, const Uuid& wanted);
uint64_t random_u64();

}  // namespace tplstore
