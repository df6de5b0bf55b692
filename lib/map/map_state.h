// What the map of a volume is at one moment: current and its tree, the frozen versions and how they
// descend from each other, pins, sources, which cells are free, and what of all this the log has
// not got yet as nodes.
//
// It changes by records (map/records.h): apply() is the one place, for what happens now and for the
// replay of what happened, so that recovery cannot differ. Beside records there is only what none
// of them depends on: nodes are loaded and let go, counts of cells are found out, what is written
// and what is punched is noted.
//
// A version's *floor* is its nearest retained ancestor: cells with sources above it are mapped by
// the version and those that descend from it only, since whatever it has from further down its
// ancestor has too. Hence, by map/comparison.h:
//
//   - When current stops mapping a cell with a source above its floor, the cell is free.
//   - When a hidden version with at most one child is collected, those of its cells above its floor
//     that the child does not map are free, and the child's floor becomes the version's. What the
//     child's root maps at that moment is left to the first rule, with the new floor: every cell
//     is decided once.
//
// How many cells a version alone keeps starts at 0, when it is frozen and all that it has current
// has too, and grows as current replaces things; after a change to its relatives it is counted anew
// when somebody asks.
//
// No lock and no I/O: a node that is not in memory is an answer (MissingNode); the caller reads and
// installs it and asks again.
//
// Thread safety: none; guarded by the map's lock. Errors: std::bad_alloc. An update that throws has
// left all as it was; after any other record the state is to be used no more.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "map/comparison.h"
#include "map/free_ranges.h"
#include "map/records.h"
#include "map/tree.h"
#include "map/tree_writer.h"
#include "map/version_table.h"

namespace tplstore {

// What a checkpoint holds, as of one cut.
struct MapSnapshot {
  VersionRecord current;
  std::set<uint32_t> dirty_groups;
  std::map<uint32_t, VersionRecord> rows;  // of those groups: all whose trees changed are in them
  // Of these and of current in the log; filled in by who writes the trees.
  std::map<uint32_t, NodeRef> roots;
  // Groups of rows that are in the log, and its bytes that are needed, before the checkpoint and,
  // when that is written, with it.
  std::map<uint32_t, NodeAddress> groups;
  uint64_t live_bytes = 0;
  uint64_t dirty_leaves = 0;
  std::vector<SourceRow> sources;
  bool flattens = false;
  std::vector<Pin> pins;
  std::map<uint32_t, uint64_t> removed_files;
  std::vector<FreeRange> free_ranges;
  bool has_synced_holes = false;  // since the last checkpoint, which lists them as free
  uint64_t journal_position = 0;  // of the cut; filled in by who has made it
};

class MapState {
 public:
  MapState() = default;
  MapState(MapState&&) = default;
  MapState& operator=(MapState&&) = default;
  // As a checkpoint has it; roots are words of the log.
  MapState(VersionRecord current, VersionTable table, const std::vector<FreeRange>& free_ranges,
           uint64_t live_bytes);

  struct Applied {
    std::optional<MissingNode> missing;
    bool has_changed = false;  // else all of an update was so already
  };
  // Applies a record that is allowed. When a node is missing, install it and apply the record
  // again: what of an update has been done was taken off its front.
  Applied apply(MapRecord& record);
  Applied apply(UpdateRecord& record);
  // Whether the record can follow on what happened before. Where one is read that cannot, that is
  // damage.
  bool allows(const MapRecord& record) const;

  // --- what is there; version 0 is current
  const VersionRecord& current() const { return current_; }
  const VersionTable& table() const { return table_; }
  const VersionRecord* find(uint32_t version) const {
    return version == 0 || version == current_.number ? &current_ : table_.find(version);
  }
  // Without roots.
  VersionRecord current_record() const { return without_root(current_); }
  std::vector<VersionRecord> frozen_records() const;
  std::optional<VersionRecord> record_of(const std::string& number_or_name) const;  // frozen
  // Whether cells become free when current stops mapping these runs.
  bool frees_cells(const RunList& runs) const;
  bool wants_collection() const;
  bool wants_to_free() const { return free_.wants_commit(); }  // what no commit covers yet
  // Whether something is free and not punched, or could be collected, now or when its reader has
  // gone, or is to be swept.
  bool has_outstanding() const;

  // --- what no record depends on
  // Puts a node that was read into its place, unless that has changed meanwhile.
  void install(uint32_t version, const MissingNode& missing, NodeRef node);
  // Lets go of clean nodes, a slice of the tree at a time; false after a whole pass.
  bool evict_some();
  // Versions whose files may have cells that are not mapped, since a crash; until they are swept.
  std::vector<uint32_t> unswept_versions() const;
  void note_swept(uint32_t version, bool is_swept = true);
  FreeRanges& free_ranges() { return free_; }
  // Versions that were taken out are compared with what came after them, one after the other. No
  // checkpoint may come between a removal and the free ranges that follow from it.
  std::optional<Removal> next_removal() const {
    return removals_.empty() ? std::nullopt : std::optional(removals_.front());
  }
  void finish_removal(const LoneCells& cells);
  // The cells that removing a version would free, if that is known; of current, those that it alone
  // has.
  std::optional<uint64_t> own_blocks(uint32_t version) const;
  // Otherwise what is to be compared to count them. What current changes from here on is added and
  // taken off as it happens; nothing in finish_count() means that it was not found out.
  Removal begin_count(uint32_t version);
  uint64_t finish_count(uint32_t version, std::optional<uint64_t> cells);

  // --- what the log has of it
  // What is to be written, which counts as written from here on; restore() takes that back. For
  // another log that is all rows, and nothing is there before.
  MapSnapshot take_snapshot(bool for_another_log = false);
  void restore(MapSnapshot& snapshot) noexcept;
  void note_written(MapSnapshot& snapshot, const std::vector<TreeWriter::Written>& nodes) noexcept;
  // After a compaction all roots are others; current's tree is given its own by the caller.
  void note_compacted(MapSnapshot& snapshot) noexcept;
  NodeRef& current_root() { return current_.root; }
  struct LogUsage {
    uint64_t live_bytes = 0;      // of the log: nodes that some version needs
    uint64_t dirty_leaves = 0;    // since the last checkpoint
    uint64_t leaves_dirtied = 0;  // ever
    bool has_removed = false;     // a version, since the last compaction
  };
  const LogUsage& usage() const { return usage_; }

 private:
  VersionRecord* find(uint32_t version);
  void mark_row(uint32_t version) { dirty_groups_.insert(VersionTable::group_of(version)); }
  void refresh_floor();
  void account(const RunList& before, const Run& now);
  bool release_cells(uint32_t source, uint64_t count);
  Removal removal_of(const VersionRecord& version) const;
  void change(const FreezeRecord& record);
  void change(const ResizeRecord& record);
  void change(const HideRecord& record);
  void change(const CollectRecord& record);
  void change(const PinRecord& record);
  void change(const UnpinRecord& record);
  void change(const FlattenBeginRecord& record);
  void change(const FlattenEndRecord& record);
  void change(const PositionRecord&) {}

  VersionRecord current_;
  VersionTable table_;
  // Of the cells that current stops mapping, those with sources above its floor are free. Those
  // above its parent's floor are the parent's alone then.
  uint32_t floor_ = 0;
  VersionRecord* parent_ = nullptr;  // current's, when it is retained
  uint32_t parent_group_ = 0;        // of versions; when the parent is taken out, still that
  uint32_t parent_floor_ = 0;
  bool is_parent_dirty_ = false;   // its group is to be among the dirty ones
  std::vector<Removal> removals_;  // not compared yet
  FreeRanges free_;
  std::set<uint32_t> dirty_groups_;
  LogUsage usage_;
  uint64_t evict_cursor_ = 0;
};

}  // namespace tplstore
