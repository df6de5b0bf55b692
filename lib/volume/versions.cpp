// Freezing is the one step that makes versions; what is between closing and opening the gate is
// done in memory.
#include "volume/versions.h"

#include <algorithm>
#include <cerrno>
#include <deque>
#include <optional>
#include <set>

#include "base/names.h"
#include "base/units.h"
#include "volume/removed_versions.h"
#include "volume/version_set.h"

namespace tplstore {

namespace {

// Versions that are not there, though the map has them: of sets that are not complete, or removed
// and kept. What was put into the map and given up while that was read has been pending before or
// after.
class Pending {
 public:
  explicit Pending(OpenVolume& volume) : volume_(volume) { look_again(); }
  void look_again() {
    numbers_.merge(pending_versions(volume_.backend, volume_.uuid));
    for (const auto& [number, removed] : find_removed_versions(volume_.backend, volume_.uuid))
      numbers_.insert(number);
  }
  bool contains(uint32_t number) const { return numbers_.contains(number); }

 private:
  OpenVolume& volume_;
  std::set<uint32_t> numbers_;
};

}  // namespace

VersionInfo Versions::info_of(const VersionRecord& record) const {
  VersionInfo info;
  info.number = record.number;
  info.name = record.name;
  info.note = record.note;
  info.parent = record.parent;
  info.created_ns = record.created_ns;
  info.size_bytes = record.size_bytes;
  info.is_hidden = record.is_hidden();
  info.children = record.children;
  info.identity =
      record.origin.is_nil() ? VersionIdentity{volume_.uuid, record.number} : record.origin;
  return info;
}

std::vector<VersionInfo> Versions::list() {
  Pending pending(volume_);
  std::vector<VersionInfo> versions = volume_.with_map([this](VolumeMap& map) {
    std::vector<VersionInfo> list;
    for (const VersionRecord& record : map.versions()) list.push_back(info_of(record));
    list.push_back(info_of(map.ask(&MapState::current_record)));
    list.back().is_current = true;
    for (VersionInfo& info : list) info.own_bytes = map.own_blocks(info.number) * kBlockBytes;
    for (const Pin& pin : map.pins()) {
      const auto at = std::ranges::find(list, pin.version, &VersionInfo::number);
      if (at != list.end()) at->forks.push_back(pin.fork.text());
    }
    return list;
  });
  pending.look_again();
  for (VersionInfo& info : versions)
    if (!info.is_current && pending.contains(info.number)) info.is_hidden = true;
  return versions;
}

std::vector<VersionRecord> Versions::records() {
  Pending pending(volume_);
  auto records = volume_.with_map([](VolumeMap& map) { return map.versions(); });
  pending.look_again();
  std::erase_if(records,
                [&](const VersionRecord& record) { return pending.contains(record.number); });
  return records;
}

VersionRecord Versions::current() {
  return volume_.with_map([](VolumeMap& map) { return map.ask(&MapState::current_record); });
}

VersionInfo Versions::find(const std::string& number_or_name) {
  Pending pending(volume_);
  const auto record = volume_.with_map(
      [&](VolumeMap& map) { return map.ask(&MapState::record_of, number_or_name); });
  pending.look_again();
  const bool is_pending = record && pending.contains(record->number);
  if (is_pending && find_removed_versions(volume_.backend, volume_.uuid).contains(record->number))
    fail(ENOENT, volume_.object,
         "has no version '{0}' any more: it was removed; 'tplstore version restore {1} {0}' brings "
         "it back",
         number_or_name, volume_.name);
  if (!record && number_or_name == std::to_string(current().number))
    fail(ENOENT, volume_.object,
         "version {0} is its current one, which is not frozen: 'tplstore version create {1}' does "
         "that, and '{1}@current' is what it is now",
         number_or_name, volume_.name);
  if (!record || record->is_hidden() || is_pending)
    fail(ENOENT, volume_.object, "has no version '{}'; see 'tplstore version list {}'",
         number_or_name, volume_.name);
  return info_of(*record);
}

VersionInfo Versions::find_for_reader(uint32_t number) {
  const auto record = volume_.with_map(
      [&](VolumeMap& map) { return map.ask(&MapState::record_of, std::to_string(number)); });
  if (!record || record->is_removed())
    fail(ENOENT, volume_.object, "has no version {} any more", number);
  return info_of(*record);
}

std::unique_ptr<HeldLock> Versions::hold(uint32_t version) {
  auto hold = volume_.try_lock(version, LockMode::kShared);
  if (!hold) fail(EBUSY, fmt::format("{}@{}", volume_.name, version), "is being removed");
  return hold;
}

// --- freezing

void Versions::check_is_free(const std::string& version_name) {
  if (version_name.empty()) return;
  const auto record = volume_.map().ask(&MapState::record_of, version_name);
  if (!record) return;
  if (find_removed_versions(volume_.backend, volume_.uuid).contains(record->number))
    fail(
        EEXIST, volume_.object,
        "has a version '{0}', number {1}, that was removed and is kept with its name: 'tplstore "
        "version restore {2} {1}' brings it back, 'tplstore version rm {2} {1} --keep 0' ends that",
        version_name, record->number, volume_.name);
  fail(EEXIST, volume_.object, "has a version '{}' already", version_name);
}

void Versions::freeze(VersionChange& change, const FreezeRequest& request) {
  // What another process may have begun, and would take the next version for its own.
  settle_version_sets(volume_, change);
  check_is_free(request.name);
  VolumeMap& map = volume_.map();
  const uint32_t next = volume_.current + 1;
  const uint64_t parent_bytes = map.ask([&](const MapState& state) {
    const VersionRecord* parent = state.table().find(request.parent);
    return parent == nullptr ? 0 : parent->size_bytes;
  });
  volume_.files.prepare(next, std::max(volume_.size_bytes.load(), parent_bytes));
  LogReservation reserved(map, VersionChange::kFreezeRecords);
  {
    const Quiesce::Closed closed(volume_.quiesce);
    change.freeze(request, reserved);
    volume_.use_current(volume_.files.advance(next));
  }
  map.commit();
  volume_.record_size();
}

VersionInfo Versions::freeze(const FreezeRequest& request) {
  VersionInfo info;
  {
    VersionChange change = volume_.map().change_versions();
    const uint32_t number = volume_.current;
    freeze(change, request);
    info = info_of(volume_.map().ask(&MapState::record_of, std::to_string(number)).value());
  }
  volume_.environment.wake();
  info.own_bytes = volume_.map().own_blocks(info.number) * kBlockBytes;
  return info;
}

// A volume that is about to be frozen together with others. Nobody else changes its versions.
class Versions::Freezing {
 public:
  Freezing(Versions& versions, const NewVersion& request)
      : versions_(versions),
        volume_(versions.volume_),
        change_(volume_.map().change_versions()),
        request_{.name = request.name,
                 .note = request.note,
                 .origin = request.origin,
                 .created_ns = request.created_ns} {
    settle_version_sets(volume_, change_);
    versions_.check_is_free(request.name);
    volume_.files.prepare(volume_.current + 1, volume_.size_bytes);
    reserved_.emplace(volume_.map(), VersionChange::kFreezeRecords);
    number_ = volume_.current;
  }
  Freezing(const Freezing&) = delete;

  Versions& versions() { return versions_; }
  VersionSet::Member member() const { return {volume_.uuid, number_}; }
  Quiesce& gate() { return volume_.quiesce; }
  // Behind the closed gate.
  void freeze() {
    change_.freeze(request_, *reserved_);
    volume_.use_current(volume_.files.advance(number_ + 1));
  }
  void commit() {
    volume_.map().commit();
    volume_.record_size();
  }
  void settle() { settle_version_sets(volume_, change_); }
  VersionInfo info() {
    volume_.environment.wake();
    return versions_.info_of(
        volume_.map().ask(&MapState::record_of, std::to_string(number_)).value());
  }

 private:
  Versions& versions_;
  OpenVolume& volume_;
  VersionChange change_;
  const FreezeRequest request_;
  std::optional<LogReservation> reserved_;
  uint32_t number_ = 0;
};

std::vector<VersionInfo> Versions::create_together(std::span<Versions* const> volumes,
                                                   const NewVersion& wanted) {
  NewVersion request = wanted;
  if (request.created_ns == 0) request.created_ns = now_unix_ns();  // of one moment
  if (volumes.size() > kVersionSetMax)
    fail(EINVAL, volumes.front()->volume_.object,
         "and {} others: versions of one moment can be made of {} volumes at most",
         volumes.size() - 1, kVersionSetMax);
  for (Versions* const versions : volumes) versions->check_new(request);
  std::vector<VersionInfo> infos;
  {
    std::deque<Freezing> freezing;
    VersionSet set{random_uuid().text(), {}, {}};
    for (Versions* const versions : volumes)
      set.members.push_back(freezing.emplace_back(*versions, request).member());
    Backend& backend = volumes.front()->volume_.backend;
    bool has_frozen = false;
    try {
      put_version_set(backend, set);
      {
        std::deque<Quiesce::Closed> closed;
        for (Freezing& one : freezing) closed.emplace_back(one.gate());
        has_frozen = true;
        for (Freezing& one : freezing) one.freeze();
      }
      for (Freezing& one : freezing) one.commit();
      for (Freezing& one : freezing) infos.push_back(one.info());
      remove_version_set(backend, set);
    } catch (...) {
      OpenVolume& first = volumes.front()->volume_;
      if (!has_frozen)
        first.attempt("what was to be made with others' is given up at the next version",
                      [&] { remove_version_set(backend, set); });
      else
        first.attempt("versions that were made together stay", [&] {
          // It may be gone already. What becomes of one version becomes of all.
          put_version_set(backend, set);
          for (Freezing& one : freezing)
            one.versions().volume_.attempt("a version that was given up goes at the next opening",
                                           [&] { one.settle(); });
        });
      throw;
    }
  }
  for (size_t i = 0; i < volumes.size(); ++i)
    infos[i].own_bytes = volumes[i]->volume_.map().own_blocks(infos[i].number) * kBlockBytes;
  return infos;
}

VersionForReader Versions::freeze_for_reader() {
  hide_left_versions(volume_);
  VersionChange change = volume_.map().change_versions();
  if (volume_.map().ask([](const MapState& state) { return state.table().for_readers().size(); }) >=
      kReadersOfCurrentMax)
    fail(EBUSY, volume_.object,
         "is being read as {}@current by {} connections, and can be by no more; disconnect one, or "
         "make a version and read that",
         volume_.name, kReadersOfCurrentMax);
  // Held before the version is there: so it is never without its reader.
  VersionForReader frozen{volume_.current, hold(volume_.current)};
  FreezeRequest request;
  request.for_reader = true;
  freeze(change, request);
  volume_.environment.wake();
  return frozen;
}

void hide_left_versions(OpenVolume& volume) {
  VersionChange change = volume.map().change_versions();
  for (const uint32_t number :
       volume.map().ask([](const MapState& state) { return state.table().for_readers(); }))
    if (volume.try_lock(number, LockMode::kExclusive)) change.hide({number});
}

void Versions::check_new(const NewVersion& request) {
  if (!request.name.empty()) check_name("version", request.name);
  if (request.note.size() > kNoteBytesMax)
    fail(EINVAL, volume_.object, "a note has at most {} bytes", kNoteBytesMax);
  check_is_free(request.name);
}

VersionInfo Versions::create(const NewVersion& request) {
  check_new(request);
  FreezeRequest freezing{request.name, request.note, request.origin};
  freezing.created_ns = request.created_ns;
  return freeze(freezing);
}

VersionInfo Versions::rollback(const std::string& number_or_name) {
  VersionInfo kept = freeze({"", "", {}, find(number_or_name).number});
  end_import();  // whatever current was, now it is whole
  return kept;
}

// --- importing
//
// "import" in the volume's folder has the numbers of the base and of the version that is filled.
// What becomes of that can be told by current: as long as it is that version, it is half; when it
// is the next one, and starts from it, it was completed; when it starts from the base, it was
// undone.

namespace {

constexpr uint64_t kImportBytesMax = 64;

std::string import_object(const OpenVolume& volume) { return volume.folder + "/import"; }

}  // namespace

void Versions::begin_import(uint32_t base) {
  const std::string text = fmt::format("{} {}\n", base, volume_.current.load());
  if (!volume_.backend.put_new(import_object(volume_), as_bytes(text)))
    fail(EBUSY, import_object(volume_), "an import that was cut off has not been undone");
}

void Versions::end_import() { volume_.backend.remove(import_object(volume_)); }

bool Versions::is_importing() {
  return volume_.backend.get(import_object(volume_), kImportBytesMax).has_value();
}

void Versions::undo_import() {
  const auto content = volume_.backend.get(import_object(volume_), kImportBytesMax);
  if (!content) return;
  const std::string text = to_text(*content);
  const size_t middle = text.find(' ');
  const auto base = parse_version_number(text.substr(0, middle));
  const auto filled = middle == std::string::npos || !text.ends_with('\n')
                          ? std::nullopt
                          : parse_version_number(text.substr(middle + 1, text.size() - middle - 2));
  if (!base || !filled)
    fail(EIO, import_object(volume_),
         "damaged: nobody can tell what an import that was cut off was based on; 'tplstore version "
         "rollback {} VERSION' puts the volume back",
         volume_.name);
  VolumeMap& map = volume_.map();
  {
    VersionChange change = map.change_versions();
    if (volume_.current == *filled) {
      FreezeRequest request;
      request.parent = *base;
      freeze(change, request);
    }
    const bool is_undone = map.ask([&](const MapState& state) {
      const VersionRecord* const half = state.table().find(*filled);
      return state.current().number == *filled + 1 && state.current().parent == *base &&
             half != nullptr && !half->is_removed();
    });
    if (is_undone) change.hide({*filled});
    map.commit();
  }
  end_import();
}

struct Versions::Removal {
  std::vector<VersionInfo> removed;
  std::vector<uint32_t> numbers;
  std::vector<std::unique_ptr<HeldLock>> holds;
};

Versions::Removal Versions::begin_removal(const std::vector<std::string>& wanted) {
  Removal removal;
  for (const std::string& number_or_name : wanted) {
    if (number_or_name == std::to_string(volume_.current))
      fail(EBUSY, volume_.object,
           "version {} is current, and cannot be removed: roll back to another one first, or "
           "remove the volume",
           number_or_name);
    VersionInfo info = find(number_or_name);
    if (std::ranges::find(removal.numbers, info.number) != removal.numbers.end()) continue;
    removal.holds.push_back(volume_.try_lock(info.number, LockMode::kExclusive));
    if (!removal.holds.back())
      fail(EBUSY, volume_.object, "version {} is being read; disconnect that first",
           number_or_name);
    info.is_hidden = true;
    removal.numbers.push_back(info.number);
    removal.removed.push_back(std::move(info));
  }
  return removal;
}

std::vector<VersionInfo> Versions::remove(const std::vector<std::string>& wanted) {
  Removal removal;
  {
    VersionChange change = volume_.map().change_versions();
    removal = begin_removal(wanted);
    change.hide(removal.numbers);
  }
  // Who opens one of them after this finds it gone.
  volume_.map().commit();
  volume_.environment.wake();
  return std::move(removal.removed);
}

// --- removing for a while

std::vector<VersionInfo> Versions::put_aside(const std::vector<std::string>& wanted,
                                             int64_t until_ns) {
  const VersionChange change = volume_.map().change_versions();
  Removal removal = begin_removal(wanted);
  const RemovedVersion removed{.removed_ns = now_unix_ns(), .until_ns = until_ns};
  size_t count = 0;
  try {
    for (; count < removal.numbers.size(); ++count)
      put_removed_version(volume_.backend, volume_.uuid, removal.numbers[count], removed);
  } catch (...) {
    // Also the one that may be there and is not durable.
    for (size_t i = 0; i <= count; ++i)
      volume_.attempt(
          "a version that was not to be removed is kept as one that can be restored",
          [&] { drop_removed_version(volume_.backend, volume_.uuid, removal.numbers[i]); });
    throw;
  }
  return std::move(removal.removed);
}

VersionInfo Versions::restore(const std::string& number_or_name) {
  const VersionChange change = volume_.map().change_versions();
  const auto record = volume_.map().ask(&MapState::record_of, number_or_name);
  if (!record || record->is_hidden() ||
      !find_removed_versions(volume_.backend, volume_.uuid).contains(record->number))
    fail(ENOENT, volume_.object,
         "has no version '{}' that was removed and is kept; see 'tplstore version list {} "
         "--removed'",
         number_or_name, volume_.name);
  drop_removed_version(volume_.backend, volume_.uuid, record->number);
  return info_of(*record);
}

uint64_t Versions::remove_expired(int64_t now_ns) {
  std::vector<uint32_t> numbers, left;
  std::vector<std::unique_ptr<HeldLock>> holds;
  {
    VersionChange change = volume_.map().change_versions();
    for (const auto& [number, removed] : find_removed_versions(volume_.backend, volume_.uuid)) {
      const bool is_there = volume_.map().ask([number = number](const MapState& state) {
        const VersionRecord* const found = state.table().find(number);
        return found != nullptr && !found->is_removed();
      });
      if (!is_there) {
        left.push_back(number);
      } else if (removed.until_ns <= now_ns) {
        auto hold = volume_.try_lock(number, LockMode::kExclusive);
        if (!hold) continue;
        holds.push_back(std::move(hold));
        numbers.push_back(number);
      }
    }
    if (!numbers.empty()) change.hide(numbers);
    volume_.map().commit();
    for (const auto& gone : {numbers, left})
      for (const uint32_t number : gone)
        drop_removed_version(volume_.backend, volume_.uuid, number);
  }
  if (!numbers.empty()) volume_.environment.wake();
  return numbers.size();
}

}  // namespace tplstore
