#include "child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "error.h"

extern char** environ;

namespace tplstore {
namespace {

constexpr rlim_t kMemoryBytesMax = rlim_t{8} << 30;
constexpr size_t kErrorBytesKept = 2000;

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  int get() const { return fd_; }
  void set(int fd) { fd_ = fd; }

 private:
  int fd_;
};

// A child that does not outlive its owner.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    wait();
  }
  int wait() {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_;
};

void make_pipe(Descriptor& reading, Descriptor& writing) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) fail_errno(errno, "pipe", "cannot make one");
  reading.set(ends[0]);
  writing.set(ends[1]);
}

pid_t spawn(const std::vector<std::string>& arguments, std::string_view package, int out, int err) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT)
    fail(ENOENT, arguments[0], "this program is needed and not installed: install {}", package);
  if (error != 0) fail_errno(error, arguments[0], "cannot be started");
  return pid;
}

}  // namespace

ProcessResult run_process(const std::vector<std::string>& arguments, std::string_view package,
                          const std::function<void(std::string_view)>& on_output,
                          const std::function<bool()>& interrupted) {
  Descriptor out, out_writing, err, err_writing;
  make_pipe(out, out_writing);
  make_pipe(err, err_writing);
  const pid_t pid = spawn(arguments, package, out_writing.get(), err_writing.get());
  Child child(pid);
  const rlimit memory{kMemoryBytesMax, kMemoryBytesMax};
  prlimit(pid, RLIMIT_AS, &memory, nullptr);
  out_writing.close();
  err_writing.close();

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
      const ssize_t count = read(one.fd, buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        one.fd = -1;
        continue;
      }
      const std::string_view text(buffer.data(), static_cast<size_t>(count));
      if (&one == &watched[0]) {
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
