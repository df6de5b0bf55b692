// The frozen versions of a volume and what of them stands in the map log: rows in groups, so that
// a checkpoint writes only the groups that changed, and the checkpoint record that names them.
//
// Thread safety: none; guarded by the map's lock. Errors: Error(EIO) for damage.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "bytes.h"
#include "map_log.h"
#include "map_node.h"
#include "slots.h"

namespace tplstore {

// A version of a volume. The row of current is kept apart: its root is the tree that changes.
struct VersionRecord {
  uint32_t number = 0;
  uint32_t parent = 0;     // the version that it started from; 0 for a volume's first
  int64_t created_ns = 0;  // frozen at; for current, begun at
  uint64_t size_bytes = 0;
  uint64_t own_blocks = 0;  // blocks that its own tree maps to its own data file
  uint32_t flags = 0;
  std::string name;
  std::string note;
  Slot root;
};

inline constexpr uint32_t kVersionHidden = 1;      // flag: removed, but something still needs it
inline constexpr uint32_t kVersionsPerGroup = 32;  // versions [32 g, 32 g + 32) are group g
inline constexpr size_t kNoteBytesMax = 512;

class VersionTable {
 public:
  using Map = std::map<uint32_t, VersionRecord>;

  Map& all() { return versions_; }
  const Map& all() const { return versions_; }
  const VersionRecord* find(uint32_t number) const;
  const VersionRecord* find_name(std::string_view name) const;

  // The groups' addresses in the log; what a checkpoint record holds.
  std::map<uint32_t, NodeAddress>& groups() { return groups_; }
  const std::map<uint32_t, NodeAddress>& groups() const { return groups_; }
  static uint32_t group_of(uint32_t number) { return number / kVersionsPerGroup; }

 private:
  Map versions_;
  std::map<uint32_t, NodeAddress> groups_;
};

// Appends the node of one group; the roots of its versions must be words on disk.
uint64_t encode_group(Encoder& to, uint64_t seed, uint32_t group, uint32_t current,
                      const std::map<uint32_t, VersionRecord>& versions);
// Reads the rows of a group into `versions`.
void decode_group(Bytes bytes, uint64_t seed, uint32_t group, const std::string& object,
                  std::map<uint32_t, VersionRecord>& versions);

// The payload of a checkpoint frame, followed by group_count CheckpointGroups.
struct CheckpointRecord {
  LogPosition replay_from;  // frames from here on are not in the checkpoint
  uint64_t live_bytes;      // of the log: nodes that some version needs
  uint64_t current_size_bytes;
  int64_t current_began_ns;
  uint64_t current_own_blocks;
  uint64_t current_root;  // slot word
  uint32_t current;
  uint32_t current_parent;
  uint32_t group_count;
  uint32_t source_count;  // rows of the source table; 0: all sources are this volume's
  uint64_t reserved[8];
};
static_assert(sizeof(CheckpointRecord) == 152);
struct CheckpointGroup {
  uint64_t address;
  uint32_t group;
  uint32_t reserved;
};
static_assert(sizeof(CheckpointGroup) == 16);

// The content of the object "map": where the log begins to count.
struct MapPointer {
  SlotPrefix prefix;
  Uuid volume;
  uint64_t generation;         // of the log
  uint64_t checkpoint_offset;  // of the last checkpoint's frame
  uint64_t clean_sequence;     // the last frame of a clean close; 0 while open
  uint64_t reserved[4];
};
static_assert(sizeof(MapPointer) == 96);
inline constexpr uint64_t kMapPointerMagic = 0x315250414d4c5054;  // "TPLMAPR1"

}  // namespace tplstore
