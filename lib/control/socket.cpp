// Unix sockets by way of /proc/self/fd, so that a path of any length can be reached.
#include "control/socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace tplstore {

namespace control {
namespace {

constexpr int kListenBacklog = 128;

sockaddr_un address_of(int folder, const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = fmt::format("/proc/self/fd/{}/{}", folder, name);
  if (path.size() >= sizeof address.sun_path)
    fail(ENAMETOOLONG, name, "not the name of a control socket");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

FileDescriptor new_socket(int flags) {
  FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  if (!socket) fail_errno(errno, "control socket", "socket");
  return socket;
}

}  // namespace

int milliseconds_until(Clock::time_point deadline) {
  if (deadline == Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<long long>(left, 0, INT_MAX));
}

FileDescriptor listen_at(int folder, const std::string& name) {
  FileDescriptor socket = new_socket(SOCK_NONBLOCK);
  // No client looks at a name that does not end in ".sock".
  const std::string unready = name + ".new";
  const sockaddr_un address = address_of(folder, unready);
  if (::unlinkat(folder, unready.c_str(), 0) != 0 && errno != ENOENT)
    fail_errno(errno, unready, "removing a stale control socket");
  // The process' umask is not ours to change while other threads run; nobody can connect before
  // listen(), so setting the mode in between is in time.
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    fail_errno(errno, unready, "binding the control socket");
  if (::fchmodat(folder, unready.c_str(), 0600, 0) != 0 ||
      ::listen(socket.get(), kListenBacklog) != 0 ||
      ::renameat(folder, unready.c_str(), folder, name.c_str()) != 0) {
    const int code = errno;
    ::unlinkat(folder, unready.c_str(), 0);
    fail_errno(code, name, "opening the control socket");
  }
  return socket;
}

FileDescriptor connect_to(int folder, const std::string& name, Clock::time_point deadline) {
  FileDescriptor socket = new_socket(0);
  const sockaddr_un address = address_of(folder, name);
  // A blocking connect waits for a place in the server's backlog, as long as a send may take.
  const int wait_ms = std::max(1, std::min(milliseconds_until(deadline), 3'600'000));
  const timeval timeout{.tv_sec = wait_ms / 1000, .tv_usec = wait_ms % 1000 * 1000L};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address)) {
    if (errno == ENOENT || errno == ECONNREFUSED) return FileDescriptor();
    if (errno == EAGAIN) fail(ETIMEDOUT, name, "the server accepts no connection in time");
    if (errno != EINTR) fail_errno(errno, name, "connecting to the control socket");
  }
  return socket;
}

void LineChannel::wait_for(short events, Clock::time_point deadline) {
  while (true) {
    pollfd polled = {socket_, events, 0};
    const int ready = ::poll(&polled, 1, milliseconds_until(deadline));
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) fail_errno(errno, "control socket", "poll");
    if (polled.revents != 0) return;
    if (Clock::now() >= deadline) fail(ETIMEDOUT, "control socket", "no answer in time");
  }
}

LineChannel::Result LineChannel::read_line(std::string& line, Clock::time_point deadline) {
  size_t searched = 0;
  while (true) {
    if (const size_t end = buffer_.find('\n', searched); end != std::string::npos) {
      if (end > line_bytes_max_) return Result::kTooLong;
      line.assign(buffer_, 0, end);
      buffer_.erase(0, end + 1);
      return Result::kLine;
    }
    if (buffer_.size() > line_bytes_max_) return Result::kTooLong;
    searched = buffer_.size();

    wait_for(POLLIN, deadline);
    char chunk[16384];
    const ssize_t count = ::recv(socket_, chunk, sizeof chunk, MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno == ECONNRESET)) return Result::kClosed;
    if (count < 0 && errno != EAGAIN && errno != EINTR)
      fail_errno(errno, "control socket", "receiving");
    if (count > 0) buffer_.append(chunk, static_cast<size_t>(count));
  }
}

bool LineChannel::write_line(std::string_view line, Clock::time_point deadline) {
  std::string text(line);
  text += '\n';
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t count = ::send(socket_, rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) {
      rest.remove_prefix(static_cast<size_t>(count));
      continue;
    }
    if (errno == EPIPE || errno == ECONNRESET) return false;
    if (errno != EAGAIN && errno != EINTR) fail_errno(errno, "control socket", "sending");
    wait_for(POLLOUT, deadline);
  }
  return true;
}

}  // namespace control
}  // namespace tplstore
