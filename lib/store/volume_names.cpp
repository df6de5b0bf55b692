// The names of volumes: objects that hold a uuid.
//
// A name never changes; a volume that is renamed gets another one. So that at every moment it has
// just one, its folder says first what is to happen ("rename": the old name and the new one). From
// the moment in which the new name leads to the volume, the old one means nothing; it is removed,
// and then "rename". Whoever holds the volume's lock completes what another one has left.
//
// A name that leads to a volume is removed by who holds that volume's lock, and by nobody else.
#include <algorithm>
#include <cerrno>

#include "backend/layout.h"
#include "base/names.h"
#include "base/text.h"
#include "store/store_impl.h"

namespace tplstore {
namespace {

constexpr uint64_t kRenameBytesMax = 512;

std::string rename_object(const Uuid& volume) { return volume_folder(volume) + "/rename"; }

struct Rename {
  std::string from, to;
};

// Nothing when it is damaged: then each name counts as it stands.
std::optional<Rename> parse_rename(const std::string& text) {
  const size_t middle = text.find('\n');
  if (middle == std::string::npos || !text.ends_with('\n')) return std::nullopt;
  Rename rename{text.substr(0, middle), text.substr(middle + 1)};
  if (!rename.to.empty()) rename.to.pop_back();
  if (!is_valid_name(rename.from) || !is_valid_name(rename.to)) return std::nullopt;
  return rename;
}

}  // namespace

std::string volume_name_object(const std::string& volume) {
  return fmt::format("{}/{}", paths::kVolumeNames, volume);
}

// What a name leads to, whether it counts or not; nothing when there is no such name.
std::optional<Uuid> Store::Impl::look_up(const std::string& name) {
  const auto content = backend->get(volume_name_object(name), 256);
  if (!content) return std::nullopt;
  Uuid uuid;
  if (!parse_uuid(to_text(*content), uuid))
    fail(EIO, volume_name_object(name), "damaged: it holds no uuid");
  return uuid;
}

// The new name of a volume whose old one is still there, and is this one; else nothing.
std::optional<std::string> Store::Impl::renamed_to(const std::string& name, const Uuid& uuid) {
  const auto content = backend->get(rename_object(uuid), kRenameBytesMax);
  if (!content) return std::nullopt;
  const auto rename = parse_rename(to_text(*content));
  if (!rename || rename->from != name || look_up(rename->to) != uuid) return std::nullopt;
  return rename->to;
}

Uuid Store::Impl::uuid_of(const std::string& volume) {
  check_name("volume", volume);
  const auto uuid = look_up(volume);
  if (uuid && !renamed_to(volume, *uuid)) return *uuid;
  if (!removed_volumes(volume).empty())
    fail(ENOENT, fmt::format("volume {}", volume),
         "was removed; 'tplstore volume restore {}' brings it back", volume);
  fail(ENOENT, fmt::format("volume {}", volume), "is not there; see 'tplstore volume list'");
}

void Store::Impl::for_each_name(
    const std::function<void(const std::string& name, const Uuid& volume)>& visit,
    const std::function<void(const std::string& name, const Error& error)>& unreadable) {
  std::set<std::string> visited;
  for (std::string name : backend->list(std::string(paths::kVolumeNames))) {
    std::optional<Uuid> uuid;
    try {
      check_name("volume", name);
      uuid = look_up(name);
      if (!uuid) continue;  // removed since it was listed
      if (auto other = renamed_to(name, *uuid)) name = std::move(*other);
    } catch (const Error& error) {
      unreadable(name, error);
      continue;
    }
    // The new name of one that is being renamed may be in the list, and may not.
    if (visited.insert(name).second) visit(name, *uuid);
  }
}

std::map<Uuid, std::string> Store::Impl::volume_names(std::vector<std::string>* damaged) {
  std::map<Uuid, std::string> names;
  const auto report = [&](const std::string& name, const Error& error) {
    if (damaged == nullptr) throw error;
    options.log(error);
    damaged->push_back(name);
  };
  for_each_name(
      [&](const std::string& name, const Uuid& uuid) {
        const auto [other, is_new] = names.try_emplace(uuid, name);
        if (!is_new)
          report(name, Error(EIO, volume_name_object(name),
                             fmt::format("damaged: it leads to the volume of {}", other->second)));
      },
      report);
  return names;
}

std::vector<Uuid> Store::Impl::volume_folders() {
  std::vector<Uuid> uuids;
  for (const std::string& folder : backend->list(std::string(paths::kVolumes))) {
    Uuid uuid;
    if (parse_uuid(folder, uuid)) uuids.push_back(uuid);
  }
  return uuids;
}

bool Store::Impl::publish(const std::string& volume, const Uuid& uuid) {
  const std::string text = uuid.text(), name = volume_name_object(volume);
  try {
    if (backend->put_new(name, as_bytes(text))) return true;
    // One that was renamed, and whose old name this is, may just not have come to an end with it.
    return is_free_name(volume) && backend->put_new(name, as_bytes(text));
  } catch (const Error&) {
    // It may have got as far as giving the name; what cannot be made durable is not there.
    const auto there = backend->get(name, 256);
    if (there && to_text(*there) == text) {
      backend->remove(name);
      sync_names();
    }
    throw;
  }
}

// A name whose removal is in the page cache only must not come back when its volume is gone.
void Store::Impl::sync_names() {
  try {
    backend->sync_folder(std::string(paths::kVolumeNames));
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;  // there never was one
  }
}

// --- renaming

// Completes what somebody may have begun who is gone, or undoes it. With the volume's lock held.
void Store::Impl::settle_rename(const Uuid& uuid) {
  const std::string object = rename_object(uuid);
  const auto content = backend->get(object, kRenameBytesMax);
  if (!content) return;
  const auto rename = parse_rename(to_text(*content));
  if (rename && look_up(rename->to) == uuid) {
    // It may be there and not durable yet: then it must be before the old one goes.
    sync_names();
    if (look_up(rename->from) == uuid) {
      backend->remove(volume_name_object(rename->from));
      sync_names();
    }
  }
  backend->remove(object);
}

void Store::Impl::settle_rename_if_free(const Uuid& uuid) {
  if (!backend->get(rename_object(uuid), kRenameBytesMax)) return;
  const auto lock = backend->try_lock(lock_name(volume_folder(uuid)), LockMode::kExclusive);
  if (lock) settle_rename(uuid);
}

// Whether nothing has this name any more that only was a volume's before.
bool Store::Impl::give_up_old_name(const std::string& name) {
  const auto uuid = look_up(name);
  if (!uuid || !renamed_to(name, *uuid)) return !uuid;
  const auto lock = backend->try_lock(lock_name(volume_folder(*uuid)), LockMode::kExclusive);
  if (!lock) return false;
  settle_rename(*uuid);
  return look_up(name) != uuid;
}

bool Store::Impl::is_free_name(const std::string& name) {
  try {
    return give_up_old_name(name);
  } catch (const Error& error) {
    if (error.code() != EIO && error.code() != ENOENT) throw;
    return false;
  }
}

bool Store::Impl::has_name(const std::string& name) {
  const auto uuid = look_up(name);
  return uuid && !renamed_to(name, *uuid);
}

bool Store::Impl::is_named(const Uuid& uuid) {
  bool is_found = false;
  for_each_name(
      [&](const std::string&, const Uuid& named) { is_found = is_found || named == uuid; },
      [](const std::string&, const Error& error) { throw Error(error); });
  return is_found;
}

void Store::rename_volume(const std::string& name, const std::string& new_name) {
  check_name("volume", new_name);
  const Uuid uuid = impl_->uuid_of(name);
  Backend& backend = *impl_->backend;
  const std::string object = fmt::format("volume {}", name);
  if (name == new_name) fail(EEXIST, object, "has that name already");
  // Who collects volumes without a name reads all names, and could see neither.
  const auto gc_lock = impl_->share_gc_lock();
  const RemovalLocks locks = lock_for_removal(backend, volume_folder(uuid), uuid, name);
  if (impl_->uuid_of(name) != uuid)
    fail(EBUSY, object, "was removed and made again meanwhile; look at it before you rename it");
  read_header(backend, volume_folder(uuid), uuid);
  impl_->settle_rename(uuid);
  const std::string text = fmt::format("{}\n{}\n", name, new_name);
  if (!backend.put_new(rename_object(uuid), as_bytes(text)))
    fail(EBUSY, object, "is being renamed by another process; try again");
  const auto give_up = [&] {
    if (impl_->look_up(new_name) != uuid) backend.remove(rename_object(uuid));
  };
  try {
    if (!impl_->publish(new_name, uuid))
      fail(EEXIST, fmt::format("volume {}", new_name), "exists already");
  } catch (...) {
    give_up();
    throw;
  }
  impl_->settle_rename(uuid);
}

}  // namespace tplstore
