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

class Table {
 public:
  // The headings, which are printed in upper case as they stand, and where their columns align.
  explicit Table(std::vector<std::pair<std::string, Align>> columns);
  void add_row(std::vector<std::string> cells);  // as many as there are columns
  std::string text() const;                      // every line ends with a newline

 private:
  std::vector<std::pair<std::string, Align>> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// One "what: value" per line, with the values aligned.
std::string format_fields(const std::vector<std::pair<std::string, std::string>>& fields);

// What a value of our JSON looks like to people: "-" for null; texts and numbers as they are, on
// one line.
std::string plain(const nlohmann::json& value);
// The same for a number of bytes: "2.0 GiB".
std::string size(const nlohmann::json& value);

}  // namespace tplstore::tool
