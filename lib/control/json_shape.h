// What JSON from outside must look like before anything in it is relied on.
//
// A Shape describes a value: which keys an object has, of which kind each value is, and how large
// its numbers may be. Keys that it does not know are let through: they may be added later, and
// nobody here looks at them.
//
// Thread safety: immutable once it is made. Errors: Error(EPROTO) that says where in the value what
// is missing or wrong.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tplstore {

class Shape {
 public:
  static Shape text() { return Shape(Kind::kText); }
  static Shape name() { return Shape(Kind::kName); }  // as base/names.h has it
  static Shape time() { return Shape(Kind::kTime); }  // as format_time() writes it
  static Shape boolean() { return Shape(Kind::kBoolean); }
  static Shape number(uint64_t max = INT64_MAX);  // whole, not negative
  static Shape list_of(Shape item);
  static Shape object(std::vector<std::pair<std::string, Shape>> members);

  // The same or null.
  Shape or_null() const;
  // An object's shape with more keys.
  Shape with(std::vector<std::pair<std::string, Shape>> members) const;

  // `source` is who sent it.
  void check(const nlohmann::json& value, const std::string& source) const;

 private:
  enum class Kind { kText, kName, kTime, kBoolean, kNumber, kList, kObject };
  explicit Shape(Kind kind) : kind_(kind) {}

  struct Place;
  void check_at(const nlohmann::json& value, const std::string& source, const Place& place) const;
  bool is_kind(const nlohmann::json& value) const;
  std::string describe() const;

  Kind kind_;
  bool may_be_null_ = false;
  uint64_t number_max_ = 0;
  // Of an object; of a list its items' shape, without a key.
  std::vector<std::pair<std::string, Shape>> members_;
};

// Parses what somebody sent: EPROTO when it is not JSON, or nested more deeply than anything that
// we exchange, which recursive code could not bear.
nlohmann::json parse_json_from(const std::string& source, std::string_view text);

}  // namespace tplstore
