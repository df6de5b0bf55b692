// Encodes and decodes, and believes nothing that it has not compared with the size of the disk.
#include "template/manifest.h"

#include "base/names.h"
#include "base/units.h"
#include "template/segment.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

constexpr uint64_t kChecksumOffset = offsetof(ManifestHeader, checksum);
constexpr std::string_view kRepairManifest = "restore it from a backup, or remove the template";

// Covers everything but its own field.
uint64_t object_checksum(Bytes bytes) {
  const uint64_t head = checksum(bytes.first(kChecksumOffset));
  return checksum(bytes.subspan(kChecksumOffset + sizeof(uint64_t)), head);
}

uint64_t object_bytes_of(uint64_t text_bytes, uint64_t segment_count, uint64_t run_count) {
  return sizeof(ManifestHeader) + round_up(text_bytes, 8) +
         segment_count * sizeof(ManifestSegment) + run_count * sizeof(TemplateRun);
}

// What is wrong with it; nothing when it is sound. Encoding asserts it, decoding checks it.
std::optional<std::string> find_fault(const Manifest& manifest) {
  if (manifest.size_bytes == 0 || manifest.size_bytes % kSectorBytes != 0 ||
      manifest.size_bytes > kTemplateBytesMax)
    return fmt::format("a size of {} bytes", manifest.size_bytes);
  if (manifest.uuid.is_nil() || manifest.store.is_nil()) return "no uuid";
  if (!is_valid_name(manifest.name)) return "a name that no template can have";
  if (manifest.source.size() > kSourceTextBytesMax) return "a source text that is too long";
  for (const ManifestSegment& segment : manifest.segments) {
    if (segment.block_count == 0 || segment.block_count > kSegmentBlocksMax)
      return fmt::format("a segment of {} blocks", segment.block_count);
  }
  const uint64_t block_count = blocks_of(manifest.size_bytes);
  uint64_t next = 0;
  for (const TemplateRun& run : manifest.runs) {
    if (run.count == 0 || run.block < next) return "runs that are empty or out of order";
    if (run.block >= block_count || run.count > block_count - run.block)
      return "a run past the template's end";
    if (run.segment >= manifest.segments.size()) return "a run in a segment that is not listed";
    if (uint32_t{run.segment_block} + run.count > manifest.segments[run.segment].block_count)
      return "a run past its segment's end";
    next = run.end();
  }
  return std::nullopt;
}

}  // namespace

uint64_t Manifest::data_bytes() const {
  uint64_t blocks = 0;
  for (const TemplateRun& run : runs) blocks += run.count;
  return blocks * kBlockBytes;
}

uint64_t Manifest::object_bytes() const {
  return object_bytes_of(name.size() + source.size(), segments.size(), runs.size());
}

void Manifest::append_block(uint64_t block, uint32_t segment, uint32_t segment_block) {
  if (!runs.empty()) {
    TemplateRun& last = runs.back();
    ensure(block >= last.end(), "the blocks of a template are appended in order");
    if (last.end() == block && last.segment == segment &&
        uint32_t{last.segment_block} + last.count == segment_block) {
      ++last.count;
      return;
    }
  }
  runs.push_back({block, segment, static_cast<uint16_t>(segment_block), 1});
}

std::string manifest_path(const std::string& template_name) { return "templates/" + template_name; }

void check_object_bytes(const Manifest& manifest, uint64_t max_bytes) {
  if (manifest.object_bytes() <= max_bytes) return;
  fail(EFBIG, manifest.name,
       "the image is too large or too fragmented for one template: the list of its blocks has more "
       "than {}; split the disk",
       format_size(max_bytes));
}

ByteVector encode_manifest(const Manifest& manifest) {
  const auto fault = find_fault(manifest);
  ensure(!fault, fault ? *fault : "a manifest is sound before it is written");
  ManifestHeader header{};
  header.magic = kManifestMagic;
  header.format = kManifestFormat;
  header.uuid = manifest.uuid;
  header.store = manifest.store;
  header.content_id = manifest.content_id;
  header.name_bytes = static_cast<uint32_t>(manifest.name.size());
  header.size_bytes = manifest.size_bytes;
  header.created_ns = manifest.created_ns;
  check_object_bytes(manifest);  // so the counts fit too
  header.segment_count = static_cast<uint32_t>(manifest.segments.size());
  header.run_count = static_cast<uint32_t>(manifest.runs.size());
  header.source_bytes = static_cast<uint32_t>(manifest.source.size());

  Encoder encoder;
  encoder.bytes().reserve(manifest.object_bytes());
  encoder.put(header);
  encoder.put_bytes(as_bytes(manifest.name));
  encoder.put_bytes(as_bytes(manifest.source));
  encoder.bytes().resize(round_up(encoder.size(), 8));
  encoder.put_bytes(std::as_bytes(std::span(manifest.segments)));
  encoder.put_bytes(std::as_bytes(std::span(manifest.runs)));
  const uint64_t sum = object_checksum(encoder.bytes());
  std::memcpy(encoder.bytes().data() + kChecksumOffset, &sum, sizeof sum);
  return std::move(encoder.bytes());
}

Manifest decode_manifest(Bytes bytes, const std::string& object) {
  const uint64_t total_bytes = bytes.size();
  if (total_bytes < sizeof(ManifestHeader))
    fail(EIO, object, "damaged: too short for a template's manifest; {}", kRepairManifest);
  const uint64_t sum = object_checksum(bytes);
  Decoder decoder(bytes, object);
  const auto header = decoder.take<ManifestHeader>();
  if (header.magic != kManifestMagic)
    fail(EIO, object, "damaged: not a template's manifest; {}", kRepairManifest);
  if (header.checksum != sum)
    fail(EIO, object, "damaged: the manifest's checksum does not match; {}", kRepairManifest);
  if (header.format != kManifestFormat || header.features != 0)
    fail(EINVAL, object,
         "has format {} with features {:#x}, this program reads format {}: use a newer tplstore",
         header.format, header.features, kManifestFormat);
  const uint64_t text_bytes = uint64_t{header.name_bytes} + header.source_bytes;
  if (header.source_bytes > kSourceTextBytesMax || header.name_bytes > kSourceTextBytesMax ||
      object_bytes_of(text_bytes, header.segment_count, header.run_count) != total_bytes)
    fail(EIO, object, "damaged: the manifest's parts do not have its size; {}", kRepairManifest);

  Manifest manifest;
  manifest.uuid = header.uuid;
  manifest.store = header.store;
  manifest.content_id = header.content_id;
  manifest.size_bytes = header.size_bytes;
  manifest.created_ns = header.created_ns;
  manifest.name = decoder.take_text(header.name_bytes);
  manifest.source = decoder.take_text(header.source_bytes);
  decoder.take_bytes(round_up(text_bytes, 8) - text_bytes);
  const Bytes segments = decoder.take_bytes(header.segment_count * sizeof(ManifestSegment));
  const Bytes runs = decoder.take_bytes(header.run_count * sizeof(TemplateRun));
  manifest.segments.resize(header.segment_count);
  manifest.runs.resize(header.run_count);
  if (!segments.empty()) std::memcpy(manifest.segments.data(), segments.data(), segments.size());
  if (!runs.empty()) std::memcpy(manifest.runs.data(), runs.data(), runs.size());
  if (const auto fault = find_fault(manifest))
    fail(EIO, object, "damaged: the manifest has {}; {}", *fault, kRepairManifest);
  return manifest;
}

std::optional<Manifest> load_manifest(Backend& backend, const std::string& template_name) {
  const std::string path = manifest_path(template_name);
  const auto bytes = backend.get(path, kManifestBytesMax);
  if (!bytes) return std::nullopt;
  Manifest manifest = decode_manifest(*bytes, path);
  if (manifest.store != load_identity(backend).uuid)
    fail(EIO, path, "damaged: it is a manifest of another store, {}; {}", manifest.store.text(),
         kRepairManifest);
  if (manifest.name != template_name)
    fail(EIO, path, "damaged: it is the manifest of template {}; {}", manifest.name,
         kRepairManifest);
  return manifest;
}

void fail_no_template(const std::string& template_name) {
  fail(ENOENT, template_name, "no such template; 'tplstore template list' names those that exist");
}

HeldManifest hold_manifest(Backend& backend, const std::string& template_name) {
  check_name("template", template_name);
  std::unique_ptr<HeldLock> lock;
  try {
    lock = backend.try_lock(manifest_path(template_name), LockMode::kShared);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
    fail_no_template(template_name);
  }
  if (!lock) fail(EBUSY, template_name, "this template is being removed");
  auto manifest = load_manifest(backend, template_name);
  if (!manifest) fail_no_template(template_name);
  return {std::move(lock), std::move(*manifest)};
}

std::optional<Uuid> load_manifest_uuid(Backend& backend, const std::string& template_name) {
  try {
    const auto object =
        backend.open(manifest_path(template_name), Access::kRead, Purpose::kMetadata);
    Uuid uuid;
    object->read(offsetof(ManifestHeader, uuid), std::as_writable_bytes(std::span(&uuid, 1)));
    return uuid;
  } catch (const Error& error) {
    if (error.code() == ENOENT) return std::nullopt;
    throw;
  }
}

}  // namespace tplstore
