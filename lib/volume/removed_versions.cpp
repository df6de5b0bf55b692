// Two numbers, nanoseconds since 1970, as JSON: like what says so of a volume.
#include "volume/removed_versions.h"

#include <cerrno>
#include <nlohmann/json.hpp>

#include "backend/layout.h"
#include "base/error.h"
#include "base/names.h"

namespace tplstore {
namespace {

constexpr uint64_t kRemovedVersionBytesMax = 4096;

std::string object_of(const Uuid& volume, uint32_t number) {
  return fmt::format("{}/{}.{}", paths::kRemoved, volume.text(), number);
}

RemovedVersion parse(const std::string& text) {
  const auto content = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  RemovedVersion removed;
  const auto time_in = [&](const char* key, int64_t& into) {
    const auto found = content.is_object() ? content.find(key) : content.end();
    if (found == content.end() || !found->is_number_integer()) return false;
    into = *found;
    return true;
  };
  if (time_in("removed_ns", removed.removed_ns) && time_in("until_ns", removed.until_ns))
    return removed;
  removed = {};
  removed.is_damaged = true;
  return removed;
}

}  // namespace

std::optional<std::pair<Uuid, uint32_t>> parse_removed_version(const std::string& part) {
  const size_t dot = part.find('.');
  Uuid volume;
  if (dot == std::string::npos || !parse_uuid(std::string_view(part).substr(0, dot), volume))
    return std::nullopt;
  const auto number = parse_version_number(part.substr(dot + 1));
  return number ? std::optional(std::pair(volume, *number)) : std::nullopt;
}

std::map<uint32_t, RemovedVersion> find_removed_versions(Backend& backend, const Uuid& volume) {
  std::map<uint32_t, RemovedVersion> removed;
  for (const std::string& part : backend.list(std::string(paths::kRemoved))) {
    const auto parsed = parse_removed_version(part);
    if (!parsed || parsed->first != volume) continue;
    try {
      const auto content = backend.get(object_of(volume, parsed->second), kRemovedVersionBytesMax);
      if (content) removed[parsed->second] = parse(to_text(*content));
    } catch (const Error&) {
      removed[parsed->second].is_damaged = true;
    }
  }
  return removed;
}

std::set<Uuid> volumes_of_removed_versions(Backend& backend) {
  std::set<Uuid> volumes;
  for (const std::string& part : backend.list(std::string(paths::kRemoved)))
    if (const auto parsed = parse_removed_version(part)) volumes.insert(parsed->first);
  return volumes;
}

bool put_removed_version(Backend& backend, const Uuid& volume, uint32_t number,
                         const RemovedVersion& removed) {
  const nlohmann::json content = {{"removed_ns", removed.removed_ns},
                                  {"until_ns", removed.until_ns}};
  return backend.put_new(object_of(volume, number), as_bytes(content.dump() + "\n"));
}

void drop_removed_version(Backend& backend, const Uuid& volume, uint32_t number) {
  if (backend.remove(object_of(volume, number))) backend.sync_folder(std::string(paths::kRemoved));
}

void drop_removed_versions(Backend& backend, const Uuid& volume) {
  for (const std::string& part : backend.list(std::string(paths::kRemoved)))
    if (const auto parsed = parse_removed_version(part); parsed && parsed->first == volume)
      backend.remove(fmt::format("{}/{}", paths::kRemoved, part));
}

}  // namespace tplstore
