// The union over all journals and all manifests, in this order.
#include "template/segment_needs.h"

#include "base/names.h"
#include "template/import_journal.h"

namespace tplstore {

std::vector<std::string> list_names(Backend& store, const std::string& folder) {
  std::vector<std::string> names = store.list(folder);
  std::erase_if(names, [](const std::string& name) { return !is_valid_name(name); });
  return names;
}

void add_needs(SegmentNeeds& needs, const Manifest& manifest) {
  std::vector<SegmentNeed*> of_segments;
  for (const ManifestSegment& segment : manifest.segments) {
    of_segments.push_back(&needs[segment.name]);
    of_segments.back()->block_count = segment.block_count;
  }
  for (const TemplateRun& run : manifest.runs)
    for (uint32_t i = 0; i < run.count; ++i)
      of_segments[run.segment]->blocks.set(run.segment_block + i);
}

SegmentNeeds find_needs(Backend& store) {
  SegmentNeeds needs;
  for (const std::string& name : list_names(store, "imports")) {
    if (const auto journal = load_journal(store, name))
      for (const Hash128& segment : journal->segments) needs[segment].is_of_import = true;
  }
  for (const std::string& name : list_names(store, "templates")) {
    try {
      if (const auto manifest = load_manifest(store, name)) add_needs(needs, *manifest);
    } catch (const Error& error) {
      fail(error.code(), manifest_path(name),
           "no space is freed while this cannot be read, since what it uses is unknown ({})",
           error.what());
    }
  }
  return needs;
}

}  // namespace tplstore
