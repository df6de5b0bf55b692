// Opening a directory and letting it go, and reading copies. How one is put there is in
// directory_fills.cpp, what is done with all of them in directory_upkeep.cpp.
#include "tier/directory.h"

#include <algorithm>
#include <cerrno>

#include "template/segment.h"
#include "tier/tier_identity.h"

namespace tplstore {
namespace {

constexpr int64_t kReadTimeStepNs = 1'000'000'000;  // how exact times of reading need be
constexpr const char* kProbe = "tplstore-probe";

// When this thread's last operation on any directory began. What a request reads of a directory it
// begins at once, so this is when each of that began.
thread_local int64_t begun_ns = 0;

std::string unanswered(const std::string& path) {
  return fmt::format("{}: has not answered for {} s", path, TierGate::kHangNs / 1'000'000'000);
}

std::string text_of(const std::exception_ptr& error, int& code) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    code = known.code();
    return known.what();
  } catch (const std::exception& other) {
    code = ENOMEM;
    return other.what();
  }
}

}  // namespace

// --- a copy that is open

class TierDirectory::Copy final : public SegmentCopy {
 public:
  Copy(std::shared_ptr<TierDirectory> directory, std::shared_ptr<Mount> mount,
       std::unique_ptr<Object> object, std::vector<Hash128> table,
       std::shared_ptr<CopyInventory::Copy> known)
      : directory_(std::move(directory)),
        mount_(std::move(mount)),
        object_(std::move(object)),
        table_(std::move(table)),
        known_(std::move(known)) {}
  ~Copy() override { directory_->retire(*mount_, std::move(object_)); }

  Object& object() override { return *object_; }
  const std::vector<Hash128>& table() const override { return table_; }
  bool begin() noexcept override {
    const int64_t now_ns = directory_->world_->now_ns();
    if (!mount_->gate.begin(now_ns)) return false;
    begun_ns = now_ns;
    return true;
  }
  void end(Outcome outcome, uint64_t bytes, const std::exception_ptr& error) noexcept override {
    directory_->end_read(*mount_, *known_, outcome, bytes, error);
  }

 private:
  const std::shared_ptr<TierDirectory> directory_;
  const std::shared_ptr<Mount> mount_;
  std::unique_ptr<Object> object_;
  const std::vector<Hash128> table_;
  const std::shared_ptr<CopyInventory::Copy> known_;
};

void TierDirectory::end_read(Mount& mount, CopyInventory::Copy& copy, SegmentCopy::Outcome outcome,
                             uint64_t bytes, const std::exception_ptr& error) noexcept {
  int code = 0;
  if (outcome == SegmentCopy::Outcome::kFailed && error) {
    try {
      const std::string text = text_of(error, code);
      if (is_fault(code)) note_error(text);
    } catch (const std::exception&) {  // there is no memory for its text
    }
  }
  const bool has_failed = code != 0 && is_fault(code);
  const int64_t now_ns = world_->now_ns();
  mount.gate.end(begun_ns, now_ns, has_failed);
  if (outcome == SegmentCopy::Outcome::kDamaged)
    mark_damaged(copy, "a copy of a segment has other bytes than it should; it is removed");
  if (code == ENOENT) {  // somebody removed it
    copy.is_damaged.store(true, std::memory_order_relaxed);
    has_damaged_.store(true, std::memory_order_relaxed);
  }
  if (outcome != SegmentCopy::Outcome::kRead) return;
  reads_.fetch_add(1, std::memory_order_relaxed);
  read_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  if (now_ns - copy.read_ns.load(std::memory_order_relaxed) >= kReadTimeStepNs)
    copy.read_ns.store(now_ns, std::memory_order_relaxed);
}

void TierDirectory::mark_damaged(CopyInventory::Copy& copy, const char* what) noexcept {
  if (copy.is_damaged.exchange(true)) return;
  damaged_.fetch_add(1, std::memory_order_relaxed);
  note_error(what);
  has_damaged_.store(true, std::memory_order_relaxed);
}

void TierDirectory::retire(Mount& mount, std::unique_ptr<Object> object) noexcept {
  if (!is_kept_.load(std::memory_order_relaxed)) return;
  try {
    const Lock guard(mount.mutex);
    mount.retired.push_back(std::move(object));
  } catch (const std::bad_alloc&) {  // then it is closed here
  }
}

void TierDirectory::let_go() {
  std::vector<std::shared_ptr<Mount>> old;
  std::vector<std::unique_ptr<Object>> objects;
  std::shared_ptr<Mount> now;
  {
    const Lock guard(mutex_);
    old.swap(old_mounts_);
    now = mount_;
  }
  if (now) old.push_back(std::move(now));
  for (const auto& each : old) {
    const Lock guard(each->mutex);
    objects.insert(objects.end(), std::make_move_iterator(each->retired.begin()),
                   std::make_move_iterator(each->retired.end()));
    each->retired.clear();
  }
}

// --- what the table says

TierDirectory::TierDirectory(std::shared_ptr<TierWorld> world, const Uuid& uuid,
                             std::shared_ptr<const TierTable> table)
    : world_(std::move(world)), uuid_(uuid), table_(std::move(table)) {}

TierDirectory::~TierDirectory() = default;

void TierDirectory::set_table(std::shared_ptr<const TierTable> table) {
  {
    const Lock guard(mutex_);
    table_ = std::move(table);
  }
  has_stock_ = false;
}

std::shared_ptr<const TierTable> TierDirectory::table() const {
  const Lock guard(mutex_);
  return table_;
}

bool TierDirectory::belongs(const TierTable& table, const Hash128& name) const {
  return std::ranges::count(table.places_of(name), uuid_) > 0;
}

// --- open, or not

std::shared_ptr<TierDirectory::Mount> TierDirectory::mount() const {
  const Lock guard(mutex_);
  return mount_ && mount_->gate.off() == TierGate::Off::kNot ? mount_ : nullptr;
}

std::string TierDirectory::why_not_ours(Backend& backend) const {
  const auto identity = load_tier_identity(backend);
  if (!identity)
    return fmt::format("{}: has no '{}': what belongs here is not mounted", backend.describe(),
                       kTierIdentityObject);
  const bool is_ours = identity->store == world_->options.identity.uuid &&
                       identity->directory == uuid_ &&
                       world_->options.host.is_same(identity->host, {});
  return is_ours ? ""
                 : fmt::format("{}: is a directory of another store, host or tier entry",
                               backend.describe());
}

bool TierDirectory::try_to_open() {
  bool was_failing;
  {
    const Lock guard(mutex_);
    if (mount_) return true;
    if (is_closed_ || world_->now_ns() < next_try_ns_) return false;
    opening_since_ns_ = world_->now_ns();
    was_failing = problem_ == Problem::kFailing;
  }
  Problem problem = Problem::kNone;
  std::string why;
  auto opened = std::make_shared<Mount>();
  try {
    opened->backend = world_->options.open_directory(entry(*table()).path);
    why = why_not_ours(*opened->backend);
    if (!why.empty()) problem = Problem::kAbsent;
    if (was_failing && problem == Problem::kNone) probe(*opened->backend);
  } catch (const Error& error) {
    const bool is_gone = error.code() == ENOENT || error.code() == ENOTDIR;
    problem = is_gone ? Problem::kAbsent : Problem::kFailing;
    why = error.what();
  }
  {
    const Lock guard(mutex_);
    opening_since_ns_.reset();
    if (is_closed_) return false;
    problem_ = problem;
    next_try_ns_ = world_->now_ns() + kRetryNs;
    if (problem == Problem::kNone) mount_ = std::move(opened);
  }
  say(why);
  if (problem != Problem::kNone) return false;
  has_stock_ = false;
  stock_ns_ = INT64_MIN;
  world_->changed();
  return true;
}

// Whether what failed works again: where it can be written to, that.
void TierDirectory::probe(Backend& backend) {
  try {
    const ByteVector bytes(kBlockBytes, std::byte{0x5a});
    // Another server of this host may be at it too.
    if (!backend.put_new(kProbe, bytes)) {
      backend.remove(kProbe);
      backend.put_new(kProbe, bytes);
    }
    const auto content = backend.get(kProbe, kBlockBytes);
    backend.remove(kProbe);
    if (content && *content != bytes)
      fail(EIO, backend.describe(), "does not give back what is written to it");
  } catch (const Error& error) {
    if (is_fault(error.code())) throw;
  }
}

void TierDirectory::take_off(const std::shared_ptr<Mount>& mount, Problem problem,
                             const std::string& why) {
  mount->gate.turn_off(TierGate::Off::kClosed);
  {
    const Lock guard(mutex_);
    if (mount_ != mount) return;
    old_mounts_.push_back(std::move(mount_));
    mount_ = nullptr;
    problem_ = problem;
    next_try_ns_ = world_->now_ns() + (problem == Problem::kAbsent ? 0 : kRetryNs);
  }
  say(why);
  world_->changed();
}

void TierDirectory::watch() {
  std::shared_ptr<Mount> mount;
  std::string why;
  bool hangs_in_opening;
  {
    const Lock guard(mutex_);
    mount = mount_;
    why = last_error_;
    hangs_in_opening = opening_since_ns_ && problem_ != Problem::kFailing &&
                       world_->now_ns() - *opening_since_ns_ > TierGate::kHangNs;
    if (hangs_in_opening) problem_ = Problem::kFailing;
  }
  if (hangs_in_opening) {
    errors_.fetch_add(1, std::memory_order_relaxed);
    say(unanswered(entry(*table()).path));
  }
  if (!mount) return;
  switch (mount->gate.look(world_->now_ns())) {
    case TierGate::Off::kNot:
    case TierGate::Off::kClosed:  // somebody is at it
      return;
    case TierGate::Off::kErrors:
      return take_off(mount, Problem::kFailing, why);
    default:
      why = unanswered(mount->backend->describe());
      errors_.fetch_add(1, std::memory_order_relaxed);
      {
        const Lock guard(mutex_);
        last_error_ = why;
      }
      return take_off(mount, Problem::kFailing, why);
  }
}

void TierDirectory::close() {
  std::shared_ptr<Mount> mount;
  {
    const Lock guard(mutex_);
    is_closed_ = true;
    mount = mount_;
  }
  if (mount) take_off(mount, Problem::kAbsent, "");
  alarm_.stop();
}

// Once for each problem; nothing when there is none any more.
void TierDirectory::say(const std::string& problem) {
  bool was_said;
  {
    const Lock guard(mutex_);
    if (said_ == problem || is_closed_) return;
    was_said = !said_.empty();
    said_ = problem;
    if (!problem.empty()) last_error_ = problem;
  }
  if (!problem.empty()) {
    world_->log(fmt::format("tier: {}; its segments are read at the origin", problem));
  } else if (was_said) {
    world_->log(LogLevel::kNotice, fmt::format("tier: {}: is used again", entry(*table()).path));
  }
}

// Counts an error, and keeps its text if that does not mean to wait.
void TierDirectory::note_error(const std::string& error) noexcept {
  errors_.fetch_add(1, std::memory_order_relaxed);
  if (!mutex_.try_lock()) return;
  const Lock guard(mutex_, std::adopt_lock);
  try {
    last_error_ = error;
  } catch (const std::bad_alloc&) {
  }
}

// What is no sign of a bad disk: a copy that somebody removed, no room, or a shortage of ours.
bool TierDirectory::is_fault(int code) {
  switch (code) {
    case ENOENT:
    case EISDIR:
    case ELOOP:
    case ENOSPC:
    case EDQUOT:
    case EROFS:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EAGAIN:
      return false;
    default:
      return true;
  }
}

// --- reading

std::unique_ptr<SegmentCopy> TierDirectory::open(const Hash128& name, uint32_t block_count) {
  std::shared_ptr<Mount> mount = this->mount();
  if (!mount) return nullptr;
  if (const auto known = inventory_.find(name); known && known->is_damaged) return nullptr;
  std::unique_ptr<Object> object;
  uint64_t size = 0;
  std::optional<uint32_t> has_blocks;
  ByteVector end;
  try {
    perform(*mount, [&](Backend& backend) {
      object = backend.open(segment_path(name), Access::kRead, Purpose::kData);
      size = object->size_bytes();
      has_blocks = segment_block_count(size);
      if (!has_blocks) return;
      end.resize(size - segment_table_offset(*has_blocks));
      object->read(segment_table_offset(*has_blocks), end);
    });
  } catch (const Error& error) {
    if (object) retire(*mount, std::move(object));
    if (error.code() == ENOENT) inventory_.remove(name);
    return nullptr;
  }
  std::vector<Hash128> table;
  try {
    if (has_blocks) table = decode_segment_table(end, *has_blocks, name, world_->secret());
  } catch (const Error&) {  // damaged
  }
  auto known = inventory_.add(name, size, world_->now_ns());
  known->read_ns = world_->now_ns();
  if (table.empty()) mark_damaged(*known, "a copy of a segment is damaged; it is removed");
  // Who asks for another number of blocks than it has was told so by a damaged manifest.
  if (table.empty() || (block_count != 0 && block_count != table.size())) {
    retire(*mount, std::move(object));
    return nullptr;
  }
  return std::make_unique<Copy>(shared_from_this(), std::move(mount), std::move(object),
                                std::move(table), std::move(known));
}

void TierDirectory::want(const WantedSegment& wanted) noexcept {
  if (world_->now_ns() < no_fills_until_ns_.load(std::memory_order_relaxed)) return;
  if (queue_.add(wanted)) alarm_.ring();
}

}  // namespace tplstore
