// One pass over the manifest's segments.
#include "template/template_tables.h"

#include "backend/layout.h"

namespace tplstore {
namespace {

uint64_t object_bytes(const Manifest& manifest) {
  uint64_t blocks = 0;
  for (const ManifestSegment& segment : manifest.segments) blocks += segment.block_count;
  return blocks * sizeof(Hash128);
}

}  // namespace

std::string template_tables_path(const Manifest& manifest) {
  return fmt::format("{}/{}.tables", paths::kBoot, manifest.uuid.text());
}

bool are_template_tables(Bytes tables, const Manifest& manifest, const HashSecret& secret) {
  for (const ManifestSegment& segment : manifest.segments) {
    const uint64_t bytes = uint64_t{segment.block_count} * sizeof(Hash128);
    if (tables.size() < bytes || content_hash(tables.first(bytes), secret) != segment.name)
      return false;
    tables = tables.subspan(bytes);
  }
  return tables.empty();
}

void put_template_tables(Backend& store, const Manifest& manifest, BlockSource& segments,
                         const HashSecret& secret) {
  const uint64_t bytes = object_bytes(manifest);
  if (bytes == 0 || bytes > kTemplateTablesBytesMax) return;
  std::vector<Hash128> tables;
  tables.reserve(bytes / sizeof(Hash128));
  for (const ManifestSegment& segment : manifest.segments) {
    const auto table = segments.hold(segment.name, segment.block_count)->read_table(secret);
    tables.insert(tables.end(), table.begin(), table.end());
  }
  store.put_new(template_tables_path(manifest), std::as_bytes(std::span(tables)));
}

std::optional<ByteVector> get_template_tables(Backend& store, const Manifest& manifest) {
  const uint64_t bytes = object_bytes(manifest);
  if (bytes == 0 || bytes > kTemplateTablesBytesMax) return {};
  try {
    auto content = store.get(template_tables_path(manifest), bytes);
    if (content && content->size() == bytes) return content;
  } catch (const Error&) {
    // The segments have them too.
  }
  return {};
}

}  // namespace tplstore
