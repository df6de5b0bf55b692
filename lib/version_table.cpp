#include "version_table.h"

#include "names.h"

namespace tplstore {
namespace {

// One version in a group's node, followed by its name and its note.
struct VersionRow {
  uint32_t number;
  uint32_t parent;
  int64_t created_ns;
  uint64_t size_bytes;
  uint64_t own_blocks;
  uint64_t root;  // slot word
  uint32_t flags;
  uint16_t name_bytes;
  uint16_t note_bytes;
};
static_assert(sizeof(VersionRow) == 48);

}  // namespace

const VersionRecord* VersionTable::find(uint32_t number) const {
  const auto it = versions_.find(number);
  return it == versions_.end() ? nullptr : &it->second;
}

const VersionRecord* VersionTable::find_name(std::string_view name) const {
  for (const auto& [number, version] : versions_)
    if (version.name == name) return &version;
  return nullptr;
}

uint64_t encode_group(Encoder& to, uint64_t seed, uint32_t group, uint32_t current,
                      const std::map<uint32_t, VersionRecord>& versions) {
  const auto begin = versions.lower_bound(group * kVersionsPerGroup);
  auto end = begin;
  uint32_t count = 0;
  while (end != versions.end() && VersionTable::group_of(end->first) == group) {
    ++end;
    ++count;
  }
  const uint64_t start = begin_node(to, NodeKind::kVersions, 0, count, group, current);
  for (auto it = begin; it != end; ++it) {
    const VersionRecord& version = it->second;
    ensure(version.name.size() <= 128 && version.note.size() <= kNoteBytesMax,
           "a version's texts are short");
    to.put(VersionRow{version.number, version.parent, version.created_ns, version.size_bytes,
                      version.own_blocks, version.root.disk_word(), version.flags,
                      static_cast<uint16_t>(version.name.size()),
                      static_cast<uint16_t>(version.note.size())});
    to.put_bytes(as_bytes(version.name));
    to.put_bytes(as_bytes(version.note));
  }
  return end_node(to, start, seed);
}

void decode_group(Bytes bytes, uint64_t seed, uint32_t group, const std::string& object,
                  std::map<uint32_t, VersionRecord>& versions) {
  auto [header, body] = open_node(bytes, seed, group, object);
  if (header.kind != static_cast<uint8_t>(NodeKind::kVersions))
    fail(EIO, object, "damaged: the list of versions is not where it should be");
  for (uint32_t i = 0; i < header.count; ++i) {
    const auto row = body.take<VersionRow>();
    VersionRecord version;
    version.number = row.number;
    version.parent = row.parent;
    version.created_ns = row.created_ns;
    version.size_bytes = row.size_bytes;
    version.own_blocks = row.own_blocks;
    version.flags = row.flags;
    version.name = body.take_text(row.name_bytes);
    version.note = body.take_text(row.note_bytes);
    const bool is_good = row.number != 0 && VersionTable::group_of(row.number) == group &&
                         row.parent < row.number && row.size_bytes <= kVolumeBytesMax &&
                         (version.name.empty() || is_valid_name(version.name)) &&
                         Slot::from_disk(row.root, kPageLevels, version.root);
    if (!is_good || !versions.emplace(row.number, std::move(version)).second)
      fail(EIO, object, "damaged: the list of versions holds an impossible version");
  }
}

}  // namespace tplstore
