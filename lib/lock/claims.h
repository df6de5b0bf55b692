// The claims of a volume: objects "owner.<epoch>", each made by the one who is to have the volume
// from that epoch on, before its header says so.
//
// Locks of files need not meet between hosts; an object is made by one only, everywhere. So the
// first to make the next epoch's has the right to write the header. Which epochs need a claim:
//   - the first of whoever has not had the volume: a VM, the server itself, a VM that comes back to
//     a server that died, and an operator who breaks a record. From there on the record names this
//     host, and every other one refuses, so the epochs that follow while the volume is open
//     (between the server and its VMs, a hand-over) need none;
//   - none where `lock` is only held for a while, and the epoch does not rise.
// Who has made a claim reads the header again: it may have come from before the epoch was another
// host's, and the claim of that removed since. Only a header that is as it was is followed.
//
// A claim that no record has followed belongs to one who died over it or gave up, or has not come
// to it yet. Of this host it is the former, for `lock` is held by who looks: it is passed over, and
// the next epoch is tried. Of another host nobody can tell, so it is as good as that host's record.
// An operator ends either.
//
// When an epoch is durable in the header, claims on the one before the last are removed, and those
// a few before, which a crash may have brought back. One that is missing is no harm; nor is one too
// many, for only those of epochs to come are looked at.
//
// A claim is untrusted. One that cannot be read is this host's where no other one can have the
// storage (a crash may have left it without its content), else another host's.
//
// Thread safety: pure functions; the caller holds `lock`. Errors: what the backend throws; EIO when
// there are more than crashes can have left.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "base/volume_types.h"
#include "lock/lock_state.h"

namespace tplstore {

inline constexpr uint64_t kClaimMagic = 0x31524e574f4c5054;  // "TPLOWNR1"

struct HostClaim {
  uint64_t checksum;  // of all that follows, seeded with the magic
  uint64_t magic;
  Uuid volume;
  uint64_t epoch;
  int64_t made_at_ns;
  Uuid host_id;
  Uuid boot_id;
  uint64_t server_start_time;
  uint32_t server_pid;
  uint32_t reserved;
  char host_name[64];
  uint64_t reserved_too[4];
};
static_assert(sizeof(HostClaim) == 192 && offsetof(HostClaim, volume) == 16 &&
              offsetof(HostClaim, host_id) == 48 && offsetof(HostClaim, host_name) == 96);

struct ClaimsFound {
  ClaimsSeen seen;
  std::optional<WriterInfo>
      other;  // who made another host's; its epoch is the last that is claimed
};

std::string claim_name(const std::string& folder, uint64_t epoch);
// What is claimed behind the epoch of the record.
ClaimsFound find_claims(Backend& backend, const std::string& folder, const Uuid& volume,
                        uint64_t record_epoch);
// False when another one has. On a full disk it has no content, and may take the place of old ones.
bool make_claim(Backend& backend, const std::string& folder, const Uuid& volume, uint64_t epoch,
                uint64_t record_epoch);
// `epoch` is durable in the header, and before it was another one.
void remove_old_claims(Backend& backend, const std::string& folder, uint64_t before,
                       uint64_t epoch) noexcept;

}  // namespace tplstore
