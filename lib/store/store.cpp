// A store as a whole: its identity, its background threads, its exports, what it occupies.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>

#include "backend/layout.h"
#include "backend/lock.h"
#include "backend/open_backend.h"
#include "base/host.h"
#include "base/names.h"
#include "base/units.h"
#include "store/store_impl.h"
#include "store/volume_disk.h"
#include "template/store_identity.h"
#include "template/template_catalog.h"
#include "template/template_disk.h"

namespace tplstore {
namespace {

constexpr int64_t kUpkeepNs = 250'000'000;
// How late a volume may go that was removed and kept for a while.
constexpr int64_t kExpiryNs = 60'000'000'000;
constexpr std::chrono::seconds kLookAtSpaceInterval{5};
constexpr size_t kListedVersionsMax = 4096;
constexpr size_t kSegmentsSampled = 256;

}  // namespace

// --- a store

void Store::init(const std::string& location, const std::string& segments) {
  if (!segments.empty()) check_apart(segments, location);
  const auto backend = make_backend(location);
  if (!backend->list("").empty()) {
    const bool is_store = backend->get(kIdentityObject, kSlotBytes).has_value();
    if (is_store) fail(EEXIST, location, "is a store already");
    fail(ENOTEMPTY, location, "is not empty; choose a new or empty directory for the store");
  }
  // The secret in it is for the owner alone, whoever else may read the store.
  init(*backend, *open_backend(location, {.is_private = true}), segments);
}

void Store::init(Backend& backend) { init(backend, backend, ""); }

void Store::init(Backend& backend, Backend& for_identity, const std::string& segments) {
  const std::string lock_object(paths::kGcLock);
  backend.put_new(lock_object, {});
  const auto lock = backend.try_lock(lock_object, LockMode::kShared);
  if (lock) check_lock_is_seen(backend, lock_object);
  const StoreIdentity identity = make_identity(segments.empty() ? 0 : kFeatureOriginApart);
  if (!segments.empty()) {
    const OriginPlace place{1, random_uuid(), absolute_location(segments)};
    claim_origin(*make_backend(segments), identity.uuid, place.id);
    put_origin_place(backend, place);
  }
  if (!put_new_identity(for_identity, identity))
    fail(EEXIST, backend.describe(), "is a store already");
}

std::unique_ptr<Store> Store::open(const std::string& location, const StoreOptions& options) {
  return std::make_unique<Store>(
      open_backend(location, {.direct = options.io == IoMode::kDirect, .log = options.log}),
      options);
}

Store::Store(std::unique_ptr<Backend> backend, const StoreOptions& options)
    : impl_(std::make_unique<Impl>(std::move(backend), options)) {
  try {
    impl_->origin.check();
  } catch (const Error& error) {
    impl_->options.log(error);  // whoever needs no template can go on
  }
  if (options.has_tier) impl_->make_tier();
}

Store::Impl::Impl(std::unique_ptr<Backend> backend_of, const StoreOptions& options_of)
    : backend(std::move(backend_of)),
      options(options_of),
      identity(load_identity(*backend)),  // says what is wrong with it
      boot(make_boot()),
      registry(environment(), options_of.reconnect_grace) {
  if (boot) blocks.set_cells(boot->memory(), identity.secret);
}

std::unique_ptr<Boot> Store::Impl::make_boot() {
  if (options.boot.cap_bytes == 0) return nullptr;
  BootOptions boot_options = options.boot;
  boot_options.log = options.log;
  return std::make_unique<Boot>(std::move(boot_options), *backend, identity.secret);
}

Store::~Store() {
  impl_->end_upkeep();
  if (impl_->boot) impl_->boot->stop();
  if (impl_->tier) impl_->tier->stop();
}

void Store::Impl::end_upkeep() {
  for (Alarm* alarm : {&upkeep_alarm, &expiry_alarm}) alarm->stop();
  for (std::thread* thread : {&upkeep, &expiry})
    if (thread->joinable()) thread->join();
}

void Store::start() {
  if (impl_->tier) impl_->tier->start();
  impl_->use_copies();
  if (impl_->boot) impl_->boot->start();
  impl_->upkeep = std::thread([this] { impl_->run_upkeep(); });
  impl_->expiry = std::thread([this] { impl_->run_expiry(); });
}

void Store::stop() {
  impl_->stop.request_stop();
  impl_->registry.keep_records();
}

Left Store::leave() {
  if (impl_->is_leaving.exchange(true))
    fail(EALREADY, backend().describe(), "its server is being stopped already");
  struct AtTheEnd {
    ~AtTheEnd() { has_left = true; }
    std::atomic<bool>& has_left;
  } const at_the_end{impl_->has_left};
  stop();
  impl_->end_upkeep();
  // The most of what must be written is so while the VMs go on: they wait for the rest only.
  for (const auto& attachment : impl_->registry.all_open()) {
    Volume& volume = attachment->volume();
    try {
      volume.checkpoint();
    } catch (const Error&) {
      // Closing it says so.
    }
  }
  return impl_->registry.leave();
}

bool Store::is_leaving() const { return impl_->is_leaving; }
bool Store::has_left() const { return impl_->has_left; }

Backend& Store::backend() { return *impl_->backend; }
Tier* Store::tier() { return impl_->tier.get(); }

// --- the tier

void Store::Impl::make_tier() {
  TierOptions tier_options;
  tier_options.store = backend.get();
  tier_options.origin = &origin;
  tier_options.identity = identity;
  tier_options.host = this_host();
  tier_options.log = options.log;
  tier_options.fill_bytes_per_second = options.tier_fill_bytes_per_second;
  tier_options.keep_ns = std::chrono::nanoseconds(options.tier_keep).count();
  tier_options.open_directory = [direct = options.io == IoMode::kDirect,
                                 log = options.log](const std::string& path) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error))
      fail(error ? error.value() : ENOENT, path, "there is no such directory");
    return open_backend(path, {.direct = direct, .log = log});
  };
  tier_options.look_again = [this](const Hash128& segment) { blocks.look_again(segment); };
  const std::filesystem::path state = options.tier_state.empty()
                                          ? TierTable::default_folder(identity.uuid)
                                          : std::filesystem::path(options.tier_state);
  tier = std::make_unique<Tier>(std::move(tier_options), state);
}

// As long as this host has no tier, reading costs nothing more.
void Store::Impl::use_copies() {
  if (has_copies || !tier || !tier->has_table()) return;
  blocks.set_copies(*tier, identity.secret);
  has_copies = true;
}

Tier::WarmResult Store::warm_template(const std::string& name, const Tier::Progress& progress) {
  if (!impl_->tier) fail(EINVAL, name, "this store was opened without a tier");
  check_name("template", name);
  const HeldManifest held = hold_manifest(*impl_->backend, name);
  std::vector<WantedSegment> segments;
  for (const ManifestSegment& segment : held.manifest.segments)
    segments.push_back({segment.name, segment.block_count});
  return impl_->tier->warm(segments, progress);
}

size_t Store::repair_template(const std::string& name, const std::vector<Hash128>& segments) {
  if (!impl_->tier) fail(EINVAL, name, "this store was opened without a tier");
  check_name("template", name);
  // Nobody takes the segments for garbage meanwhile.
  const HeldManifest held = hold_manifest(*impl_->backend, name);
  const auto gc_lock = impl_->share_gc_lock();
  const HashSecret secret = load_identity(*impl_->backend).secret;
  size_t mended = 0;
  for (const Hash128& segment : segments) {
    auto sound = impl_->tier->sound_copy(segment);
    if (!sound) continue;
    mend_segment(impl_->origin, segment, std::move(*sound), secret);
    ++mended;
  }
  return mended;
}

// --- the boot cache

Boot* Store::boot() { return impl_->boot.get(); }

BootStatus Store::show_boot(const std::string& name) {
  const auto disk = impl_->boot_disks.named(name);
  return impl_->boot ? impl_->boot->show(*disk) : show_stored_boots(*impl_->backend, *disk);
}

std::vector<BootStatus> Store::show_boots() {
  std::vector<BootStatus> boots;
  const auto add = [&](const auto& make_disk) {
    try {
      const std::shared_ptr<BootDisk> disk = make_disk();
      boots.push_back(impl_->boot ? impl_->boot->show(*disk)
                                  : show_stored_boots(*impl_->backend, *disk));
    } catch (const Error& error) {
      if (error.code() != ENOENT) impl_->options.log(error);  // it is just being removed
    }
  };
  for (const TemplateInfo& info : list_templates(*impl_->backend))
    if (!info.uuid.is_nil()) add([&] { return impl_->boot_disks.of_template(info.name); });
  impl_->for_each_name(
      [&](const std::string& name, const Uuid& uuid) {
        add([&] { return impl_->boot_disks.of_volume(name, uuid); });
      },
      [&](const std::string&, const Error& error) { impl_->options.log(error); });
  return boots;
}

BootWindow Store::end_boot(const std::string& volume) {
  const Uuid uuid = impl_->uuid_of(volume);
  std::optional<BootWindow> ended;
  if (impl_->boot) ended = impl_->boot->done(uuid);
  if (!ended) fail(EINVAL, fmt::format("volume {}", volume), "is not booting");
  return *ended;
}

BootWarm Store::warm_boot(const std::string& name,
                          const std::function<void(uint64_t done_bytes, uint64_t bytes)>& progress,
                          const std::function<bool()>& interrupted) {
  const auto disk = impl_->boot_disks.named(name);
  if (!impl_->boot)
    fail(EINVAL, name, "there is no boot cache: boot-cache is 0, or no server runs");
  return impl_->boot->warm(*disk, progress, interrupted);
}

void Store::forget_boot(const std::string& name) {
  const auto disk = impl_->boot_disks.named(name);
  if (impl_->boot)
    impl_->boot->forget(*disk);
  else
    forget_stored_boots(*impl_->backend, *disk);
}

uint64_t Store::remove_boot_orphans() {
  std::set<Uuid> templates;
  for (const TemplateInfo& info : list_templates(*impl_->backend)) {
    // Whose a profile is that belongs to one that cannot be read, nobody knows.
    if (info.uuid.is_nil()) return 0;
    templates.insert(info.uuid);
  }
  return tplstore::remove_boot_orphans(*impl_->backend, templates);
}

// --- where the segments are

std::string Store::segments_location() { return impl_->origin.location(); }
TemplateStorage Store::templates() { return {*impl_->backend, impl_->origin}; }

std::unique_ptr<Backend> Store::Impl::open_origin(const std::string& location) {
  return open_backend(location, {.direct = options.io == IoMode::kDirect, .log = options.log});
}

OriginMove Store::move_origin(const std::string& location,
                              const std::function<void(uint64_t done, uint64_t segments)>& progress,
                              const std::function<bool()>& interrupted) {
  const std::string store = impl_->backend->describe();
  const bool is_back = is_same_location(location, store);
  if (!is_back) {
    check_apart(location, store);
    make_backend(location);
  }
  const OriginMoveOptions move{
      [this](const std::string& place) { return impl_->open_origin(place); }, progress,
      interrupted};
  return tplstore::move_origin(*impl_->backend, is_back ? "" : absolute_location(location), move);
}

std::string Store::leave_former_origins() {
  return tplstore::leave_former_origins(
      *impl_->backend, [this](const std::string& place) { return impl_->open_origin(place); });
}

void Store::Impl::run_upkeep() {
  const auto say = [this](const char* why) { options.log(fmt::format("upkeep failed: {}", why)); };
  while (upkeep_alarm.wait(kUpkeepNs)) {
    upkeep_of_all.attempt(say, [this] {
      use_copies();
      blocks.free_unused_copies();
      if (boot) {
        const bool is_booting = boot->stats().windows_open > 0;
        if (was_booting && !is_booting) blocks.forget_tables();
        was_booting = is_booting;
      }
      const bool evicts = node_memory_bytes() > options.map_cache_bytes;
      for (const auto& attachment : registry.all_open()) attachment->volume().maintain(evicts);
      if (evicts)
        for (const auto& volume : registry.readers()) volume->maintain(evicts);
    });
    looking_at_space.attempt(say, [this] { look_at_space(); });
  }
}

// A thread of its own: a file system may take long to remove a large file, and what VMs write must
// not wait for its upkeep meanwhile.
void Store::Impl::run_expiry() {
  Chore removing;
  const auto say = [this](const char* why) {
    options.log(fmt::format("removing what was kept long enough failed: {}", why));
  };
  int64_t wait_ns = 0;
  while (expiry_alarm.wait(wait_ns)) {
    wait_ns = kExpiryNs;
    removing.attempt(say, [this] { remove_expired(); });
  }
}

void Store::Impl::look_at_space() {
  const auto now = std::chrono::steady_clock::now();
  if (now < look_at_space_at) return;
  look_at_space_at = now + kLookAtSpaceInterval;
  if (const auto space = backend->space())
    if (const auto line = low_water.look(backend->describe(), *space))
      options.log(line->level, line->text);
}

std::shared_ptr<TemplateImage> Store::Impl::open_template(const std::string& name) {
  const std::lock_guard guard(templates_mutex);
  std::erase_if(templates, [](const auto& known) { return known.second.expired(); });
  if (const auto known = templates.find(name); known != templates.end())
    if (auto image = known->second.lock()) return image;
  auto image = TemplateImage::open(*backend, blocks, name);
  templates[name] = image;
  return image;
}

// --- exports

namespace {

// Who has a volume, as far as its header and its lock tell; nothing is taken to find out.
std::string use_of(Backend& backend, const std::string& folder, const VolumeHeader& header) {
  const auto writer = writer_of(header);
  const bool is_locked = backend.is_locked(lock_name(folder));
  if (!writer) return is_locked ? "; being opened or closed" : "";
  const std::string who = fmt::format("{} of {} since {}", writer->peer, writer->host_name,
                                      format_time(writer->since_ns));
  return is_locked ? "; in use by " + who : "; its server died, in use before by " + who;
}

}  // namespace

// The frozen versions of a volume, from its map alone: who removes the volume meanwhile need not
// wait.
std::vector<VersionRecord> Store::Impl::versions_of(const Uuid& uuid) {
  if (const auto open = registry.find_open(uuid)) return open->volume().versions().records();
  return VolumeMap::open(*backend, volume_folder(uuid), uuid, Access::kRead)->versions();
}

std::vector<ExportInfo> Store::list_exports() {
  Backend& backend = *impl_->backend;
  std::vector<ExportInfo> exports;
  std::vector<ExportInfo> versions;
  for (const std::string& name : backend.list(std::string(paths::kVolumeNames))) {
    try {
      const Uuid uuid = impl_->uuid_of(name);
      const std::string folder = volume_folder(uuid);
      const VolumeHeader header = read_header(backend, folder, uuid);
      const std::string template_name = template_of(header);
      exports.push_back(
          {fmt::format("{}@current", name),
           fmt::format("volume of {}{}, write as {}{}", format_size(disk_size(header)),
                       template_name.empty() ? "" : " from template " + template_name, name,
                       use_of(backend, folder, header))});
      for (const VersionRecord& version : impl_->versions_of(uuid)) {
        if (version.is_hidden() || versions.size() == kListedVersionsMax) continue;
        versions.push_back({fmt::format("{}@{}", name, version.number),
                            fmt::format("version {} of {}, {}{}, read-only", version.number, name,
                                        format_time(version.created_ns),
                                        version.name.empty() ? "" : ", '" + version.name + "'")});
      }
    } catch (const Error& error) {
      // What is damaged must not hide the rest; what is not there was removed since it was listed.
      if (error.code() != ENOENT)
        impl_->options.log(level_of(error), fmt::format("volume {}: {}", name, error.what()));
    }
  }
  exports.insert(exports.end(), std::make_move_iterator(versions.begin()),
                 std::make_move_iterator(versions.end()));
  for (const TemplateInfo& info : list_templates(*impl_->backend)) {
    if (info.state != "ready") continue;
    exports.push_back({fmt::format("template/{}", info.name),
                       fmt::format("template of {}, read-only", format_size(info.size_bytes))});
  }
  return exports;
}

std::unique_ptr<Disk> Store::open_export(std::string_view export_name, const Peer& peer,
                                         bool only_reads) {
  ExportName name = parse_export_name(export_name);
  if (only_reads && name.kind == ExportName::Kind::kCurrent)
    name.kind = ExportName::Kind::kCurrentReader;
  if (name.kind == ExportName::Kind::kTemplate)
    return std::make_unique<TemplateDisk>(impl_->open_template(name.name));
  const Uuid uuid = impl_->uuid_of(name.name);
  if (name.kind == ExportName::Kind::kCurrent) {
    Peer vm = peer;
    vm.token = name.token;
    vm.is_multi = name.is_multi || (name.token.empty() && vm.pid != 0 &&
                                    (vm.is_multi || impl_->options.same_vm_is_pid));
    auto attachment = impl_->registry.attach(uuid, name.name, vm);
    // While it waited for the volume that may have been removed, but for what its forks need.
    if (impl_->uuid_of(name.name) != uuid)
      fail(EBUSY, fmt::format("volume {}", name.name), "was removed and made again; try again");
    // Whoever gave it may not have come to that yet, and what the VM flushes would have none.
    impl_->sync_names();
    // One that stands by goes on where another host's boot has ended.
    std::unique_ptr<ReadFollower> follower;
    if (impl_->boot && attachment->right().has())
      follower = impl_->boot->follow(impl_->boot_disks.of_volume(name.name, uuid));
    return std::make_unique<CurrentDisk>(std::move(attachment), vm.is_multi, std::move(follower));
  }
  if (name.kind == ExportName::Kind::kCurrentReader) {
    const uint64_t size_bytes = disk_size(read_header(*impl_->backend, volume_folder(uuid), uuid));
    return std::make_unique<CurrentReaderDisk>(
        name.name, size_bytes,
        [impl = impl_.get(), uuid, name = name.name] { return impl->freeze_current(uuid, name); });
  }
  HeldVersion version = impl_->hold_version(uuid, name.name, name.version);
  if (name.kind == ExportName::Kind::kVersion)
    return std::make_unique<VersionDisk>(std::move(version));
  return std::make_unique<ChangesDisk>(impl_->hold_version(uuid, name.name, name.since),
                                       std::move(version));
}

void Store::checkpoint(bool compacts) {
  for (const auto& attachment : impl_->registry.all_open()) {
    if (compacts) {
      attachment->volume().compact_log();
    } else {
      attachment->volume().checkpoint();
    }
  }
}

StoreStats Store::stats() {
  StoreStats stats;
  for (const auto& attachment : impl_->registry.all_open()) {
    VolumeStats volume = attachment->volume().stats();
    volume.connections = impl_->registry.connections(attachment->uuid());
    stats.volumes.push_back(std::move(volume));
  }
  stats.map_cache_bytes = node_memory_bytes();
  stats.map_cache_max_bytes = impl_->options.map_cache_bytes;
  for (size_t i = 0; i < kRequestKindCount; ++i)
    stats.durations[i] = impl_->times.total(static_cast<RequestKind>(i));
  if (impl_->tier) stats.tier = impl_->tier->stats();
  if (impl_->boot) {
    const BootStats boot = impl_->boot->stats();
    const CellMemoryStats& memory = boot.memory;
    stats.boot_cache = {true,
                        memory.cap,
                        memory.used,
                        memory.peak,
                        memory.slots,
                        memory.hits,
                        memory.misses,
                        memory.fills,
                        memory.fill_bytes,
                        memory.waits,
                        memory.evictions,
                        memory.refused,
                        memory.verify_failures,
                        boot.windows_open,
                        memory.prefetch_bytes,
                        memory.prefetch_used};
  }
  return stats;
}

bool Store::Impl::is_foreign(const std::string& object, const Error& error) {
  const bool is_link = error.code() == ELOOP, is_folder = error.code() == EISDIR;
  if (!is_link && !is_folder && error.code() != ENXIO) return false;
  const std::lock_guard guard(foreign_mutex);
  if (foreign.insert(object).second)
    options.log(fmt::format("{}: {}: no part of the store, and left alone", object,
                            is_link     ? "a symbolic link"
                            : is_folder ? "a folder, or no regular file"
                                        : "a socket"));
  return true;
}

uint64_t Store::Impl::allocated_below(Backend& in, const std::string& folder) {
  uint64_t bytes = 0;
  for (const std::string& part : in.list(folder)) {
    const std::string name = fmt::format("{}/{}", folder, part);
    bytes += allocated_at(in, name);
  }
  return bytes;
}

// Of an object, or of all that is in a folder.
uint64_t Store::Impl::allocated_at(Backend& in, const std::string& name) {
  try {
    return in.open(name, Access::kRead, Purpose::kMetadata)->allocated_bytes();
  } catch (const Error& error) {
    if (error.code() == EISDIR) return allocated_below(in, name);
    // Just gone since it was listed, or a socket of a server.
    if (error.code() == ENOENT || error.code() == ENXIO || is_foreign(name, error)) return 0;
    // Of a volume that root was making when it was killed, before it was given to the store's
    // owner.
    if (error.code() != EACCES || !name.starts_with(std::string(paths::kVolumes) + "/")) throw;
    options.log(level_of(error), fmt::format("not counted: {}", error.what()));
    return 0;
  }
}

StoreSpace Store::space() {
  StoreSpace space;
  try {
    if (!impl_->origin.location().empty())
      space.template_bytes += impl_->allocated_at(impl_->origin, std::string(paths::kSegments));
  } catch (const Error& error) {
    impl_->options.log(error);
  }
  for (const std::string& name : impl_->backend->list("")) {
    const uint64_t bytes = impl_->allocated_at(*impl_->backend, name);
    if (name == paths::kVolumes)
      space.volume_bytes += bytes;
    else if (name == paths::kTemplates || name == paths::kSegments || name == paths::kTables)
      space.template_bytes += bytes;
    else
      space.other_bytes += bytes;
  }
  return space;
}

// Names are hashes: the segments of the first folders are as good as any.
uint64_t Store::Impl::estimate_segments(Backend& in) {
  const std::vector<std::string> folders = in.list(std::string(paths::kSegments));
  uint64_t bytes = 0;
  size_t segments = 0, seen = 0;
  for (const std::string& folder : folders) {
    const std::string path = fmt::format("{}/{}", paths::kSegments, folder);
    const std::vector<std::string> names = in.list(path);
    const size_t looked_at = std::min(names.size(), kSegmentsSampled - segments);
    uint64_t of_folder = 0;
    for (size_t i = 0; i < looked_at; ++i)
      of_folder += allocated_at(in, fmt::format("{}/{}", path, names[i]));
    // One folder may have more than are looked at.
    if (looked_at > 0)
      bytes +=
          static_cast<uint64_t>(static_cast<double>(of_folder) * static_cast<double>(names.size()) /
                                static_cast<double>(looked_at));
    segments += looked_at;
    ++seen;
    if (segments == kSegmentsSampled) break;
  }
  return seen == 0 ? 0 : bytes / seen * folders.size() + bytes % seen * folders.size() / seen;
}

StoreSpace Store::estimate_space() {
  StoreSpace space;
  for (const VolumeStats& volume : noted_volumes())
    if (volume.usage) space.volume_bytes += volume.usage->occupied_bytes;
  try {
    space.template_bytes += impl_->estimate_segments(impl_->origin);
  } catch (const Error& error) {
    impl_->options.log(error);
  }
  for (const std::string& name : impl_->backend->list("")) {
    if (name == paths::kVolumes || name == paths::kSegments) continue;
    const bool is_templates = name == paths::kTemplates || name == paths::kTables;
    (is_templates ? space.template_bytes : space.other_bytes) +=
        impl_->allocated_at(*impl_->backend, name);
  }
  return space;
}

std::vector<VolumeStats> Store::noted_volumes() {
  std::vector<VolumeStats> volumes;
  impl_->for_each_name(
      [&](const std::string& name, const Uuid& uuid) {
        try {
          const VolumeHeader header = read_header(*impl_->backend, volume_folder(uuid), uuid);
          VolumeStats& volume = volumes.emplace_back();
          volume.name = name;
          volume.is_open = false;
          volume.size_bytes = disk_size(header);
          volume.usage = usage_of(header);
          volume.is_usage_old = is_usage_old(header);
        } catch (const Error& error) {
          // What is damaged must not hide the rest; what is not there is just being removed.
          if (error.code() != ENOENT) impl_->options.log(error);
        }
      },
      [&](const std::string&, const Error& error) { impl_->options.log(error); });
  return volumes;
}

StoreFileSystems Store::file_systems() {
  const auto look = [this](Backend& backend) -> std::optional<FileSystemSpace> {
    try {
      if (const auto space = backend.space())
        return FileSystemSpace{space->total_bytes, space->free_bytes};
    } catch (const Error& error) {
      impl_->options.log(error);
    }
    return {};
  };
  StoreFileSystems spaces;
  spaces.store = look(*impl_->backend);
  if (!impl_->origin.location().empty()) spaces.templates = look(impl_->origin);
  return spaces;
}

LockInfo Store::show_lock(const std::string& volume) {
  const Uuid uuid = impl_->uuid_of(volume);
  if (auto open = impl_->registry.lock_info(uuid)) return *open;
  const std::string folder = volume_folder(uuid);
  const VolumeHeader header = read_header(*impl_->backend, folder, uuid);
  LockInfo info =
      lock_info_of(volume, header, find_claims(*impl_->backend, folder, uuid, header.epoch));
  if (info.state == LockInfo::State::kCrashed && impl_->backend->is_locked(lock_name(folder)))
    info.state = LockInfo::State::kHeld;
  return info;
}

LockStep Store::Impl::change_lock(const std::string& volume, const LockEvent& event,
                                  const Peer& peer) {
  const Uuid uuid = uuid_of(volume);
  if (const auto changed = registry.change_lock(uuid, event, peer)) return *changed;
  return WriterLock::change_record(*backend, volume_folder(uuid), uuid, volume, event, peer);
}

LockInfo Store::break_lock(const std::string& volume, uint64_t epoch) {
  LockInfo before = show_lock(volume);
  fail_unless_broken(volume, impl_->change_lock(volume, LockBreak{epoch}));
  impl_->options.log(
      LogLevel::kNotice,
      fmt::format("volume {}: its lock was broken in epoch {}, by an operator; {} had it", volume,
                  epoch, before.writer ? describe(*before.writer) : "nobody"));
  return before;
}

void Store::let_join(const std::string& volume, std::chrono::seconds duration) {
  if (!impl_->registry.let_join(impl_->uuid_of(volume), duration))
    fail(EINVAL, fmt::format("volume {}", volume), "no VM is connected to it");
}

LockInfo Store::hand_over(const std::string& volume, const std::string& token,
                          std::chrono::seconds duration) {
  if (!is_valid_token(token))
    fail(EINVAL, "writer token", "'{}' must have 1 to 64 of the characters A-Z a-z 0-9 . _ -",
         token);
  Peer destination;
  destination.token = token;
  const LockStep armed = impl_->change_lock(volume, arm_event(destination, duration), destination);
  fail_unless_armed(volume, token, armed);
  return show_lock(volume);
}

LockInfo Store::cancel_hand_over(const std::string& volume) {
  if (impl_->change_lock(volume, LockCancel{}).answer != LockAnswer::kYes)
    fail(EINVAL, fmt::format("volume {}", volume), "it is not being handed over");
  return show_lock(volume);
}

bool Store::is_open(const std::string& volume) {
  return impl_->registry.is_open(impl_->uuid_of(volume));
}

}  // namespace tplstore
