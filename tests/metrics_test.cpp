// The table of metrics against what the man page says of them, and against what servers tell.
#include "control/metrics.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <fstream>
#include <set>
#include <sstream>

#include "control/json_output.h"
#include "store/low_water.h"
#include "volume/request_times.h"

namespace tplstore::metrics_test {
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
  for (const DurationMetric& metric : duration_metrics()) add(metric.metric);
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
  for (const DurationMetric& metric : duration_metrics()) names.insert(metric.metric.family);
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
  for (size_t i = size_t(Counter::kReadNs); i <= size_t(Counter::kFlushNs); ++i)
    volume.counters[i] = 100 * i;
  volume.usage = {100, 401, 402, 403};
  MapStats& map = volume.map;
  for (uint64_t* counter :
       {&map.commits, &map.log_bytes, &map.log_garbage_bytes, &map.log_generation, &map.checkpoints,
        &map.compactions, &map.memory_bytes, &map.loads, &map.evictions})
    *counter = value++;
  volume.connections = 101;
  stats.volumes = {volume};
  stats.map_cache_bytes = 102;
  stats.map_cache_max_bytes = 103;
  CHECK(stats_json(stats)["tier"].dump() == R"({"enabled":false})");
  stats.tier = {{201, 202, 203, 204, 205, 206, 207, 208, 209}, true, 210, 211};
  stats.boot_cache = {true, 301, 302, 303, 304, 305, 306, 307,
                      308,  309, 310, 311, 312, 313, 314, 315};
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
        R"("name":"vm1","open":true,"request_ns":{"flushes":2000,"reads":1600,"trims":1800,)"
        R"("writes":1700,"zeroes":1900},)"
        R"("requests":{"flushes":10,"reads":2,"trims":6,"writes":4,"zeroes":8},"size":1,)"
        R"("space":{"occupied_bytes":403,"old":false,"shared_bytes":402,"unique_bytes":401},)"
        R"("template_reads":{"bytes":14,"reads":13}})");
  CHECK(told["map"].dump() == R"({"bytes":102,"evictions":25,"loads":24,"max_bytes":103})");
  CHECK(told["log"].dump() ==
        R"({"bytes":18,"checkpoints":21,"commits":17,"compactions":22,"garbage_bytes":19})");
}

TEST_CASE("what a volume takes is told when it is closed too, and counters are not") {
  VolumeStats open, closed;
  open.name = "b";
  open.counters[size_t(Counter::kReads)] = 7;
  StoreStats stats;
  stats.volumes = {open};
  nlohmann::json whole = merge_stats({stats_json(stats)});
  closed.name = "a";
  closed.is_open = false;
  closed.usage = {3, 10, 20, 30};
  closed.is_usage_old = true;
  VolumeStats unknown = closed, same = closed;
  unknown.name = "c";
  unknown.usage = {};
  same.name = "b";
  add_noted_volumes(whole, {unknown, same, closed});
  REQUIRE(whole["volumes"].size() == 3);
  CHECK(whole["volumes"][0]["name"] == "a");
  CHECK(whole["volumes"][0]["open"] == false);
  CHECK(whole["volumes"][0]["space"].dump() ==
        R"({"occupied_bytes":30,"old":true,"shared_bytes":20,"unique_bytes":10})");
  CHECK(whole["volumes"][0]["requests"]["reads"].is_null());
  CHECK(whole["volumes"][0]["log"]["bytes"].is_null());
  CHECK(whole["volumes"][1]["requests"]["reads"] == 7);
  CHECK(whole["volumes"][2]["space"]["unique_bytes"].is_null());
}

TEST_CASE("durations of several servers are added up, and what is none is not") {
  StoreStats a;
  for (size_t kind = 0; kind < kRequestKindCount; ++kind) {
    a.durations[kind].sum_ns = 1000 + kind;
    a.durations[kind].counts[kind] = 10 + kind;
  }
  nlohmann::json odd = stats_json(a), other = stats_json(a);
  odd["request_durations"]["reads"]["counts"] = {1, 2};
  odd["request_durations"]["writes"]["sum_ns"] = "x";
  odd["request_durations"]["trims"]["counts"][3] = -1;
  odd["request_durations"].erase("flushes");
  other["request_durations"]["bounds_ns"][0] = 1;
  const nlohmann::json sum =
      merge_stats({stats_json(a), odd, other, stats_json(a)})["request_durations"];
  CHECK(sum["bounds_ns"].size() + 1 == sum["reads"]["counts"].size());
  CHECK(sum["reads"]["sum_ns"] == 2000);
  CHECK(sum["reads"]["counts"][0] == 20);
  CHECK(sum["writes"]["sum_ns"] == 2002);
  CHECK(sum["trims"]["sum_ns"] == 2004);
  CHECK(sum["zeroes"]["sum_ns"] == 3009);
  CHECK(sum["zeroes"]["counts"][3] == 39);
  CHECK(sum["flushes"]["sum_ns"] == 2008);
}

TEST_CASE("a duration is counted at the first bound that is not less") {
  for (size_t i = 0; i < kDurationBoundsNs.size(); ++i) {
    CHECK(duration_bucket(kDurationBoundsNs[i]) == i);
    CHECK(duration_bucket(kDurationBoundsNs[i] + 1) == i + 1);
    CHECK(duration_bucket(kDurationBoundsNs[i] - 1) == i);
  }
  CHECK(duration_bucket(0) == 0);
  CHECK(duration_bucket(UINT64_MAX) == kDurationBoundsNs.size());
  RequestTimes times;
  times.add(RequestKind::kTrim, 10'001);
  times.add(RequestKind::kTrim, 5);
  const DurationHistogram trims = times.total(RequestKind::kTrim);
  CHECK(trims.counts[0] == 1);
  CHECK(trims.counts[1] == 1);
  CHECK(trims.sum_ns == 10'006);
  CHECK(times.total(RequestKind::kRead).sum_ns == 0);
}

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST_CASE("a file system that is nearly full is told of once, and so is that it is not") {
  LowWater water;
  const auto says = [&](uint64_t free_bytes, uint64_t total_bytes = 1000 * kGiB) {
    const auto line = water.look("/srv/store", {total_bytes, free_bytes});
    if (!line) return std::string();
    // Good news wakes nobody.
    CHECK(line->level == (line->text.ends_with("again") ? LogLevel::kNotice : LogLevel::kWarning));
    return line->text;
  };
  CHECK(says(4 * kGiB) == "");
  CHECK(says(4 * kGiB - 1) ==
        "/srv/store: 4.0 GiB of 1000.0 GiB are free on its file system; when it is full, writes "
        "fail: remove versions or volumes, or make it larger");
  CHECK(says(0) == "");
  CHECK(says(5 * kGiB - 1) == "");
  CHECK(says(5 * kGiB) == "/srv/store: 5.0 GiB of 1000.0 GiB are free on its file system again");
  CHECK(says(4 * kGiB) == "");
  CHECK(says(kGiB - 1, 20 * kGiB).ends_with("or make it larger"));
  CHECK(says(kGiB + kGiB / 4, 20 * kGiB).ends_with("again"));
}

}  // namespace tplstore::metrics_test
