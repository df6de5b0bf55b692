// version diff: what differs between two versions of a volume.
#include <cerrno>
#include <utility>

#include "command.h"
#include "control/operations.h"
#include "table.h"
#include "version_text.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

constexpr const char* kCurrent = "current";

struct Arguments {
  std::string volume, from, to;
};

std::string diff_text(const json& diff) {
  Table table({{"OFFSET", Align::kRight}, {"LENGTH", Align::kRight}, {"KIND", Align::kLeft}});
  for (const json& range : diff["ranges"])
    table.add_row({plain(range["offset"]), size(range["length"]),
                   range["zero"].get<bool>() ? "zero" : "data"});
  const size_t count = diff["ranges"].size();
  return fmt::format("{}{}: from version {} to {}: {} of data and {} of zeroes in {} {}\n",
                     count == 0 ? "" : table.text(), plain(diff["volume"]), plain(diff["from"]),
                     diff["to"].is_null() ? kCurrent : plain(diff["to"]), size(diff["data_bytes"]),
                     size(diff["zero_bytes"]), count, count == 1 ? "range" : "ranges");
}

// "V A B", "V@A B", "V A..B" and "V@A..B" are the same.
void understand(Arguments& arguments) {
  const auto [volume, from] = split_version_name(arguments.volume);
  if (from) {
    if (!arguments.to.empty())
      wrong_usage(fmt::format("{} names a version already, and there are two more", volume));
    arguments.to = std::exchange(arguments.from, *from);
  }
  arguments.volume = volume;
  const size_t dots = arguments.from.find("..");
  if (dots != std::string::npos && arguments.to.empty()) {
    arguments.to = arguments.from.substr(dots + 2);
    arguments.from.resize(dots);
  }
  if (arguments.from.empty()) wrong_usage("FROM is required");
  if (arguments.to.empty()) wrong_usage("TO is required");
}

void show_diff(const Context& context, Arguments arguments) {
  arguments.from = version_of_volume(arguments.volume, arguments.from);
  arguments.to = version_of_volume(arguments.volume, arguments.to);
  const auto store = context.open_store();
  const bool is_to_current = arguments.to == kCurrent;
  const json volume = find_volume(*store, arguments.volume);
  const json* from = arguments.from == kCurrent ? nullptr : &find_version(volume, arguments.from);
  const json* to = is_to_current ? nullptr : &find_version(volume, arguments.to);
  if (from == nullptr || (*from)["current"].get<bool>() ||
      (to != nullptr && (*to)["current"].get<bool>()))
    fail(EINVAL, "volume " + arguments.volume,
         "its current version changes all the time: it can only be the later one, by the name "
         "'{}'",
         kCurrent);
  json request = {{"op", "version-diff"}, {"volume", arguments.volume}, {"from", arguments.from}};
  json diff;
  if (is_to_current) {
    // Only who has the volume open knows what is in current.
    diff = perform(*store, request);
  } else {
    request["to"] = arguments.to;
    retry_while_busy([&] { diff = control::perform(*store, request); });
  }
  diff["volume"] = arguments.volume;
  diff["from"] = (*from)["number"];
  diff["to"] = to == nullptr ? json(nullptr) : (*to)["number"];
  context.print(diff, diff_text);
}

}  // namespace

void add_diff_command(const Command& group, Context& context) {
  auto arguments = std::make_shared<Arguments>();
  const auto action = [&context, arguments] { show_diff(context, *arguments); };
  const Command command =
      add_command(group, context, "diff", "Show where two versions of a volume differ", action);
  command.on_parsed([&context, arguments, action] {
    understand(*arguments);
    context.action = action;
  });
  command.add_option("VOLUME", arguments->volume, "The volume, or VOLUME@FROM or VOLUME@FROM..TO")
      .required();
  command.add_option("FROM", arguments->from, "A version's number or name");
  command.add_option("TO", arguments->to, "Another one, or the word current");
  add_json_option(command, context);
}

}  // namespace tplstore::tool
