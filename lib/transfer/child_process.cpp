// Everything is made ready before the fork; behind it come only calls that a signal handler may
// make.
#include "transfer/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/error.h"
#include "base/files.h"

namespace tplstore {
namespace {

constexpr rlim_t kMemoryBytesMax = rlim_t{8} << 30;
// Enough for the extents of any image, and an end for a chain of images that has none.
constexpr rlim_t kOpenFilesMax = 1024;
constexpr size_t kErrorBytesKept = 2000;
constexpr int kFirstFreeDescriptor = 64;  // above all that a child is given

void make_pipe(FileDescriptor& reading, FileDescriptor& writing) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) fail_errno(errno, "pipe", "cannot make one");
  reading.reset(ends[0]);
  writing.reset(ends[1]);
}

// What the new process needs, made before the fork: between fork and exec only calls that are safe
// in a signal handler may be made, for another thread may have held any lock.
struct Start {
  std::vector<char*> arguments;
  std::vector<std::string> texts;
  std::vector<char*> environment;
  char* listen_pid = nullptr;  // where the child's pid is to be put, in the environment
  std::vector<int> given;      // what becomes 0, 1, 2, 3, …; -1 for what it has
  int failed = -1;             // where to write an errno
  pid_t parent = 0;
};

constexpr std::string_view kListenPid = "LISTEN_PID=";

// In the new process.
[[noreturn]] void become(Start& start) {
  const auto give_up = [&](int code) {
    [[maybe_unused]] const ssize_t written = write(start.failed, &code, sizeof code);
    _exit(127);
  };
  // Whoever ended before this call leaves no signal: hence the look afterwards.
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) give_up(errno);
  if (getppid() != start.parent) _exit(127);
  // First out of each other's way.
  const int failed = fcntl(start.failed, F_DUPFD_CLOEXEC, kFirstFreeDescriptor);
  if (failed < 0) give_up(errno);
  start.failed = failed;
  for (int& fd : start.given)
    if (fd >= 0 && (fd = fcntl(fd, F_DUPFD_CLOEXEC, kFirstFreeDescriptor)) < 0) give_up(errno);
  for (size_t i = 0; i < start.given.size(); ++i)
    if (start.given[i] >= 0 && dup2(start.given[i], static_cast<int>(i)) < 0) give_up(errno);
  if (start.listen_pid != nullptr) {
    const auto end = std::to_chars(start.listen_pid, start.listen_pid + 20, getpid()).ptr;
    *end = '\0';
  }
  // Not before: the copy of this process may have more than that by now.
  const rlimit memory{kMemoryBytesMax, kMemoryBytesMax}, files{kOpenFilesMax, kOpenFilesMax};
  setrlimit(RLIMIT_AS, &memory);
  setrlimit(RLIMIT_NOFILE, &files);
  execvpe(start.arguments[0], start.arguments.data(), start.environment.data());
  give_up(errno);
  _exit(127);
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, std::string_view package,
                           const ChildDescriptors& descriptors) {
  const FileDescriptor nothing(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!nothing) fail_errno(errno, "/dev/null", "cannot be opened");
  FileDescriptor failed, failed_writing;
  make_pipe(failed, failed_writing);

  Start start;
  for (const std::string& argument : arguments)
    start.arguments.push_back(const_cast<char*>(argument.c_str()));
  start.arguments.push_back(nullptr);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view(*variable).starts_with("LISTEN_")) start.environment.push_back(*variable);
  }
  if (descriptors.is_listening) {
    start.texts = {"LISTEN_FDS=1", std::string(kListenPid) + std::string(24, '\0')};
    for (std::string& text : start.texts) start.environment.push_back(text.data());
    start.listen_pid = start.texts[1].data() + kListenPid.size();
  }
  start.environment.push_back(nullptr);
  start.given = {nothing.get(), descriptors.out, descriptors.err};
  start.given.insert(start.given.end(), descriptors.more.begin(), descriptors.more.end());
  ensure(start.given.size() < kFirstFreeDescriptor, "a child is given few descriptors");
  start.failed = failed_writing.get();
  start.parent = getpid();

  pid_ = fork();
  if (pid_ < 0) fail_errno(errno, arguments[0], "cannot be started");
  if (pid_ == 0) become(start);
  failed_writing.reset();
  int code = 0;
  ssize_t count;
  while ((count = ::read(failed.get(), &code, sizeof code)) < 0 && errno == EINTR) {
  }
  if (count == 0) return;
  wait();
  if (count != sizeof code) code = EIO;
  if (code == ENOENT)
    fail(ENOENT, arguments[0], "this program is needed and not installed: install {}", package);
  fail_errno(code, arguments[0], "cannot be started");
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  wait();
}

int ChildProcess::wait() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

ProcessResult run_process(const std::vector<std::string>& arguments, std::string_view package,
                          const std::function<void(std::string_view)>& on_output,
                          const std::function<bool()>& interrupted,
                          const std::vector<int>& inherited) {
  FileDescriptor out, out_writing, err, err_writing;
  make_pipe(out, out_writing);
  make_pipe(err, err_writing);
  ChildProcess child(arguments, package,
                     {.out = out_writing.get(), .err = err_writing.get(), .more = inherited});
  out_writing.reset();
  err_writing.reset();

  ProcessResult result{0, {}};
  std::array<char, 65536> buffer;
  std::array<pollfd, 2> watched = {pollfd{out.get(), POLLIN, 0}, pollfd{err.get(), POLLIN, 0}};
  while (watched[0].fd >= 0 || watched[1].fd >= 0) {
    if (interrupted && interrupted()) fail(EINTR, arguments[0], "interrupted");
    if (poll(watched.data(), watched.size(), 100) < 0 && errno != EINTR)
      fail_errno(errno, arguments[0], "poll");
    for (pollfd& one : watched) {
      if (one.fd < 0 || one.revents == 0) continue;
      one.revents = 0;
      const ssize_t count = ::read(one.fd, buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        one.fd = -1;
        continue;
      }
      const std::string_view text(buffer.data(), static_cast<size_t>(count));
      if (one.fd == out.get()) {
        on_output(text);
      } else {
        result.errors += text;
        if (result.errors.size() > 2 * kErrorBytesKept)
          result.errors.erase(0, result.errors.size() - kErrorBytesKept);
      }
    }
  }
  result.exit_status = child.wait();
  return result;
}

}  // namespace tplstore
