// The folders and single objects of a store; lib/FORMAT.md says what is in them.
#pragma once

#include <string_view>

namespace tplstore {

namespace paths {
inline constexpr std::string_view kTemplates = "templates";  // NAME: manifest
inline constexpr std::string_view kSegments = "segments";    // xx/HASH
inline constexpr std::string_view kTables = "tables";        // N: of segments, for imports
inline constexpr std::string_view kImports = "imports";      // NAME: unfinished import
inline constexpr std::string_view kVolumeNames = "names";    // NAME: uuid
inline constexpr std::string_view kVolumes = "volumes";      // UUID/…
inline constexpr std::string_view kSets = "sets";            // ID: versions of one moment
inline constexpr std::string_view kRemoved = "removed";      // UUID: volume that can be restored
inline constexpr std::string_view kGcLock = "gc.lock";       // imports share it, gc has it alone
inline constexpr std::string_view kGcClaims = "gc.claims";   // HOST.MODE: that has it so
inline constexpr std::string_view kServers = "servers";      // HOST.PID: where it listens
inline constexpr std::string_view kBoot = "boot";            // UUID.N: profile of a template
inline constexpr std::string_view kPacks = "packs";          // UUID.N: pack of a template
}  // namespace paths

}  // namespace tplstore
