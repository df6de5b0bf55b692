// A volume's versions for people, as JSON has them.
//
// Thread safety: pure functions. They throw nothing but std::bad_alloc for JSON that has the keys
// of control/json_output.h, but for what is said.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "table.h"

namespace tplstore::tool {

// A table of them all, oldest first: of those that were removed it says what they are kept for.
std::string versions_text(const nlohmann::json& versions, const ListOptions& options = {});
Columns version_columns();

// The same without the removed ones. A history that is a line, or has more than 200 branches, is
// such a table, and so is what is sorted or shown in part; any other one is drawn as a tree, newest
// first, with the forks in it.
std::string history_text(const nlohmann::json& versions, const ListOptions& options = {});

// Without the versions that were removed, whose children appear as those of the nearest ancestor
// that is left.
nlohmann::json visible_versions(const nlohmann::json& versions);

// Why a version that was removed is still there: "kept for fork vm2", "versions 4 and 6 start from
// it"; empty when it is only waiting to be taken out.
std::string kept_for_text(const nlohmann::json& version);

// "vm1@3", "vm1@3 (clean)".
std::string version_title(const std::string& volume, const nlohmann::json& version);

// Versions are named as VERSION behind their VOLUME, or as VOLUME@VERSION. What `text` is then:
// volume and version, of which the second is nothing when there is no @.
std::pair<std::string, std::optional<std::string>> split_version_name(const std::string& text);
// The version of this volume that is named in one of the two ways. EINVAL when it is another's.
std::string version_of_volume(const std::string& volume, const std::string& text);

// When it was frozen, in nanoseconds since 1970, exact to a second.
int64_t created_ns_of(const nlohmann::json& version);

}  // namespace tplstore::tool
