// What the store tells, as JSON: the stable, documented keys that the command line prints and that
// servers answer with on their control sockets.
//
// Keys are snake_case, sizes are in bytes, times are RFC 3339 in UTC, and what does not exist is
// null: a key is never left out. Keys may be added later, none is renamed. The man page tplstore(1)
// lists them all.
//
// Thread safety: pure functions. They throw nothing but std::bad_alloc.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/volume_types.h"
#include "boot/boot.h"
#include "template/template_catalog.h"
#include "tier/tier.h"

namespace tplstore {

nlohmann::json template_json(const TemplateInfo& info);
nlohmann::json gc_json(const GcResult& result);

nlohmann::json writer_json(const WriterInfo& info);
nlohmann::json lock_json(const LockInfo& info);
// "versions" only on demand: a list of volumes does without.
nlohmann::json volume_json(const VolumeInfo& info, bool with_versions);
nlohmann::json removed_json(const RemovedVolume& removed);
nlohmann::json version_json(const VersionInfo& info);
nlohmann::json versions_json(const std::vector<VersionInfo>& infos);
// What differs between two versions.
nlohmann::json changes_json(const std::vector<ChangedRange>& changes);
nlohmann::json space_json(const StoreSpace& space);
// With all directories, and what one of them is.
nlohmann::json tier_json(const TierStatus& status);
nlohmann::json tier_directory_json(const TierDirectoryStatus& status);
nlohmann::json warm_json(const Tier::WarmResult& result);

// How a volume or a template boots, and one boot.
nlohmann::json boot_json(const BootStatus& status);
nlohmann::json boot_window_json(const BootWindow& window);
nlohmann::json boot_warm_json(const BootWarm& warm);

// "servers" is empty: who answers adds itself.
nlohmann::json stats_json(const StoreStats& stats);
// One such object from those of several servers: counters are added up. A volume that several
// servers read is there once. What is missing in an answer (from another release) is left out.
nlohmann::json merge_stats(const std::vector<nlohmann::json>& answers);

// Adds the volumes that are not there, since no server has them open.
void add_noted_volumes(nlohmann::json& stats, const std::vector<VolumeStats>& noted);
nlohmann::json file_systems_json(const StoreFileSystems& file_systems);

// One line, valid UTF-8 without control characters, whatever the texts in it; or several lines,
// with `indent` blanks per level.
std::string json_text(const nlohmann::json& value, int indent = -1);

}  // namespace tplstore
