// Checkpoints: what the log has of a map besides the records that came later. The nodes that
// changed since the last one are written, then rows of versions in groups, lists of free ranges,
// and a record that names them all; the object "map" points at that.
//
// The snapshot is taken at the cut of a commit. From then on its trees do not change, since a node
// that two references lead to is copied before it is changed. So it is written without holding up
// anybody, and recovery replays just what was committed after the cut.
//
// Thread safety: one thread per CheckpointWriter. Errors: what the log throws; Error(EIO) for
// damage.
#pragma once

#include <map>

#include "map/map_log.h"
#include "map/map_state.h"
#include "map/tree_writer.h"
#include "map/update_journal.h"

namespace tplstore {

class CheckpointWriter {
 public:
  explicit CheckpointWriter(MapLog& log) : log_(log), tree_(log) {}

  // Writes what of the snapshot's trees is in memory and changed, and fills in the roots.
  void write_nodes(MapSnapshot& snapshot, TreeReader& reader);
  // Those that were written, and are not dirty any more.
  const std::vector<TreeWriter::Written>& nodes() const { return tree_.written(); }
  // Writes the rest. Returns the offset of the frame, which is not durable yet.
  uint64_t write(MapSnapshot& snapshot, const LogPosition& replay_from);

 private:
  void write_group(uint32_t group, MapSnapshot& snapshot);

  MapLog& log_;
  TreeWriter tree_;
  uint64_t replaced_bytes_ = 0;  // of nodes
};

struct Checkpoint {
  MapState state;
  LogPosition replay_from{};
  uint64_t sequence = 0;  // of its own frame
  JournalName journal;
  uint64_t journal_position = 0;
};
Checkpoint read_checkpoint(MapLog& log, uint64_t offset);

// The payload of a checkpoint frame, followed by CheckpointGroups, SourceRows, Pins, RemovedFiles,
// and the addresses of nodes with free ranges (8 bytes each), as many as it says.
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
  uint32_t source_count;  // 0: all sources are this volume's
  uint64_t current_file_blocks;
  uint64_t current_foreign_blocks;
  uint32_t current_flags;
  uint32_t flattens;  // 1 while a fork is being given its own copy
  uint32_t pin_count;
  uint32_t removed_file_count;
  uint32_t free_node_count;
  uint32_t reserved_count;
  uint64_t open_frame_offset;  // of the life that wrote it; 0: it kept no journal
  uint64_t journal_position;   // of the cut
  uint64_t reserved;
};
static_assert(sizeof(CheckpointRecord) == 152 &&
              offsetof(CheckpointRecord, open_frame_offset) == 128);
struct CheckpointGroup {
  uint64_t address;
  uint32_t group;
  uint32_t reserved;
};
static_assert(sizeof(CheckpointGroup) == 16);
struct RemovedFile {
  uint64_t blocks;
  uint32_t version;
  uint32_t reserved;
};
static_assert(sizeof(RemovedFile) == 16);

}  // namespace tplstore
