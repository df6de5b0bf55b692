// Reading trees of the map that are not changed meanwhile: frozen versions, and roots of current
// that were copied under the map's lock. Walks of two or three trees, skipping what they share.
//
// A tree is partly in memory, partly in the log. What is in memory is shared with those who load
// and evict, so slots are copied under the map's lock; what is read from the log is not kept, since
// a walk of an old version would only push out what is in use.
//
// Thread safety: one thread per TreeReader. The caller keeps the log from being exchanged
// (maintenance_mutex_). Errors: Error(EIO) for damage.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "base/spinning_mutex.h"
#include "map/map_log.h"
#include "map/node.h"

namespace tplstore {

using PageSlots = std::array<NodeRef, kPageSlots>;

class TreeReader {
 public:
  TreeReader(MapLog& log, SpinningSharedMutex& mutex) : log_(log), mutex_(mutex) {}

  // The node that a slot leads to, in memory.
  NodeRef loaded(const NodeRef& slot, uint32_t level, uint32_t index);
  // The slots of a page; empty ones where there is no page.
  PageSlots slots_below(const NodeRef& slot, uint32_t level, uint32_t index);
  // A copy of a page's slots that stays good while others load and evict.
  PageSlots slots_of(Node* page) const;
  // The intervals of a region, whatever form they have.
  std::vector<Interval> intervals(const NodeRef& slot, uint32_t region);
  // Whether both lead to the same for sure. Whether a node is dirty changes under the lock only.
  bool is_same(const NodeRef& a, const NodeRef& b) const;

  using Visit = std::function<void(uint32_t region, const std::vector<Interval>& a,
                                   const std::vector<Interval>& b)>;
  // Visits the regions of [begin, end) in which the trees of two roots may differ, in rising order.
  void walk_difference(const NodeRef& a, const NodeRef& b, uint32_t begin, uint32_t end,
                       const Visit& visit) {
    walk_difference(a, b, kPageLevels, 0, begin, end, visit);
  }

  // What one region of a version has that its successor has not.
  struct Removal {
    uint32_t region;
    std::vector<Interval> version;
    std::vector<Interval> successor;
  };
  // Visits the regions where `version` may have cells that neither `successor` nor `ancestor` has.
  // Returns the bytes of nodes in the log that only `version` leads to, as far as that can be told
  // without reading more.
  uint64_t walk_removal(const NodeRef& version, const NodeRef& successor, const NodeRef& ancestor,
                        const std::function<void(const Removal&)>& visit);

  // Visits each region of [begin, end) with what the trees of any number of roots have there, each
  // different slot once.
  using VisitAll = std::function<void(uint32_t region, const std::vector<NodeRef>& slots)>;
  void walk_all(std::vector<NodeRef> roots, uint64_t begin, uint64_t end, const VisitAll& visit) {
    walk_all(std::move(roots), kPageLevels, 0, begin, end, visit);
  }

 private:
  void remove_duplicates(std::vector<NodeRef>& slots) const;
  void walk_all(std::vector<NodeRef> slots, uint32_t level, uint32_t index, uint64_t begin,
                uint64_t end, const VisitAll& visit);
  void walk_difference(const NodeRef& a, const NodeRef& b, uint32_t level, uint32_t index,
                       uint64_t begin, uint64_t end, const Visit& visit);
  uint64_t walk_removal(const NodeRef& version, const NodeRef& successor, const NodeRef& ancestor,
                        uint32_t level, uint32_t index,
                        const std::function<void(const Removal&)>& visit);

  MapLog& log_;
  SpinningSharedMutex& mutex_;
};

}  // namespace tplstore
