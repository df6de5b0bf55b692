// The store, its volumes, its templates, and what is known of boots.
#include "store/store_check.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <vector>

#include "backend/layout.h"
#include "base/host.h"
#include "base/names.h"
#include "boot/boot_check.h"
#include "lock/volume_header.h"
#include "store/removed_volumes.h"
#include "store/store_config.h"
#include "template/template_check.h"
#include "volume/forks.h"
#include "volume/removed_versions.h"
#include "volume/version_set.h"
#include "volume/volume_check.h"

namespace tplstore {
namespace {

constexpr uint64_t kUuidTextBytesMax = 256;

bool exists(Backend& store, const std::string& object) {
  try {
    store.is_locked(object);
    return true;
  } catch (const Error& error) {
    return error.code() != ENOENT;
  }
}

// Without the object, which a finding has by itself.
std::string message_of(const Error& error) {
  const std::string what = error.what(), prefix = error.object() + ": ";
  return what.starts_with(prefix) ? what.substr(prefix.size()) : what;
}

bool is_locked(Backend& store, const std::string& object) {
  try {
    return store.is_locked(object);
  } catch (const Error&) {
    return false;
  }
}

class StoreCheck {
 public:
  StoreCheck(Backend& store, const OpenLocation& open_location, const CheckOptions& options)
      : store_(store), options_(options), origin_(store, open_location) {}

  CheckReport run();

 private:
  void check_top();
  void check_servers();
  Uuid read_name(const std::string& name);
  void check_names();
  void check_removed();
  void check_sets();
  bool has_got_name(const Uuid& uuid);
  bool is_removed_meanwhile(const Uuid& uuid);
  void check_volume_folders();
  void check_nameless(const Uuid& uuid, bool is_sure);
  void check_one(const Uuid& uuid, const std::string& name);
  void check_all_templates();
  bool is_in_parentage(const Uuid& uuid) const { return parents_.contains(uuid); }

  Findings& findings() { return report_.findings; }

  Backend& store_;
  const CheckOptions& options_;
  Origin origin_;
  CheckReport report_;
  std::optional<StoreIdentity> identity_;
  std::map<Uuid, std::string> names_;
  std::vector<Uuid> folders_;
  std::set<Uuid> parents_;       // of volumes
  bool are_names_sound_ = true;  // else what has no name may have lost it
  bool is_served_ = false;       // a server of this host or another one has the store
};

CheckReport StoreCheck::run() {
  findings().begin("store");
  identity_ = check_identity(store_, findings());
  if (!identity_ && store_.list(std::string(paths::kVolumes)).empty() &&
      store_.list(std::string(paths::kTemplates)).empty())
    load_identity(store_);  // this is no store
  if (options_.volume.empty()) {
    check_top();
    check_servers();
    check_names();
    check_volume_folders();
    check_removed();
    check_sets();
    check_all_templates();
  } else {
    check_name("volume", options_.volume);
    const Uuid uuid = read_name(options_.volume);
    if (!uuid.is_nil()) check_one(uuid, options_.volume);
  }
  return std::move(report_);
}

// --- what is in the store's folder

void StoreCheck::check_top() {
  constexpr std::string_view kKnown[] = {
      paths::kTemplates, paths::kSegments, paths::kTables,   paths::kImports, paths::kVolumeNames,
      paths::kVolumes,   paths::kGcLock,   paths::kGcClaims, paths::kServers, paths::kBoot,
      paths::kPacks,     paths::kRemoved,  paths::kSets,     kIdentityObject, kOriginObject};
  for (const std::string& name : store_.list(""))
    if (std::ranges::find(kKnown, name) == std::end(kKnown) && !name.starts_with("origin.") &&
        !name.starts_with("config."))
      findings().note(name, "is unknown, and was not looked at");
  if (!exists(store_, std::string(paths::kGcLock)))
    findings().fault(std::string(paths::kGcLock),
                     "is missing, so that nothing can be imported or created", Repair::kGcLock);
  try {
    load_config(store_);
  } catch (const Error& error) {
    findings().fault(error.object(), fmt::format("{}; remove it, and say again what 'tplstore "
                                                 "config' is to have",
                                                 message_of(error)));
  }
  try {
    check_gc_claims(store_, findings());
  } catch (const Error& error) {
    findings().fault(error);
  }
}

void StoreCheck::check_servers() {
  for (const std::string& name : store_.list(std::string(paths::kServers))) {
    const std::string object = fmt::format("{}/{}", paths::kServers, name);
    Uuid host;
    const size_t dot = name.find('.');
    if (dot == std::string::npos || !parse_uuid(std::string_view(name).substr(0, dot), host)) {
      findings().note(object, "is unknown, and was not looked at");
      continue;
    }
    const bool is_live = is_locked(store_, object);
    const bool is_here = host == this_host().host_id || host == this_host().machine_id;
    is_served_ = is_served_ || is_live || !is_here;
    if (!is_live && is_here && exists(store_, object))
      findings().note(object, "leads to a server that was killed; the next one removes it");
  }
}

// --- names

// Nil where it is damaged.
Uuid StoreCheck::read_name(const std::string& name) {
  const std::string object = fmt::format("{}/{}", paths::kVolumeNames, name);
  Uuid uuid;
  try {
    const auto content = store_.get(object, kUuidTextBytesMax);
    if (!content) {
      if (!options_.volume.empty())
        fail(ENOENT, "volume " + name, "is not there; see 'tplstore volume list'");
      return {};  // removed since it was listed
    }
    if (parse_uuid(to_text(*content), uuid)) return uuid;
  } catch (const Error& error) {
    if (error.code() == ENOENT) throw;
  }
  are_names_sound_ = false;
  findings().begin("volume " + name);
  findings().fault(object,
                   "holds no uuid, so nobody can tell which volume it is: put one in, of the "
                   "folders in 'volumes' that have no name");
  return {};
}

void StoreCheck::check_names() {
  const std::string folder(paths::kVolumeNames);
  for (const std::string& name : store_.list(folder)) {
    if (!is_valid_name(name)) {
      findings().note(fmt::format("{}/{}", folder, name), "is unknown, and was not looked at");
      continue;
    }
    const Uuid uuid = read_name(name);
    if (uuid.is_nil()) continue;
    const auto [other, is_new] = names_.try_emplace(uuid, name);
    if (is_new) continue;
    if (exists(store_, volume_folder(uuid) + "/rename")) {
      findings().note(fmt::format("{}/{}", folder, name),
                      "is the old or the new name of a volume whose renaming was interrupted: who "
                      "opens that completes it");
      continue;
    }
    are_names_sound_ = false;
    findings().begin("volume " + name);
    findings().fault(
        fmt::format("{}/{}", folder, name),
        fmt::format("leads to the volume of {} too: one of the two is damaged", other->second));
  }
}

// --- volumes

void StoreCheck::check_volume_folders() {
  // Who creates a volume has this; then folders without a name are on their way.
  const bool is_creating = is_locked(store_, std::string(paths::kGcLock));
  const std::string top(paths::kVolumes);
  findings().begin("store");
  bool is_used = false;
  for (const std::string& part : store_.list(top)) {
    Uuid uuid;
    if (!parse_uuid(part, uuid)) {
      findings().note(fmt::format("{}/{}", top, part), "is unknown, and was not looked at");
      continue;
    }
    folders_.push_back(uuid);
    try {
      const VolumeHeader header = read_header(store_, volume_folder(uuid), uuid);
      if (!header.parent.is_nil()) parents_.insert(header.parent);
      is_used = is_used || header.epoch > 0;
    } catch (const Error&) {
      // It is told with the volume.
    }
  }
  if (is_used && names_.empty() && store_.list(std::string(paths::kVolumeNames)).empty()) {
    are_names_sound_ = false;
    findings().fault(std::string(paths::kVolumeNames),
                     "is missing or empty, though there are volumes: put it back");
  }
  for (const auto& [uuid, name] : names_) {
    findings().begin("volume " + name, uuid);
    if (std::ranges::find(folders_, uuid) != folders_.end()) {
      check_one(uuid, name);
    } else if (exists(store_, fmt::format("{}/{}", paths::kVolumeNames, name))) {
      are_names_sound_ = false;
      findings().fault(fmt::format("{}/{}", paths::kVolumeNames, name),
                       fmt::format("leads to no volume: {} is not there; put that back, or remove "
                                   "the name",
                                   volume_folder(uuid)));
    }
  }
  for (const Uuid& uuid : folders_) {
    if (names_.contains(uuid)) continue;
    findings().begin("volume " + uuid.text(), uuid);
    try {
      check_nameless(uuid, are_names_sound_ && !is_creating);
    } catch (const Error& error) {
      findings().fault(error);  // one that cannot be read, or may be a fork of it
    }
  }
}

void StoreCheck::check_one(const Uuid& uuid, const std::string& name) {
  findings().begin("volume " + name, uuid);
  const size_t before = findings().count();
  const uint64_t faults_before = findings().faults();
  ++report_.volumes;
  check_volume(store_, uuid, name, findings());
  check_volume_boots(store_, uuid, identity_ ? &identity_->secret : nullptr, is_served_,
                     findings());
  if (findings().faults() == faults_before || !is_removed_meanwhile(uuid)) return;
  findings().drop_from(before);
  --report_.volumes;
}

// The header goes first, when nothing leads to it any more.
bool StoreCheck::is_removed_meanwhile(const Uuid& uuid) {
  const bool is_kept = exists(store_, fmt::format("{}/{}", paths::kRemoved, uuid.text()));
  return !exists(store_, header_name(volume_folder(uuid))) && !is_kept && !has_got_name(uuid) &&
         !is_in_parentage(uuid);
}

// Names that nothing else looks at.
void StoreCheck::check_removed() {
  const std::string top(paths::kRemoved);
  findings().begin("store");
  for (const std::string& part : store_.list(top)) {
    const std::string object = fmt::format("{}/{}", top, part);
    Uuid uuid;
    const auto version = parse_removed_version(part);
    if (version && find_removed_versions(store_, version->first)[version->second].is_damaged &&
        exists(store_, object))
      findings().fault(object,
                       "is damaged, so that nobody can tell how long that version is kept: restore "
                       "it, or remove it with '--keep 0'");
    if (!version && !parse_uuid(part, uuid))
      findings().note(object, "is unknown, and was not looked at");
    if (uuid.is_nil()) continue;
    try {
      if (!read_removed(store_, uuid) || names_.contains(uuid)) continue;
      if (store_.list(volume_folder(uuid)).empty() && exists(store_, object))
        findings().fault(object, "is of a volume that is not there: put that back, or remove this");
    } catch (const Error& error) {
      findings().fault(object,
                       fmt::format("{}; as long as it is there the volume is kept: 'tplstore "
                                   "gc' removes that when this is removed, and a name brings "
                                   "it back: its uuid in an object 'names/NAME'",
                                   message_of(error)));
    }
  }
}

void StoreCheck::check_sets() {
  findings().begin("store");
  for (const VersionSet& set : find_version_sets(store_))
    if (set.is_damaged())
      findings().fault(fmt::format("{}/{}", paths::kSets, set.id),
                       "is damaged, so that nobody can tell which versions were to be of one "
                       "moment, and may be there of some volumes only: remove it");
}

// Whether it has a name now.
bool StoreCheck::has_got_name(const Uuid& uuid) {
  const std::string folder(paths::kVolumeNames);
  for (const std::string& name : store_.list(folder)) {
    try {
      const auto content = store_.get(fmt::format("{}/{}", folder, name), kUuidTextBytesMax);
      Uuid named;
      if (content && parse_uuid(to_text(*content), named) && named == uuid) return true;
    } catch (const Error&) {
      // It is told where names are looked at.
    }
  }
  return false;
}

// One that forks need, or what creating or removing one has left, or one that has lost its name.
void StoreCheck::check_nameless(const Uuid& uuid, bool is_sure) {
  const std::string folder = volume_folder(uuid);
  const bool is_kept = exists(store_, fmt::format("{}/{}", paths::kRemoved, uuid.text()));
  const bool is_needed = is_kept || is_in_parentage(uuid) || is_locked(store_, lock_name(folder)) ||
                         std::ranges::any_of(folders_, [&](const Uuid& other) {
                           return other != uuid && is_fork_of(store_, other, uuid);
                         });
  if (is_needed) return check_one(uuid, uuid.text());
  // It may have been made, restored or removed since names and folders were listed.
  const bool is_creating = is_locked(store_, std::string(paths::kGcLock));
  if (store_.list(folder).empty() || has_got_name(uuid)) return;
  if (!is_sure || is_creating) {
    findings().note(folder, "has no name: it may have lost it, or is being created");
    return;
  }
  try {
    const VolumeHeader header = read_header(store_, folder, uuid);
    if (header.epoch == 0) {
      findings().fault(folder,
                       "has no name, and nobody has ever written it: creating it was "
                       "interrupted",
                       Repair::kFolder);
      return;
    }
    findings().fault(folder, fmt::format("has no name: 'tplstore gc' removes it, if it was being "
                                         "removed; else put its uuid into an object 'names/NAME'"));
  } catch (const Error& error) {
    if (error.code() == ENOENT)
      findings().fault(folder,
                       "has neither a name nor a header: creating or removing a volume was "
                       "interrupted",
                       Repair::kFolder);
    else
      findings().fault(error);
  }
}

// --- templates

void StoreCheck::check_all_templates() {
  findings().begin("store");
  bool has_segments = true;
  try {
    if (identity_) origin_.check();
  } catch (const Error& error) {
    has_segments = false;
    findings().fault(error);
  }
  if (!identity_) {
    findings().note("",
                    "templates were not looked at: what they are called by is made with what "
                    "the object 'store' has");
    return;
  }
  const TemplateCheckOptions options{
      options_.reads_data, [this](const std::string& name, uint64_t done, uint64_t total) {
        if (options_.progress) options_.progress(name, done, total);
      }};
  const TemplatesChecked checked = check_templates(store_, has_segments ? &origin_ : nullptr,
                                                   &identity_->secret, options, findings());
  report_.templates = checked.count;
  findings().begin("store");
  try {
    check_template_boots(store_, checked.is_complete ? &checked.uuids : nullptr, &identity_->secret,
                         is_served_, findings());
  } catch (const Error& error) {
    findings().fault(error);
  }
}

}  // namespace

CheckReport check_store(Backend& store, const OpenLocation& open_location,
                        const CheckOptions& options) {
  return StoreCheck(store, open_location, options).run();
}

void note_repaired(CheckReport& report, const CheckReport& after) {
  std::multiset<std::string> left;
  for (const Finding& finding : after.findings.all()) left.insert(finding.text());
  for (Finding& finding : report.findings.all()) {
    const auto found = left.find(finding.text());
    if (found != left.end())
      left.erase(found);
    else
      finding.is_repaired = finding.is_fault;
  }
  for (const Finding& finding : after.findings.all()) {
    const auto found = left.find(finding.text());
    if (found == left.end()) continue;
    left.erase(found);
    report.findings.all().push_back(finding);
  }
}

}  // namespace tplstore
