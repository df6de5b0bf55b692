// A piece of upkeep that is tried again and again in the background.
//
// When it fails it says so once, until it fails for another reason or has succeeded in between. One
// that costs something even when it fails waits before it is tried again, longer each time.
//
// Thread safety: none. Errors: none leave it, std::bad_alloc neither.
#pragma once

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>

namespace tplstore {

class Chore {
 public:
  // The first pause after a failure; the longest is a minute.
  explicit Chore(std::chrono::seconds first_pause = {}) : first_pause_(first_pause) {}

  // Does `work` if it is time; `say` gets the reason of a failure.
  template <typename Say, typename Work>
  void attempt(Say say, Work work) noexcept {
    if (std::chrono::steady_clock::now() < not_before_) return;
    try {
      work();
      said_.clear();
      pause_ = {};
    } catch (const std::exception& error) {
      note_failure(say, error.what());
    }
  }

 private:
  static constexpr std::chrono::seconds kPauseMax{60};

  template <typename Say>
  void note_failure(Say say, const char* why) noexcept {
    pause_ = std::min(std::max(first_pause_, 2 * pause_), kPauseMax);
    not_before_ = std::chrono::steady_clock::now() + pause_;
    try {
      if (said_ == why) return;
      say(why);
      said_ = why;
    } catch (const std::exception&) {
      // Without memory for a line it says it the next time.
    }
  }

  const std::chrono::seconds first_pause_;
  std::chrono::seconds pause_{0};
  std::chrono::steady_clock::time_point not_before_{};
  std::string said_;
};

}  // namespace tplstore
