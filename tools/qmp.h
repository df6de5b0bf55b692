// A conversation with a running qemu, over the socket of its -qmp.
//
// Thread safety: one thread. Errors: ENOENT when nobody listens there, ETIMEDOUT, EPROTO for what
// is no QMP, EIO with qemu's own words for what it refuses.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/files.h"
#include "control/socket.h"

namespace tplstore::tool {

class Qmp {
 public:
  explicit Qmp(const std::string& path);
  // What the command returns; what qemu tells of its own accord meanwhile is passed over.
  nlohmann::json run(const std::string& command,
                     const nlohmann::json& arguments = nlohmann::json::object());

 private:
  nlohmann::json read(control::Clock::time_point deadline);

  const std::string path_;
  FileDescriptor socket_;
  control::LineChannel channel_;
};

}  // namespace tplstore::tool
