// The walk over the map goes from region to region, and the data files go along with it: so memory
// does not grow with the volume, and no file is asked about regions where it has nothing.
#include "volume/volume_check.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/names.h"
#include "base/units.h"
#include "lock/lock_check.h"
#include "map/map_check.h"
#include "template/manifest.h"
#include "volume/data_files.h"
#include "volume/forks.h"

namespace tplstore {
namespace {

constexpr uint64_t kReadBytes = 1 << 20;
constexpr size_t kLostRangesMax = 1000;  // of a file, that are told of one by one

// What is known of one of the files that blocks of the volume are in.
struct CheckedFile {
  std::string name;
  uint32_t version = 0;
  bool is_own = true;
  bool finds_lone = false;  // cells that nothing has are of interest
  std::unique_ptr<Object> object;
  uint64_t size_bytes = 0;
  uint64_t lone_bytes = 0;
  uint64_t hole_blocks = 0;
  uint64_t lost_blocks = 0;  // beyond its end, or all
  std::vector<BlockRange> lost;
};

class DataFileCheck {
 public:
  DataFileCheck(Backend& backend, const std::string& folder, MapCheck& map, Findings& findings,
                bool gives_back)
      : backend_(backend),
        folder_(folder),
        map_(map),
        findings_(findings),
        gives_back_(gives_back),
        sources_(map.map().ask([](const MapState& state) { return state.table().sources; })) {}

  // Before the walk. Whether anything keeps the volume from being opened for writing, which would
  // remove what may be needed.
  void look_at_folder(const std::vector<std::string>& parts);
  void look_at(uint32_t region, const std::vector<FreeRange>& cells);
  // Behind it.
  void finish();

 private:
  struct Next {
    uint64_t region;
    CheckedFile* file;
    bool operator<(const Next& other) const {
      return region != other.region ? region < other.region : file->version < other.file->version;
    }
  };

  uint32_t base() const { return sources_.empty() ? 0 : sources_.back().last; }
  bool flattens() const {
    return map_.map().ask([](const MapState& state) { return state.table().flattens; });
  }
  std::string name_of(uint32_t version) const;
  CheckedFile& file(uint32_t version);
  void open(CheckedFile& file);
  void stray(uint32_t version);
  void look_at_file(CheckedFile& file, uint64_t region, std::span<const FreeRange> cells);
  void look_for_lone(uint64_t before_region);
  void queue(CheckedFile& file, uint64_t offset);
  void lone(CheckedFile& file, uint64_t begin, uint64_t end);

  Backend& backend_;
  const std::string folder_;
  MapCheck& map_;
  Findings& findings_;
  const bool gives_back_;
  const std::vector<SourceRow> sources_;
  std::map<uint32_t, CheckedFile> files_;
  std::set<Next> next_;  // regions in which files that are looked through have data next
  ByteVector buffer_;
};

std::string DataFileCheck::name_of(uint32_t version) const {
  for (const SourceRow& row : sources_)
    if (version <= row.last) return DataFiles::name_of(volume_folder(row.volume), version);
  return DataFiles::name_of(folder_, version);
}

void DataFileCheck::open(CheckedFile& file) {
  try {
    const bool writes = gives_back_ && file.is_own && file.finds_lone;
    file.object = backend_.open(file.name, writes ? Access::kWrite : Access::kRead, Purpose::kData);
    file.size_bytes = file.object->size_bytes();
  } catch (const Error& error) {
    file.object.reset();
    // One that is missing is told of when something is in it.
    if (error.code() != ENOENT) findings_.fault(error);
  }
}

CheckedFile& DataFileCheck::file(uint32_t version) {
  const auto [at, is_new] = files_.try_emplace(version);
  CheckedFile& file = at->second;
  if (is_new) {
    file.version = version;
    file.name = name_of(version);
    file.is_own = version > base();
    open(file);
  }
  return file;
}

// --- which files there are

void DataFileCheck::look_at_folder(const std::vector<std::string>& parts) {
  constexpr std::string_view kPrefix = "data.";
  const bool was_closed = map_.was_closed();
  const std::vector<uint32_t> unswept = map_.map().ask(&MapState::unswept_versions);
  const uint32_t first_current = map_.map().recovery().first_current;
  for (const std::string& part : parts) {
    if (!part.starts_with(kPrefix)) continue;
    const auto version = parse_version_number(std::string_view(part).substr(kPrefix.size()));
    if (!version || *version == 0) continue;
    if (*version <= base()) {
      if (flattens()) continue;
      stray(*version);
    } else if (*version > map_.current().number) {
      stray(*version);
    } else if (!map_.is_known_source(*version)) {
      if (!map_.is_free_file(*version)) stray(*version);
    } else if (std::ranges::find(unswept, *version) == unswept.end() &&
               (was_closed || *version < first_current)) {
      // What a crash has left in the others is looked for when the volume is opened.
      CheckedFile& one = files_[*version];
      one.version = *version;
      one.name = name_of(*version);
      one.finds_lone = true;
      open(one);
      if (one.object) queue(one, 0);
    }
  }
}

// A file of a version that nobody knows.
void DataFileCheck::stray(uint32_t version) {
  const std::string name = DataFiles::name_of(folder_, version);
  try {
    const auto object = backend_.open(name, Access::kRead, Purpose::kData);
    const bool is_later = version > map_.current().number;
    if (is_later && !map_.was_closed()) return;  // left by a crash; opening removes it
    if (is_later && object->find_data(0)) {
      // An older map that was put back looks like this.
      findings_.fault(name,
                      fmt::format("has data, though the last version is {}: if an older 'map' "
                                  "was put here, put the newer one back; else remove the file",
                                  map_.current().number));
      return;
    }
    if (gives_back_) {
      backend_.remove(name);
      return;
    }
    findings_.fault(name, "is of no version of the volume", Repair::kCells);
  } catch (const Error& error) {
    if (error.code() != ENOENT) findings_.fault(error);
  }
}

// --- what is in them

void DataFileCheck::queue(CheckedFile& file, uint64_t offset) {
  try {
    if (const auto data = file.object->find_data(offset))
      next_.insert({data->offset / kRegionBytes, &file});
  } catch (const Error& error) {
    findings_.fault(error);
  }
}

// Files that have data in regions before this one, where no version has cells.
void DataFileCheck::look_for_lone(uint64_t before_region) {
  while (!next_.empty() && next_.begin()->region < before_region) {
    const Next next = *next_.begin();
    next_.erase(next_.begin());
    look_at_file(*next.file, next.region, {});
    queue(*next.file, (next.region + 1) * kRegionBytes);
  }
}

void DataFileCheck::look_at(uint32_t region, const std::vector<FreeRange>& cells) {
  look_for_lone(region);
  for (size_t i = 0; i < cells.size();) {
    const size_t begin = i;
    while (i < cells.size() && cells[i].source == cells[begin].source) ++i;
    CheckedFile& one = file(cells[begin].source);
    look_at_file(one, region, std::span(cells).subspan(begin, i - begin));
    if (next_.erase({region, &one}) > 0) queue(one, (region + 1) * kRegionBytes);
  }
  look_for_lone(uint64_t{region} + 1);
}

// `cells` are those of the file that versions have in the region.
void DataFileCheck::look_at_file(CheckedFile& file, uint64_t region,
                                 std::span<const FreeRange> cells) {
  const uint64_t file_blocks = file.object ? file.size_bytes / kBlockBytes : 0;
  for (const FreeRange& range : cells) {
    const uint64_t first = std::max(range.first, file_blocks), end = range.first + range.count;
    if (first >= end) continue;
    file.lost_blocks += end - first;
    if (file.lost.size() < kLostRangesMax) file.lost.push_back({first, end - first});
  }
  if (!file.object) return;
  try {
    const uint64_t region_end = (region + 1) * kRegionBytes;
    uint64_t at = region * kRegionBytes;  // up to here all is known
    size_t next_cells = 0;
    uint64_t cell_bytes = 0, found_bytes = 0;
    for (const FreeRange& range : cells) cell_bytes += uint64_t{range.count} * kBlockBytes;
    while (at < region_end) {
      const auto data = file.object->find_data(at);
      if (!data || data->offset >= region_end) break;
      uint64_t begin = std::max(at, round_down(data->offset, kBlockBytes));
      const uint64_t end = std::min(region_end, round_up(data->offset + data->length, kBlockBytes));
      // What of it is between cells.
      while (begin < end) {
        while (next_cells < cells.size() &&
               (cells[next_cells].first + cells[next_cells].count) * kBlockBytes <= begin)
          ++next_cells;
        const uint64_t cells_begin =
            next_cells == cells.size() ? end : cells[next_cells].first * kBlockBytes;
        if (cells_begin > begin) {
          const uint64_t stop = std::min(end, cells_begin);
          if (file.finds_lone) lone(file, begin, stop);
          begin = stop;
          continue;
        }
        const uint64_t cells_end =
            (cells[next_cells].first + cells[next_cells].count) * kBlockBytes;
        found_bytes += std::min(end, cells_end) - begin;
        begin = std::min(end, cells_end);
      }
      at = end;
    }
    file.hole_blocks += (cell_bytes - std::min(cell_bytes, found_bytes)) / kBlockBytes;
  } catch (const Error& error) {
    findings_.fault(error);
    file.finds_lone = false;
  }
}

// What occupies space and no version has. Storage that gives out space in larger pieces than blocks
// shows more than was written: what was punched of those reads as zeroes.
void DataFileCheck::lone(CheckedFile& file, uint64_t begin, uint64_t end) {
  end = std::min(end, round_down(file.size_bytes, kBlockBytes));
  buffer_.resize(kReadBytes);
  while (begin < end) {
    const MutableBytes piece = MutableBytes(buffer_).first(std::min(kReadBytes, end - begin));
    file.object->read(begin, piece);
    uint64_t lone_begin = 0, lone_end = 0;
    for (uint64_t at = 0; at < piece.size(); at += kBlockBytes) {
      if (is_zero(piece.subspan(at, kBlockBytes))) continue;
      if (lone_end == 0) lone_begin = at;
      lone_end = at + kBlockBytes;
      file.lone_bytes += kBlockBytes;
    }
    if (gives_back_ && lone_end > 0) file.object->punch(begin + lone_begin, lone_end - lone_begin);
    begin += piece.size();
  }
}

void DataFileCheck::finish() {
  if (!map_.has_unreadable()) look_for_lone(UINT64_MAX);
  for (auto& [version, file] : files_) {
    if (gives_back_) {
      if (file.lone_bytes > 0) file.object->sync();
      continue;
    }
    if (file.lost_blocks > 0) {
      const std::string lost = fmt::format("{} of the volume are lost; restore them from a backup",
                                           format_size(file.lost_blocks * kBlockBytes));
      Finding& fault = findings_.fault(
          file.name, file.object
                         ? fmt::format("was cut short, to {} bytes: {}", file.size_bytes, lost)
                         : fmt::format("is missing: {}", lost));
      for (const BlockRange& range : file.lost) map_.add_lost(fault, version, range);
    } else if (file.hole_blocks > 0 && file.is_own) {
      findings_.note(file.name,
                     fmt::format("{} that versions have occupy no space, and read as zeroes: that "
                                 "is so where the store was copied, or else they are lost",
                                 format_size(file.hole_blocks * kBlockBytes)));
    }
    if (file.lone_bytes > 0)
      findings_.fault(file.name,
                      fmt::format("{} in it are of no version", format_size(file.lone_bytes)),
                      Repair::kCells);
  }
}

// --- a volume as a whole

class VolumeCheck {
 public:
  VolumeCheck(Backend& backend, const Uuid& volume, const std::string& name, Findings& findings)
      : backend_(backend),
        volume_(volume),
        folder_(volume_folder(volume)),
        name_(name),
        findings_(findings) {}

  void run();
  // What would show that somebody has had it.
  std::vector<ByteVector> state() const;
  bool was_open() const { return is_open_; }

 private:
  bool is_locked() const;
  void check_names(const std::vector<std::string>& parts);
  void check_against_header(const VolumeHeader& header, MapCheck& map);
  void check_template(const VolumeHeader& header);
  void check_parent(const VolumeHeader& header, MapCheck& map);
  void check_forks(MapCheck& map);
  void check_logs(const std::vector<std::string>& parts);

  Backend& backend_;
  const Uuid volume_;
  const std::string folder_;
  const std::string name_;
  Findings& findings_;
  bool is_open_ = false;
};

bool VolumeCheck::is_locked() const {
  try {
    return backend_.is_locked(lock_name(folder_));
  } catch (const Error&) {
    return false;  // told elsewhere
  }
}

std::vector<ByteVector> VolumeCheck::state() const {
  std::vector<ByteVector> state;
  for (const char* part : {"header", "map"}) {
    try {
      state.push_back(
          backend_.get(fmt::format("{}/{}", folder_, part), 4 * kSlotBytes).value_or(ByteVector()));
    } catch (const Error&) {
      state.emplace_back();
    }
  }
  return state;
}

void VolumeCheck::run() {
  is_open_ = is_locked();
  const std::vector<std::string> parts = backend_.list(folder_);
  check_names(parts);
  const std::optional<VolumeHeader> header = check_lock(backend_, folder_, volume_, findings_);
  if (header) check_template(*header);
  MapCheck map(backend_, folder_, volume_, name_, findings_);
  if (!map.is_readable()) return;
  if (is_open_) {
    map.run([](uint32_t, const std::vector<FreeRange>&) {});
    findings_.note("", "is open at a server: what is in its data files was not looked at");
    return;
  }
  if (map.was_closed())
    check_logs(parts);
  else  // what a crash leaves in the folder is no fault then
    findings_.note("",
                   "was not closed: what was flushed is there, and the next opening recovers it");
  if (header) {
    check_against_header(*header, map);
    check_parent(*header, map);
  }
  check_forks(map);
  DataFileCheck files(backend_, folder_, map, findings_, false);
  files.look_at_folder(parts);
  map.run(
      [&](uint32_t region, const std::vector<FreeRange>& cells) { files.look_at(region, cells); });
  files.finish();
}

void VolumeCheck::check_names(const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    const size_t dot = part.find('.');
    const std::string kind = part.substr(0, dot);
    const bool is_single = kind == "header" || kind == "lock" || kind == "readers" ||
                           kind == "map" || kind == "rename" || kind == "import";
    const bool is_numbered =
        kind == "map" || kind == "data" || kind == "owner" || kind == "boot" || kind == "pack";
    const bool is_number = dot != std::string::npos && dot + 1 < part.size() &&
                           part.find_first_not_of("0123456789", dot + 1) == std::string::npos;
    if (dot == std::string::npos ? is_single : is_numbered && is_number) continue;
    findings_.note(folder_ + "/" + part, "is unknown, and was not looked at");
  }
}

void VolumeCheck::check_template(const VolumeHeader& header) {
  const std::string name = template_of(header);
  if (name.empty()) return;
  try {
    const auto found = load_manifest_uuid(backend_, name);
    if (!found)
      findings_.fault(header_name(folder_),
                      fmt::format("its template {} is missing: put it back, or what the volume has "
                                  "not written itself is lost",
                                  name));
    else if (*found != header.template_uuid)
      findings_.fault(header_name(folder_),
                      fmt::format("its template {} is not the one it was made from: put that one "
                                  "back",
                                  name));
  } catch (const Error&) {
    // The template's own check says it.
  }
}

void VolumeCheck::check_against_header(const VolumeHeader& header, MapCheck& map) {
  const uint64_t size_bytes = map.current().size_bytes;
  if (disk_size(header) != size_bytes)
    findings_.fault(header_name(folder_),
                    fmt::format("says that the volume has {} bytes, and its map {}",
                                disk_size(header), size_bytes),
                    Repair::kReopen);
}

// Logs of other generations are what an interrupted compaction leaves.
void VolumeCheck::check_logs(const std::vector<std::string>& parts) {
  std::string needed;
  try {
    const MapPointerObject pointer(backend_, folder_, volume_, Access::kRead);
    needed = MapLog::object_name(folder_, pointer.value().generation);
  } catch (const Error&) {
    return;
  }
  for (const std::string& part : parts) {
    const std::string object = folder_ + "/" + part;
    if (part.starts_with("map.") && object != needed)
      findings_.fault(object, "is a map log that does not count: a compaction was interrupted",
                      Repair::kReopen);
  }
}

// --- forks

void VolumeCheck::check_parent(const VolumeHeader& header, MapCheck& map) {
  const auto sources = map.map().ask([](const MapState& state) { return state.table().sources; });
  if (sources.empty()) {
    if (!header.parent.is_nil())
      findings_.note(header_name(folder_),
                     "names a parent that the volume needs no more: flattening it was interrupted, "
                     "and 'tplstore volume flatten' ends that");
    return;
  }
  const SourceRow& last = sources.back();
  if (header.parent != last.volume || header.parent_version != last.last) {
    findings_.fault(
        header_name(folder_),
        fmt::format("says that the volume was forked from {}@{}, and its map {}@{}",
                    header.parent.text(), header.parent_version, last.volume.text(), last.last));
    return;
  }
  const std::string folder = volume_folder(header.parent);
  if (backend_.list(folder).empty()) {
    findings_.fault(
        folder, fmt::format("is missing, and the volume was forked from its version {}: what it "
                            "shares with that is lost",
                            header.parent_version));
    return;
  }
  try {
    const auto parent = VolumeMap::open(backend_, folder, header.parent, Access::kRead);
    const std::vector<Pin> pins = parent->pins();
    if (std::ranges::find(pins, volume_, &Pin::fork) != pins.end()) return;
    const bool is_there =
        parent->ask([&](const MapState& state) { return state.find(header.parent_version); });
    if (!is_there)
      findings_.fault(folder,
                      fmt::format("its version {}, which the volume was forked from, is not there "
                                  "any more: what they shared may be lost",
                                  header.parent_version));
    else
      findings_.fault(folder,
                      fmt::format("does not keep its version {} for the volume, which was forked "
                                  "from it",
                                  header.parent_version),
                      Repair::kPin);
  } catch (const Error&) {
    // The parent's own check says it.
  }
}

void VolumeCheck::check_forks(MapCheck& map) {
  for (const Pin& pin : map.map().pins())
    if (!is_fork_of(backend_, pin.fork, volume_))
      findings_.fault(folder_ + "/map",
                      fmt::format("keeps version {} for a fork that is not there, {}", pin.version,
                                  pin.fork.text()),
                      Repair::kReopen);
}

}  // namespace

void check_volume(Backend& backend, const Uuid& volume, const std::string& name,
                  Findings& findings) {
  const size_t before = findings.count();
  const uint64_t faults_before = findings.faults();
  VolumeCheck check(backend, volume, name, findings);
  const auto state = check.state();
  try {
    check.run();
  } catch (const Error& error) {
    findings.fault(error);
  }
  // One that is open changes all the time, and what was read while it did may not belong together.
  const bool is_doubtful = !check.was_open() || findings.faults() > faults_before;
  if (!is_doubtful || check.state() == state) return;
  findings.drop_from(before);
  findings.note("", "was opened, or changed, while it was looked at: nothing is known of it");
}

void give_back_lone_cells(Backend& backend, const Uuid& volume, const std::string& name) {
  const std::string folder = volume_folder(volume), object = fmt::format("volume {}", name);
  if (backend.kind().reach != StorageKind::Reach::kOneHost)
    fail(EBUSY, object, "hosts may share the storage, so that another one may open it meanwhile");
  const auto lock = backend.try_lock(lock_name(folder), LockMode::kExclusive);
  if (!lock) fail(EBUSY, object, "is in use");
  if (read_header(backend, folder, volume).is_taken != 0)
    fail(EBUSY, object, "was not closed: open it once, which recovers it");
  Findings ignored;
  MapCheck map(backend, folder, volume, name, ignored);
  if (!map.is_readable()) fail(EIO, object, "its map cannot be read");
  if (!map.was_closed()) fail(EBUSY, object, "was not closed: open it once, which recovers it");
  // First whether all of it can be read: what cannot may have what would be given back.
  map.run([](uint32_t, const std::vector<FreeRange>&) {});
  if (ignored.faults() > 0) fail(EIO, object, "its map is damaged: {}", ignored.all()[0].problem);
  DataFileCheck files(backend, folder, map, ignored, true);
  files.look_at_folder(backend.list(folder));
  map.run(
      [&](uint32_t region, const std::vector<FreeRange>& cells) { files.look_at(region, cells); });
  files.finish();
  backend.sync_folder(folder);
}

}  // namespace tplstore
