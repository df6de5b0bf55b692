// The life of a volume: making, opening, recovering, versions, upkeep, closing.
#include "volume.h"

#include <cerrno>

#include "names.h"
#include "store.h"
#include "volume_counters.h"

namespace tplstore {

std::string Volume::folder_of(const Uuid& volume) {
  return fmt::format("{}/{}", paths::kVolumes, volume.text());
}

void Volume::create(Backend& backend, const Uuid& volume, uint64_t size_bytes,
                    const TemplateImage* base) {
  const std::string folder = folder_of(volume);
  backend.create(DataFiles::name_of(folder, 1), round_up(size_bytes, kBlockBytes))->sync();
  VolumeMap::create(backend, folder, volume, size_bytes);
  backend.create(folder + "/lock", 0);
  backend.create(folder + "/readers", 0);
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
  const auto object = backend.create(header_name(folder), 0);
  object->write(0, HeaderSlots(kHeaderMagic).initial(header));
  object->sync();
  backend.sync_folder(folder);
}

Volume::Volume(const VolumeEnvironment& environment, const Uuid& volume, std::string name)
    : environment_(environment),
      backend_(environment.backend),
      uuid_(volume),
      folder_(folder_of(volume)),
      name_(std::move(name)),
      files_(std::make_unique<DataFiles>(backend_, folder_)),
      write_alignment_(backend_.write_alignment_bytes()),
      counters_(std::make_unique<Counters>()) {}

Volume::~Volume() = default;

void Volume::open_template(const VolumeHeader& header) {
  template_name_ = template_of(header);
  if (template_name_.empty()) return;
  template_ = environment_.open_template(template_name_);
  if (template_->uuid() != header.template_uuid)
    fail(EIO, fmt::format("volume {}", name_),
         "its template {} is not the one it was made from; put that one back", template_name_);
  template_blocks_ = blocks_of(template_->size_bytes());
}

std::unique_ptr<Volume> Volume::open_for_writing(const VolumeEnvironment& environment,
                                                 const Uuid& uuid, const std::string& name,
                                                 const Peer& peer) {
  std::unique_ptr<Volume> volume(new Volume(environment, uuid, name));
  volume->lock_ =
      WriterLock::acquire(volume->backend_, volume->folder_, name, peer, environment.log);
  const uint64_t size_before = volume->lock_->header().true_size_bytes;
  try {
    volume->open_template(volume->lock_->header());
    volume->recover();
  } catch (const Error& error) {
    environment.log(fmt::format("volume {}: cannot be opened: {}", name, error.what()));
    volume->lock_->restore(size_before);
    throw;
  }
  return volume;
}

void Volume::recover() {
  map_ = VolumeMap::open(backend_, folder_, uuid_, Access::kWrite);
  // What the last life wrote may be in the page cache only: it must not go away again after it
  // has been served.
  const uint32_t current = map_->current();
  files_->remove_above(current);
  if (!map_->was_closed_cleanly()) {
    environment_.log(fmt::format("volume {}: was not closed, recovered it", name_));
    for (const uint32_t version : map_->replayed_versions()) files_->sync_existing(version);
    files_->sync_existing(current);
  }
  use_current(files_->begin(current));
  map_->begin_life([files = files_.get()] { files->sync_written(); });
  if (lock_->header().true_size_bytes != size_bytes()) lock_->resize(size_bytes());
}

std::unique_ptr<Volume> Volume::open_for_reading(const VolumeEnvironment& environment,
                                                 const Uuid& uuid, const std::string& name) {
  std::unique_ptr<Volume> volume(new Volume(environment, uuid, name));
  volume->readers_ = volume->backend_.try_lock(volume->folder_ + "/readers", LockMode::kShared);
  if (!volume->readers_) fail(EBUSY, fmt::format("volume {}", name), "is being removed");
  volume->open_template(read_header(volume->backend_, volume->folder_));
  volume->map_ = VolumeMap::open(volume->backend_, volume->folder_, uuid, Access::kRead);
  volume->size_bytes_ = volume->map_->size_bytes();
  return volume;
}

void Volume::use_current(DataFile& file) {
  current_ = map_->current();
  size_bytes_ = map_->size_bytes();
  current_file_ = &file;
}

void Volume::close() {
  if (!lock_) return;
  try {
    map_->close();
    files_->remove_prepared();
    lock_->restore(size_bytes());
  } catch (const Error& error) {
    environment_.log(
        fmt::format("volume {}: could not be closed cleanly, the next opening "
                    "recovers it: {}",
                    name_, error.what()));
  }
  lock_.reset();
}

std::shared_ptr<VolumeMap> Volume::map() {
  if (lock_) return map_;
  const std::lock_guard guard(map_exchange_mutex_);
  return map_;
}

// The owner has compacted the log that this reader had open: read the new one.
void Volume::reload_map(const std::shared_ptr<VolumeMap>& old) {
  const std::lock_guard guard(map_exchange_mutex_);
  if (map_ == old) map_ = VolumeMap::open(backend_, folder_, uuid_, Access::kRead);
}

// --- versions

VersionInfo Volume::info_of(const VersionRecord& record, bool is_current) {
  VersionInfo info;
  info.number = record.number;
  info.name = record.name;
  info.parent = record.parent;
  info.created_ns = record.created_ns;
  info.size_bytes = record.size_bytes;
  info.is_hidden = (record.flags & kVersionHidden) != 0;
  info.is_current = is_current;
  try {
    info.own_bytes =
        backend_.open(DataFiles::name_of(folder_, record.number), Access::kRead)->allocated_bytes();
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;  // versions that wrote nothing have no file
  }
  return info;
}

std::vector<VersionInfo> Volume::versions() {
  std::vector<VersionInfo> list;
  const auto map = this->map();
  for (const VersionRecord& record : map->versions()) list.push_back(info_of(record, false));
  list.push_back(info_of(map->current_record(), true));
  return list;
}

VersionInfo Volume::version(const std::string& number_or_name) {
  const auto record = map()->version(number_or_name);
  if (!record || (record->flags & kVersionHidden) != 0)
    fail(ENOENT, fmt::format("volume {}", name_),
         "has no version '{}'; see 'tplstore version list {}'", number_or_name, name_);
  return info_of(*record, false);
}

VersionInfo Volume::freeze(const std::string& name, uint32_t parent, uint64_t size_bytes) {
  const std::lock_guard guard(map_->version_mutex());
  if (!name.empty() && map_->version(name))
    fail(EEXIST, fmt::format("volume {}", name_), "has a version '{}' already", name);
  const uint32_t next = current_ + 1;
  files_->prepare(next, size_bytes);
  map_->promise(VolumeMap::kFreezeRecords);

  gate_.close();
  VersionRecord frozen;
  try {
    frozen = map_->freeze(name, "", parent);
    use_current(files_->advance(next));
  } catch (...) {
    gate_.open();
    map_->withdraw(VolumeMap::kFreezeRecords);
    throw;
  }
  gate_.open();

  map_->commit();
  if (frozen.own_blocks == 0) files_->remove(frozen.number);
  environment_.wake();
  return info_of(frozen, false);
}

VersionInfo Volume::create_version(const std::string& name) {
  if (!name.empty()) check_name("version", name);
  return freeze(name, 0, size_bytes());
}

VersionInfo Volume::rollback(const std::string& number_or_name) {
  const VersionInfo target = version(number_or_name);
  const VersionInfo frozen = freeze("", target.number, target.size_bytes);
  lock_->resize(size_bytes());
  return frozen;
}

void Volume::resize(uint64_t size_bytes) {
  const std::lock_guard guard(map_->version_mutex());
  if (size_bytes <= this->size_bytes())
    fail(EINVAL, fmt::format("volume {}", name_), "has {} bytes, and can only grow; {} is not more",
         this->size_bytes(), size_bytes);
  files_->stretch(current_, size_bytes);
  map_->promise(1);
  map_->resize(size_bytes);
  size_bytes_ = size_bytes;
  map_->commit();
  lock_->resize(size_bytes);
}

// --- upkeep

void Volume::maintain(bool evicts) {
  try {
    if (lock_) {
      if (map_->wants_commit()) map_->commit();
      if (map_->wants_checkpoint()) map_->checkpoint();
      if (map_->wants_compaction()) map_->compact();
      const std::lock_guard guard(map_->version_mutex());
      files_->prepare(current_ + 1, size_bytes());
    }
    const auto map = this->map();
    if (evicts)
      while (map->evict_some()) {
      }
  } catch (const Error& error) {
    environment_.log(fmt::format("volume {}: upkeep failed: {}", name_, error.what()));
  }
}

VolumeStats Volume::stats() {
  const Counters& c = *counters_;
  VolumeStats stats;
  stats.name = name_;
  stats.current_version = current_;
  stats.size_bytes = size_bytes();
  stats.reads = c.reads;
  stats.read_bytes = c.read_bytes;
  stats.writes = c.writes;
  stats.write_bytes = c.write_bytes;
  stats.trims = c.trims;
  stats.trim_bytes = c.trim_bytes;
  stats.zeroes = c.zeroes;
  stats.zero_bytes = c.zero_bytes;
  stats.flushes = c.flushes;
  stats.errors = c.errors;
  stats.first_writes = c.first_writes;
  stats.template_reads = c.template_reads;
  stats.template_read_bytes = c.template_read_bytes;
  stats.data_file_reads = c.data_file_reads;
  stats.data_file_read_bytes = c.data_file_read_bytes;
  const MapStats map = map_->stats();
  stats.commits = map.commits;
  stats.log_bytes = map.log_bytes;
  stats.log_garbage_bytes = map.log_garbage_bytes;
  stats.log_generation = map.log_generation;
  stats.checkpoints = map.checkpoints;
  stats.compactions = map.compactions;
  stats.map_bytes = map.memory_bytes;
  stats.map_loads = map.loads;
  stats.map_evictions = map.evictions;
  return stats;
}

}  // namespace tplstore
