// Control sockets: listening, connecting, and lines of text in both directions with limits on their
// length and on the time they take.
//
// Sockets are bound and connected through /proc/self/fd/<folder>/<name>, so the path of a run
// directory may be longer than the 107 bytes that a socket address holds.
//
// Thread safety: free functions all; one thread at a time per LineChannel. Errors: Error with the
// system's errno, ETIMEDOUT when a deadline passes.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "base/files.h"

namespace tplstore {

namespace control {

using Clock = std::chrono::steady_clock;

// What poll() takes; -1 for ever.
int milliseconds_until(Clock::time_point deadline);

// A listening socket called `name`, mode 0600. It takes the name, atomically, only once it
// listens: whoever gets ECONNREFUSED from a socket may conclude that its server is gone.
FileDescriptor listen_at(int folder, const std::string& name);
// Nothing when there is no such socket, or nobody listens on it any more; ETIMEDOUT when the
// server does not accept before the deadline.
FileDescriptor connect_to(int folder, const std::string& name, Clock::time_point deadline);

// Lines in both directions over a connected socket that it does not own.
class LineChannel {
 public:
  LineChannel(int socket, size_t line_bytes_max)
      : socket_(socket), line_bytes_max_(line_bytes_max) {}

  enum class Result { kLine, kClosed, kTooLong };
  // The next line, without its newline. kClosed at the end of the stream, even within a line.
  Result read_line(std::string& line, Clock::time_point deadline);
  // Sends `line` and a newline; false when the peer is gone.
  bool write_line(std::string_view line, Clock::time_point deadline);

 private:
  void wait_for(short events, Clock::time_point deadline);

  int socket_;
  size_t line_bytes_max_;
  std::string buffer_;
};

}  // namespace control
}  // namespace tplstore
