// Made, looked for and removed by name: the folder is never listed, for it may be a long one.
#include "lock/claims.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/host.h"
#include "base/units.h"

namespace tplstore {
namespace {

// In a row; crashes leave one at a time.
constexpr uint64_t kClaimsMax = 1024;
// Removals that a crash may have undone.
constexpr uint64_t kRemovedAgain = 8;

uint64_t checksum_of(const HostClaim& claim) {
  return checksum(bytes_of(claim).subspan(sizeof(uint64_t)), kClaimMagic);
}

HostClaim claim_of_this_process(const Uuid& volume, uint64_t epoch) {
  const HostIdentity& host = this_host();
  HostClaim claim{};
  claim.magic = kClaimMagic;
  claim.volume = volume;
  claim.epoch = epoch;
  claim.made_at_ns = now_unix_ns();
  claim.host_id = host.host_id;
  claim.boot_id = host.boot_id;
  claim.server_pid = static_cast<uint32_t>(getpid());
  claim.server_start_time = own_start_time();
  const size_t length = std::min(host.host_name.size(), sizeof claim.host_name - 1);
  std::memcpy(claim.host_name, host.host_name.data(), length);
  claim.checksum = checksum_of(claim);
  return claim;
}

// Nothing when it cannot be read, or is none.
std::optional<HostClaim> decode(Bytes content, const Uuid& volume, uint64_t epoch) {
  HostClaim claim;
  if (content.size() != sizeof claim) return std::nullopt;
  std::memcpy(&claim, content.data(), sizeof claim);
  const bool is_good = claim.checksum == checksum_of(claim) && claim.magic == kClaimMagic &&
                       claim.volume == volume && claim.epoch == epoch &&
                       claim.host_name[sizeof claim.host_name - 1] == '\0';
  return is_good ? std::optional(claim) : std::nullopt;
}

WriterInfo claimant_of(const std::optional<HostClaim>& claim) {
  WriterInfo writer;
  writer.peer = "one who has not opened it yet";
  writer.host_name = claim ? claim->host_name : "unknown";
  if (!claim) return writer;
  writer.host_id = claim->host_id;
  writer.boot_id = claim->boot_id;
  writer.server_pid = claim->server_pid;
  writer.server_start_time = claim->server_start_time;
  writer.since_ns = claim->made_at_ns;
  return writer;
}

// What has that name, and whether anything has.
bool read_claim(Backend& backend, const std::string& name, ByteVector& content) {
  try {
    auto found = backend.get(name, sizeof(HostClaim));
    if (!found) return false;
    content = std::move(*found);
  } catch (const Error& error) {
    const bool is_none = error.code() == EFBIG || error.code() == EISDIR || error.code() == ELOOP;
    if (!is_none) throw;
    content.clear();
  }
  return true;
}

bool is_full(const Error& error) { return error.code() == ENOSPC || error.code() == EDQUOT; }

}  // namespace

std::string claim_name(const std::string& folder, uint64_t epoch) {
  return fmt::format("{}/owner.{}", folder, epoch);
}

ClaimsFound find_claims(Backend& backend, const std::string& folder, const Uuid& volume,
                        uint64_t record_epoch) {
  ClaimsFound found;
  ByteVector content;
  while (read_claim(backend, claim_name(folder, record_epoch + found.seen.count + 1), content)) {
    const uint64_t epoch = record_epoch + ++found.seen.count;
    if (found.seen.count > kClaimsMax)
      fail(EIO, claim_name(folder, epoch),
           "there are more than {} claims on the volume that nothing came of, and no crashes leave "
           "that many: remove the objects 'owner.*' in {} when no host has the volume",
           kClaimsMax, folder);
    const std::optional<HostClaim> claim = decode(content, volume, epoch);
    const bool is_own = claim ? this_host().is_same(claim->host_id, claim->boot_id)
                              : backend.kind().reach == StorageKind::Reach::kOneHost;
    if (!is_own) found.other = claimant_of(claim);
  }
  found.seen.is_other_hosts = found.other.has_value();
  if (found.other) found.other->epoch = record_epoch + found.seen.count;
  return found;
}

bool make_claim(Backend& backend, const std::string& folder, const Uuid& volume, uint64_t epoch,
                uint64_t record_epoch) {
  const std::string name = claim_name(folder, epoch);
  const HostClaim claim = claim_of_this_process(volume, epoch);
  try {
    return backend.put_claim(name, bytes_of(claim));
  } catch (const Error& error) {
    if (!is_full(error)) throw;
  }
  // The header is past these.
  for (uint64_t old = record_epoch; old > 0 && old + kRemovedAgain > record_epoch; --old)
    backend.remove(claim_name(folder, old));
  try {
    return backend.put_claim(name, bytes_of(claim));
  } catch (const Error& error) {
    if (!is_full(error)) throw;
  }
  try {
    backend.create(name, 0, Purpose::kMetadata);
    return true;
  } catch (const Error& error) {
    if (error.code() != EEXIST) throw;
    return false;
  }
}

void remove_old_claims(Backend& backend, const std::string& folder, uint64_t before,
                       uint64_t epoch) noexcept {
  if (epoch < kClaimsKept) return;
  const uint64_t first = before > kRemovedAgain ? before - kRemovedAgain : 1;
  try {
    for (uint64_t old = first; old + kClaimsKept <= epoch; ++old)
      backend.remove(claim_name(folder, old));
  } catch (const std::exception&) {
    // One too many is no harm.
  }
}

}  // namespace tplstore
