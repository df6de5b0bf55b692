// MBR and GPT entries, the largest end of them against the size of the disk.
#include "transfer/partition_check.h"

#include <fmt/format.h>

#include <array>

namespace tplstore {
namespace {

using Read = std::function<void(uint64_t offset, MutableBytes into)>;

struct MbrEntry {
  uint8_t status;
  uint8_t first_chs[3];
  uint8_t type;
  uint8_t last_chs[3];
  uint32_t first_sector;
  uint32_t sector_count;
};
static_assert(sizeof(MbrEntry) == 16);
constexpr uint64_t kMbrEntriesOffset = 446;
constexpr uint8_t kMbrTypeGpt = 0xee;

struct GptHeader {
  char signature[8];
  uint32_t revision;
  uint32_t header_bytes;
  uint32_t header_crc;
  uint32_t reserved;
  uint64_t own_sector;
  uint64_t backup_sector;
  uint64_t first_usable_sector;
  uint64_t last_usable_sector;
  uint8_t disk_guid[16];
  uint64_t entries_sector;
  uint32_t entry_count;
  uint32_t entry_bytes;
};
static_assert(sizeof(GptHeader) == 88 && offsetof(GptHeader, backup_sector) == 32 &&
              offsetof(GptHeader, entries_sector) == 72);

struct GptEntry {
  uint64_t type_guid[2];
  uint64_t own_guid[2];
  uint64_t first_sector;
  uint64_t last_sector;
};
static_assert(sizeof(GptEntry) == 48);

template <typename T>
T take(Bytes bytes, uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.subspan(offset, sizeof(T)).data(), sizeof(T));
  return value;
}

bool is_text(Bytes bytes, uint64_t offset, std::string_view text) {
  return std::memcmp(bytes.data() + offset, text.data(), text.size()) == 0;
}

// A boot sector of a file system ends like an MBR and has code where an MBR has its table.
bool has_mbr(Bytes sector) {
  if (sector[510] != std::byte{0x55} || sector[511] != std::byte{0xaa}) return false;
  if (is_text(sector, 54, "FAT") || is_text(sector, 82, "FAT") || is_text(sector, 3, "NTFS") ||
      is_text(sector, 3, "EXFAT"))
    return false;
  for (int i = 0; i < 4; ++i) {
    const auto entry = take<MbrEntry>(sector, kMbrEntriesOffset + i * sizeof(MbrEntry));
    if (entry.status != 0 && entry.status != 0x80) return false;
    if (entry.type == 0 && entry.sector_count != 0) return false;
  }
  return true;
}

std::optional<std::string> check_mbr(uint64_t size_bytes, Bytes sector) {
  if (!has_mbr(sector)) return std::nullopt;
  for (int i = 0; i < 4; ++i) {
    const auto entry = take<MbrEntry>(sector, kMbrEntriesOffset + i * sizeof(MbrEntry));
    // The entry that protects a GPT may have any size.
    if (entry.type == 0 || entry.type == kMbrTypeGpt || entry.sector_count == 0) continue;
    const uint64_t end = (uint64_t{entry.first_sector} + entry.sector_count) * kSectorBytes;
    if (end > size_bytes) return fmt::format("partition {} of its MBR ends at byte {}", i + 1, end);
  }
  return std::nullopt;
}

std::optional<std::string> check_gpt(uint64_t size_bytes, uint64_t sector_bytes, const Read& read) {
  if (size_bytes < 2 * sector_bytes) return std::nullopt;
  std::array<std::byte, sizeof(GptHeader)> bytes;
  read(sector_bytes, bytes);
  const auto header = take<GptHeader>(bytes, 0);
  if (!is_text(bytes, 0, "EFI PART") || header.own_sector != 1) return std::nullopt;
  const uint64_t sectors = size_bytes / sector_bytes;
  if (header.backup_sector >= sectors)
    return fmt::format("the backup of its GPT is at sector {}", header.backup_sector);
  if (header.last_usable_sector >= sectors)
    return fmt::format("its GPT uses sectors up to {}", header.last_usable_sector);

  constexpr uint32_t kEntriesMax = 1024;
  if (header.entry_bytes < sizeof(GptEntry) || header.entry_bytes > 4096 ||
      header.entry_count > kEntriesMax || header.entries_sector >= sectors)
    return std::nullopt;
  ByteVector table(uint64_t{header.entry_bytes} * header.entry_count);
  const uint64_t table_offset = header.entries_sector * sector_bytes;
  if (table.size() > size_bytes - table_offset) return "the table of its GPT reaches past it";
  if (!table.empty()) read(table_offset, table);
  for (uint32_t i = 0; i < header.entry_count; ++i) {
    const auto entry = take<GptEntry>(table, uint64_t{i} * header.entry_bytes);
    const bool is_used = (entry.type_guid[0] | entry.type_guid[1]) != 0;
    if (is_used && entry.last_sector >= sectors)
      return fmt::format("partition {} of its GPT ends at sector {}", i + 1, entry.last_sector);
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> find_partition_past_end(uint64_t size_bytes, const Read& read) {
  if (size_bytes < kSectorBytes) return std::nullopt;
  std::array<std::byte, kSectorBytes> first;
  read(0, first);
  if (auto fault = check_mbr(size_bytes, first)) return fault;
  // On disks with 512-byte and with 4096-byte sectors.
  if (auto fault = check_gpt(size_bytes, 512, read)) return fault;
  return check_gpt(size_bytes, 4096, read);
}

}  // namespace tplstore
