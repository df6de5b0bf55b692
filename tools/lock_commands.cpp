// lock show, break: who may write a volume.
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <iostream>

#include "base/text.h"
#include "command.h"
#include "control/json_output.h"
#include "table.h"
#include "version_text.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

std::string lock_text(const json& lock) {
  const json& writer = lock["writer"];
  std::vector<std::pair<std::string, std::string>> fields = {{"volume", plain(lock["volume"])},
                                                             {"state", plain(lock["state"])},
                                                             {"epoch", plain(lock["epoch"])},
                                                             {"size", size(lock["size_bytes"])}};
  if (!writer.is_null()) {
    fields.push_back({"writer", plain(writer["peer"])});
    fields.push_back({"token", plain(writer["token"])});
    fields.push_back({"since", plain(writer["since"])});
    fields.push_back({"server", fmt::format("pid {} on host {}", plain(writer["server_pid"]),
                                            plain(writer["host_name"]))});
    fields.push_back({"connections", plain(writer["connections"])});
    fields.push_back({"wrote", writer["wrote"].get<bool>() ? "yes" : "no"});
  }
  if (const json& hand_over = lock["handover"]; !hand_over.is_null())
    fields.push_back(
        {"handed to", fmt::format("{}{}, until {}", plain(hand_over["to"]),
                                  hand_over["standby"].get<bool>() ? " (standing by)" : "",
                                  plain(hand_over["until"]))});
  for (const json& loser : lock["losers"])
    fields.push_back(
        {"never again",
         loser["writes_lost"].get<bool>()
             ? fmt::format("{}, whose last writes were lost with its server", plain(loser["peer"]))
             : fmt::format("{} (epoch {})", plain(loser["peer"]), plain(loser["epoch"]))});
  return format_fields(fields);
}

json show_lock(Store& store, const std::string& volume) {
  const json request = {{"op", "lock-show"}, {"volume", volume}};
  if (std::optional<json> answer = ControlClient(store.backend()).ask_owner(request))
    return *answer;
  return lock_json(store.show_lock(volume));
}

struct BreakArguments {
  std::string volume;
  std::string epoch;
  bool is_sure = false;
};

// What is at stake.
std::string warning(const json& lock) {
  const json& writer = lock["writer"];
  const std::string who = fmt::format("{} (server pid {} on host {})", plain(writer["peer"]),
                                      plain(writer["server_pid"]), plain(writer["host_name"]));
  if (lock["state"] == "foreign")
    return fmt::format(
        "{} has it, or had it, on another host. If anything there still writes, both will, and the "
        "volume is destroyed. One that is only paused, or cut off for a while, goes on with what "
        "it "
        "had begun: make sure that host is off, or cut off from the store for good.",
        who);
  if (lock["state"] == "crashed")
    return fmt::format(
        "{} had it when its server ended, and may come back. It never will after this: what it has "
        "not flushed is lost.",
        who);
  return fmt::format(
      "{} has it. Its requests fail from now on, and it never gets the volume again: what it has "
      "not flushed is lost.",
      who);
}

void break_lock(const Context& context, const BreakArguments& arguments) {
  const auto store = context.open_store();
  uint64_t epoch = 0;
  std::from_chars(arguments.epoch.data(), arguments.epoch.data() + arguments.epoch.size(), epoch);
  const json lock = show_lock(*store, arguments.volume);
  const std::string object = "volume " + arguments.volume;
  if (lock["writer"].is_null()) fail(EINVAL, object, "no VM has it, so there is nothing to break");
  if (lock["epoch"] != epoch)
    fail(EBUSY, object, "it has changed hands since: its epoch is {}; look at it again",
         plain(lock["epoch"]));
  if (!arguments.is_sure) {
    print_error(fmt::format("{}\n", printable(warning(lock))));
    if (::isatty(STDIN_FILENO) != 1)
      fail(EINVAL, object, "nobody can be asked here; say --yes when you are sure");
    print_error("Break the lock? [y/N] ");
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != "y" && answer != "yes") fail(ECANCELED, object, "its lock is as it was");
  }
  const json request = {{"op", "lock-break"}, {"volume", arguments.volume}, {"epoch", epoch}};
  perform_once(*store, request);
  context.print(show_lock(*store, arguments.volume), lock_text);
}

}  // namespace

void add_lock_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "lock", "Who may write a volume");

  auto shown = std::make_shared<std::string>();
  const Command show =
      add_command(group, context, "show", "Show who may write a volume", [&context, shown] {
        const auto store = context.open_store();
        context.print(show_lock(*store, *shown), lock_text);
      });
  show.add_option("VOLUME", *shown, "The volume").required();
  add_json_option(show, context);

  auto broken = std::make_shared<BreakArguments>();
  const Command command =
      add_command(group, context, "break", "Take a volume from the VM that has or had it",
                  [&context, broken] { break_lock(context, *broken); });
  command.add_option("VOLUME", broken->volume, "The volume").required();
  command.add_option("--epoch", broken->epoch, "As 'lock show' shows it")
      .required()
      .type_name("N")
      .check(whole_number_from(1, UINT64_MAX));
  command.add_flag("--yes", broken->is_sure, "Do not ask");
  add_json_option(command, context);
}

}  // namespace tplstore::tool
