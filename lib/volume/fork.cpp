// What a volume does about its forks, and as one.
//
// A fork is alive as long as its header is there and names this volume as its parent: so a fork
// that is removed or flattened needs to tell nobody. A volume that was removed while it has forks
// stays, without a name, until the last of them is gone.
#include <algorithm>
#include <cerrno>

#include "volume/volume.h"

namespace tplstore {
namespace {

constexpr uint64_t kCopyBytes = 1 << 20;
// A sync cannot be interrupted, so that there is one for each so many bytes.
constexpr uint64_t kCopySyncBytes = 64 << 20;
constexpr uint64_t kRegionsAtOnce = 1024;

}  // namespace

std::optional<VersionIdentity> Volume::parent() const {
  const VolumeHeader header = lock_ ? lock_->header() : read_header(backend_, folder_, uuid_);
  if (header.parent.is_nil()) return std::nullopt;
  return VersionIdentity{header.parent, header.parent_version};
}

uint64_t Volume::shared_bytes() {
  return map()->ask(&MapState::current_record).foreign_blocks * kBlockBytes;
}

bool Volume::is_fork_of(Backend& backend, const Uuid& fork, const Uuid& parent) {
  try {
    return read_header(backend, folder_of(fork), fork).parent == parent;
  } catch (const Error& error) {
    if (error.code() == ENOENT) return false;
  }
  // Its header is damaged; whether it is a fork the parent knows too.
  try {
    const auto map = VolumeMap::open(backend, folder_of(parent), parent, Access::kRead);
    const std::vector<Pin> pins = map->pins();
    return std::any_of(pins.begin(), pins.end(), [&](const Pin& pin) { return pin.fork == fork; });
  } catch (const Error& error) {
    return error.code() != ENOENT;
  }
}

bool Volume::drop_dead_pins() {
  const std::lock_guard guard(pin_mutex_);
  bool is_any_left = false;
  for (const Pin& pin : map_->pins()) {
    const bool is_alive = is_fork_of(backend_, pin.fork, uuid_);
    is_any_left = is_any_left || is_alive;
    if (is_alive) continue;
    map_->change_forks(UnpinRecord{pin.fork});
  }
  return is_any_left;
}

void Volume::keep_pinned_only() {
  if (!drop_dead_pins()) return;
  uint32_t pinned = 0;
  for (const Pin& pin : map_->pins()) pinned = std::max(pinned, pin.version);
  const VersionRecord current = map_->ask(&MapState::current_record);
  // Also when it wrote nothing itself, current may have cells of versions that are gone.
  if (current.parent != pinned || map_->own_blocks(current.number) > 0)
    freeze({"", "", {}, pinned, true});
  {
    VersionChange change = map_->change_versions();
    for (const VersionRecord& version : map_->versions())
      if (!version.is_hidden()) change.hide({version.number});
  }
  map_->commit();
  reclaim_all();
}

// --- flattening

// Forks have the volume's sources, which flattening is about to change. One that began before, and
// failed, keeps nobody from forking.
class Volume::NoForks {
 public:
  explicit NoForks(Volume& volume) : volume_(volume) {
    const std::lock_guard guard(volume_.pin_mutex_);
    if (!volume_.map_->pins().empty())
      fail(EBUSY, fmt::format("volume {}", volume_.name_), "is being forked; try again");
    volume_.flattens_ = true;
  }
  ~NoForks() {
    const std::lock_guard guard(volume_.pin_mutex_);
    volume_.flattens_ = false;
  }
  NoForks(const NoForks&) = delete;

 private:
  Volume& volume_;
};

void Volume::flatten(const std::function<void(uint64_t)>& progress) {
  const std::string object = fmt::format("volume {}", name_);
  if (!parent()) fail(EINVAL, object, "is no fork, so there is nothing to flatten");
  // Nothing is punched meanwhile, so what is not mapped any more when it would be copied is not.
  const auto no_space_back = space_->stop();
  if (map_->ask([](const MapState& state) { return state.table().base(); }) > 0) {
    if (drop_dead_pins())
      fail(EBUSY, object, "has forks itself, which need its parent too; flatten those first");
    const NoForks no_forks(*this);
    if (!map_->ask([](const MapState& state) { return state.table().flattens; })) {
      map_->change_forks(FlattenBeginRecord{});
      map_->commit();
    }
    // What an earlier one has left is not gone on with: it would have to be known what of it is
    // durable, and what has been freed since.
    files_->forget_copies();
    try {
      copy_foreign_cells(progress);
      files_->sync_copies();
      map_->change_forks(FlattenEndRecord{});
    } catch (...) {
      forget_copies_or_log();
      throw;
    }
    map_->commit();
  }
  const auto replaced = files_->end_copies();
  cell_users_.wait_for_requests();
  // Those who opened the volume before read its ancestors' files still.
  const auto readers = backend_.try_lock(readers_name(folder_), LockMode::kExclusive);
  if (!readers)
    fail(EBUSY, object,
         "has its own copy now, but readers that began before still use the parent; flatten it "
         "again when they have disconnected");
  lock_->forget_parent();
}

// Gives back what a flattening that has failed took, perhaps for want of space.
void Volume::forget_copies_or_log() {
  try {
    files_->forget_copies();
  } catch (const std::exception& error) {
    environment_.log(
        fmt::format("volume {}: what was copied while it could not be flattened is still there, "
                    "until it is flattened again: {}",
                    name_, error.what()));
  }
}

void Volume::copy_foreign_cells(const std::function<void(uint64_t)>& progress) {
  uint64_t size_bytes_max = size_bytes();
  for (const VersionRecord& version : map_->versions())
    size_bytes_max = std::max(size_bytes_max, version.size_bytes);
  const uint64_t region_end = (size_bytes_max - 1) / kRegionBytes + 1;
  ByteVector buffer(kCopyBytes);
  uint64_t done_bytes = 0;
  for (uint64_t region = 0; region < region_end; region += kRegionsAtOnce) {
    // File by file: neighbours are read together.
    for (const FreeRange& range : map_->foreign_cells(region, region + kRegionsAtOnce)) {
      const GracePeriod::Request request(cell_users_);
      Object& from = files_->get(range.source);
      Object& to = files_->copy_of(range.source);
      const uint64_t end = (range.first + range.count) * kBlockBytes;
      for (uint64_t offset = range.first * kBlockBytes; offset < end;) {
        const MutableBytes piece =
            MutableBytes(buffer).first(std::min<uint64_t>(kCopyBytes, end - offset));
        if (environment_.stop.stop_requested())
          fail(ESHUTDOWN, fmt::format("volume {}", name_),
               "is not flattened yet, and the server is ending: nothing is lost, flatten it again");
        map_->check_usable();
        from.read(offset, piece);
        to.write(offset, piece);
        offset += piece.size();
        done_bytes += piece.size();
        if (done_bytes / kCopySyncBytes > (done_bytes - piece.size()) / kCopySyncBytes) to.sync();
        progress(done_bytes);
      }
    }
  }
}

}  // namespace tplstore
