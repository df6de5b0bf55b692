// The object "tplstore-tier": what makes a directory one of the tier of a store on a host.
//
// It is made once, by `tier add`, before the table names the directory. Where it is missing, or
// another's, the directory is not there: an SSD that is not mounted leaves an empty folder on the
// root's file system, which copies of segments would fill.
//
// Thread safety: pure functions on plain data.
#pragma once

#include <cstddef>
#include <optional>

#include "backend/backend.h"

namespace tplstore {

inline constexpr uint64_t kTierMagic = 0x31524549544c5054;  // "TPLTIER1"
inline constexpr uint32_t kTierFormat = 1;
inline constexpr const char* kTierIdentityObject = "tplstore-tier";

struct TierIdentity {
  uint64_t checksum;  // of all that follows, seeded with the magic
  uint64_t magic;
  uint32_t format;
  uint32_t reserved;
  Uuid store;
  Uuid host;  // as base/host.h has it
  Uuid directory;
  int64_t created_ns;
};
static_assert(sizeof(TierIdentity) == 80);
static_assert(offsetof(TierIdentity, magic) == 8);
static_assert(offsetof(TierIdentity, format) == 16);
static_assert(offsetof(TierIdentity, store) == 24);
static_assert(offsetof(TierIdentity, host) == 40);
static_assert(offsetof(TierIdentity, directory) == 56);
static_assert(offsetof(TierIdentity, created_ns) == 72);

// Durable. False when there is one already.
bool put_new_tier_identity(Backend& backend, const Uuid& store, const Uuid& host,
                           const Uuid& directory);
// Nothing when there is none. EIO when it is damaged, EINVAL when it has another format.
std::optional<TierIdentity> load_tier_identity(Backend& backend);

}  // namespace tplstore
