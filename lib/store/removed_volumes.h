// What says of a volume that it was removed and is kept for a while: the object "removed/UUID"; and
// what time it is for that.
//
// Thread safety: all. Errors: EIO when it is damaged.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "backend/backend.h"
#include "base/volume_types.h"

namespace tplstore {

// Nothing where there is none.
std::optional<RemovedVolume> read_removed(Backend& backend, const Uuid& volume);

// The host's clock, but for what it is set forward by while this program runs: a clock that is
// wrong for a moment must not end what cannot be brought back.
class ExpiryClock {
 public:
  ExpiryClock(int64_t unix_ns, int64_t since_boot_ns) : ahead_ns_(unix_ns - since_boot_ns) {}

  int64_t now_ns(int64_t unix_ns, int64_t since_boot_ns) const {
    return std::min(unix_ns, since_boot_ns + ahead_ns_ + kSetForwardMaxNs);
  }
  static constexpr int64_t kSetForwardMaxNs = int64_t{3600} * 1'000'000'000;

 private:
  const int64_t ahead_ns_;
};

}  // namespace tplstore
