// Magic numbers and header fields at their offsets, every one checked against the file's size.
#include "transfer/image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace tplstore {
namespace {

constexpr uint64_t kTableBytesMax = uint64_t{1} << 30;

bool starts_with(Bytes bytes, std::string_view text, size_t offset = 0) {
  return bytes.size() >= offset + text.size() &&
         std::memcmp(bytes.data() + offset, text.data(), text.size()) == 0;
}

uint64_t big_endian(uint64_t value) { return __builtin_bswap64(value); }
uint32_t big_endian(uint32_t value) { return __builtin_bswap32(value); }

// The header of vmdk's sparse extents, little-endian and packed.
struct [[gnu::packed]] VmdkHeader {
  char magic[4];
  uint32_t version;
  uint32_t flags;
  uint64_t capacity_sectors;
  uint64_t grain_sectors;
  uint64_t descriptor_sector;
  uint64_t descriptor_sectors;
  uint32_t table_entries;
  uint64_t spare_directory_sector;
  uint64_t directory_sector;
  uint64_t overhead_sectors;
};
static_assert(sizeof(VmdkHeader) == 72);
constexpr uint32_t kVmdkCompressed = 1u << 16;
constexpr uint64_t kVmdkDirectoryAtEnd = UINT64_MAX;

// A vmdk descriptor that is a text file of its own, told as qemu tells it.
bool is_vmdk_descriptor(std::string_view text) {
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const std::string_view line = text.substr(0, newline);
    if (line.starts_with("version=")) return true;
    const bool is_blank = line.find_first_not_of(" \r") == std::string_view::npos;
    if (!is_blank && line[0] != '#') return false;
    if (newline == std::string_view::npos) return false;
    text.remove_prefix(newline + 1);
  }
  return false;
}

}  // namespace

ImageFile::ImageFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: a named pipe must not make us wait for its writer.
  fd_.reset(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd_) fail_errno(errno, path, "cannot open this image");
  struct stat status;
  if (fstat(fd_.get(), &status) != 0) fail_errno(errno, path, "cannot stat this image");
  is_block_device_ = S_ISBLK(status.st_mode);
  if (!S_ISREG(status.st_mode) && !is_block_device_)
    fail(EINVAL, path, "is not a regular file or block device: give the image itself");
  const off_t end = lseek(fd_.get(), 0, SEEK_END);
  if (end < 0) fail_errno(errno, path, "cannot find the size of this image");
  size_bytes_ = static_cast<uint64_t>(end);
  if (size_bytes_ == 0) fail(EINVAL, path, "is empty: there is no image in it");
}

bool ImageFile::read(uint64_t offset, MutableBytes into) const {
  if (offset > size_bytes_ || into.size() > size_bytes_ - offset) return false;
  while (!into.empty()) {
    const ssize_t count = pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno(errno, path_, "cannot read this image");
    if (count == 0) return false;
    into = into.subspan(static_cast<size_t>(count));
    offset += static_cast<size_t>(count);
  }
  return true;
}

template <typename T>
std::optional<T> ImageFile::take(uint64_t offset) const {
  T value;
  if (!read(offset, std::as_writable_bytes(std::span(&value, 1)))) return std::nullopt;
  return value;
}

ByteVector ImageFile::head(uint64_t count) const {
  ByteVector bytes(std::min(count, size_bytes_));
  if (!read(0, bytes)) bytes.clear();
  return bytes;
}

std::optional<std::string_view> ImageFile::magic_format() const {
  const ByteVector bytes = head(1024);
  if (starts_with(bytes, "QFI\xfb")) return "qcow2";
  if (starts_with(bytes, "KDMV") || starts_with(bytes, "COWD")) return "vmdk";
  if (is_vmdk_descriptor(to_text(bytes))) return "vmdk";
  if (starts_with(bytes, "vhdxfile")) return "vhdx";
  if (starts_with(bytes, "\x7f\x10\xda\xbe", 64)) return "vdi";
  if (starts_with(bytes, "conectix")) return "vpc";
  if (starts_with(bytes, std::string_view("QED\0", 4))) return "qed";
  return std::nullopt;
}

std::optional<std::string_view> ImageFile::archive_kind() const {
  const ByteVector bytes = head(512);
  if (starts_with(bytes, "\x1f\x8b")) return "gzip";
  if (starts_with(bytes, std::string_view("\xfd"
                                          "7zXZ\0",
                                          6)))
    return "xz";
  if (starts_with(bytes, "\x28\xb5\x2f\xfd")) return "zstd";
  if (starts_with(bytes, "BZh")) return "bzip2";
  if (starts_with(bytes, "PK\x03\x04")) return "zip";
  if (starts_with(bytes, "7z\xbc\xaf\x27\x1c")) return "7z";
  if (starts_with(bytes, "ustar", 257)) return "tar (an OVA, perhaps)";
  return std::nullopt;
}

std::optional<std::string_view> ImageFile::find_reference(std::string_view format) const {
  const ByteVector bytes = head(1024);
  if (starts_with(bytes, "QFI\xfb")) {
    if (big_endian(take<uint64_t>(8).value_or(0)) != 0) return "a backing file";
    constexpr uint64_t kExternalData = 1u << 2;
    if (big_endian(take<uint32_t>(4).value_or(0)) >= 3 &&
        (big_endian(take<uint64_t>(72).value_or(0)) & kExternalData) != 0)
      return "an external data file";
  }
  if (starts_with(bytes, "KDMV")) {
    const auto header = take<VmdkHeader>(0);
    // Then its embedded descriptor is followed, which may name any file.
    if (header && header->capacity_sectors == 0) return "extents in other files";
  } else if (!starts_with(bytes, "COWD") &&
             (format == "vmdk" || is_vmdk_descriptor(to_text(bytes)))) {
    // Whatever does not begin like an extent is read as a descriptor.
    return "extents in other files";
  }
  return std::nullopt;
}

std::optional<uint64_t> ImageFile::qcow2_compressed_end() const {
  const auto version = take<uint32_t>(4), cluster_bits = take<uint32_t>(20);
  const auto l1_count = take<uint32_t>(36);
  const auto l1_offset = take<uint64_t>(40);
  if (!version || !cluster_bits || !l1_count || !l1_offset) return std::nullopt;
  const uint32_t bits = big_endian(*cluster_bits);
  if (bits < 9 || bits > 21) fail(EINVAL, path_, "damaged: clusters of 2^{} bytes", bits);
  constexpr uint64_t kExtendedEntries = 1u << 4;
  const bool is_extended = big_endian(*version) >= 3 &&
                           (big_endian(take<uint64_t>(72).value_or(0)) & kExtendedEntries) != 0;
  const uint64_t step = is_extended ? 2 : 1;  // 64-bit words per entry

  constexpr uint32_t kL1EntriesMax = (32 << 20) / sizeof(uint64_t);  // qemu's limit as well
  if (big_endian(*l1_count) > kL1EntriesMax) fail(EINVAL, path_, "damaged: its L1 table");
  std::vector<uint64_t> l1(big_endian(*l1_count));
  if (!read(big_endian(*l1_offset), std::as_writable_bytes(std::span(l1)))) return std::nullopt;
  constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
  constexpr uint64_t kCompressed = uint64_t{1} << 62;
  const unsigned sector_shift = 62 - (bits - 8);
  std::vector<uint64_t> l2((uint64_t{1} << bits) / sizeof(uint64_t));
  uint64_t end = 0;
  for (const uint64_t l1_entry : l1) {
    const uint64_t l2_offset = big_endian(l1_entry) & kOffsetMask;
    if (l2_offset == 0) continue;
    if (!read(l2_offset, std::as_writable_bytes(std::span(l2)))) return std::nullopt;
    for (size_t i = 0; i < l2.size(); i += step) {
      const uint64_t entry = big_endian(l2[i]);
      if ((entry & kCompressed) == 0) continue;
      const uint64_t offset = entry & ((uint64_t{1} << sector_shift) - 1);
      const uint64_t more_sectors = (entry & (kCompressed - 1)) >> sector_shift;
      end = std::max(end, round_down(offset, kSectorBytes) + (more_sectors + 1) * kSectorBytes);
    }
  }
  return end;
}

std::optional<uint64_t> ImageFile::vmdk_compressed_end() const {
  auto header = take<VmdkHeader>(0);
  if (!header || std::memcmp(header->magic, "KDMV", 4) != 0) return 0;
  if (header->directory_sector == kVmdkDirectoryAtEnd) {
    // The last three sectors: the footer's marker, the footer, the end marker.
    if (size_bytes_ < uint64_t{3} * kSectorBytes) return std::nullopt;
    header = take<VmdkHeader>(size_bytes_ - uint64_t{2} * kSectorBytes);
    if (std::memcmp(header->magic, "KDMV", 4) != 0) return std::nullopt;
  }
  if ((header->flags & kVmdkCompressed) == 0) return 0;
  const uint64_t entries = header->table_entries, grain = header->grain_sectors;
  if (entries == 0 || entries > 1u << 20 || grain == 0 || grain > 1u << 20)
    fail(EINVAL, path_, "damaged: its grain tables");
  const uint64_t tables = header->capacity_sectors / (entries * grain) + 1;
  if (tables * sizeof(uint32_t) > kTableBytesMax) fail(EINVAL, path_, "damaged: its grain tables");

  const auto sector_offset = [](uint64_t sector) { return sector * kSectorBytes; };
  const uint64_t covered = header->capacity_sectors % (entries * grain);
  std::vector<uint32_t> directory(covered == 0 ? tables - 1 : tables);
  if (header->directory_sector > size_bytes_ / kSectorBytes ||
      !read(sector_offset(header->directory_sector), std::as_writable_bytes(std::span(directory))))
    return std::nullopt;
  std::vector<uint32_t> table(entries);
  uint32_t last_grain = 0;
  for (const uint32_t table_sector : directory) {
    if (table_sector == 0) continue;
    if (!read(sector_offset(table_sector), std::as_writable_bytes(std::span(table))))
      return std::nullopt;
    last_grain = std::max(last_grain, *std::max_element(table.begin(), table.end()));
  }
  if (last_grain <= 1) return 0;  // 0 and 1 stand for holes and zeroes
  struct [[gnu::packed]] GrainMarker {
    uint64_t first_sector;
    uint32_t data_bytes;
  };
  const auto marker = take<GrainMarker>(sector_offset(last_grain));
  if (!marker) return std::nullopt;
  return round_up(sector_offset(last_grain) + sizeof(GrainMarker) + marker->data_bytes,
                  kSectorBytes);
}

bool ImageFile::has_vpc_footer() const {
  if (size_bytes_ < kSectorBytes) return false;
  ByteVector footer(kSectorBytes);
  return read(size_bytes_ - kSectorBytes, footer) && starts_with(footer, "conectix");
}

}  // namespace tplstore
