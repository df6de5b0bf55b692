// One function for each kind of object, in the order of their keys in the manual.
#include "control/json_output.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/units.h"
#include "control/metrics.h"

namespace tplstore {
namespace {

using nlohmann::json;

json text_or_null(const std::string& text) { return text.empty() ? json(nullptr) : json(text); }

// Nil stands for what could not be read.
json uuid_or_null(const Uuid& uuid) { return uuid.is_nil() ? json(nullptr) : json(uuid.text()); }

json volume_stats_json(const VolumeStats& stats) {
  json volume = {{"name", stats.name}, {"open", stats.is_open}};
  for (const VolumeMetric& metric : volume_metrics()) {
    const std::optional<uint64_t> value = metric.value(stats);
    volume[metric.metric.pointer()] = value ? json(*value) : json(nullptr);
  }
  volume["space"]["old"] = stats.is_usage_old;
  return volume;
}

json durations_json(const StoreStats& stats) {
  json durations = {{"bounds_ns", kDurationBoundsNs}};
  json whole;
  for (const DurationMetric& metric : duration_metrics()) {
    const DurationHistogram& histogram = stats.durations[static_cast<size_t>(metric.kind)];
    whole[metric.metric.pointer()] = {{"counts", histogram.counts}, {"sum_ns", histogram.sum_ns}};
  }
  durations.update(whole["request_durations"]);
  return durations;
}

// What has other bounds is of another release, and left out.
void add_durations(json& into, const json& from) {
  if (!from.is_object() || from.value("bounds_ns", json()) != into["bounds_ns"]) return;
  for (auto& [kind, sum] : into.items()) {
    if (kind == "bounds_ns" || !from.contains(kind) || !from[kind].is_object()) continue;
    const json counts = from[kind].value("counts", json()),
               sum_ns = from[kind].value("sum_ns", json());
    const auto is_number = [](const json& number) { return number.is_number_unsigned(); };
    if (!counts.is_array() || counts.size() != sum["counts"].size() || !is_number(sum_ns) ||
        !std::all_of(counts.begin(), counts.end(), is_number))
      continue;
    for (size_t i = 0; i < counts.size(); ++i)
      sum["counts"][i] = sum["counts"][i].get<uint64_t>() + counts[i].get<uint64_t>();
    sum["sum_ns"] = sum["sum_ns"].get<uint64_t>() + sum_ns.get<uint64_t>();
  }
}

// Of several servers' the largest counts.
bool is_state(const json::json_pointer& path) {
  const auto is_it = [&](const auto& metric) {
    return metric.metric.kind == Metric::Kind::kState && metric.metric.pointer() == path;
  };
  return std::ranges::any_of(volume_metrics(), is_it) || std::ranges::any_of(tier_metrics(), is_it);
}

// Adds `from` to `into`, key by key; what is only in one of them stays as it is. `path` is where
// they are in a volume's object.
void add_up(json& into, const json& from, const json::json_pointer& path) {
  if (!into.is_object() || !from.is_object()) return;
  for (const auto& [key, value] : from.items()) {
    json& sum = into[key];
    if (sum.is_null()) {
      sum = value;
    } else if (sum.is_number_unsigned() && value.is_number_unsigned()) {
      const uint64_t a = sum.get<uint64_t>(), b = value.get<uint64_t>();
      sum = is_state(path / key) ? std::max(a, b) : a + b;
    } else {
      add_up(sum, value, path / key);
    }
  }
}

}  // namespace

json template_json(const TemplateInfo& info) {
  return {
      {"name", info.name},
      {"uuid", uuid_or_null(info.uuid)},
      {"size", info.size_bytes},
      {"state", info.state},
      {"problem", text_or_null(info.problem)},
      {"data_bytes", info.data_bytes},
      {"unique_bytes", info.unique_bytes},
      {"segments", info.segments},
      {"created", info.created_ns == 0 ? json(nullptr) : json(format_time(info.created_ns))},
      {"source", text_or_null(info.source)},
      {"content_id", text_or_null(info.content_id)},
  };
}

json gc_json(const GcResult& result) {
  return {
      {"removed_segments", result.removed_segments},
      {"freed_bytes", result.freed_bytes},
      {"kept_segments", result.kept_segments},
  };
}

json writer_json(const WriterInfo& info) {
  return {
      {"host", text_or_null(info.host_name)},
      {"host_id", info.host_id.text()},
      {"boot_id", info.boot_id.text()},
      {"server_pid", info.server_pid},
      {"server_start_time", info.server_start_time},
      {"peer", text_or_null(info.peer)},
      {"epoch", info.epoch},
  };
}

namespace {

const char* state_name(LockInfo::State state) {
  switch (state) {
    case LockInfo::State::kFree:
      return "free";
    case LockInfo::State::kHeld:
      return "held";
    case LockInfo::State::kCrashed:
      return "crashed";
    case LockInfo::State::kHandOver:
      return "handover";
    case LockInfo::State::kForeign:
      return "foreign";
  }
  return "";
}

}  // namespace

json lock_json(const LockInfo& info) {
  const bool is_held = info.state == LockInfo::State::kHeld ||
                       (info.state == LockInfo::State::kHandOver && info.writer);
  json lock = {{"volume", info.volume},           {"attached", is_held},
               {"state", state_name(info.state)}, {"epoch", info.epoch},
               {"size_bytes", info.size_bytes},   {"writer", nullptr},
               {"losers", json::array()},         {"handover", nullptr}};
  if (const auto& writer = info.writer) {
    lock["writer"] = writer_json(*writer);
    lock["writer"].update({{"host_name", text_or_null(writer->host_name)},
                           {"token", text_or_null(writer->token)},
                           {"since", format_time(writer->since_ns)},
                           {"connections", info.connections},
                           {"wrote", info.has_written}});
  }
  for (const LockInfo::Loser& loser : info.losers)
    lock["losers"].push_back({{"peer", text_or_null(loser.peer)},
                              {"epoch", loser.epoch},
                              {"writes_lost", loser.has_lost}});
  if (const auto& hand_over = info.hand_over)
    lock["handover"] = {{"to", hand_over->to},
                        {"standby", hand_over->has_standby},
                        {"until", format_time(hand_over->until_ns)}};
  return lock;
}

json volume_json(const VolumeInfo& info, bool with_versions) {
  json volume = {
      {"name", info.name},
      {"uuid", uuid_or_null(info.uuid)},
      {"size", info.size_bytes},
      {"template", text_or_null(info.template_name)},
      {"parent", text_or_null(info.parent)},
      {"current_version", info.current_version},
      {"attached", info.is_attached},
      {"writer", info.writer ? writer_json(*info.writer) : json(nullptr)},
      {"unique_bytes", info.unique_bytes},
      {"shared_bytes", info.shared_bytes},
  };
  if (with_versions) volume["versions"] = versions_json(info.versions);
  return volume;
}

json removed_json(const RemovedVolume& removed) {
  return {{"name", removed.name},
          {"uuid", removed.uuid.text()},
          {"size", removed.size_bytes},
          {"removed", format_time(removed.removed_ns)},
          {"until", format_time(removed.until_ns)},
          {"unique_bytes", removed.unique_bytes}};
}

json version_json(const VersionInfo& info) {
  return {
      {"number", info.number},
      {"name", text_or_null(info.name)},
      {"note", text_or_null(info.note)},
      {"parent", info.parent == 0 ? json(nullptr) : json(info.parent)},
      {"created", format_time(info.created_ns)},
      {"size", info.size_bytes},
      {"own_bytes", info.own_bytes},
      {"hidden", info.is_hidden},
      {"current", info.is_current},
      {"children", info.children},
      {"forks", info.forks},
      {"origin", fmt::format("{}@{}", info.identity.volume.text(), info.identity.number)},
  };
}

json space_json(const StoreSpace& space) {
  return {
      {"volume_bytes", space.volume_bytes},
      {"template_bytes", space.template_bytes},
      {"other_bytes", space.other_bytes},
      {"total_bytes", space.volume_bytes + space.template_bytes + space.other_bytes},
  };
}

json tier_directory_json(const TierDirectoryStatus& status) {
  constexpr const char* kStates[] = {"ok", "absent", "full", "read_only", "failing", "leaving"};
  json ranges = json::array();
  for (const auto& [first, last] : status.ranges)
    ranges.push_back({fmt::format("{:016x}", first), fmt::format("{:016x}", last)});
  return {
      {"path", status.entry.path},
      {"uuid", status.entry.uuid.text()},
      {"kind", status.entry.kind == TierEntry::Kind::kSsd ? "ssd" : "local"},
      {"state", kStates[static_cast<size_t>(status.state)]},
      {"weight", status.entry.weight_bytes},
      {"share", status.share},
      {"ranges", std::move(ranges)},
      {"segments", status.segments},
      {"bytes", status.bytes},
      {"bytes_out_of_place", status.bytes_out_of_place},
      {"reads", status.reads},
      {"read_bytes", status.read_bytes},
      {"fills", status.fills},
      {"fill_bytes", status.fill_bytes},
      {"errors", status.errors},
      {"damaged", status.damaged},
      {"last_error", text_or_null(status.last_error)},
  };
}

json tier_json(const TierStatus& status) {
  json directories = json::array();
  for (const TierDirectoryStatus& directory : status.directories)
    directories.push_back(tier_directory_json(directory));
  return {
      {"directories", std::move(directories)},
      {"generation", status.generation},
      {"moving", status.is_moving},
      {"origin_reads", status.origin_reads},
      {"origin_read_bytes", status.origin_read_bytes},
  };
}

json warm_json(const Tier::WarmResult& result) {
  json missing = json::array();
  for (const auto& [segment, why] : result.missing)
    missing.push_back({{"segment", segment.hex()}, {"why", why}});
  return {
      {"filled_segments", result.filled_segments},
      {"filled_bytes", result.filled_bytes},
      {"missing", std::move(missing)},
  };
}

json boot_window_json(const BootWindow& window) {
  return {
      {"volume", window.volume},
      {"opened", format_time(window.opened_ns)},
      {"reason", window.reason ? json(name_of(*window.reason)) : json(nullptr)},
      {"ended", window.reason ? json(format_time(window.ended_ns)) : json(nullptr)},
      {"blocks", window.blocks},
      {"bytes", window.bytes()},
      {"read_bytes", window.read_bytes},
      {"streamed_bytes", window.streamed_bytes},
      {"first_touch_hits", window.use.first_touch_hits},
      {"hits", window.use.hits},
      {"misses", window.use.misses},
      {"prefetched", window.use.prefetched},
      {"prefetched_unused", window.use.prefetched_unused},
      {"seconds", static_cast<double>(window.duration_ms) / 1000},
  };
}

json boot_json(const BootStatus& status) {
  json profile = nullptr;
  if (status.profile)
    profile = {{"generation", status.profile->generation},
               {"boots", status.profile->boots},
               {"blocks", status.profile->blocks},
               {"bytes", status.profile->blocks * kBlockBytes},
               {"created", format_time(status.profile->created_ns)},
               {"updated", format_time(status.profile->updated_ns)},
               {"own_bytes", status.profile->own_blocks * kBlockBytes}};
  json windows = json::array();
  for (const BootWindow& window : status.windows) windows.push_back(boot_window_json(window));
  return {
      {"name", status.name},
      {"kind", status.is_template ? "template" : "volume"},
      {"profile", std::move(profile)},
      {"pack", {{"state", name_of(status.pack)}, {"bytes", status.pack_bytes}}},
      {"cached_bytes", status.cached_bytes},
      {"windows", std::move(windows)},
  };
}

json boot_warm_json(const BootWarm& warm) {
  return {{"wanted_bytes", warm.wanted_bytes}, {"cached_bytes", warm.cached_bytes}};
}

json changes_json(const std::vector<ChangedRange>& changes) {
  json ranges = json::array();
  uint64_t data_bytes = 0, zero_bytes = 0;
  for (const ChangedRange& change : changes) {
    ranges.push_back(
        {{"offset", change.offset}, {"length", change.length}, {"zero", change.is_zero}});
    (change.is_zero ? zero_bytes : data_bytes) += change.length;
  }
  return {{"data_bytes", data_bytes}, {"zero_bytes", zero_bytes}, {"ranges", std::move(ranges)}};
}

json versions_json(const std::vector<VersionInfo>& infos) {
  json versions = json::array();
  for (const VersionInfo& info : infos) versions.push_back(version_json(info));
  return versions;
}

json stats_json(const StoreStats& stats) {
  json whole = {{"servers", json::array()},
                {"volumes", json::array()},
                {"cache", {{"enabled", stats.boot_cache.is_used}}},
                {"boot_cache", {{"enabled", stats.boot_cache.is_used}}},
                {"tier", {{"enabled", stats.tier.is_used}}},
                {"request_durations", durations_json(stats)}};
  if (stats.tier.is_used)
    for (const TierMetric& metric : tier_metrics())
      whole[metric.metric.pointer()] = stats.tier.*metric.value;
  if (stats.boot_cache.is_used)
    for (const BootCacheMetric& metric : boot_cache_metrics())
      whole[metric.metric.pointer()] = stats.boot_cache.*metric.value;
  for (const VolumeStats& volume : stats.volumes)
    whole["volumes"].push_back(volume_stats_json(volume));
  for (const VolumeMetric& metric : volume_metrics()) {
    if (!is_summed(metric)) continue;
    uint64_t sum = 0;
    for (const VolumeStats& volume : stats.volumes) sum += metric.value(volume).value_or(0);
    whole[metric.metric.pointer()] = sum;
  }
  // With what is open for reading.
  whole["map"]["bytes"] = stats.map_cache_bytes;
  whole["map"]["max_bytes"] = stats.map_cache_max_bytes;
  return whole;
}

json merge_stats(const std::vector<json>& answers) {
  json merged = stats_json(StoreStats{});
  std::map<std::string, json> volumes;
  for (const json& answer : answers) {
    if (!answer.is_object()) continue;
    for (const char* part : {"cache", "boot_cache", "tier", "map", "log"})
      if (answer.contains(part)) add_up(merged[part], answer[part], json::json_pointer() / part);
    for (const char* part : {"cache", "boot_cache", "tier"})
      if (answer.value(json::json_pointer(fmt::format("/{}/enabled", part)), json()) == true)
        merged[part]["enabled"] = true;
    if (answer.contains("request_durations"))
      add_durations(merged["request_durations"], answer["request_durations"]);
    if (answer.contains("servers") && answer["servers"].is_array())
      for (const json& server : answer["servers"]) merged["servers"].push_back(server);
    if (!answer.contains("volumes") || !answer["volumes"].is_array()) continue;
    for (const json& volume : answer["volumes"])
      if (volume.is_object() && volume.contains("name") && volume["name"].is_string())
        add_up(volumes.try_emplace(volume["name"], json::object()).first->second, volume,
               json::json_pointer());
  }
  for (const auto& [name, volume] : volumes) merged["volumes"].push_back(volume);
  return merged;
}

void add_noted_volumes(json& stats, const std::vector<VolumeStats>& noted) {
  json& volumes = stats["volumes"];
  std::set<std::string> open;
  for (const json& volume : volumes) open.insert(volume["name"]);
  for (const VolumeStats& volume : noted)
    if (!open.contains(volume.name)) volumes.push_back(volume_stats_json(volume));
  std::sort(volumes.begin(), volumes.end(),
            [](const json& a, const json& b) { return a["name"] < b["name"]; });
}

json file_systems_json(const StoreFileSystems& file_systems) {
  const auto one = [](const std::optional<FileSystemSpace>& space) {
    if (!space) return json(nullptr);
    return json({{"total_bytes", space->total_bytes}, {"free_bytes", space->free_bytes}});
  };
  return {{"store", one(file_systems.store)}, {"templates", one(file_systems.templates)}};
}

std::string json_text(const json& value, int indent) {
  std::string text =
      value.dump(indent, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
  // JSON leaves DEL and C1 as they are. They can only be within texts, where an escape is the same.
  for (size_t at = 0; (at = text.find_first_of("\x7f\xc2", at)) != std::string::npos; ++at) {
    if (text[at] == '\x7f') {
      text.replace(at, 1, "\\u007f");
    } else if (const auto next = static_cast<unsigned char>(text[at + 1]); next < 0xa0) {
      text.replace(at, 2, fmt::format("\\u{:04x}", next));
    }
  }
  return text;
}

}  // namespace tplstore
