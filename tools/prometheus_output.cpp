// A family of metrics for each counter, with a line for each volume or template.
#include "prometheus_output.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <sstream>
#include <vector>

namespace tplstore::tool {
namespace {

using nlohmann::json;
using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// One number of a volume's object: where it is, and which operation it counts ("": no label).
struct Source {
  const char* pointer;
  const char* operation;
};

struct Family {
  const char* name;
  const char* help;
  MetricType type;
  std::vector<Source> sources;
};

const std::vector<Family>& volume_families() {
  static const std::vector<Family> families = {
      {"tplstore_volume_size_bytes", "Size of the volume", MetricType::Gauge, {{"/size", ""}}},
      {"tplstore_volume_current_version",
       "Number of the volume's current version",
       MetricType::Gauge,
       {{"/current_version", ""}}},
      {"tplstore_volume_connections",
       "Connections to exports of the volume",
       MetricType::Gauge,
       {{"/connections", ""}}},
      {"tplstore_requests_total",
       "Requests of clients",
       MetricType::Counter,
       {{"/requests/reads", "read"},
        {"/requests/writes", "write"},
        {"/requests/trims", "trim"},
        {"/requests/zeroes", "zero"},
        {"/requests/flushes", "flush"}}},
      {"tplstore_request_bytes_total",
       "Bytes that requests of clients covered",
       MetricType::Counter,
       {{"/bytes/reads", "read"},
        {"/bytes/writes", "write"},
        {"/bytes/trims", "trim"},
        {"/bytes/zeroes", "zero"}}},
      {"tplstore_errors_total",
       "Requests of clients that failed",
       MetricType::Counter,
       {{"/errors", ""}}},
      {"tplstore_first_writes_total",
       "Blocks written for the first time in their version",
       MetricType::Counter,
       {{"/first_writes", ""}}},
      {"tplstore_template_reads_total",
       "Pieces read from segments of templates",
       MetricType::Counter,
       {{"/template_reads/reads", ""}}},
      {"tplstore_template_read_bytes_total",
       "Bytes read from segments of templates",
       MetricType::Counter,
       {{"/template_reads/bytes", ""}}},
      {"tplstore_data_file_reads_total",
       "Pieces read from data files of versions",
       MetricType::Counter,
       {{"/data_file_reads/reads", ""}}},
      {"tplstore_data_file_read_bytes_total",
       "Bytes read from data files of versions",
       MetricType::Counter,
       {{"/data_file_reads/bytes", ""}}},
      {"tplstore_map_bytes", "Memory of the volume's map", MetricType::Gauge, {{"/map/bytes", ""}}},
      {"tplstore_map_loads_total",
       "Nodes of the map read from its log",
       MetricType::Counter,
       {{"/map/loads", ""}}},
      {"tplstore_map_evictions_total",
       "Nodes of the map dropped from memory",
       MetricType::Counter,
       {{"/map/evictions", ""}}},
      {"tplstore_log_bytes", "Size of the map log", MetricType::Gauge, {{"/log/bytes", ""}}},
      {"tplstore_log_garbage_bytes",
       "What a compaction of the map log would drop",
       MetricType::Gauge,
       {{"/log/garbage_bytes", ""}}},
      {"tplstore_log_commits_total",
       "Commits, each for one or more flushes",
       MetricType::Counter,
       {{"/log/commits", ""}}},
      {"tplstore_log_checkpoints_total",
       "Checkpoints of the map",
       MetricType::Counter,
       {{"/log/checkpoints", ""}}},
      {"tplstore_log_compactions_total",
       "Compactions of the map log",
       MetricType::Counter,
       {{"/log/compactions", ""}}},
  };
  return families;
}

void add_metric(MetricFamily& family, const json& from, const char* pointer,
                std::vector<ClientMetric::Label> labels) {
  const json value = from.value(json::json_pointer(pointer), json());
  if (!value.is_number()) return;
  ClientMetric metric;
  metric.label = std::move(labels);
  (family.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) =
      value.get<double>();
  family.metric.push_back(std::move(metric));
}

}  // namespace

std::string prometheus_text(const json& stats) {
  std::vector<MetricFamily> families;
  const auto add_family = [&](const char* name, const char* help, MetricType type) -> auto& {
    MetricFamily& family = families.emplace_back();
    family.name = name;
    family.help = help;
    family.type = type;
    return family;
  };

  MetricFamily& servers =
      add_family("tplstore_servers", "Servers that have the store open", MetricType::Gauge);
  servers.metric.emplace_back().gauge.value = static_cast<double>(stats["servers"].size());
  add_metric(add_family("tplstore_map_cache_bytes", "Memory of all maps", MetricType::Gauge), stats,
             "/map/bytes", {});
  add_metric(add_family("tplstore_map_cache_max_bytes", "What all maps may take together",
                        MetricType::Gauge),
             stats, "/map/max_bytes", {});
  MetricFamily& space = add_family("tplstore_store_bytes",
                                   "What the store occupies on its file system", MetricType::Gauge);
  add_metric(space, stats, "/store/volume_bytes", {{"kind", "volumes"}});
  add_metric(space, stats, "/store/template_bytes", {{"kind", "templates"}});
  add_metric(space, stats, "/store/other_bytes", {{"kind", "other"}});
  for (const Family& wanted : volume_families()) {
    MetricFamily& family = add_family(wanted.name, wanted.help, wanted.type);
    for (const json& volume : stats["volumes"]) {
      for (const Source& source : wanted.sources) {
        std::vector<ClientMetric::Label> labels = {{"volume", volume["name"].get<std::string>()}};
        if (*source.operation != '\0') labels.push_back({"op", source.operation});
        add_metric(family, volume, source.pointer, std::move(labels));
      }
    }
  }
  std::erase_if(families, [](const MetricFamily& family) { return family.metric.empty(); });
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace tplstore::tool
