// Lays the versions out in lanes, children before parents, then draws row by row.
#include "version_graph.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

namespace tplstore::tool {
namespace {

constexpr size_t kNone = SIZE_MAX;

// The rows and columns of the drawing: which node comes after which from the top to the bottom, and
// from the left to the right.
struct Layout {
  std::vector<size_t> downwards;  // nodes as they are drawn
  std::vector<size_t> parent;     // of each node, or kNone
  std::vector<size_t> rank;       // of each node: left to right, a parent before its descendants
};

std::vector<size_t> order_downwards(const std::vector<GraphNode>& nodes) {
  std::vector<size_t> order(nodes.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  // A fork comes right above its parent.
  const auto height = [&](size_t i) {
    const GraphNode& node = nodes[i];
    return std::tuple(node.is_leaf_fork ? node.parent : node.number, node.is_leaf_fork);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return height(a) > height(b); });
  return order;
}

std::vector<size_t> find_parents(const std::vector<GraphNode>& nodes) {
  std::unordered_map<uint32_t, size_t> node_of;
  for (size_t i = 0; i < nodes.size(); ++i)
    if (!nodes[i].is_leaf_fork) node_of.emplace(nodes[i].number, i);
  std::vector<size_t> parents(nodes.size(), kNone);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const GraphNode& node = nodes[i];
    const bool can_have = node.parent != 0 && (node.is_leaf_fork || node.parent < node.number);
    const auto found = can_have ? node_of.find(node.parent) : node_of.end();
    if (found != node_of.end()) parents[i] = found->second;
  }
  return parents;
}

Layout lay_out(const std::vector<GraphNode>& nodes) {
  Layout layout{order_downwards(nodes), find_parents(nodes), std::vector<size_t>(nodes.size())};
  // Of siblings the one whose descendants are drawn first stands left: so a new lane is opened to
  // the right of those of the same tree, and the newest version is in the first one.
  std::vector<size_t> first_row(nodes.size(), kNone);
  for (size_t row = 0; row < nodes.size(); ++row) {
    const size_t node = layout.downwards[row];
    const size_t parent = layout.parent[node];
    first_row[node] = std::min(first_row[node], row);
    if (parent != kNone) first_row[parent] = std::min(first_row[parent], first_row[node]);
  }
  std::vector<size_t> rightwards(nodes.size());
  for (size_t i = 0; i < rightwards.size(); ++i) rightwards[i] = i;
  std::sort(rightwards.begin(), rightwards.end(),
            [&](size_t a, size_t b) { return first_row[a] < first_row[b]; });
  std::vector<std::vector<size_t>> children(nodes.size());
  std::vector<size_t> roots;
  for (const size_t node : rightwards)
    (layout.parent[node] == kNone ? roots : children[layout.parent[node]]).push_back(node);

  size_t next_rank = 0;
  std::vector<size_t> open(roots.rbegin(), roots.rend());
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    layout.rank[node] = next_rank++;
    open.insert(open.end(), children[node].rbegin(), children[node].rend());
  }
  return layout;
}

// Lane i is drawn in column 2 i, and what leads from lane i to lane j in column i + j.
class Drawing {
 public:
  explicit Drawing(const Layout& layout) : layout_(layout) {}

  void add(size_t node, char mark) {
    const size_t rank = layout_.rank[node];
    const size_t parent = layout_.parent[node];
    // The lane that leads to this node comes from its descendants, whose ranks are the next.
    const auto found = std::partition_point(lanes_.begin(), lanes_.end(),
                                            [&](const Lane& lane) { return lane.rank < rank; });
    const size_t at = static_cast<size_t>(found - lanes_.begin());
    const bool is_tip = found == lanes_.end() || found->awaited != node;
    draw_moves(is_tip ? at : kNone);
    if (is_tip) lanes_.insert(found, Lane{node, rank});
    draw_node(node, at, mark);

    lanes_[at] = {parent, rank};
    if (parent == kNone) {
      remove(at, false);
      return;
    }
    if (at + 1 < lanes_.size() && lanes_[at + 1].awaited == parent) remove(at + 1, true);
    if (at > 0 && lanes_[at - 1].awaited == parent) remove(at, true);
  }

  std::vector<GraphRow> take_rows() { return std::move(rows_); }

 private:
  struct Lane {
    size_t awaited;  // the node that it leads down to
    size_t rank;     // of the node that it comes from
  };

  void draw_node(size_t node, size_t at, char mark) {
    std::string text(2 * lanes_.size() - 1, ' ');
    for (size_t lane = 0; lane < lanes_.size(); ++lane) text[2 * lane] = '|';
    text[2 * at] = mark;
    rows_.push_back({std::move(text), node});
  }

  // The lane is closed, and if it `merges` leads to the one left of it. What that looks like is
  // known with the next row.
  void remove(size_t at, bool merges) {
    draw_moves(kNone);
    lanes_.erase(lanes_.begin() + static_cast<ptrdiff_t>(at));
    removed_ = at;
    merges_ = merges;
  }

  // Draws where the lanes go between the last row and the next, in which a lane is new at
  // `inserted`. The lane that was removed and the new one shift the others by one at most, so that
  // one row does.
  void draw_moves(size_t inserted) {
    const size_t count = lanes_.size() + (removed_ == kNone ? 0 : 1);
    std::string text(2 * count + 1, ' ');
    // A new node below one without a parent would look like that parent.
    bool is_needed = removed_ != kNone && !merges_ && inserted == removed_;
    for (size_t from = 0; from < count; ++from) {
      if (from == removed_ && !merges_) continue;
      size_t to = from;
      if (removed_ != kNone && from >= removed_) --to;
      if (inserted != kNone && to >= inserted) ++to;
      text[from + to] = to < from ? '/' : to > from ? '\\' : '|';
      is_needed = is_needed || to != from;
    }
    removed_ = kNone;
    if (!is_needed) return;
    text.erase(text.find_last_not_of(' ') + 1);
    rows_.push_back({std::move(text), std::nullopt});
  }

  const Layout& layout_;
  std::vector<Lane> lanes_;  // by rank
  size_t removed_ = kNone;   // of the lanes in the last row, the one that is closed below it
  bool merges_ = false;
  std::vector<GraphRow> rows_;
};

}  // namespace

std::vector<GraphRow> draw_version_graph(const std::vector<GraphNode>& nodes) {
  const Layout layout = lay_out(nodes);
  Drawing drawing(layout);
  for (const size_t node : layout.downwards)
    drawing.add(node, nodes[node].is_leaf_fork ? 'o' : '*');
  return drawing.take_rows();
}

size_t count_branches(const std::vector<GraphNode>& nodes) {
  std::unordered_set<uint32_t> parents;
  for (const GraphNode& node : nodes)
    if (!node.is_leaf_fork) parents.insert(node.parent);
  return static_cast<size_t>(std::count_if(nodes.begin(), nodes.end(), [&](const GraphNode& node) {
    return !node.is_leaf_fork && !parents.contains(node.number);
  }));
}

bool is_linear(const std::vector<GraphNode>& nodes) {
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i].is_leaf_fork) return false;
    if (i > 0 && nodes[i].parent != nodes[i - 1].number) return false;
  }
  return true;
}

}  // namespace tplstore::tool
