// What a store has of boots, profiles and packs, as those see it who need no boot cache: the tool,
// forks, removals, gc.
//
// Thread safety: functions of what they are given. Errors: the backend's and the disk's.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "boot/boot_disk.h"
#include "boot/boot_windows.h"

namespace tplstore {

struct BootStatus {
  std::string name;
  bool is_template = false;
  struct ProfileStatus {
    uint64_t generation = 0;
    uint32_t boots = 0;
    uint64_t blocks = 0;
    int64_t created_ns = 0;
    int64_t updated_ns = 0;
    uint64_t own_blocks = 0;  // that did not come from the template
  };
  std::optional<ProfileStatus> profile;
  // kDamaged: passed over.
  enum class PackState { kNone, kReady, kDamaged };
  PackState pack = PackState::kNone;
  uint64_t pack_bytes = 0;
  // Of a server that has it:
  uint64_t cached_bytes = 0;        // of what is in the profile
  std::vector<BootWindow> windows;  // the last ones, the newest last; of a template: its volumes'
};
const char* name_of(BootStatus::PackState state);  // "none", "ready", "damaged"

// Of a volume or a template.
BootStatus show_stored_boots(Backend& store, BootDisk& disk);
void forget_stored_boots(Backend& store, BootDisk& disk);
// What is of no template that is there; how many objects. Of a volume all goes with its folder.
uint64_t remove_boot_orphans(Backend& store, const std::set<Uuid>& templates);
// A fork that is about to need its parent no more keeps what it boots by.
void adopt_boots(Backend& store, BootDisk& fork);

}  // namespace tplstore
