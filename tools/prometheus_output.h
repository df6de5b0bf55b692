// The counters of a store's servers in the text format of Prometheus.
//
// Thread safety: pure function.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tplstore::tool {

// `stats` is what merge_stats() returns. What it lacks is left out.
std::string prometheus_text(const nlohmann::json& stats);

}  // namespace tplstore::tool
