// What a server counts: one table, from which come the JSON of `stats`, what is accepted as that,
// the text for Prometheus, and the lists in the man page (tests/metrics_test.cpp compares them).
//
// Thread safety: immutable.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>

#include "base/volume_types.h"

namespace tplstore {

struct Metric {
  // A state is of something that several servers see: theirs are not added up.
  // An info is no number: it is 1, and what it says are labels.
  enum class Kind { kCounter, kGauge, kState, kHistogram, kInfo };

  const char* path;  // of the number in its JSON, as "/map/bytes"
  Kind kind;
  // Prometheus' name, and what it means; metrics of one name stand together, and the first says
  // it. Without a name it is not there.
  const char* family;
  const char* help;
  const char* label = "";  // the value of the label that tells those of one family apart
  double unit = 1;         // of the number, in the family's

  nlohmann::json::json_pointer pointer() const { return nlohmann::json::json_pointer(path); }
};

// Of a volume, in its object; the label is "op".
struct VolumeMetric {
  Metric metric;
  // Nothing where it is not known: of a volume that is not open what is counted is not.
  std::optional<uint64_t> (*value)(const VolumeStats& stats);
};
std::span<const VolumeMetric> volume_metrics();

// Of the whole store, in the object around those; the label is "kind".
std::span<const Metric> store_metrics();

// Of the tier, in the object around all.
struct TierMetric {
  Metric metric;
  uint64_t TierStats::*value;
};
std::span<const TierMetric> tier_metrics();

// Of the boot cache, likewise.
struct BootCacheMetric {
  Metric metric;
  uint64_t BootCacheStats::*value;
};
std::span<const BootCacheMetric> boot_cache_metrics();

// How long the requests of all volumes took, likewise; the label is "op".
struct DurationMetric {
  Metric metric;
  RequestKind kind;
};
std::span<const DurationMetric> duration_metrics();

// Whether the object around them has the sum of this metric of all volumes, under the same path.
bool is_summed(const VolumeMetric& metric);

}  // namespace tplstore
