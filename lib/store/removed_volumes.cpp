// Volumes that were removed and are kept for a while.
//
// Such a volume has no name, so nobody opens it, and an object "removed/UUID" instead, by which it
// is no garbage: the name that it had, when it was removed, and until when it is kept. That object
// is made before the name is removed, and removed after a name leads to the volume again: as long
// as one does, it means nothing.
#include "store/removed_volumes.h"

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "backend/layout.h"
#include "base/names.h"
#include "base/units.h"
#include "store/store_config.h"
#include "store/store_impl.h"

namespace tplstore {
namespace {

constexpr uint64_t kRemovedBytesMax = 4096;

std::string removed_object(const Uuid& volume) {
  return fmt::format("{}/{}", paths::kRemoved, volume.text());
}

RemovedVolume parse_removed(const Uuid& uuid, const std::string& text) {
  using nlohmann::json;
  RemovedVolume removed;
  removed.uuid = uuid;
  const json content = json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto time_in = [&](const char* key, int64_t& into) {
    const auto found = content.find(key);
    if (found == content.end() || !found->is_number_integer()) return false;
    into = *found;
    return true;
  };
  const bool is_whole = content.is_object() && content.contains("name") &&
                        content["name"].is_string() && time_in("removed_ns", removed.removed_ns) &&
                        time_in("until_ns", removed.until_ns);
  if (is_whole) removed.name = content["name"];
  if (!is_whole || !is_valid_name(removed.name))
    fail(EIO, removed_object(uuid),
         "damaged: it does not say what was removed, and until when it is kept");
  return removed;
}

}  // namespace

std::optional<RemovedVolume> read_removed(Backend& backend, const Uuid& volume) {
  const auto content = backend.get(removed_object(volume), kRemovedBytesMax);
  if (!content) return std::nullopt;
  return parse_removed(volume, to_text(*content));
}

int64_t Store::removal_keep_s() { return load_config(*impl_->backend).keep_s; }

void Store::set_removal_keep_s(int64_t seconds) {
  put_config(*impl_->backend, [&](StoreConfig& config) { config.keep_s = seconds; });
}

bool Store::Impl::can_be_restored(const Uuid& uuid) {
  try {
    return backend->get(removed_object(uuid), kRemovedBytesMax).has_value();
  } catch (const Error& error) {
    options.log(error);
    return true;  // as far as anybody can tell
  }
}

std::vector<RemovedVolume> Store::Impl::removed_volumes(const std::string& name) {
  std::vector<RemovedVolume> list;
  for (const std::string& part : backend->list(std::string(paths::kRemoved))) {
    Uuid uuid;
    if (!parse_uuid(part, uuid)) continue;
    try {
      auto removed = read_removed(*backend, uuid);
      if (removed && (name.empty() || name == removed->name || name == part))
        list.push_back(std::move(*removed));
    } catch (const Error& error) {
      options.log(error);  // and it stays
    }
  }
  if (list.empty()) return list;
  std::set<Uuid> named;
  for_each_name([&](const std::string&, const Uuid& uuid) { named.insert(uuid); },
                [](const std::string&, const Error&) {});
  std::erase_if(list, [&](const RemovedVolume& removed) { return named.contains(removed.uuid); });
  std::ranges::sort(list, [](const RemovedVolume& a, const RemovedVolume& b) {
    return std::tie(b.removed_ns, a.uuid) < std::tie(a.removed_ns, b.uuid);
  });
  return list;
}

// With the volume's locks held; then its name can go.
void Store::Impl::put_aside(const std::string& name, const Uuid& uuid, int64_t keep_s) {
  if ((load_identity(*backend).incompatible_features & kFeatureRemovedVolumes) == 0) {
    const auto gc_lock = share_gc_lock();  // who has it alone may change that too
    allow_feature(*backend, kFeatureRemovedVolumes);
  }
  constexpr int64_t kSecondNs = 1'000'000'000;
  const int64_t now_ns = now_unix_ns();
  const nlohmann::json content = {
      {"name", name}, {"removed_ns", now_ns}, {"until_ns", now_ns + keep_s * kSecondNs}};
  backend->remove(removed_object(uuid));  // of a restoration that was cut off
  if (!backend->put_new(removed_object(uuid), as_bytes(content.dump() + "\n")))
    fail(EBUSY, fmt::format("volume {}", name), "is being removed by another process; try again");
}

// With its locks held, before its name goes for good.
void Store::Impl::forget_removed(const Uuid& uuid) {
  if (!backend->remove(removed_object(uuid))) return;
  backend->sync_folder(std::string(paths::kRemoved));
}

std::optional<int64_t> Store::Impl::kept_until(const Uuid& uuid) {
  const auto removed = read_removed(*backend, uuid);
  return removed ? std::optional(removed->until_ns) : std::nullopt;
}

std::vector<RemovedVolume> Store::list_removed() {
  std::vector<RemovedVolume> list = impl_->removed_volumes();
  for (RemovedVolume& removed : list) {
    const std::string folder = volume_folder(removed.uuid);
    if (const auto header = impl_->header_if_readable(removed.uuid))
      removed.size_bytes = disk_size(*header);
    removed.unique_bytes = impl_->allocated_below(*impl_->backend, folder);
  }
  return list;
}

VolumeInfo Store::restore_volume(const std::string& name, const std::string& new_name) {
  const std::vector<RemovedVolume> found = impl_->removed_volumes(name);
  if (found.empty())
    fail(ENOENT, fmt::format("volume {}", name),
         "was not removed, or is not kept any more; see 'tplstore volume list --removed'");
  const RemovedVolume& removed = found.front();
  const std::string& as = new_name.empty() ? removed.name : new_name;
  check_name("volume", as);
  Backend& backend = *impl_->backend;
  const auto gc_lock = impl_->share_gc_lock();
  const RemovalLocks locks =
      lock_for_removal(backend, volume_folder(removed.uuid), removed.uuid, removed.name);
  if (impl_->removed_volumes(removed.uuid.text()).empty())
    fail(ENOENT, fmt::format("volume {}", name), "was restored or removed just now");
  read_header(backend, volume_folder(removed.uuid), removed.uuid);
  impl_->settle_rename(removed.uuid);
  if (!impl_->publish(as, removed.uuid))
    fail(EEXIST, fmt::format("volume {}", as),
         "exists already; restore the other one as another one: 'tplstore volume restore {} --as "
         "NEW'",
         name);
  backend.remove(removed_object(removed.uuid));
  std::vector<std::string> damaged;
  return impl_->info_of(as, impl_->volume_names(&damaged));
}

// It has no name, and its time has come; or that is not so any more. EBUSY while its locks are
// held, by who restores it.
bool Store::Impl::remove_for_good(const RemovedVolume& removed, int64_t now_ns) {
  const Uuid& uuid = removed.uuid;
  std::optional<VolumeHeader> header;
  bool is_needed = false;
  {
    const RemovalLocks locks = lock_for_removal(*backend, volume_folder(uuid), uuid, removed.name);
    // Since it was listed it may have been restored, and removed again for longer.
    const auto now = read_removed(*backend, uuid);
    if (!now || now->until_ns > now_ns || is_named(uuid)) return false;
    header = header_if_readable(uuid);
    is_needed = has_forks(uuid);
    backend->remove(removed_object(uuid));
    backend->sync_folder(std::string(paths::kRemoved));
    if (!is_needed) remove_objects(uuid);
  }
  if (is_needed)
    release_parent(uuid);
  else if (header)
    release_parent(header->parent);
  return true;
}

uint64_t Store::Impl::remove_expired() {
  uint64_t count = 0;
  const int64_t now_ns = expiry_clock.now_ns(now_unix_ns(), since_boot_ns());
  for (const RemovedVolume& removed : removed_volumes()) {
    if (removed.until_ns > now_ns) continue;
    try {
      if (remove_for_good(removed, now_ns)) ++count;
    } catch (const Error& error) {
      if (error.code() != ENOENT && error.code() != EBUSY)
        options.log(level_of(error),
                    fmt::format("volume {}, which was removed: {}", removed.name, error.what()));
    }
  }
  for (const Uuid& uuid : volumes_of_removed_versions(*backend)) {
    try {
      remove_expired_versions(uuid, now_ns);
    } catch (const Error& error) {
      if (error.code() != ENOENT && error.code() != EBUSY)
        options.log(fmt::format("versions that were removed: {}", error.what()));
    }
  }
  return count;
}

// Of a volume that can be restored they wait for that.
void Store::Impl::remove_expired_versions(const Uuid& uuid, int64_t now_ns) {
  if (backend->list(volume_folder(uuid)).empty()) return drop_removed_versions(*backend, uuid);
  const auto removed = find_removed_versions(*backend, uuid);
  const bool has_expired =
      std::ranges::any_of(removed, [&](const auto& one) { return one.second.until_ns <= now_ns; });
  if (!has_expired || can_be_restored(uuid)) return;
  if (!registry.is_open(uuid) && !is_free(uuid)) return;  // whose server does it
  with_owner(uuid, uuid.text(), [&](Volume& volume) {
    volume.versions().remove_expired(now_ns);
    if (registry.connections(uuid) == 0) give_back(volume);
  });
}

uint64_t Store::remove_expired() { return impl_->remove_expired(); }

}  // namespace tplstore
