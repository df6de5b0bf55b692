// Everything that a server does for others, and the tool by itself where no server has the volume
// open: one table, with what an operation must be given, what it answers, and how it is done.
//
// A request is a JSON object with the operation's name as "op", the volume that it concerns, if it
// concerns one, as "volume", and its arguments. What these are, the table in operations.cpp says.
// Others' keys are let through.
//
// Thread safety: all of it. Errors: EINVAL for what is no request, EPROTO for what is no answer,
// and what the store throws.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "control/json_shape.h"
#include "store/store.h"

namespace tplstore {

// How long an answer may take: for kEndless it may be hours.
enum class Patience { kUsual, kEndless };

namespace control {

// A hand-over is armed for a day at most.
inline constexpr uint64_t kHandOverSecondsMax = 86400;

inline constexpr uint64_t kJoinSecondsMax = 60;
inline constexpr uint64_t kKeepSecondsMax = uint64_t{200} * 365 * 86400;

struct Operation {
  struct Argument {
    enum class Kind { kText, kOptionalText, kTexts, kNumber };
    const char* key;
    Kind kind;
  };
  using Progress = std::function<void(uint64_t done_bytes)>;
  struct Call;  // a request that was checked, and what it is performed with

  std::string_view name;
  bool concerns_volume;  // then who does it must have that open, or nobody may
  const Shape& (*answer)();
  nlohmann::json (*perform)(const Call& call);
  std::vector<Argument> arguments = {};
  Patience patience = Patience::kUsual;
};

// The operation that is asked for.
const Operation& operation_of(const nlohmann::json& request);
// The volume that a request concerns.
std::string volume_of(const nlohmann::json& request);
// Does it; `progress` is told of what takes long.
nlohmann::json perform(
    Store& store, const nlohmann::json& request,
    const Operation::Progress& progress = [](uint64_t) {});

// Whether `result`, which `server` sent, is one to `request`: all keys are there, with values that
// fit, about the volume that was asked for; versions rise, come from earlier ones, and the last one
// is current.
void check_result(const std::string& server, const nlohmann::json& request,
                  const nlohmann::json& result);

}  // namespace control
}  // namespace tplstore
