// Walks a value beside its shape and names the place where they part.
#include "control/json_shape.h"

#include <cerrno>

#include "base/error.h"
#include "base/names.h"
#include "base/units.h"

namespace tplstore {

using nlohmann::json;

namespace {

constexpr int kDepthMax = 32;

}  // namespace

// Where in the whole value a part of it is. Only who complains needs it as a text.
struct Shape::Place {
  const Place* around;
  std::string_view key;
  size_t index;

  std::string text() const {
    if (around == nullptr) return "the result";
    const std::string outer = around->around == nullptr ? "" : around->text();
    if (key.empty()) return fmt::format("{}[{}]", outer, index);
    return outer.empty() ? std::string(key) : fmt::format("{}.{}", outer, key);
  }
};

void Shape::check(const json& value, const std::string& source) const {
  check_at(value, source, {nullptr, "", 0});
}

Shape Shape::number(uint64_t max) {
  Shape shape(Kind::kNumber);
  shape.number_max_ = max;
  return shape;
}

Shape Shape::list_of(Shape item) {
  Shape shape(Kind::kList);
  shape.members_.emplace_back("", std::move(item));
  return shape;
}

Shape Shape::object(std::vector<std::pair<std::string, Shape>> members) {
  Shape shape(Kind::kObject);
  shape.members_ = std::move(members);
  return shape;
}

Shape Shape::or_null() const {
  Shape shape = *this;
  shape.may_be_null_ = true;
  return shape;
}

Shape Shape::with(std::vector<std::pair<std::string, Shape>> members) const {
  Shape shape = *this;
  for (auto& member : members) shape.members_.push_back(std::move(member));
  return shape;
}

bool Shape::is_kind(const json& value) const {
  switch (kind_) {
    case Kind::kText:
      return value.is_string();
    case Kind::kName:
      return value.is_string() && is_valid_name(value.get_ref<const std::string&>());
    case Kind::kTime:
      return value.is_string() && parse_time(value.get_ref<const std::string&>()).has_value();
    case Kind::kBoolean:
      return value.is_boolean();
    case Kind::kNumber:
      return value.is_number_unsigned() && value.get<uint64_t>() <= number_max_;
    case Kind::kList:
      return value.is_array();
    case Kind::kObject:
      return value.is_object();
  }
  return false;
}

std::string Shape::describe() const {
  switch (kind_) {
    case Kind::kText:
      return "a text";
    case Kind::kName:
      return "a name";
    case Kind::kTime:
      return "a time";
    case Kind::kBoolean:
      return "true or false";
    case Kind::kNumber:
      return fmt::format("a whole number up to {}", number_max_);
    case Kind::kList:
      return "a list";
    case Kind::kObject:
      return "an object";
  }
  return "";
}

void Shape::check_at(const json& value, const std::string& source, const Place& place) const {
  if (value.is_null() && may_be_null_) return;
  if (!is_kind(value))
    fail(EPROTO, source, "its answer makes no sense: {} is not {}", place.text(), describe());
  if (kind_ == Kind::kList) {
    for (size_t i = 0; i < value.size(); ++i)
      members_[0].second.check_at(value[i], source, {&place, "", i});
  } else if (kind_ == Kind::kObject) {
    for (const auto& [key, shape] : members_) {
      const Place there{&place, key, 0};
      const auto found = value.find(key);
      if (found == value.end())
        fail(EPROTO, source, "its answer makes no sense: {} is missing", there.text());
      shape.check_at(*found, source, there);
    }
  }
}

json parse_json_from(const std::string& source, std::string_view text) {
  const auto check_depth = [&](int depth, json::parse_event_t, json&) {
    if (depth > kDepthMax)
      fail(EPROTO, source, "its answer makes no sense: it is nested too deeply");
    return true;
  };
  json value = json::parse(text, check_depth, /*allow_exceptions=*/false);
  if (value.is_discarded()) fail(EPROTO, source, "its answer makes no sense: it is not JSON");
  return value;
}

}  // namespace tplstore
