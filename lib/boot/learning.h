// What is learnt from a boot that has ended: a profile, and a pack.
//
// A boot belongs to whoever at least a twentieth of what it read came from: the volume itself, by
// its own frozen versions; or the nearest of the volumes that it is a fork of; or the template. Its
// profile and pack are there, and all that have no profile nearer by boot by that: clones by their
// template's, forks by their parent's.
//
// Thread safety: functions of what they are given; a boot that another host learns at the same time
// is not lost. Errors: the backend's and the disk's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "boot/boot_disk.h"
#include "boot/cell_memory.h"
#include "boot/pack.h"
#include "boot/profile_store.h"

namespace tplstore {

// The profile that a disk's boots are read by: the volume's own, an ancestor's, or its template's.
struct FoundProfile {
  bool is_of_template = false;
  Uuid owner;
  StoredProfile stored = {};  // without runs: there is none

  NumberedObject profile() const;
  NumberedObject pack() const;
};
// A template's that the caller says it knows is not loaded: it comes with its number and without
// runs.
using IsKnownProfile = std::function<bool(const Uuid& owner, uint64_t number)>;
FoundProfile find_profile(Backend& store, BootDisk& disk, const IsKnownProfile& is_known = nullptr);

// Takes a boot's runs into the profile that they belong to. The profile as it is then; nothing when
// the boot does not count. Hashes are made of what is in the memory, if `origin`, the template as a
// disk, is there.
std::optional<FoundProfile> learn_boot(Backend& store, BootDisk& disk, BootDisk* origin,
                                       std::span<const ProfileRun> boot, uint64_t blocks_max,
                                       CellMemory& memory, const HashSecret& secret);

// The files that have cells of these runs.
std::set<CellFileKey> files_of(BootDisk& disk, std::span<const ProfileRun> runs);

// Makes the pack of a profile, unless there is one that has seven eighths of it; whether it did. A
// volume's has what its template's has not. The cells are read through the memory, as the disk, of
// which the profile is or which boots by it, has them. EINTR when `interrupted` says so.
bool make_pack_of(Backend& store, BootDisk& disk, const FoundProfile& found,
                  const HashSecret& secret, CellMemory& memory,
                  const std::function<bool()>& interrupted);

// How many bytes of these runs the disk has from their sources, and how many of them are in memory.
struct CachedRuns {
  uint64_t bytes = 0;
  uint64_t cached_bytes = 0;
};
CachedRuns count_cached(BootDisk& disk, std::span<const ProfileRun> runs, CellMemory& memory);

}  // namespace tplstore
