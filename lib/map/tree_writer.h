// Writing trees of the map into its log.
//
// Thread safety: one thread per TreeWriter. Errors: what the log throws.
#pragma once

#include <deque>
#include <unordered_map>
#include <vector>

#include "map/tree_reader.h"

namespace tplstore {

// Writes trees into a log level by level, so that every node is there before what points to it,
// and small nodes share frames.
//
// Usage: plan the pages and leaves of one or more trees from their roots down, then finish(), after
// which every place leads to its node in the log. What was written may be taken for written only
// after the log was synced.
class TreeWriter {
 public:
  explicit TreeWriter(MapLog& log) : log_(log) {}
  TreeWriter(const TreeWriter&) = delete;

  // What is to lead to a node: a slot of a planned page, or that of a root.
  struct Place {
    NodeRef* slot;
    uint32_t level = kPageLevels;  // of the node
    uint32_t index = 0;
  };
  struct Planned {
    Node* node;  // that it is in memory, or nullptr
    uint64_t length = 0;
    bool is_full = true;  // not a delta
    std::vector<NodeRef*> slots_to_it;
    NodeAddress address;  // once it is in the log
  };
  struct PlannedPage : Planned {
    uint32_t level = 0;
    uint32_t index = 0;
    uint32_t version = 0;
    PageSlots slots;  // to be filled with what needs no writing

    Place place(uint32_t i) { return {&slots[i], level - 1, index * kPageSlots + i}; }
  };

  PlannedPage& add_page(Place place, uint32_t version, Node* node);
  // Encodes a leaf; as a delta over `base` (in this log) where that is allowed and smaller.
  void add_leaf(Place place, uint32_t version, std::span<const Interval> intervals,
                NodeAddress base, Node* node);
  // Plans what of a tree is in memory and changed; all else is in the log. What was planned before,
  // since trees share nodes, is not planned again.
  void add_changed(TreeReader& reader, const NodeRef& slot, Place place);
  void finish();

  struct Written {
    Node* node;
    NodeAddress address;
    bool is_full;  // not a delta
  };
  // The nodes in memory that were written, for marking them clean.
  const std::vector<Written>& written() const { return written_; }
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  void add_to_frame(Planned& planned, uint64_t length);
  void flush();

  MapLog& log_;
  std::deque<PlannedPage> pages_[kPageLevels + 1];  // deques: references into them stay good
  std::deque<Planned> leaves_;
  std::unordered_map<Node*, Planned*> known_;
  Encoder bytes_;                   // of the next frame
  std::vector<Planned*> in_frame_;  // that they are of
  std::vector<Written> written_;
  uint64_t written_bytes_ = 0;
};

}  // namespace tplstore
