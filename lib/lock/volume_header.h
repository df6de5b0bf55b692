// A volume's header (object "header"): its identity, and the lock that its size field is.
//
// While a writer holds the volume, the size field is 0 and the true size stands in the writer
// record: a program that does not know the protocol sees an empty disk and leaves it alone. The
// header changes only under the volume's held lock (lock/writer_lock.h), after being read again.
//
// Thread safety: pure functions. Errors: Error(EIO) for damage and for another volume's header,
// EINVAL for another format.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "backend/superblock.h"
#include "base/volume_types.h"
#include "lock/lock_state.h"

namespace tplstore {

inline constexpr uint64_t kHeaderMagic = 0x32445248434c5054;           // "TPLCHRD2"
inline constexpr uint64_t kHeaderMagicOfFormat1 = 0x31445248434c5054;  // "TPLCHRD1"
inline constexpr uint32_t kHeaderFormat = 2;
inline constexpr size_t kTokenBytesMax = 64;

// A VM that saw the disk; see lock/lock_state.h.
struct KnownVm {
  uint64_t vm;
  uint64_t epoch;
  char peer[112];  // who it was, as text
};

struct VolumeHeader {
  SlotPrefix prefix;
  uint32_t format;
  uint32_t block_bytes;
  uint32_t region_blocks;
  uint32_t is_taken;               // 1 while a writer holds the volume
  uint64_t incompatible_features;  // bits that a program must know to open the volume
  uint64_t compatible_features;    // bits that it may ignore; 0 so far
  Uuid volume;
  uint64_t size_bytes;      // 0 while taken
  Uuid template_uuid;       // nil without a template
  char template_name[136];  // padded with zeroes

  // The writer record; means something while taken, but for the epoch, which only rises.
  uint64_t true_size_bytes;
  uint64_t epoch;
  int64_t taken_at_ns;
  Uuid host_id;
  Uuid boot_id;
  uint64_t server_start_time;
  uint32_t server_pid;
  uint32_t is_servers_own;  // 1 while the server has it for itself, and no VM
  char host_name[64];
  char peer[128];

  Uuid parent;              // the volume that this one is a fork of; nil when it stands alone
  uint32_t parent_version;  // that it was forked from
  uint32_t reserved_parent;

  // Who it was, and who may come next.
  uint64_t owner;  // a hash of what the VM is known by; 0 when it cannot be told from others
  uint64_t written_epoch;  // the last one in which something was written
  int64_t peer_pid;        // 0 when unknown
  uint64_t peer_start_time;
  char token[72];            // that the VM named itself by, padded with zeroes
  char hand_over_token[72];  // of the VM that it will be handed to, or zeroes
  int64_t hand_over_until_ns;
  KnownVm known[8];  // the last ones that saw the disk, the newest first
  uint64_t lost;     // the last one whose acknowledged writes were lost with its server

  // What it took when it was made, or when it was closed last: for those who only look.
  uint64_t usage_epoch;  // in which that was
  uint64_t unique_bytes;
  uint64_t shared_bytes;
  uint64_t occupied_bytes;
  uint32_t current_version;
  uint32_t has_usage;  // 1; 0: it was never noted
  uint64_t reserved[26];
};
static_assert(sizeof(VolumeHeader) == 1984 && offsetof(VolumeHeader, size_bytes) == 72 &&
              offsetof(VolumeHeader, true_size_bytes) == 232 &&
              offsetof(VolumeHeader, owner) == 520 && offsetof(VolumeHeader, known) == 704 &&
              offsetof(VolumeHeader, lost) == 1728 && offsetof(VolumeHeader, usage_epoch) == 1736 &&
              offsetof(VolumeHeader, has_usage) == 1772);
static_assert(sizeof(VolumeHeader::token) > kTokenBytesMax);

// The volume reads files of others (FORMAT.md, "Forks").
inline constexpr uint64_t kFeatureFork = 1;
// Set while it is taken: what was written last may be in a journal (FORMAT.md, "The journal").
inline constexpr uint64_t kFeatureJournal = 2;

using HeaderSlots = Superblock<VolumeHeader>;

// What VMs are told apart by, and tokens are compared by; never 0 but where there is nothing.
VmId vm_id(const Peer& peer);
uint64_t token_id(const std::string& token);

std::string header_name(const std::string& folder);
std::string lock_name(const std::string& folder);     // held by who has the volume for writing
std::string readers_name(const std::string& folder);  // held, shared, by who reads versions of it
// Reads and checks the header of the volume `volume`, which is in `folder`.
VolumeHeader read_header(Object& object, const std::string& folder, const Uuid& volume,
                         HeaderSlots& slots);
VolumeHeader read_header(Backend& backend, const std::string& folder, const Uuid& volume);

uint64_t disk_size(const VolumeHeader& header);  // whether taken or not
std::optional<WriterInfo> writer_of(const VolumeHeader& header);
LockRecord record_of(const VolumeHeader& header);
std::string template_of(const VolumeHeader& header);
// Notes what the volume takes, as of the header's epoch.
void put_usage(VolumeHeader& header, const VolumeUsage& usage);
std::optional<VolumeUsage> usage_of(const VolumeHeader& header);
// Whether somebody had it since that was noted.
bool is_usage_old(const VolumeHeader& header);
template <size_t kFieldBytes>
std::string get_text(const char (&field)[kFieldBytes]) {
  return std::string(field, strnlen(field, kFieldBytes));
}
void put_text(char* field, size_t field_bytes, const std::string& text);  // cut to fit

}  // namespace tplstore
