// Copying trees of a map from one log into another.
//
// A tree is compared with one that was copied before it: where a slot leads to the same as the
// other's, it takes what the other has in the new log. So what trees share stays shared, a tree
// costs what it does not share, and no table of all nodes is needed.
//
// Thread safety: one thread per TreeCopier. Errors: what the logs throw.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "map/tree_reader.h"
#include "map/tree_writer.h"

namespace tplstore {

// Of the same tree: where it leads in the old log and in memory, and in the new log.
struct CopiedTree {
  NodeRef root;
  NodeRef copy;
};

class TreeCopier {
 public:
  // `mutex` is the map's.
  TreeCopier(std::shared_ptr<MapLog> from, std::shared_ptr<MapLog> to, SpinningSharedMutex& mutex)
      : from_(std::move(from), mutex), to_(to, mutex), to_log_(std::move(to)) {}

  // Copies what of a tree is not in `base`.
  CopiedTree copy(const NodeRef& root, const CopiedTree& base = {});
  uint64_t written_bytes() const { return written_bytes_; }
  // That do not read as zeroes, of all that was copied.
  uint64_t data_blocks() const { return data_blocks_; }

  // What a tree in memory, which has changed since it was copied, becomes in the new log: slots,
  // and addresses of nodes that are to be written anew.
  struct Relocation {
    std::vector<std::pair<NodeRef*, NodeRef>> slots;
    std::vector<std::pair<Node*, NodeAddress>> nodes;
  };
  // The map's lock is held; what is read was written or read just now.
  Relocation plan_relocation(NodeRef& root, const CopiedTree& copied);

 private:
  void plan(TreeWriter& writer, const NodeRef& slot, const CopiedTree& base,
            TreeWriter::Place place);
  void count(std::span<const Interval> intervals);
  void plan_relocation(Relocation& to, NodeRef& slot, const CopiedTree& copied, uint32_t level,
                       uint32_t index);

  TreeReader from_;
  TreeReader to_;
  const std::shared_ptr<MapLog> to_log_;
  uint64_t written_bytes_ = 0;
  uint64_t data_blocks_ = 0;
};

}  // namespace tplstore
