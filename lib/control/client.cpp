// Goes through the sockets of a store's servers one by one, or all for answers that are added up.
#include "control/client.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/error.h"
#include "base/files.h"
#include "control/json_output.h"
#include "control/protocol.h"
#include "control/socket.h"

namespace tplstore {
namespace {

using nlohmann::json;

// Connects, and removes the socket when its server is gone, but not one that took its name since.
FileDescriptor connect_or_remove(int folder, const std::string& name,
                                 control::Clock::time_point deadline) {
  struct stat before {
  }, now{};
  if (::fstatat(folder, name.c_str(), &before, AT_SYMLINK_NOFOLLOW) != 0 ||
      !S_ISSOCK(before.st_mode))
    return FileDescriptor();
  FileDescriptor socket = control::connect_to(folder, name, deadline);
  if (!socket && ::fstatat(folder, name.c_str(), &now, AT_SYMLINK_NOFOLLOW) == 0 &&
      now.st_ino == before.st_ino)
    ::unlinkat(folder, name.c_str(), 0);
  return socket;
}

bool is_not_open(const json& answer) {
  return answer["ok"] == false && answer["code"] == control::kCodeNotOpen;
}

// The result in an answer, or what went wrong as it was thrown there.
json result_of(const std::string& server, const json& request, json answer) {
  if (answer["ok"] == true) {
    control::check_result(server, request, answer["result"]);
    return std::move(answer["result"]);
  }
  const std::string object = answer["object"];
  std::string message = answer["error"];
  if (message.starts_with(object + ": ")) message.erase(0, object.size() + 2);
  throw Error(answer["errno"].get<int>(), object.empty() ? server : object, message);
}

}  // namespace

std::vector<std::string> ControlClient::find_sockets() const {
  FileDescriptor folder = control::open_folder(store_directory_, false);
  std::vector<std::string> names;
  if (folder && read_folder(std::move(folder), names) != 0)
    fail_errno(errno, store_directory_, "reading the folder of control sockets");
  std::erase_if(names, [](const std::string& name) { return !name.ends_with(".sock"); });
  std::sort(names.begin(), names.end());
  return names;
}

namespace {

// Sends one request on a connection of its own and waits for the answer; nothing when there is no
// such server any more.
std::optional<json> exchange(int folder, const std::string& socket_name, const std::string& server,
                             const json& request, control::Clock::time_point send_deadline,
                             control::Clock::time_point deadline) {
  const FileDescriptor socket = connect_or_remove(folder, socket_name, send_deadline);
  if (!socket) return std::nullopt;
  control::LineChannel channel(socket.get(), control::kAnswerBytesMax);
  std::string line;
  auto result = control::LineChannel::Result::kClosed;
  try {
    // A server may refuse and close before it has read all: then there is an answer nevertheless.
    json line_to_send = request;
    line_to_send["protocol"] = control::kProtocol;
    channel.write_line(json_text(line_to_send), send_deadline);
    result = channel.read_line(line, deadline);
  } catch (const Error& error) {
    if (error.code() != ETIMEDOUT) throw;
    fail(ETIMEDOUT, server, "it does not answer; look what was done, and what holds it up");
  }
  switch (result) {
    case control::LineChannel::Result::kLine:
      break;
    case control::LineChannel::Result::kTooLong:
      fail(EPROTO, server, "its answer is too long");
    case control::LineChannel::Result::kClosed:
      fail(ECONNRESET, server, "it ended before it answered; look what was done, and try again");
  }
  return control::parse_answer(server, line);
}

}  // namespace

std::optional<json> ControlClient::ask(const std::string& socket_name, const json& request,
                                       Patience patience) const {
  const std::string server = "server " + socket_name;
  const auto deadline = control::Clock::now() + timeout_;
  const FileDescriptor folder = control::open_folder(store_directory_, false);
  if (!folder) return std::nullopt;
  if (patience == Patience::kUsual)
    return exchange(folder.get(), socket_name, server, request, deadline, deadline);
  const json ping = {{"op", "ping"}};
  std::optional<json> pong = exchange(folder.get(), socket_name, server, ping, deadline, deadline);
  if (!pong || (*pong)["ok"] == false) return pong;
  return exchange(folder.get(), socket_name, server, request, deadline,
                  control::Clock::time_point::max());
}

std::optional<json> ControlClient::ask_owner(const json& request, Patience patience) const {
  std::optional<Error> trouble;
  for (const std::string& name : find_sockets()) {
    std::optional<json> answer;
    try {
      answer = ask(name, request, patience);
    } catch (const Error& error) {
      trouble = error;
      continue;
    }
    if (answer && !is_not_open(*answer))
      return result_of("server " + name, request, std::move(*answer));
  }
  if (trouble) throw *trouble;
  return std::nullopt;
}

std::vector<json> ControlClient::ask_all(const json& request, Patience patience) const {
  std::vector<json> results;
  for (const std::string& name : find_sockets()) {
    try {
      if (std::optional<json> answer = ask(name, request, patience))
        results.push_back(result_of("server " + name, request, std::move(*answer)));
    } catch (const Error& error) {
      if (error.code() != ECONNRESET) throw;
    }
  }
  return results;
}

}  // namespace tplstore
