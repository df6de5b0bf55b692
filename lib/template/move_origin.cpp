// Every segment is compared with its hashes before it is copied, and byte by byte after it.
#include "template/move_origin.h"

#include <algorithm>
#include <set>

#include "template/gc_lock.h"
#include "template/segment.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

constexpr uint64_t kMoveSlot = 1;  // of gc.lock

class Copying {
 public:
  Copying(Backend& from, Backend& to, const HashSecret& secret, const OriginMoveOptions& options)
      : from_(from), to_(to), secret_(secret), options_(options) {}

  // All that are there now and were not copied yet.
  void copy_all() {
    const std::vector<Hash128> names = list_segments(from_);
    for (size_t i = 0; i < names.size(); ++i) {
      if (options_.interrupted && options_.interrupted())
        fail(EINTR, to_.describe(), "interrupted; the same move goes on from here");
      if (!copied_.contains(names[i]) && copy(names[i])) copied_.insert(names[i]);
      if (options_.progress) options_.progress(i + 1, names.size());
    }
    result.segments = names.size();
  }
  // What an earlier attempt has copied, and is there no more.
  void remove_others() {
    const std::vector<Hash128> names = list_segments(from_);
    for (const Hash128& name : list_segments(to_))
      if (!std::ranges::binary_search(names, name)) to_.remove(segment_path(name));
  }

  OriginMove result;

 private:
  // False when it has just been removed.
  bool copy(const Hash128& name) {
    const std::string path = segment_path(name);
    const auto there = from_.get(path, kSegmentBytesMax);
    if (!there) return false;
    const auto source = from_.open(path, Access::kRead, Purpose::kData);
    const auto table = read_segment_table(*source, name, secret_);
    const Bytes blocks =
        Bytes(*there).first(segment_table_offset(static_cast<uint32_t>(table.size())));
    std::vector<uint32_t> damaged = find_damaged_blocks(blocks, 0, table, secret_);
    std::erase_if(damaged, [&](uint32_t block) { return is_given_up(block_of(blocks, block)); });
    if (!damaged.empty())
      fail(
          EIO, path,
          "damaged: {} of {} blocks do not have their hash; nothing is moved before it is repaired "
          "('tplstore template verify' names the templates)",
          damaged.size(), table.size());
    if (has_bytes(path, *there)) return true;
    if (to_.remove(path)) to_.sync_folder(segment_folder(name));
    to_.put_new(path, *there);
    punch_zeroes(path, blocks);
    if (!has_bytes(path, *there))
      fail(EIO, to_.describe(), "{} reads back with other bytes than were written", path);
    result.copied_bytes += there->size();
    return true;
  }

  static Bytes block_of(Bytes blocks, uint32_t index) {
    return blocks.subspan(index * uint64_t{kBlockBytes}, kBlockBytes);
  }

  // As the storage has them.
  bool has_bytes(const std::string& path, Bytes expected) {
    try {
      const auto object = to_.open(path, Access::kRead, Purpose::kData);
      if (object->size_bytes() != expected.size()) return false;
      object->drop_cached();
      ByteVector bytes(expected.size());
      object->read(0, bytes);
      return std::ranges::equal(bytes, expected);
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;
      return false;
    }
  }

  void punch_zeroes(const std::string& path, Bytes blocks) {
    const auto count = static_cast<uint32_t>(blocks.size() / kBlockBytes);
    std::unique_ptr<Object> object;
    for (uint32_t end, first = 0; first < count; first = end) {
      end = first + 1;
      if (!is_zero(block_of(blocks, first))) continue;
      while (end < count && is_zero(block_of(blocks, end))) ++end;
      if (!object) object = to_.open(path, Access::kWrite, Purpose::kData);
      object->punch(first * uint64_t{kBlockBytes}, (end - first) * uint64_t{kBlockBytes});
    }
    if (object) object->sync();
  }

  Backend& from_;
  Backend& to_;
  const HashSecret& secret_;
  const OriginMoveOptions& options_;
  std::set<Hash128> copied_;
};

// Only that very place: its directory may be the origin again, under another name.
bool leave(Backend& store, const OriginPlace& place, const OpenLocation& open_location) {
  if (place.location.empty()) {
    store.remove_folder("segments");
    store.remove_folder("tables");
    store.sync_folder("");
    return true;
  }
  try {
    const auto directory = open_location(place.location);
    if (is_origin(*directory, load_identity(store).uuid, place.id)) {
      directory->remove_folder("segments");
      directory->remove_folder("tables");
      directory->sync_folder("");  // before what tells whose they are
      directory->remove(kOriginObject);
      directory->sync_folder("");
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::string leave_all(Backend& store, const OpenLocation& open_location) {
  std::vector<OriginPlace> places = list_origin_places(store);
  const OriginPlace present = places.back();
  places.pop_back();
  std::string left;
  for (const OriginPlace& place : places) {
    if (place.location == present.location) continue;
    if (!leave(store, place, open_location)) left = place.location;
  }
  if (!left.empty()) return left;
  for (const OriginPlace& place : places)
    if (place.number != 0) store.remove(fmt::format("origin.{}", place.number));
  if (places.size() > 1) store.sync_folder("");
  return left;
}

}  // namespace

std::string leave_former_origins(Backend& store, const OpenLocation& open_location) {
  const auto only_one = store.try_lock("gc.lock", LockMode::kExclusive, kMoveSlot);
  return only_one ? leave_all(store, open_location) : "";
}

OriginMove move_origin(Backend& store, const std::string& location,
                       const OriginMoveOptions& options) {
  const StoreIdentity identity = load_identity(store);
  const auto only_one = store.try_lock("gc.lock", LockMode::kExclusive, kMoveSlot);
  if (!only_one) fail(EBUSY, store.describe(), "its segments are being moved by another process");
  leave_all(store, options.open_location);
  const OriginPlace present = list_origin_places(store).back();
  const OriginPlace next{present.number + 1, random_uuid(), location};
  Origin from(store, options.open_location);
  from.check();

  std::unique_ptr<Backend> apart;
  if (!location.empty()) {
    apart = options.open_location(location);
    if (is_origin(*apart, identity.uuid, present.id))
      fail(EINVAL, location, "the segments are there already");
    claim_origin(*apart, identity.uuid, next.id);
  } else if (present.location.empty()) {
    fail(EINVAL, store.describe(), "the segments are in the store already");
  }
  Backend& to = apart ? *apart : store;
  Copying copying(from, to, identity.secret, options);
  copying.copy_all();
  {
    const auto alone = hold_gc_lock(store, LockMode::kExclusive, store.describe());
    if (!alone)
      fail(EBUSY, store.describe(),
           "an import, a removal or a gc is running; the segments are copied, but not moved: try "
           "again when it has ended");
    copying.copy_all();
    copying.remove_others();
    if (apart) allow_feature(store, kFeatureOriginApart);
    put_origin_place(store, next);
  }
  copying.result.left = leave_all(store, options.open_location);
  return copying.result;
}

}  // namespace tplstore
