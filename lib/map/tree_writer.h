// Reading nodes of the map from its log, and writing trees of them.
//
// Thread safety: reading is, a TreeWriter is for one thread. Errors: Error(EIO) for damage, and
// what the log throws.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

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

// A leaf or a page, clean, with one reference for the caller.
Node* read_node(MapLog& log, const MissingNode& missing);

// Writes trees into a log level by level, so that every node is there before what points to it,
// and small nodes share frames.
//
// Usage: plan the pages and leaves of one or more trees from their roots down, then finish(), after
// which the address of each page is known. What was written may be taken for written only after
// the log was synced.
class TreeWriter {
 public:
  explicit TreeWriter(MapLog& log) : log_(log) {}
  TreeWriter(const TreeWriter&) = delete;

  struct PlannedPage;
  // A slot of a planned page; of no page for a root.
  struct Place {
    PlannedPage* page = nullptr;
    uint32_t slot = 0;
  };
  struct PlannedPage {
    uint32_t level;
    uint32_t index;
    uint32_t version;
    Node* node;                                // that it is in memory, or nullptr
    std::array<uint64_t, kPageSlots> words{};  // to be filled with what needs no writing
    std::vector<Place> places;
    NodeAddress address;  // after finish()
  };

  // When the node was planned before (trees share nodes), links it to this place too.
  bool link(Node* node, Place place);
  // The planned page of a node; nullptr when it was not planned.
  PlannedPage* planned(Node* node) const;
  PlannedPage* add_page(Place place, uint32_t version, Node* node);
  // Encodes a leaf; as a delta over `base` (in this log) where that is allowed and smaller.
  void add_leaf(Place place, uint32_t version, std::span<const Interval> intervals,
                NodeAddress base, Node* node);
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
  struct PlannedLeaf {
    Node* node;
    uint64_t offset;  // in the buffer
    uint64_t length;
    bool is_full;
    std::vector<Place> places;
    NodeAddress address;  // once it is in the log
  };
  static void fill(const Place& place, NodeAddress address);
  void flush_leaves();

  MapLog& log_;
  std::vector<std::unique_ptr<PlannedPage>> pages_[kPageLevels + 1];
  std::deque<PlannedLeaf> leaves_;  // a deque: references into it stay good
  size_t leaves_flushed_ = 0;
  std::unordered_map<Node*, PlannedPage*> known_pages_;
  std::unordered_map<Node*, PlannedLeaf*> known_leaves_;
  Encoder leaf_bytes_;
  std::vector<Written> written_;
  uint64_t written_bytes_ = 0;
};

}  // namespace tplstore
