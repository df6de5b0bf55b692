// Importing: from any image to a template whose every block is stored once in the store.
//
// Blocks of 4 KiB are hashed and looked up among all blocks of the store and of the image itself;
// equal ones are referenced after comparing their bytes, zero ones are holes, new ones fill
// segments in the template's order. The order of what becomes durable:
//
//   journal → for every segment: its record in the journal → the segment
//           → the folders of referenced segments → the manifest → no journal
//
// Several segments are on this way at once (transfer/segment_writer.h), all at its end before the
// manifest. The manifest comes last and whole, so there is never half a template. An import that
// was interrupted, at any moment and in any way, has left a journal and whole segments; importing
// the name again finds their blocks in the store and goes on from there. `remove_template` drops
// them.
//
// Imports that run at the same time look into each other's journals before they store a segment:
// what another one has published meanwhile is taken out of it and referred to. So of an image that
// is imported twice at once no more is there twice than what both were just publishing.
//
// What the content id (template/content_id.h) is made of is hashed in threads beside all that.
//
// Memory: the index of the store's blocks (transfer/block_index.h), 8 MiB of requests, 4 MiB of
// segment and 32 MiB of those that are being published, up to 36 MiB that are being hashed, 16
// bytes per run, and 40 per 4 MiB with data. An image of so many runs that their list has more than
// kManifestBytesMax is refused when it has come to that (EFBIG).
//
// Thread safety: all functions; the same name in two imports at once is refused.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "template/manifest.h"
#include "template/template_catalog.h"
#include "transfer/image_source.h"

namespace tplstore {

struct ImportOptions {
  std::string format = {};                      // of the image; empty: find out
  bool allow_backing = false;                   // images that refer to other files
  uint64_t size_bytes_max = kTemplateBytesMax;  // of the disk: EFBIG for a larger one
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress = {};
  std::function<bool()> interrupted = {};  // Error(EINTR) soon after it says true
  // Other values for tests only.
  uint64_t manifest_bytes_max = kManifestBytesMax;
  size_t segments_at_once_max = 8;
};

struct ImportResult {
  TemplateInfo info;
  uint64_t stored_bytes = 0;         // new to the store
  uint64_t referenced_bytes = 0;     // in the store before, or more than once in the image
  uint64_t zero_bytes = 0;           // read as zeroes, and cost nothing
  uint64_t unreadable_segments = 0;  // of the store, that could not be looked into for equal blocks
};

// Imports `source`, a path or an NBD URI (transfer/image_source.h), under `name`. EEXIST before
// anything is read when the name is taken; EBUSY while a removal or gc runs, or the name is being
// imported.
ImportResult import_template(const TemplateStorage& storage, const std::string& name,
                             const std::string& source, const ImportOptions& options);

// The same from what `open_source` gives; called when the name is known to be free.
ImportResult import_from(const TemplateStorage& storage, const std::string& name,
                         const std::function<std::unique_ptr<ImageSource>()>& open_source,
                         const ImportOptions& options);

}  // namespace tplstore
