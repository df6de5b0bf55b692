// The next one is put beside the one before, which is removed then.
#include "store/store_config.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/units.h"

namespace tplstore {
namespace {

using nlohmann::json;

constexpr std::string_view kPrefix = "config.";
constexpr uint64_t kConfigBytesMax = 1 << 16;

std::string config_name(uint64_t number) { return fmt::format("{}{}", kPrefix, number); }

std::vector<uint64_t> config_numbers(Backend& backend) {
  std::vector<uint64_t> numbers;
  for (const std::string& name : backend.list("")) {
    if (!name.starts_with(kPrefix)) continue;
    uint64_t number = 0;
    const char* const begin = name.data() + kPrefix.size();
    const char* const end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(begin, end, number);
    if (error == std::errc() && stop == end && *begin != '0') numbers.push_back(number);
  }
  std::ranges::sort(numbers);
  return numbers;
}

struct Found {
  uint64_t number = 0;
  json content = json::object();
};

// One that is gone since it was listed has a newer one.
Found find_config(Backend& backend) {
  for (;;) {
    const std::vector<uint64_t> numbers = config_numbers(backend);
    if (numbers.empty()) return {};
    const auto content = backend.get(config_name(numbers.back()), kConfigBytesMax);
    if (!content) continue;
    Found found{numbers.back(), json::parse(to_text(*content), nullptr, false)};
    if (!found.content.is_object())
      fail(EIO, config_name(found.number), "damaged: it is no JSON object");
    return found;
  }
}

StoreConfig config_of(const Found& found) {
  StoreConfig config;
  const auto keep = found.content.find("keep");
  if (keep == found.content.end()) return config;
  if (!keep->is_string()) fail(EIO, config_name(found.number), "damaged: its \"keep\" is no text");
  try {
    config.keep_s = parse_duration_s("keep", keep->get_ref<const std::string&>());
  } catch (const Error& error) {
    fail(EIO, config_name(found.number), "damaged: {}", error.what());
  }
  return config;
}

}  // namespace

StoreConfig load_config(Backend& backend) { return config_of(find_config(backend)); }

void put_config(Backend& backend, const std::function<void(StoreConfig&)>& change) {
  for (;;) {
    Found found = find_config(backend);
    StoreConfig config = config_of(found);
    change(config);
    found.content["keep"] = format_duration(config.keep_s);
    if (!backend.put_new(config_name(found.number + 1), as_bytes(found.content.dump(2) + "\n")))
      continue;  // somebody else was first
    for (const uint64_t number : config_numbers(backend))
      if (number <= found.number) backend.remove(config_name(number));
    return;
  }
}

}  // namespace tplstore
