// What is needed is the union over all manifests and journals; gc removes the other segments, and
// of the others the blocks that no manifest refers to.
#include "template/template_catalog.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/names.h"
#include "template/block_source.h"
#include "template/gc_lock.h"
#include "template/import_journal.h"
#include "template/manifest.h"
#include "template/segment.h"
#include "template/segment_needs.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

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

TemplateInfo describe(const std::string& name, const ImportJournalContent& journal,
                      bool is_running) {
  TemplateInfo info;
  info.name = name;
  info.size_bytes = journal.size_bytes;
  info.state = is_running ? "importing" : "failed";
  if (!is_running)
    info.problem =
        journal.failure.empty() ? "the import was killed, or its host went down" : journal.failure;
  info.created_ns = journal.started_ns;
  info.segments = journal.segments.size();
  return info;
}

TemplateInfo describe_damaged(const std::string& name, const Error& error) {
  TemplateInfo info;
  info.name = name;
  info.state = "damaged";
  info.problem = error.what();
  return info;
}

std::unique_ptr<HeldLock> lock_gc(Backend& backend, const std::string& object) {
  auto lock = hold_gc_lock(backend, LockMode::kExclusive, object);
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

// Shorter runs of blocks stay: to punch them costs more than they are worth.
constexpr uint32_t kGivenUpBlocksMin = 16;

// The runs of blocks of a segment that are given up, if only they are needed.
std::vector<std::pair<uint32_t, uint32_t>> given_up_runs(const SegmentNeed& need) {
  std::vector<std::pair<uint32_t, uint32_t>> runs;
  // An import takes what it finds, until it ends; and no import makes a segment for nothing.
  if (need.is_of_import || need.blocks.none()) return runs;
  for (uint32_t end, first = 0; first < need.block_count; first = end) {
    for (end = first + 1; end < need.block_count; ++end)
      if (need.blocks[end] != need.blocks[first]) break;
    if (!need.blocks[first] && end - first >= kGivenUpBlocksMin) runs.emplace_back(first, end);
  }
  return runs;
}

// Gives back the space of blocks that nothing needs; how much that was. Whoever reads other blocks
// of the segment meanwhile reads on.
uint64_t give_up_blocks(Backend& segments, const Hash128& name, const SegmentNeed& need) {
  const auto runs = given_up_runs(need);
  if (runs.empty()) return 0;
  const auto segment = segments.open(segment_path(name), Access::kWrite, Purpose::kData);
  // One that is damaged is for `verify` to tell of.
  if (segment->size_bytes() != segment_object_bytes(need.block_count)) return 0;
  const uint64_t before = segment->allocated_bytes();
  bool is_punched = false;
  for (const auto& [first, end] : runs) {
    const uint64_t offset = uint64_t{first} * kBlockBytes, end_offset = uint64_t{end} * kBlockBytes;
    const auto data = segment->find_data(offset);
    if (!data || data->offset >= end_offset) continue;
    segment->punch(offset, end_offset - offset);
    is_punched = true;
  }
  // After a crash a block, or sector of one, is there or zeroes.
  if (is_punched) segment->sync();
  const uint64_t after = segment->allocated_bytes();
  return before - std::min(before, after);
}

// With gc.lock held exclusively.
GcResult collect(const TemplateStorage& storage) {
  Backend& backend = storage.store;
  // A journal beside its manifest is left over from a crash after the import was complete.
  bool is_stale = false;
  for (const std::string& name : list_names(backend, "imports")) {
    if (load_manifest_uuid(backend, name)) is_stale |= backend.remove(journal_path(name));
  }
  // What we have seen must be so after a crash as well, before anything is unlinked: a template
  // whose removal was undone by a crash needs its segments.
  sync_folder_if_there(backend, "templates");
  if (is_stale) backend.sync_folder("imports");
  const SegmentNeeds needs = find_needs(backend);

  GcResult result;
  std::set<std::string> folders;
  for (const Hash128& name : list_segments(storage.segments)) {
    const auto need = needs.find(name);
    try {
      if (need != needs.end()) {
        ++result.kept_segments;
        result.freed_bytes += give_up_blocks(storage.segments, name, need->second);
        continue;
      }
      const std::string path = segment_path(name);
      const auto segment = storage.segments.open(path, Access::kRead, Purpose::kData);
      // Without what was given up of it before.
      result.freed_bytes += std::min(segment->size_bytes(), segment->allocated_bytes());
      if (storage.segments.remove(path)) ++result.removed_segments;
      folders.insert(segment_folder(name));
    } catch (const Error& error) {
      if (error.code() != ELOOP && error.code() != EISDIR) throw;  // no segment, so not ours
    }
  }
  for (const std::string& folder : folders) storage.segments.sync_folder(folder);
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
      const bool is_running = backend.is_locked(journal_path(name));
      if (const auto journal = load_journal(backend, name))
        infos[name] = describe(name, *journal, is_running);
    } catch (const Error& error) {
      if (error.code() != ENOENT) infos[name] = describe_damaged(name, error);
    }
  }
  for (const std::string& name : list_names(backend, "templates")) {
    try {
      auto manifest = load_manifest(backend, name);
      if (!manifest) continue;
      infos[name] = describe(name, *manifest);
      manifests.emplace(name, std::move(*manifest));
    } catch (const Error& error) {
      // One that is damaged must not hide the others.
      infos[name] = describe_damaged(name, error);
    }
  }
  for (const auto& [name, bytes] : find_unique_bytes(manifests)) infos[name].unique_bytes = bytes;
  std::vector<TemplateInfo> result;
  result.reserve(infos.size());
  for (auto& [name, info] : infos) result.push_back(std::move(info));
  return result;
}

TemplateInfo show_template(Backend& backend, const std::string& name) {
  check_name("template", name);
  load_manifest(backend, name);  // says what is wrong with it
  for (TemplateInfo& info : list_templates(backend)) {
    if (info.name == name) return std::move(info);
  }
  fail_no_template(name);
}

namespace {

// Compares all blocks of a template's segments with their hashes. Those that are the disk come
// first, in its order, so that its content id is made of the same read.
class Verification {
 public:
  Verification(const TemplateStorage& storage, const Manifest& manifest,
               const std::function<void(uint64_t, uint64_t)>& progress)
      : backend_(storage.store),
        manifest_(manifest),
        progress_(progress),
        secret_(load_identity(storage.store).secret),
        blocks_(storage.segments),
        checks_(manifest.segments.size()),
        total_bytes_(manifest.data_bytes()),
        buffer_(kSegmentBlocksMax * uint64_t{kBlockBytes}) {
    for (const TemplateRun& run : manifest.runs)
      for (uint32_t i = 0; i < run.count; ++i)
        checks_[run.segment].is_of_disk.set(run.segment_block + i);
    for (size_t i = 0; i < checks_.size(); ++i) {
      const ManifestSegment& segment = manifest.segments[i];
      checks_[i].segment = blocks_.hold(segment.name, segment.block_count);
      total_bytes_ += (segment.block_count - checks_[i].is_of_disk.count()) * kBlockBytes;
    }
  }

  VerifyReport run() {
    ContentIdHasher content_id(manifest_.size_bytes);
    for (const TemplateRun& run : manifest_.runs) {
      const Bytes blocks = check(run.segment, run.segment_block, run.count);
      const uint64_t offset = run.block * kBlockBytes;
      if (is_sound_)
        content_id.add(offset,
                       blocks.first(std::min(blocks.size(), manifest_.size_bytes - offset)));
    }
    for (uint32_t i = 0; i < checks_.size(); ++i) {
      const auto& is_of_disk = checks_[i].is_of_disk;
      for (uint32_t end, first = 0; first < manifest_.segments[i].block_count; first = end) {
        for (end = first + 1; end < manifest_.segments[i].block_count; ++end)
          if (is_of_disk[end] != is_of_disk[first]) break;
        if (!is_of_disk[first]) check(i, first, end - first);
      }
    }
    find_missed_blocks();
    VerifyReport report;
    report.segments = checks_.size();
    for (size_t i = 0; i < checks_.size(); ++i) add(report, manifest_.segments[i], checks_[i]);
    report.has_content_id = is_sound_ && content_id.finish() == manifest_.content_id;
    return report;
  }

 private:
  struct Check {
    std::shared_ptr<BlockSource::Segment> segment;
    std::bitset<kSegmentBlocksMax> is_of_disk;
    std::set<uint32_t> damaged;
    std::set<uint32_t> given_up;  // and not of this disk
    std::string unreadable;       // why
  };
  static constexpr size_t kTablesMax = 64;

  // The blocks, and notes those that do not have their hash.
  Bytes check(uint32_t segment, uint32_t first, uint32_t count) {
    Check& check = checks_[segment];
    const MutableBytes into = MutableBytes(buffer_).first(count * uint64_t{kBlockBytes});
    if (check.unreadable.empty()) {
      try {
        check.segment->read(first * uint64_t{kBlockBytes}, into);
        for (const uint32_t block : find_damaged_blocks(into, first, table_of(segment), secret_)) {
          const bool is_unneeded =
              !check.is_of_disk[block] &&
              is_given_up(into.subspan((block - first) * uint64_t{kBlockBytes}, kBlockBytes));
          (is_unneeded ? check.given_up : check.damaged).insert(block);
        }
      } catch (const Error& error) {
        check.unreadable = error.what();
      }
    }
    is_sound_ = is_sound_ && check.damaged.empty() && check.unreadable.empty();
    done_bytes_ += into.size();
    if (progress_) progress_(done_bytes_, total_bytes_);
    return into;
  }

  const std::vector<Hash128>& table_of(uint32_t segment) {
    if (tables_.size() == kTablesMax && !tables_.contains(segment)) tables_.clear();
    const auto [table, is_new] = tables_.try_emplace(segment);
    if (is_new) table->second = checks_[segment].segment->read_table(secret_);
    return table->second;
  }

  // What some template needs is not given up, but damaged. Looked for last: nothing refers to what
  // is zeroes later than it was read.
  void find_missed_blocks() {
    const auto has_some = [](const Check& check) { return !check.given_up.empty(); };
    if (std::none_of(checks_.begin(), checks_.end(), has_some)) return;
    SegmentNeeds needs;
    for (const std::string& name : list_names(backend_, "templates")) {
      try {
        if (const auto manifest = load_manifest(backend_, name)) add_needs(needs, *manifest);
      } catch (const Error&) {
        // What is wrong with that one is not this one's.
      }
    }
    for (size_t i = 0; i < checks_.size(); ++i)
      for (const uint32_t block : checks_[i].given_up)
        if (needs[manifest_.segments[i].name].blocks[block]) checks_[i].damaged.insert(block);
  }

  static void add(VerifyReport& report, const ManifestSegment& segment, const Check& check) {
    const std::string path = segment_path(segment.name);
    SegmentDamage damage;
    damage.segment = segment.name;
    if (!check.unreadable.empty()) {
      damage.is_missing = check.segment->is_missing();
      damage.problem = damage.is_missing ? fmt::format("{}: missing", path) : check.unreadable;
    } else {
      report.blocks += segment.block_count;
      damage.blocks.assign(check.damaged.begin(), check.damaged.end());
      if (!damage.blocks.empty())
        damage.problem = fmt::format("{}: damaged: {} of {} blocks do not have their hash", path,
                                     damage.blocks.size(), segment.block_count);
    }
    if (!damage.problem.empty()) report.damage.push_back(std::move(damage));
  }

  Backend& backend_;
  const Manifest& manifest_;
  const std::function<void(uint64_t, uint64_t)>& progress_;
  const HashSecret secret_;
  BlockSource blocks_;
  std::vector<Check> checks_;  // of the manifest's segments
  uint64_t total_bytes_;
  uint64_t done_bytes_ = 0;
  bool is_sound_ = true;
  ByteVector buffer_;
  std::map<uint32_t, std::vector<Hash128>> tables_;
};

}  // namespace

VerifyReport verify_template(
    const TemplateStorage& storage, const std::string& name,
    const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress) {
  const HeldManifest held = hold_manifest(storage.store, name);
  return Verification(storage, held.manifest, progress).run();
}

GcResult remove_template(const TemplateStorage& storage, const std::string& name,
                         const std::function<std::vector<std::string>()>& volumes_using_it) {
  check_name("template", name);
  Backend& backend = storage.store;
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
  if (!has_manifest && !has_journal) fail_no_template(name);
  try {
    return collect(storage);
  } catch (const Error& error) {
    fail(error.code(), name, "removed, but its space is not freed: {}; then run 'tplstore gc'",
         error.what());
  }
}

GcResult gc(const TemplateStorage& storage, const std::function<void()>& check) {
  const auto held = lock_gc(storage.store, "gc");
  if (check) check();
  return collect(storage);
}

}  // namespace tplstore
