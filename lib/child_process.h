// Runs a helper program (qemu-img) and takes its output. No shell is involved: arguments are
// handed over as they are. The child cannot read our input, and its memory and what it writes are
// limited, since it looks at files that nobody trusts.
//
// Thread safety: all functions.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace tplstore {

struct ProcessResult {
  int exit_status;     // 128 + signal when a signal ended it
  std::string errors;  // the end of what it wrote to stderr
};

// Calls `on_output` with the pieces of its stdout as they come. Error(ENOENT) when the program is
// not installed, naming `package`; Error(EINTR) when `interrupted` said so, the child being gone
// then. Whatever `on_output` throws ends the child and is passed on.
ProcessResult run_process(const std::vector<std::string>& arguments, std::string_view package,
                          const std::function<void(std::string_view)>& on_output,
                          const std::function<bool()>& interrupted);

}  // namespace tplstore
