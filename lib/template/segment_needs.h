// What is still needed of the segments of a store, as its templates and unfinished imports say.
//
// Thread safety: pure functions and plain data. Errors: where one of them cannot be read, for what
// it uses is unknown then.
#pragma once

#include <bitset>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "template/manifest.h"
#include "template/segment.h"

namespace tplstore {

// Which blocks of a segment, and whether all of it.
struct SegmentNeed {
  uint32_t block_count = 0;  // of the segment, as manifests say; 0 where only imports know
  std::bitset<kSegmentBlocksMax> blocks;
  bool is_of_import = false;
};
using SegmentNeeds = std::map<Hash128, SegmentNeed>;

void add_needs(SegmentNeeds& needs, const Manifest& manifest);

// Everything that is needed. It takes no lock: whoever has listed segments, or copies of them,
// before finds here each of them that is needed, for an import has a segment's name in its journal
// before there is one, and in the manifest before the journal goes.
SegmentNeeds find_needs(Backend& store);

// The names of templates, or of unfinished imports.
std::vector<std::string> list_names(Backend& store, const std::string& folder);

}  // namespace tplstore
