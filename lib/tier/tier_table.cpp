// JSON with a checksum over its own text without that: the keys of an object are sorted, so a value
// has one text.
#include "tier/tier_table.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>

#include "base/text.h"

namespace tplstore {
namespace {

using nlohmann::json;

constexpr uint64_t kFormat = 1;
constexpr off_t kFileBytesMax = off_t{8}
                                << 20;  // 64 directories, now and before, 1,024 ranges each
constexpr size_t kPathBytesMax = 4095;
constexpr int kDepthMax = 8;
constexpr const char* kLockFile = "tier.lock";
constexpr const char* kFile = "tier";
constexpr const char* kNewFile = "tier.new";

[[noreturn]] void fail_damaged(const std::string& file, std::string_view problem) {
  fail(EIO, file,
       "damaged: {}; remove this file, then add its directories again with 'tplstore tier add'",
       problem);
}

void require(bool condition, const char* problem) {
  if (!condition) throw std::invalid_argument(problem);
}

std::string hex(uint64_t value) { return fmt::format("{:016x}", value); }

uint64_t hex_from(const json& value) {
  Hash128 both;
  require(parse_hash(value.get_ref<const std::string&>() + std::string(16, '0'), both),
          "a position has not 16 digits");
  return both.high;
}

uint64_t number_from(const json& value) {
  require(value.is_number_unsigned(), "a number is none");
  return value.get<uint64_t>();
}

Uuid uuid_from(const json& value) {
  Uuid uuid;
  require(parse_uuid(value.get_ref<const std::string&>(), uuid), "a uuid is none");
  return uuid;
}

std::string checksum_of(const json& table) { return hex(checksum(as_bytes(table.dump()))); }

json ranges_json(const Placement& placement, const Uuid& directory) {
  json ranges = json::array();
  for (const auto& [first, last] : placement.ranges_of(directory))
    ranges.push_back({hex(first), hex(last)});
  return ranges;
}

DirectoryRanges ranges_from(const Uuid& directory, const json& ranges) {
  DirectoryRanges result{directory, {}};
  require(ranges.is_array(), "ranges are no list");
  for (const json& range : ranges)
    result.ranges.push_back({hex_from(range.at(0)), hex_from(range.at(1))});
  return result;
}

Placement placement_from(std::span<const DirectoryRanges> ranges) {
  std::string problem;
  std::optional<Placement> placement = Placement::from_ranges(ranges, problem);
  if (!placement) throw std::invalid_argument(problem);
  return std::move(*placement);
}

json table_json(const TierTable& table, const Uuid& store, const Uuid& host) {
  json directories = json::array();
  for (const TierEntry& entry : table.directories)
    directories.push_back({{"uuid", entry.uuid.text()},
                           {"path", entry.path},
                           {"weight_bytes", entry.weight_bytes},
                           {"kind", entry.kind == TierEntry::Kind::kSsd ? "ssd" : "local"},
                           {"state", entry.is_leaving ? "leaving" : "in"},
                           {"ranges", ranges_json(table.placement, entry.uuid)}});
  json before;
  if (table.before)
    for (const TierEntry& entry : table.directories)
      if (json ranges = ranges_json(*table.before, entry.uuid); !ranges.empty())
        before[entry.uuid.text()] = std::move(ranges);
  json result = {{"format", kFormat},          {"store", store.text()},
                 {"host", host.text()},        {"generation", table.generation},
                 {"layouts", table.layouts},   {"directories", std::move(directories)},
                 {"before", std::move(before)}};
  result["checksum"] = checksum_of(result);
  return result;
}

bool is_usable_path(const std::string& path) {
  return path.starts_with('/') && path.size() <= kPathBytesMax && printable(path) == path;
}

bool is_weight(uint64_t bytes) {
  return bytes >= kTierWeightBytesMin && bytes <= kTierWeightBytesMax;
}

void check_weight(const std::string& path, uint64_t bytes) {
  if (!is_weight(bytes))
    fail(EINVAL, path, "its weight is {} bytes; a weight is 64 MiB at least, and 64 PiB at most",
         bytes);
}

TierEntry entry_from(const json& value) {
  const std::string kind = value.at("kind"), state = value.at("state");
  require(kind == "ssd" || kind == "local", "a kind is none");
  require(state == "in" || state == "leaving", "a state is none");
  TierEntry entry{
      uuid_from(value.at("uuid")), value.at("path"), number_from(value.at("weight_bytes")),
      kind == "ssd" ? TierEntry::Kind::kSsd : TierEntry::Kind::kLocal, state == "leaving"};
  require(is_usable_path(entry.path), "a path is none");
  require(is_weight(entry.weight_bytes), "a weight is out of bounds");
  return entry;
}

// Only what a table may say; anything else is thrown, as one of many kinds.
TierTable table_from(const json& value) {
  TierTable table;
  table.generation = number_from(value.at("generation"));
  table.layouts = number_from(value.at("layouts"));
  const json& directories = value.at("directories");
  require(directories.is_array() && directories.size() <= kTierDirectoriesMax,
          "its directories are too many, or no list");
  std::vector<DirectoryRanges> now, before;
  std::set<std::string> paths;
  for (const json& directory : directories) {
    const TierEntry entry = entry_from(directory);
    const bool is_new = table.find(entry.uuid) == nullptr && paths.insert(entry.path).second;
    require(is_new, "a directory is in it twice");
    table.directories.push_back(entry);
    now.push_back(ranges_from(entry.uuid, directory.at("ranges")));
    const bool has_part = entry.kind == TierEntry::Kind::kSsd && !entry.is_leaving;
    require(now.back().ranges.empty() != has_part, "a directory has ranges, or has none, unduly");
  }
  table.placement = placement_from(now);
  if (const json& ranges_before = value.at("before"); !ranges_before.is_null()) {
    for (const auto& [uuid, ranges] : ranges_before.items()) {
      before.push_back(ranges_from(uuid_from(uuid), ranges));
      const TierEntry* entry = table.find(before.back().directory);
      require(entry != nullptr && entry->kind == TierEntry::Kind::kSsd,
              "a range of before is of a directory that is not in it");
    }
    table.before = placement_from(before);
    require(!table.before->is_empty(), "there are no ranges of before");
  }
  return table;
}

std::optional<std::string> read_file(const std::string& file) {
  // Without O_NONBLOCK a FIFO put here by mistake would hang us.
  const FileDescriptor fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
  struct stat status {};
  if (!fd && errno == ENOENT) return std::nullopt;
  if (!fd || ::fstat(fd.get(), &status) != 0) fail_errno(errno, file, "opening the tier's table");
  if (!S_ISREG(status.st_mode) || status.st_size > kFileBytesMax)
    fail_damaged(file, fmt::format("it has {} bytes, or is no file", status.st_size));
  std::string text(static_cast<size_t>(status.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::read(fd.get(), text.data() + done, text.size() - done);
    if (count < 0) fail_errno(errno, file, "reading the tier's table");
    if (count == 0) fail_damaged(file, "it ends before its content does");
    done += static_cast<size_t>(count);
  }
  return text;
}

void write_whole(int fd, std::string_view text, const std::string& file) {
  while (!text.empty()) {
    const ssize_t count = ::write(fd, text.data(), text.size());
    if (count < 0) fail_errno(errno, file, "writing the tier's table");
    text.remove_prefix(static_cast<size_t>(count));
  }
}

}  // namespace

std::filesystem::path TierTable::default_folder(const Uuid& store) {
  return std::filesystem::path(kHostIdFile).parent_path() / store.text();
}

std::filesystem::path TierTable::file_in(const std::filesystem::path& folder) {
  return folder / kFile;
}

std::optional<TierTable> TierTable::load(const std::filesystem::path& file, const Uuid& store,
                                         const HostIdentity& host) {
  const std::optional<std::string> text = read_file(file);
  if (!text) return std::nullopt;
  try {
    const auto check_depth = [](int depth, json::parse_event_t, json&) {
      require(depth <= kDepthMax, "it is nested too deeply");
      return true;
    };
    json value = json::parse(*text, check_depth);
    const uint64_t format = number_from(value.at("format"));
    if (format > kFormat)
      fail(EINVAL, file.string(),
           "was written by a newer tplstore (format {}); use that one, or another file with "
           "--tier-state",
           format);
    const std::string kept = value.at("checksum");
    value.erase("checksum");
    require(format == kFormat && checksum_of(value) == kept, "it fails its checksum");
    if (const Uuid other = uuid_from(value.at("store")); other != store)
      fail(EINVAL, file.string(),
           "is the tier's table of store {}, and this is store {}; choose another folder with "
           "--tier-state",
           other.text(), store.text());
    if (const Uuid other = uuid_from(value.at("host")); !host.is_same(other, {}))
      fail(EINVAL, file.string(),
           "is the tier's table of another host ({}), whose directories are not here; choose "
           "another folder with --tier-state, or remove this file",
           other.text());
    return table_from(value);
  } catch (const json::exception&) {
    fail_damaged(file, "it is not the JSON that was written");
  } catch (const std::invalid_argument& problem) {
    fail_damaged(file, problem.what());
  }
}

const TierEntry* TierTable::find(const Uuid& uuid) const {
  const auto found = std::ranges::find(directories, uuid, &TierEntry::uuid);
  return found == directories.end() ? nullptr : &*found;
}

std::vector<Uuid> TierTable::places_of(const Hash128& segment) const {
  std::vector<Uuid> places;
  const auto add_place = [&](const Uuid* place) {
    if (place != nullptr && std::ranges::find(places, *place) == places.end())
      places.push_back(*place);
  };
  add_place(placement.at(segment.high));
  if (before) add_place(before->at(segment.high));
  for (const TierEntry& entry : directories)
    if (entry.kind == TierEntry::Kind::kLocal) add_place(&entry.uuid);
  return places;
}

// The ranges follow the entries.
void TierTable::place() {
  std::vector<DirectoryWeight> weights;
  for (const TierEntry& entry : directories)
    if (entry.kind == TierEntry::Kind::kSsd && !entry.is_leaving)
      weights.push_back({entry.uuid, entry.weight_bytes});
  auto [next, is_laid_out_anew] = placement.with_weights(weights);
  if (!before && !placement.is_empty() && next != placement) before = std::move(placement);
  placement = std::move(next);
  if (is_laid_out_anew) ++layouts;
}

// Those that are in the table and not leaving; EINVAL.
TierEntry& TierTable::entry_in(const Uuid& uuid) {
  const auto known = std::ranges::find(directories, uuid, &TierEntry::uuid);
  if (known == directories.end() || known->is_leaving)
    fail(EINVAL, known == directories.end() ? uuid.text() : known->path, "is not in the tier");
  return *known;
}

void TierTable::add(const TierEntry& entry) {
  if (!is_usable_path(entry.path))
    fail(EINVAL, entry.path,
         "a directory of the tier has an absolute path of at most {} bytes, in UTF-8 and without "
         "control characters",
         kPathBytesMax);
  check_weight(entry.path, entry.weight_bytes);
  const auto known = std::ranges::find(directories, entry.uuid, &TierEntry::uuid);
  for (const TierEntry& other : directories)
    if (other.path == entry.path && other.uuid != entry.uuid)
      fail(EINVAL, entry.path,
           "is a path of the tier already, where another directory was; take that out with "
           "'tplstore tier rm {}' and 'tplstore tier rebalance' first",
           other.uuid.text());
  if (known == directories.end()) {
    if (directories.size() == kTierDirectoriesMax)
      fail(EINVAL, entry.path, "the tier has {} directories already", kTierDirectoriesMax);
    directories.push_back(entry);
  } else {
    if (!known->is_leaving) fail(EINVAL, entry.path, "is in the tier already, as {}", known->path);
    if (known->kind != entry.kind)
      fail(EINVAL, entry.path,
           "is still leaving the tier, as one of the other kind; run 'tplstore tier rebalance' "
           "first");
    *known = entry;
  }
  place();
}

void TierTable::set_weight(const Uuid& uuid, uint64_t bytes) {
  TierEntry& entry = entry_in(uuid);
  check_weight(entry.path, bytes);
  entry.weight_bytes = bytes;
  place();
}

void TierTable::remove(const Uuid& uuid) {
  entry_in(uuid).is_leaving = true;
  place();
}

void TierTable::finish_move() {
  std::erase_if(directories, [](const TierEntry& entry) { return entry.is_leaving; });
  before.reset();
}

TierTableChange::TierTableChange(const std::filesystem::path& folder, const Uuid& store,
                                 const HostIdentity& host)
    : file_(TierTable::file_in(folder)), store_(store), host_(host) {
  std::error_code error;
  const bool is_made = std::filesystem::create_directories(folder, error);
  folder_.reset(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder_)
    fail_errno(error ? error.value() : errno, folder.string(),
               "making the folder of the tier's table, which --tier-state can choose");
  if (is_made) give_to_owner_around();
  lock_.reset(::openat(folder_.get(), kLockFile, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (lock_) (void)give_to_owner_of(folder_.get(), lock_.get());
  struct flock whole {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (!lock_ || ::fcntl(lock_.get(), F_OFD_SETLK, &whole) != 0) {
    if (lock_ && (errno == EAGAIN || errno == EACCES))
      fail(EBUSY, file_.string(), "another tplstore is changing it; try again");
    fail_errno(errno, file_.string(), "locking the tier's table");
  }
  if (std::optional<TierTable> loaded = TierTable::load(file_, store, host))
    table = std::move(*loaded);
}

// What root makes is for the server's user, whose folder it is in.
void TierTableChange::give_to_owner_around() {
  const FileDescriptor around(::openat(folder_.get(), "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (around) (void)give_to_owner_of(around.get(), folder_.get());
}

void TierTableChange::save() {
  ++table.generation;
  const std::string text = table_json(table, store_, host_.host_id).dump() + "\n";
  // Only the lock's holder makes it, so one that a crash has left is nobody's.
  const FileDescriptor fd(::openat(folder_.get(), kNewFile,
                                   O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!fd) fail_errno(errno, file_.string(), "writing the tier's table");
  (void)give_to_owner_of(folder_.get(), fd.get());
  write_whole(fd.get(), text, file_);
  if (::fsync(fd.get()) != 0 || ::renameat(folder_.get(), kNewFile, folder_.get(), kFile) != 0 ||
      ::fsync(folder_.get()) != 0)
    fail_errno(errno, file_.string(), "replacing the tier's table");
}

}  // namespace tplstore
