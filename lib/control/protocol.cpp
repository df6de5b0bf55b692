// What every answer has around its result, checked key by key.
#include "control/protocol.h"

#include <cerrno>

#include "base/error.h"
#include "control/json_shape.h"

namespace tplstore::control {
namespace {

using nlohmann::json;

constexpr uint64_t kErrnoMax = 4095;  // as the kernel has it

}  // namespace

bool is_for_ever(const json& request) {
  const auto operation = request.find("op");
  return operation != request.end() && (*operation == "ping" || *operation == "server-stop");
}

json parse_answer(const std::string& server, const json& request, std::string_view line) {
  static const Shape begin = Shape::object({{"ok", Shape::boolean()}});
  static const Shape error = Shape::object({{"errno", Shape::number(kErrnoMax)},
                                            {"code", Shape::text()},
                                            {"object", Shape::text()},
                                            {"error", Shape::text()}});
  json answer = parse_json_from(server, line);
  begin.check(answer, server);
  const auto protocol = answer.find("protocol");
  if (!is_for_ever(request) && (protocol == answer.end() || *protocol != kProtocol))
    fail(EPROTO, server,
         "it is of another release and speaks another protocol ({} instead of {}): use the "
         "tplstore that belongs to it, or restart it ('tplstore server stop' ends it)",
         protocol != answer.end() && protocol->is_number_unsigned() ? protocol->dump() : "none",
         kProtocol);
  if (answer["ok"] == true) {
    if (!answer.contains("result")) fail(EPROTO, server, "its answer makes no sense: no result");
    return answer;
  }
  error.check(answer, server);
  if (answer["errno"] == 0 || answer["error"].get_ref<const std::string&>().empty())
    fail(EPROTO, server, "its answer makes no sense: it failed, without an error");
  return answer;
}

}  // namespace tplstore::control
