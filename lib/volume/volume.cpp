// The life of a volume: making, opening, recovering, versions, upkeep, closing.
#include "volume/volume.h"

#include <algorithm>
#include <cerrno>

#include "backend/layout.h"
#include "base/names.h"
#include "map/creation.h"
#include "volume/counters.h"

namespace tplstore {

using Clock = std::chrono::steady_clock;

namespace {

// How long a volume's upkeep gives back space before other volumes have their turn.
constexpr std::chrono::milliseconds kReclaimBudget{100};
constexpr std::chrono::milliseconds kCloseReclaimBudget{1000};
// A VM that wants the volume meanwhile waits for this.
constexpr std::chrono::milliseconds kUnownedReclaimBudget{100};
// How long a fork that was removed elsewhere may go unnoticed.
constexpr std::chrono::seconds kForksInterval{10};

}  // namespace

std::string Volume::folder_of(const Uuid& volume) {
  return fmt::format("{}/{}", paths::kVolumes, volume.text());
}

namespace {

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

// The objects of a volume whose map is there. The header comes last: without it there is none, and
// where it is, all others are, whatever a crash left of their making or removal.
void create_objects(Backend& backend, const std::string& folder, uint32_t current,
                    const VolumeHeader& header) {
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

}  // namespace

void Volume::create(Backend& backend, const Uuid& volume, uint64_t size_bytes,
                    const TemplateImage* base) {
  create_map(backend, folder_of(volume), volume, size_bytes);
  create_objects(backend, folder_of(volume), 1, new_header(volume, size_bytes, base));
}

void Volume::create_fork(const std::string& number_or_name, const Uuid& fork) {
  const std::lock_guard guard(pin_mutex_);
  const VersionInfo base = version(number_or_name);
  if (flattens_)
    fail(EBUSY, fmt::format("volume {}", name_), "is being flattened; try again after that");
  map_->change_forks(PinRecord{base.number, fork});
  try {
    map_->commit();
    const std::string folder = folder_of(fork);
    map_->create_fork(base.number, folder, fork);
    VolumeHeader header = new_header(fork, base.size_bytes, template_.get());
    header.incompatible_features = kFeatureFork;
    header.parent = uuid_;
    header.parent_version = base.number;
    create_objects(backend_, folder, base.number + 1, header);
  } catch (...) {
    // Otherwise the pin of a fork that is not there is dropped later.
    attempt("a fork that failed could not be undone", [&] {
      backend_.remove_folder(folder_of(fork));
      map_->change_forks(UnpinRecord{fork});
    });
    throw;
  }
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

// Does `work`, or the log says what failed, and why.
template <typename Work>
void Volume::attempt(const char* failure, Work work) noexcept {
  try {
    work();
  } catch (const std::exception& error) {
    try {
      environment_.log(fmt::format("volume {}: {}: {}", name_, failure, error.what()));
    } catch (const std::exception&) {
      // There is no memory for a line.
    }
  }
}

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
      WriterLock::acquire(volume->backend_, volume->folder_, uuid, name, peer, environment.log);
  const uint64_t size_before = volume->lock_->header().true_size_bytes;
  std::exception_ptr failure;
  volume->attempt("cannot be opened", [&] {
    try {
      volume->open_template(volume->lock_->header());
      volume->recover(Reserve::kDeletions);
    } catch (...) {
      failure = std::current_exception();
      throw;
    }
  });
  if (!failure) return volume;
  volume->attempt("its header says that it is in use, which the next opening corrects",
                  [&] { volume->lock_->restore(size_before); });
  std::rethrow_exception(failure);
}

void Volume::recover(Reserve draws_on) {
  map_ = VolumeMap::open(backend_, folder_, uuid_, Access::kWrite);
  map_in_use_ = map_.get();
  // What the last life wrote may be in the page cache only, and after a failed sync it stays there
  // for good: it must not go away again after it has been served.
  const uint32_t current = map_->current();
  files_->remove_above(current);
  if (!map_->recovery().was_closed_cleanly) {
    environment_.log(fmt::format("volume {}: was not closed, recovered it", name_));
    for (const uint32_t version : map_->recovery().replayed_versions)
      files_->settle_existing(version);
    files_->settle_existing(current);
  }
  space_ =
      std::make_unique<SpaceReclaimer>(backend_, folder_, map_, *files_,
                                       SpaceReclaimer::Guards{quiesce_, range_locks_, cell_users_});
  use_sources();
  use_current(files_->begin(current));
  map_->start_writing([files = files_.get()] { files->sync_written(); },
                      [space = space_.get()] { space->sync_holes(); }, draws_on);
  if (disk_size(lock_->header()) != size_bytes()) lock_->resize(size_bytes());
}

std::optional<VersionForReader> Volume::freeze_unowned(const VolumeEnvironment& environment,
                                                       const Uuid& uuid, const std::string& name) {
  std::unique_ptr<Volume> volume(new Volume(environment, uuid, name));
  volume->lock_ = WriterLock::borrow(volume->backend_, volume->folder_, uuid, name);
  if (!volume->lock_) return std::nullopt;
  volume->open_template(volume->lock_->header());
  // On a full disk what is kept for opening is for those who can make room.
  volume->recover(Reserve::kNone);
  // Versions of readers before, or every one that comes while there is no owner would leave one.
  volume->attempt("not all space could be given back",
                  [&] { volume->space_->run(kUnownedReclaimBudget); });
  VersionForReader frozen = volume->freeze_for_reader();
  volume->map_->close();
  volume->files_->remove_prepared();
  return frozen;
}

std::unique_ptr<Volume> Volume::open_for_reading(const VolumeEnvironment& environment,
                                                 const Uuid& uuid, const std::string& name) {
  std::unique_ptr<Volume> volume(new Volume(environment, uuid, name));
  volume->readers_ = volume->backend_.try_lock(readers_name(volume->folder_), LockMode::kShared);
  if (!volume->readers_) fail(EBUSY, fmt::format("volume {}", name), "is being removed");
  volume->open_template(read_header(volume->backend_, volume->folder_, uuid));
  volume->map_ = VolumeMap::open(volume->backend_, volume->folder_, uuid, Access::kRead);
  volume->map_in_use_ = volume->map_.get();
  volume->size_bytes_ = volume->map_->ask(&MapState::current_record).size_bytes;
  volume->use_sources();
  return volume;
}

// Which volumes' files the versions' blocks are in.
void Volume::use_sources() {
  std::vector<DataFiles::Ancestor> ancestors;
  for (const SourceRow& row :
       map_->ask([](const MapState& state) { return state.table().sources; }))
    ancestors.push_back({row.last, folder_of(row.volume)});
  files_->set_ancestors(std::move(ancestors));
}

void Volume::use_current(DataFile& file) noexcept {
  current_ = map_->current();
  size_bytes_ = map_->ask([](const MapState& state) { return state.current().size_bytes; });
  current_file_ = &file;
}

void Volume::close() noexcept {
  if (!lock_) return;
  // What takes longer, or fails, goes on when the volume is opened again.
  attempt("not all space could be given back", [this] {
    space_->sweep_all();
    space_->run(kCloseReclaimBudget);
  });
  attempt("could not be closed cleanly, the next opening recovers it", [this] {
    map_->close();
    attempt("the next version's file could not be removed", [this] { files_->remove_prepared(); });
    lock_->restore(size_bytes());
  });
  lock_.reset();
}

std::shared_ptr<VolumeMap> Volume::map() {
  const std::lock_guard guard(map_exchange_mutex_);
  return map_;
}

// Of a log that the volume's owner has compacted away meanwhile, a reader reads the new one. False
// when this is the owner: then nobody else does that.
bool Volume::reload_map(const VolumeMap* old) {
  if (lock_) return false;
  std::shared_ptr<VolumeMap> replaced;
  {
    const std::lock_guard guard(map_exchange_mutex_);
    if (map_.get() != old) return true;
    std::shared_ptr<VolumeMap> fresh = VolumeMap::open(backend_, folder_, uuid_, Access::kRead);
    replaced = std::exchange(map_, std::move(fresh));
    map_in_use_ = map_.get();
  }
  cell_users_.wait_for_requests();
  return true;
}

// --- versions

VersionInfo Volume::info_of(const VersionRecord& record, bool is_current) {
  VersionInfo info;
  info.number = record.number;
  info.name = record.name;
  info.note = record.note;
  info.parent = record.parent;
  info.created_ns = record.created_ns;
  info.size_bytes = record.size_bytes;
  info.is_hidden = record.is_hidden();
  info.is_current = is_current;
  info.children = record.children;
  info.identity = record.origin.is_nil() ? VersionIdentity{uuid_, record.number} : record.origin;
  return info;
}

std::vector<VersionInfo> Volume::versions() {
  std::vector<VersionInfo> list;
  with_map([&](VolumeMap& map) {
    list.clear();
    for (const VersionRecord& record : map.versions()) list.push_back(info_of(record, false));
    list.push_back(info_of(map.ask(&MapState::current_record), true));
    for (VersionInfo& info : list) info.own_bytes = map.own_blocks(info.number) * kBlockBytes;
    for (const Pin& pin : map.pins()) {
      const auto at = std::lower_bound(
          list.begin(), list.end(), pin.version,
          [](const VersionInfo& info, uint32_t number) { return info.number < number; });
      if (at != list.end() && at->number == pin.version) at->forks.push_back(pin.fork.text());
    }
  });
  return list;
}

VersionInfo Volume::version(const std::string& number_or_name) {
  const auto record = map()->ask(&MapState::record_of, number_or_name);
  if (!record || record->is_hidden())
    fail(ENOENT, fmt::format("volume {}", name_),
         "has no version '{}'; see 'tplstore version list {}'", number_or_name, name_);
  return info_of(*record, false);
}

VersionInfo Volume::version_for_reader(uint32_t number) {
  const auto record = map()->ask(&MapState::record_of, std::to_string(number));
  if (!record || record->is_removed())
    fail(ENOENT, fmt::format("volume {}", name_), "has no version {} any more", number);
  return info_of(*record, false);
}

void Volume::check_is_free(const std::string& version_name) {
  if (!version_name.empty() && map()->ask(&MapState::record_of, version_name))
    fail(EEXIST, fmt::format("volume {}", name_), "has a version '{}' already", version_name);
}

VersionRecord Volume::freeze(VersionChange& change, const FreezeRequest& request) {
  check_is_free(request.name);
  const uint32_t next = current_ + 1;
  const uint64_t parent_bytes = map_->ask([&](const MapState& state) {
    const VersionRecord* parent = state.table().find(request.parent);
    return parent == nullptr ? 0 : parent->size_bytes;
  });
  files_->prepare(next, std::max(size_bytes(), parent_bytes));
  LogReservation reserved(*map_, VersionChange::kFreezeRecords);
  uint32_t number = 0;
  quiesce_.close();
  try {
    number = change.freeze(request, reserved);
  } catch (...) {
    quiesce_.open();
    throw;
  }
  use_current(files_->advance(next));
  quiesce_.open();
  map_->commit();
  if (disk_size(lock_->header()) != size_bytes()) lock_->resize(size_bytes());
  return map_->ask(&MapState::record_of, std::to_string(number)).value();
}

VersionInfo Volume::freeze(const FreezeRequest& request) {
  VersionRecord frozen;
  {
    VersionChange change = map_->change_versions();
    frozen = freeze(change, request);
  }
  environment_.wake();
  VersionInfo info = info_of(frozen, false);
  info.own_bytes = map_->own_blocks(frozen.number) * kBlockBytes;
  return info;
}

VersionForReader Volume::freeze_for_reader() {
  hide_left_versions(*map_, backend_, folder_);
  VersionChange change = map_->change_versions();
  if (map_->ask([](const MapState& state) { return state.table().for_readers().size(); }) >=
      kReadersOfCurrentMax)
    fail(EBUSY, fmt::format("volume {}", name_),
         "is being read as {}@current by {} connections, and can be by no more; disconnect one, or "
         "make a version and read that",
         name_, kReadersOfCurrentMax);
  // Held before the version is there: so it is never without its reader.
  VersionForReader frozen{current_, hold_version(current_)};
  FreezeRequest request;
  request.for_reader = true;
  freeze(change, request);
  environment_.wake();
  return frozen;
}

void Volume::check_new_version(const NewVersion& request) {
  if (!request.name.empty()) check_name("version", request.name);
  if (request.note.size() > kNoteBytesMax)
    fail(EINVAL, fmt::format("volume {}", name_), "a note has at most {} bytes", kNoteBytesMax);
  check_is_free(request.name);
}

VersionInfo Volume::create_version(const NewVersion& request) {
  check_new_version(request);
  return freeze({request.name, request.note, request.origin, 0});
}

VersionInfo Volume::rollback(const std::string& number_or_name) {
  return freeze({"", "", {}, version(number_or_name).number});
}

std::vector<VersionInfo> Volume::remove_versions(const std::vector<std::string>& wanted) {
  const std::string object = fmt::format("volume {}", name_);
  std::vector<VersionInfo> removed;
  std::vector<std::unique_ptr<HeldLock>> holds;
  {
    VersionChange change = map_->change_versions();
    for (const std::string& number_or_name : wanted) {
      if (number_or_name == std::to_string(current_))
        fail(EBUSY, object,
             "version {} is current, and cannot be removed: roll back to another one first, or "
             "remove the volume",
             number_or_name);
      VersionInfo info = version(number_or_name);
      const bool is_twice = std::any_of(removed.begin(), removed.end(), [&](const VersionInfo& v) {
        return v.number == info.number;
      });
      if (is_twice) continue;
      auto hold = backend_.try_lock(readers_name(folder_), LockMode::kExclusive, info.number);
      if (!hold)
        fail(EBUSY, object, "version {} is being read; disconnect that first", number_or_name);
      holds.push_back(std::move(hold));
      removed.push_back(std::move(info));
    }
    std::vector<uint32_t> numbers;
    for (const VersionInfo& info : removed) numbers.push_back(info.number);
    change.hide(numbers);
  }
  // Who opens one of them after this finds it gone.
  map_->commit();
  for (VersionInfo& info : removed) info.is_hidden = true;
  environment_.wake();
  return removed;
}

std::unique_ptr<HeldLock> Volume::hold_version(uint32_t version) {
  auto hold = backend_.try_lock(readers_name(folder_), LockMode::kShared, version);
  if (!hold) fail(EBUSY, fmt::format("{}@{}", name_, version), "is being removed");
  return hold;
}

void Volume::resize(uint64_t size_bytes) {
  VersionChange change = map_->change_versions();
  if (size_bytes <= this->size_bytes())
    fail(EINVAL, fmt::format("volume {}", name_), "has {} bytes, and can only grow; {} is not more",
         this->size_bytes(), size_bytes);
  files_->grow(current_, size_bytes);
  change.resize(size_bytes);
  size_bytes_ = size_bytes;
  map_->commit();
  lock_->resize(size_bytes);
}

// --- upkeep

void Volume::maintain(bool evicts) noexcept {
  const auto say = [this](const char* why) {
    environment_.log(fmt::format("volume {}: upkeep failed: {}", name_, why));
  };
  if (lock_) {
    if (map_->wants(VolumeMap::Upkeep::kCommit))
      committing_.attempt(say, [this] { map_->commit(); });
    if (map_->wants(VolumeMap::Upkeep::kCheckpoint))
      checkpointing_.attempt(say, [this] { map_->checkpoint(); });
    if (map_->wants(VolumeMap::Upkeep::kCompaction))
      compacting_.attempt(say, [this] { map_->compact(); });
    preparing_.attempt(say, [this] {
      const VersionChange change = map_->change_versions();
      files_->prepare(current_ + 1, size_bytes());
    });
    reclaiming_.attempt(say, [this] {
      if (Clock::now() >= look_for_forks_at_) {
        look_for_forks_at_ = Clock::now() + kForksInterval;
        drop_dead_pins();
      }
      if (space_->run(kReclaimBudget)) environment_.wake();
    });
  }
  if (!evicts) return;
  const auto map = this->map();
  while (map->evict_some()) {
  }
}

uint64_t Volume::requests() const {
  using Line = Counters::Line;
  uint64_t sum = 0;
  for (const auto counter :
       {&Line::reads, &Line::writes, &Line::trims, &Line::zeroes, &Line::flushes, &Line::extents})
    sum += counters_->total(counter);
  return sum;
}

VolumeStats Volume::stats() {
  using Line = Counters::Line;
  VolumeStats stats;
  stats.name = name_;
  stats.current_version = current_;
  stats.size_bytes = size_bytes();
  stats.reads = counters_->total(&Line::reads);
  stats.read_bytes = counters_->total(&Line::read_bytes);
  stats.writes = counters_->total(&Line::writes);
  stats.write_bytes = counters_->total(&Line::write_bytes);
  stats.trims = counters_->total(&Line::trims);
  stats.trim_bytes = counters_->total(&Line::trim_bytes);
  stats.zeroes = counters_->total(&Line::zeroes);
  stats.zero_bytes = counters_->total(&Line::zero_bytes);
  stats.flushes = counters_->total(&Line::flushes);
  stats.errors = counters_->total(&Line::errors);
  stats.first_writes = counters_->total(&Line::first_writes);
  stats.template_reads = counters_->total(&Line::template_reads);
  stats.template_read_bytes = counters_->total(&Line::template_read_bytes);
  stats.data_file_reads = counters_->total(&Line::data_file_reads);
  stats.data_file_read_bytes = counters_->total(&Line::data_file_read_bytes);
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
