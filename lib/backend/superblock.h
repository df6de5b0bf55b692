// A small object that is updated in place and survives a crash at any point: two slots with the
// same content, each with a checksum and a sequence number, written one after the other and synced
// in between, so that one of them is always whole. Readers take the newest valid one.
//
// T is a fixed-layout struct that begins with a SlotPrefix. Thread safety: none; the caller holds
// the lock that covers the object.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "backend/backend.h"
#include "base/bytes.h"

namespace tplstore {

inline constexpr uint64_t kSlotBytes = 4096;

struct SlotPrefix {
  uint64_t checksum;  // XXH3-64 of what follows in the struct, seeded with the magic
  uint64_t magic;     // of the kind of object
  uint64_t sequence;  // rises with every update
};
static_assert(sizeof(SlotPrefix) == 24);

template <typename T>
class Superblock {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kSlotBytes);
  static_assert(std::has_unique_object_representations_v<T>, "no padding, so that bytes compare");

 public:
  explicit Superblock(uint64_t magic) : magic_(magic) {}

  // The newest valid slot, or nothing when both are damaged.
  std::optional<T> read(Object& object) {
    std::optional<T> best;
    for (unsigned i = 0; i < 2; ++i) {
      const std::optional<T> value = read_slot(object, i);
      if (!value) continue;
      if (!best || value->prefix.sequence > best->prefix.sequence) {
        best = value;
        newest_ = i;
      }
    }
    if (best) sequence_ = best->prefix.sequence;
    return best;
  }

  // Whether both slots are valid: what a crash may have kept from being so, and else nothing.
  bool has_both(Object& object) const {
    return read_slot(object, 0).has_value() && read_slot(object, 1).has_value();
  }

  // Writes both slots, the older one first. When that fails, the other one is as it was.
  void write(Object& object, T value) {
    seal(value);
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned older = newest_ ^ 1;
      object.write(older * kSlotBytes, bytes_of(value));
      object.sync();
      newest_ = older;
    }
  }

  // Both slots at once, as the content of a new object.
  ByteVector initial(T value) {
    seal(value);
    ByteVector content(2 * kSlotBytes);
    for (unsigned i = 0; i < 2; ++i)
      std::memcpy(content.data() + i * kSlotBytes, &value, sizeof value);
    return content;
  }

 private:
  std::optional<T> read_slot(Object& object, unsigned slot) const {
    T value;
    object.read(slot * kSlotBytes, std::as_writable_bytes(std::span<T, 1>(&value, 1)));
    const bool is_valid = value.prefix.magic == magic_ && value.prefix.checksum == sum_of(value);
    return is_valid ? std::optional(value) : std::nullopt;
  }
  void seal(T& value) {
    value.prefix = {0, magic_, ++sequence_};
    value.prefix.checksum = sum_of(value);
  }
  uint64_t sum_of(const T& value) const {
    return checksum(bytes_of(value).subspan(sizeof(uint64_t)), magic_);
  }

  uint64_t magic_;
  uint64_t sequence_ = 0;
  unsigned newest_ = 1;
};

}  // namespace tplstore
