// Reading nodes of the map from its log, and trees that are not changed meanwhile: frozen versions,
// and roots of current that were copied under the map's lock.
//
// A tree is partly in memory, partly in the log. What is in memory is shared with those who load
// and evict, so slots are copied under the map's lock; what is read from the log is not kept, since
// a walk of an old version would only push out what is in use.
//
// Thread safety: reading single nodes; one thread per TreeReader. Who has one keeps the log from
// being exchanged (maintenance_mutex_). Errors: Error(EIO) for damage.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "base/spinning_mutex.h"
#include "map/map_log.h"
#include "map/node.h"
#include "map/tree.h"

namespace tplstore {

// A leaf as it stands in the log: a full node, or deltas over one.
struct StoredLeaf {
  std::vector<Interval> intervals;
  uint32_t version = 0;      // of the newest node of the chain
  uint32_t depth = 0;        // deltas over the full node
  uint64_t full_bytes = 0;   // of the full node
  uint64_t delta_bytes = 0;  // of the deltas together
};
StoredLeaf read_leaf(MapLog& log, NodeAddress address, uint32_t region);

// A leaf or a page, clean.
NodeRef read_node(MapLog& log, const MissingNode& missing);

using PageSlots = std::array<NodeRef, kPageSlots>;

class TreeReader {
 public:
  TreeReader(std::shared_ptr<MapLog> log, SpinningSharedMutex& mutex)
      : log_(std::move(log)), mutex_(mutex) {}

  // The node that a slot leads to, in memory.
  NodeRef loaded(const NodeRef& slot, uint32_t level, uint32_t index);
  // The slots of a page; empty ones where there is no page. A copy, which stays good while others
  // load and evict.
  PageSlots slots_below(const NodeRef& slot, uint32_t level, uint32_t index);
  // The intervals of a region, whatever form they have.
  std::vector<Interval> intervals(const NodeRef& slot, uint32_t region);
  // Whether both lead to the same for sure. Whether a node is dirty changes under the lock only.
  bool is_same(const NodeRef& a, const NodeRef& b) const;
  // Leaves one of those slots that lead to the same, and none that is empty.
  void remove_duplicates(std::vector<NodeRef>& slots) const;

  // Walks trees side by side down to the regions of [begin, end), in rising order, with the slots
  // that each has there. `leads_on` is asked about those of each level, and may take some out.
  using Slots = std::vector<NodeRef>;
  using LeadsOn = std::function<bool(Slots& slots, uint32_t level)>;
  using Visit = std::function<void(uint32_t region, const Slots& slots)>;
  void walk(Slots roots, uint64_t begin, uint64_t end, const LeadsOn& leads_on,
            const Visit& visit) {
    walk(std::move(roots), kPageLevels, 0, {begin, end, leads_on, visit});
  }

 private:
  struct Walk {
    uint64_t begin;
    uint64_t end;
    const LeadsOn& leads_on;
    const Visit& visit;
  };
  void walk(Slots slots, uint32_t level, uint32_t index, const Walk& how);

  const std::shared_ptr<MapLog> log_;
  SpinningSharedMutex& mutex_;
};

}  // namespace tplstore
