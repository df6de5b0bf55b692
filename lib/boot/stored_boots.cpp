// Looks at, copies and removes what boot/profile_store.h and boot/pack.h keep.
#include "boot/stored_boots.h"

#include "boot/learning.h"
#include "template/store_identity.h"

namespace tplstore {

const char* name_of(BootStatus::PackState state) {
  switch (state) {
    case BootStatus::PackState::kNone:
      return "none";
    case BootStatus::PackState::kReady:
      return "ready";
    case BootStatus::PackState::kDamaged:
      break;
  }
  return "damaged";
}

BootStatus show_stored_boots(Backend& store, BootDisk& disk) {
  BootStatus status;
  status.name = disk.name();
  status.is_template = disk.volume().is_nil();
  const FoundProfile found = find_profile(store, disk);
  const Profile& profile = found.stored.profile;
  if (found.is_of_template == status.is_template && !profile.runs.empty())
    status.profile = {found.stored.number, profile.boots,      count_blocks(profile.runs),
                      profile.created_ns,  profile.updated_ns, count_own_blocks(profile.runs)};
  if (!status.is_template) return status;
  bool is_damaged = false;
  if (const auto pack = open_pack(store, found.owner, load_identity(store).secret, &is_damaged)) {
    status.pack = BootStatus::PackState::kReady;
    status.pack_bytes = pack->object_bytes();
  } else if (is_damaged) {
    status.pack = BootStatus::PackState::kDamaged;
  }
  return status;
}

void forget_stored_boots(Backend& store, BootDisk& disk) {
  if (!disk.volume().is_nil()) return volume_profile(disk.volume()).remove_all(store);
  const Uuid uuid = disk.template_uuid().value();
  template_profile(uuid).remove_all(store);
  template_pack(uuid).remove_all(store);
}

uint64_t remove_boot_orphans(Backend& store, const std::set<Uuid>& templates) {
  return remove_orphans_in(store, template_profile({}).folder, templates) +
         remove_orphans_in(store, template_pack({}).folder, templates);
}

void copy_boots_for_fork(Backend& store, const Uuid& parent, const Uuid& child) {
  StoredProfile stored = load_profile(store, volume_profile(parent), parent);
  if (stored.profile.runs.empty()) return;
  stored.profile.owner = child;
  put_profile(store, volume_profile(child), 0, stored.profile);
}

}  // namespace tplstore
