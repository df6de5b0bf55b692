#include "version_graph.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>

#include "base/bytes.h"
#include "version_text.h"

namespace tplstore::version_graph_test {
using namespace tplstore::tool;

namespace {

constexpr GraphNode fork_of(uint32_t parent) { return {0, parent, true}; }

// The drawing with the numbers behind it, and a line break before the first line.
std::string draw(const std::vector<GraphNode>& nodes) {
  const std::vector<GraphRow> rows = draw_version_graph(nodes);
  size_t width = 0;
  for (const GraphRow& row : rows) width = std::max(width, row.graph.size());
  std::string text = "\n";
  for (const GraphRow& row : rows) {
    std::string line = row.graph;
    if (row.node) {
      const GraphNode& node = nodes[*row.node];
      line.resize(width + 2, ' ');
      line += node.is_leaf_fork ? "fork" : std::to_string(node.number);
    }
    text += line + "\n";
  }
  return text;
}

// Follows lines from node to node, as an eye does.
class Tracer {
 public:
  explicit Tracer(const std::vector<GraphRow>& rows) : rows_(rows) {}

  char at(size_t row, size_t column) const {
    if (row >= rows_.size() || column >= rows_[row].graph.size()) return ' ';
    return rows_[row].graph[column];
  }
  bool is_node(size_t row, size_t column) const {
    return at(row, column) == '*' || at(row, column) == 'o';
  }
  size_t column_of_node(size_t row) const { return rows_[row].graph.find_first_of("*o"); }

  // The row of the node that the line from this place leads down to; nothing when it ends.
  std::optional<size_t> follow(size_t row, size_t column) {
    while (true) {
      ++row;
      if (at(row, column) == '|' || is_node(row, column)) {
        mark(row, column);
      } else if (column > 0 && at(row, column - 1) == '/') {
        mark(row, column - 1);
        column -= 2;
      } else if (at(row, column + 1) == '\\') {
        mark(row, column + 1);
        column += 2;
      } else {
        return std::nullopt;
      }
      if (is_node(row, column)) return row;
    }
  }
  // Whether each character was part of some line or a node.
  bool has_seen_all() const {
    for (size_t row = 0; row < rows_.size(); ++row)
      for (size_t column = 0; column < rows_[row].graph.size(); ++column)
        if (at(row, column) != ' ' && !is_node(row, column) && !seen_.contains({row, column}))
          return false;
    return true;
  }

 private:
  void mark(size_t row, size_t column) { seen_.insert({row, column}); }

  const std::vector<GraphRow>& rows_;
  std::set<std::pair<size_t, size_t>> seen_;
};

// Whether the drawing says what the nodes say, and nothing else.
void check_drawing(const std::vector<GraphNode>& nodes) {
  const std::vector<GraphRow> rows = draw_version_graph(nodes);
  INFO(draw(nodes));
  std::map<uint32_t, size_t> row_of_number;
  std::vector<size_t> row_of(nodes.size(), SIZE_MAX);
  uint32_t last_number = UINT32_MAX;
  for (size_t row = 0; row < rows.size(); ++row) {
    const std::string& graph = rows[row].graph;
    REQUIRE(graph.find_first_not_of("*o|/\\ ") == std::string::npos);
    REQUIRE((graph.empty() || graph.back() != ' '));
    const auto marks =
        std::count_if(graph.begin(), graph.end(), [](char c) { return c == '*' || c == 'o'; });
    REQUIRE(marks == (rows[row].node ? 1 : 0));
    if (!rows[row].node) {
      REQUIRE(row + 1 < rows.size());
      continue;
    }
    const GraphNode& node = nodes.at(*rows[row].node);
    REQUIRE(row_of[*rows[row].node] == SIZE_MAX);
    row_of[*rows[row].node] = row;
    REQUIRE(graph[graph.find_first_of("*o")] == (node.is_leaf_fork ? 'o' : '*'));
    if (node.is_leaf_fork) {
      REQUIRE(node.parent < last_number);
    } else {
      REQUIRE(node.number < last_number);
      last_number = node.number;
      row_of_number[node.number] = row;
    }
  }
  REQUIRE(std::count(row_of.begin(), row_of.end(), SIZE_MAX) == 0);

  Tracer tracer(rows);
  std::vector<size_t> starts(rows.size() + 1), ends(rows.size() + 1);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto led_to = tracer.follow(row_of[i], tracer.column_of_node(row_of[i]));
    const auto parent = row_of_number.find(nodes[i].parent);
    if (nodes[i].parent == 0 || parent == row_of_number.end()) {
      REQUIRE_FALSE(led_to);
    } else {
      REQUIRE(led_to == parent->second);
      ++starts[row_of[i]];
      ++ends[parent->second];
    }
  }
  REQUIRE(tracer.has_seen_all());

  // No wider than there are lines that pass or end here, and this node.
  size_t open = 0;
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].node) {
      REQUIRE(rows[row].graph.size() <= 2 * std::max<size_t>(open, 1) + 1);
      // A fork stands right above its parent, apart from other forks.
      const GraphNode& node = nodes[*rows[row].node];
      if (node.is_leaf_fork && row_of_number.contains(node.parent)) {
        for (size_t below = row + 1; below < row_of_number[node.parent]; ++below)
          REQUIRE((!rows[below].node || nodes[*rows[below].node].is_leaf_fork));
      }
    }
    open += starts[row];
    open -= ends[row];
  }
}

}  // namespace

TEST_CASE("a straight history is one lane and needs no drawing") {
  const std::vector<GraphNode> nodes = {{1, 0}, {2, 1}, {5, 2}};
  CHECK(is_linear(nodes));
  CHECK(draw(nodes) == R"(
*  5
*  2
*  1
)");
  CHECK(is_linear({}));
  CHECK(draw_version_graph({}).empty());
  CHECK(is_linear({{7, 6}, {8, 7}}));  // whose beginning is not told
}

TEST_CASE("what is not straight is told") {
  CHECK_FALSE(is_linear({{1, 0}, {2, 1}, {3, 1}}));
  CHECK_FALSE(is_linear({{1, 0}, {2, 0}}));
  CHECK_FALSE(is_linear({{1, 0}, {2, 1}, fork_of(2)}));
  CHECK_FALSE(is_linear({fork_of(1), {1, 0}}));
}

TEST_CASE("a rollback makes a branch that is merged at its parent") {
  CHECK(draw({{1, 0}, {2, 1}, {3, 2}, {4, 3}, {5, 2}, {6, 5}}) == R"(
*    6
*    5
| *  4
| *  3
|/
*    2
*    1
)");
}

TEST_CASE("the newest version is in the first lane, also when its branch is the older one") {
  CHECK(draw({{1, 0}, {2, 1}, {3, 1}, {4, 3}, {5, 2}}) == R"(
*    5
| *  4
| *  3
* |  2
|/
*    1
)");
}

TEST_CASE("several branches from one version") {
  CHECK(draw({{1, 0}, {2, 1}, {3, 1}, {4, 1}, {5, 1}}) == R"(
*    5
| *  4
|/
| *  3
|/
| *  2
|/
*    1
)");
  // The middle one has the neighbours' line to pass until it gets there itself.
  CHECK(draw({{1, 0}, {2, 1}, {3, 1}, {4, 1}, {5, 2}, {6, 3}}) == R"(
*      6
| *    5
| | *  4
* | |  3
| * |  2
| |/
|/
*      1
)");
}

TEST_CASE("a lane opens between others without crossing them") {
  CHECK(draw({{1, 0}, {2, 0}, {3, 1}, {4, 2}, {5, 1}}) == R"(
*      5
| *    4
|  \
| * |  3
|/ /
| *    2
*      1
)");
}

TEST_CASE("forks stand above their parent") {
  CHECK(draw({{1, 0}, {2, 1}, {3, 2}, fork_of(2)}) == R"(
*    3
| o  fork
|/
*    2
*    1
)");
  CHECK(draw({fork_of(1), fork_of(2), fork_of(1), {1, 0}, {2, 1}, {3, 1}}) == R"(
*    3
| o  fork
| *  2
|/
| o  fork
|/
| o  fork
|/
*    1
)");
  CHECK(draw({{1, 0}, fork_of(1)}) == R"(
o  fork
*  1
)");
}

TEST_CASE("a lane ends where the parent is not among the nodes") {
  CHECK(draw({{2, 1}, {4, 2}, {7, 5}, {8, 7}}) == R"(
*  8
*  7

*  4
*  2
)");
  CHECK(draw({{2, 0}, {3, 1}, {4, 2}, {5, 3}}) == R"(
*    5
| *  4
* |  3
 /
*    2
)");
  CHECK(draw({{2, 0}, {3, 2}, {4, 1}, {5, 2}, {6, 4}, fork_of(9)}) == R"(
o    fork

*    6
| *  5
* |  4
 /
| *  3
|/
*    2
)");
}

TEST_CASE("two moves of the lanes share a row") {
  // 4 closes the lane in the middle, and 3 opens one where it was.
  CHECK(draw({{1, 0}, {2, 0}, {3, 1}, {4, 1}, {5, 2}, {6, 1}}) == R"(
*      6
| *    5
|  \
| * |  4
|/  |
| * |  3
|/ /
| *    2
*      1
)");
}

TEST_CASE("nodes that cannot be have a drawing too") {
  // A parent that is not smaller, the same number twice, a fork of nothing.
  CHECK(draw({{1, 2}, {2, 2}, {2, 1}, fork_of(0)}) == R"(
*  2

*  2
*  1

o  fork
)");
}

TEST_CASE("random trees are drawn as they are") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 3000; ++round) {
    std::vector<GraphNode> nodes;
    const uint64_t count = random() % (round % 100 == 0 ? 200 : 14);
    const uint64_t depth = random() % 6 + 1, gaps = random() % 3, forks = random() % 4;
    uint32_t number = 0;
    for (uint64_t i = 0; i < count; ++i) {
      number += static_cast<uint32_t>(random() % (gaps + 1) + 1);
      uint32_t parent = 0;
      if (gaps > 0 && random() % 4 == 0)
        parent = static_cast<uint32_t>(random() % number);  // perhaps not there
      else if (i > 0)
        parent = (nodes.end() - 1 - static_cast<ptrdiff_t>(random() % std::min(i, depth)))->number;
      nodes.push_back({number, parent});
    }
    const std::vector<GraphNode> versions = nodes;
    for (uint64_t i = 0; i < forks; ++i) {
      const auto at = nodes.begin() + static_cast<ptrdiff_t>(random() % (nodes.size() + 1));
      nodes.insert(at, fork_of(static_cast<uint32_t>(random() % (number + 2))));
    }
    check_drawing(nodes);
    if (is_linear(nodes)) {
      for (const GraphRow& row : draw_version_graph(nodes)) REQUIRE(row.graph == "*");
    }
  }
}

TEST_CASE("trees of ten thousand versions are drawn at once") {
  std::vector<GraphNode> chain, star, comb, pairs;
  std::mt19937_64 random(1);
  for (uint32_t i = 1; i <= 10'000; ++i) {
    chain.push_back({i, i - 1});
    star.push_back({i, i == 1 ? 0u : 1u});
    comb.push_back({i, i % 2 == 0 ? i - 1 : i < 3 ? 0u : i - 2});
    pairs.push_back({i, i <= 5000 ? 0 : i - 5000});
  }
  CHECK(draw_version_graph(chain).size() == 10'000);
  CHECK(draw_version_graph(star).size() == 10'000 + 9'998);
  CHECK(draw_version_graph(comb).size() == 10'000 + 4'999);
  const std::vector<GraphRow> rows = draw_version_graph(pairs);
  CHECK(rows[4'999].graph.size() == 2 * 5'000 - 1);
  CHECK(rows.back().graph == "*");
}

TEST_CASE("a history with more branches than anybody can follow is a table") {
  // Version 1, and as many that start from it.
  const auto text_of = [](uint32_t branches) {
    nlohmann::json versions = nlohmann::json::array();
    for (uint32_t number = 1; number <= branches + 1; ++number) {
      nlohmann::json version = {{"number", number},
                                {"name", nullptr},
                                {"parent", nullptr},
                                {"created", "2026-01-01T00:00:00Z"},
                                {"size", 4096},
                                {"own_bytes", 0},
                                {"note", nullptr},
                                {"forks", nlohmann::json::array()},
                                {"hidden", false},
                                {"current", number == branches + 1},
                                {"children", nlohmann::json::array()}};
      if (number > 1) version["parent"] = 1;
      versions.push_back(version);
    }
    return history_text(versions);
  };
  const std::string drawn = text_of(200), table = text_of(201);
  CHECK(drawn.starts_with("GRAPH"));
  CHECK(table.starts_with("VERSION"));
  CHECK(std::count(table.begin(), table.end(), '\n') == 203);
  CHECK(text_of(5000).size() < 5001 * 100);
}

}  // namespace tplstore::version_graph_test
