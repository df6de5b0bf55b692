// A family of metrics for each counter, with a line for each volume or template.
#include "prometheus_output.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <sstream>
#include <vector>

#include "base/text.h"
#include "control/metrics.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;
using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// The family of a metric; made when there is none.
MetricFamily& family_of(std::vector<MetricFamily>& families, const Metric& metric) {
  for (MetricFamily& family : families)
    if (family.name == metric.family) return family;
  MetricFamily& family = families.emplace_back();
  family.name = metric.family;
  family.help = metric.help;
  family.type = metric.kind == Metric::Kind::kCounter     ? MetricType::Counter
                : metric.kind == Metric::Kind::kHistogram ? MetricType::Histogram
                                                          : MetricType::Gauge;
  return family;
}

// What is there is a number, or a list whose length counts.
void add_metric(std::vector<MetricFamily>& families, const Metric& metric, const json& from,
                const char* label, std::vector<ClientMetric::Label> labels) {
  if (metric.family == nullptr) return;
  MetricFamily& family = family_of(families, metric);
  const json value = from.value(metric.pointer(), json());
  if (!value.is_number() && !value.is_array()) return;
  ClientMetric added;
  if (*metric.label != '\0') labels.push_back({label, metric.label});
  added.label = std::move(labels);
  (family.type == MetricType::Counter ? added.counter.value : added.gauge.value) =
      value.is_array() ? static_cast<double>(value.size()) : value.get<double>() * metric.unit;
  family.metric.push_back(std::move(added));
}

// Of objects whose members are labels.
void add_info(std::vector<MetricFamily>& families, const Metric& metric, const json& infos) {
  MetricFamily& family = family_of(families, metric);
  for (const json& info : infos) {
    ClientMetric added;
    for (const auto& [name, value] : info.items())
      added.label.push_back({name, value.get<std::string>()});
    added.gauge.value = 1;
    family.metric.push_back(std::move(added));
  }
}

// merge_stats() has checked it.
void add_histogram(std::vector<MetricFamily>& families, const DurationMetric& metric,
                   const json& stats) {
  MetricFamily& family = family_of(families, metric.metric);
  const json& histogram = stats.at(metric.metric.pointer());
  const json& bounds = stats["request_durations"]["bounds_ns"];
  ClientMetric added;
  added.label.push_back({"op", metric.metric.label});
  uint64_t count = 0;
  for (size_t i = 0; i < histogram["counts"].size(); ++i) {
    count += histogram["counts"][i].get<uint64_t>();
    if (i < bounds.size()) added.histogram.bucket.push_back({count, bounds[i].get<double>() / 1e9});
  }
  added.histogram.sample_count = count;
  added.histogram.sample_sum = histogram["sum_ns"].get<double>() / 1e9;
  family.metric.push_back(std::move(added));
}

}  // namespace

std::string prometheus_text(const json& stats, const std::string& store) {
  std::vector<MetricFamily> families;
  for (const Metric& metric : store_metrics()) {
    if (metric.kind == Metric::Kind::kInfo)
      add_info(families, metric, stats["build"]);
    else
      add_metric(families, metric, stats, "kind", {});
  }
  for (const TierMetric& metric : tier_metrics())
    add_metric(families, metric.metric, stats, "kind", {});
  for (const BootCacheMetric& metric : boot_cache_metrics())
    add_metric(families, metric.metric, stats, "kind", {});
  if (!stats["servers"].empty())
    for (const DurationMetric& metric : duration_metrics()) add_histogram(families, metric, stats);
  for (const json& volume : stats["volumes"])
    for (const VolumeMetric& metric : volume_metrics())
      add_metric(families, metric.metric, volume, "op",
                 {{"volume", volume["name"].get<std::string>()}});
  for (MetricFamily& family : families)
    for (ClientMetric& metric : family.metric)
      metric.label.insert(metric.label.begin(), ClientMetric::Label{"store", printable(store)});
  std::erase_if(families, [](const MetricFamily& family) { return family.metric.empty(); });
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace tplstore::tool
