// boot show, done, warm and forget: asked of the servers, whose memory it is; what is kept in the
// store is there without them too.
#include <algorithm>
#include <cerrno>

#include "command.h"
#include "control/json_output.h"
#include "progress.h"
#include "table.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

// One list of several servers': who has more of it in memory has seen it boot.
json merged(const std::vector<json>& answers) {
  json boots = json::array();
  for (const json& answer : answers)
    for (const json& boot : answer["boots"]) {
      const auto known = std::ranges::find_if(boots, [&](const json& other) {
        return other["name"] == boot["name"] && other["kind"] == boot["kind"];
      });
      if (known == boots.end()) {
        boots.push_back(boot);
        continue;
      }
      json windows = (*known)["windows"];
      for (const json& window : boot["windows"]) windows.push_back(window);
      if (boot["cached_bytes"] > (*known)["cached_bytes"]) *known = boot;
      (*known)["windows"] = std::move(windows);
    }
  return boots;
}

const Columns kBootColumns = {{"NAME", Align::kLeft},       {"KIND", Align::kLeft},
                              {"BOOTS", Align::kRight},     {"SIZE", Align::kRight},
                              {"IN MEMORY", Align::kRight}, {"PACK", Align::kLeft},
                              {"LAST", Align::kLeft}};

std::string boots_text(const json& boots, const ListOptions& options) {
  Table table(kBootColumns);
  for (const json& boot : boots) {
    const json& profile = boot["profile"];
    const json& windows = boot["windows"];
    std::string last = "-";
    if (!windows.empty()) {
      const json& window = windows.back();
      last = window["reason"].is_null()
                 ? fmt::format("{} is booting", plain(window["volume"]))
                 : fmt::format("{}: {} in {:.1f} s, {}", plain(window["volume"]),
                               size(window["bytes"]), window["seconds"].get<double>(),
                               plain(window["reason"]));
    }
    const json none;
    table.add_row({plain_cell(boot["name"]), plain_cell(boot["kind"]),
                   plain_cell(profile.is_null() ? none : profile["boots"]),
                   size_cell(profile.is_null() ? none : profile["bytes"]),
                   size_cell(boot["cached_bytes"]), plain_cell(boot["pack"]["state"]), last});
  }
  return table.text(options);
}

void show(const Context& context, const std::string& name) {
  const auto store = context.open_store();
  json request = {{"op", "boot-show"}};
  if (!name.empty()) request["name"] = name;
  std::vector<json> answers = ControlClient(store->backend()).ask_all(request);
  if (answers.empty()) answers.push_back(control::perform(*store, request));
  const json boots = merged(answers);
  context.print(name.empty() ? boots : boots.at(0), [&](const json& value) {
    return boots_text(value.is_array() ? value : json::array({value}), context.list);
  });
}

void end_boot(const Context& context, const std::string& volume) {
  const auto store = context.open_store();
  const json window = perform(*store, {{"op", "boot-done"}, {"volume", volume}});
  context.print(window, [](const json& value) {
    const uint64_t hits = value["first_touch_hits"], blocks = value["blocks"];
    return fmt::format("{}: read {} in {:.1f} s, {} % of it found in memory\n",
                       plain(value["volume"]), size(value["bytes"]), value["seconds"].get<double>(),
                       blocks == 0 ? 0 : 100 * hits / blocks);
  });
}

void warm_boot(const Context& context, const std::string& name) {
  const auto store = context.open_store();
  const std::vector<json> answers =
      ControlClient(store->backend())
          .ask_all({{"op", "boot-warm"}, {"name", name}}, Patience::kEndless);
  if (answers.empty()) fail(EINVAL, name, "no server runs whose memory it could be in");
  const json& result = *std::ranges::max_element(
      answers, {}, [](const json& answer) { return answer["cached_bytes"].get<uint64_t>(); });
  context.print(result, [&](const json& value) {
    return fmt::format("{}: {} in memory\n", name, size(value["cached_bytes"]));
  });
  const uint64_t wanted = result["wanted_bytes"], cached = result["cached_bytes"];
  if (cached < wanted)
    fail(
        ENOSPC, name,
        "{} of {} are not in memory: the server's boot-cache is too small for them, or they cannot "
        "be read, which 'tplstore check' would tell",
        size(wanted - cached), size(wanted));
}

void forget(const Context& context, const std::string& name) {
  const auto store = context.open_store();
  const json request = {{"op", "boot-forget"}, {"name", name}};
  if (ControlClient(store->backend()).ask_all(request).empty()) control::perform(*store, request);
}

}  // namespace

void add_boot_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "boot", "What booting VMs read, kept in memory");
  constexpr const char* kName = "A volume or a template; 'template/NAME' where there are both";

  auto shown = std::make_shared<std::string>();
  const Command show_command =
      add_command(group, context, "show", "Show how volumes and templates boot",
                  [&context, shown] { show(context, *shown); });
  show_command.add_option("NAME", *shown, kName);
  add_list_options(show_command, context, kBootColumns);

  auto ended = std::make_shared<std::string>();
  const Command done = add_command(group, context, "done", "Say that a VM has booted",
                                   [&context, ended] { end_boot(context, *ended); });
  done.add_option("VOLUME", *ended, "Its volume").required();
  add_json_option(done, context);

  auto warmed = std::make_shared<std::string>();
  const Command warm_command =
      add_command(group, context, "warm", "Read what is booted with into memory",
                  [&context, warmed] { warm_boot(context, *warmed); });
  warm_command.add_option("NAME", *warmed, kName).required();
  add_json_option(warm_command, context);

  auto forgotten = std::make_shared<std::string>();
  const Command forget_command =
      add_command(group, context, "forget", "Forget how a volume or a template boots",
                  [&context, forgotten] { forget(context, *forgotten); });
  forget_command.add_option("NAME", *forgotten, kName).required();
}

}  // namespace tplstore::tool
