// Versions by number, with the tree of who descends from whom, in groups as they stand on disk.
#include "map/version_table.h"

#include <algorithm>

#include "base/names.h"

namespace tplstore {
namespace {

// One version in a group's node, followed by its name, its note and its origin.
struct VersionRow {
  VersionNumbers numbers;
  uint64_t root;  // slot word
  uint32_t flags;
  uint16_t name_bytes;
  uint16_t note_bytes;
};
static_assert(sizeof(VersionRow) == 64);

constexpr uint32_t kKnownFlags =
    kVersionHidden | kVersionOwnKnown | kVersionImported | kVersionUnswept | kVersionForReader;

}  // namespace

void VersionRecord::set_own(std::optional<uint64_t> blocks) {
  own_blocks = blocks.value_or(0);
  flags = blocks ? flags | kVersionOwnKnown : flags & ~kVersionOwnKnown;
}

VersionRecord without_root(const VersionRecord& record) {
  VersionRecord copy = record;
  copy.root = NodeRef();
  return copy;
}

VersionRecord* VersionTable::find(uint32_t number) {
  const auto it = versions_.find(number);
  return it == versions_.end() ? nullptr : &it->second;
}

const VersionRecord* VersionTable::find(uint32_t number) const {
  const auto it = versions_.find(number);
  return it == versions_.end() ? nullptr : &it->second;
}

const VersionRecord* VersionTable::find_name(std::string_view name) const {
  if (name.empty()) return nullptr;
  for (const auto& [number, version] : versions_)
    if (version.name == name && !version.is_hidden()) return &version;
  return nullptr;
}

void VersionTable::link_all(const VersionRecord& current) {
  hidden_.clear();
  for_readers_.clear();
  for (auto& [number, version] : versions_) version.children.clear();
  for (auto& [number, version] : versions_) {
    if (VersionRecord* parent = find(version.parent)) parent->children.push_back(number);
    if (version.is_removed()) {
      hidden_.insert(number);
    } else if (version.is_hidden()) {
      for_readers_.insert(number);
    }
  }
  if (VersionRecord* parent = find(current.parent)) parent->children.push_back(current.number);
}

void VersionTable::add(VersionRecord version) {
  const uint32_t number = version.number;
  if (version.is_hidden()) for_readers_.insert(number);
  versions_[number] = std::move(version);
}

void VersionTable::hide(VersionRecord& version) {
  version.flags = (version.flags | kVersionHidden) & ~kVersionForReader;
  for_readers_.erase(version.number);
  version.name.clear();
  version.note.clear();
  hidden_.insert(version.number);
}

bool VersionTable::is_pinned(uint32_t number) const {
  return std::any_of(pins.begin(), pins.end(),
                     [number](const Pin& pin) { return pin.version == number; });
}

std::optional<uint32_t> VersionTable::collectible() const {
  for (const uint32_t number : hidden_)
    if (find(number)->children.size() <= 1 && !is_pinned(number)) return number;
  return std::nullopt;
}

VersionRecord VersionTable::take_out(uint32_t number, VersionRecord& current) {
  VersionRecord gone = std::move(versions_.at(number));
  versions_.erase(number);
  hidden_.erase(number);
  VersionRecord* parent = find(gone.parent);
  if (parent != nullptr) {
    std::erase(parent->children, number);
    parent->set_own(std::nullopt);
  }
  if (!gone.children.empty()) {
    const uint32_t heir = gone.children.front();
    VersionRecord& child = heir == current.number ? current : versions_.at(heir);
    child.parent = gone.parent;
    child.set_own(std::nullopt);
    if (parent != nullptr) parent->children.push_back(heir);
  }
  if (gone.file_blocks > 0) removed_files[number] = gone.file_blocks;
  return gone;
}

uint32_t VersionTable::floor_of(const VersionRecord& version) const {
  if (find(version.parent) != nullptr) return version.parent;
  return flattens ? 0 : base();
}

uint64_t encode_group(Encoder& to, uint64_t seed, uint32_t group, uint32_t current,
                      const std::map<uint32_t, VersionRecord>& versions,
                      const std::map<uint32_t, NodeRef>& roots) {
  const auto begin = versions.lower_bound(group * kVersionsPerGroup);
  auto end = begin;
  uint32_t count = 0;
  while (end != versions.end() && VersionTable::group_of(end->first) == group) {
    ++end;
    ++count;
  }
  const uint64_t start = begin_node(to, NodeKind::kVersions, 0, count, current);
  for (auto it = begin; it != end; ++it) {
    const VersionRecord& version = it->second;
    ensure(version.name.size() <= 128 && version.note.size() <= kNoteBytesMax,
           "a version's texts are short");
    const uint32_t imported = version.origin.is_nil() ? 0 : kVersionImported;
    to.put(VersionRow{version, roots.at(version.number).disk_word(), version.flags | imported,
                      static_cast<uint16_t>(version.name.size()),
                      static_cast<uint16_t>(version.note.size())});
    to.put_bytes(as_bytes(version.name));
    to.put_bytes(as_bytes(version.note));
    if (imported == 0) continue;
    to.put(version.origin.volume);
    to.put(version.origin.number);
  }
  return end_node(to, start, seed, group);
}

void decode_group(Bytes bytes, uint64_t seed, uint32_t group, const std::string& object,
                  std::map<uint32_t, VersionRecord>& versions) {
  auto [header, body] = open_node(bytes, seed, group, object);
  if (header.kind != NodeKind::kVersions)
    fail(EIO, object, "damaged: the list of versions is not where it should be");
  for (uint32_t i = 0; i < header.count; ++i) {
    const auto row = body.take<VersionRow>();
    VersionRecord version;
    static_cast<VersionNumbers&>(version) = row.numbers;
    version.flags = row.flags & ~kVersionImported;
    version.name = body.take_text(row.name_bytes);
    version.note = body.take_text(row.note_bytes);
    if ((row.flags & kVersionImported) != 0) {
      version.origin.volume = body.take<Uuid>();
      version.origin.number = body.take<uint32_t>();
    }
    const bool is_good = version.number != 0 && VersionTable::group_of(version.number) == group &&
                         version.parent < version.number && version.size_bytes <= kVolumeBytesMax &&
                         version.file_blocks <= kVolumeBytesMax / kBlockBytes &&
                         (row.flags & ~kKnownFlags) == 0 && version.note.size() <= kNoteBytesMax &&
                         (version.name.empty() || is_valid_name(version.name)) &&
                         NodeRef::from_disk(row.root, kPageLevels, version.root);
    if (!is_good || !versions.emplace(row.numbers.number, std::move(version)).second)
      fail(EIO, object, "damaged: the list of versions holds an impossible version");
  }
}

}  // namespace tplstore
