// Looks at what says who may write a volume: its header, its locks, its claims. Mends what of it
// can be mended.
//
// Thread safety: pure functions. Errors of what is looked at become findings.
#pragma once

#include <optional>
#include <string>

#include "backend/backend.h"
#include "base/findings.h"
#include "lock/volume_header.h"

namespace tplstore {

// Changes nothing, and takes no lock. The header, if it can be read.
std::optional<VolumeHeader> check_lock(Backend& backend, const std::string& folder,
                                       const Uuid& volume, Findings& findings);

// With the volume's lock held by the caller. Writes both slots of the header anew, with what the
// sound one says.
void mend_header(Backend& backend, const std::string& folder, const Uuid& volume);
// Likewise. Removes claims that mean nothing any more; not where other hosts may have the storage,
// since these need not see the lock.
void remove_stale_claims(Backend& backend, const std::string& folder, const Uuid& volume);

}  // namespace tplstore
