// Lines of a volume's uuid and a number, and one of the checksum of those.
#include "volume/version_set.h"

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "backend/layout.h"

namespace tplstore {
namespace {

constexpr uint64_t kSetBytesMax = 1 << 16;
constexpr std::string_view kChecksum = "checksum ";
constexpr size_t kSetLineBytesMax = 36 + 1 + 10 + 1;
static_assert(kVersionSetMax * kSetLineBytesMax + kChecksum.size() + 17 <= kSetBytesMax);

std::string set_object(const std::string& id) { return fmt::format("{}/{}", paths::kSets, id); }

std::string settled_object(const std::string& id, const Uuid& volume) {
  return fmt::format("{}.{}", set_object(id), volume.text());
}

std::string checksum_line(std::string_view lines) {
  return fmt::format("{}{:016x}\n", kChecksum, checksum(as_bytes(lines)));
}

// Nothing when it is damaged: versions are removed by what it says.
std::vector<VersionSet::Member> parse_members(std::string_view text) {
  std::vector<VersionSet::Member> members;
  const size_t end_of_lines = text.rfind(kChecksum);
  if (end_of_lines == std::string_view::npos ||
      text.substr(end_of_lines) != checksum_line(text.substr(0, end_of_lines)))
    return {};
  text = text.substr(0, end_of_lines);
  constexpr size_t kUuidBytes = 36;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    VersionSet::Member member;
    if (end == std::string_view::npos || line.size() < kUuidBytes + 2 || line[kUuidBytes] != ' ' ||
        !parse_uuid(std::string(line.substr(0, kUuidBytes)), member.volume))
      return {};
    const auto [stop, error] =
        std::from_chars(line.data() + kUuidBytes + 1, line.data() + line.size(), member.number);
    if (error != std::errc() || stop != line.data() + line.size()) return {};
    members.push_back(member);
    text.remove_prefix(end + 1);
  }
  return members;
}

// What is in an object of the folder, "" where that is none that can be; nothing when it is gone.
std::optional<std::string> read_object(Backend& backend, const std::string& object) {
  try {
    const auto content = backend.get(object, kSetBytesMax);
    if (content) return to_text(*content);
  } catch (const Error& error) {
    if (error.code() != EFBIG && error.code() != EISDIR && error.code() != ELOOP &&
        error.code() != ENXIO)
      throw;
    return "";
  }
  return std::nullopt;
}

// Of a volume that is gone nobody lists anything.
bool is_settled(Backend& backend, const VersionSet& set) {
  return std::ranges::all_of(set.members, [&](const VersionSet::Member& member) {
    return set.settled.contains(member.volume) ||
           !backend.get(header_name(volume_folder(member.volume)), UINT16_MAX);
  });
}

}  // namespace

std::vector<VersionSet> find_version_sets(Backend& backend) {
  std::vector<VersionSet> sets;
  const std::vector<std::string> names = backend.list(std::string(paths::kSets));
  for (const std::string& name : names) {
    Uuid uuid;
    if (!parse_uuid(name, uuid)) continue;
    const auto content = read_object(backend, set_object(name));
    if (!content) continue;  // removed since it was listed
    sets.push_back({name, parse_members(*content), {}});
  }
  // Of those that were settled since, their lists would not have it.
  for (VersionSet& set : sets)
    for (const VersionSet::Member& member : set.members)
      if (read_object(backend, settled_object(set.id, member.volume)))
        set.settled.insert(member.volume);
  return sets;
}

std::set<uint32_t> pending_versions(Backend& backend, const Uuid& volume) {
  std::set<uint32_t> pending;
  for (const VersionSet& set : find_version_sets(backend))
    for (const VersionSet::Member& member : set.members)
      if (member.volume == volume && !set.settled.contains(volume)) pending.insert(member.number);
  return pending;
}

void put_version_set(Backend& backend, const VersionSet& set) {
  std::string text;
  for (const VersionSet::Member& member : set.members)
    text += fmt::format("{} {}\n", member.volume.text(), member.number);
  text += checksum_line(text);
  backend.put_new(set_object(set.id), as_bytes(text));  // or it is there already
}

void remove_version_set(Backend& backend, const VersionSet& set) {
  backend.remove(set_object(set.id));
  backend.sync_folder(std::string(paths::kSets));
  for (const Uuid& volume : set.settled) backend.remove(settled_object(set.id, volume));
}

void remove_settled_marks(Backend& backend) {
  const std::string folder(paths::kSets);
  const std::vector<std::string> names = backend.list(folder);
  if (names.empty()) return;
  // A set that was removed must not come back without them.
  backend.sync_folder(folder);
  for (const std::string& name : names) {
    const std::string id = name.substr(0, name.find('.'));
    if (id != name && !backend.get(set_object(id), kSetBytesMax))
      backend.remove(fmt::format("{}/{}", folder, name));
  }
}

void settle_version_sets(OpenVolume& volume, VersionChange& change) {
  for (VersionSet& set : find_version_sets(volume.backend)) {
    const auto member = std::ranges::find(set.members, volume.uuid, &VersionSet::Member::volume);
    if (member != set.members.end() && !set.settled.contains(volume.uuid)) {
      const bool is_there = volume.map().ask([&](const MapState& state) {
        const VersionRecord* const found = state.table().find(member->number);
        return found != nullptr && !found->is_removed();
      });
      if (is_there) {
        change.hide({member->number});
        volume.map().commit();
      }
      volume.backend.put_new(settled_object(set.id, volume.uuid), {});
      set.settled.insert(volume.uuid);
    }
    if (!set.is_damaged() && is_settled(volume.backend, set))
      remove_version_set(volume.backend, set);
  }
}

}  // namespace tplstore
