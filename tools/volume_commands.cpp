// volume list, show, resize. The other commands of the group have files of their own.
#include <cerrno>

#include "base/units.h"
#include "command.h"
#include "control/json_output.h"
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

std::string volumes_text(const json& volumes) {
  Table table({{"NAME", Align::kLeft},
               {"SIZE", Align::kRight},
               {"TEMPLATE", Align::kLeft},
               {"VERSION", Align::kRight},
               {"UNIQUE", Align::kRight},
               {"SHARED", Align::kRight},
               {"ATTACHED", Align::kLeft}});
  for (const json& volume : volumes)
    table.add_row({plain(volume["name"]), size(volume["size"]), plain(volume["template"]),
                   plain(volume["current_version"]), size(volume["unique_bytes"]),
                   size(volume["shared_bytes"]), writer_text(volume)});
  return table.text();
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
  context.print(volumes, volumes_text);
}

void resize_volume(const Context& context, const std::string& name, const std::string& text) {
  const auto store = context.open_store();
  const bool is_relative = text[0] == '+';
  uint64_t wanted = parse_size("SIZE", is_relative ? text.substr(1) : text);
  if (is_relative) wanted += find_volume(*store, name)["size"].get<uint64_t>();
  const json request = {{"op", "volume-resize"}, {"volume", name}, {"size", wanted}};
  context.print(perform(*store, request), [](const json& value) {
    return fmt::format("{}: {}\n", plain(value["name"]), size(value["size"]));
  });
}

}  // namespace

void add_volume_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "volume", "Disks of VMs");
  add_volume_making_commands(group, context);

  const Command list = add_command(group, context, "list", "List the volumes",
                                   [&context] { list_volumes(context); });
  add_json_option(list, context);

  auto shown = std::make_shared<std::string>();
  const Command show =
      add_command(group, context, "show", "Show a volume and its versions", [&context, shown] {
        const auto store = context.open_store();
        context.print(find_volume(*store, *shown), volume_text);
      });
  show.add_option("NAME", *shown, "The volume").required();
  add_json_option(show, context);

  auto resized = std::make_shared<std::pair<std::string, std::string>>();
  const Command resize =
      add_command(group, context, "resize", "Make a volume larger",
                  [&context, resized] { resize_volume(context, resized->first, resized->second); });
  resize.add_option("NAME", resized->first, "The volume").required();
  add_new_size(resize, resized->second, "Its new size, or +SIZE for so much more");
  add_json_option(resize, context);

  add_volume_transfer_commands(group, context);
}

}  // namespace tplstore::tool
