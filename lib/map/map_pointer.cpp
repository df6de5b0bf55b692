// A superblock with one volume's pointer in it.
#include "map/map_pointer.h"

#include <cerrno>

namespace tplstore {
namespace {

std::string map_pointer_name(const std::string& folder) { return folder + "/map"; }

MapPointer pointer_to(const MapLog& log, const Uuid& volume, uint64_t checkpoint_offset,
                      uint64_t clean_sequence, uint64_t closed_incarnation) {
  return {{}, volume, log.generation(), checkpoint_offset, clean_sequence, closed_incarnation, {}};
}

}  // namespace

void MapPointerObject::create(Backend& backend, const std::string& folder, const Uuid& volume,
                              const MapLog& log, uint64_t checkpoint_offset) {
  const auto object = backend.create(map_pointer_name(folder), 0, Purpose::kMetadata);
  object->write(
      0, Superblock<MapPointer>(kMapPointerMagic)
             .initial(pointer_to(log, volume, checkpoint_offset, log.position().sequence, 0)));
  object->sync();
}

MapPointerObject::MapPointerObject(Backend& backend, const std::string& folder, const Uuid& volume,
                                   Access access) {
  const std::string name = map_pointer_name(folder);
  object_ = backend.open(name, access, Purpose::kMetadata);
  if (access == Access::kWrite) settle(*object_);
  const std::optional<MapPointer> found = slots_.read(*object_);
  if (!found) fail(EIO, name, "damaged: neither of its two slots passes its checksum");
  if (found->volume != volume) fail_of_another(name, found->volume, volume);
  value_ = *found;
}

bool MapPointerObject::has_both_slots(Backend& backend, const std::string& folder) {
  const auto object = backend.open(map_pointer_name(folder), Access::kRead, Purpose::kMetadata);
  return Superblock<MapPointer>(kMapPointerMagic).has_both(*object);
}

void MapPointerObject::write(const MapLog& log, uint64_t checkpoint_offset, uint64_t clean_sequence,
                             uint64_t closed_incarnation) {
  const MapPointer next =
      pointer_to(log, value_.volume, checkpoint_offset, clean_sequence, closed_incarnation);
  slots_.write(*object_, next);
  value_ = next;
}

}  // namespace tplstore
