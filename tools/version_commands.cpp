// version create, list, rollback.
#include "command.h"
#include "json_output.h"
#include "table.h"
#include "version_text.h"

namespace tplstore::tool {

using nlohmann::json;

std::string versions_text(const json& versions) {
  Table table({{"VERSION", Align::kRight},
               {"NAME", Align::kLeft},
               {"PARENT", Align::kRight},
               {"CREATED", Align::kLeft},
               {"SIZE", Align::kRight},
               {"OWN", Align::kRight},
               {"", Align::kLeft}});
  for (const json& version : versions) {
    const char* note = version["current"].get<bool>()  ? "current"
                       : version["hidden"].get<bool>() ? "hidden"
                                                       : "";
    table.add_row({plain(version["number"]), plain(version["name"]), plain(version["parent"]),
                   plain(version["created"]), size(version["size"]), size(version["own_bytes"]),
                   note});
  }
  return table.text();
}

namespace {

struct Arguments {
  std::string volume;
  std::string version;  // or the new one's name
};

void create_version(const Context& context, const Arguments& arguments) {
  const auto store = context.open_store();
  json request = {{"op", "version-create"}, {"volume", arguments.volume}};
  if (!arguments.version.empty()) request["name"] = arguments.version;
  const json version = change_volume(context, request, [&] {
    return version_json(store->create_version(arguments.volume, {arguments.version, "", {}}));
  });
  context.print(version, [&](const json& value) {
    return fmt::format("{}@{}{}\n", arguments.volume, plain(value["number"]),
                       value["name"].is_null() ? "" : " (" + plain(value["name"]) + ")");
  });
}

void roll_back(const Context& context, const Arguments& arguments) {
  const auto store = context.open_store();
  const json request = {
      {"op", "version-rollback"}, {"volume", arguments.volume}, {"version", arguments.version}};
  const json kept = change_volume(context, request, [&] {
    return version_json(store->rollback(arguments.volume, arguments.version));
  });
  const json volume = find_volume(context, *store, arguments.volume);
  json current;
  for (const json& version : volume["versions"])
    if (version["current"].get<bool>()) current = version;
  context.print(current, [&](const json& value) {
    return fmt::format(
        "{}: current is version {}, which starts from version {}; version {} keeps "
        "what was current\n",
        arguments.volume, plain(value["number"]), plain(value["parent"]), plain(kept["number"]));
  });
}

}  // namespace

void add_version_commands(CLI::App& app, Context& context) {
  CLI::App* group = add_group(app, context, "version", "Points in a volume's history");

  auto created = std::make_shared<Arguments>();
  CLI::App* create = add_command(*group, context, "create", "Freeze what a volume contains now",
                                 [&context, created] { create_version(context, *created); });
  create->add_option("VOLUME", created->volume, "The volume")->required();
  create->add_option("--name", created->version, "What to call the version, beside its number")
      ->type_name("NAME");
  add_json_option(create, context);

  auto listed = std::make_shared<std::string>();
  CLI::App* list =
      add_command(*group, context, "list", "List a volume's versions", [&context, listed] {
        const auto store = context.open_store();
        context.print(find_volume(context, *store, *listed)["versions"], versions_text);
      });
  list->add_option("VOLUME", *listed, "The volume")->required();
  add_json_option(list, context);

  auto rolled_back = std::make_shared<Arguments>();
  CLI::App* rollback =
      add_command(*group, context, "rollback",
                  "Put a volume back to a version; what it contains now is kept as a version too",
                  [&context, rolled_back] { roll_back(context, *rolled_back); });
  rollback->add_option("VOLUME", rolled_back->volume, "The volume")->required();
  rollback->add_option("VERSION", rolled_back->version, "The version's number or name")->required();
  add_json_option(rollback, context);
}

}  // namespace tplstore::tool
