// A progress bar on stderr, while stderr is a terminal, and a clean stop on SIGINT and SIGTERM.
//
// Thread safety: Progress is for one thread; interrupted() for all.
#pragma once

#include <signal.h>

#include <chrono>
#include <cstdint>
#include <string>

namespace tplstore::tool {

struct ProgressState {
  std::string label;
  uint64_t done_bytes = 0;
  uint64_t total_bytes = 0;
  double bytes_per_second = 0;  // 0: not known yet
};

// "label [####....]  42%  1.2 GiB of 3.0 GiB  210.4 MiB/s  8s left", in at most `columns` columns:
// what matters least is left out, and the label is cut, until it fits.
std::string progress_line(const ProgressState& state, size_t columns);

// Shows such a line, never as wide as the terminal, and wipes it out when destroyed.
class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // May be called as often as one likes.
  void update(uint64_t done_bytes, uint64_t total_bytes);
  // Wipes it out now: before anything else is printed.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  bool is_terminal_;
  bool is_shown_ = false;
  Clock::time_point started_ = Clock::now();
  Clock::time_point shown_{};
  // What was done at the first call was done earlier, and says nothing of the rate.
  uint64_t done_at_start_bytes_ = UINT64_MAX;
};

// While it exists the first SIGINT or SIGTERM is only noted; a second one ends the process at once.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  struct sigaction before_int_ {
  }, before_term_{};
};

// Whether there was such a signal.
bool interrupted();

}  // namespace tplstore::tool
