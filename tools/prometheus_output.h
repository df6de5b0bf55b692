// The counters of a store's servers in the text format of Prometheus.
//
// Thread safety: pure function.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tplstore::tool {

// `stats` is what merge_stats() returns, with what `tplstore stats` adds; what it lacks is left
// out. `store` is where that is, for a host that has several.
std::string prometheus_text(const nlohmann::json& stats, const std::string& store);

}  // namespace tplstore::tool
