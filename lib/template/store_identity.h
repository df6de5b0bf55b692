// The object "store": what makes a folder a store, and what its names are made with.
//
// The secret seeds all hashes of blocks and names of segments, so nobody who does not have it can
// make two contents with one name; it is 192 random bytes, made with the store. It is nobody's
// business but the store's owner's: in a directory the object has mode 0600.
//
// Thread safety: pure functions on plain data.
#pragma once

#include <cstddef>

#include "backend/backend.h"

namespace tplstore {

inline constexpr uint64_t kStoreMagic = 0x3145524f54534c54;  // "TLSTORE1"
inline constexpr uint32_t kStoreFormat = 3;
inline constexpr const char* kIdentityObject = "store";
// The segments may be apart from the store (template/origin.h).
inline constexpr uint64_t kFeatureOriginApart = 1;

struct StoreIdentity {
  uint64_t checksum;  // of all that follows in the object
  uint64_t magic;
  uint32_t format;
  uint32_t reserved;
  uint64_t incompatible_features;
  Uuid uuid;
  int64_t created_ns;
  uint64_t reserved_too;
  HashSecret secret;
};
static_assert(sizeof(StoreIdentity) == 256);
static_assert(offsetof(StoreIdentity, magic) == 8);
static_assert(offsetof(StoreIdentity, format) == 16);
static_assert(offsetof(StoreIdentity, incompatible_features) == 24);
static_assert(offsetof(StoreIdentity, uuid) == 32);
static_assert(offsetof(StoreIdentity, created_ns) == 48);
static_assert(offsetof(StoreIdentity, secret) == 64);

// Folders of volumes without a name may be kept on purpose ("removed/").
inline constexpr uint64_t kFeatureRemovedVolumes = 2;

// A new one, with a random uuid and secret.
StoreIdentity make_identity(uint64_t incompatible_features = 0);
// False when there is one already.
bool put_new_identity(Backend& backend, const StoreIdentity& identity);
// From now on programs that know nothing of that refuse the store.
void allow_feature(Backend& backend, uint64_t feature);
// ENOENT when this is no store, EIO when it is damaged, EINVAL when it has another format.
StoreIdentity load_identity(Backend& backend);
// The one thing in it that has its place in every format: EIO and ENOENT likewise.
Uuid load_store_uuid(Backend& backend);

}  // namespace tplstore
