// Names of exports, as anybody on the network may send them.
#include "base/names.h"

#include <doctest/doctest.h>

#include <array>
#include <random>

#include "base/error.h"

namespace tplstore::names_test {
namespace {

// The text that means this.
std::string text_of(const ExportName& name) {
  switch (name.kind) {
    case ExportName::Kind::kTemplate:
      return "template/" + name.name;
    case ExportName::Kind::kCurrentReader:
      return name.name + "@current";
    case ExportName::Kind::kVersion:
      return name.name + "@" + name.version;
    case ExportName::Kind::kChanges:
      return name.name + "@" + name.since + ".." + name.version;
    case ExportName::Kind::kCurrent:
      break;
  }
  if (name.token.empty()) return name.name;
  return name.name + ";writer=" + name.token + (name.is_multi ? ";multi" : "");
}

bool is_accepted(const std::string& text) {
  try {
    parse_export_name(text);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

TEST_CASE("what an export's name means is all that it says") {
  const auto seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const std::array<std::string, 20> parts = {
      "vm1",     "a",       "A-b_c.d",   "3", "0",        "4294967295",
      "current", "@",       "..",        ";", ";writer=", ";multi",
      "writer=", "=",       "template/", "/", ".",        std::string(64, 'x'),
      " ",       "\xc3\xa4"};
  uint64_t accepted = 0;
  for (int i = 0; i < 300'000; ++i) {
    std::string text;
    for (size_t count = random() % 7; count > 0; --count) text += parts[random() % parts.size()];
    if (random() % 8 == 0 && !text.empty())
      text[random() % text.size()] = static_cast<char>(random());
    ExportName name;
    try {
      name = parse_export_name(text);
    } catch (const Error& error) {
      REQUIRE(error.code() == EINVAL);
      continue;
    }
    ++accepted;
    REQUIRE(text_of(name) == text);
    REQUIRE(is_valid_name(name.name));
    REQUIRE((name.token.empty() || is_valid_token(name.token)));
    // Nobody else's files are meant.
    REQUIRE(name.name.find('/') == std::string::npos);
    REQUIRE(name.version.find('/') == std::string::npos);
  }
  CHECK(accepted > 1000);
}

TEST_CASE("a writer has one token, and says once that it has several connections") {
  CHECK(is_accepted("vm1;writer=" + std::string(64, 'x')));
  CHECK(is_accepted("vm1;writer=a;multi"));
  for (const char* text :
       {"vm1;", "vm1;writer", "vm1;writer=", "vm1;writer=;multi", "vm1;multi", "vm1;multi;writer=a",
        "vm1;writer=a;multi;multi", "vm1;writer=a;", "vm1;writer=a;writer=b", "vm1;writer=a b",
        "vm1;writer=a/b", "vm1;Writer=a", "vm1;writer=a;MULTI", ";writer=a", "vm1@1;writer=a",
        "vm1;writer=a@1", "template/a;writer=b", "vm1 ;writer=a"}) {
    CAPTURE(text);
    CHECK_FALSE(is_accepted(text));
  }
  CHECK_FALSE(is_accepted("vm1;writer=" + std::string(65, 'x')));
}

}  // namespace tplstore::names_test
