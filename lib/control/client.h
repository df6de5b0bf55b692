// The tool's side of the control sockets: finds the servers of a store and asks them.
//
// It asks those that control/servers.h finds. Every request has a connection of its own. An answer
// must come within the timeout, but for requests whose work may take hours (Patience::kEndless):
// then it is only a ping before the request that must be answered in time, so that a server that
// hangs is noticed.
//
// Thread safety: all of it. Errors: what a server refused is thrown as the Error that it was there;
// ETIMEDOUT when a server does not answer in time, ECONNRESET when it ends before it answers,
// EPROTO when the server is of a release that speaks another protocol, or the answer is not what
// control/protocol.h and control/operations.h say: what is returned has been checked, key by key.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "control/operations.h"
#include "control/servers.h"

namespace tplstore {

constexpr std::chrono::milliseconds kAnswerTimeout = std::chrono::seconds(30);

// What each of these servers answers. One that ends meanwhile is left out.
std::vector<nlohmann::json> ask_each(const std::vector<control::ServerPlace>& servers,
                                     const nlohmann::json& request,
                                     Patience patience = Patience::kUsual,
                                     std::chrono::milliseconds timeout = kAnswerTimeout);

class ControlClient {
 public:
  // The backend, which the store is on, must outlive it. `directory` is where servers of this user
  // have their sockets.
  explicit ControlClient(Backend& backend,
                         std::string directory = control::run_directory(/*makes=*/false),
                         std::chrono::milliseconds timeout = kAnswerTimeout)
      : backend_(backend), directory_(std::move(directory)), timeout_(timeout) {}

  // What the server that has the request's volume open answers; nothing when no server has it.
  // The trouble of a server that may have had it is thrown only when no other one answers.
  std::optional<nlohmann::json> ask_owner(const nlohmann::json& request,
                                          Patience patience = Patience::kUsual) const;
  // What every server answers, as ask_each() has it.
  std::vector<nlohmann::json> ask_all(const nlohmann::json& request,
                                      Patience patience = Patience::kUsual) const;

 private:
  Backend& backend_;
  std::string directory_;
  std::chrono::milliseconds timeout_;
};

}  // namespace tplstore
