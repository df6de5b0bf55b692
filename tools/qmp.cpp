// One command at a time, each answered within a time.
#include "qmp.h"

#include <fcntl.h>

#include <cerrno>
#include <filesystem>

#include "base/error.h"
#include "control/json_shape.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

constexpr auto kTimeout = std::chrono::seconds(60);
constexpr size_t kLineBytesMax = 16 << 20;

FileDescriptor connect_to_qemu(const std::string& path) {
  const std::filesystem::path where(path);
  const std::string folder = where.has_parent_path() ? where.parent_path().string() : ".";
  const FileDescriptor opened(::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!opened) fail_errno(errno, path, "opening its folder");
  FileDescriptor socket = control::connect_to(opened.get(), where.filename().string(),
                                              control::Clock::now() + kTimeout);
  if (!socket)
    fail(ENOENT, path, "no qemu listens there; start it with -qmp unix:{},server=on,wait=off",
         path);
  return socket;
}

}  // namespace

Qmp::Qmp(const std::string& path)
    : path_(path), socket_(connect_to_qemu(path)), channel_(socket_.get(), kLineBytesMax) {
  if (!read(control::Clock::now() + kTimeout).contains("QMP"))
    fail(EPROTO, path_, "that is no QMP socket");
  run("qmp_capabilities");
}

json Qmp::read(control::Clock::time_point deadline) {
  std::string line;
  auto result = control::LineChannel::Result::kClosed;
  try {
    result = channel_.read_line(line, deadline);
  } catch (const Error& error) {
    if (error.code() != ETIMEDOUT) throw;
    fail(ETIMEDOUT, path_, "qemu does not answer; is another program connected to that socket?");
  }
  if (result != control::LineChannel::Result::kLine)
    fail(EPROTO, path_, "qemu ended the conversation");
  json message = parse_json_from(path_, line);
  if (!message.is_object()) fail(EPROTO, path_, "that is no QMP");
  return message;
}

json Qmp::run(const std::string& command, const json& arguments) {
  json request = {{"execute", command}};
  if (!arguments.empty()) request["arguments"] = arguments;
  // Of the command, whatever else is told meanwhile.
  const auto deadline = control::Clock::now() + kTimeout;
  if (!channel_.write_line(request.dump(), deadline))
    fail(EPROTO, path_, "qemu ended the conversation");
  while (true) {
    json answer = read(deadline);
    if (answer.contains("return")) return answer["return"];
    if (!answer.contains("error")) continue;
    const json& error = answer["error"];
    const bool has_words = error.is_object() && error.contains("desc") && error["desc"].is_string();
    fail(EIO, path_, "qemu refuses {}: {}", command,
         has_words ? error["desc"].get<std::string>() : "it does not say why");
  }
}

}  // namespace tplstore::tool
