// volume list, show, resize. The other commands of the group have files of their own.
#include <cerrno>
#include <charconv>

#include "base/units.h"
#include "command.h"
#include "control/json_output.h"
#include "control/operations.h"
#include "qemu_disk.h"
#include "table.h"
#include "version_text.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

std::string writer_text(const json& volume) {
  if (!volume["attached"].get<bool>()) return "-";
  const json& writer = volume["writer"];
  if (writer.is_null()) return "yes";
  return fmt::format("{} by server {} on {}", plain(writer["peer"]), plain(writer["server_pid"]),
                     plain(writer["host"]));
}

const Columns kVolumeColumns = {{"NAME", Align::kLeft},     {"SIZE", Align::kRight},
                                {"TEMPLATE", Align::kLeft}, {"VERSION", Align::kRight},
                                {"UNIQUE", Align::kRight},  {"SHARED", Align::kRight},
                                {"ATTACHED", Align::kLeft}};

std::string volumes_text(const json& volumes, const ListOptions& options) {
  Table table(kVolumeColumns);
  for (const json& volume : volumes)
    table.add_row({plain_cell(volume["name"]), size_cell(volume["size"]),
                   plain_cell(volume["template"]), plain_cell(volume["current_version"]),
                   size_cell(volume["unique_bytes"]), size_cell(volume["shared_bytes"]),
                   writer_text(volume)});
  return table.text(options);
}

std::string volume_text(const json& volume) {
  std::string text = format_fields({{"name", plain(volume["name"])},
                                    {"uuid", plain(volume["uuid"])},
                                    {"size", size(volume["size"])},
                                    {"template", plain(volume["template"])},
                                    {"parent", plain(volume["parent"])},
                                    {"current version", plain(volume["current_version"])},
                                    {"attached", writer_text(volume)},
                                    {"unique", size(volume["unique_bytes"])},
                                    {"shared", size(volume["shared_bytes"])}});
  return text + "\n" + versions_text(volume["versions"]);
}

void list_volumes(const Context& context) {
  const auto store = context.open_store();
  json volumes = json::array();
  for (const VolumeInfo& info : store->list_volumes()) {
    json volume = volume_json(info, false);
    // Whoever has it open knows better than what is on disk.
    if (info.is_attached) {
      const json request = {{"op", "volume-show"}, {"volume", info.name}};
      if (std::optional<json> answer = ControlClient(store->backend()).ask_owner(request)) {
        answer->erase("versions");
        volume = std::move(*answer);
      }
    }
    volumes.push_back(std::move(volume));
  }
  context.print(volumes, [&](const json& value) { return volumes_text(value, context.list); });
}

std::string removed_text(const json& volumes) {
  Table table({{"NAME", Align::kLeft},
               {"SIZE", Align::kRight},
               {"UNIQUE", Align::kRight},
               {"REMOVED", Align::kLeft},
               {"UNTIL", Align::kLeft},
               {"UUID", Align::kLeft}});
  for (const json& volume : volumes)
    table.add_row({plain(volume["name"]), size(volume["size"]), size(volume["unique_bytes"]),
                   plain(volume["removed"]), plain(volume["until"]), plain(volume["uuid"])});
  return table.text();
}

void list_removed(const Context& context) {
  if (!context.list.is_whole())
    fail(EINVAL, "volume list", "--removed has columns of its own: leave out --columns and --sort");
  const auto store = context.open_store();
  json volumes = json::array();
  for (const RemovedVolume& removed : store->list_removed())
    volumes.push_back(removed_json(removed));
  context.print(volumes, removed_text);
}

struct ResizeArguments {
  std::string volume, size, qmp;
};

// Long enough for qemu to connect once more, short enough for nobody to find it by chance.
constexpr uint64_t kJoinSeconds = 30;

// What the VM sees follows the volume; also when that had come to this size before.
void resize_under(Store& store, const ResizeArguments& arguments, uint64_t wanted) {
  Qmp qmp(arguments.qmp);
  QemuDisk disk(qmp, arguments.volume);
  json volume = find_volume(store, arguments.volume);
  if (volume["size"] != wanted || disk.size_bytes() == wanted)
    volume =
        perform(store, {{"op", "volume-resize"}, {"volume", arguments.volume}, {"size", wanted}});
  const auto let_join = [&](uint64_t seconds) {
    perform(store, {{"op", "volume-let-join"}, {"volume", arguments.volume}, {"seconds", seconds}});
  };
  let_join(kJoinSeconds);
  try {
    disk.grow(wanted);
  } catch (const Error& error) {
    try {
      let_join(0);
    } catch (const Error&) {
      // It ends by itself.
    }
    fail(error.code(), "volume " + arguments.volume,
         "has {} now, and its VM does not see it, which goes on with what it has: {}; the same "
         "command tries again, and a restart of the VM does without",
         format_size(wanted), error.what());
  }
}

void resize_volume(const Context& context, const ResizeArguments& arguments) {
  const auto store = context.open_store();
  const std::string &name = arguments.volume, &text = arguments.size;
  const bool is_relative = text[0] == '+';
  uint64_t wanted = parse_size("SIZE", is_relative ? text.substr(1) : text);
  if (is_relative) wanted += find_volume(*store, name)["size"].get<uint64_t>();
  const auto as_text = [](const json& value) {
    return fmt::format("{}: {}\n", plain(value["name"]), size(value["size"]));
  };
  if (!arguments.qmp.empty()) {
    resize_under(*store, arguments, wanted);
    json volume = find_volume(*store, name);
    volume.erase("versions");
    return context.print(volume, as_text);
  }
  const json request = {{"op", "volume-resize"}, {"volume", name}, {"size", wanted}};
  context.print(perform(*store, request), as_text);
}

struct HandOverArguments {
  std::string volume;
  std::string to;
  std::string duration = "60s";
  bool is_cancel = false;
};

// "90", "90s", "5m" or "2h" as seconds; 0 when it is none of these, or more than a day.
uint64_t seconds_of(const std::string& text) {
  uint64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  const std::string_view unit(stop, end);
  const uint64_t seconds = unit.empty() || unit == "s" ? 1
                           : unit == "m"               ? 60
                           : unit == "h"               ? 3600
                                                       : 0;
  if (error != std::errc() || seconds == 0 || number > control::kHandOverSecondsMax / seconds)
    return 0;
  return number * seconds;
}

void hand_over(const Context& context, const HandOverArguments& arguments) {
  const auto store = context.open_store();
  json request = {{"op", "volume-handover-cancel"}, {"volume", arguments.volume}};
  if (!arguments.is_cancel)
    request = {{"op", "volume-handover"},
               {"volume", arguments.volume},
               {"to", arguments.to},
               {"seconds", seconds_of(arguments.duration)}};
  context.print(perform_once(*store, request), [](const json& lock) {
    const json& hand_over = lock["handover"];
    if (hand_over.is_null()) return fmt::format("{}: not handed over\n", plain(lock["volume"]));
    return fmt::format("{}: handed over to writer {}, if it comes before {}\n",
                       plain(lock["volume"]), plain(hand_over["to"]), plain(hand_over["until"]));
  });
}

}  // namespace

void add_volume_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "volume", "Disks of VMs");
  add_volume_making_commands(group, context);

  auto is_removed = std::make_shared<bool>(false);
  const Command list = add_command(
      group, context, "list", "List the volumes",
      [&context, is_removed] { *is_removed ? list_removed(context) : list_volumes(context); });
  list.add_flag("--removed", *is_removed, "Those that were removed and can be restored");
  add_list_options(list, context, kVolumeColumns);

  auto shown = std::make_shared<std::string>();
  const Command show =
      add_command(group, context, "show", "Show a volume and its versions", [&context, shown] {
        const auto store = context.open_store();
        context.print(find_volume(*store, *shown), volume_text);
      });
  show.add_option("NAME", *shown, "The volume").required();
  add_json_option(show, context);

  auto resized = std::make_shared<ResizeArguments>();
  const Command resize = add_command(group, context, "resize", "Make a volume larger",
                                     [&context, resized] { resize_volume(context, *resized); });
  resize.add_option("NAME", resized->volume, "The volume").required();
  add_new_size(resize, resized->size, "Its new size, or +SIZE for so much more");
  resize
      .add_option("--qmp", resized->qmp,
                  "The socket of the running VM's -qmp: it sees the new size at once")
      .type_name("SOCKET")
      .check(not_empty());
  add_json_option(resize, context);

  auto handed = std::make_shared<HandOverArguments>();
  const auto action = [&context, handed] { hand_over(context, *handed); };
  const Command handover = add_command(group, context, "handover",
                                       "Let another VM take a volume over: live migration", action);
  handover.on_parsed([&context, handed, action] {
    if (handed->to.empty() && !handed->is_cancel) wrong_usage("--to TOKEN or --cancel is needed");
    context.action = action;
  });
  handover.add_option("NAME", handed->volume, "The volume").required();
  const Option to =
      handover.add_option("--to", handed->to, "The writer token of the migration's destination")
          .type_name("TOKEN");
  handover.add_option("--for", handed->duration, "How long it may take to come: 90s, 5m; a minute")
      .type_name("T")
      .check([](const std::string& text) {
        return seconds_of(text) > 0 ? std::string()
                                    : fmt::format("'{}' is not a time like 90s, 5m or 2h", text);
      });
  handover.add_flag("--cancel", handed->is_cancel, "Let nobody take it over").excludes(to);
  add_json_option(handover, context);

  add_volume_transfer_commands(group, context);
}

}  // namespace tplstore::tool
