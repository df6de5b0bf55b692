// What a server and its clients on the control socket say to each other.
//
// Both are JSON objects on one line. A request is {"protocol": 1, "op": …} with one of the
// operations of control/operations.h, and what that must be given.
//
// Answers are {"protocol": 1, "ok": true, "result": …} or {"protocol": 1, "ok": false, "errno": N,
// "code": "EBUSY", "object": …, "error": "one line"}. The code "ENOENT_OPEN" says that this server
// does not have the volume open: ask the next one, or do it yourself.
//
// Neither side trusts the other: it may be of another release, or somebody else's. The number of
// the protocol rises when what is asked or answered changes so that the other side cannot do with
// it; both sides then refuse, with a line that says so. New keys alone do not raise it.
//
// Two requests are for ever, so that any release's tool can exchange any release's server: "ping"
// (who are you: pid and version) and "server-stop" (close your volumes and end). What is asked,
// what is answered, and what is around an answer never change for these two, and neither side looks
// at the number in them.
//
// Thread safety: pure functions. Errors: Error(EPROTO).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace tplstore::control {

inline constexpr uint64_t kProtocol = 1;
inline constexpr size_t kRequestBytesMax = size_t{64} << 10;
inline constexpr size_t kAnswerBytesMax = size_t{64} << 20;
// The code of an answer about a volume that the server asked does not have open.
inline constexpr std::string_view kCodeNotOpen = "ENOENT_OPEN";

// Whether a request, of whatever protocol, is one of the two.
bool is_for_ever(const nlohmann::json& request);
// A server's whole answer to `request`: of this protocol, unless that is for ever, and either a
// result or an error as above.
nlohmann::json parse_answer(const std::string& server, const nlohmann::json& request,
                            std::string_view line);

}  // namespace tplstore::control
