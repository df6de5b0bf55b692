// version create, list, rollback, rm.
#include <algorithm>
#include <cerrno>
#include <optional>

#include "base/text.h"
#include "base/units.h"
#include "command.h"
#include "control/operations.h"
#include "table.h"
#include "version_text.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

struct NewArguments {
  std::vector<std::string> volumes;
  std::string name, note;
};

// By the server that has any of them open, which opens the others.
json create_together(Store& store, json request, const std::vector<std::string>& volumes) {
  json result;
  retry_while_busy([&] {
    for (const std::string& volume : volumes) {
      request["volume"] = volume;
      if (std::optional<json> answer = ControlClient(store.backend()).ask_owner(request)) {
        result = std::move(*answer);
        return;
      }
    }
    result = control::perform(store, request);
  });
  return result;
}

void create_version(const Context& context, const NewArguments& arguments) {
  const auto store = context.open_store();
  const bool is_one = arguments.volumes.size() == 1;
  json request = {{"op", is_one ? "version-create" : "version-create-together"},
                  {"volume", arguments.volumes.front()}};
  if (!arguments.name.empty()) request["name"] = arguments.name;
  if (!arguments.note.empty()) request["note"] = arguments.note;
  if (is_one) {
    context.print(perform(*store, request), [&](const json& value) {
      return version_title(arguments.volumes.front(), value) + "\n";
    });
    return;
  }
  request["volumes"] = arguments.volumes;
  context.print(create_together(*store, request, arguments.volumes), [](const json& made) {
    std::string text;
    for (const json& version : made)
      text += version_title(plain(version["volume"]), version) + "\n";
    return text;
  });
}

void list_versions(const Context& context, const std::string& volume) {
  const auto store = context.open_store();
  const json versions = find_volume(*store, volume)["versions"];
  context.print(context.is_json ? visible_versions(versions) : versions,
                [&](const json& value) { return history_text(value, context.list); });
}

void roll_back(const Context& context, const std::string& volume, const std::string& named) {
  const std::string version = version_of_volume(volume, named);
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

json remove_all_or_none(Store& store, const std::string& volume,
                        const std::vector<std::string>& versions, int64_t keep_s) {
  json request = {{"op", "version-rm"}, {"volume", volume}, {"versions", versions}};
  if (keep_s > 0) {
    request["op"] = "version-put-aside";
    request["seconds"] = static_cast<uint64_t>(keep_s);
  }
  json removed;
  std::optional<Error> refused;  // for good: there is nothing to be tried for a while
  retry_while_busy([&] {
    try {
      removed = perform_once(store, request);
    } catch (const Error& error) {
      if (error.code() == ENOSPC && keep_s > 0)
        fail(ENOSPC, "volume " + volume,
             "there is no room to note that its version is kept; --keep 0 removes it for good, and "
             "makes room ({})",
             error.what());
      if (error.code() != EBUSY || !is_any_current(find_volume(store, volume), versions)) throw;
      refused = error;
    }
  });
  if (refused) throw Error(*refused);
  return removed;
}

std::string kept_versions_text(const json& versions) {
  Table table({{"VERSION", Align::kRight},
               {"NAME", Align::kLeft},
               {"CREATED", Align::kLeft},
               {"SIZE", Align::kRight},
               {"REMOVED", Align::kLeft},
               {"UNTIL", Align::kLeft}});
  for (const json& version : versions)
    table.add_row({plain(version["number"]), plain(version["name"]), plain(version["created"]),
                   size(version["size"]), plain(version["removed"]), plain(version["kept_until"])});
  return table.text();
}

void list_kept_versions(const Context& context, const std::string& volume) {
  if (!context.list.is_whole())
    fail(EINVAL, "version list",
         "--removed has columns of its own: leave out --columns and --sort");
  const auto store = context.open_store();
  const auto kept = store->list_removed_versions(volume);
  json found_volume = find_volume(*store, volume), versions = json::array();
  for (json& version : found_volume["versions"]) {
    const auto found = kept.find(version["number"].get<uint32_t>());
    if (found == kept.end()) continue;
    const bool is_known = !found->second.is_damaged;
    version["removed"] = is_known ? json(format_time(found->second.removed_ns)) : json(nullptr);
    version["kept_until"] = is_known ? json(format_time(found->second.until_ns)) : json(nullptr);
    versions.push_back(std::move(version));
  }
  context.print(versions, kept_versions_text);
}

void restore_version(const Context& context, const std::string& volume, const std::string& named) {
  const std::string version = version_of_volume(volume, named);
  const auto store = context.open_store();
  const json restored =
      perform(*store, {{"op", "version-restore"}, {"volume", volume}, {"version", version}});
  context.print(restored, [&](const json& value) { return version_title(volume, value) + "\n"; });
}

struct Removal {
  std::vector<std::string> words;
  std::string keep;
  std::vector<std::pair<std::string, std::vector<std::string>>> wanted;  // volumes, their versions
};

// "V A B", "V@A V@B", "V@A B", "V@A W@C": what has no @ is of the volume named last.
void understand(Removal& removal) {
  for (const std::string& word : removal.words) {
    const auto [volume, version] = split_version_name(word);
    if (removal.wanted.empty() || (version && removal.wanted.back().first != volume))
      removal.wanted.push_back({volume, {}});
    else if (!version)
      removal.wanted.back().second.push_back(word);
    if (version) removal.wanted.back().second.push_back(*version);
  }
  for (const auto& [volume, versions] : removal.wanted)
    if (versions.empty()) wrong_usage("VERSION is required");
}

// Those of them that are kept are brought back, to be removed for good.
void end_keeping(Store& store, const std::string& volume,
                 const std::vector<std::string>& versions) {
  const auto kept = store.list_removed_versions(volume);
  if (kept.empty()) return;
  const json found = find_volume(store, volume);
  for (const std::string& wanted : versions)
    for (const json& version : found["versions"])
      if (kept.contains(version["number"].get<uint32_t>()) &&
          (wanted == plain(version["number"]) || version["name"] == wanted))
        perform(
            store,
            {{"op", "version-restore"}, {"volume", volume}, {"version", plain(version["number"])}});
}

// All of them in one step; where that cannot be, each by itself.
void remove_versions(const Context& context, const Removal& removal) {
  const auto store = context.open_store();
  const int64_t keep_s =
      removal.keep.empty() ? store->removal_keep_s() : parse_duration_s("--keep", removal.keep);
  json all = json::array();
  std::string text;
  bool has_failed = false;
  for (const auto& wanted : removal.wanted) {
    const auto& volume = wanted.first;  // no structured binding, which clang 14 lets no lambda see
    const auto& versions = wanted.second;
    json removed = json::array();
    std::optional<Error> failure;
    try {
      if (!removal.keep.empty() && keep_s == 0) end_keeping(*store, volume, versions);
      removed = remove_all_or_none(*store, volume, versions, keep_s);
    } catch (const Error& error) {
      failure = error;
    }
    const bool is_only_one = removal.wanted.size() == 1 && versions.size() == 1;
    if (failure && (is_only_one || versions.size() == 1)) {
      if (is_only_one) throw Error(*failure);
      has_failed = true;
      print_error(fmt::format("tplstore: {}\n", printable(failure->what())));
      continue;
    }
    if (failure) {
      try {
        find_volume(*store, volume);
        for_each_of(versions, [&](const std::string& version) {
          for (json& one : remove_all_or_none(*store, volume, {version}, keep_s))
            removed.push_back(std::move(one));
        });
      } catch (const NotAllDone&) {
        has_failed = true;
      } catch (const Error& error) {
        if (removal.wanted.size() == 1) throw;
        has_failed = true;
        print_error(fmt::format("tplstore: {}\n", printable(error.what())));
      }
    }
    if (removed.empty()) continue;
    if (keep_s > 0) {
      const auto kept = store->list_removed_versions(volume);
      for (json& version : removed) {
        const auto found = kept.find(version["number"].get<uint32_t>());
        if (found == kept.end()) continue;
        version["kept_until"] = format_time(found->second.until_ns);
        text +=
            fmt::format("{}: removed; until {} 'tplstore version restore {} {}' brings it back\n",
                        version_title(volume, version), plain(version["kept_until"]), volume,
                        plain(version["number"]));
        all.push_back(std::move(version));
      }
      continue;
    }
    for (json& version : removed_json(removed, find_volume(*store, volume))) {
      text += fmt::format("{}: removed{}\n", version_title(volume, version),
                          version["kept"].get<bool>() ? "; " + kept_for_text(version) : "");
      all.push_back(std::move(version));
    }
  }
  context.print(all, [&](const json&) { return text; });
  if (has_failed) throw NotAllDone();
}

// A command that takes VOLUME VERSION, or VOLUME@VERSION.
void add_for_version(const Command& group, Context& context, const std::string& name,
                     const std::string& description,
                     void (*perform_it)(const Context&, const std::string&, const std::string&)) {
  auto words = std::make_shared<std::pair<std::string, std::string>>();
  const auto action = [&context, words, perform_it] {
    perform_it(context, words->first, words->second);
  };
  const Command command = add_command(group, context, name, description, action);
  command.on_parsed([&context, words, action] {
    auto& [first, wanted] = *words;
    const auto [volume, version] = split_version_name(first);
    if (version && !wanted.empty())
      wrong_usage(fmt::format("{} names a version already, and there is one more", first));
    if (!version && wanted.empty()) wrong_usage("VERSION is required");
    if (version) wanted = *version;
    first = volume;
    context.action = action;
  });
  command.add_option("VOLUME", words->first, "The volume, or VOLUME@VERSION").required();
  command.add_option("VERSION", words->second, "The version's number or name");
  add_json_option(command, context);
}

}  // namespace

void add_version_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "version", "Points in a volume's history");

  auto created = std::make_shared<NewArguments>();
  const Command create = add_command(group, context, "create", "Freeze what a volume contains now",
                                     [&context, created] { create_version(context, *created); });
  create
      .add_option("VOLUME", created->volumes,
                  "The volume; of several, versions of one moment are made: all or none")
      .required()
      .type_name("");
  create.add_option("--name", created->name, "What to call the version, beside its number")
      .type_name("NAME");
  create.add_option("--note", created->note, "A line about it, of up to 512 bytes")
      .type_name("TEXT");
  add_json_option(create, context);

  auto listed = std::make_shared<std::pair<std::string, bool>>();
  const Command list =
      add_command(group, context, "list", "List a volume's versions", [&context, listed] {
        (listed->second ? list_kept_versions : list_versions)(context, listed->first);
      });
  list.add_option("VOLUME", listed->first, "The volume").required();
  list.add_flag("--removed", listed->second, "Those that were removed and can be restored");
  add_list_options(list, context, version_columns());

  add_for_version(group, context, "rollback",
                  "Put a volume back to a version; what it contains now is kept as a version too",
                  roll_back);
  add_for_version(group, context, "restore", "Bring back a version that was removed and kept",
                  restore_version);

  auto removed = std::make_shared<Removal>();
  const auto remove_them = [&context, removed] { remove_versions(context, *removed); };
  const Command remove =
      add_command(group, context, "rm", "Remove versions, in any order", remove_them);
  remove.on_parsed([&context, removed, remove_them] {
    understand(*removed);
    context.action = remove_them;
  });
  remove
      .add_option("VERSION", removed->words,
                  "A volume and the numbers or names of its versions, or VOLUME@VERSION of any")
      .required()
      .type_name("");
  add_keep_option(remove, removed->keep, "version restore");
  add_json_option(remove, context);

  add_diff_command(group, context);
  add_prune_command(group, context);
}

}  // namespace tplstore::tool
