// init, config, gc, stats.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>

#include "backend/open_backend.h"
#include "base/text.h"
#include "base/units.h"
#include "base/version.h"
#include "command.h"
#include "control/json_output.h"
#include "progress.h"
#include "prometheus_output.h"
#include "table.h"
#include "template/template_catalog.h"
#include "transfer/atomic_file.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

std::string space_text(const json& space) {
  return fmt::format("{}, of which volumes {}, templates {}", size(space["total_bytes"]),
                     size(space["volume_bytes"]), size(space["template_bytes"]));
}

std::string free_text(const json& file_systems) {
  std::string text;
  for (const char* which : {"store", "templates"}) {
    const json& space = file_systems[which];
    if (space.is_null()) continue;
    text += fmt::format("{}{} of {}{}", text.empty() ? "" : ", ", size(space["free_bytes"]),
                        size(space["total_bytes"]),
                        text.empty() ? "" : " where the templates' data is");
  }
  return text.empty() ? "-" : text;
}

std::string stats_text(const json& stats) {
  const std::string space = space_text(stats["store"]);
  if (stats["servers"].empty())
    return "no server has this store open\n" +
           format_fields({{"store", space}, {"free", free_text(stats["file_systems"])}});
  Table table({{"VOLUME", Align::kLeft},
               {"VERSION", Align::kRight},
               {"SIZE", Align::kRight},
               {"CONN", Align::kRight},
               {"READS", Align::kRight},
               {"READ", Align::kRight},
               {"WRITES", Align::kRight},
               {"WRITTEN", Align::kRight},
               {"TRIMS", Align::kRight},
               {"ZEROES", Align::kRight},
               {"FLUSHES", Align::kRight},
               {"ERRORS", Align::kRight}});
  for (const json& volume : stats["volumes"]) {
    if (!volume["open"].get<bool>()) continue;
    const json& requests = volume["requests"];
    const json& bytes = volume["bytes"];
    table.add_row({plain(volume["name"]), plain(volume["current_version"]), size(volume["size"]),
                   plain(volume["connections"]), plain(requests["reads"]), size(bytes["reads"]),
                   plain(requests["writes"]), size(bytes["writes"]), plain(requests["trims"]),
                   plain(requests["zeroes"]), plain(requests["flushes"]), plain(volume["errors"])});
  }
  const json& map = stats["map"];
  const json& log = stats["log"];
  return table.text() +
         format_fields(
             {{"store", space},
              {"free", free_text(stats["file_systems"])},
              {"servers", std::to_string(stats["servers"].size())},
              {"map cache", fmt::format("{} of {}", size(map["bytes"]), size(map["max_bytes"]))},
              {"map logs", fmt::format("{}, of which garbage {}", size(log["bytes"]),
                                       size(log["garbage_bytes"]))}});
}

// The releases that are at work, each once.
json build_json(const json& servers) {
  json build = json::array();
  build.push_back({{"component", "command"}, {"version", std::string(kProgramVersion)}});
  std::set<std::string> seen;
  for (const json& server : servers)
    if (const std::string version = plain(server["version"]); seen.insert(version).second)
      build.push_back({{"component", "server"}, {"version", version}});
  return build;
}

enum class SpaceIs { kMeasured, kEstimated };

json collect_stats(Store& store, SpaceIs how) {
  json stats = merge_stats(ControlClient(store.backend()).ask_all({{"op", "stats"}}));
  add_noted_volumes(stats, store.noted_volumes());
  stats["store"] = space_json(how == SpaceIs::kMeasured ? store.space() : store.estimate_space());
  stats["file_systems"] = file_systems_json(store.file_systems());
  stats["build"] = build_json(stats["servers"]);
  return stats;
}

// Whoever collects metrics must be able to read the file, who is somebody else.
constexpr mode_t kMetricsMode = 0644;

void replace_file(const std::string& name, std::string_view text) {
  check_publish_target(name, /*may_replace=*/true);
  AtomicFile file(name);
  while (!text.empty()) {
    const ssize_t written = ::write(file.descriptor(), text.data(), text.size());
    if (written < 0 && errno != EINTR) fail_errno(errno, name, "writing it");
    if (written > 0) text.remove_prefix(static_cast<size_t>(written));
  }
  if (::fchmod(file.descriptor(), kMetricsMode) != 0)
    fail_errno(errno, name, "letting others read it");
  file.publish(/*may_replace=*/true);
}

struct StatsArguments {
  bool is_prometheus = false;
  std::string file;
};

void show_stats(const Context& context, const StatsArguments& arguments) {
  const auto store = context.open_store();
  if (!arguments.is_prometheus && arguments.file.empty())
    return context.print(collect_stats(*store, SpaceIs::kMeasured), stats_text);
  // What is asked for again and again must not grow with the data.
  const std::string text =
      prometheus_text(collect_stats(*store, SpaceIs::kEstimated), store->backend().describe());
  if (arguments.file.empty())
    fmt::print("{}", text);
  else
    replace_file(arguments.file, text);
}

void collect_garbage(const Context& context) {
  const auto store = context.open_store();
  const uint64_t before = store->space().volume_bytes;
  const uint64_t expired_volumes = store->remove_expired();
  const uint64_t removed_volumes = store->remove_orphans();
  store->remove_boot_orphans();
  json result = gc_json(gc(store->templates(), [&] { store->template_users(); }));
  if (const std::string left = store->leave_former_origins(); !left.empty())
    print_error(fmt::format(
        "tplstore: {}: the segments that were left here cannot be reached, and stay\n", left));
  result["removed_volumes"] = removed_volumes;
  result["expired_volumes"] = expired_volumes;
  store->reclaim();
  ControlClient(store->backend()).ask_all({{"op", "reclaim"}}, Patience::kEndless);
  // Guests go on writing meanwhile.
  const uint64_t after = store->space().volume_bytes;
  result["freed_volume_bytes"] = before - std::min(before, after);
  context.print(result, [](const json& value) {
    return fmt::format(
        "{} of templates freed, {} segments removed\n"
        "{} of volumes freed, remains of {} volumes removed{}\n",
        size(value["freed_bytes"]), plain(value["removed_segments"]),
        size(value["freed_volume_bytes"]), plain(value["removed_volumes"]),
        value["expired_volumes"] == 0 ? ""
                                      : fmt::format(", and {} that had been kept long enough",
                                                    plain(value["expired_volumes"])));
  });
}

constexpr const char* kKeepKey = "keep";

json config_json(Store& store) { return {{kKeepKey, format_duration(store.removal_keep_s())}}; }

void configure(const Context& context, const std::string& key, const std::string& value) {
  const auto store = context.open_store();
  if (!value.empty()) store->set_removal_keep_s(parse_duration_s(key, value));
  const json config = config_json(*store);
  context.print(config, [&](const json& all) {
    if (!value.empty()) return std::string();
    if (!key.empty()) return plain(all[key]) + "\n";
    return fmt::format("{} {}\n", kKeepKey, plain(all[kKeepKey]));
  });
}

}  // namespace

void init_store(const Context& context, bool is_shared, const std::string& segments) {
  const std::string& location = context.store_directory;
  const StorageKind kind = kind_of_location(location);
  check_shared(location, kind, is_shared, "--shared refuse-foreign");
  Store::init(location, segments);
  const bool is_on_hosts = kind.reach == StorageKind::Reach::kHosts;
  fmt::print("{}: an empty store{}\n", printable(location), is_on_hosts ? " on " + kind.name : "");
}

void add_store_commands(const Command& app, Context& context) {
  auto shared = std::make_shared<std::string>();
  auto segments = std::make_shared<std::string>();
  const Command init = add_command(
      app, context, "init", "Make an empty store",
      [&context, shared, segments] { init_store(context, !shared->empty(), *segments); });
  init.add_option("STORE", context.store_directory,
                  "A directory that does not exist yet, or is empty")
      .check(not_empty());
  init.add_option("--segments", *segments,
                  "Where the data of templates is to be, if not in the store")
      .type_name("DIR")
      .check(not_empty());
  init.add_option("--shared", *shared,
                  "Several hosts have it; what another one has is refused: refuse-foreign")
      .type_name("HOW")
      .check(one_of({"refuse-foreign"}));

  auto setting = std::make_shared<std::pair<std::string, std::string>>();
  const Command config =
      add_command(app, context, "config", "Show or change what a store does unless told otherwise",
                  [&context, setting] { configure(context, setting->first, setting->second); });
  config
      .add_option("KEY", setting->first,
                  "keep: for how long 'volume restore' can bring back a volume that is removed")
      .check(one_of({kKeepKey}));
  config.add_option("VALUE", setting->second, "A time like 7d; 0 for not at all")
      .check(is_duration());
  add_json_option(config, context);

  const Command collect =
      add_command(app, context, "gc", "Give back the space of what nothing uses any more",
                  [&context] { collect_garbage(context); });
  add_json_option(collect, context);

  auto arguments = std::make_shared<StatsArguments>();
  const Command stats =
      add_command(app, context, "stats", "Show what the store occupies, and what its servers count",
                  [&context, arguments] { show_stats(context, *arguments); });
  const Option json_option = add_json_option(stats, context);
  const Option prometheus = stats.add_flag("--prometheus", arguments->is_prometheus,
                                           "Print the text format of Prometheus");
  prometheus.excludes(json_option);
  stats
      .add_option("--textfile", arguments->file,
                  "Put that into a file, which is never seen half written")
      .type_name("FILE")
      .check(not_empty())
      .excludes(json_option)
      .excludes(prometheus);
}

}  // namespace tplstore::tool
