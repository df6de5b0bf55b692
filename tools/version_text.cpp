// Tables and graphs from the objects that JSON has of versions.
#include "version_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "base/units.h"
#include "table.h"
#include "version_graph.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

constexpr int64_t kSecondNs = 1'000'000'000;
constexpr size_t kDrawnBranchesMax = 200;  // wider drawings are for no screen, and become huge

// "47s", "12m", "5h", "90d", "3y": of two units the larger one once there are two of it.
std::string age_text(const json& version) {
  const int64_t seconds =
      std::max<int64_t>(0, now_unix_ns() / kSecondNs - created_ns_of(version) / kSecondNs);
  constexpr int64_t kMinute = 60, kHour = 60 * kMinute, kDay = 24 * kHour, kYear = 365 * kDay;
  if (seconds < 2 * kMinute) return fmt::format("{}s", seconds);
  if (seconds < 2 * kHour) return fmt::format("{}m", seconds / kMinute);
  if (seconds < 2 * kDay) return fmt::format("{}h", seconds / kHour);
  if (seconds < 2 * kYear) return fmt::format("{}d", seconds / kDay);
  return fmt::format("{}y", seconds / kYear);
}

std::string note_text(const json& version) {
  return version["note"].is_null() ? "" : plain(version["note"]);
}

// "a", "a and b", "a, b and c"
std::string enumeration(const json& items) {
  std::string text;
  for (size_t i = 0; i < items.size(); ++i)
    text += (i == 0 ? "" : i + 1 == items.size() ? " and " : ", ") + plain(items[i]);
  return text;
}

std::string forks_text(const json& forks) {
  return fmt::format("{} {}", forks.size() == 1 ? "fork" : "forks", enumeration(forks));
}

std::string state_text(const json& version) {
  if (version["current"].get<bool>()) return "current";
  if (version["hidden"].get<bool>()) {
    const std::string holder = kept_for_text(version);
    return holder.empty() ? "removed" : "removed; " + holder;
  }
  return version["forks"].empty() ? "" : forks_text(version["forks"]);
}

bool has_notes(const json& versions) {
  return std::any_of(versions.begin(), versions.end(),
                     [](const json& version) { return !version["note"].is_null(); });
}

// Columns after those that a table has of its own, and the cells in them.
Columns common_columns(bool with_notes) {
  Columns columns = {{"CREATED", Align::kLeft},
                     {"AGE", Align::kRight},
                     {"SIZE", Align::kRight},
                     {"OWN", Align::kRight},
                     {"", Align::kLeft, "state"}};
  if (with_notes) columns.push_back({"NOTE", Align::kLeft});
  return columns;
}

std::vector<Cell> common_cells(const json& version, bool with_notes) {
  std::vector<Cell> cells = {plain_cell(version["created"]),
                             {age_text(version), -created_ns_of(version)},
                             size_cell(version["size"]),
                             size_cell(version["own_bytes"]),
                             state_text(version)};
  if (with_notes) cells.push_back(note_text(version));
  return cells;
}

std::vector<Cell> joined(std::vector<Cell> cells, const std::vector<Cell>& more) {
  cells.insert(cells.end(), more.begin(), more.end());
  return cells;
}

// Where a version's children appear to start from, when some versions are left out.
class Ancestry {
 public:
  explicit Ancestry(const json& versions) {
    for (const json& version : versions) by_number_[version["number"]] = &version;
  }
  // `number` or the nearest of its ancestors that is not hidden; null when there is none.
  json visible(json number) const {
    while (!number.is_null()) {
      const auto found = by_number_.find(number.get<uint32_t>());
      if (found == by_number_.end()) return nullptr;
      if (!(*found->second)["hidden"].get<bool>()) return number;
      number = (*found->second)["parent"];
    }
    return nullptr;
  }

 private:
  std::map<uint32_t, const json*> by_number_;
};

uint32_t number_or_0(const json& number) { return number.is_null() ? 0 : number.get<uint32_t>(); }

}  // namespace

namespace {

Columns version_columns(bool with_notes) {
  Columns columns = {{"VERSION", Align::kRight}, {"NAME", Align::kLeft}, {"PARENT", Align::kRight}};
  for (Column& column : common_columns(with_notes)) columns.push_back(std::move(column));
  return columns;
}

}  // namespace

Columns version_columns() { return version_columns(/*with_notes=*/true); }

std::string versions_text(const json& versions, const ListOptions& options) {
  const bool with_notes = !options.is_whole() || has_notes(versions);
  Table table(version_columns(with_notes));
  for (const json& version : versions)
    table.add_row(joined(
        {plain_cell(version["number"]), plain_cell(version["name"]), plain_cell(version["parent"])},
        common_cells(version, with_notes)));
  return table.text(options);
}

std::string history_text(const json& versions, const ListOptions& options) {
  const json visible = visible_versions(versions);
  if (!options.is_whole()) return versions_text(visible, options);
  const Ancestry ancestry(versions);
  // What stands behind each node: the version, or of a fork the version that it started from.
  struct Entry {
    const json* version;
    std::string fork;
  };
  std::vector<GraphNode> nodes;
  std::vector<Entry> entries;
  for (const json& version : visible) {
    nodes.push_back({version["number"], number_or_0(version["parent"]), false});
    entries.push_back({&version, ""});
  }
  for (const json& version : versions) {
    for (const json& fork : version["forks"]) {
      nodes.push_back({0, number_or_0(ancestry.visible(version["number"])), true});
      entries.push_back({&version, fork});
    }
  }
  if (is_linear(nodes) || count_branches(nodes) > kDrawnBranchesMax)
    return versions_text(visible, options);

  const bool with_notes = has_notes(visible);
  Columns columns = {{"GRAPH", Align::kLeft}, {"VERSION", Align::kRight}, {"NAME", Align::kLeft}};
  for (auto& column : common_columns(with_notes)) columns.push_back(std::move(column));
  const size_t width = columns.size();
  Table table(std::move(columns));
  for (const GraphRow& row : draw_version_graph(nodes)) {
    std::vector<Cell> cells = {row.graph};
    if (row.node && entries[*row.node].fork.empty()) {
      const json& version = *entries[*row.node].version;
      json alone = version;
      alone["forks"] = json::array();  // they have rows of their own
      cells = joined({row.graph, plain(version["number"]), plain(version["name"])},
                     common_cells(alone, with_notes));
    } else if (row.node) {
      const Entry& entry = entries[*row.node];
      cells = {row.graph,
               "",
               entry.fork,
               "",
               "",
               "",
               "",
               fmt::format("fork of {}{}", plain((*entry.version)["number"]),
                           (*entry.version)["hidden"].get<bool>() ? ", which was removed" : "")};
    }
    cells.resize(width, "");
    table.add_row(std::move(cells));
  }
  return table.text(options);
}

json visible_versions(const json& versions) {
  const Ancestry ancestry(versions);
  json visible = json::array();
  std::map<uint32_t, json> children;
  for (const json& version : versions) {
    if (version["hidden"].get<bool>()) continue;
    visible.push_back(version);
    json& parent = visible.back()["parent"] = ancestry.visible(version["parent"]);
    if (!parent.is_null())
      children.try_emplace(parent, json::array()).first->second.push_back(version["number"]);
  }
  for (json& version : visible) {
    const auto found = children.find(version["number"]);
    version["children"] = found == children.end() ? json::array() : found->second;
  }
  return visible;
}

std::string kept_for_text(const json& version) {
  const json& children = version["children"];
  std::string text;
  if (!version["forks"].empty()) text = "kept for " + forks_text(version["forks"]);
  if (children.size() > 1)
    text +=
        fmt::format("{}versions {} start from it", text.empty() ? "" : "; ", enumeration(children));
  return text;
}

std::string version_title(const std::string& volume, const json& version) {
  return fmt::format("{}@{}{}", volume, plain(version["number"]),
                     version["name"].is_null() ? "" : " (" + plain(version["name"]) + ")");
}

std::pair<std::string, std::optional<std::string>> split_version_name(const std::string& text) {
  const size_t at = text.find('@');
  if (at == std::string::npos) return {text, std::nullopt};
  return {text.substr(0, at), text.substr(at + 1)};
}

std::string version_of_volume(const std::string& volume, const std::string& text) {
  const auto [of, version] = split_version_name(text);
  if (!version) return of;
  if (of != volume)
    fail(EINVAL, excerpt(text), "that is a version of another volume than {}", excerpt(volume));
  return *version;
}

int64_t created_ns_of(const json& version) {
  return parse_time(version["created"].get_ref<const std::string&>()).value_or(0);
}

}  // namespace tplstore::tool
