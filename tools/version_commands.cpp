// version create, list, rollback, rm.
#include <algorithm>
#include <cerrno>
#include <optional>

#include "command.h"
#include "table.h"
#include "version_text.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

struct NewArguments {
  std::string volume, name, note;
};

void create_version(const Context& context, const NewArguments& arguments) {
  const auto store = context.open_store();
  json request = {{"op", "version-create"}, {"volume", arguments.volume}};
  if (!arguments.name.empty()) request["name"] = arguments.name;
  if (!arguments.note.empty()) request["note"] = arguments.note;
  context.print(perform(*store, request),
                [&](const json& value) { return version_title(arguments.volume, value) + "\n"; });
}

void list_versions(const Context& context, const std::string& volume) {
  const auto store = context.open_store();
  const json versions = find_volume(*store, volume)["versions"];
  context.print(context.is_json ? visible_versions(versions) : versions, history_text);
}

void roll_back(const Context& context, const std::string& volume, const std::string& version) {
  const auto store = context.open_store();
  const json request = {{"op", "version-rollback"}, {"volume", volume}, {"version", version}};
  const json kept = perform(*store, request);
  const json found = find_volume(*store, volume);
  json current;
  for (const json& candidate : found["versions"])
    if (candidate["current"].get<bool>()) current = candidate;
  context.print(current, [&](const json& value) {
    return fmt::format(
        "{}: current is version {}, which starts from version {}; version {} keeps "
        "what was current\n",
        volume, plain(value["number"]), plain(value["parent"]), plain(kept["number"]));
  });
}

// What became of versions that were removed just now. One that nothing needs may still be waiting
// to be taken out, or be gone already: that makes no difference to anybody.
json removed_json(const json& removed, const json& volume) {
  json result = json::array();
  for (const json& version : removed) {
    json now = version;
    now["kept"] = false;
    for (const json& left : volume["versions"]) {
      if (left["number"] != version["number"]) continue;
      now = left;
      now["kept"] = !kept_for_text(left).empty();
    }
    result.push_back(std::move(now));
  }
  return result;
}

bool is_any_current(const json& volume, const std::vector<std::string>& versions) {
  return std::any_of(versions.begin(), versions.end(), [&](const std::string& version) {
    return find_version(volume, version)["current"].get<bool>();
  });
}

void remove_versions(const Context& context, const std::string& name,
                     const std::vector<std::string>& versions) {
  const auto store = context.open_store();
  const json request = {{"op", "version-rm"}, {"volume", name}, {"versions", versions}};
  json removed;
  std::optional<Error> refused;  // for good: there is nothing to be tried for a while
  retry_while_busy([&] {
    try {
      removed = perform_once(*store, request);
    } catch (const Error& error) {
      if (error.code() != EBUSY || !is_any_current(find_volume(*store, name), versions)) throw;
      refused = error;
    }
  });
  if (refused) throw Error(*refused);
  const json after = find_volume(*store, name);
  context.print(removed_json(removed, after), [&](const json& value) {
    std::string text;
    for (const json& version : value)
      text += fmt::format("{}: removed{}\n", version_title(name, version),
                          version["kept"].get<bool>() ? "; " + kept_for_text(version) : "");
    return text;
  });
}

}  // namespace

void add_version_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "version", "Points in a volume's history");

  auto created = std::make_shared<NewArguments>();
  const Command create = add_command(group, context, "create", "Freeze what a volume contains now",
                                     [&context, created] { create_version(context, *created); });
  create.add_option("VOLUME", created->volume, "The volume").required();
  create.add_option("--name", created->name, "What to call the version, beside its number")
      .type_name("NAME");
  create.add_option("--note", created->note, "A line about it, of up to 512 bytes")
      .type_name("TEXT");
  add_json_option(create, context);

  auto listed = std::make_shared<std::string>();
  const Command list = add_command(group, context, "list", "List a volume's versions",
                                   [&context, listed] { list_versions(context, *listed); });
  list.add_option("VOLUME", *listed, "The volume").required();
  add_json_option(list, context);

  auto rolled_back = std::make_shared<std::pair<std::string, std::string>>();
  const Command rollback = add_command(
      group, context, "rollback",
      "Put a volume back to a version; what it contains now is kept as a version too",
      [&context, rolled_back] { roll_back(context, rolled_back->first, rolled_back->second); });
  rollback.add_option("VOLUME", rolled_back->first, "The volume").required();
  rollback.add_option("VERSION", rolled_back->second, "The version's number or name").required();
  add_json_option(rollback, context);

  auto removed = std::make_shared<std::pair<std::string, std::vector<std::string>>>();
  const Command remove = add_command(
      group, context, "rm", "Remove versions, in any order",
      [&context, removed] { remove_versions(context, removed->first, removed->second); });
  remove.add_option("VOLUME", removed->first, "The volume").required();
  remove.add_option("VERSION", removed->second, "Their numbers or names").required().type_name("");
  add_json_option(remove, context);

  add_diff_command(group, context);
  add_prune_command(group, context);
}

}  // namespace tplstore::tool
