#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "names.h"

namespace tplstore::tool {
namespace {

constexpr auto kShowEvery = std::chrono::milliseconds(100);
constexpr double kRateAfterSeconds = 0.5;  // before that a rate is a guess

volatile sig_atomic_t was_interrupted = 0;

std::string format_duration(double seconds) {
  const auto whole = static_cast<uint64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
}

}  // namespace

Progress::Progress(std::string label) : label_(std::move(label)) {
  const char* terminal = std::getenv("TERM");
  is_terminal_ = ::isatty(STDERR_FILENO) == 1 && !(terminal && std::strcmp(terminal, "dumb") == 0);
}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (is_shown_) fmt::print(stderr, "\r\x1b[K");
  is_shown_ = false;
}

void Progress::update(uint64_t done_bytes, uint64_t total_bytes) {
  if (!is_terminal_) return;
  const auto now = Clock::now();
  if (done_at_start_bytes_ == UINT64_MAX) done_at_start_bytes_ = done_bytes;
  if (is_shown_ && now - shown_ < kShowEvery) return;
  shown_ = now;
  is_shown_ = true;

  const double share =
      total_bytes == 0
          ? 1.0
          : std::min(1.0, static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
  constexpr size_t kBarWidth = 20;
  const auto filled = static_cast<size_t>(share * kBarWidth);
  std::string line = fmt::format("{} [{}{}] {:3.0f}%  {} of {}", label_, std::string(filled, '#'),
                                 std::string(kBarWidth - filled, '.'), share * 100,
                                 format_size(done_bytes), format_size(total_bytes));
  const double seconds = std::chrono::duration<double>(now - started_).count();
  const uint64_t fresh = done_bytes - std::min(done_bytes, done_at_start_bytes_);
  if (seconds > kRateAfterSeconds && fresh > 0) {
    const double rate = static_cast<double>(fresh) / seconds;
    line += fmt::format("  {}/s", format_size(static_cast<uint64_t>(rate)));
    if (done_bytes < total_bytes)
      line += fmt::format("  {} left",
                          format_duration(static_cast<double>(total_bytes - done_bytes) / rate));
  }
  fmt::print(stderr, "\r{}\x1b[K", line);
  std::fflush(stderr);
}

InterruptGuard::InterruptGuard() {
  was_interrupted = 0;
  struct sigaction action {};
  action.sa_handler = [](int) { was_interrupted = 1; };
  // Reset, so that a second signal is not noted but ends the process.
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  ::sigaction(SIGINT, &action, &before_int_);
  ::sigaction(SIGTERM, &action, &before_term_);
}

InterruptGuard::~InterruptGuard() {
  ::sigaction(SIGINT, &before_int_, nullptr);
  ::sigaction(SIGTERM, &before_term_, nullptr);
}

bool interrupted() { return was_interrupted != 0; }

}  // namespace tplstore::tool
