#include "store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "dir_backend.h"
#include "host.h"
#include "names.h"
#include "template_disk.h"
#include "template_store.h"
#include "volume_disk.h"
#include "volume_registry.h"

namespace tplstore {
namespace {

constexpr uint64_t kStoreMagic = 0x3145524f54534c54;  // "TLSTORE1"
constexpr uint32_t kStoreFormat = 1;
constexpr std::chrono::milliseconds kUpkeepInterval{250};
constexpr std::chrono::milliseconds kGcWaitMax{2000};
constexpr size_t kListedVersionsMax = 4096;

// The object "store": what makes a directory a store.
struct StoreIdentity {
  uint64_t checksum;  // of what follows
  uint64_t magic;
  uint32_t format;
  uint32_t reserved;
  uint64_t incompatible_features;
  Uuid uuid;
  int64_t created_ns;
};
static_assert(sizeof(StoreIdentity) == 56);

uint64_t identity_sum(const StoreIdentity& identity) {
  return checksum(bytes_of(identity).subspan(sizeof(uint64_t)));
}

std::string name_object(const std::string& volume) {
  return fmt::format("{}/{}", paths::kVolumeNames, volume);
}

Peer tool_peer() {
  const int64_t pid = getpid();
  return {fmt::format("tplstore tool, pid {}", pid), pid, process_start_time(pid)};
}

void check_identity(Backend& backend) {
  const std::string name(paths::kIdentity);
  const auto content = backend.get(name, kSlotBytes);
  if (!content)
    fail(ENOENT, backend.describe(), "is not a store; make one with 'tplstore init {}'",
         backend.describe());
  StoreIdentity identity{};
  if (content->size() >= sizeof identity) std::memcpy(&identity, content->data(), sizeof identity);
  if (identity.magic != kStoreMagic || identity.checksum != identity_sum(identity))
    fail(EIO, backend.describe(), "damaged: its identity ('{}') fails its checksum", name);
  if (identity.format != kStoreFormat || identity.incompatible_features != 0)
    fail(EINVAL, backend.describe(), "was made by a newer tplstore (format {}); use that one",
         identity.format);
}

}  // namespace

struct Store::Impl {
  Impl(std::unique_ptr<Backend> backend_of, const StoreOptions& options_of)
      : backend(std::move(backend_of)),
        options(options_of),
        registry(VolumeEnvironment{*backend,
                                   [this](const std::string& name) { return open_template(name); },
                                   options.log, [this] { wake(); }}) {}

  std::shared_ptr<TemplateImage> open_template(const std::string& name);
  Uuid uuid_of(const std::string& volume);
  std::unique_ptr<HeldLock> share_gc_lock();
  VolumeInfo info_of(const std::string& name);
  void with_owner(const std::string& name, const std::function<void(Volume&)>& body);
  void wake();
  void run_upkeep();

  const std::unique_ptr<Backend> backend;
  const StoreOptions options;
  std::mutex templates_mutex;
  std::map<std::string, std::weak_ptr<TemplateImage>> templates;
  VolumeRegistry registry;

  std::mutex upkeep_mutex;
  std::condition_variable upkeep_changed;
  bool upkeep_wanted = false;
  bool upkeep_ends = false;
  std::thread upkeep;
};

// --- a store

void Store::init(const std::string& directory) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
    fail_errno(errno, directory, "cannot make the directory of the store");
  DirBackend backend(directory, false, [](const std::string&) {});
  if (!backend.list("").empty()) {
    const bool is_store = backend.get(std::string(paths::kIdentity), kSlotBytes).has_value();
    if (is_store) fail(EEXIST, directory, "is a store already");
    fail(ENOTEMPTY, directory, "is not empty; choose a new or empty directory for the store");
  }
  init(backend);
}

void Store::init(Backend& backend) {
  backend.put_new(std::string(paths::kGcLock), {});
  StoreIdentity identity{0, kStoreMagic, kStoreFormat, 0, 0, random_uuid(), now_unix_ns()};
  identity.checksum = identity_sum(identity);
  if (!backend.put_new(std::string(paths::kIdentity), bytes_of(identity)))
    fail(EEXIST, backend.describe(), "is a store already");
}

std::unique_ptr<Store> Store::open(const std::string& directory, const StoreOptions& options) {
  struct stat status;
  if (stat(directory.c_str(), &status) != 0) fail_errno(errno, directory, "cannot open the store");
  if (!S_ISDIR(status.st_mode)) fail(ENOTDIR, directory, "is not a directory, hence not a store");
  return std::make_unique<Store>(
      std::make_unique<DirBackend>(directory, options.io == IoMode::kDirect, options.log), options);
}

Store::Store(std::unique_ptr<Backend> backend, const StoreOptions& options)
    : impl_(std::make_unique<Impl>(std::move(backend), options)) {
  check_identity(*impl_->backend);
}

Store::~Store() {
  {
    const std::lock_guard guard(impl_->upkeep_mutex);
    impl_->upkeep_ends = true;
  }
  impl_->upkeep_changed.notify_all();
  if (impl_->upkeep.joinable()) impl_->upkeep.join();
}

void Store::start() {
  impl_->upkeep = std::thread([this] { impl_->run_upkeep(); });
}

Backend& Store::backend() { return *impl_->backend; }
const StoreOptions& Store::options() const { return impl_->options; }

void Store::Impl::wake() {
  const std::lock_guard guard(upkeep_mutex);
  upkeep_wanted = true;
  upkeep_changed.notify_all();
}

void Store::Impl::run_upkeep() {
  std::unique_lock guard(upkeep_mutex);
  while (!upkeep_ends) {
    upkeep_changed.wait_for(guard, kUpkeepInterval,
                            [this] { return upkeep_wanted || upkeep_ends; });
    upkeep_wanted = false;
    guard.unlock();
    const bool evicts = node_memory_bytes() > options.map_cache_bytes;
    for (const auto& attachment : registry.pin_all()) attachment->volume().maintain(evicts);
    if (evicts)
      for (const auto& volume : registry.readers()) volume->maintain(evicts);
    guard.lock();
  }
}

std::shared_ptr<TemplateImage> Store::Impl::open_template(const std::string& name) {
  const std::lock_guard guard(templates_mutex);
  std::weak_ptr<TemplateImage>& known = templates[name];
  if (auto image = known.lock()) return image;
  auto image = TemplateImage::open(*backend, name);
  known = image;
  return image;
}

// --- volumes

Uuid Store::Impl::uuid_of(const std::string& volume) {
  check_name("volume", volume);
  const auto content = backend->get(name_object(volume), 256);
  if (!content)
    fail(ENOENT, fmt::format("volume {}", volume), "is not there; see 'tplstore volume list'");
  Uuid uuid;
  if (!parse_uuid(to_text(*content), uuid))
    fail(EIO, name_object(volume), "damaged: it holds no uuid");
  return uuid;
}

// Keeps gc and the removal of templates out.
std::unique_ptr<HeldLock> Store::Impl::share_gc_lock() {
  const auto deadline = std::chrono::steady_clock::now() + kGcWaitMax;
  while (true) {
    if (auto lock = backend->try_lock(std::string(paths::kGcLock), LockMode::kShared)) return lock;
    if (std::chrono::steady_clock::now() >= deadline)
      fail(EBUSY, backend->describe(), "a template is being removed or gc is running; try again");
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

VolumeInfo Store::create_volume(const std::string& name, uint64_t size_bytes,
                                const std::string& template_name) {
  check_name("volume", name);
  Backend& backend = *impl_->backend;
  const std::string object = fmt::format("volume {}", name);
  if (backend.get(name_object(name), 256)) fail(EEXIST, object, "exists already");
  const auto gc_lock = impl_->share_gc_lock();
  std::shared_ptr<TemplateImage> base;
  if (!template_name.empty()) {
    check_name("template", template_name);
    base = impl_->open_template(template_name);
    if (size_bytes == 0) size_bytes = round_up(base->size_bytes(), kSectorBytes);
    if (size_bytes < base->size_bytes())
      fail(EINVAL, object, "{} bytes are less than the {} of template {}", size_bytes,
           base->size_bytes(), template_name);
  }
  if (size_bytes == 0 || size_bytes % kSectorBytes != 0)
    fail(EINVAL, object,
         "{} bytes are no size of a disk; it must be a multiple of {}, and more "
         "than 0",
         size_bytes, kSectorBytes);
  if (size_bytes > kVolumeBytesMax)
    fail(EFBIG, object, "{} bytes are more than the most, {}", size_bytes, kVolumeBytesMax);

  const Uuid uuid = random_uuid();
  try {
    Volume::create(backend, uuid, size_bytes, base.get());
    const std::string text = uuid.text();
    if (!backend.put_new(name_object(name), as_bytes(text))) fail(EEXIST, object, "exists already");
  } catch (const Error& error) {
    backend.remove_folder(Volume::folder_of(uuid));
    if (error.code() != EFBIG) throw;
    fail(EFBIG, object,
         "the file system of {} holds no file of {} bytes; use a smaller size, or "
         "a file system like XFS",
         backend.describe(), size_bytes);
  }
  VolumeInfo info;
  info.name = name;
  info.uuid = uuid;
  info.size_bytes = size_bytes;
  info.template_name = template_name;
  info.current_version = 1;
  return info;
}

VolumeInfo Store::Impl::info_of(const std::string& name) {
  VolumeInfo info;
  info.name = name;
  info.uuid = uuid_of(name);
  const std::string folder = Volume::folder_of(info.uuid);
  const VolumeHeader header = read_header(*backend, folder);
  info.size_bytes = disk_size(header);
  info.template_name = template_of(header);
  // The header of a volume whose server died says "taken" too; the lock tells the truth.
  info.is_attached = backend->try_lock(folder + "/lock", LockMode::kShared) == nullptr;
  if (info.is_attached) info.writer = writer_of(header);
  for (const std::string& part : backend->list(folder)) {
    try {
      info.unique_bytes += backend->open(folder + "/" + part, Access::kRead)->allocated_bytes();
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;  // gone since it was listed
    }
  }
  return info;
}

std::vector<VolumeInfo> Store::list_volumes() {
  std::vector<VolumeInfo> list;
  for (const std::string& name : impl_->backend->list(std::string(paths::kVolumeNames))) {
    try {
      VolumeInfo info = impl_->info_of(name);
      if (const auto open = impl_->registry.pin(info.uuid)) {
        info.current_version = open->volume().stats().current_version;
      } else {
        const std::string folder = Volume::folder_of(info.uuid);
        info.current_version =
            VolumeMap::open(*impl_->backend, folder, info.uuid, Access::kRead)->current();
      }
      list.push_back(std::move(info));
    } catch (const Error& error) {
      if (error.code() == ENOENT) continue;  // removed since it was listed
      // One that is damaged must not hide the others.
      impl_->options.log(fmt::format("volume {}: {}", name, error.what()));
      VolumeInfo info;
      info.name = name;
      list.push_back(std::move(info));
    }
  }
  return list;
}

VolumeInfo Store::show_volume(const std::string& name) {
  VolumeInfo info = impl_->info_of(name);
  info.versions = list_versions(name);
  for (const VersionInfo& version : info.versions)
    if (version.is_current) info.current_version = version.number;
  return info;
}

// Runs `body` on the volume that this process has open, or opens it for that long.
void Store::Impl::with_owner(const std::string& name, const std::function<void(Volume&)>& body) {
  const Uuid uuid = uuid_of(name);
  auto attachment = registry.pin(uuid);
  if (!attachment) attachment = registry.attach(uuid, name, tool_peer());
  body(attachment->volume());
}

VolumeInfo Store::resize_volume(const std::string& name, uint64_t size_bytes) {
  const std::string object = fmt::format("volume {}", name);
  if (size_bytes % kSectorBytes != 0)
    fail(EINVAL, object, "{} bytes are not a multiple of {}", size_bytes, kSectorBytes);
  if (size_bytes > kVolumeBytesMax)
    fail(EFBIG, object, "{} bytes are more than the most, {}", size_bytes, kVolumeBytesMax);
  impl_->with_owner(name, [&](Volume& volume) { volume.resize(size_bytes); });
  return show_volume(name);
}

void Store::remove_volume(const std::string& name) {
  const Uuid uuid = impl_->uuid_of(name);
  const std::string object = fmt::format("volume {}", name);
  const std::string folder = Volume::folder_of(uuid);
  Backend& backend = *impl_->backend;
  std::unique_ptr<HeldLock> lock;
  std::unique_ptr<HeldLock> readers;
  try {
    lock = backend.try_lock(folder + "/lock", LockMode::kExclusive);
    readers = backend.try_lock(folder + "/readers", LockMode::kExclusive);
    if (!lock) {
      const auto writer = writer_of(read_header(backend, folder));
      fail(EBUSY, object, "in use by {}; disconnect that first",
           writer ? describe(*writer) : "another process");
    }
    if (!readers) fail(EBUSY, object, "one of its versions is being read; disconnect that first");
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;  // an earlier removal came this far
  }
  // Without its name nothing leads to the volume any more; what is left is only space.
  backend.remove(name_object(name));
  backend.sync_folder(std::string(paths::kVolumeNames));
  backend.remove_folder(folder);
}

uint64_t Store::remove_orphans() {
  Backend& backend = *impl_->backend;
  const auto lock = backend.try_lock(std::string(paths::kGcLock), LockMode::kExclusive);
  if (!lock)
    fail(EBUSY, backend.describe(),
         "volumes are being created or templates imported; "
         "try again when that is done");
  std::map<std::string, bool> named;
  for (const std::string& name : backend.list(std::string(paths::kVolumeNames)))
    named[impl_->uuid_of(name).text()] = true;
  uint64_t count = 0;
  for (const std::string& folder : backend.list(std::string(paths::kVolumes))) {
    if (named.contains(folder)) continue;
    backend.remove_folder(fmt::format("{}/{}", paths::kVolumes, folder));
    ++count;
  }
  return count;
}

// --- versions

std::vector<VersionInfo> Store::list_versions(const std::string& volume) {
  const Uuid uuid = impl_->uuid_of(volume);
  if (const auto open = impl_->registry.pin(uuid)) return open->volume().versions();
  const VolumeEnvironment environment{
      *impl_->backend, [this](const std::string& name) { return impl_->open_template(name); },
      impl_->options.log, [] {}};
  return Volume::open_for_reading(environment, uuid, volume)->versions();
}

VersionInfo Store::create_version(const std::string& volume, const std::string& name) {
  VersionInfo info;
  impl_->with_owner(volume, [&](Volume& open) { info = open.create_version(name); });
  return info;
}

VersionInfo Store::rollback(const std::string& volume, const std::string& version) {
  const Uuid uuid = impl_->uuid_of(volume);
  // attach() refuses, naming the owner, while a writer is connected.
  const auto attachment = impl_->registry.attach(uuid, volume, tool_peer());
  return attachment->volume().rollback(version);
}

// --- exports

std::vector<ExportInfo> Store::list_exports() {
  std::vector<ExportInfo> exports;
  size_t versions_listed = 0;
  for (const VolumeInfo& volume : list_volumes()) {
    exports.push_back(
        {volume.name, fmt::format("volume of {}{}, writable{}", format_size(volume.size_bytes),
                                  volume.template_name.empty()
                                      ? ""
                                      : fmt::format(" from template {}", volume.template_name),
                                  volume.is_attached ? ", in use" : "")});
    if (volume.current_version < 2) continue;
    for (const VersionInfo& version : list_versions(volume.name)) {
      if (version.is_current || version.is_hidden || ++versions_listed > kListedVersionsMax)
        continue;
      exports.push_back({fmt::format("{}@{}", volume.name, version.number),
                         fmt::format("version {} of {}, {}{}, read-only", version.number,
                                     volume.name, format_time(version.created_ns),
                                     version.name.empty() ? "" : ", '" + version.name + "'")});
    }
  }
  for (const TemplateInfo& info : list_templates(*impl_->backend)) {
    if (info.state != "ready") continue;
    exports.push_back({fmt::format("template/{}", info.name),
                       fmt::format("template of {}, read-only", format_size(info.size_bytes))});
  }
  return exports;
}

std::unique_ptr<Disk> Store::open_export(std::string_view export_name, const Peer& peer) {
  const ExportName name = parse_export_name(export_name);
  if (name.kind == ExportName::Kind::kTemplate)
    return std::make_unique<TemplateDisk>(impl_->open_template(name.name));
  const Uuid uuid = impl_->uuid_of(name.name);
  if (name.kind == ExportName::Kind::kCurrent)
    return std::make_unique<CurrentDisk>(impl_->registry.attach(uuid, name.name, peer),
                                         peer.pid != 0);
  auto volume = impl_->registry.reader(uuid, name.name, name.version);
  const VersionInfo version = volume->version(name.version);
  return std::make_unique<VersionDisk>(std::move(volume), version);
}

StoreStats Store::stats() {
  StoreStats stats;
  for (const auto& attachment : impl_->registry.pin_all()) {
    VolumeStats volume = attachment->volume().stats();
    volume.connections = impl_->registry.connections(attachment->uuid());
    stats.volumes.push_back(std::move(volume));
  }
  stats.map_cache_bytes = node_memory_bytes();
  stats.map_cache_max_bytes = impl_->options.map_cache_bytes;
  return stats;
}

bool Store::is_open(const std::string& volume) {
  return impl_->registry.is_open(impl_->uuid_of(volume));
}

}  // namespace tplstore
