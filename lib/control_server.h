// A server's control socket: how the command line reaches the volumes that a server has open.
//
// One request per line, one answer per line, both JSON, in order; a connection may carry many. The
// requests are {"op": …} with op one of
//
//   ping, stats, reclaim
//   volume-show       volume
//   volume-resize     volume, size (bytes)
//   volume-fork       volume, version, name, size (bytes, 0 for the version's)
//   volume-flatten    volume
//   volume-reclaim    volume
//   version-list      volume
//   version-create    volume, name and note (optional)
//   version-rollback  volume, version
//   version-rm        volume, versions
//   version-diff      volume, from, to (optional; current)
//
// Answers are {"ok": true, "result": …} or {"ok": false, "errno": N, "code": "EBUSY", "object": …,
// "error": "one line"}. The code "ENOENT_OPEN" says that this server does not have the volume open:
// ask the next one, or do it yourself.
//
// Invariants: only processes of the server's user and root are answered. Requests are untrusted: a
// line has at most 64 KiB, and whatever it contains gets an answer. At most 32 connections are
// served at once, each on a thread of its own, so a slow operation blocks no other connection; the
// connection that has been idle longest makes room for a new one. stop() lets requests in progress
// end.
//
// Thread safety: answer_control_request() from any thread; start() and stop() from one at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "store.h"

namespace tplstore {

class ControlServer {
 public:
  // `store` must outlive it. `log` gets lines for the operator; from any thread.
  ControlServer(Store& store, std::string store_directory,
                std::function<void(const std::string&)> log);
  ~ControlServer();  // stops it

  // Opens STORE/control/<pid>.sock, replacing a stale socket of that name, and starts to answer.
  // After a fork, not before. Throws Error when the socket cannot be made.
  void start();
  // Removes the socket and ends all connections. Does nothing when it is not running.
  void stop();

  // STORE/control/<pid>.sock; empty while it is not running.
  std::string socket_path() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Carries out one request and returns the answer, without a newline. Never throws.
std::string answer_control_request(Store& store, std::string_view request) noexcept;

}  // namespace tplstore
