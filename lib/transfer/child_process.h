// Runs helper programs (qemu-img, qemu-nbd). No shell is involved: arguments are handed over as
// they are. A child cannot read our input, and its memory and its open files are limited, since it
// looks at files that nobody trusts. It never outlives us: the kernel kills it when the thread that
// started it ends, in whatever way.
//
// Thread safety: all functions; a ChildProcess belongs to one thread at a time, and the thread that
// starts one must live as long as it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace tplstore {

// What a child has of our descriptors, besides an empty input.
struct ChildDescriptors {
  int out = -1;  // -1: ours
  int err = -1;
  std::vector<int> more = {};  // become 3, 4, … in it
  bool is_listening = false;   // 3 is a socket to accept connections from (LISTEN_FDS)
};

class ChildProcess {
 public:
  // Error(ENOENT) when the program is not installed, naming `package`.
  ChildProcess(const std::vector<std::string>& arguments, std::string_view package,
               const ChildDescriptors& descriptors);
  // Kills it, unless wait() has seen its end.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // Its exit status; 128 + signal when a signal ended it.
  int wait();

 private:
  pid_t pid_ = -1;
};

struct ProcessResult {
  int exit_status;     // as of ChildProcess::wait()
  std::string errors;  // the end of what it wrote to stderr
};

// Runs a program to its end. Calls `on_output` with the pieces of its stdout as they come;
// `inherited` become its descriptors 3, 4, … Error(ENOENT) as above; Error(EINTR) when
// `interrupted` said so, the child being gone then. Whatever `on_output` throws ends the child and
// is passed on.
ProcessResult run_process(const std::vector<std::string>& arguments, std::string_view package,
                          const std::function<void(std::string_view)>& on_output,
                          const std::function<bool()>& interrupted,
                          const std::vector<int>& inherited = {});

}  // namespace tplstore
