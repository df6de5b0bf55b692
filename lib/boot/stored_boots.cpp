// Looks at, copies and removes what boot/profile_store.h and boot/pack.h keep.
#include "boot/stored_boots.h"

#include "boot/learning.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

FoundProfile owner_itself(const BootDisk& disk) {
  if (disk.volume().is_nil()) return {true, disk.template_uuid().value()};
  return {false, disk.volume()};
}

}  // namespace

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
  const FoundProfile own = owner_itself(disk);
  const StoredProfile stored = load_profile(store, own.profile(), own.owner);
  const Profile& profile = stored.profile;
  if (!profile.runs.empty())
    status.profile = {stored.number,      profile.boots,      count_blocks(profile.runs),
                      profile.created_ns, profile.updated_ns, count_own_blocks(profile.runs)};
  bool is_damaged = false;
  if (const auto pack =
          open_pack(store, own.pack(), own.owner, load_identity(store).secret, &is_damaged)) {
    status.pack = BootStatus::PackState::kReady;
    status.pack_bytes = pack->object_bytes();
  } else if (is_damaged) {
    status.pack = BootStatus::PackState::kDamaged;
  }
  return status;
}

void forget_stored_boots(Backend& store, BootDisk& disk) {
  const FoundProfile own = owner_itself(disk);
  own.profile().remove_all(store);
  own.pack().remove_all(store);
}

uint64_t remove_boot_orphans(Backend& store, const std::set<Uuid>& templates) {
  return remove_orphans_in(store, template_profile({}).folder, templates) +
         remove_orphans_in(store, template_pack({}).folder, templates);
}

void adopt_boots(Backend& store, BootDisk& fork) {
  FoundProfile found = find_profile(store, fork);
  Profile& profile = found.stored.profile;
  if (found.is_of_template || found.owner == fork.volume() || profile.runs.empty()) return;
  profile.owner = fork.volume();
  put_profile(store, volume_profile(fork.volume()), 0, profile);
}

}  // namespace tplstore
