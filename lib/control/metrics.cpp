// The table of metrics.
#include "control/metrics.h"

#include <string_view>

namespace tplstore {
namespace {

using Kind = Metric::Kind;

template <auto Member>
std::optional<uint64_t> get(const VolumeStats& stats) {
  return stats.*Member;
}
template <auto Member>
std::optional<uint64_t> get_usage(const VolumeStats& stats) {
  if (!stats.usage) return {};
  return (*stats.usage).*Member;
}
template <Counter counter>
std::optional<uint64_t> count(const VolumeStats& stats) {
  if (!stats.is_open) return {};
  return stats[counter];
}
template <auto Member>
std::optional<uint64_t> get_of_map(const VolumeStats& stats) {
  if (!stats.is_open) return {};
  return stats.map.*Member;
}

constexpr const char* kRequests = "tplstore_requests_total";
constexpr const char* kRequestBytes = "tplstore_request_bytes_total";
constexpr const char* kRequestSeconds = "tplstore_request_seconds_total";
constexpr double kNs = 1e-9;

constexpr VolumeMetric kVolumeMetrics[] = {
    {{"/size", Kind::kState, "tplstore_volume_size_bytes", "Size of the volume"},
     get<&VolumeStats::size_bytes>},
    {{"/current_version", Kind::kState, "tplstore_volume_current_version",
      "Number of the volume's current version"},
     get_usage<&VolumeUsage::current_version>},
    {{"/space/unique_bytes", Kind::kState, "tplstore_volume_unique_bytes",
      "What the versions of the volume have in files of its own"},
     get_usage<&VolumeUsage::unique_bytes>},
    {{"/space/shared_bytes", Kind::kState, "tplstore_volume_shared_bytes",
      "What its current version has in files of volumes that it was forked from"},
     get_usage<&VolumeUsage::shared_bytes>},
    {{"/space/occupied_bytes", Kind::kState, "tplstore_volume_occupied_bytes",
      "What the volume takes: what is its own, and its map log"},
     get_usage<&VolumeUsage::occupied_bytes>},
    {{"/connections", Kind::kGauge, "tplstore_volume_connections",
      "Connections to exports of the volume"},
     get<&VolumeStats::connections>},
    {{"/requests/reads", Kind::kCounter, kRequests, "Requests of clients", "read"},
     count<Counter::kReads>},
    {{"/requests/writes", Kind::kCounter, kRequests, "", "write"}, count<Counter::kWrites>},
    {{"/requests/trims", Kind::kCounter, kRequests, "", "trim"}, count<Counter::kTrims>},
    {{"/requests/zeroes", Kind::kCounter, kRequests, "", "zero"}, count<Counter::kZeroes>},
    {{"/requests/flushes", Kind::kCounter, kRequests, "", "flush"}, count<Counter::kFlushes>},
    {{"/bytes/reads", Kind::kCounter, kRequestBytes, "Bytes that requests of clients covered",
      "read"},
     count<Counter::kReadBytes>},
    {{"/bytes/writes", Kind::kCounter, kRequestBytes, "", "write"}, count<Counter::kWriteBytes>},
    {{"/bytes/trims", Kind::kCounter, kRequestBytes, "", "trim"}, count<Counter::kTrimBytes>},
    {{"/bytes/zeroes", Kind::kCounter, kRequestBytes, "", "zero"}, count<Counter::kZeroBytes>},
    {{"/request_ns/reads", Kind::kCounter, kRequestSeconds,
      "How long requests of clients took, all together", "read", kNs},
     count<Counter::kReadNs>},
    {{"/request_ns/writes", Kind::kCounter, kRequestSeconds, "", "write", kNs},
     count<Counter::kWriteNs>},
    {{"/request_ns/trims", Kind::kCounter, kRequestSeconds, "", "trim", kNs},
     count<Counter::kTrimNs>},
    {{"/request_ns/zeroes", Kind::kCounter, kRequestSeconds, "", "zero", kNs},
     count<Counter::kZeroNs>},
    {{"/request_ns/flushes", Kind::kCounter, kRequestSeconds, "", "flush", kNs},
     count<Counter::kFlushNs>},
    {{"/errors", Kind::kCounter, "tplstore_errors_total", "Requests of clients that failed"},
     count<Counter::kErrors>},
    {{"/first_writes", Kind::kCounter, "tplstore_first_writes_total",
      "Blocks written for the first time in their version"},
     count<Counter::kFirstWrites>},
    {{"/template_reads/reads", Kind::kCounter, "tplstore_template_reads_total",
      "Pieces read from segments of templates"},
     count<Counter::kTemplateReads>},
    {{"/template_reads/bytes", Kind::kCounter, "tplstore_template_read_bytes_total",
      "Bytes read from segments of templates"},
     count<Counter::kTemplateReadBytes>},
    {{"/data_file_reads/reads", Kind::kCounter, "tplstore_data_file_reads_total",
      "Pieces read from data files of versions"},
     count<Counter::kDataFileReads>},
    {{"/data_file_reads/bytes", Kind::kCounter, "tplstore_data_file_read_bytes_total",
      "Bytes read from data files of versions"},
     count<Counter::kDataFileReadBytes>},
    {{"/map/bytes", Kind::kGauge, "tplstore_map_bytes", "Memory of the volume's map"},
     get_of_map<&MapStats::memory_bytes>},
    {{"/map/loads", Kind::kCounter, "tplstore_map_loads_total",
      "Nodes of the map read from its log"},
     get_of_map<&MapStats::loads>},
    {{"/map/evictions", Kind::kCounter, "tplstore_map_evictions_total",
      "Nodes of the map dropped from memory"},
     get_of_map<&MapStats::evictions>},
    {{"/log/bytes", Kind::kGauge, "tplstore_log_bytes", "Size of the map log"},
     get_of_map<&MapStats::log_bytes>},
    {{"/log/garbage_bytes", Kind::kGauge, "tplstore_log_garbage_bytes",
      "What a compaction of the map log would drop"},
     get_of_map<&MapStats::log_garbage_bytes>},
    {{"/log/generation", Kind::kState, nullptr, ""}, get_of_map<&MapStats::log_generation>},
    {{"/log/commits", Kind::kCounter, "tplstore_log_commits_total",
      "Commits, each for one or more flushes"},
     get_of_map<&MapStats::commits>},
    {{"/log/checkpoints", Kind::kCounter, "tplstore_log_checkpoints_total",
      "Checkpoints of the map"},
     get_of_map<&MapStats::checkpoints>},
    {{"/log/compactions", Kind::kCounter, "tplstore_log_compactions_total",
      "Compactions of the map log"},
     get_of_map<&MapStats::compactions>},
};

constexpr const char* kStoreBytes = "tplstore_store_bytes";
constexpr const char* kFileSystemBytes = "tplstore_filesystem_size_bytes";
constexpr const char* kFreeBytes = "tplstore_filesystem_free_bytes";
constexpr const char* kDurations = "tplstore_request_duration_seconds";

// Of a list its length counts.
constexpr Metric kStoreMetrics[] = {
    {"/build", Kind::kInfo, "tplstore_build_info",
     "Always 1; the releases of the command and of the servers that run are its labels"},
    {"/servers", Kind::kGauge, "tplstore_servers", "Servers that have the store open"},
    {"/map/bytes", Kind::kGauge, "tplstore_map_cache_bytes", "Memory of all maps"},
    {"/map/max_bytes", Kind::kGauge, "tplstore_map_cache_max_bytes",
     "What all maps may take together"},
    {"/store/volume_bytes", Kind::kGauge, kStoreBytes, "What the store occupies on its file system",
     "volumes"},
    {"/store/template_bytes", Kind::kGauge, kStoreBytes, "", "templates"},
    {"/store/other_bytes", Kind::kGauge, kStoreBytes, "", "other"},
    {"/file_systems/store/total_bytes", Kind::kState, kFileSystemBytes,
     "Size of the file system of the store, and of the templates' data if that is apart", "store"},
    {"/file_systems/templates/total_bytes", Kind::kState, kFileSystemBytes, "", "templates"},
    {"/file_systems/store/free_bytes", Kind::kState, kFreeBytes, "What is left there for the store",
     "store"},
    {"/file_systems/templates/free_bytes", Kind::kState, kFreeBytes, "", "templates"},
};

constexpr TierMetric kTierMetrics[] = {
    {{"/tier/segments", Kind::kState, "tplstore_tier_segments", "Copies of segments in the tier"},
     &TierStats::segments},
    {{"/tier/bytes", Kind::kState, "tplstore_tier_bytes", "Size of the copies in the tier"},
     &TierStats::bytes},
    {{"/tier/bytes_out_of_place", Kind::kState, "tplstore_tier_bytes_out_of_place",
      "Size of the copies that a rebalance would move"},
     &TierStats::bytes_out_of_place},
    {{"/tier/reads", Kind::kCounter, "tplstore_tier_reads_total", "Pieces read from copies"},
     &TierStats::reads},
    {{"/tier/read_bytes", Kind::kCounter, "tplstore_tier_read_bytes_total",
      "Bytes read from copies"},
     &TierStats::read_bytes},
    {{"/tier/fills", Kind::kCounter, "tplstore_tier_fills_total", "Copies made"},
     &TierStats::fills},
    {{"/tier/fill_bytes", Kind::kCounter, "tplstore_tier_fill_bytes_total",
      "Bytes written to make copies"},
     &TierStats::fill_bytes},
    {{"/tier/errors", Kind::kCounter, "tplstore_tier_errors_total",
      "Errors of the directories of the tier, and damage found there"},
     &TierStats::errors},
    {{"/tier/damaged", Kind::kCounter, "tplstore_tier_damaged_total",
      "Copies that were damaged, and removed"},
     &TierStats::damaged},
    {{"/tier/origin_reads", Kind::kCounter, "tplstore_tier_origin_reads_total",
      "Pieces read at the origin since no copy could be read"},
     &TierStats::origin_reads},
    {{"/tier/origin_read_bytes", Kind::kCounter, "tplstore_tier_origin_read_bytes_total",
      "Bytes read at the origin since no copy could be read"},
     &TierStats::origin_read_bytes},
};

constexpr BootCacheMetric kBootCacheMetrics[] = {
    {{"/boot_cache/cap", Kind::kGauge, "tplstore_boot_cache_cap_bytes",
      "What the boot cache may take"},
     &BootCacheStats::cap_bytes},
    {{"/boot_cache/used", Kind::kGauge, "tplstore_boot_cache_used_bytes",
      "What the boot cache takes"},
     &BootCacheStats::used_bytes},
    {{"/boot_cache/peak", Kind::kGauge, "tplstore_boot_cache_peak_bytes",
      "The most that the boot cache has taken"},
     &BootCacheStats::peak_bytes},
    {{"/boot_cache/slots", Kind::kGauge, "tplstore_boot_cache_slots",
      "Blocks that are in the boot cache"},
     &BootCacheStats::slots},
    {{"/boot_cache/hits", Kind::kCounter, "tplstore_boot_cache_hits_total",
      "Blocks that were read from the boot cache"},
     &BootCacheStats::hits},
    {{"/boot_cache/misses", Kind::kCounter, "tplstore_boot_cache_misses_total",
      "Blocks that were not in it when they were read"},
     &BootCacheStats::misses},
    {{"/boot_cache/fills", Kind::kCounter, "tplstore_boot_cache_fills_total",
      "Blocks that were taken into the boot cache"},
     &BootCacheStats::fills},
    {{"/boot_cache/fill_bytes", Kind::kCounter, "tplstore_boot_cache_fill_bytes_total",
      "Bytes that were taken into the boot cache"},
     &BootCacheStats::fill_bytes},
    {{"/boot_cache/waits", Kind::kCounter, "tplstore_boot_cache_waits_total",
      "Reads that waited for another one of the same block"},
     &BootCacheStats::waits},
    {{"/boot_cache/evictions", Kind::kCounter, "tplstore_boot_cache_evictions_total",
      "Blocks that made room for others"},
     &BootCacheStats::evictions},
    {{"/boot_cache/refused", Kind::kCounter, "tplstore_boot_cache_refused_total",
      "Blocks for which there was no room"},
     &BootCacheStats::refused},
    {{"/boot_cache/verify_failures", Kind::kCounter, "tplstore_boot_cache_verify_failures_total",
      "Blocks that were damaged where they were read, and read elsewhere"},
     &BootCacheStats::verify_failures},
    {{"/boot_cache/windows_open", Kind::kGauge, "tplstore_boot_cache_windows_open",
      "Volumes whose VMs are booting"},
     &BootCacheStats::windows_open},
    {{"/boot_cache/prefetch_bytes", Kind::kCounter, "tplstore_boot_cache_prefetch_bytes_total",
      "Bytes that were read ahead of booting VMs"},
     &BootCacheStats::prefetch_bytes},
    {{"/boot_cache/prefetch_used", Kind::kCounter, "tplstore_boot_cache_prefetch_used_bytes_total",
      "Bytes of these that a VM has read"},
     &BootCacheStats::prefetch_used_bytes},
};

constexpr DurationMetric kDurationMetrics[] = {
    {{"/request_durations/reads", Kind::kHistogram, kDurations,
      "How long requests of clients took, of all volumes", "read"},
     RequestKind::kRead},
    {{"/request_durations/writes", Kind::kHistogram, kDurations, "", "write"}, RequestKind::kWrite},
    {{"/request_durations/trims", Kind::kHistogram, kDurations, "", "trim"}, RequestKind::kTrim},
    {{"/request_durations/zeroes", Kind::kHistogram, kDurations, "", "zero"}, RequestKind::kZero},
    {{"/request_durations/flushes", Kind::kHistogram, kDurations, "", "flush"},
     RequestKind::kFlush},
};

}  // namespace

std::span<const DurationMetric> duration_metrics() { return kDurationMetrics; }
std::span<const BootCacheMetric> boot_cache_metrics() { return kBootCacheMetrics; }
std::span<const TierMetric> tier_metrics() { return kTierMetrics; }
std::span<const VolumeMetric> volume_metrics() { return kVolumeMetrics; }
std::span<const Metric> store_metrics() { return kStoreMetrics; }

bool is_summed(const VolumeMetric& metric) {
  const std::string_view path = metric.metric.path;
  return (path.starts_with("/map/") || path.starts_with("/log/")) &&
         metric.metric.kind != Kind::kState;
}

}  // namespace tplstore
