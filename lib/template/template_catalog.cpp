// Which segments are used is the union over all manifests and journals; gc removes the others.
#include "template/template_catalog.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/names.h"
#include "template/block_source.h"
#include "template/import_journal.h"
#include "template/manifest.h"
#include "template/segment.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

std::vector<std::string> list_names(Backend& backend, const std::string& folder) {
  std::vector<std::string> names = backend.list(folder);
  std::erase_if(names, [](const std::string& name) { return !is_valid_name(name); });
  return names;
}

TemplateInfo describe(const std::string& name, const Manifest& manifest) {
  TemplateInfo info;
  info.name = name;
  info.uuid = manifest.uuid;
  info.size_bytes = manifest.size_bytes;
  info.state = "ready";
  info.data_bytes = manifest.data_bytes();
  info.created_ns = manifest.created_ns;
  info.source = manifest.source;
  info.content_id = manifest.content_id.hex();
  info.segments = manifest.segments.size();
  return info;
}

TemplateInfo describe(const std::string& name, const ImportJournalContent& journal) {
  TemplateInfo info;
  info.name = name;
  info.size_bytes = journal.size_bytes;
  info.state = "importing";
  info.created_ns = journal.started_ns;
  info.segments = journal.segments.size();
  return info;
}

TemplateInfo describe_damaged(const std::string& name) {
  TemplateInfo info;
  info.name = name;
  info.state = "damaged";
  return info;
}

std::unique_ptr<HeldLock> lock_gc(Backend& backend, const std::string& object) {
  auto lock = backend.try_lock("gc.lock", LockMode::kExclusive);
  if (!lock)
    fail(EBUSY, object, "an import, a removal or a gc is running on this store; try again later");
  return lock;
}

// A folder comes into being with its first object.
void sync_folder_if_there(Backend& backend, const std::string& folder) {
  try {
    backend.sync_folder(folder);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
  }
}

// Everything that is still needed, or an Error: with one root unknown nothing may be removed.
std::set<Hash128> find_used_segments(Backend& backend) {
  std::set<Hash128> used;
  for (const std::string& name : list_names(backend, "templates")) {
    try {
      const auto manifest = load_manifest(backend, name);
      if (!manifest) continue;
      for (const ManifestSegment& segment : manifest->segments) used.insert(segment.name);
    } catch (const Error& error) {
      fail(error.code(), manifest_path(name),
           "no space is freed while this cannot be read, since what it uses is unknown ({})",
           error.what());
    }
  }
  for (const std::string& name : list_names(backend, "imports")) {
    const auto journal = load_journal(backend, name);
    if (journal) used.insert(journal->segments.begin(), journal->segments.end());
  }
  return used;
}

// With gc.lock held exclusively.
GcResult collect(Backend& backend) {
  // A journal beside its manifest is left over from a crash after the import was complete.
  bool is_stale = false;
  for (const std::string& name : list_names(backend, "imports")) {
    if (load_manifest_uuid(backend, name)) is_stale |= backend.remove(journal_path(name));
  }
  // What we have seen must be so after a crash as well, before anything is unlinked: a template
  // whose removal was undone by a crash needs its segments.
  sync_folder_if_there(backend, "templates");
  if (is_stale) backend.sync_folder("imports");
  const std::set<Hash128> used = find_used_segments(backend);

  GcResult result;
  std::set<std::string> folders;
  for (const Hash128& name : list_segments(backend)) {
    if (used.contains(name)) {
      ++result.kept_segments;
      continue;
    }
    const std::string path = segment_path(name);
    uint64_t bytes = 0;
    try {
      bytes = backend.open(path, Access::kRead, Purpose::kData)->size_bytes();
    } catch (const Error& error) {
      if (error.code() == ELOOP || error.code() == EISDIR) continue;  // no segment, so not ours
      throw;
    }
    result.freed_bytes += bytes;
    if (backend.remove(path)) ++result.removed_segments;
    folders.insert(segment_folder(name));
  }
  for (const std::string& folder : folders) backend.sync_folder(folder);
  return result;
}

// Blocks of the segments that only this template uses, by template.
std::map<std::string, uint64_t> find_unique_bytes(
    const std::map<std::string, Manifest>& manifests) {
  struct Use {
    const std::string* only_by = nullptr;
    uint64_t bytes = 0;
  };
  std::map<Hash128, Use> uses;
  for (const auto& [name, manifest] : manifests) {
    for (const ManifestSegment& segment : manifest.segments) {
      const uint64_t bytes = uint64_t{segment.block_count} * kBlockBytes;
      const auto [use, is_first] = uses.try_emplace(segment.name, Use{&name, bytes});
      if (!is_first && use->second.only_by != &name) use->second.only_by = nullptr;
    }
  }
  std::map<std::string, uint64_t> unique;
  for (const auto& [segment, use] : uses) {
    if (use.only_by != nullptr) unique[*use.only_by] += use.bytes;
  }
  return unique;
}

}  // namespace

std::vector<TemplateInfo> list_templates(Backend& backend) {
  std::map<std::string, Manifest> manifests;
  std::map<std::string, TemplateInfo> infos;
  for (const std::string& name : list_names(backend, "imports")) {
    try {
      if (const auto journal = load_journal(backend, name)) infos[name] = describe(name, *journal);
    } catch (const Error&) {
      infos[name] = describe_damaged(name);
    }
  }
  for (const std::string& name : list_names(backend, "templates")) {
    try {
      auto manifest = load_manifest(backend, name);
      if (!manifest) continue;
      infos[name] = describe(name, *manifest);
      manifests.emplace(name, std::move(*manifest));
    } catch (const Error&) {
      // One that is damaged must not hide the others.
      infos[name] = describe_damaged(name);
    }
  }
  for (const auto& [name, bytes] : find_unique_bytes(manifests)) infos[name].unique_bytes = bytes;
  std::vector<TemplateInfo> result;
  for (auto& [name, info] : infos) result.push_back(std::move(info));
  return result;
}

TemplateInfo show_template(Backend& backend, const std::string& name) {
  check_name("template", name);
  load_manifest(backend, name);  // says what is wrong with it
  for (TemplateInfo& info : list_templates(backend)) {
    if (info.name == name) return std::move(info);
  }
  fail(ENOENT, name, "no such template; 'tplstore template list' names those that exist");
}

namespace {

using SegmentHolds = std::vector<std::shared_ptr<BlockSource::Segment>>;

ContentId find_content_id(const Manifest& manifest, const SegmentHolds& segments,
                          const std::function<void(uint64_t hashed_bytes)>& progress) {
  ContentIdHasher hasher(manifest.size_bytes);
  ByteVector buffer(kSegmentBlocksMax * uint64_t{kBlockBytes});
  uint64_t hashed_bytes = 0;
  for (const TemplateRun& run : manifest.runs) {
    const uint64_t offset = run.block * kBlockBytes;
    const MutableBytes into = MutableBytes(buffer).first(
        std::min(run.count * uint64_t{kBlockBytes}, manifest.size_bytes - offset));
    segments[run.segment]->read(run.segment_block * uint64_t{kBlockBytes}, into);
    hasher.add(offset, into);
    progress(hashed_bytes += run.count * uint64_t{kBlockBytes});
  }
  return hasher.finish();
}

}  // namespace

VerifyReport verify_template(
    Backend& backend, const std::string& name,
    const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress) {
  check_name("template", name);
  // Keeps the template from being removed meanwhile, and says when there is none.
  const auto image_lock = [&]() -> std::unique_ptr<HeldLock> {
    try {
      return backend.try_lock(manifest_path(name), LockMode::kShared);
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;
      fail(ENOENT, name, "no such template; 'tplstore template list' names those that exist");
    }
  }();
  if (!image_lock) fail(EBUSY, name, "this template is being removed");
  const auto manifest = load_manifest(backend, name);
  if (!manifest) fail(ENOENT, name, "this template was just removed");

  const HashSecret secret = load_identity(backend).secret;
  uint64_t total_bytes = manifest->data_bytes();
  for (const auto& segment : manifest->segments)
    total_bytes += uint64_t{segment.block_count} * kBlockBytes;
  BlockSource blocks(backend);
  SegmentHolds segments;
  VerifyReport report;
  uint64_t done_bytes = 0;
  for (const ManifestSegment& segment : manifest->segments) {
    const auto& held = segments.emplace_back(blocks.hold(segment.name, segment.block_count));
    SegmentDamage damage;
    damage.segment = segment.name;
    try {
      damage.blocks = held->find_damaged_blocks(secret);
      report.blocks += segment.block_count;
      if (!damage.blocks.empty())
        damage.problem =
            fmt::format("{}: damaged: {} of {} blocks do not have their hash",
                        segment_path(segment.name), damage.blocks.size(), segment.block_count);
    } catch (const Error& error) {
      damage.is_missing = held->is_missing();
      damage.problem =
          damage.is_missing ? fmt::format("{}: missing", segment_path(segment.name)) : error.what();
    }
    ++report.segments;
    if (!damage.problem.empty()) report.damage.push_back(std::move(damage));
    done_bytes += uint64_t{segment.block_count} * kBlockBytes;
    if (progress) progress(done_bytes, total_bytes);
  }
  if (report.damage.empty()) {
    const ContentId found = find_content_id(*manifest, segments, [&](uint64_t hashed_bytes) {
      if (progress) progress(done_bytes + hashed_bytes, total_bytes);
    });
    report.has_content_id = found == manifest->content_id;
  }
  return report;
}

GcResult remove_template(Backend& backend, const std::string& name,
                         const std::function<std::vector<std::string>()>& volumes_using_it) {
  check_name("template", name);
  const auto held = lock_gc(backend, name);
  std::unique_ptr<HeldLock> lock;
  const bool has_manifest = load_manifest_uuid(backend, name).has_value();
  const auto volumes = volumes_using_it();
  if (has_manifest) {
    lock = backend.try_lock(manifest_path(name), LockMode::kExclusive);
    if (!lock) fail(EBUSY, name, "in use: a server or a tool is reading this template");
    if (!volumes.empty()) {
      std::string some = volumes[0];
      for (size_t i = 1; i < std::min<size_t>(volumes.size(), 5); ++i) some += ", " + volumes[i];
      if (volumes.size() > 5) some += fmt::format(" and {} more", volumes.size() - 5);
      fail(EBUSY, name, "in use by {}: remove {} first", some,
           volumes.size() == 1 ? "that volume" : "those volumes");
    }
  }
  // A journal goes first: without its manifest it would look like an unfinished import.
  const bool has_journal = backend.remove(journal_path(name));
  if (has_journal) backend.sync_folder("imports");
  if (has_manifest) {
    backend.remove(manifest_path(name));
    backend.sync_folder("templates");
  }
  if (!has_manifest && !has_journal)
    fail(ENOENT, name, "no such template; 'tplstore template list' names those that exist");
  try {
    return collect(backend);
  } catch (const Error& error) {
    fail(error.code(), name, "removed, but its space is not freed: {}; then run 'tplstore gc'",
         error.what());
  }
}

GcResult gc(Backend& backend, const std::function<void()>& check) {
  const auto held = lock_gc(backend, "gc");
  if (check) check();
  return collect(backend);
}

}  // namespace tplstore
