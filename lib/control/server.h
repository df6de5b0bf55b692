// A server's control socket: how the command line reaches the volumes that a server has open.
//
// A connection carries one request and its answer, as control/protocol.h has them.
//
// Invariants: only processes of the server's user and root are answered. Requests are untrusted:
// one has at most 64 KiB, and whatever it contains gets an answer. One thread looks after all
// connections, and no connection makes it wait: those that say nothing cost a descriptor until
// their time is over, or until newer ones need their place. Operations run on threads of their own,
// a limited number of them at once, so a slow one holds up no other; a ping waits for none. stop()
// lets operations in progress end.
//
// Thread safety: answer_control_request() from any thread; start() and stop() from one at a time.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/log.h"
#include "store/store.h"

namespace tplstore {

struct ControlLimits {
  size_t connections_max = 256;
  size_t operations_max = 32;
  // From the connection to the whole request; and for taking the whole answer.
  std::chrono::milliseconds request_timeout = std::chrono::seconds(5);
  std::chrono::milliseconds answer_timeout = std::chrono::seconds(10);
  // A connection younger than this is about to send its request, and keeps its place.
  std::chrono::milliseconds young = std::chrono::milliseconds(20);
};

class ControlServer {
 public:
  // `store` must outlive it; `directory` is where the socket shall be (control/servers.h). `log`
  // gets lines for the operator; from any thread.
  ControlServer(Store& store, std::string directory, Log log, ControlLimits limits = {});
  ~ControlServer();  // stops it

  // Opens the socket, has the store lead to it, and starts to answer. After a fork, not before.
  // Throws Error when the socket cannot be made.
  void start();
  // Removes the socket and ends all connections. Does nothing when it is not running.
  void stop();
  // To be called before it starts: what is done, by the server's thread, when the store has left
  // at a request, which was answered (Store::leave()). Nothing is answered after that.
  void when_left(std::function<void()> left);

  // The socket's; empty while it is not running.
  std::string socket_path() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Carries out one request and returns the answer, without a newline; nothing where there is no
// memory even for an error. Never throws.
std::string answer_control_request(Store& store, std::string_view request) noexcept;

}  // namespace tplstore
