// A fork is pinned before it is made. Flattening copies file by file, and the copies take the
// ancestors' places all at once.
#include "volume/forks.h"

#include <algorithm>
#include <cerrno>

#include "volume/creation.h"

namespace tplstore {
namespace {

constexpr uint64_t kCopyBytes = 1 << 20;
// A sync cannot be interrupted, so that there is one for each so many bytes.
constexpr uint64_t kCopySyncBytes = 64 << 20;
constexpr uint64_t kRegionsAtOnce = 1024;

}  // namespace

bool is_fork_of(Backend& backend, const Uuid& fork, const Uuid& parent) {
  try {
    return read_header(backend, volume_folder(fork), fork).parent == parent;
  } catch (const Error& error) {
    if (error.code() == ENOENT) return false;
  }
  // Its header is damaged; whether it is a fork the parent knows too.
  try {
    const auto map = VolumeMap::open(backend, volume_folder(parent), parent, Access::kRead);
    const std::vector<Pin> pins = map->pins();
    return std::ranges::find(pins, fork, &Pin::fork) != pins.end();
  } catch (const Error& error) {
    return error.code() != ENOENT;
  }
}

void Forks::create(const std::string& version, const Uuid& fork) {
  const Lock guard(mutex_);
  const VersionInfo base = versions_.find(version);
  if (flattens_) fail(EBUSY, volume_.object, "is being flattened; try again after that");
  VolumeMap& map = volume_.map();
  map.change_forks(PinRecord{base.number, fork});
  try {
    map.commit();
    const uint64_t blocks = map.create_fork(base.number, volume_folder(fork), fork);
    VolumeHeader header = new_header(fork, base.size_bytes, volume_.template_image.get());
    header.incompatible_features = kFeatureFork;
    header.parent = volume_.uuid;
    header.parent_version = base.number;
    put_usage(header, {.current_version = base.number + 1, .shared_bytes = blocks * kBlockBytes});
    create_objects(volume_.backend, base.number + 1, header);
  } catch (...) {
    // Otherwise the pin of a fork that is not there is dropped later.
    volume_.attempt("a fork that failed could not be undone", [&] {
      volume_.backend.remove_folder(volume_folder(fork));
      map.change_forks(UnpinRecord{fork});
    });
    throw;
  }
}

void Forks::pin_again(uint32_t version, const Uuid& fork) {
  const Lock guard(mutex_);
  volume_.map().change_forks(PinRecord{version, fork});
  volume_.map().commit();
}

bool Forks::drop_dead() {
  const Lock guard(mutex_);
  bool is_any_left = false;
  for (const Pin& pin : volume_.map().pins()) {
    if (is_fork_of(volume_.backend, pin.fork, volume_.uuid)) {
      is_any_left = true;
    } else {
      volume_.map().change_forks(UnpinRecord{pin.fork});
    }
  }
  return is_any_left;
}

void Forks::keep_pinned_only() {
  if (!drop_dead()) return;
  VolumeMap& map = volume_.map();
  uint32_t pinned = 0;
  for (const Pin& pin : map.pins()) pinned = std::max(pinned, pin.version);
  const VersionRecord current = versions_.current();
  // Also when it wrote nothing itself, current may have cells of versions that are gone.
  if (current.parent != pinned || map.own_blocks(current.number) > 0)
    versions_.freeze({"", "", {}, pinned, true});
  {
    VersionChange change = map.change_versions();
    for (const VersionRecord& version : map.versions())
      if (!version.is_hidden()) change.hide({version.number});
  }
  map.commit();
  space_.run();
}

// --- flattening

// Forks have the volume's sources, which flattening is about to change. One that began before, and
// failed, keeps nobody from forking.
class Forks::None {
 public:
  explicit None(Forks& forks) : forks_(forks) {
    const Lock guard(forks_.mutex_);
    if (!forks_.volume_.map().pins().empty())
      fail(EBUSY, forks_.volume_.object, "is being forked; try again");
    forks_.flattens_ = true;
  }
  ~None() {
    const Lock guard(forks_.mutex_);
    forks_.flattens_ = false;
  }
  None(const None&) = delete;

 private:
  Forks& forks_;
};

Uuid Forks::flatten(const std::function<void(uint64_t)>& progress) {
  const Uuid parent = volume_.lock->header().parent;
  if (parent.is_nil()) fail(EINVAL, volume_.object, "is no fork, so there is nothing to flatten");
  VolumeMap& map = volume_.map();
  DataFiles& files = volume_.files;
  // Nothing is punched meanwhile, so what is not mapped any more when it would be copied is not.
  const SpaceReclaimer::Stop no_space_back(space_);
  if (map.ask([](const MapState& state) { return state.table().base(); }) > 0) {
    if (drop_dead())
      fail(EBUSY, volume_.object,
           "has forks itself, which need its parent too; flatten those first");
    const None none(*this);
    if (!map.ask([](const MapState& state) { return state.table().flattens; })) {
      map.change_forks(FlattenBeginRecord{});
      map.commit();
    }
    // What an earlier one has left is not gone on with: it would have to be known what of it is
    // durable, and what has been freed since.
    files.forget_copies();
    try {
      copy_foreign_cells(progress);
      files.sync_copies();
      map.change_forks(FlattenEndRecord{});
    } catch (...) {
      // It may have failed for want of the space that they take.
      volume_.attempt(
          "what was copied while it could not be flattened is still there, until it is flattened "
          "again",
          [&] { files.forget_copies(); });
      throw;
    }
    map.commit();
  }
  const auto replaced = files.end_copies();
  volume_.cell_users.wait_for_requests();
  // Those who opened the volume before read its ancestors' files still.
  const auto readers = volume_.backend.try_lock(readers_name(volume_.folder), LockMode::kExclusive);
  if (!readers)
    fail(EBUSY, volume_.object,
         "has its own copy now, but readers that began before still use the parent; flatten it "
         "again when they have disconnected");
  volume_.lock->forget_parent();
  return parent;
}

void Forks::copy_foreign_cells(const std::function<void(uint64_t)>& progress) {
  VolumeMap& map = volume_.map();
  uint64_t size_bytes_max = volume_.size_bytes;
  for (const VersionRecord& version : map.versions())
    size_bytes_max = std::max(size_bytes_max, version.size_bytes);
  const uint64_t region_end = (size_bytes_max - 1) / kRegionBytes + 1;
  ByteVector buffer(kCopyBytes);
  uint64_t done_bytes = 0;
  for (uint64_t region = 0; region < region_end; region += kRegionsAtOnce) {
    // File by file: neighbours are read together.
    for (const FreeRange& range : map.foreign_cells(region, region + kRegionsAtOnce)) {
      const GracePeriod::Request request(volume_.cell_users);
      Object& from = volume_.files.get(range.source);
      Object& to = volume_.files.copy_of(range.source);
      const uint64_t end = (range.first + range.count) * kBlockBytes;
      for (uint64_t offset = range.first * kBlockBytes; offset < end;) {
        const MutableBytes piece =
            MutableBytes(buffer).first(std::min<uint64_t>(kCopyBytes, end - offset));
        if (volume_.environment.stop.stop_requested())
          fail(ESHUTDOWN, volume_.object,
               "is not flattened yet, and the server is ending: nothing is lost, flatten it again");
        map.check_usable();
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
