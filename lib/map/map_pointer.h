// The object "map" of a volume: which log counts, and from where on.
//
// Thread safety: none. Errors: Error(EIO) for damage and for another volume's; what the backend
// throws.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/superblock.h"
#include "map/map_log.h"

namespace tplstore {

struct MapPointer {
  SlotPrefix prefix;
  Uuid volume;
  uint64_t generation;          // of the log
  uint64_t checkpoint_offset;   // of the last checkpoint's frame
  uint64_t clean_sequence;      // the last frame of a clean close; 0 while open
  uint64_t closed_incarnation;  // the life that was closed, if one was since the checkpoint
  uint64_t reserved[3];
};
static_assert(sizeof(MapPointer) == 96);
inline constexpr uint64_t kMapPointerMagic = 0x315250414d4c5054;  // "TPLMAPR1"

class MapPointerObject {
 public:
  // Makes it, durable but for the folder, as if the map had been closed.
  static void create(Backend& backend, const std::string& folder, const Uuid& volume,
                     const MapLog& log, uint64_t checkpoint_offset);
  // Reads it; for writing it is settled first.
  MapPointerObject(Backend& backend, const std::string& folder, const Uuid& volume, Access access);

  // Whether both slots are valid; changes nothing.
  static bool has_both_slots(Backend& backend, const std::string& folder);

  const MapPointer& value() const { return value_; }
  void write(const MapLog& log, uint64_t checkpoint_offset, uint64_t clean_sequence,
             uint64_t closed_incarnation);

 private:
  std::unique_ptr<Object> object_;
  Superblock<MapPointer> slots_{kMapPointerMagic};
  MapPointer value_;
};

}  // namespace tplstore
