// Text for people: tables with aligned columns, and lists of "what: value".
//
// Thread safety: pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace tplstore::tool {

enum class Align { kLeft, kRight };

struct Column {
  std::string heading;  // printed as it stands: in upper case, or nothing
  Align align;
  std::string name = {};  // for people to choose it by; else the heading in lower case

  std::string key() const;
};
using Columns = std::vector<Column>;

// What is to be seen of a list, and in which order.
struct ListOptions {
  std::string columns;  // "name,size"; empty: all
  std::string sort;     // a column; empty: the order of the list
  bool has_no_headings = false;

  // Whether rows stay where they are and have all they had.
  bool is_whole() const { return columns.empty() && sort.empty(); }
};
// What is wrong with a column's name, or with a list of such; empty when nothing is.
std::string check_columns(const Columns& columns, const std::string& names);

// A text, and what it is sorted by: numbers as numbers, behind what is not known.
struct Cell {
  Cell(std::string shown) : text(std::move(shown)), value(text) {}
  Cell(const char* shown) : Cell(std::string(shown)) {}
  Cell(std::string shown, nlohmann::json sorted_by)
      : text(std::move(shown)), value(std::move(sorted_by)) {}

  std::string text;
  nlohmann::json value;
};

class Table {
 public:
  explicit Table(Columns columns) : columns_(std::move(columns)) {}
  void add_row(std::vector<Cell> cells);  // as many as there are columns
  // Every line ends with a newline. The options have passed check_columns().
  std::string text(const ListOptions& options = {}) const;

 private:
  size_t find(const std::string& name) const;

  Columns columns_;
  std::vector<std::vector<Cell>> rows_;
};

// One "what: value" per line, with the values aligned.
std::string format_fields(const std::vector<std::pair<std::string, std::string>>& fields);

// What a value of our JSON looks like to people: "-" for null; texts and numbers as they are, on
// one line.
std::string plain(const nlohmann::json& value);
// The same for a number of bytes: "2.0 GiB".
std::string size(const nlohmann::json& value);
// The same as cells.
Cell plain_cell(const nlohmann::json& value);
Cell size_cell(const nlohmann::json& value);

}  // namespace tplstore::tool
