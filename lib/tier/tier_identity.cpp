// Made once, by put_new; read with its checksum.
#include "tier/tier_identity.h"

#include <cstring>

#include "base/units.h"

namespace tplstore {
namespace {

constexpr uint64_t kTierIdentityBytesMax = 4096;

uint64_t checksum_of(const TierIdentity& identity) {
  return checksum(bytes_of(identity).subspan(sizeof(uint64_t)), kTierMagic);
}

}  // namespace

bool put_new_tier_identity(Backend& backend, const Uuid& store, const Uuid& host,
                           const Uuid& directory) {
  TierIdentity identity{};
  identity.magic = kTierMagic;
  identity.format = kTierFormat;
  identity.store = store;
  identity.host = host;
  identity.directory = directory;
  identity.created_ns = now_unix_ns();
  identity.checksum = checksum_of(identity);
  return backend.put_new(kTierIdentityObject, bytes_of(identity));
}

std::optional<TierIdentity> load_tier_identity(Backend& backend) {
  const auto content = backend.get(kTierIdentityObject, kTierIdentityBytesMax);
  if (!content) return std::nullopt;
  TierIdentity identity;
  const auto refuse = [&] {
    fail(EIO, backend.describe(),
         "damaged: what says whose it is ('{0}') fails its checksum; remove '{0}' and 'segments' "
         "in it, then add it again with 'tplstore tier add'",
         kTierIdentityObject);
  };
  if (content->size() < sizeof identity) refuse();
  std::memcpy(&identity, content->data(), sizeof identity);
  if (identity.magic == kTierMagic && identity.format > kTierFormat)
    fail(EINVAL, backend.describe(),
         "was made a tier directory by a newer tplstore (format {}); use that one",
         identity.format);
  if (content->size() != sizeof identity || identity.magic != kTierMagic ||
      identity.format != kTierFormat || identity.checksum != checksum_of(identity))
    refuse();
  return identity;
}

}  // namespace tplstore
