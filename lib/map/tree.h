// The copy-on-write tree that maps a version's disk: a root page of level 4 over pages over leaves,
// one leaf for each region. A version is a root slot; freezing one is copying its slot.
//
// A node is changed in place while this tree alone leads to it, and is copied otherwise. Loading is
// not done here: an operation that meets a node which is in the log only changes nothing and says
// which one; the caller reads it without any lock, installs it, and asks again.
//
// Thread safety: none; the caller holds the map's lock, shared for find, exclusive for the rest.
// Errors: std::bad_alloc, upon which all trees show what they showed.
#pragma once

#include <optional>

#include "map/interval.h"
#include "map/node.h"

namespace tplstore {

// A node that has to be loaded first.
struct MissingNode {
  NodeAddress address;
  uint32_t level;
  uint32_t index;   // of the node among those of its level
  uint64_t region;  // that was looked for
};

// What an assignment did, for the books of the map.
struct AssignEffect {
  uint32_t leaves_dirtied = 0;    // leaves and regions that have to be written anew
  uint64_t superseded_bytes = 0;  // of nodes in the log that no version needs any more
};

// Appends the runs of blocks of one region.
std::optional<MissingNode> find(const NodeRef& root, const BlockRange& blocks, RunList& runs);

// Makes a run of one region so (kSourceUnmapped takes its blocks out) in the tree of version
// `current`; find() has just found all of them.
void assign(NodeRef& root, const Run& run, uint32_t current, AssignEffect& effect);

// Puts a node that was loaded into its place, unless the place has changed meanwhile.
void install(NodeRef& root, const MissingNode& missing, NodeRef loaded);

// Lets go of clean leaves and pages of up to `page_count` pages from region `cursor` on, sparing
// those that were looked at since the last pass; moves the cursor, to 0 after the last region.
void evict(NodeRef& root, uint64_t& cursor, uint32_t page_count);

// Memory of the nodes below a slot that are loaded.
uint64_t loaded_bytes(const NodeRef& slot);

}  // namespace tplstore
