// What does not fit the terminal's width is left out, the least useful part first.
#include "progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "base/text.h"
#include "base/units.h"

namespace tplstore::tool {
namespace {

constexpr auto kShowEvery = std::chrono::milliseconds(100);
constexpr double kRateAfterSeconds = 0.5;  // before that a rate is a guess

// A second signal counts when a person sent it; timeout(1) sends two at once.
constexpr int64_t kSecondAfterMs = 500;

volatile sig_atomic_t was_interrupted = 0;
std::atomic<int64_t> interrupted_at_ms = 0;
static_assert(std::atomic<int64_t>::is_always_lock_free, "it is used in a signal handler");

void note_signal(int signal) {
  const int saved_errno = errno;
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const int64_t now_ms = now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
  if (was_interrupted == 0) {
    interrupted_at_ms = now_ms;
    was_interrupted = 1;
  } else if (now_ms - interrupted_at_ms >= kSecondAfterMs) {
    ::signal(signal, SIG_DFL);
    ::raise(signal);
  }
  errno = saved_errno;
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<uint64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
}

size_t terminal_columns() {
  winsize size{};
  const bool is_known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return is_known ? size.ws_col : 80;
}

std::string bar(size_t width, double share) {
  const auto filled = static_cast<size_t>(share * static_cast<double>(width));
  return fmt::format(" [{}{}]", std::string(filled, '#'), std::string(width - filled, '.'));
}

}  // namespace

std::string progress_line(const ProgressState& state, size_t columns) {
  constexpr size_t kLabelMin = 24;
  const double share = state.total_bytes == 0
                           ? 1.0
                           : std::min(1.0, static_cast<double>(state.done_bytes) /
                                               static_cast<double>(state.total_bytes));
  const std::string percent = fmt::format(" {:3.0f}%", share * 100);
  std::string sizes =
      fmt::format("  {} of {}", format_size(state.done_bytes), format_size(state.total_bytes));
  std::string rate, left, long_bar = bar(20, share), short_bar = bar(10, share);
  if (state.bytes_per_second > 0) {
    rate = fmt::format("  {}/s", format_size(static_cast<uint64_t>(state.bytes_per_second)));
    if (state.done_bytes < state.total_bytes)
      left = fmt::format("  {} left",
                         format_duration(static_cast<double>(state.total_bytes - state.done_bytes) /
                                         state.bytes_per_second));
  }
  std::string label = printable(state.label);
  const size_t label_min = std::min(kLabelMin, count_columns(label));
  std::string rest;
  const auto fits = [&](const std::string& the_bar) {
    rest = the_bar + percent + sizes + rate + left;
    return label_min + rest.size() <= columns;
  };
  if (!fits(long_bar) && !fits(short_bar)) {
    for (std::string* part : {&rate, &left, &sizes}) {
      if (fits("")) break;
      part->clear();
    }
    fits("");
  }
  const size_t room = columns - std::min(columns, rest.size());
  if (count_columns(label) > room)
    label = first_columns(label, room - std::min<size_t>(room, 3)) +
            std::string(std::min<size_t>(room, 3), '.');
  return first_columns(label + rest, columns);
}

Progress::Progress(std::string label) : label_(std::move(label)) {
  const char* terminal = std::getenv("TERM");
  is_terminal_ = ::isatty(STDERR_FILENO) == 1 && !(terminal && std::strcmp(terminal, "dumb") == 0);
}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (is_shown_) print_error("\r\x1b[K");
  is_shown_ = false;
}

void Progress::update(uint64_t done_bytes, uint64_t total_bytes) {
  if (!is_terminal_) return;
  const auto now = Clock::now();
  if (done_at_start_bytes_ == UINT64_MAX) done_at_start_bytes_ = done_bytes;
  if (is_shown_ && now - shown_ < kShowEvery) return;
  shown_ = now;
  is_shown_ = true;

  ProgressState state{label_, done_bytes, total_bytes, 0};
  const double seconds = std::chrono::duration<double>(now - started_).count();
  const uint64_t fresh = done_bytes - std::min(done_bytes, done_at_start_bytes_);
  if (seconds > kRateAfterSeconds) state.bytes_per_second = static_cast<double>(fresh) / seconds;
  // Behind a character in the last column terminals wrap.
  print_error(fmt::format("\r{}\x1b[K", progress_line(state, terminal_columns() - 1)));
}

InterruptGuard::InterruptGuard() {
  was_interrupted = 0;
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, &before_int_);
  ::sigaction(SIGTERM, &action, &before_term_);
}

InterruptGuard::~InterruptGuard() {
  ::sigaction(SIGINT, &before_int_, nullptr);
  ::sigaction(SIGTERM, &before_term_, nullptr);
}

bool interrupted() { return was_interrupted != 0; }

}  // namespace tplstore::tool
