// Goes through the sockets of a store's servers one by one, or all for answers that are added up.
#include "control/client.h"

#include <cerrno>

#include "base/error.h"
#include "control/json_output.h"
#include "control/protocol.h"
#include "control/socket.h"

namespace tplstore {
namespace {

using nlohmann::json;

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

// Sends one request on a connection of its own and waits for the answer; nothing when there is no
// such server any more.
std::optional<json> exchange(const control::ServerPlace& server, const json& request,
                             control::Clock::time_point send_deadline,
                             control::Clock::time_point deadline) {
  const FileDescriptor socket = control::connect_to(server, send_deadline);
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
    fail(ETIMEDOUT, server.describe(),
         "it does not answer; look what was done, and what holds it up");
  }
  switch (result) {
    case control::LineChannel::Result::kLine:
      break;
    case control::LineChannel::Result::kTooLong:
      fail(EPROTO, server.describe(), "its answer is too long");
    case control::LineChannel::Result::kClosed:
      fail(ECONNRESET, server.describe(),
           "it ended before it answered; look what was done, and try again");
  }
  return control::parse_answer(server.describe(), request, line);
}

// The answer; nothing when there is no such server any more.
std::optional<json> ask(const control::ServerPlace& server, const json& request, Patience patience,
                        std::chrono::milliseconds timeout) {
  const auto deadline = control::Clock::now() + timeout;
  if (patience == Patience::kUsual) return exchange(server, request, deadline, deadline);
  std::optional<json> pong = exchange(server, {{"op", "ping"}}, deadline, deadline);
  if (!pong || (*pong)["ok"] == false) return pong;
  return exchange(server, request, deadline, control::Clock::time_point::max());
}

}  // namespace

std::optional<json> ControlClient::ask_owner(const json& request, Patience patience) const {
  std::optional<Error> trouble;
  for (const control::ServerPlace& server : control::find_servers(backend_, directory_)) {
    std::optional<json> answer;
    try {
      answer = ask(server, request, patience, timeout_);
    } catch (const Error& error) {
      trouble = error;
      continue;
    }
    if (answer && !is_not_open(*answer))
      return result_of(server.describe(), request, std::move(*answer));
  }
  if (trouble) throw Error(*trouble);
  return std::nullopt;
}

std::vector<json> ControlClient::ask_all(const json& request, Patience patience) const {
  return ask_each(control::find_servers(backend_, directory_), request, patience, timeout_);
}

std::vector<json> ask_each(const std::vector<control::ServerPlace>& servers, const json& request,
                           Patience patience, std::chrono::milliseconds timeout) {
  std::vector<json> results;
  for (const control::ServerPlace& server : servers) {
    try {
      if (std::optional<json> answer = ask(server, request, patience, timeout))
        results.push_back(result_of(server.describe(), request, std::move(*answer)));
    } catch (const Error& error) {
      if (error.code() != ECONNRESET) throw;
    }
  }
  return results;
}

}  // namespace tplstore
