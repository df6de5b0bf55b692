// What the boot cache is told when it is made (the plugin's parameters, see its man page), and how
// it works in the background. Thread safety: does not change.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <string>

#include "base/alarm.h"
#include "base/error.h"
#include "base/log.h"
#include "boot/window.h"

namespace tplstore {

struct BootOptions {
  uint64_t cap_bytes = uint64_t{256} << 20;  // more than 0
  bool huge_pages = true;
  std::chrono::milliseconds quiet = std::chrono::seconds(15);
  std::chrono::milliseconds time = std::chrono::seconds(300);
  uint64_t bytes = uint64_t{2} << 30;
  bool prefetch = true;
  bool packs = true;
  Log log = {};
  // Milliseconds of a clock that only rises.
  std::function<int64_t()> clock_ms = steady_ms;

  static int64_t steady_ms() {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  WindowLimits limits() const { return {quiet.count(), time.count(), bytes}; }

  // Does what is only there to make others faster: when it fails that is said, and that's all. That
  // a disk is closed meanwhile is no failure.
  template <typename Work>
  void attempt(Work work) const noexcept {
    try {
      work();
    } catch (const std::exception& error) {
      const auto* const known = dynamic_cast<const Error*>(&error);
      if (known != nullptr && known->code() == ESHUTDOWN) return;
      try {
        log(fmt::format("boot cache: {}", error.what()));
      } catch (const std::exception&) {
        // Out of memory; nobody needs to know.
      }
    }
  }
};

// Of the threads that end windows, learn, and read ahead: rung when there is something to do.
struct BootAlarms {
  Alarm upkeep, learn, read;
};

}  // namespace tplstore
