// A template that is open for reading: its manifest in memory, its segments held, and opened when
// something of them is read (template/block_source.h).
//
// A template never changes. While a TemplateImage exists it holds a shared lock on the template's
// manifest object "templates/NAME", so no other process removes what it reads.
//
// Memory: 16 bytes per run and about 400 per segment, which templates share; a plain image has one
// run per segment. Planning a read of segments that are open allocates nothing, takes no lock and
// writes to no memory that threads share.
// Thread safety: all methods.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/disk.h"
#include "template/block_source.h"
#include "template/manifest.h"

namespace tplstore {

class TemplateImage {
 public:
  // ENOENT when there is no such template, EIO when its manifest is damaged, EBUSY while it is
  // being removed.
  static std::shared_ptr<TemplateImage> open(Backend& backend, BlockSource& blocks,
                                             const std::string& name);

  const std::string& name() const { return manifest_.name; }
  const Uuid& uuid() const { return manifest_.uuid; }
  uint64_t size_bytes() const { return manifest_.size_bytes; }
  const ContentId& content_id() const { return manifest_.content_id; }

  // For [offset, offset + into.size()), any alignment: zero-fills what is a hole or lies past the
  // end, and has the block source plan the rest.
  void plan_read(uint64_t offset, MutableBytes into, ReadPlan& plan,
                 CellWindow* window = nullptr) const;
  // Adds the places of those of its blocks that have data; `run` is their index.
  void find_cells(uint64_t first, uint64_t count, size_t run, std::vector<CellPlace>& places) const;
  // Has its segments have their tables, from where they are in one piece (template_tables.h).
  void take_tables(Backend& store) const;
  // The same and reads them.
  void read(uint64_t offset, MutableBytes into) const;

  // The longest run from `block` (at most `count` blocks) that is all data or all hole.
  struct Run {
    uint32_t count;
    bool is_hole;
  };
  Run run_at(uint64_t block, uint64_t count) const;

 private:
  TemplateImage(BlockSource& blocks, HeldManifest held);

  // The run that has `block`, or else the first one behind it, or runs.end().
  std::vector<TemplateRun>::const_iterator find_run(uint64_t block) const;

  const HeldManifest held_;
  const Manifest& manifest_ = held_.manifest;
  std::vector<std::shared_ptr<BlockSource::Segment>> segments_;  // the manifest's
};

}  // namespace tplstore
