#include "map/volume_map.h"

#include <algorithm>
#include <cerrno>

#include "base/names.h"
#include "base/units.h"

namespace tplstore {
namespace {

// Updates that nobody flushes are committed when they are so many, to bound memory and recovery.
constexpr uint64_t kPendingBytesMax = 8 << 20;
constexpr uint64_t kCheckpointBytes = 16 << 20;
constexpr uint64_t kCheckpointLeaves = 4096;
constexpr uint64_t kCompactionBytesMin = 1 << 20;
constexpr uint64_t kSmallBytes = 4 << 20;
constexpr uint32_t kEvictPages = 64;

}  // namespace

VolumeMap::VolumeMap(Backend& backend, std::string folder, const Uuid& volume, Access access)
    : backend_(backend), folder_(std::move(folder)), volume_(volume), access_(access) {}

// --- what is there

uint32_t VolumeMap::current() const {
  const std::shared_lock guard(mutex_);
  return current_.number;
}

uint64_t VolumeMap::size_bytes() const {
  const std::shared_lock guard(mutex_);
  return current_.size_bytes;
}

uint64_t VolumeMap::size_of(uint32_t version) const {
  const std::shared_lock guard(mutex_);
  const VersionRecord* found = table_.find(version);
  return found == nullptr ? 0 : found->size_bytes;
}

bool VolumeMap::is_flattening() const {
  const std::shared_lock guard(mutex_);
  return table_.flattens;
}

VersionRecord VolumeMap::current_record() const {
  const std::shared_lock guard(mutex_);
  return current_;
}

namespace {

VersionRecord without_root(const VersionRecord& record) {
  VersionRecord copy = record;
  copy.root = NodeRef();
  return copy;
}

}  // namespace

std::vector<VersionRecord> VolumeMap::versions() const {
  const std::shared_lock guard(mutex_);
  std::vector<VersionRecord> list;
  for (const auto& [number, version] : table_.all()) list.push_back(without_root(version));
  return list;
}

std::optional<VersionRecord> VolumeMap::version(uint32_t number) const {
  const std::shared_lock guard(mutex_);
  const VersionRecord* found = table_.find(number);
  if (found == nullptr) return std::nullopt;
  return without_root(*found);
}

std::optional<VersionRecord> VolumeMap::version(const std::string& number_or_name) const {
  if (const auto number = parse_version_number(number_or_name)) return version(*number);
  const std::shared_lock guard(mutex_);
  const VersionRecord* found = table_.find_name(number_or_name);
  if (found == nullptr) return std::nullopt;
  return without_root(*found);
}

NodeRef* VolumeMap::root_of(uint32_t version) {
  if (version == 0 || version == current_.number) return &root_;
  const auto it = table_.all().find(version);
  return it == table_.all().end() ? nullptr : &it->second.root;
}

VersionRecord* VolumeMap::record_of(uint32_t version) {
  return version == current_.number ? &current_ : table_.find(version);
}

void VolumeMap::load(const MissingNode& missing, uint32_t version,
                     const std::shared_ptr<MapLog>& log) {
  NodeRef node;
  try {
    node = NodeRef::adopt(read_node(*log, missing));
  } catch (const Error&) {
    // When the log was compacted away meanwhile, what is missing is found in the new one.
    const std::shared_lock guard(mutex_);
    if (log != log_) return;
    throw;
  }
  const std::unique_lock guard(mutex_);
  ++stats_.loads;
  // An address means something in its own log only.
  NodeRef* root = root_of(version);
  if (log != log_ || root == nullptr) return;
  Node* loaded = node.node();
  node.forget();
  install(*root, missing, loaded);
}

void VolumeMap::find(uint32_t version, uint64_t first, uint64_t count, RunList& runs) {
  while (count > 0) {
    const uint64_t region = first / kRegionBlocks;
    const auto in_region = static_cast<uint32_t>(first % kRegionBlocks);
    const auto part = static_cast<uint32_t>(std::min<uint64_t>(count, kRegionBlocks - in_region));
    while (true) {
      std::optional<MissingNode> missing;
      std::shared_ptr<MapLog> log;
      {
        const std::shared_lock guard(mutex_);
        const NodeRef* root = root_of(version);
        if (root == nullptr) fail(ENOENT, fmt::format("version {}", version), "is not there");
        missing = tplstore::find(*root, region, in_region, part, runs);
        if (missing) log = log_;
      }
      if (!missing) break;
      load(*missing, version, log);
    }
    first += part;
    count -= part;
  }
}

std::vector<uint32_t> VolumeMap::unswept_versions() const {
  const std::shared_lock guard(mutex_);
  std::vector<uint32_t> numbers;
  for (const auto& [number, version] : table_.all())
    if ((version.flags & kVersionUnswept) != 0) numbers.push_back(number);
  if ((current_.flags & kVersionUnswept) != 0) numbers.push_back(current_.number);
  return numbers;
}

void VolumeMap::note_swept(uint32_t version) {
  const std::unique_lock guard(mutex_);
  VersionRecord* record = record_of(version);
  if (record == nullptr) return;
  record->flags &= ~kVersionUnswept;
  if (record != &current_) dirty_groups_.insert(VersionTable::group_of(version));
}

std::vector<SourceRow> VolumeMap::sources() const {
  const std::shared_lock guard(mutex_);
  return table_.sources;
}

std::map<uint32_t, uint64_t> VolumeMap::removed_files() const {
  const std::shared_lock guard(mutex_);
  return table_.removed_files;
}

namespace {

// Calls visit for the runs of a region in which two arrays differ.
void visit_difference(uint64_t region, uint32_t first, uint32_t count,
                      const std::vector<Interval>& from, const std::vector<Interval>& to,
                      const std::function<void(const Run&, const Run&)>& visit) {
  RunList runs[2];
  find_runs(from, region * kRegionBlocks, first, count, runs[0]);
  find_runs(to, region * kRegionBlocks, first, count, runs[1]);
  uint64_t at = region * kRegionBlocks + first;
  for (size_t i = 0, j = 0; i < runs[0].size() && j < runs[1].size();) {
    const uint64_t ends[] = {runs[0][i].first + runs[0][i].count,
                             runs[1][j].first + runs[1][j].count};
    const uint64_t end = std::min(ends[0], ends[1]);
    if (runs[0][i].source != runs[1][j].source)
      visit({at, end - at, runs[0][i].source}, {at, end - at, runs[1][j].source});
    at = end;
    if (ends[0] == end) ++i;
    if (ends[1] == end) ++j;
  }
}

}  // namespace

void VolumeMap::find_difference(uint32_t from, uint32_t to, uint64_t first, uint64_t count,
                                const std::function<void(const Run&, const Run&)>& visit) {
  if (count == 0) return;
  const std::lock_guard maintenance(maintenance_mutex_);
  NodeRef roots[2];
  std::shared_ptr<MapLog> log;
  {
    const std::unique_lock guard(mutex_);
    for (int i = 0; i < 2; ++i) {
      const NodeRef* root = root_of(i == 0 ? from : to);
      if (root == nullptr)
        fail(ENOENT, fmt::format("version {}", i == 0 ? from : to), "is not there");
      roots[i] = *root;
    }
    log = log_;
  }
  const uint64_t end = first + count;
  const auto begin_region = static_cast<uint32_t>(first / kRegionBlocks);
  const auto end_region = static_cast<uint32_t>((end - 1) / kRegionBlocks + 1);
  TreeReader reader(*log, mutex_);
  reader.walk_difference(
      roots[0], roots[1], begin_region, end_region,
      [&](uint32_t region, const std::vector<Interval>& a, const std::vector<Interval>& b) {
        const uint64_t base = uint64_t{region} * kRegionBlocks;
        const uint64_t begin = std::max(first, base);
        const uint64_t stop = std::min(end, base + kRegionBlocks);
        visit_difference(region, static_cast<uint32_t>(begin - base),
                         static_cast<uint32_t>(stop - begin), a, b, visit);
      });
}

// --- changing current

uint64_t LogReservation::records_for(uint64_t first, uint64_t count) {
  return count == 0 ? 0 : (first + count - 1) / kRegionBlocks - first / kRegionBlocks + 1;
}

LogReservation::LogReservation(VolumeMap& map, uint64_t records, Reserve draws_on)
    : map_(map), unused_(records) {
  map.check_usable();
  // The lock keeps the log from being exchanged meanwhile.
  const std::shared_lock guard(map.mutex_);
  map.log_->reserve(records * kRecordBytes, draws_on);
}

LogReservation::~LogReservation() {
  if (unused_ == 0) return;
  const std::shared_lock guard(map_.mutex_);
  map_.log_->unreserve(unused_ * kRecordBytes);
}

void LogReservation::use(uint64_t records) {
  ensure(unused_ >= records, "a change has its records reserved");
  unused_ -= records;
}

bool VolumeMap::frees_cells(const RunList& runs) const {
  const std::shared_lock guard(mutex_);
  for (size_t i = 0; i < runs.size(); ++i)
    if (runs[i].source != kSourceUnmapped && runs[i].source > floor_) return true;
  return false;
}

void VolumeMap::assign(uint64_t first, uint64_t count, uint32_t source, LogReservation& reserved) {
  while (count > 0) {
    const auto in_region = static_cast<uint32_t>(first % kRegionBlocks);
    const auto part = static_cast<uint32_t>(std::min<uint64_t>(count, kRegionBlocks - in_region));
    ensure(reserved.unused_ > 0, "an assignment has its records reserved");
    assign_in_region(first / kRegionBlocks, in_region, part, source, false);
    reserved.use(1);
    first += part;
    count -= part;
  }
}

void VolumeMap::assign_in_region(uint64_t region, uint32_t first, uint32_t count, uint32_t source,
                                 bool is_replay) {
  while (true) {
    std::optional<MissingNode> missing;
    std::shared_ptr<MapLog> log;
    {
      const std::unique_lock guard(mutex_);
      // A leaf must be looked into even if all of it is replaced: what becomes of the cells it
      // leads to depends on it.
      RunList before;
      missing = tplstore::find(root_, region, first, count, before);
      if (!missing) {
        if (before.size() == 1 && before[0].source == source) {
          if (!is_replay) log_->unreserve(kRecordBytes);
          return;
        }
        // What may fail comes first, so that nothing is half done.
        free_.make_room(before.size());
        if (!is_replay) make_pending_room(1);
        AssignEffect effect;
        tplstore::assign(root_, region, first, count, source, current_.number, effect);
        account(before, source, count);
        dirty_leaves_ += effect.leaves_dirtied;
        compaction_leaves_ += effect.leaves_dirtied;
        live_bytes_ -= std::min(live_bytes_, effect.superseded_bytes);
        if (!is_replay) put_pending_update(region * kRegionBlocks + first, count, source);
        return;
      }
      log = log_;
    }
    load(*missing, 0, log);
  }
}

// Keeps the books of cells: what the blocks came from before, current does not map any more. There
// is room for as many free ranges.
void VolumeMap::account(const RunList& before, uint32_t source, uint32_t count) {
  for (size_t i = 0; i < before.size(); ++i) {
    const Run& run = before[i];
    if (run.source == kSourceZero || run.source == kSourceUnmapped) continue;
    if (run.source == current_.number) {
      current_.file_blocks -= run.count;
      current_.own_blocks -= run.count;
      continue;
    }
    if (run.source <= table_.base()) current_.foreign_blocks -= run.count;
    if (run.source > floor_) {
      current_.own_blocks -= run.count;
      release(run.source, run.first, static_cast<uint32_t>(run.count));
    } else if (parent_ != nullptr && run.source > parent_floor_) {
      parent_->own_blocks += run.count;
      is_parent_dirty_ = true;
    }
  }
  if (source != current_.number) return;
  current_.file_blocks += count;
  current_.own_blocks += count;
}

void VolumeMap::refresh_floor() {
  if (is_parent_dirty_) dirty_groups_.insert(parent_group_);
  floor_ = table_.floor_of(current_);
  parent_ = table_.find(current_.parent);
  parent_group_ = VersionTable::group_of(current_.parent);
  parent_floor_ = parent_ == nullptr ? 0 : table_.floor_of(*parent_);
  is_parent_dirty_ = false;
}

void VolumeMap::make_pending_room(uint64_t records) {
  const size_t needed = pending_.size() + records * kRecordBytes;
  if (needed > pending_.capacity()) pending_.reserve(std::max(needed, 2 * pending_.capacity()));
}

// Appends a record to the pending ones, under the lock; there is room for it.
void VolumeMap::put_record(const RecordHeader& record, Bytes body, uint64_t reserved_records) {
  const Bytes header = bytes_of(record);
  pending_.insert(pending_.end(), header.begin(), header.end());
  pending_.insert(pending_.end(), body.begin(), body.end());
  pending_.resize(round_up(pending_.size(), kRecordBytes));
  pending_reserved_ += reserved_records * kRecordBytes;
  pending_bytes_.store(pending_.size(), std::memory_order_relaxed);
  last_pending_is_update_ = false;
}

void VolumeMap::put_pending_update(uint64_t first, uint32_t count, uint32_t source) {
  if (pending_.size() >= kRecordBytes) {
    // Writes that go on where the last one ended make one record.
    RecordHeader last;
    std::memcpy(&last, pending_.data() + pending_.size() - kRecordBytes, kRecordBytes);
    if (last_pending_is_update_ && last.source == source && last.number() + last.count == first &&
        uint64_t{last.count} + count <= UINT32_MAX) {
      last.count += count;
      std::memcpy(pending_.data() + pending_.size() - kRecordBytes, &last, kRecordBytes);
      log_->unreserve(kRecordBytes);
      return;
    }
  }
  put_record(RecordHeader::make(RecordKind::kUpdate, first, count, source));
  last_pending_is_update_ = true;
}

uint32_t VolumeMap::freeze(const VersionChange&, const FreezeRequest& request,
                           LogReservation& reserved) {
  ensure(reserved.unused_ == kFreezeRecords, "a freeze has its records reserved");
  const std::unique_lock guard(mutex_);
  const uint32_t frozen = current_.number;
  if (frozen >= UINT32_MAX - 1) fail(EOVERFLOW, "volume", "has used up its version numbers");
  const uint32_t parent = request.parent == 0 ? frozen : request.parent;
  const VersionRecord* base = parent == frozen ? &current_ : table_.find(parent);
  if (base == nullptr || (base->is_hidden() && !request.may_be_hidden))
    fail(ENOENT, fmt::format("version {}", parent), "is not there any more");
  const uint64_t size_bytes = base->size_bytes;
  const int64_t now_ns = now_unix_ns();

  Encoder body;
  body.put(FreezeBody{now_ns,
                      size_bytes,
                      static_cast<uint16_t>(request.name.size()),
                      static_cast<uint16_t>(request.note.size()),
                      (request.origin.is_nil() ? 0 : kFreezeHasOrigin) |
                          (request.for_reader ? kFreezeForReader : 0) |
                          ((current_.flags & kVersionUnswept) != 0 ? kFreezeUnswept : 0),
                      {}});
  body.put_bytes(as_bytes(request.name));
  body.put_bytes(as_bytes(request.note));
  if (!request.origin.is_nil()) {
    body.put(request.origin.volume);
    body.put(request.origin.number);
  }
  ensure(body.size() < kFreezeRecords * kRecordBytes, "a freeze fits what was reserved for it");
  change(reserved, [&] { apply_freeze(frozen + 1, size_bytes, now_ns, request); });
  put_record(RecordHeader::make(RecordKind::kFreeze, 0, frozen + 1, parent), body.bytes(),
             kFreezeRecords);
  return frozen;
}

void VolumeMap::apply_freeze(uint32_t next, uint64_t size_bytes, int64_t now_ns,
                             const FreezeRequest& request) {
  VersionRecord frozen = current_;
  frozen.created_ns = now_ns;
  frozen.name = request.name;
  frozen.note = request.note;
  frozen.origin = request.origin;
  frozen.root = root_;
  const uint32_t number = frozen.number;
  if (frozen.file_blocks == 0) free_.add({number, 0, 0});
  unwritten_versions_.insert(number);
  dirty_groups_.insert(VersionTable::group_of(number));
  if (request.for_reader) frozen.flags |= kVersionForReader;
  table_.add(std::move(frozen));

  VersionRecord& parent = table_.all().at(request.parent == 0 ? number : request.parent);
  parent.children.push_back(next);
  // What it shares with its only child it does not keep alone, and that is everything so far.
  parent.set_own(parent.children.size() == 1 ? std::optional<uint64_t>(0) : std::nullopt);
  dirty_groups_.insert(VersionTable::group_of(parent.number));

  current_ = VersionRecord{};
  current_.number = next;
  current_.parent = parent.number;
  current_.created_ns = now_ns;
  current_.size_bytes = size_bytes;
  current_.foreign_blocks = parent.foreign_blocks;
  current_.set_own(0);
  root_ = parent.root;
  refresh_floor();
}

void VolumeMap::resize(const VersionChange&, uint64_t size_bytes) {
  LogReservation reserved(*this, 1);
  const std::unique_lock guard(mutex_);
  change(reserved, [&] { current_.size_bytes = size_bytes; });
  put_record(RecordHeader::make(RecordKind::kResize, size_bytes));
}

// --- commit

void VolumeMap::check_usable() const {
  if (!has_failed_.load(std::memory_order_acquire)) [[likely]]
    return;
  std::exception_ptr failure;
  {
    const std::lock_guard guard(failure_mutex_);
    failure = failure_;
  }
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    fail(EIO, "volume", "is stopped after an earlier error ({}); disconnect and connect again",
         error.what());
  }
}

void VolumeMap::note_failure(std::exception_ptr failure) noexcept {
  const std::lock_guard guard(failure_mutex_);
  if (!failure_) failure_ = std::move(failure);
  has_failed_.store(true, std::memory_order_release);
}

void VolumeMap::run_exclusively(const std::function<void()>& body) {
  {
    std::unique_lock guard(commit_mutex_);
    commit_ended_.wait(guard, [this] { return !commit_runs_; });
    commit_runs_ = true;
  }
  const auto end = [this] {
    const std::lock_guard guard(commit_mutex_);
    commit_runs_ = false;
    commit_ended_.notify_all();
  };
  try {
    body();
  } catch (...) {
    end();
    throw;
  }
  end();
}

void VolumeMap::commit_cut(const std::function<void()>& at_cut) {
  check_usable();
  ByteVector cut;
  uint64_t reserved = 0;
  std::shared_ptr<MapLog> log;
  {
    const std::unique_lock guard(mutex_);
    // What may fail comes before anything is taken away.
    free_.cut();
    if (at_cut) at_cut();
    cut.swap(pending_);
    pending_bytes_.store(0, std::memory_order_relaxed);
    reserved = std::exchange(pending_reserved_, 0);
    last_pending_is_update_ = false;
    log = log_;
  }
  // From here on the records are nowhere else.
  or_stop([&] {
    sync_data_();
    if (!cut.empty()) {
      log->append(FrameKind::kUpdates, cut, reserved);
      log->sync();
    }
    const std::unique_lock guard(mutex_);
    bytes_since_checkpoint_ += cut.size();
    free_.commit();
    free_waiting_.store(free_.waiting(), std::memory_order_relaxed);
    ++stats_.commits;
  });
}

void VolumeMap::commit() {
  std::unique_lock guard(commit_mutex_);
  // The next commit to start is the first whose cut is sure to come after this call.
  const uint64_t mine = commits_started_ + 1;
  while (commits_finished_ < mine) {
    if (commit_runs_) {
      commit_ended_.wait(guard);
      continue;
    }
    commit_runs_ = true;
    const uint64_t number = ++commits_started_;
    guard.unlock();
    std::exception_ptr failed;
    try {
      commit_cut(nullptr);
    } catch (...) {
      failed = std::current_exception();
    }
    guard.lock();
    commit_runs_ = false;
    // Those who have waited for one that failed try for themselves.
    if (!failed) commits_finished_ = number;
    commit_ended_.notify_all();
    if (failed) std::rethrow_exception(failed);
  }
  guard.unlock();
  check_usable();
}

// --- maintenance

bool VolumeMap::wants_commit() const {
  const std::shared_lock guard(mutex_);
  return pending_.size() >= kPendingBytesMax;
}

bool VolumeMap::must_commit() const {
  return pending_bytes_.load(std::memory_order_relaxed) >= 4 * kPendingBytesMax;
}

bool VolumeMap::wants_checkpoint() const {
  const std::shared_lock guard(mutex_);
  // Leaves count once their updates are committed; until then they cost no recovery.
  return bytes_since_checkpoint_ >= kCheckpointBytes ||
         (dirty_leaves_ >= kCheckpointLeaves && bytes_since_checkpoint_ > 0 &&
          pending_.size() < kPendingBytesMax / 8);
}

bool VolumeMap::wants_compaction() const {
  const std::shared_lock guard(mutex_);
  const uint64_t tail = log_->position().offset;
  // Whatever the estimates say, a compaction comes after some growth.
  if (tail <= compacted_bytes_ + kCompactionBytesMin) return false;
  if (tail > needed_bytes() + std::max(tail / 2, kCompactionBytesMin)) return true;
  // How much of the log removed versions leave behind is only estimated: when it has doubled, a
  // compaction finds out.
  return has_removed_ && tail > 2 * compacted_bytes_ + kCompactionBytesMin;
}

// Of the log's bytes. Once compacted, each version has frames of its own, one for each level, which
// take that much beyond the nodes in them at most.
uint64_t VolumeMap::needed_bytes() const {
  return live_bytes_ + bytes_since_checkpoint_ +
         table_.all().size() * (kPageLevels + 1) * kSectorBytes;
}

bool VolumeMap::is_small() const {
  const std::shared_lock guard(mutex_);
  return live_bytes_ <= kSmallBytes;
}

bool VolumeMap::evict_some() {
  const std::unique_lock guard(mutex_);
  ++stats_.evictions;
  evict(root_, evict_cursor_, kEvictPages);
  if (evict_cursor_ != 0) return true;
  // Frozen versions are read by few; they are dropped from the top.
  for (auto& [number, version] : table_.all())
    if (version.root.is_node() && !version.root.node()->is_dirty)
      version.root = NodeRef::of_address(version.root.node()->address);
  return false;
}

MapStats VolumeMap::stats() const {
  const std::shared_lock guard(mutex_);
  MapStats stats = stats_;
  stats.log_bytes = log_->position().offset;
  stats.log_garbage_bytes = stats.log_bytes - std::min(stats.log_bytes, needed_bytes());
  stats.log_generation = log_->generation();
  stats.memory_bytes = loaded_bytes(root_);
  return stats;
}

}  // namespace tplstore
