// Common options, and asking first the servers of a store, then the store.
#include "command.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <thread>

#include "backend/open_backend.h"
#include "base/names.h"
#include "base/text.h"
#include "base/units.h"
#include "control/json_output.h"
#include "control/operations.h"
#include "tier/tier_table.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

constexpr auto kBusyTimeout = std::chrono::seconds(2);
constexpr auto kBusyPause = std::chrono::milliseconds(50);

std::string check_size(const std::string& text) {
  try {
    parse_size("size", text);
    return {};
  } catch (const Error&) {
    return fmt::format("'{}' is not a size: use for instance 10G, 512M or 4096", text);
  }
}

std::string check_size_or_growth(const std::string& text) {
  return check_size(text.starts_with('+') ? text.substr(1) : text);
}

}  // namespace

void add_common_options(const Command& command, Context& context) {
  command
      .add_option("-s,--store", context.store_directory,
                  "The store's directory [or the variable TPLSTORE_STORE]")
      .type_name("DIR")
      .check(not_empty());
  command
      .add_option("--tier-state", context.tier_state,
                  "The folder of this host's tier table [or TPLSTORE_TIER_STATE]")
      .type_name("DIR")
      .check(not_empty());
  command.add_flag("-v,--verbose", context.is_verbose,
                   "Report recoveries and other events on stderr");
}

std::unique_ptr<Store> Context::open_store(bool with_tier) const {
  StoreOptions options;
  options.has_tier = with_tier;
  if (!tier_state.empty()) options.tier_state = absolute_location(tier_state);
  if (is_verbose)
    options.log = [](LogLevel level, const std::string& line) {
      print_error(with_level(level, fmt::format("tplstore: {}\n", printable(line))));
    };
  return Store::open(store_directory, options);
}

std::filesystem::path Context::tier_folder(const Uuid& store) const {
  if (tier_state.empty()) return TierTable::default_folder(store);
  return absolute_location(tier_state);
}

void Context::print(const json& value,
                    const std::function<std::string(const json&)>& for_people) const {
  fmt::print("{}", is_json ? json_text(value, 2) + "\n" : printable_lines(for_people(value)));
}

Command add_command(const Command& parent, Context& context, const std::string& name,
                    const std::string& description, std::function<void()> action) {
  const Command command = parent.add_command(name, description);
  add_common_options(command, context);
  command.on_parsed([&context, action = std::move(action)] { context.action = action; });
  return command;
}

Command add_group(const Command& parent, Context& context, const std::string& name,
                  const std::string& description) {
  const Command group = parent.add_command(name, description);
  add_common_options(group, context);
  group.require_command();
  return group;
}

Option add_json_option(const Command& command, Context& context) {
  return command.add_flag("--json", context.is_json, "Print JSON");
}

void add_list_options(const Command& command, Context& context, const Columns& columns) {
  const Option json_option = add_json_option(command, context);
  const auto is_columns = [columns](const std::string& names) {
    return check_columns(columns, names);
  };
  command.add_option("-o,--columns", context.list.columns, "What to show, as in 'name,size'")
      .type_name("COLUMNS")
      .check(is_columns)
      .excludes(json_option);
  command.add_option("--sort", context.list.sort, "What to sort by")
      .type_name("COLUMN")
      .check([is_columns](const std::string& name) {
        return name.find(',') == std::string::npos
                   ? is_columns(name)
                   : fmt::format("'{}' is more than one column", name);
      })
      .excludes(json_option);
  command.add_flag("--no-headings", context.list.has_no_headings, "Leave the line of headings out")
      .excludes(json_option);
}

void add_keep_option(const Command& command, std::string& into, std::string_view restore) {
  command
      .add_option("--keep", into,
                  fmt::format("For how long '{}' can bring them back, like 7d; 0 for not at all; "
                              "the store's own unless given",
                              restore))
      .type_name("T")
      .check(is_duration());
}

void add_size_option(const Command& command, std::string& into, const std::string& description,
                     const std::string& name) {
  command.add_option(name, into, description).type_name("SIZE").check(check_size);
}

void add_new_size(const Command& command, std::string& into, const std::string& description) {
  command.add_option("SIZE", into, description)
      .required()
      .type_name("")
      .check(check_size_or_growth);
}

Check is_duration() {
  return [](const std::string& text) -> std::string {
    try {
      parse_duration_s("time", text);
      return {};
    } catch (const Error&) {
      return fmt::format("'{}' is not a time like 90s, 5m, 2h, 7d or 4w", text);
    }
  };
}

json perform_once(Store& store, const json& request,
                  const std::function<void(uint64_t)>& progress) {
  const Patience patience = control::operation_of(request).patience;
  // The servers come first: what is done here waits a while for a volume that is in use.
  if (std::optional<json> answer = ControlClient(store.backend()).ask_owner(request, patience))
    return *answer;
  try {
    return control::perform(store, request, progress);
  } catch (const Error& error) {
    if (error.code() != EBUSY) throw;
    // It was a server that was opening the volume when it was asked, if one has it open now.
    std::optional<json> answer = ControlClient(store.backend()).ask_owner(request, patience);
    if (!answer) throw;
    return *answer;
  }
}

json perform(Store& store, const json& request, const std::function<void(uint64_t)>& progress) {
  json result;
  retry_while_busy([&] { result = perform_once(store, request, progress); });
  return result;
}

void retry_while_busy(const std::function<void()>& work) {
  const auto deadline = std::chrono::steady_clock::now() + kBusyTimeout;
  while (true) {
    try {
      return work();
    } catch (const Error& error) {
      if (error.code() != EBUSY || std::chrono::steady_clock::now() >= deadline) throw;
    }
    std::this_thread::sleep_for(kBusyPause);
  }
}

void for_each_of(const std::vector<std::string>& names,
                 const std::function<void(const std::string&)>& work) {
  if (names.size() == 1) return work(names.front());
  bool has_failed = false;
  for (const std::string& name : names) {
    try {
      work(name);
    } catch (const Error& error) {
      has_failed = true;
      print_error(fmt::format("tplstore: {}\n", printable(error.what())));
    }
  }
  if (has_failed) throw NotAllDone();
}

json find_volume(Store& store, const std::string& name) {
  const json request = {{"op", "volume-show"}, {"volume", name}};
  json volume = control::perform(store, request);
  // Whoever has it open knows better than what is on disk.
  if (volume["attached"].get<bool>())
    if (std::optional<json> answer = ControlClient(store.backend()).ask_owner(request))
      return *answer;
  return volume;
}

const json& find_version(const json& volume, const std::string& version) {
  const std::optional<uint32_t> number = parse_version_number(version);
  for (const json& candidate : volume["versions"]) {
    if (candidate["hidden"].get<bool>()) continue;
    if (number ? candidate["number"] == *number : candidate["name"] == version) return candidate;
  }
  const std::string name = volume["name"];
  fail(ENOENT, "volume " + name, "has no version '{}'; see 'tplstore version list {}'", version,
       name);
}

void ask_to_reclaim(Store& store, const std::string& volume) {
  try {
    ControlClient(store.backend()).ask_owner({{"op", "volume-reclaim"}, {"volume", volume}});
  } catch (const Error&) {
  }
}

}  // namespace tplstore::tool
