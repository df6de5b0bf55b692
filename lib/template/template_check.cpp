// Manifests say what is needed of segments; what is lost with a segment its runs tell.
#include "template/template_check.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <vector>

#include "backend/layout.h"
#include "base/host.h"
#include "base/units.h"
#include "template/gc_lock.h"
#include "template/import_journal.h"
#include "template/manifest.h"
#include "template/segment.h"
#include "template/segment_needs.h"
#include "template/table_cache.h"
#include "template/template_catalog.h"
#include "template/template_tables.h"

namespace tplstore {
namespace {

class TemplatesCheck {
 public:
  TemplatesCheck(Backend& store, Backend* segments, const HashSecret* secret,
                 const TemplateCheckOptions& options, Findings& findings)
      : store_(store),
        segments_(segments),
        secret_(secret),
        options_(options),
        findings_(findings) {}

  TemplatesChecked run();

 private:
  void list_all_segments();
  void check_template(const std::string& name);
  void check_segments(const std::string& name, const Manifest& manifest);
  void check_data(const std::string& name, const Manifest& manifest);
  void check_journals();
  void check_unused();
  void check_tables();
  void add_lost(Finding& fault, const std::string& name, const Manifest& manifest, uint32_t segment,
                const std::vector<uint32_t>* blocks);
  void say(const Error& error, const std::string& name, const Manifest& manifest, uint32_t segment);

  Backend& store_;
  Backend* const segments_;
  const HashSecret* const secret_;
  const TemplateCheckOptions& options_;
  Findings& findings_;
  TemplatesChecked checked_;
  std::vector<Hash128> listed_;         // segments, before anything that needs them was read
  std::map<Hash128, std::string> bad_;  // segments that were looked at and are not sound
  std::set<Hash128> sound_;
  std::set<Hash128> needed_;
};

TemplatesChecked TemplatesCheck::run() {
  list_all_segments();
  for (const std::string& name : list_names(store_, std::string(paths::kTemplates))) {
    findings_.begin("template " + name);
    check_template(name);
  }
  check_journals();
  findings_.begin("store");
  check_unused();
  check_tables();
  return std::move(checked_);
}

void TemplatesCheck::list_all_segments() {
  findings_.begin("store");
  if (segments_ == nullptr) return;
  try {
    listed_ = list_segments(*segments_);
    const std::string top(paths::kSegments);
    for (const std::string& part : segments_->list(top)) {
      const std::string folder = fmt::format("{}/{}", top, part);
      for (const std::string& name : segments_->list(folder)) {
        Hash128 hash;
        if (!parse_hash(name, hash) || segment_folder(hash) != folder)
          findings_.note(fmt::format("{}/{}", folder, name), "is unknown, and was not looked at");
      }
    }
  } catch (const Error& error) {
    findings_.fault(error);
  }
}

void TemplatesCheck::check_template(const std::string& name) {
  ++checked_.count;
  std::optional<Manifest> manifest;
  try {
    manifest = load_manifest(store_, name);
  } catch (const Error& error) {
    checked_.is_complete = false;
    Finding& fault = findings_.fault(error);
    findings_.add_lost(fault, {"template/" + name, 0, 0});
    return;
  }
  if (!manifest) {
    --checked_.count;
    return;  // removed since it was listed
  }
  checked_.uuids.insert(manifest->uuid);
  for (const ManifestSegment& segment : manifest->segments) needed_.insert(segment.name);
  if (segments_ == nullptr) return;
  check_segments(name, *manifest);
  if (options_.reads_data) check_data(name, *manifest);
  if (secret_ == nullptr) return;
  const auto tables = get_template_tables(store_, *manifest);
  if (tables && !are_template_tables(*tables, *manifest, *secret_))
    findings_.fault(template_tables_path(*manifest),
                    "has tables that are not those of the template's segments", Repair::kTables);
}

// Blocks of the disk that are in a segment, or in some blocks of it.
void TemplatesCheck::add_lost(Finding& fault, const std::string& name, const Manifest& manifest,
                              uint32_t segment, const std::vector<uint32_t>* blocks) {
  const auto add = [&](uint64_t block, uint64_t count) {
    const uint64_t offset = block * kBlockBytes;
    findings_.add_lost(fault, {"template/" + name, offset,
                               std::min(count * kBlockBytes, manifest.size_bytes - offset)});
  };
  for (const TemplateRun& run : manifest.runs) {
    if (run.segment != segment) continue;
    if (blocks == nullptr) {
      add(run.block, run.count);
      continue;
    }
    auto at = std::ranges::lower_bound(*blocks, uint32_t{run.segment_block});
    for (; at != blocks->end() && *at < uint32_t{run.segment_block} + run.count; ++at)
      add(run.block + (*at - run.segment_block), 1);
  }
}

void TemplatesCheck::say(const Error& error, const std::string& name, const Manifest& manifest,
                         uint32_t segment) {
  Finding& fault = findings_.fault(error, Repair::kSegment);
  add_lost(fault, name, manifest, segment, nullptr);
}

void TemplatesCheck::check_segments(const std::string& name, const Manifest& manifest) {
  for (uint32_t i = 0; i < manifest.segments.size(); ++i) {
    const ManifestSegment& segment = manifest.segments[i];
    if (sound_.contains(segment.name)) continue;
    try {
      // It is said once for each template that needs it, with what that loses.
      if (const auto known = bad_.find(segment.name); known != bad_.end())
        throw Error(EIO, segment_path(segment.name), known->second);
      const auto object = open_segment(*segments_, segment.name, segment.block_count);
      if (secret_ != nullptr) read_segment_table(*object, segment.name, *secret_);
      sound_.insert(segment.name);
    } catch (const Error& error) {
      say(error, name, manifest, i);
      bad_.try_emplace(segment.name,
                       findings_.all().empty() ? error.what() : findings_.all().back().problem);
    }
  }
}

void TemplatesCheck::check_data(const std::string& name, const Manifest& manifest) {
  VerifyReport report;
  try {
    report = verify_template({store_, *segments_}, name, [&](uint64_t done, uint64_t total) {
      if (options_.progress) options_.progress(name, done, total);
    });
  } catch (const Error& error) {
    if (error.code() != ENOENT) findings_.fault(error);  // else removed meanwhile
    return;
  }
  for (const SegmentDamage& damage : report.damage) {
    if (bad_.contains(damage.segment)) continue;
    const std::string path = segment_path(damage.segment), prefix = path + ": ";
    Finding& fault = findings_.fault(
        path,
        damage.problem.starts_with(prefix) ? damage.problem.substr(prefix.size()) : damage.problem,
        Repair::kSegment);
    for (uint32_t i = 0; i < manifest.segments.size(); ++i)
      if (manifest.segments[i].name == damage.segment)
        add_lost(fault, name, manifest, i, damage.blocks.empty() ? nullptr : &damage.blocks);
  }
  if (report.damage.empty() && !report.has_content_id)
    findings_.fault(manifest_path(name),
                    "its segments are sound, but together they are not the disk that was imported: "
                    "import it again under another name");
}

void TemplatesCheck::check_journals() {
  for (const std::string& name : list_names(store_, std::string(paths::kImports))) {
    findings_.begin("import " + name);
    try {
      const bool is_running = store_.is_locked(journal_path(name));
      const auto journal = load_journal(store_, name);
      if (!journal) continue;
      needed_.insert(journal->segments.begin(), journal->segments.end());
      if (is_running) continue;
      if (load_manifest_uuid(store_, name))
        findings_.fault(journal_path(name), "is of an import that was complete", Repair::kCollect);
      else
        findings_.note(journal_path(name),
                       fmt::format("is unfinished: the same import goes on with it, and 'tplstore "
                                   "template rm {}' gives it up",
                                   name));
    } catch (const Error& error) {
      if (error.code() == ENOENT) continue;  // it has ended
      checked_.is_complete = false;
      findings_.fault(error);
    }
  }
}

void TemplatesCheck::check_unused() {
  if (!checked_.is_complete || segments_ == nullptr) return;
  uint64_t count = 0;
  std::string first;
  for (const Hash128& name : listed_) {
    if (needed_.contains(name)) continue;
    if (count++ == 0) first = segment_path(name);
  }
  if (count > 0)
    findings_.fault(first, fmt::format("{} of the segments are of no template", count),
                    Repair::kCollect);
}

void TemplatesCheck::check_tables() {
  if (segments_ == nullptr || secret_ == nullptr) return;
  try {
    for (const std::string& object : find_damaged_tables(*segments_, *secret_))
      findings_.fault(object, "has a table that is none of its segment", Repair::kDerived);
  } catch (const Error& error) {
    findings_.fault(error);
  }
}

}  // namespace

std::optional<StoreIdentity> check_identity(Backend& store, Findings& findings) {
  try {
    return load_identity(store);
  } catch (const Error& error) {
    findings.fault(error);
    return std::nullopt;
  }
}

TemplatesChecked check_templates(Backend& store, Backend* segments, const HashSecret* secret,
                                 const TemplateCheckOptions& options, Findings& findings) {
  return TemplatesCheck(store, segments, secret, options, findings).run();
}

void check_gc_claims(Backend& store, Findings& findings) {
  for (const std::string& object : find_stale_gc_claims(store))
    findings.fault(object, "a claim of this host, where nothing has 'gc.lock'", Repair::kClaims);
}

void remove_stale_gc_claims(Backend& store) {
  // Nobody of this host has it then.
  const auto lock = store.try_lock(std::string(paths::kGcLock), LockMode::kExclusive);
  if (!lock) return;
  for (const std::string& object : find_stale_gc_claims(store, true)) store.remove(object);
}

}  // namespace tplstore
