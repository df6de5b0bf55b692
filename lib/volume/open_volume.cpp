// Opening what a volume consists of, and exchanging a reader's map.
#include "volume/open_volume.h"

#include <cerrno>

#include "backend/layout.h"

namespace tplstore {

std::string volume_folder(const Uuid& volume) {
  return fmt::format("{}/{}", paths::kVolumes, volume.text());
}

OpenVolume::OpenVolume(const VolumeEnvironment& environment_of, const Uuid& volume,
                       const std::string& name_of)
    : environment(environment_of),
      backend(environment.backend),
      uuid(volume),
      folder(volume_folder(volume)),
      name(name_of),
      object(fmt::format("volume {}", name)),
      files(backend, uuid, folder, environment.cells),
      write_alignment(backend.write_alignment_bytes()) {}

void OpenVolume::open_template(const VolumeHeader& header) {
  const std::string template_name = template_of(header);
  if (template_name.empty()) return;
  template_image = environment.open_template(template_name);
  if (template_image->uuid() != header.template_uuid)
    fail(EIO, object, "its template {} is not the one it was made from; put that one back",
         template_name);
  template_blocks = blocks_of(template_image->size_bytes());
}

void OpenVolume::open_map(Access access) {
  {
    const Lock guard(map_exchange_mutex_);
    map_ = VolumeMap::open(backend, folder, uuid, access);
    map_in_use_ = map_.get();
  }
  std::vector<DataFiles::Ancestor> ancestors;
  for (const SourceRow& row :
       map().ask([](const MapState& state) { return state.table().sources; }))
    ancestors.push_back({row.last, row.volume, volume_folder(row.volume)});
  files.set_ancestors(std::move(ancestors));
}

void OpenVolume::use_current(DataFile& file) noexcept {
  map().ask([this](const MapState& state) {
    current = state.current().number;
    size_bytes = state.current().size_bytes;
    is_unswept = (state.current().flags & kVersionUnswept) != 0;
  });
  current_file = &file;
}

// Of a log that the volume's owner has compacted away meanwhile, a reader reads the new one. False
// when this is the owner: then nobody else does that.
bool OpenVolume::reload_map(const VolumeMap* old) {
  if (lock) return false;
  std::unique_ptr<VolumeMap> fresh;
  {
    const Lock guard(map_exchange_mutex_);
    if (map_.get() != old) return true;
    fresh = VolumeMap::open(backend, folder, uuid, Access::kRead);
    map_.swap(fresh);
    map_in_use_ = map_.get();
  }
  cell_users.wait_for_requests();
  return true;
}

void OpenVolume::record_size() {
  if (disk_size(lock->header()) != size_bytes) lock->resize(size_bytes);
}

void OpenVolume::log_failure(const char* failure, const char* why) noexcept {
  try {
    environment.log(fmt::format("{}: {}: {}", object, failure, why));
  } catch (const std::exception&) {
    // There is no memory for a line.
  }
}

}  // namespace tplstore
