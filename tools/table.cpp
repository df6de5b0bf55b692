// Columns are as wide as their widest cell.
#include "table.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "base/units.h"

namespace tplstore::tool {

Table::Table(std::vector<std::pair<std::string, Align>> columns) : columns_(std::move(columns)) {}

void Table::add_row(std::vector<std::string> cells) {
  ensure(cells.size() == columns_.size(), "a row has a cell per column");
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<std::string> headings;
  headings.reserve(columns_.size());
  for (const auto& [heading, align] : columns_) headings.push_back(heading);
  std::vector<std::vector<std::string>> lines = {headings};
  lines.insert(lines.end(), rows_.begin(), rows_.end());

  std::vector<size_t> widths(columns_.size(), 0);
  for (const auto& cells : lines)
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());

  std::string text;
  for (const auto& cells : lines) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      if (i > 0) line += "  ";
      line += columns_[i].second == Align::kLeft ? fmt::format("{:<{}}", cells[i], widths[i])
                                                 : fmt::format("{:>{}}", cells[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string format_fields(const std::vector<std::pair<std::string, std::string>>& fields) {
  size_t width = 0;
  for (const auto& [what, value] : fields) width = std::max(width, what.size() + 1);
  std::string text;
  for (const auto& [what, value] : fields)
    text += fmt::format("{:<{}} {}\n", what + ":", width, value);
  return text;
}

std::string plain(const nlohmann::json& value) {
  if (value.is_null()) return "-";
  return printable(value.is_string() ? value.get<std::string>() : value.dump());
}

std::string size(const nlohmann::json& value) {
  return value.is_number_unsigned() ? format_size(value.get<uint64_t>()) : plain(value);
}

}  // namespace tplstore::tool
