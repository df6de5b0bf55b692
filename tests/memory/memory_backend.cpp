#include "memory/memory_backend.h"

#include <algorithm>
#include <cerrno>

#include "backend/object_name.h"

namespace tplstore {
namespace {

constexpr uint64_t kObjectBytesMax = INT64_MAX;  // as an off_t

using Kind = MemoryEvent::Kind;

}  // namespace

// The locks of one machine: they end with it, not with the backend.
struct MemoryBackend::LockTable {
  struct State {
    size_t shared_count = 0;
    bool is_exclusive = false;
  };
  std::mutex mutex;
  std::map<std::pair<uint64_t, uint64_t>, State> held;  // by object and slot
};

namespace {

class CountedLock final : public HeldLock {
 public:
  explicit CountedLock(std::function<void()> release) : release_(std::move(release)) {}
  ~CountedLock() override { release_(); }

 private:
  std::function<void()> release_;
};

}  // namespace

// One open object. Everything it has is its backend's and is used under the backend's mutex.
class MemoryObject final : public Object {
 public:
  MemoryObject(MemoryBackend& backend, std::string name, uint64_t object, Access access,
               Purpose purpose)
      : Object(backend),
        backend_(backend),
        name_(std::move(name)),
        object_(object),
        access_(access),
        purpose_(purpose),
        failures_seen_(backend.failed_syncs_[object]) {}
  ~MemoryObject() override { backend_.object_closed(object_); }

  void read(uint64_t offset, MutableBytes into) override {
    std::lock_guard lock(backend_.mutex_);
    backend_.check_readable(name_);
    const MemoryImage& image = backend_.now_.image(object_);
    if (purpose_ == Purpose::kData && !into.empty() && offset + into.size() > image.size_bytes())
      fail(EIO, name_, "has {} bytes, and {} bytes at {} were to be read: it was cut short",
           image.size_bytes(), into.size(), offset);
    image.read(offset, into);
  }

  void write(uint64_t offset, Bytes from) override {
    std::lock_guard lock(backend_.mutex_);
    check_writable();
    if (from.empty()) return;
    if (offset > kObjectBytesMax - from.size()) fail(EFBIG, name_, "written past the largest size");
    backend_.check_space(backend_.now_.image(object_).bytes_to_allocate(offset, from.size()),
                         name_);
    backend_.record({.kind = Kind::kWrite,
                     .name = name_,
                     .object = object_,
                     .offset = offset,
                     .data = ByteVector(from.begin(), from.end())});
  }

  void punch(uint64_t offset, uint64_t length) override {
    std::lock_guard lock(backend_.mutex_);
    check_writable();
    if (length == 0) return;
    if (offset > kObjectBytesMax - length) fail(EFBIG, name_, "punched past the largest size");
    backend_.record({.kind = Kind::kPunch,
                     .name = name_,
                     .object = object_,
                     .offset = offset,
                     .length = length});
  }

  void grow(uint64_t size_bytes) override {
    std::lock_guard lock(backend_.mutex_);
    check_writable();
    if (size_bytes > kObjectBytesMax) fail(EFBIG, name_, "stretched past the largest size");
    if (size_bytes <= backend_.now_.image(object_).size_bytes()) return;
    backend_.record({.kind = Kind::kGrow, .name = name_, .object = object_, .length = size_bytes});
  }

  void sync() override {
    std::lock_guard lock(backend_.mutex_);
    check_not_failed();
    if (const int code = backend_.take_sync_fault(name_)) {
      has_failed_ = true;
      ++backend_.failed_syncs_[object_];
      backend_.record({.kind = Kind::kFailSync, .name = name_, .object = object_});
      fail_errno(code, name_, "syncing it");
    }
    if (failures_seen_ != backend_.failed_syncs_[object_]) {
      has_failed_ = true;
      fail_errno(EIO, name_, "syncing it");
    }
    backend_.record({.kind = Kind::kSync, .name = name_, .object = object_});
  }

  void drop_cached() override {
    std::lock_guard lock(backend_.mutex_);
    if (backend_.now_.has_lost(object_))
      backend_.record({.kind = Kind::kDropCached, .name = name_, .object = object_});
  }

  uint64_t size_bytes() override {
    std::lock_guard lock(backend_.mutex_);
    return backend_.now_.image(object_).size_bytes();
  }

  uint64_t allocated_bytes() override {
    std::lock_guard lock(backend_.mutex_);
    return backend_.now_.image(object_).allocated_bytes();
  }

  std::optional<DataRange> find_data(uint64_t offset) override {
    std::lock_guard lock(backend_.mutex_);
    const MemoryImage& image = backend_.now_.image(object_);
    const uint64_t size = image.size_bytes();
    const std::optional<uint64_t> page = image.next_allocated_page(offset);
    if (!page) return {};
    const uint64_t begin = std::max(offset, *page);
    if (begin >= size) return {};
    uint64_t end = *page + kBlockBytes;
    while (end < size && image.is_allocated(end)) end += kBlockBytes;
    return DataRange{begin, std::min(end, size) - begin};
  }

 private:
  void check_not_failed() const {
    if (has_failed_) {
      fail(EIO, name_, "an earlier sync failed, so data may be lost; it must be opened again");
    }
  }
  void check_writable() const {
    if (access_ != Access::kWrite) fail(EBADF, name_, "written to, but opened for reading");
    check_not_failed();
  }

  MemoryBackend& backend_;
  const std::string name_;
  const uint64_t object_;
  const Access access_;
  const Purpose purpose_;
  const uint64_t failures_seen_;  // of the object, when it was opened
  bool has_failed_ = false;
};

MemoryBackend::MemoryBackend() : locks_(std::make_shared<LockTable>()) {}

MemoryBackend::MemoryBackend(MemoryState state, uint64_t capacity_bytes)
    : first_(state),
      now_(std::move(state)),
      replayed_(first_),
      capacity_bytes_(capacity_bytes),
      locks_(std::make_shared<LockTable>()) {}

MemoryBackend::~MemoryBackend() = default;

// --- helpers, all with the mutex held

void MemoryBackend::record(MemoryEvent event) {
  const auto shared = std::make_shared<const MemoryEvent>(std::move(event));
  now_.apply(shared);
  if (is_recording_) events_.push_back(shared);
}

uint64_t MemoryBackend::must_find(const std::string& name) const {
  const uint64_t object = now_.find(name);
  if (object != 0) return object;
  if (now_.has_folder(name)) fail(EISDIR, name, "not an object but a folder");
  fail_errno(ENOENT, name, "opening it");
}

// All that may stand in the way of a new name, other than the same name.
void MemoryBackend::check_creatable(const std::string& name) const {
  for (std::string folder(folder_of(name)); !folder.empty(); folder = folder_of(folder)) {
    if (now_.find(folder) != 0) fail_errno(ENOTDIR, folder, "making the folder");
  }
}

void MemoryBackend::check_space(uint64_t more_bytes, const std::string& name) const {
  if (more_bytes == 0 || capacity_bytes_ == UINT64_MAX) return;
  const uint64_t used = now_.allocated_bytes();
  if (used > capacity_bytes_ || more_bytes > capacity_bytes_ - used) {
    fail_errno(ENOSPC, name, "writing it");
  }
}

void MemoryBackend::check_readable(const std::string& name) const {
  for (const auto& [prefix, code] : read_faults_) {
    if (name.starts_with(prefix)) fail_errno(code, name, "reading it");
  }
}

// What a sync of this object fails with, or 0.
int MemoryBackend::take_sync_fault(const std::string& name) {
  for (auto fault = sync_faults_.begin(); fault != sync_faults_.end(); ++fault) {
    if (!name.starts_with(fault->name_prefix)) continue;
    if (fault->skipped > 0) {
      --fault->skipped;
      continue;
    }
    const int code = fault->code;
    sync_faults_.erase(fault);
    return code;
  }
  return 0;
}

uint64_t MemoryBackend::object_opened(uint64_t object) {
  ++open_counts_[object];
  return object;
}

void MemoryBackend::object_closed(uint64_t object) {
  std::lock_guard lock(mutex_);
  if (--open_counts_[object] > 0) return;
  open_counts_.erase(object);
  now_.forget_if_unnamed(object);
}

// --- objects

std::unique_ptr<Object> MemoryBackend::open(const std::string& name, Access access,
                                            Purpose purpose) {
  check_object_name(name);
  std::lock_guard lock(mutex_);
  return std::make_unique<MemoryObject>(*this, name, object_opened(must_find(name)), access,
                                        purpose);
}

std::unique_ptr<Object> MemoryBackend::create(const std::string& name, uint64_t size_bytes,
                                              Purpose purpose) {
  check_object_name(name);
  std::lock_guard lock(mutex_);
  check_creatable(name);
  if (now_.find(name) != 0 || now_.has_folder(name)) fail_errno(EEXIST, name, "creating it");
  if (size_bytes > kObjectBytesMax) fail_errno(EFBIG, name, "creating it");
  const uint64_t object = now_.next_object();
  record({.kind = Kind::kCreate, .name = name, .object = object, .length = size_bytes});
  return std::make_unique<MemoryObject>(*this, name, object_opened(object), Access::kWrite,
                                        purpose);
}

bool MemoryBackend::put_new(const std::string& name, Bytes content) {
  check_object_name(name);
  std::lock_guard lock(mutex_);
  check_creatable(name);
  if (now_.find(name) != 0 || now_.has_folder(name)) return false;
  check_space(round_up(content.size(), kBlockBytes), name);
  record({.kind = Kind::kPutNew,
          .name = name,
          .object = now_.next_object(),
          .data = ByteVector(content.begin(), content.end())});
  return true;
}

// Its name and its content can be lost one without the other.
bool MemoryBackend::put_claim(const std::string& name, Bytes content) {
  if (kind_.reach != StorageKind::Reach::kOneHost) return put_new(name, content);
  check_object_name(name);
  std::lock_guard lock(mutex_);
  check_creatable(name);
  if (now_.find(name) != 0 || now_.has_folder(name)) return false;
  check_space(round_up(content.size(), kBlockBytes), name);
  const uint64_t object = now_.next_object();
  record({.kind = Kind::kCreate, .name = name, .object = object});
  record({.kind = Kind::kWrite,
          .name = name,
          .object = object,
          .data = ByteVector(content.begin(), content.end())});
  return true;
}

std::optional<ByteVector> MemoryBackend::get(const std::string& name, uint64_t max_bytes) {
  check_object_name(name);
  std::lock_guard lock(mutex_);
  if (now_.find(name) == 0 && !now_.has_folder(name)) return {};
  const MemoryImage& image = now_.image(must_find(name));
  if (image.size_bytes() > max_bytes) {
    fail(EFBIG, name, "has {} bytes where at most {} are expected", image.size_bytes(), max_bytes);
  }
  check_readable(name);
  ByteVector content(image.size_bytes());
  image.read(0, content);
  return content;
}

// --- names

std::vector<std::string> MemoryBackend::list(const std::string& folder) {
  check_folder_name(folder);
  std::lock_guard lock(mutex_);
  return now_.list(folder);
}

bool MemoryBackend::remove(const std::string& name) {
  check_object_name(name);
  std::lock_guard lock(mutex_);
  const uint64_t object = now_.find(name);
  if (object == 0) {
    if (now_.has_folder(name)) fail_errno(EISDIR, name, "removing it");
    return false;
  }
  record({.kind = Kind::kRemove, .name = name});
  if (!open_counts_.contains(object)) now_.forget_if_unnamed(object);
  return true;
}

void MemoryBackend::remove_folder(const std::string& folder) {
  check_object_name(folder);
  std::lock_guard lock(mutex_);
  if (now_.find(folder) != 0) fail_errno(ENOTDIR, folder, "removing the folder");
  if (!now_.has_folder(folder)) return;
  record({.kind = Kind::kRemoveFolder, .name = folder});
  now_.forget_unnamed([this](uint64_t object) { return !open_counts_.contains(object); });
}

void MemoryBackend::sync_folder(const std::string& folder) {
  check_folder_name(folder);
  std::lock_guard lock(mutex_);
  if (now_.find(folder) != 0) fail_errno(ENOTDIR, folder, "opening the folder");
  if (!now_.has_folder(folder)) fail_errno(ENOENT, folder, "opening the folder");
  record({.kind = Kind::kSyncFolder, .name = folder});
}

std::unique_ptr<HeldLock> MemoryBackend::try_lock(const std::string& name, LockMode mode,
                                                  uint64_t slot) {
  check_object_name(name);
  if (slot > kLockSlotMax) fail(EINVAL, name, "has no lock slot {}", slot);
  std::lock_guard lock(mutex_);
  const std::pair key(must_find(name), slot);
  std::lock_guard table_lock(locks_->mutex);
  LockTable::State& state = locks_->held[key];
  if (state.is_exclusive) return nullptr;
  const bool is_shared = mode == LockMode::kShared;
  if (!is_shared && state.shared_count > 0) return nullptr;
  auto held_lock = std::make_unique<CountedLock>([locks = locks_, key, is_shared] {
    std::lock_guard release_lock(locks->mutex);
    LockTable::State& held = locks->held[key];
    if (is_shared) {
      --held.shared_count;
    } else {
      held.is_exclusive = false;
    }
    if (held.shared_count == 0) locks->held.erase(key);
  });
  if (is_shared) {
    ++state.shared_count;
  } else {
    state.is_exclusive = true;
  }
  return held_lock;
}

bool MemoryBackend::is_locked(const std::string& name) {
  check_object_name(name);
  std::lock_guard lock(mutex_);
  const std::pair key(must_find(name), uint64_t{0});
  std::lock_guard table_lock(locks_->mutex);
  const auto found = locks_->held.find(key);
  return found != locks_->held.end() &&
         (found->second.is_exclusive || found->second.shared_count > 0);
}

std::optional<StorageSpace> MemoryBackend::space() {
  std::lock_guard lock(mutex_);
  if (capacity_bytes_ == UINT64_MAX) return {};
  const uint64_t used = now_.allocated_bytes();
  return StorageSpace{capacity_bytes_, capacity_bytes_ - std::min(used, capacity_bytes_)};
}

// --- the trace

size_t MemoryBackend::event_count() const {
  std::lock_guard lock(mutex_);
  return events_.size();
}

std::string MemoryBackend::describe_event(size_t index) const {
  std::lock_guard lock(mutex_);
  ensure(index < events_.size(), "describe_event past the end of the trace");
  return events_[index]->describe();
}

void MemoryBackend::set_recording(bool recording) {
  std::lock_guard lock(mutex_);
  if (recording == is_recording_) return;
  is_recording_ = recording;
  now_.set_keeps_history(recording);
  now_.forget_unnamed([this](uint64_t object) { return !open_counts_.contains(object); });
  events_.clear();
  first_ = recording ? now_ : MemoryState();
  replayed_ = first_;
  replayed_count_ = 0;
}

std::unique_ptr<MemoryBackend> MemoryBackend::crashed(const MemoryState& state, Crash kind,
                                                      uint64_t seed, uint64_t capacity_bytes) {
  MemoryState after = kind == Crash::kKill           ? state
                      : kind == Crash::kLoseUnsynced ? state.after_losing_unsynced()
                                                     : state.after_random_crash(seed);
  // Not make_unique: the constructor is private.
  return std::unique_ptr<MemoryBackend>(new MemoryBackend(std::move(after), capacity_bytes));
}

std::unique_ptr<MemoryBackend> MemoryBackend::crash(size_t event_count, Crash kind,
                                                    uint64_t seed) const {
  std::lock_guard lock(mutex_);
  ensure(is_recording_ && event_count <= events_.size(), "crash() behind the end of the trace");
  if (event_count < replayed_count_) {
    replayed_ = first_;
    replayed_count_ = 0;
  }
  while (replayed_count_ < event_count) replayed_.apply(events_[replayed_count_++]);
  return crashed(replayed_, kind, seed, capacity_bytes_);
}

std::unique_ptr<MemoryBackend> MemoryBackend::clone() const {
  std::lock_guard lock(mutex_);
  auto copy = crashed(now_, Crash::kKill, 0, capacity_bytes_);
  copy->is_recording_ = is_recording_;
  return copy;
}

// --- faults and damage

void MemoryBackend::set_capacity_bytes(uint64_t capacity_bytes) {
  std::lock_guard lock(mutex_);
  capacity_bytes_ = capacity_bytes;
}

uint64_t MemoryBackend::allocated_bytes() const {
  std::lock_guard lock(mutex_);
  return now_.allocated_bytes();
}

void MemoryBackend::fail_next_sync(const std::string& name_prefix, int code, uint64_t skipped) {
  std::lock_guard lock(mutex_);
  if (code != 0) {
    sync_faults_.push_back({name_prefix, code, skipped});
  } else {
    std::erase_if(sync_faults_,
                  [&](const SyncFault& fault) { return fault.name_prefix == name_prefix; });
  }
}

void MemoryBackend::fail_reads(const std::string& name_prefix, int code) {
  std::lock_guard lock(mutex_);
  if (code == 0) {
    read_faults_.erase(name_prefix);
  } else {
    read_faults_[name_prefix] = code;
  }
}

ByteVector MemoryBackend::content(const std::string& name) const {
  std::lock_guard lock(mutex_);
  const MemoryImage& image = now_.image(must_find(name));
  ByteVector bytes(image.size_bytes());
  image.read(0, bytes);
  return bytes;
}

void MemoryBackend::set_content(const std::string& name, Bytes content) {
  check_object_name(name);
  std::lock_guard lock(mutex_);
  check_creatable(name);
  const uint64_t object = now_.find(name);
  record({.kind = Kind::kSetContent,
          .name = name,
          .object = object != 0 ? object : now_.next_object(),
          .data = ByteVector(content.begin(), content.end())});
}

// --- CrashWalker

CrashWalker::CrashWalker(const MemoryBackend& backend) : backend_(backend) {
  std::lock_guard lock(backend.mutex_);
  ensure(backend.is_recording_, "a walk over a trace that is not recorded");
  state_ = backend.first_;
}

bool CrashWalker::is_at_end() const { return event_count_ == backend_.event_count(); }

void CrashWalker::advance() { advance_to(event_count_ + 1); }

void CrashWalker::advance_to(size_t event_count) {
  std::lock_guard lock(backend_.mutex_);
  ensure(event_count >= event_count_ && event_count <= backend_.events_.size(),
         "a walk goes forward, and not past the end of the trace");
  while (event_count_ < event_count) state_.apply(backend_.events_[event_count_++]);
}

std::unique_ptr<MemoryBackend> CrashWalker::crash(MemoryBackend::Crash kind, uint64_t seed) const {
  uint64_t capacity_bytes;
  {
    std::lock_guard lock(backend_.mutex_);
    capacity_bytes = backend_.capacity_bytes_;
  }
  return MemoryBackend::crashed(state_, kind, seed, capacity_bytes);
}

}  // namespace tplstore
