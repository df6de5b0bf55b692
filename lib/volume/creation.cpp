// Map, data file, locks, header, in this order.
#include "volume/creation.h"

#include "map/creation.h"
#include "volume/open_volume.h"

namespace tplstore {

VolumeHeader new_header(const Uuid& volume, uint64_t size_bytes, const TemplateImage* base) {
  VolumeHeader header{};
  header.format = kHeaderFormat;
  header.block_bytes = kBlockBytes;
  header.region_blocks = kRegionBlocks;
  header.volume = volume;
  header.size_bytes = size_bytes;
  if (base != nullptr) {
    header.template_uuid = base->uuid();
    put_text(header.template_name, sizeof header.template_name, base->name());
  }
  return header;
}

void create_objects(Backend& backend, uint32_t current, const VolumeHeader& header) {
  const std::string folder = volume_folder(header.volume);
  backend
      .create(DataFiles::name_of(folder, current), round_up(header.size_bytes, kBlockBytes),
              Purpose::kData)
      ->sync();
  backend.create(lock_name(folder), 0, Purpose::kMetadata);
  backend.create(readers_name(folder), 0, Purpose::kMetadata);
  backend.sync_folder(folder);
  const auto object = backend.create(header_name(folder), 0, Purpose::kMetadata);
  object->write(0, HeaderSlots(kHeaderMagic).initial(header));
  object->sync();
  backend.sync_folder(folder);
}

void create_volume(Backend& backend, const Uuid& volume, uint64_t size_bytes,
                   const TemplateImage* base) {
  create_map(backend, volume_folder(volume), volume, size_bytes);
  VolumeHeader header = new_header(volume, size_bytes, base);
  put_usage(header, {.current_version = 1});
  create_objects(backend, 1, header);
}

}  // namespace tplstore
