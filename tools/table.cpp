// libsmartcols lays tables out.
#include "table.h"

#include <fmt/format.h>
#include <libsmartcols/libsmartcols.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "base/units.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> parts;
  std::istringstream text(names);
  for (std::string part; std::getline(text, part, ',');) parts.push_back(part);
  return parts;
}

std::string names_of(const Columns& columns) {
  std::string names;
  for (const Column& column : columns) {
    if (!names.empty()) names += ",";
    names += column.key();
  }
  return names;
}

// Numbers before texts, and what is not known first of all.
bool is_less(const json& a, const json& b) {
  const auto rank = [](const json& value) {
    return value.is_null() ? 0 : value.is_number() ? 1 : 2;
  };
  if (rank(a) != rank(b)) return rank(a) < rank(b);
  return a < b;
}

struct Unref {
  void operator()(libscols_table* table) const { scols_unref_table(table); }
};
struct Free {
  void operator()(char* text) const { std::free(text); }
};

template <typename Made>
Made* check_made(Made* made) {
  if (made == nullptr) throw std::bad_alloc();
  return made;
}
void check_done(int result) {
  if (result < 0) throw std::bad_alloc();
}

void erase_blanks_at_ends(std::string& text) {
  std::string erased;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    line.erase(line.find_last_not_of(' ') + 1);
    erased += line + "\n";
  }
  text = std::move(erased);
}

}  // namespace

std::string Column::key() const {
  if (!name.empty()) return name;
  std::string key = heading;
  for (char& c : key)
    c = c == ' ' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return key;
}

std::string check_columns(const Columns& columns, const std::string& names) {
  const std::vector<std::string> wanted = split(names);
  for (const std::string& name : wanted)
    if (std::ranges::find(columns, name, &Column::key) == columns.end())
      return fmt::format("'{}' is no column; there are {}", name, names_of(columns));
  return wanted.empty() ? "a column is needed: " + names_of(columns) : "";
}

void Table::add_row(std::vector<Cell> cells) {
  ensure(cells.size() == columns_.size(), "a row has a cell per column");
  rows_.push_back(std::move(cells));
}

size_t Table::find(const std::string& name) const {
  const auto found = std::ranges::find(columns_, name, &Column::key);
  ensure(found != columns_.end(), "names of columns were checked");
  return static_cast<size_t>(found - columns_.begin());
}

std::string Table::text(const ListOptions& options) const {
  std::vector<size_t> shown(columns_.size());
  std::iota(shown.begin(), shown.end(), size_t{0});
  if (!options.columns.empty()) {
    shown.clear();
    for (const std::string& name : split(options.columns)) shown.push_back(find(name));
  }
  std::vector<const std::vector<Cell>*> rows;
  for (const auto& row : rows_) rows.push_back(&row);
  if (!options.sort.empty()) {
    const size_t by = find(options.sort);
    std::ranges::stable_sort(rows, [by](const auto* a, const auto* b) {
      return is_less((*a)[by].value, (*b)[by].value);
    });
  }

  const Utf8Text utf8;
  const std::unique_ptr<libscols_table, Unref> table(check_made(scols_new_table()));
  check_done(scols_table_set_column_separator(table.get(), "  "));
  check_done(scols_table_enable_noheadings(table.get(), options.has_no_headings ? 1 : 0));
  // Nothing is cut: a terminal wraps.
  check_done(scols_table_set_termforce(table.get(), SCOLS_TERMFORCE_NEVER));
  for (const size_t column : shown)
    check_made(
        scols_table_new_column(table.get(), columns_[column].heading.c_str(), 0,
                               columns_[column].align == Align::kRight ? SCOLS_FL_RIGHT : 0));
  for (const auto* row : rows) {
    libscols_line* line = check_made(scols_table_new_line(table.get(), nullptr));
    for (size_t i = 0; i < shown.size(); ++i)
      check_done(scols_line_set_data(line, i, (*row)[shown[i]].text.c_str()));
  }
  // Without a line there would be no headings either.
  if (rows.empty()) {
    if (options.has_no_headings) return "";
    check_made(scols_table_new_line(table.get(), nullptr));
  }
  char* printed = nullptr;
  check_done(scols_print_table_to_string(table.get(), &printed));
  const std::unique_ptr<char, Free> owner(printed);
  std::string text(printed);
  if (rows.empty()) text.erase(text.find('\n'));
  erase_blanks_at_ends(text);
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

Cell plain_cell(const nlohmann::json& value) { return {plain(value), value}; }
Cell size_cell(const nlohmann::json& value) { return {size(value), value}; }

}  // namespace tplstore::tool
