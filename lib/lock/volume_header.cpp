// Fields in, fields out, and what of them is possible.
#include "lock/volume_header.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/names.h"

namespace tplstore {
namespace {

template <size_t N>
std::string get_text(const char (&field)[N]) {
  return std::string(field, strnlen(field, N));
}

}  // namespace

std::string header_name(const std::string& folder) { return folder + "/header"; }
std::string lock_name(const std::string& folder) { return folder + "/lock"; }
std::string readers_name(const std::string& folder) { return folder + "/readers"; }

VolumeHeader read_header(Object& object, const std::string& folder, const Uuid& volume,
                         HeaderSlots& slots) {
  const std::string name = header_name(folder);
  const std::optional<VolumeHeader> header = slots.read(object);
  if (!header) fail(EIO, name, "damaged: neither of its two slots passes its checksum");
  if (header->format != kHeaderFormat || (header->incompatible_features & ~kFeatureFork) != 0)
    fail(EINVAL, name, "was made by a newer tplstore (format {}, features {:#x}); use that one",
         header->format, header->incompatible_features);
  const std::string template_name = template_of(*header);
  const bool is_good = header->block_bytes == kBlockBytes &&
                       header->region_blocks == kRegionBlocks && header->is_taken <= 1 &&
                       (header->is_taken == 0 || header->size_bytes == 0) &&
                       disk_size(*header) > 0 && disk_size(*header) <= kVolumeBytesMax &&
                       disk_size(*header) % kSectorBytes == 0 &&
                       (template_name.empty() || is_valid_name(template_name));
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
      get_text(header.host_name), header.host_id,        header.boot_id, header.server_pid,
      header.server_start_time,   get_text(header.peer), header.epoch,   header.taken_at_ns};
}

std::string template_of(const VolumeHeader& header) { return get_text(header.template_name); }

void put_text(char* field, size_t field_bytes, const std::string& text) {
  std::memset(field, 0, field_bytes);
  std::memcpy(field, text.data(), std::min(field_bytes - 1, text.size()));
}

}  // namespace tplstore
