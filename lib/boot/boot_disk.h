// What a window and a prefetch need of a disk: of a volume that is open, or of a template. store/
// implements it.
//
// Thread safety: all methods. Errors: what reading the disk's map throws; ESHUTDOWN or ENOENT when
// the disk is gone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/bytes.h"
#include "template/cell_cache.h"

namespace tplstore {

// What a fork has from the volume that it is a fork of, or from the one that that is a fork of:
// blocks of versions up to this one, if no ancestor that is further away has them.
struct BootAncestor {
  Uuid volume;
  uint32_t last = 0;
};

class BootDisk {
 public:
  virtual ~BootDisk() = default;

  virtual const std::string& name() const = 0;  // of the volume or the template, for people
  virtual Uuid volume() const = 0;              // nil: the disk is a template
  virtual std::optional<Uuid> template_uuid() const = 0;  // that it began with, or is
  virtual std::span<const BootAncestor> ancestors() const { return {}; }  // the nearest first
  virtual uint64_t size_bytes() const = 0;
  // The template that the volume began with, as a disk; nothing when there is none any more.
  virtual std::shared_ptr<BootDisk> open_template() = 0;
  // Whether it was closed or removed, so that with_cells() fails.
  virtual bool is_gone() const = 0;

  // Calls `body` with the places of what the disk still has of these runs from their source, in the
  // order of the runs, within one request of the disk: they are good until `body` returns. What
  // lies past the disk's end, and what would have to be waited for, is left out.
  virtual void with_cells(std::span<const CellRun> runs,
                          const std::function<void(std::span<const CellPlace>)>& body) = 0;
  // What is frozen when this is called is so for good when it returns, whatever crashes.
  virtual void settle() {}
  // Has the tables that the template's blocks are compared with read in one go, where that can be:
  // before a boot that nothing is known of.
  virtual void take_tables() = 0;
  // Lets go of what the storage has in caches of its own of these.
  virtual void drop_cached(std::span<const CellRun> runs) = 0;
};

}  // namespace tplstore
