// What can be done with the templates of a store, besides importing (transfer/importer.h) and
// reading (template/template_image.h): list, show, verify, remove, and collecting segments that
// nothing uses.
//
// Locks: an import holds "gc.lock" shared, remove and gc hold it exclusively from scan to unlink;
// whoever reads a template holds its manifest object shared, remove holds it exclusively.
//
// Thread safety: all functions; they exclude each other as different processes would.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "template/origin.h"

namespace tplstore {

struct TemplateInfo {
  std::string name;
  Uuid uuid;
  uint64_t size_bytes = 0;
  std::string state;          // "ready"; "importing"; "failed": an import that has ended before it
                              // was complete; "damaged": its manifest or journal cannot be read
  std::string problem;        // why it failed, or what is damaged
  uint64_t data_bytes = 0;    // what its runs cover
  uint64_t unique_bytes = 0;  // blocks of the segments that no other template uses
  int64_t created_ns = 0;     // for an unfinished import, when it was started
  std::string source;         // where it was imported from
  std::string content_id;     // 64 hex digits (template/content_id.h); empty unless it is ready
  uint64_t segments = 0;
};

// Ready templates and unfinished imports, by name.
std::vector<TemplateInfo> list_templates(Backend& backend);
// ENOENT; EIO when its manifest is damaged.
TemplateInfo show_template(Backend& backend, const std::string& name);

struct SegmentDamage {
  Hash128 segment;
  bool is_missing = false;
  std::string problem;           // one line
  std::vector<uint32_t> blocks;  // of the segment, that have other bytes than they should
};
struct VerifyReport {
  uint64_t segments = 0;  // that were looked at
  uint64_t blocks = 0;    // whose bytes were compared with their hashes
  std::vector<SegmentDamage> damage;
  bool has_content_id = false;  // whether the disk, read whole, has the manifest's content id
  bool is_sound() const { return damage.empty() && has_content_id; }
};
// Checks every block of every segment of a template, and, if those are sound, that together they
// are the disk that was imported. What no template refers to may be zeroes: given up by gc. ENOENT;
// EIO when the manifest is damaged.
VerifyReport verify_template(
    const TemplateStorage& storage, const std::string& name,
    const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress);

struct GcResult {
  uint64_t removed_segments = 0;
  uint64_t freed_bytes = 0;  // of those, and of blocks that were given up
  uint64_t kept_segments = 0;
};
// Removes a template, or an unfinished import, and then what nothing uses any more, as gc does.
// `volumes_using_it` is asked while nobody can start to use it. EBUSY: in use, by volumes or
// readers, or imports are running; ENOENT. A damaged template can be removed.
GcResult remove_template(const TemplateStorage& storage, const std::string& name,
                         const std::function<std::vector<std::string>()>& volumes_using_it);

// Removes segments that no template and no unfinished import uses, and gives up the blocks that no
// template refers to, in runs of 64 KiB and more, of segments that no unfinished import uses: there
// they become holes. Where a block that has a hash is zeroes, it was given up; an import, which
// compares bytes, never takes it for what it was. EBUSY while imports are running. Removes nothing,
// and throws, when any manifest cannot be read: what it uses is unknown.
GcResult gc(const TemplateStorage& storage, const std::function<void()>& check = {});

}  // namespace tplstore
