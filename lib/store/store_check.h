// Looks at all of a store, or at one volume of it, and changes nothing: it puts together what each
// layer looks at, and adds what only the whole tells: which names lead where, which volumes nothing
// leads to, what lies there that is none of it.
//
// No lock is taken: servers and tools go on, and what changes meanwhile is not judged.
//
// Thread safety: functions. Errors of what is looked at become findings; ENOENT where there is no
// store, or no such volume.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "backend/backend.h"
#include "base/findings.h"
#include "template/origin.h"

namespace tplstore {

struct CheckOptions {
  std::string volume = {};  // this one only, if not empty
  bool reads_data = false;  // all blocks of templates are compared with their hashes
  std::function<void(const std::string& what, uint64_t done_bytes, uint64_t total_bytes)> progress =
      {};
};

struct CheckReport {
  uint64_t volumes = 0;  // that were looked at
  uint64_t templates = 0;
  Findings findings = {};
};

CheckReport check_store(Backend& store, const OpenLocation& open_location,
                        const CheckOptions& options);

// Marks what `after` has not any more as repaired, and adds what it has beside.
void note_repaired(CheckReport& report, const CheckReport& after);

}  // namespace tplstore
