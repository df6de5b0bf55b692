// The volumes of a store: making, showing, resizing, removing them, and what is left of them.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "backend/layout.h"
#include "base/host.h"
#include "base/names.h"
#include "store/store_impl.h"
#include "template/gc_lock.h"
#include "template/manifest.h"
#include "volume/version_set.h"

namespace tplstore {
namespace {

constexpr std::chrono::milliseconds kGcWaitMax{2000};

}  // namespace

Peer tool_peer() {
  const int64_t pid = getpid();
  Peer peer{fmt::format("tplstore tool, pid {}", pid), pid, own_start_time()};
  peer.is_vm = false;
  return peer;
}

VolumeEnvironment Store::Impl::environment() {
  return {*backend,         [this](const std::string& name) { return open_template(name); },
          options.log,      [this] { upkeep_alarm.ring(); },
          stop.get_token(), boot ? &boot->memory() : nullptr,
          &journals,        &times};
}

// --- making, showing, resizing

// Keeps gc and the removal of templates out.
std::unique_ptr<HeldLock> Store::Impl::share_gc_lock() {
  auto lock = hold_gc_lock(*backend, LockMode::kShared, backend->describe(), kGcWaitMax);
  if (!lock)
    fail(EBUSY, backend->describe(), "a template is being removed or gc is running; try again");
  return lock;
}

void check_volume_size(const std::string& object, uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes % kSectorBytes != 0)
    fail(EINVAL, object,
         "{} bytes are no size of a disk; it must be a multiple of {}, and more "
         "than 0",
         size_bytes, kSectorBytes);
  if (size_bytes > kVolumeBytesMax)
    fail(EFBIG, object, "{} bytes are more than the most, {}", size_bytes, kVolumeBytesMax);
}

void fail_too_large(Backend& backend, const std::string& object, uint64_t size_bytes) {
  fail(EFBIG, object,
       "the file system of {} holds no file of {} bytes; use a smaller size, or "
       "a file system like XFS",
       backend.describe(), size_bytes);
}

void Store::Impl::make_objects(const std::string& object, const Uuid& uuid, uint64_t size_bytes,
                               const TemplateImage* base) {
  try {
    tplstore::create_volume(*backend, uuid, size_bytes, base);
  } catch (const Error& error) {
    backend->remove_folder(volume_folder(uuid));
    if (error.code() != EFBIG) throw;
    fail_too_large(*backend, object, size_bytes);
  }
}

VolumeInfo Store::create_volume(const std::string& name, uint64_t size_bytes,
                                const std::string& template_name) {
  check_name("volume", name);
  const std::string object = fmt::format("volume {}", name);
  if (!impl_->is_free_name(name)) fail(EEXIST, object, "exists already");
  const auto gc_lock = impl_->share_gc_lock();
  std::shared_ptr<TemplateImage> base;
  if (!template_name.empty()) {
    check_name("template", template_name);
    base = impl_->open_durable_template(template_name);
    if (size_bytes == 0) size_bytes = round_up(base->size_bytes(), kSectorBytes);
    if (size_bytes < base->size_bytes())
      fail(EINVAL, object, "{} bytes are less than the {} of template {}", size_bytes,
           base->size_bytes(), template_name);
  }
  check_volume_size(object, size_bytes);

  const Uuid uuid = random_uuid();
  impl_->make_objects(object, uuid, size_bytes, base.get());
  if (!impl_->publish(name, uuid)) {
    impl_->remove_unneeded(uuid, name);
    fail(EEXIST, object, "exists already");
  }
  VolumeInfo info;
  info.name = name;
  info.uuid = uuid;
  info.size_bytes = size_bytes;
  info.template_name = template_name;
  info.current_version = 1;
  return info;
}

VolumeInfo Store::Impl::info_of(const std::string& name, const std::map<Uuid, std::string>& names) {
  VolumeInfo info;
  info.name = name;
  info.uuid = uuid_of(name);
  const std::string folder = volume_folder(info.uuid);
  const VolumeHeader header = read_header(*backend, folder, info.uuid);
  info.size_bytes = disk_size(header);
  info.template_name = template_of(header);
  if (!header.parent.is_nil()) {
    const auto parent = names.find(header.parent);
    info.parent =
        fmt::format("{}@{}", parent == names.end() ? header.parent.text() : parent->second,
                    header.parent_version);
  }
  // The header of a volume whose server died says "taken" too; the lock tells the truth.
  info.is_attached = backend->is_locked(lock_name(folder));
  if (info.is_attached) info.writer = writer_of(header);
  for (const std::string& part : backend->list(folder)) {
    const std::string object = fmt::format("{}/{}", folder, part);
    try {
      info.unique_bytes +=
          backend->open(object, Access::kRead, Purpose::kMetadata)->allocated_bytes();
    } catch (const Error& error) {
      // Gone since it was listed, or not ours.
      if (error.code() != ENOENT && !is_foreign(object, error)) throw;
    }
  }
  return info;
}

// Runs `body` on the volume that this process has open, or opens it for reading.
void Store::Impl::with_versions(const Uuid& uuid, const std::string& name,
                                const std::function<void(Volume&)>& body) {
  if (const auto open = registry.find_open(uuid)) return body(open->volume());
  body(*Volume::open_for_reading(environment(), uuid, name));
}

std::vector<VolumeInfo> Store::list_volumes() {
  std::vector<VolumeInfo> list;
  std::vector<std::string> damaged;
  const std::map<Uuid, std::string> names = impl_->volume_names(&damaged);
  for (const auto& [uuid, name] : names) {
    VolumeInfo info;
    info.name = name;
    try {
      info = impl_->info_of(name, names);
      // Without the template, which whoever asks may have locked.
      const auto open = impl_->registry.find_open(uuid);
      const VersionRecord current =
          open ? open->volume().versions().current()
               : VolumeMap::open(*impl_->backend, volume_folder(uuid), uuid, Access::kRead)
                     ->ask(&MapState::current_record);
      info.current_version = current.number;
      info.shared_bytes = current.foreign_blocks * kBlockBytes;
    } catch (const Error& error) {
      const bool is_gone = error.code() == ENOENT && !impl_->has_name(name);
      if (is_gone) continue;  // removed since it was listed
      // One that is damaged must not hide the others, and is listed with what is known of it.
      impl_->options.log(level_of(error), fmt::format("volume {}: {}", name, error.what()));
    }
    list.push_back(std::move(info));
  }
  for (std::string& name : damaged) list.emplace_back().name = std::move(name);
  std::sort(list.begin(), list.end(),
            [](const VolumeInfo& a, const VolumeInfo& b) { return a.name < b.name; });
  return list;
}

VolumeInfo Store::show_volume(const std::string& name) {
  std::vector<std::string> damaged;
  const std::map<Uuid, std::string> names = impl_->volume_names(&damaged);
  VolumeInfo info = impl_->info_of(name, names);
  impl_->with_versions(info.uuid, name, [&](Volume& volume) {
    info.versions = volume.versions().list();
    const VersionRecord current = volume.versions().current();
    info.current_version = current.number;
    info.shared_bytes = current.foreign_blocks * kBlockBytes;
  });
  for (VersionInfo& version : info.versions) {
    for (std::string& fork : version.forks) {
      Uuid uuid;
      const auto found = parse_uuid(fork, uuid) ? names.find(uuid) : names.end();
      if (found != names.end()) fork = found->second;
    }
  }
  return info;
}

// Runs `body` on the volume that this process has open, or opens it for that long.
void Store::Impl::with_owner(const std::string& name, const std::function<void(Volume&)>& body) {
  with_owner(uuid_of(name), name, body);
}

void Store::Impl::with_owner(const Uuid& uuid, const std::string& name,
                             const std::function<void(Volume&)>& body) {
  body(registry.attach_for_upkeep(uuid, name, tool_peer())->volume());
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

std::map<std::string, std::vector<std::string>> Store::template_users() {
  Backend& backend = *impl_->backend;
  std::vector<std::string> damaged;
  const std::map<Uuid, std::string> names = impl_->volume_names(&damaged);
  std::map<std::string, std::vector<std::string>> users;
  std::map<Uuid, std::string> all = names;
  for (const RemovedVolume& removed : impl_->removed_volumes())
    all.try_emplace(removed.uuid, removed.name + " (removed, and kept)");
  for (const Uuid& uuid : impl_->volume_folders()) {
    const auto name = all.find(uuid);
    const std::string volume = name == all.end() ? uuid.text() : name->second;
    VolumeHeader header;
    try {
      header = read_header(backend, volume_folder(uuid), uuid);
    } catch (const Error& error) {
      if (error.code() == ENOENT) continue;  // without a header it is none
      fail(error.code(), fmt::format("volume {}", volume),
           "nobody can tell which template it needs, so nothing of templates is removed: repair or "
           "remove it first ({})",
           error.what());
    }
    const std::string needed = template_of(header);
    if (needed.empty()) continue;
    if (load_manifest_uuid(backend, needed) != header.template_uuid)
      fail(EIO, fmt::format("template {}", needed),
           "volume {} needs it, and it is missing: nothing of templates is removed until it is put "
           "back, or that volume removed",
           volume);
    users[needed].push_back(volume);
  }
  return users;
}

// --- removing

// Whether any volume in the store needs this one. Nobody is making one while its lock is held.
bool Store::Impl::has_forks(const Uuid& uuid) {
  return std::ranges::any_of(volume_folders(), [&](const Uuid& other) {
    return other != uuid && is_fork_of(*backend, other, uuid);
  });
}

// Whether nobody has the volume open for writing.
bool Store::Impl::is_free(const Uuid& uuid) {
  return !backend->is_locked(lock_name(volume_folder(uuid)));
}

// Nothing where there is none, and where there is nothing that could be read.
std::optional<VolumeHeader> Store::Impl::header_if_readable(const Uuid& uuid) {
  try {
    return read_header(*backend, volume_folder(uuid), uuid);
  } catch (const Error& error) {
    if (error.code() != ENOENT && error.code() != EIO) throw;
    if (error.code() == EIO) options.log(error);
    return std::nullopt;
  }
}

// With the volume's locks held. The header goes first: without it a folder is no volume. The lock
// goes last, so that as long as anything is left there is just one that it can be held by.
void Store::Impl::remove_objects(const Uuid& uuid) {
  const std::string folder = volume_folder(uuid);
  backend->remove(header_name(folder));
  drop_removed_versions(*backend, uuid);
  journals.remove_others(uuid, "");
  const std::vector<std::string> parts = backend->list(folder);
  // Also when it was gone already: who removed it may have died before that was durable.
  if (!parts.empty()) backend->sync_folder(folder);
  for (const std::string& part : parts) {
    const std::string object = fmt::format("{}/{}", folder, part);
    if (object == lock_name(folder)) continue;
    try {
      backend->remove(object);
    } catch (const Error& error) {
      if (error.code() != EISDIR) throw;  // of somebody else; it goes with the volume's folder
    }
  }
  backend->remove(lock_name(folder));
  backend->remove_folder(folder);
}

// Removes a volume that has no name; the parent that it had. EBUSY, also when it has forks: one may
// have been made up to now.
Uuid Store::Impl::remove_unneeded(const Uuid& uuid, const std::string& name, bool may_be_named) {
  const RemovalLocks locks = lock_for_removal(*backend, volume_folder(uuid), uuid, name);
  // Names that were being changed when they were read may have been missed.
  if (may_be_named && is_named(uuid)) fail(EBUSY, fmt::format("volume {}", name), "has a name");
  if (has_forks(uuid)) fail(EBUSY, fmt::format("volume {}", name), "has forks, which need it");
  const std::optional<VolumeHeader> header = header_if_readable(uuid);
  remove_objects(uuid);
  return header ? header->parent : Uuid{};
}

// A fork of this volume has gone, so something of it may go too; all of it, when it has no name.
void Store::Impl::release_parent(Uuid uuid) {
  while (!uuid.is_nil()) {
    Uuid next;
    try {
      const auto names = volume_names();
      const auto name = names.find(uuid);
      const bool is_unnamed = name == names.end() && !can_be_restored(uuid);
      if (is_unnamed && !has_forks(uuid)) {
        sync_names();
        next = remove_unneeded(uuid, uuid.text(), /*may_be_named=*/true);
      } else if (registry.is_open(uuid) || is_free(uuid)) {
        with_owner(uuid, name == names.end() ? uuid.text() : name->second, [&](Volume& volume) {
          volume.forks().drop_dead();
          if (is_unnamed && !is_named(uuid)) volume.forks().keep_pinned_only();
          volume.space().run();
        });
      }
      // Else the server that has it open notices by itself.
    } catch (const Error& error) {
      if (error.code() == EIO)
        options.log(level_of(error), fmt::format("not collected: {}", error.what()));
      if (error.code() != ENOENT && error.code() != EBUSY && error.code() != EIO) throw;
    }
    uuid = next;
  }
}

std::optional<int64_t> Store::remove_volume(const std::string& name, IfDamaged if_damaged,
                                            int64_t keep_s) {
  const Uuid uuid = impl_->uuid_of(name);
  Backend& backend = *impl_->backend;
  std::optional<VolumeHeader> header;
  bool has_forks = false;
  {
    const RemovalLocks locks = lock_for_removal(backend, volume_folder(uuid), uuid, name);
    // Up to here it may have been removed, and its name given to another one.
    if (impl_->uuid_of(name) != uuid)
      fail(EBUSY, fmt::format("volume {}", name),
           "was removed and made again meanwhile; look at it before you remove this one");
    impl_->settle_rename(uuid);
    impl_->for_each_name(
        [&](const std::string& other, const Uuid& volume) {
          if (other != name && volume == uuid)
            fail(EIO, volume_name_object(name),
                 "leads to the same volume as {}: one of the two is damaged, repair that first",
                 other);
        },
        [](const std::string&, const Error&) {});
    try {
      header = read_header(backend, volume_folder(uuid), uuid);
    } catch (const Error& error) {
      // Without one it is half a volume, of a creation or a removal. Damage may be mended.
      if (error.code() != ENOENT && if_damaged == IfDamaged::kKeep)
        fail(error.code(), fmt::format("volume {}", name),
             "its header cannot be read, so nobody can tell who needs it; 'tplstore volume rm {} "
             "--force' removes it even so ({})",
             name, error.what());
    }
    if (keep_s > 0) {
      impl_->put_aside(name, uuid, keep_s);
    } else {
      has_forks = impl_->has_forks(uuid);
      impl_->forget_removed(uuid);
    }
    // Without its name nobody can open the volume any more; what is left is only space.
    backend.remove(volume_name_object(name));
    backend.sync_folder(std::string(paths::kVolumeNames));
    if (keep_s > 0) return impl_->kept_until(uuid);
    if (!has_forks) impl_->remove_objects(uuid);
  }
  if (!has_forks) {
    if (header) impl_->release_parent(header->parent);
    return std::nullopt;
  }
  impl_->with_owner(uuid, name, [](Volume& volume) { volume.forks().keep_pinned_only(); });
  return std::nullopt;
}

// What has no name is garbage only as long as all names are there, and lead to what they should.
void Store::Impl::check_names(const std::map<Uuid, std::string>& names) {
  const std::vector<Uuid> folders = volume_folders();
  for (const auto& [uuid, name] : names)
    if (std::find(folders.begin(), folders.end(), uuid) == folders.end())
      fail(EIO, volume_name_object(name),
           "leads to no volume, so nobody can tell which volumes have lost their names: repair it, "
           "or remove volume {} first",
           name);
  try {
    backend->sync_folder(std::string(paths::kVolumeNames));
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
    // But what the very first creation has left, cut off, nobody has ever written.
    for (const Uuid& uuid : folders)
      if (const auto header = header_if_readable(uuid); header && header->epoch > 0)
        fail(EIO, std::string(paths::kVolumeNames),
             "is missing, though there are volumes: put it back");
  }
}

uint64_t Store::remove_orphans() {
  Backend& backend = *impl_->backend;
  const auto lock = hold_gc_lock(backend, LockMode::kExclusive, backend.describe());
  if (!lock)
    fail(EBUSY, backend.describe(),
         "volumes are being created or templates imported; "
         "try again when that is done");
  const std::map<Uuid, std::string> names = impl_->volume_names();
  impl_->check_names(names);
  remove_settled_marks(backend);
  uint64_t count = 0;
  for (const Uuid& uuid : impl_->volume_folders()) {
    if (names.contains(uuid)) {
      impl_->settle_rename_if_free(uuid);
      continue;
    }
    if (impl_->can_be_restored(uuid)) continue;
    // One that forks need, or what a creation or a removal has left.
    try {
      if (impl_->has_forks(uuid)) {
        if (impl_->header_if_readable(uuid)) impl_->release_parent(uuid);
        continue;
      }
      const Uuid parent = impl_->remove_unneeded(uuid, uuid.text());
      ++count;
      impl_->release_parent(parent);
    } catch (const Error& error) {
      impl_->options.log(level_of(error), fmt::format("not collected: {}", error.what()));
    }
  }
  return count;
}

void give_back(Volume& volume) {
  volume.forks().drop_dead();
  volume.space().run();
}

void Store::reclaim_volume(const std::string& name) { impl_->with_owner(name, give_back); }

void Store::reclaim() {
  std::vector<std::string> damaged;
  for (const auto& [uuid, name] : impl_->volume_names(&damaged)) {
    try {
      if (impl_->registry.is_open(uuid)) {
        reclaim_volume(name);
      } else if (impl_->is_free(uuid)) {
        // Most have nothing to give back, and need not be opened for writing.
        const auto map = VolumeMap::open(*impl_->backend, volume_folder(uuid), uuid, Access::kRead);
        if (!map->recovery().was_closed_cleanly ||
            !pending_versions(*impl_->backend, uuid).empty() ||
            map->ask(&MapState::has_outstanding) || !map->pins().empty())
          reclaim_volume(name);
      }
    } catch (const Error& error) {
      if (error.code() != ENOENT && error.code() != EBUSY) impl_->options.log(error);
    }
  }
}

}  // namespace tplstore
