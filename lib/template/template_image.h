// A template that is open for reading: its manifest in memory, its segments opened when needed.
//
// A template never changes. While a TemplateImage exists it holds a shared lock on the template's
// manifest object "templates/NAME", so no other process removes what it reads.
//
// Memory: 16 bytes per run and about 100 per segment; a plain image has one run per segment.
// Resolving on segments that are open allocates nothing and takes no lock.
// Thread safety: all methods.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/read_plan.h"
#include "base/disk.h"
#include "template/manifest.h"

namespace tplstore {

class TemplateImage {
 public:
  // ENOENT when there is no such template, EIO when its manifest is damaged, EBUSY while it is
  // being removed.
  static std::shared_ptr<TemplateImage> open(Backend& backend, const std::string& name);

  const std::string& name() const;
  const Uuid& uuid() const;
  uint64_t size_bytes() const;

  // Resolves [offset, offset + into.size()), any alignment: zero-fills what is a hole or lies past
  // the end, and appends the reads of the rest to `plan`. Does no I/O itself, but for opening
  // segments.
  void resolve(uint64_t offset, MutableBytes into, ReadPlan& plan);
  // The same and reads them.
  void read(uint64_t offset, MutableBytes into);

  // The longest run from `block` (at most `count` blocks) that is all data or all hole.
  struct Run {
    uint32_t count;
    bool is_hole;
  };
  Run run_at(uint64_t block, uint64_t count) const;

  // Reads of template data since it was opened: requests that touched a segment, and their bytes.
  uint64_t reads() const;
  uint64_t read_bytes() const;

 private:
  TemplateImage(Backend& backend, std::string name, Manifest manifest,
                std::unique_ptr<HeldLock> lock);

  // The run that has `block`, or else the first one behind it, or runs.end().
  std::vector<TemplateRun>::const_iterator find_run(uint64_t block) const;
  Object& segment(uint32_t index);

  Backend& backend_;
  const std::string name_;
  const Manifest manifest_;
  const std::unique_ptr<HeldLock> lock_;

  // What is open, per segment of the manifest; set once, owned by opened_.
  std::vector<std::atomic<Object*>> segments_;
  std::mutex opening_;
  std::vector<std::unique_ptr<Object>> opened_;  // guarded by opening_

  std::atomic<uint64_t> reads_{0};
  std::atomic<uint64_t> read_bytes_{0};
};

}  // namespace tplstore
