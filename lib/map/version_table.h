// The frozen versions of a volume, how they descend from each other, what is kept for whom, and
// what of this stands in the map log: rows in groups, so that a checkpoint writes only the groups
// that changed, and the checkpoint record that names them.
//
// A version that was removed is *hidden*: nobody sees it, but its tree still counts until it can
// be taken out (collected): when no fork is pinned to it and at most one version descends from it
// directly. Then that one descends from its parent.
//
// A version that was frozen *for a reader* of current is hidden from the start, but not removed:
// that happens when the reader has gone.
//
// Thread safety: none; guarded by the map's lock. Errors: Error(EIO) for damage.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/volume_types.h"
#include "map/node.h"

namespace tplstore {

inline constexpr uint32_t kVersionHidden = 1;      // removed, but something still needs it
inline constexpr uint32_t kVersionOwnKnown = 2;    // own_blocks is exact, and kept so
inline constexpr uint32_t kVersionImported = 4;    // an origin follows on disk
inline constexpr uint32_t kVersionUnswept = 8;     // its file may have cells that a crash left
inline constexpr uint32_t kVersionForReader = 16;  // frozen for one who reads current; see below
inline constexpr uint32_t kVersionsPerGroup = 32;  // versions [32 g, 32 g + 32) are group g
inline constexpr size_t kNoteBytesMax = 512;

// A version in numbers, in memory as on disk.
struct VersionNumbers {
  uint32_t number = 0;
  uint32_t parent = 0;     // the version that it started from; 0 for a volume's first
  int64_t created_ns = 0;  // frozen at; for current, begun at
  uint64_t size_bytes = 0;
  uint64_t own_blocks = 0;      // cells that only this version keeps; see kVersionOwnKnown
  uint64_t file_blocks = 0;     // cells of its own data file that are allocated
  uint64_t foreign_blocks = 0;  // blocks that come from volumes that this one was forked from
};
static_assert(sizeof(VersionNumbers) == 48);

// A version of a volume. That of current is kept apart: its tree is the one that changes.
struct VersionRecord : VersionNumbers {
  uint32_t flags = 0;
  std::string name;
  std::string note;
  VersionIdentity origin;          // of a version that was imported
  std::vector<uint32_t> children;  // that have it as their parent; follows from `parent`
  NodeRef root;

  // Removed, or for readers.
  bool is_hidden() const { return (flags & (kVersionHidden | kVersionForReader)) != 0; }
  // And kept for others, or not collected yet.
  bool is_removed() const { return (flags & kVersionHidden) != 0; }
  bool is_own_known() const { return (flags & kVersionOwnKnown) != 0; }
  void set_own(std::optional<uint64_t> blocks);
};
// What may be kept by those who do not read the tree.
VersionRecord without_root(const VersionRecord& record);

// Where blocks with sources up to `last` live, and past the row before: in that volume's files.
struct SourceRow {
  uint32_t last;
  uint32_t reserved;
  Uuid volume;
};
static_assert(sizeof(SourceRow) == 24);

// A version that a fork was made from, and the fork.
struct Pin {
  uint32_t version;
  uint32_t reserved;
  Uuid fork;
  bool operator==(const Pin&) const = default;
};
static_assert(sizeof(Pin) == 24);

class VersionTable {
 public:
  using Map = std::map<uint32_t, VersionRecord>;

  Map& all() { return versions_; }
  const Map& all() const { return versions_; }
  VersionRecord* find(uint32_t number);
  const VersionRecord* find(uint32_t number) const;
  const VersionRecord* find_name(std::string_view name) const;  // of those that are not hidden

  // Computes `children` anew, after loading.
  void link_all(const VersionRecord& current);
  void hide(VersionRecord& version);
  void add(VersionRecord version);
  // Those that were frozen for readers and are not removed yet.
  const std::set<uint32_t>& for_readers() const { return for_readers_; }
  // A hidden version that nothing needs any more.
  std::optional<uint32_t> collectible() const;
  bool is_pinned(uint32_t number) const;
  // Takes a version out; its child, if there is one (perhaps `current`), descends from its parent
  // then. Its cells are counted as a removed version's.
  VersionRecord take_out(uint32_t number, VersionRecord& current);
  // The newest version below `version` that is retained, else where the fork began, else 0: cells
  // of later sources are only kept for `version` and those that descend from it.
  uint32_t floor_of(const VersionRecord& version) const;

  // The groups' addresses in the log; what a checkpoint record holds.
  std::map<uint32_t, NodeAddress>& groups() { return groups_; }
  const std::map<uint32_t, NodeAddress>& groups() const { return groups_; }
  static uint32_t group_of(uint32_t number) { return number / kVersionsPerGroup; }

  // Empty unless the volume is a fork. `flattens` means: its own files are about to have it all.
  std::vector<SourceRow> sources;
  bool flattens = false;
  std::vector<Pin> pins;
  // Cells that are still allocated in the data files of versions that are gone; not of files that a
  // flattening has copied from ancestors.
  std::map<uint32_t, uint64_t> removed_files;
  uint32_t base() const { return sources.empty() ? 0 : sources.back().last; }

 private:
  Map versions_;
  std::set<uint32_t> hidden_;  // that are removed
  std::set<uint32_t> for_readers_;
  std::map<uint32_t, NodeAddress> groups_;
};

// Appends the node of one group; `roots` are as they stand on disk.
uint64_t encode_group(Encoder& to, uint64_t seed, uint32_t group, uint32_t current,
                      const std::map<uint32_t, VersionRecord>& versions,
                      const std::map<uint32_t, NodeRef>& roots);
// Reads the rows of a group into `versions`.
void decode_group(Bytes bytes, uint64_t seed, uint32_t group, const std::string& object,
                  std::map<uint32_t, VersionRecord>& versions);

}  // namespace tplstore
