// Says once that a file system is nearly full, before writes fail, and once when it is not any
// more.
//
// Thread safety: none. Errors: std::bad_alloc.
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "base/log.h"
#include "base/units.h"
#include "volume/space.h"

namespace tplstore {

class LowWater {
 public:
  struct Line {
    LogLevel level;
    std::string text;
  };
  // What is to be said of the file system of `where`, if anything is.
  std::optional<Line> look(const std::string& where, const StorageSpace& space) {
    const uint64_t low_bytes = std::min(kRoomBytes, space.total_bytes / kLeastShare);
    // Around the mark itself it would be said again and again.
    const bool is_low = space.free_bytes < (is_low_ ? low_bytes + low_bytes / 4 : low_bytes);
    if (is_low == is_low_) return {};
    is_low_ = is_low;
    const std::string left =
        fmt::format("{}: {} of {} are free on its file system", where,
                    format_size(space.free_bytes), format_size(space.total_bytes));
    if (!is_low) return Line{LogLevel::kNotice, left + " again"};
    return Line{LogLevel::kWarning, left +
                                        "; when it is full, writes fail: remove versions or "
                                        "volumes, or make it larger"};
  }

 private:
  static constexpr uint64_t kLeastShare = 20;  // 5 %, of small ones
  bool is_low_ = false;
};

}  // namespace tplstore
