// The tables of all segments of a template in one object: who compares the blocks that a first boot
// reads has them with a read or a few, and not with one of each segment.
//
//   "boot/UUID.tables":  | hashes of segment 0 | hashes of segment 1 | …     16 bytes a block
//
// in the order of the manifest. It is derived, written when the template is imported, and can be
// removed at any time. Nothing of it is trusted: a table that is not what its segment is named by
// is passed over (TemplateImage::take_tables()).
//
// Thread safety: functions. Errors: of put the backend's.
#pragma once

#include <optional>

#include "backend/backend.h"
#include "template/block_source.h"
#include "template/manifest.h"

namespace tplstore {

// A template that needs more has none: to read it would take longer than what it saves.
inline constexpr uint64_t kTemplateTablesBytesMax = uint64_t{8} << 20;

// Reads them of the segments.
void put_template_tables(Backend& store, const Manifest& manifest, BlockSource& segments,
                         const HashSecret& secret);
// Nothing where there is none that can be read; what it says is not checked.
std::optional<ByteVector> get_template_tables(Backend& store, const Manifest& manifest);

std::string template_tables_path(const Manifest& manifest);
// Whether these are the tables of the template's segments.
bool are_template_tables(Bytes tables, const Manifest& manifest, const HashSecret& secret);

}  // namespace tplstore
