// What a store does with versions and forks of its volumes.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "backend/layout.h"
#include "base/names.h"
#include "base/units.h"
#include "store/store_impl.h"
#include "template/manifest.h"

namespace tplstore {
namespace {

// While a volume is being opened or closed.
constexpr std::chrono::milliseconds kOwnerLookAgain{10};

}  // namespace

VersionInfo Store::create_version(const std::string& volume, const NewVersion& request) {
  VersionInfo info;
  impl_->with_owner(volume, [&](Volume& open) { info = open.versions().create(request); });
  return info;
}

std::vector<VersionInfo> Store::create_versions(const std::vector<std::string>& volumes,
                                                const NewVersion& request) {
  // In the order of their uuids, that two who do this do not wait for each other.
  std::map<Uuid, std::string> names;
  for (const std::string& volume : volumes)
    if (!names.try_emplace(impl_->uuid_of(volume), volume).second)
      fail(EINVAL, fmt::format("volume {}", volume), "is named twice");
  std::vector<std::unique_ptr<VolumeRegistry::Attachment>> attached;
  std::vector<Versions*> open;
  for (const auto& [uuid, name] : names) {
    try {
      attached.push_back(impl_->registry.attach_for_upkeep(uuid, name, tool_peer()));
    } catch (const Error& error) {
      if (error.code() != EBUSY) throw;
      std::string why = error.what();
      if (why.starts_with(error.object() + ": ")) why.erase(0, error.object().size() + 2);
      fail(EBUSY, error.object(),
           "{}; versions of one moment can be made of volumes that one server has open, or nobody",
           why);
    }
    open.push_back(&attached.back()->volume().versions());
  }
  std::map<std::string, VersionInfo> made;
  if (open.size() == 1) {
    made[volumes.front()] = open.front()->create(request);
  } else {
    std::vector<VersionInfo> infos = Versions::create_together(open, request);
    size_t i = 0;
    for (const auto& [uuid, name] : names) made[name] = std::move(infos[i++]);
  }
  std::vector<VersionInfo> in_order;
  in_order.reserve(volumes.size());
  for (const std::string& volume : volumes) in_order.push_back(made.at(volume));
  return in_order;
}

VersionInfo Store::rollback(const std::string& volume, const std::string& version) {
  const Uuid uuid = impl_->uuid_of(volume);
  // attach() refuses, naming the owner, while a writer is connected.
  const auto attachment =
      impl_->registry.attach(uuid, volume, tool_peer(), VolumeRegistry::Use::kAlone);
  return attachment->volume().versions().rollback(version);
}

std::vector<VersionInfo> Store::remove_versions(const std::string& volume,
                                                const std::vector<std::string>& versions) {
  const Uuid uuid = impl_->uuid_of(volume);
  std::vector<VersionInfo> removed;
  impl_->with_owner(uuid, volume, [&](Volume& open) {
    removed = open.versions().remove(versions);
    if (impl_->registry.connections(uuid) == 0) give_back(open);
  });
  return removed;
}

std::vector<VersionInfo> Store::put_versions_aside(const std::string& volume,
                                                   const std::vector<std::string>& versions,
                                                   int64_t keep_s) {
  const int64_t until_ns = now_unix_ns() + keep_s * 1'000'000'000;
  std::vector<VersionInfo> removed;
  impl_->with_owner(volume,
                    [&](Volume& open) { removed = open.versions().put_aside(versions, until_ns); });
  return removed;
}

VersionInfo Store::restore_version(const std::string& volume, const std::string& version) {
  VersionInfo restored;
  impl_->with_owner(volume, [&](Volume& open) { restored = open.versions().restore(version); });
  return restored;
}

std::map<uint32_t, RemovedVersion> Store::list_removed_versions(const std::string& volume) {
  return find_removed_versions(*impl_->backend, impl_->uuid_of(volume));
}

HeldVersion Store::Impl::hold_version(const Uuid& uuid, const std::string& name,
                                      const std::string& version) {
  HeldVersion held;
  held.volume =
      registry.reader(uuid, name, [&](Volume& volume) { volume.versions().find(version); });
  held.version = held.volume->versions().find(version);
  while (true) {
    held.hold = held.volume->versions().hold(held.version.number);
    // The reader's map may be old: the version may have been removed just before, and its name
    // given to another one. Whoever has the volume open knows; else what is on disk now. Nobody can
    // remove the version any more.
    const auto owner = registry.find_open(uuid);
    if (!owner) held.volume = Volume::open_for_reading(environment(), uuid, name);
    const VersionInfo latest = (owner ? owner->volume() : *held.volume).versions().find(version);
    if (latest.number == held.version.number) return held;
    held.hold.reset();
    if (owner)
      held.volume = registry.reader(uuid, name, [&](Volume& volume) {
        volume.versions().find(std::to_string(latest.number));
      });
    held.version = latest;
  }
}

// Freezes current for a reader: what has been written up to now, as a crash would leave it.
HeldVersion Store::Impl::freeze_current(const Uuid& uuid, const std::string& name) {
  const auto deadline = std::chrono::steady_clock::now() + WriterLock::kWaitMax;
  std::optional<VersionForReader> frozen;
  if (uuid_of(name) != uuid)
    fail(EBUSY, fmt::format("volume {}", name), "was removed and made again; connect again");
  while (true) {
    if (const auto owner = registry.find_open(uuid)) {
      frozen = owner->volume().versions().freeze_for_reader();
    } else if (!registry.is_changing(uuid)) {
      frozen = Volume::freeze_unowned(environment(), uuid, name);
    }
    if (frozen) break;
    if (std::chrono::steady_clock::now() >= deadline) {
      const auto writer = writer_of(read_header(*backend, volume_folder(uuid), uuid));
      fail(EBUSY, fmt::format("volume {}", name),
           "in use by {}; to read it as it is now, connect to that server",
           writer ? describe(*writer) : "another process that is opening or closing it");
    }
    std::this_thread::sleep_for(kOwnerLookAgain);
  }
  HeldVersion held;
  held.hold = std::move(frozen->hold);
  held.volume = registry.reader(
      uuid, name, [&](Volume& volume) { volume.versions().find_for_reader(frozen->number); });
  held.version = held.volume->versions().find_for_reader(frozen->number);
  return held;
}

void Store::diff_versions(const std::string& volume, const std::string& from, const std::string& to,
                          const std::function<void(const ChangedRange&)>& add) {
  const Uuid uuid = impl_->uuid_of(volume);
  const HeldVersion since = impl_->hold_version(uuid, volume, from);
  if (!to.empty()) {
    const HeldVersion until = impl_->hold_version(uuid, volume, to);
    until.volume->changes(since.version.number, until.version.number, 0, until.version.size_bytes,
                          add);
    return;
  }
  impl_->with_versions(uuid, volume, [&](Volume& open) {
    open.changes(since.version.number, 0, 0, open.size_bytes(), add);
  });
}

// --- forks

VolumeInfo Store::fork_volume(const std::string& name, const std::string& parent,
                              const std::string& version, uint64_t size_bytes) {
  check_name("volume", name);
  const std::string object = fmt::format("volume {}", name);
  Backend& backend = *impl_->backend;
  if (!impl_->is_free_name(name)) fail(EEXIST, object, "exists already");
  if (size_bytes != 0) check_volume_size(object, size_bytes);
  const auto gc_lock = impl_->share_gc_lock();
  const Uuid uuid = random_uuid();
  impl_->with_owner(parent, [&](Volume& volume) {
    const VersionInfo base = volume.versions().find(version);
    if (size_bytes != 0 && size_bytes < base.size_bytes)
      fail(EINVAL, object, "{} bytes are less than the {} of {}@{}", size_bytes, base.size_bytes,
           parent, base.number);
    volume.forks().create(version, uuid);
    if (impl_->publish(name, uuid)) return;
    impl_->remove_unneeded(uuid, name);
    volume.forks().drop_dead();
    fail(EEXIST, object, "exists already");
  });
  VolumeInfo info = show_volume(name);
  if (size_bytes <= info.size_bytes) return info;
  try {
    return resize_volume(name, size_bytes);
  } catch (const Error& error) {
    remove_volume(name);
    if (error.code() != EFBIG) throw;
    fail_too_large(backend, object, size_bytes);
  }
}

VolumeInfo Store::flatten_volume(const std::string& name,
                                 const std::function<void(uint64_t)>& progress) {
  Uuid parent;
  impl_->with_owner(name, [&](Volume& volume) {
    const auto disk = impl_->boot_disks.of_volume(name, impl_->uuid_of(name));
    parent = volume.forks().flatten(progress);
    try {
      adopt_boots(*impl_->backend, *disk);
    } catch (const Error& error) {
      impl_->options.log(error);  // it learns anew how it boots
    }
  });
  impl_->release_parent(parent);
  return show_volume(name);
}

// --- importing

namespace {

// Whether current is what `base` is.
bool is_current_like(Volume& volume, const VersionInfo& base) {
  if (volume.size_bytes() != base.size_bytes) return false;
  bool is_like = true;
  volume.changes(base.number, 0, 0, base.size_bytes, [&](const ChangedRange&) { is_like = false; });
  return is_like;
}

void check_base(const std::string& object, const VersionInfo& base, const VersionIdentity& wanted,
                const Uuid& volume) {
  // A version that was written here may be the same as another one elsewhere: nobody can know.
  const bool is_known = base.identity.volume != volume || wanted.volume == volume;
  if (is_known && base.identity != wanted)
    fail(EINVAL, object, "version {} is not the one that the changes are based on: that is {}@{}",
         base.number, wanted.volume.text(), wanted.number);
}

}  // namespace

std::shared_ptr<TemplateImage> Store::Impl::open_durable_template(const std::string& name) {
  auto image = open_template(name);
  backend->sync_folder(std::string(paths::kTemplates));
  return image;
}

std::shared_ptr<TemplateImage> Store::Impl::find_template(const ContentId& content,
                                                          const std::string& likely) {
  std::vector<std::string> names = backend->list(std::string(paths::kTemplates));
  std::stable_partition(names.begin(), names.end(),
                        [&](const std::string& name) { return name == likely; });
  for (const std::string& name : names) {
    try {
      const auto manifest = is_valid_name(name) ? load_manifest(*backend, name) : std::nullopt;
      if (manifest && manifest->content_id == content) return open_durable_template(name);
    } catch (const Error& error) {
      options.log(error);  // another one may have it
    }
  }
  return nullptr;
}

void Store::Impl::make_filled(const std::string& name, uint64_t size_bytes,
                              const TemplateImage* base,
                              const std::function<void(Volume&, Disk&)>& fill) {
  const std::string object = fmt::format("volume {}", name);
  check_volume_size(object, size_bytes);
  const Uuid uuid = random_uuid();
  make_objects(object, uuid, size_bytes, base);
  try {
    auto attachment = registry.attach(uuid, name, tool_peer(), VolumeRegistry::Use::kAlone);
    Volume& volume = attachment->volume();
    CurrentDisk disk(std::move(attachment), false);
    fill(volume, disk);
    disk.flush();
    if (!publish(name, uuid)) fail(EEXIST, object, "exists already");
  } catch (...) {
    sync_names();
    remove_unneeded(uuid, name);
    throw;
  }
}

// A new volume has its name once it is whole; until then gc must not take it for a remnant, so the
// gc lock is held.
void Store::Impl::check_is_new(const std::string& volume) {
  check_name("volume", volume);
  if (!is_free_name(volume)) fail(EEXIST, fmt::format("volume {}", volume), "exists already");
}

VolumeInfo Store::import_volume(const std::string& name, uint64_t size_bytes,
                                const std::function<void(Disk&)>& fill) {
  const auto gc_lock = impl_->share_gc_lock();
  impl_->check_is_new(name);
  impl_->make_filled(name, size_bytes, nullptr, [&](Volume&, Disk& disk) { fill(disk); });
  return show_volume(name);
}

VersionInfo Store::Impl::import_new(const std::string& name, const ImportedVersion& imported,
                                    const std::function<void(Disk&)>& fill) {
  const auto gc_lock = share_gc_lock();
  check_is_new(name);
  std::shared_ptr<TemplateImage> base;
  if (imported.template_content) {
    base = find_template(*imported.template_content, imported.template_name);
    if (!base)
      fail(ENOENT, fmt::format("template {}", imported.template_name),
           "the changes are based on it, and no template here has its content, {}: import that "
           "template first, or export the volume in full",
           imported.template_content->hex());
    if (imported.size_bytes < base->size_bytes())
      fail(EINVAL, fmt::format("volume {}", name), "{} bytes are less than the {} of template {}",
           imported.size_bytes, base->size_bytes(), base->name());
  }
  VersionInfo made;
  make_filled(name, imported.size_bytes, base.get(), [&](Volume& volume, Disk& disk) {
    volume.versions().check_new(imported.version);
    fill(disk);
    made = volume.versions().create(imported.version);
  });
  return made;
}

VersionInfo Store::import_version(const std::string& name, const ImportedVersion& imported,
                                  const std::function<void(Disk&)>& fill) {
  if (imported.base.empty()) return impl_->import_new(name, imported, fill);
  const std::string object = fmt::format("volume {}", name);
  const Uuid uuid = impl_->uuid_of(name);
  auto attachment = impl_->registry.attach(uuid, name, tool_peer(), VolumeRegistry::Use::kAlone);
  Volume& volume = attachment->volume();
  CurrentDisk disk(std::move(attachment), false);
  volume.versions().check_new(imported.version);
  const VersionInfo base = volume.versions().find(imported.base);
  check_base(object, base, imported.base_identity, uuid);
  if (imported.size_bytes < base.size_bytes)
    fail(EINVAL, object, "{} bytes are less than the {} of version {}", imported.size_bytes,
         base.size_bytes, base.number);
  if (!is_current_like(volume, base)) volume.versions().rollback(imported.base);
  VersionInfo made;
  volume.versions().begin_import(base.number);
  try {
    if (imported.size_bytes > volume.size_bytes()) volume.resize(imported.size_bytes);
    fill(disk);
    made = volume.versions().create(imported.version);
  } catch (...) {
    // Also when somebody has made a version of it meanwhile.
    const uint32_t half = volume.versions().freeze({"", "", {}, base.number}).number;
    volume.versions().remove({std::to_string(half)});
    volume.versions().end_import();
    throw;
  }
  volume.versions().end_import();
  return made;
}

// --- exporting

Store::TemplateChanges Store::open_template_changes(const std::string& volume,
                                                    const std::string& version) {
  const Uuid uuid = impl_->uuid_of(volume);
  TemplateChanges changes;
  changes.template_name = template_of(read_header(*impl_->backend, volume_folder(uuid), uuid));
  if (changes.template_name.empty())
    fail(EINVAL, fmt::format("volume {}", volume),
         "has no template: export it in full, with --format increment and without --since");
  HeldVersion held = impl_->hold_version(uuid, volume, version);
  // The one that the volume has: it has been opened with it.
  const auto base = impl_->open_template(changes.template_name);
  changes.template_content = base->content_id();
  changes.template_bytes = base->size_bytes();
  changes.disk = std::make_unique<ChangesDisk>(std::nullopt, std::move(held));
  return changes;
}

}  // namespace tplstore
