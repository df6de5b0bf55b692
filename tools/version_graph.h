// Draws the versions of a volume as a tree in plain ASCII, as `git log --graph` does: newest first,
// each version in the lane of its newest child.
//
//     *      9
//     | *    8
//     | | o  a fork of 6
//     | |/
//     | *    6
//     * |    5
//     |/
//     *      3
//
// Invariants: lines never cross, since lanes are kept in the order of the tree. Children of one
// version are merged as soon as they are neighbours, and a lane that ends is closed, so a drawing
// is no wider than the number of branches that are open. Time is linear in the size of what is
// drawn, besides sorting; that size may be the square of the number of branches.
//
// Thread safety: pure functions. Throws nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tplstore::tool {

struct GraphNode {
  uint32_t number;            // of a version; 0 of a fork
  uint32_t parent;            // a smaller number; 0: none
  bool is_leaf_fork = false;  // another volume that started from `parent`
};

struct GraphRow {
  std::string graph;           // without blanks at its end
  std::optional<size_t> node;  // index of the node that stands in this row; none: lines only
};

// Versions in rising order by number; forks anywhere among them. A fork is drawn above its parent,
// as `o`; several in the order in which they come. A parent that is not among the nodes ends the
// lane.
std::vector<GraphRow> draw_version_graph(const std::vector<GraphNode>& nodes);

// Whether each node is the parent of the next one, so that a drawing would tell nothing.
bool is_linear(const std::vector<GraphNode>& nodes);

// Versions that no other one starts from: as many lanes may be open beside each other.
size_t count_branches(const std::vector<GraphNode>& nodes);

}  // namespace tplstore::tool
