// What says of a volume that it was removed and is kept for a while: the object "removed/UUID".
//
// Thread safety: functions. Errors: EIO when it is damaged.
#pragma once

#include <optional>

#include "backend/backend.h"
#include "base/volume_types.h"

namespace tplstore {

// Nothing where there is none.
std::optional<RemovedVolume> read_removed(Backend& backend, const Uuid& volume);

}  // namespace tplstore
