// Looks at what a store has of templates: its identity, manifests, journals of imports, segments,
// tables, claims on gc.lock. Changes nothing.
//
// What is read of segments is their tables, and with `reads_data` each block of each template
// (verify_template()).
//
// Thread safety: functions. Errors of what is looked at become findings.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>

#include "backend/backend.h"
#include "base/findings.h"
#include "template/origin.h"
#include "template/store_identity.h"

namespace tplstore {

struct TemplateCheckOptions {
  bool reads_data = false;
  std::function<void(const std::string& name, uint64_t done_bytes, uint64_t total_bytes)> progress =
      {};
};

// The object "store"; nothing when it cannot be read.
std::optional<StoreIdentity> check_identity(Backend& store, Findings& findings);

struct TemplatesChecked {
  uint64_t count = 0;    // of templates
  std::set<Uuid> uuids;  // theirs
  // Whether all could be read: else nobody knows what is of no template.
  bool is_complete = true;
};
// `segments` may be none: then they cannot be reached, which was told. `secret` may be none: then
// nothing can be compared.
TemplatesChecked check_templates(Backend& store, Backend* segments, const HashSecret* secret,
                                 const TemplateCheckOptions& options, Findings& findings);

// Claims of this host, which nobody of it needs; removed with `removes`.
void check_gc_claims(Backend& store, Findings& findings);
void remove_stale_gc_claims(Backend& store);

}  // namespace tplstore
