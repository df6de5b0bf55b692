// Fields in, fields out, and what of them is possible.
#include "lock/volume_header.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/host.h"
#include "base/names.h"

namespace tplstore {
namespace {

// Whether this is a header as it was before there was a record of who may come next.
bool is_of_format_1(Object& object) {
  return std::ranges::any_of(std::array{uint64_t{0}, kSlotBytes}, [&](uint64_t slot) {
    SlotPrefix prefix;
    object.read(slot, std::as_writable_bytes(std::span<SlotPrefix, 1>(&prefix, 1)));
    return prefix.magic == kHeaderMagicOfFormat1;
  });
}

bool is_token(const char (&field)[72]) {
  const std::string text = get_text(field);
  return text.empty() || is_valid_token(text);
}

VmId vm_hash(const std::string& text) { return std::max<VmId>(1, checksum(as_bytes(text))); }

}  // namespace

uint64_t token_id(const std::string& token) { return token.empty() ? 0 : vm_hash(token); }

VmId vm_id(const Peer& peer) {
  if (!peer.is_vm || (peer.pid == 0 && peer.token.empty())) return 0;
  if (peer.pid == 0) return token_id(peer.token);
  const HostIdentity& host = this_host();
  // A boot is one host's alone, and the machine id is always there.
  return vm_hash(fmt::format("{} {} {} {} {}", host.machine_id.text(), host.boot_id.text(),
                             peer.pid, peer.start_time, peer.token));
}

std::string header_name(const std::string& folder) { return folder + "/header"; }
std::string lock_name(const std::string& folder) { return folder + "/lock"; }
std::string readers_name(const std::string& folder) { return folder + "/readers"; }

VolumeHeader read_header(Object& object, const std::string& folder, const Uuid& volume,
                         HeaderSlots& slots) {
  const std::string name = header_name(folder);
  const std::optional<VolumeHeader> header = slots.read(object);
  if (!header && is_of_format_1(object))
    fail(EINVAL, name,
         "was made by an older tplstore (format 1), which this one does not read; carry the volume "
         "over with that one's 'tplstore volume export'");
  if (!header) fail(EIO, name, "damaged: neither of its two slots passes its checksum");
  constexpr uint64_t kKnownFeatures = kFeatureFork | kFeatureJournal;
  if (header->format != kHeaderFormat || (header->incompatible_features & ~kKnownFeatures) != 0)
    fail(EINVAL, name, "was made by a newer tplstore (format {}, features {:#x}); use that one",
         header->format, header->incompatible_features);
  const std::string template_name = template_of(*header);
  const bool is_good =
      header->block_bytes == kBlockBytes && header->region_blocks == kRegionBlocks &&
      header->is_taken <= 1 && (header->is_taken == 0 || header->size_bytes == 0) &&
      disk_size(*header) > 0 && disk_size(*header) <= kVolumeBytesMax &&
      disk_size(*header) % kSectorBytes == 0 &&
      (template_name.empty() || is_valid_name(template_name)) && is_token(header->token) &&
      is_token(header->hand_over_token) && header->written_epoch <= header->epoch &&
      header->is_servers_own <= 1 && header->peer_pid >= 0;
  if (!is_good) fail(EIO, name, "damaged: it holds impossible values");
  if (header->volume != volume) fail_of_another(name, header->volume, volume);
  return *header;
}

VolumeHeader read_header(Backend& backend, const std::string& folder, const Uuid& volume) {
  const auto object = backend.open(header_name(folder), Access::kRead, Purpose::kMetadata);
  HeaderSlots slots(kHeaderMagic);
  return read_header(*object, folder, volume, slots);
}

uint64_t disk_size(const VolumeHeader& header) {
  return header.is_taken != 0 ? header.true_size_bytes : header.size_bytes;
}

std::optional<WriterInfo> writer_of(const VolumeHeader& header) {
  if (header.is_taken == 0) return std::nullopt;
  return WriterInfo{
      get_text(header.host_name), header.host_id,        header.boot_id,        header.server_pid,
      header.server_start_time,   get_text(header.peer), header.epoch,          header.taken_at_ns,
      get_text(header.token),     header.peer_pid,       header.peer_start_time};
}

LockRecord record_of(const VolumeHeader& header) {
  LockRecord record;
  record.epoch = header.epoch;
  record.is_taken = header.is_taken != 0;
  record.is_servers_own = header.is_servers_own != 0;
  record.owner = header.owner;
  record.written_epoch = header.written_epoch;
  for (size_t i = 0; i < record.known.size(); ++i)
    record.known[i] = {header.known[i].vm, header.known[i].epoch};
  record.hand_over_token = token_id(get_text(header.hand_over_token));
  record.hand_over_until_ns = header.hand_over_until_ns;
  record.lost = header.lost;
  return record;
}

std::string template_of(const VolumeHeader& header) { return get_text(header.template_name); }

void put_usage(VolumeHeader& header, const VolumeUsage& usage) {
  header.usage_epoch = header.epoch;
  header.unique_bytes = usage.unique_bytes;
  header.shared_bytes = usage.shared_bytes;
  header.occupied_bytes = usage.occupied_bytes;
  header.current_version = usage.current_version;
  header.has_usage = 1;
}

std::optional<VolumeUsage> usage_of(const VolumeHeader& header) {
  if (header.has_usage == 0) return std::nullopt;
  return VolumeUsage{header.current_version, header.unique_bytes, header.shared_bytes,
                     header.occupied_bytes};
}

bool is_usage_old(const VolumeHeader& header) {
  return header.is_taken != 0 || header.usage_epoch != header.epoch;
}

void put_text(char* field, size_t field_bytes, const std::string& text) {
  std::memset(field, 0, field_bytes);
  std::memcpy(field, text.data(), std::min(field_bytes - 1, text.size()));
}

}  // namespace tplstore
