// Lines about what happens, for the people who run a server: each with how much it matters, in the
// levels of syslog, so that who looks for errors finds errors only.
//
//   kError    somebody must look: data cannot be read, or was lost
//   kWarning  something is not as it should be, and was dealt with; what is not said otherwise
//   kNotice   normal, and worth knowing: a recovery, a take-over
//   kInfo     what else happens
//
// Under systemd's journal a line that begins with <N> has the level N, and others have the one that
// the unit says.
//
// Thread safety: a Log is as safe as what it was made from; of the functions, all.
#pragma once

#include <concepts>
#include <functional>
#include <string>
#include <utility>

#include "base/error.h"

namespace tplstore {

enum class LogLevel { kError = 3, kWarning = 4, kNotice = 5, kInfo = 6 };

// kError for what somebody must look at: I/O that fails, and no room for it. Who is refused, or
// asks for what is not there, is the one to be told.
LogLevel level_of(const Error& error);

// Where lines go; nowhere unless told.
class Log {
 public:
  Log() = default;
  // From what takes a level and a line, or a line only.
  template <typename Sink>
  requires(!std::same_as<Sink, Log> && std::invocable<Sink&, LogLevel, const std::string&>)
      Log(Sink sink)
      : sink_(std::move(sink)) {}
  template <typename Sink>
  requires(!std::same_as<Sink, Log> && std::invocable<Sink&, const std::string&>) Log(Sink sink)
      : sink_([sink = std::move(sink)](LogLevel, const std::string& line) { sink(line); }) {}

  void operator()(LogLevel level, const std::string& line) const {
    if (sink_) sink_(level, line);
  }
  void operator()(const std::string& line) const { (*this)(LogLevel::kWarning, line); }
  void operator()(const Error& error) const { (*this)(level_of(error), error.what()); }
  explicit operator bool() const { return sink_ != nullptr; }

 private:
  std::function<void(LogLevel, const std::string&)> sink_;
};

// Whether stderr is the journal's stream, which understands levels.
bool is_journal_stderr() noexcept;
// "<4>line\n" for each line of `text`, which ends with a newline; without levels where the journal
// does not read it.
std::string with_level(LogLevel level, const std::string& text);

}  // namespace tplstore
