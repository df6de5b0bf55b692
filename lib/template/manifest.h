// A template's manifest: which blocks of the template are where in which segments.
//
// The object "templates/NAME", published whole and last by an import and never changed:
//
//   | header, 144 bytes | name, source text, padded to 8 | segments, 24 bytes each | runs, 16 each
//   |
//
// A run says: `count` blocks of the template from `block` are the `count` blocks of one segment
// from `segment_block`. Runs ascend and do not overlap; what no run covers reads as zeroes.
//
// It says whose it is, which template of which store, and what the disk's content is called
// everywhere (template/content_id.h).
//
// Thread safety: pure functions and plain data.
// Errors: EIO when bytes are damaged (every count and offset is checked before it is used), EINVAL
// when they were written by a newer format.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "template/content_id.h"

namespace tplstore {

inline constexpr uint64_t kManifestMagic = 0x31696e616d6c7074;  // "tplmani1"
inline constexpr uint32_t kManifestFormat = 2;
inline constexpr uint64_t kManifestBytesMax = uint64_t{1} << 30;
inline constexpr uint64_t kTemplateBytesMax = uint64_t{64} << 40;
inline constexpr uint32_t kSourceTextBytesMax = 4096;

struct ManifestHeader {
  uint64_t magic;
  uint32_t format;
  uint32_t features;  // bits that a reader must know; none yet
  Uuid uuid;
  uint64_t size_bytes;
  int64_t created_ns;
  uint32_t segment_count;
  uint32_t run_count;
  uint32_t source_bytes;
  uint32_t name_bytes;
  Uuid store;
  ContentId content_id;
  uint8_t reserved[24];
  uint64_t checksum;  // of all before it (as the seed) and all behind it, to the object's end
};
static_assert(sizeof(ManifestHeader) == 144);
static_assert(offsetof(ManifestHeader, features) == 12);
static_assert(offsetof(ManifestHeader, uuid) == 16);
static_assert(offsetof(ManifestHeader, size_bytes) == 32);
static_assert(offsetof(ManifestHeader, created_ns) == 40);
static_assert(offsetof(ManifestHeader, segment_count) == 48);
static_assert(offsetof(ManifestHeader, run_count) == 52);
static_assert(offsetof(ManifestHeader, source_bytes) == 56);
static_assert(offsetof(ManifestHeader, name_bytes) == 60);
static_assert(offsetof(ManifestHeader, store) == 64);
static_assert(offsetof(ManifestHeader, content_id) == 80);
static_assert(offsetof(ManifestHeader, checksum) == 136);

struct ManifestSegment {
  Hash128 name;
  uint32_t block_count;  // of the whole segment
  uint32_t reserved;
};
static_assert(sizeof(ManifestSegment) == 24 && offsetof(ManifestSegment, block_count) == 16);

struct TemplateRun {
  uint64_t block;          // of the template
  uint32_t segment;        // index into the manifest's segments
  uint16_t segment_block;  // where in it
  uint16_t count;          // 1 to 1024

  uint64_t end() const { return block + count; }
};
static_assert(sizeof(TemplateRun) == 16 && offsetof(TemplateRun, segment) == 8 &&
              offsetof(TemplateRun, segment_block) == 12 && offsetof(TemplateRun, count) == 14);

struct Manifest {
  std::string name;  // of the template
  Uuid store;
  Uuid uuid;
  ContentId content_id;
  uint64_t size_bytes = 0;  // a multiple of 512
  int64_t created_ns = 0;
  std::string source;  // where it came from, for people
  std::vector<ManifestSegment> segments;
  std::vector<TemplateRun> runs;

  uint64_t data_bytes() const;    // what the runs cover, in whole blocks
  uint64_t object_bytes() const;  // of the object that it is encoded to
  // Adds one block behind the last, continuing the last run if it can.
  void append_block(uint64_t block, uint32_t segment, uint32_t segment_block);
};

std::string manifest_path(const std::string& template_name);

// EFBIG when it would have more than `max_bytes`.
void check_object_bytes(const Manifest& manifest, uint64_t max_bytes = kManifestBytesMax);
// Checks it.
ByteVector encode_manifest(const Manifest& manifest);
Manifest decode_manifest(Bytes bytes, const std::string& object);

// Nothing when there is no such template. EIO when the manifest is another template's or store's.
std::optional<Manifest> load_manifest(Backend& backend, const std::string& template_name);
// The same, of a template that is not removed as long as the lock is held. ENOENT; EBUSY while it
// is being removed.
struct HeldManifest {
  std::unique_ptr<HeldLock> lock;
  Manifest manifest;
};
HeldManifest hold_manifest(Backend& backend, const std::string& template_name);
[[noreturn]] void fail_no_template(const std::string& template_name);
// The identity alone, without reading the rest; nothing when there is no such template.
std::optional<Uuid> load_manifest_uuid(Backend& backend, const std::string& template_name);

}  // namespace tplstore
