// Made once, with a secret from the kernel; read with its checksum.
#include "template/store_identity.h"

#include <algorithm>

#include "base/units.h"

namespace tplstore {
namespace {

constexpr uint64_t kIdentityBytesMax = 4096;
constexpr uint64_t kKnownFeatures = kFeatureOriginApart | kFeatureRemovedVolumes;
// What all formats have in common.
constexpr uint64_t kHeadBytes = offsetof(StoreIdentity, reserved_too);

uint64_t checksum_of(Bytes object) { return checksum(object.subspan(sizeof(uint64_t))); }

// Of any format, with the object's size.
std::pair<StoreIdentity, size_t> read_identity(Backend& backend) {
  const auto content = backend.get(kIdentityObject, kIdentityBytesMax);
  if (!content)
    fail(ENOENT, backend.describe(), "is not a store; make one with 'tplstore init {}'",
         backend.describe());
  StoreIdentity identity{};
  if (!content->empty())
    std::memcpy(&identity, content->data(), std::min(content->size(), sizeof identity));
  if (content->size() < kHeadBytes || identity.magic != kStoreMagic ||
      identity.checksum != checksum_of(*content))
    fail(EIO, backend.describe(), "damaged: its identity ('{}') fails its checksum",
         kIdentityObject);
  return {identity, content->size()};
}

}  // namespace

StoreIdentity make_identity(uint64_t incompatible_features) {
  StoreIdentity identity{};
  identity.magic = kStoreMagic;
  identity.format = kStoreFormat;
  identity.incompatible_features = incompatible_features;
  identity.uuid = random_uuid();
  identity.created_ns = now_unix_ns();
  identity.secret = random_secret();
  identity.checksum = checksum_of(bytes_of(identity));
  return identity;
}

bool put_new_identity(Backend& backend, const StoreIdentity& identity) {
  return backend.put_new(kIdentityObject, bytes_of(identity));
}

void allow_feature(Backend& backend, uint64_t feature) {
  StoreIdentity identity = load_identity(backend);
  if ((identity.incompatible_features & feature) != 0) return;
  identity.incompatible_features |= feature;
  identity.checksum = checksum_of(bytes_of(identity));
  const auto object = backend.open(kIdentityObject, Access::kWrite, Purpose::kMetadata);
  object->write(0, bytes_of(identity));  // within one sector, so there is no half of it
  object->sync();
}

StoreIdentity load_identity(Backend& backend) {
  const auto [identity, bytes] = read_identity(backend);
  if (identity.format < kStoreFormat)
    fail(EINVAL, backend.describe(),
         "was made by an older tplstore (format {}), which this one does not read; export its "
         "volumes and templates with that one",
         identity.format);
  if (identity.format != kStoreFormat || (identity.incompatible_features & ~kKnownFeatures) != 0)
    fail(EINVAL, backend.describe(), "was made by a newer tplstore (format {}); use that one",
         identity.format);
  if (bytes != sizeof identity)
    fail(EIO, backend.describe(), "damaged: its identity ('{}') has {} bytes", kIdentityObject,
         bytes);
  return identity;
}

Uuid load_store_uuid(Backend& backend) { return read_identity(backend).first.uuid; }

}  // namespace tplstore
