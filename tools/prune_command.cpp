// version prune: removes the versions that no rule keeps.
#include <algorithm>
#include <cerrno>

#include "base/text.h"
#include "command.h"
#include "retention.h"
#include "table.h"
#include "version_text.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

// So that a request to a server, in which a number and what is around it has 13 bytes at most, fits
// into a line of it.
constexpr size_t kNumbersAtOnce = 4096;

struct PruneArguments {
  std::string volume;
  bool is_all = false;
  RetentionRules rules;
  bool is_dry_run = false;
};

// Removes versions, all or none.
void remove_all(Store& store, const std::string& volume, std::span<const std::string> versions) {
  const std::vector<std::string> list(versions.begin(), versions.end());
  const json request = {{"op", "version-rm"}, {"volume", volume}, {"versions", list}};
  perform_once(store, request);
}

// Removes what can be removed and tells `report_busy` what is being read: halves at a time, since
// few will be.
void remove_but_busy(
    Store& store, const std::string& volume, std::span<const std::string> versions,
    const std::function<void(const std::string& version, const Error& error)>& report_busy) {
  try {
    return remove_all(store, volume, versions);
  } catch (const Error& error) {
    if (error.code() != EBUSY) throw;
    if (versions.size() == 1) return report_busy(versions[0], error);
  }
  const size_t half = versions.size() / 2;
  remove_but_busy(store, volume, versions.first(half), report_busy);
  remove_but_busy(store, volume, versions.subspan(half), report_busy);
}

// Why each version of the volume stays or goes.
json judge(const json& volume, const RetentionRules& rules) {
  std::vector<RetentionCandidate> candidates;
  json verdicts = json::array();
  for (const json& version : volume["versions"]) {
    if (version["hidden"].get<bool>() || version["current"].get<bool>()) continue;
    candidates.push_back(
        {version["number"].get<uint32_t>(), created_ns_of(version), !version["name"].is_null()});
    verdicts.push_back({{"number", version["number"]},
                        {"name", version["name"]},
                        {"created", version["created"]},
                        {"own_bytes", version["own_bytes"]},
                        {"removed", false},
                        {"problem", nullptr}});
  }
  const std::vector<RetentionVerdict> judged = apply_retention(rules, candidates);
  for (size_t i = 0; i < judged.size(); ++i) {
    verdicts[i]["keep"] = judged[i].is_kept;
    verdicts[i]["reasons"] = judged[i].reasons;
  }
  return verdicts;
}

std::string prune_text(const json& result) {
  Table table({{"VERSION", Align::kRight},
               {"NAME", Align::kLeft},
               {"CREATED", Align::kLeft},
               {"OWN", Align::kRight},
               {"", Align::kLeft},
               {"REASONS", Align::kLeft}});
  size_t going = 0;
  for (const json& version : result["versions"]) {
    const bool is_kept = version["keep"].get<bool>();
    const bool is_busy = !version["problem"].is_null();
    std::string reasons;
    for (const json& reason : version["reasons"])
      reasons += (reasons.empty() ? "" : ", ") + plain(reason);
    table.add_row({plain(version["number"]), plain(version["name"]), plain(version["created"]),
                   size(version["own_bytes"]),
                   is_kept   ? "keep"
                   : is_busy ? "busy"
                             : "remove",
                   is_busy ? "being read" : reasons});
    if (!is_kept && !is_busy) ++going;
  }
  return table.text() + fmt::format("{}: {} of {} versions {}\n", plain(result["volume"]), going,
                                    result["versions"].size(),
                                    result["dry_run"].get<bool>() ? "would be removed" : "removed");
}

// Of one volume: what `prune_text` shows.
json prune_volume(Store& store, const std::string& volume, const PruneArguments& arguments) {
  json versions = judge(find_volume(store, volume), arguments.rules);
  std::vector<std::string> going;
  for (const json& version : versions)
    if (!version["keep"].get<bool>()) going.push_back(plain(version["number"]));

  if (!arguments.is_dry_run && !going.empty()) {
    const auto report_busy = [&](const std::string& number, const Error& error) {
      for (json& version : versions)
        if (plain(version["number"]) == number) version["problem"] = error.what();
    };
    for (size_t at = 0; at < going.size(); at += kNumbersAtOnce) {
      const auto part = std::span(going).subspan(at, std::min(kNumbersAtOnce, going.size() - at));
      try {
        // A reader, or a server that opens or closes the volume, may be about to leave.
        retry_while_busy([&] { remove_all(store, volume, part); });
      } catch (const Error& error) {
        if (error.code() != EBUSY) throw;
        remove_but_busy(store, volume, part, report_busy);
      }
    }
    for (json& version : versions)
      version["removed"] = !version["keep"].get<bool>() && version["problem"].is_null();
  }
  return {{"volume", volume}, {"dry_run", arguments.is_dry_run}, {"versions", versions}};
}

size_t count_busy(const json& result) {
  return static_cast<size_t>(std::ranges::count_if(
      result["versions"], [](const json& version) { return !version["problem"].is_null(); }));
}

void prune_one(const Context& context, const PruneArguments& arguments) {
  const auto store = context.open_store();
  const json result = prune_volume(*store, arguments.volume, arguments);
  context.print(result, prune_text);
  if (const size_t busy = count_busy(result); busy > 0)
    fail(EBUSY, "volume " + arguments.volume,
         "{} of its versions could not be removed because they are being read; disconnect who "
         "reads them, and prune again",
         busy);
}

// Only of volumes of which something goes: this is for a timer, and a log.
std::string prune_all_text(const json& results) {
  std::string text;
  for (const json& result : results)
    if (std::ranges::any_of(result["versions"],
                            [](const json& version) { return !version["keep"].get<bool>(); }))
      text += prune_text(result);
  return text.empty() ? "no version is one that no rule keeps\n" : text;
}

bool is_there(Store& store, const std::string& volume) {
  return std::ranges::any_of(store.list_volumes(),
                             [&](const VolumeInfo& other) { return other.name == volume; });
}

// What one volume is up to must not keep the others from it.
void prune_all(const Context& context, const PruneArguments& arguments) {
  const auto store = context.open_store();
  json results = json::array();
  size_t busy = 0, failed = 0;
  for (const VolumeInfo& volume : store->list_volumes()) {
    try {
      results.push_back(prune_volume(*store, volume.name, arguments));
      busy += count_busy(results.back());
    } catch (const Error& error) {
      if (error.code() == ENOENT && !is_there(*store, volume.name)) continue;  // just removed
      ++failed;
      print_error(fmt::format("tplstore: {}\n", printable(error.what())));
    }
  }
  context.print(results, prune_all_text);
  if (busy + failed > 0)
    fail(EBUSY, "version prune",
         "{} versions are being read and were not removed, and {} volumes could not be pruned; "
         "what can be is, the next time",
         busy, failed);
}

void add_rule(const Command& command, const std::string& option, uint32_t& count,
              const std::string& description) {
  command.add_option(option, count, description)
      .type_name("N")
      .check(whole_number_from(0, UINT32_MAX));
}

}  // namespace

void add_prune_command(const Command& group, Context& context) {
  auto arguments = std::make_shared<PruneArguments>();
  const auto action = [&context, arguments] {
    arguments->is_all ? prune_all(context, *arguments) : prune_one(context, *arguments);
  };
  const Command command =
      add_command(group, context, "prune", "Remove the versions that no rule keeps", action);
  command.on_parsed([&context, arguments, action] {
    if (arguments->rules.is_empty())
      wrong_usage("a rule is needed that says what to keep, like --keep-last 5");
    if (arguments->is_all != arguments->volume.empty())
      wrong_usage("name one volume, or give --all");
    context.action = action;
  });
  command.add_option("VOLUME", arguments->volume, "The volume");
  command.add_flag("--all", arguments->is_all, "All volumes of the store");
  RetentionRules& rules = arguments->rules;
  add_rule(command, "--keep-last", rules.keep_last, "Keep the N newest versions");
  add_rule(command, "--keep-hourly", rules.keep_hourly, "Keep the last one of N hours");
  add_rule(command, "--keep-daily", rules.keep_daily, "Keep the last one of N days");
  add_rule(command, "--keep-weekly", rules.keep_weekly, "Keep the last one of N weeks");
  add_rule(command, "--keep-monthly", rules.keep_monthly, "Keep the last one of N months");
  add_rule(command, "--keep-yearly", rules.keep_yearly, "Keep the last one of N years");
  command.add_flag("--keep-named", rules.keeps_named, "Keep all versions that have a name");
  command.add_flag("--dry-run", arguments->is_dry_run, "Only tell what would be done");
  add_json_option(command, context);
}

}  // namespace tplstore::tool
