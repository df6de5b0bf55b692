// The table of metrics against what the man page says of them, and against what servers tell.
#include "control/metrics.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <fstream>
#include <set>
#include <sstream>

#include "control/json_output.h"

using namespace tplstore;

namespace {

std::string man_page() {
  std::ifstream file(TPLSTORE_MAN_PAGE);
  std::ostringstream text;
  text << file.rdbuf();
  REQUIRE_FALSE(text.str().empty());
  return text.str();
}

// The list of Prometheus' names, as the man page must have it.
std::string families_text() {
  std::string text;
  std::string before;
  const auto add = [&](const Metric& metric) {
    if (metric.family == nullptr || before == metric.family) return;
    before = metric.family;
    text += fmt::format(".It Sy {}\n{}.\n", metric.family, metric.help);
  };
  for (const Metric& metric : store_metrics()) add(metric);
  for (const TierMetric& metric : tier_metrics()) add(metric.metric);
  for (const BootCacheMetric& metric : boot_cache_metrics()) add(metric.metric);
  for (const VolumeMetric& metric : volume_metrics()) add(metric.metric);
  return text;
}

}  // namespace

TEST_CASE("the man page lists all metrics, and no others") {
  const std::string page = man_page();
  const std::string families = families_text();
  INFO("the list must be:\n", families);
  CHECK(page.find(families) != std::string::npos);
  size_t count = 0;
  for (size_t at = 0; (at = page.find(".It Sy tplstore_", at)) != std::string::npos; ++at) ++count;
  std::set<std::string> names;
  for (const Metric& metric : store_metrics()) names.insert(metric.family);
  for (const TierMetric& metric : tier_metrics()) names.insert(metric.metric.family);
  for (const BootCacheMetric& metric : boot_cache_metrics()) names.insert(metric.metric.family);
  for (const VolumeMetric& metric : volume_metrics())
    if (metric.metric.family != nullptr) names.insert(metric.metric.family);
  CHECK(count == names.size());
}

TEST_CASE("the man page names every key of a volume's counters") {
  const std::string page = man_page();
  const size_t begin = page.find("Each volume has\n.Sy name");
  REQUIRE(begin != std::string::npos);
  const std::string keys = page.substr(begin, page.find("Counters begin", begin) - begin);
  for (const VolumeMetric& metric : volume_metrics()) {
    CAPTURE(metric.metric.path);
    std::istringstream parts(metric.metric.path + 1);
    for (std::string key; std::getline(parts, key, '/');) {
      CAPTURE(key);
      CHECK(keys.find(" " + key) != std::string::npos);
    }
  }
}

TEST_CASE("every metric has a place of its own in what a server tells") {
  StoreStats stats;
  VolumeStats volume;
  volume.name = "vm1";
  // Each counter another number, so that two that are mixed up are seen.
  uint64_t value = 1;
  volume.size_bytes = value++;
  for (size_t i = 0; i <= size_t(Counter::kDataFileReadBytes); ++i) volume.counters[i] = value++;
  MapStats& map = volume.map;
  for (uint64_t* counter :
       {&map.commits, &map.log_bytes, &map.log_garbage_bytes, &map.log_generation, &map.checkpoints,
        &map.compactions, &map.memory_bytes, &map.loads, &map.evictions})
    *counter = value++;
  volume.current_version = 100;
  volume.connections = 101;
  stats.volumes = {volume};
  stats.map_cache_bytes = 102;
  stats.map_cache_max_bytes = 103;
  CHECK(stats_json(stats)["tier"].dump() == R"({"enabled":false})");
  stats.tier = {{201, 202, 203, 204, 205, 206, 207, 208, 209}, true, 210, 211};
  stats.boot_cache = {true, 301, 302, 303, 304, 305, 306, 307, 308, 309, 310, 311, 312, 313, 314,
                      315};
  const nlohmann::json told = stats_json(stats);
  CHECK(told["boot_cache"].dump() ==
        R"({"cap":301,"enabled":true,"evictions":310,"fill_bytes":308,"fills":307,"hits":305,)"
        R"("misses":306,"peak":303,"prefetch_bytes":314,"prefetch_used":315,"refused":311,)"
        R"("slots":304,"used":302,"verify_failures":312,"waits":309,"windows_open":313})");
  CHECK(told["tier"].dump() ==
        R"({"bytes":202,"bytes_out_of_place":203,"damaged":209,"enabled":true,"errors":208,)"
        R"("fill_bytes":207,"fills":206,"origin_read_bytes":211,"origin_reads":210,)"
        R"("read_bytes":205,"reads":204,"segments":201})");
  // What several servers see of one tier is not added up, what each does is.
  const nlohmann::json merged = merge_stats({told, told, stats_json(StoreStats())})["tier"];
  CHECK(merged["enabled"] == true);
  CHECK(merged["segments"] == 201);
  CHECK(merged["reads"] == 408);
  CHECK(told["volumes"][0].dump() ==
        R"({"bytes":{"reads":3,"trims":7,"writes":5,"zeroes":9},"connections":101,)"
        R"("current_version":100,"data_file_reads":{"bytes":16,"reads":15},"errors":11,)"
        R"("first_writes":12,"log":{"bytes":18,"checkpoints":21,"commits":17,"compactions":22,)"
        R"("garbage_bytes":19,"generation":20},"map":{"bytes":23,"evictions":25,"loads":24},)"
        R"("name":"vm1","requests":{"flushes":10,"reads":2,"trims":6,"writes":4,"zeroes":8},)"
        R"("size":1,"template_reads":{"bytes":14,"reads":13}})");
  CHECK(told["map"].dump() == R"({"bytes":102,"evictions":25,"loads":24,"max_bytes":103})");
  CHECK(told["log"].dump() ==
        R"({"bytes":18,"checkpoints":21,"commits":17,"compactions":22,"garbage_bytes":19})");
}
