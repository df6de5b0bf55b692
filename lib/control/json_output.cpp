// One function for each kind of object, in the order of their keys in the manual.
#include "control/json_output.h"

#include <algorithm>
#include <map>

#include "base/units.h"

namespace tplstore {
namespace {

using nlohmann::json;

json text_or_null(const std::string& text) { return text.empty() ? json(nullptr) : json(text); }

// Nil stands for what could not be read.
json uuid_or_null(const Uuid& uuid) { return uuid.is_nil() ? json(nullptr) : json(uuid.text()); }

json volume_stats_json(const VolumeStats& stats) {
  return {
      {"name", stats.name},
      {"current_version", stats.current_version},
      {"size", stats.size_bytes},
      {"connections", stats.connections},
      {"requests",
       {{"reads", stats.reads},
        {"writes", stats.writes},
        {"trims", stats.trims},
        {"zeroes", stats.zeroes},
        {"flushes", stats.flushes}}},
      {"bytes",
       {{"reads", stats.read_bytes},
        {"writes", stats.write_bytes},
        {"trims", stats.trim_bytes},
        {"zeroes", stats.zero_bytes}}},
      {"errors", stats.errors},
      {"first_writes", stats.first_writes},
      {"template_reads", {{"reads", stats.template_reads}, {"bytes", stats.template_read_bytes}}},
      {"data_file_reads",
       {{"reads", stats.data_file_reads}, {"bytes", stats.data_file_read_bytes}}},
      {"map",
       {{"bytes", stats.map_bytes},
        {"loads", stats.map_loads},
        {"evictions", stats.map_evictions}}},
      {"log",
       {{"bytes", stats.log_bytes},
        {"garbage_bytes", stats.log_garbage_bytes},
        {"generation", stats.log_generation},
        {"commits", stats.commits},
        {"checkpoints", stats.checkpoints},
        {"compactions", stats.compactions}}},
  };
}

// States rather than counters: of several servers' the largest counts.
bool is_state(const std::string& key) {
  return key == "current_version" || key == "size" || key == "generation";
}

// Adds `from` to `into`, key by key; what is only in one of them stays as it is.
void add_up(json& into, const json& from) {
  if (!into.is_object() || !from.is_object()) return;
  for (const auto& [key, value] : from.items()) {
    json& sum = into[key];
    if (sum.is_null()) {
      sum = value;
    } else if (sum.is_number_unsigned() && value.is_number_unsigned()) {
      const uint64_t a = sum.get<uint64_t>(), b = value.get<uint64_t>();
      sum = is_state(key) ? std::max(a, b) : a + b;
    } else {
      add_up(sum, value);
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
  json volumes = json::array();
  VolumeStats sum;
  for (const VolumeStats& volume : stats.volumes) {
    volumes.push_back(volume_stats_json(volume));
    sum.map_loads += volume.map_loads;
    sum.map_evictions += volume.map_evictions;
    sum.log_bytes += volume.log_bytes;
    sum.log_garbage_bytes += volume.log_garbage_bytes;
    sum.commits += volume.commits;
    sum.checkpoints += volume.checkpoints;
    sum.compactions += volume.compactions;
  }
  return {
      {"servers", json::array()},
      {"volumes", std::move(volumes)},
      {"cache", {{"enabled", false}}},
      {"tier", {{"enabled", false}}},
      {"map",
       {{"bytes", stats.map_cache_bytes},
        {"max_bytes", stats.map_cache_max_bytes},
        {"loads", sum.map_loads},
        {"evictions", sum.map_evictions}}},
      {"log",
       {{"bytes", sum.log_bytes},
        {"garbage_bytes", sum.log_garbage_bytes},
        {"commits", sum.commits},
        {"checkpoints", sum.checkpoints},
        {"compactions", sum.compactions}}},
  };
}

json merge_stats(const std::vector<json>& answers) {
  json merged = stats_json(StoreStats{});
  std::map<std::string, json> volumes;
  for (const json& answer : answers) {
    if (!answer.is_object()) continue;
    for (const char* part : {"cache", "tier", "map", "log"})
      if (answer.contains(part)) add_up(merged[part], answer[part]);
    if (answer.contains("servers") && answer["servers"].is_array())
      for (const json& server : answer["servers"]) merged["servers"].push_back(server);
    if (!answer.contains("volumes") || !answer["volumes"].is_array()) continue;
    for (const json& volume : answer["volumes"])
      if (volume.is_object() && volume.contains("name") && volume["name"].is_string())
        add_up(volumes.try_emplace(volume["name"], json::object()).first->second, volume);
  }
  for (const auto& [name, volume] : volumes) merged["volumes"].push_back(volume);
  return merged;
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
