// volume create, flatten, rm, restore, rename: how volumes begin and end, forks among them.
#include <algorithm>
#include <cerrno>

#include "backend/layout.h"
#include "base/names.h"
#include "base/text.h"
#include "base/units.h"
#include "command.h"
#include "control/json_output.h"
#include "progress.h"
#include "table.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

// --- create

struct NewVolume {
  std::string name, size, template_name, from;
};

std::string origin_text(const json& volume) {
  if (!volume["parent"].is_null()) return "fork of " + plain(volume["parent"]);
  return volume["template"].is_null() ? "empty" : "from " + plain(volume["template"]);
}

json create_fork(Store& store, const NewVolume& wanted, uint64_t size_bytes) {
  const ExportName from = parse_export_name(wanted.from);
  if (from.kind == ExportName::Kind::kTemplate)
    fail(EINVAL, wanted.from, "that is a template: use --template {}", from.name);
  if (from.kind == ExportName::Kind::kChanges)
    fail(EINVAL, wanted.from, "a fork starts from one version, as in --from {}@{}", from.name,
         from.version);
  const json parent = find_volume(store, from.name);
  if (from.kind == ExportName::Kind::kCurrent || from.kind == ExportName::Kind::kCurrentReader ||
      find_version(parent, from.version)["current"].get<bool>())
    fail(EINVAL, "volume " + from.name,
         "a fork starts from a frozen version, as in --from {0}@VERSION: make one with "
         "`tplstore version create {0}`",
         from.name);
  const json request = {{"op", "volume-fork"},
                        {"volume", from.name},
                        {"version", from.version},
                        {"name", wanted.name},
                        {"size", size_bytes}};
  return perform(store, request);
}

void create_volume(const Context& context, const NewVolume& wanted) {
  const auto store = context.open_store();
  const uint64_t size_bytes = wanted.size.empty() ? 0 : parse_size("--size", wanted.size);
  if (!wanted.size.empty() && size_bytes == 0)
    fail(EINVAL, "volume " + wanted.name, "a disk cannot have the size 0");
  const json volume =
      wanted.from.empty()
          ? volume_json(store->create_volume(wanted.name, size_bytes, wanted.template_name), false)
          : create_fork(*store, wanted, size_bytes);
  context.print(volume, [](const json& value) {
    return fmt::format("{}: {}, {}\n", plain(value["name"]), size(value["size"]),
                       origin_text(value));
  });
}

void add_create(const Command& group, Context& context) {
  auto wanted = std::make_shared<NewVolume>();
  const auto action = [&context, wanted] { create_volume(context, *wanted); };
  const Command command = add_command(group, context, "create", "Make a volume", action);
  command.on_parsed([&context, wanted, action] {
    if (wanted->size.empty() && wanted->template_name.empty() && wanted->from.empty())
      wrong_usage("a new volume needs --size, --template or --from");
    context.action = action;
  });
  command.add_option("NAME", wanted->name, "What to call it").required();
  add_size_option(command, wanted->size,
                  "Its size, like 10G; that of the template or the version unless given");
  const Option base =
      command.add_option("--template", wanted->template_name, "The template it starts from")
          .type_name("NAME");
  command.add_option("--from", wanted->from, "The version of another volume that it starts from")
      .type_name("VOLUME@VERSION")
      .excludes(base);
  add_json_option(command, context);
}

// --- flatten

// The volume that another one was forked from; nothing when that has lost its name.
std::optional<std::string> parent_name(const VolumeInfo& volume) {
  std::string name = volume.parent.substr(0, volume.parent.find('@'));
  Uuid uuid;
  if (name.empty() || parse_uuid(name, uuid)) return std::nullopt;
  return name;
}

void flatten_volume(const Context& context, const std::string& name) {
  const auto store = context.open_store();
  const VolumeInfo before = store->show_volume(name);
  Progress progress("flattening " + name);
  json volume;
  {
    const InterruptGuard guard;
    const auto show_progress = [&](uint64_t done) {
      if (interrupted())
        fail(EINTR, "volume " + name,
             "interrupted: nothing is lost, `tplstore volume flatten {}` begins again", name);
      // Old versions may share more than the current one, of which the sum is known.
      progress.update(done, std::max(done, before.shared_bytes));
    };
    volume = perform(*store, {{"op", "volume-flatten"}, {"volume", name}}, show_progress);
  }
  progress.clear();
  if (const auto parent = parent_name(before)) ask_to_reclaim(*store, *parent);
  context.print(volume, [](const json& value) {
    return fmt::format("{}: has its own copy of all its data now, {}\n", plain(value["name"]),
                       size(value["unique_bytes"]));
  });
}

// --- rm

bool is_in(const std::vector<std::string>& list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

// The forks that something of a volume is kept for after its removal. Those that have lost their
// names too go by their uuids.
std::vector<std::string> forks_left(Store& store, const VolumeInfo& removed) {
  const std::string folder(paths::kVolumes);
  const std::vector<std::string> volumes = store.backend().list(folder);
  std::vector<std::string> forks;
  if (!is_in(volumes, removed.uuid.text())) return forks;
  for (const VersionInfo& version : removed.versions) {
    for (const std::string& fork : version.forks) {
      Uuid uuid;
      if (!parse_uuid(fork, uuid) || is_in(volumes, fork)) forks.push_back(fork);
    }
  }
  return forks;
}

struct RemovalArguments {
  std::vector<std::string> names;
  std::string keep;
  bool is_forced = false;
};

void remove_volume(Store& store, const std::string& name, const RemovalArguments& arguments,
                   int64_t keep_s) {
  const auto if_damaged = arguments.is_forced ? Store::IfDamaged::kRemove : Store::IfDamaged::kKeep;
  // What cannot be shown can perhaps be removed.
  VolumeInfo before;
  try {
    before = store.show_volume(name);
  } catch (const Error&) {
  }
  std::optional<int64_t> until;
  try {
    retry_while_busy([&] { until = store.remove_volume(name, if_damaged, keep_s); });
  } catch (const Error& error) {
    if (error.code() != ENOSPC || keep_s == 0) throw;
    fail(ENOSPC, "volume " + name,
         "there is no room to note that it is kept; --keep 0 removes it for good, and makes room "
         "({})",
         error.what());
  }
  if (until) {
    fmt::print("{0}: removed; until {1} 'tplstore volume restore {0}' brings it back\n",
               printable(name), format_time(*until));
    return;
  }
  if (const auto parent = parent_name(before)) ask_to_reclaim(store, *parent);
  const std::vector<std::string> forks = forks_left(store, before);
  if (!forks.empty())
    fmt::print("{}: removed; what {} {} of it stays until {} gone or flattened\n", printable(name),
               printable(fmt::format("{}", fmt::join(forks, ", "))),
               forks.size() == 1 ? "needs" : "need", forks.size() == 1 ? "that is" : "they are");
  else if (arguments.names.size() > 1)
    fmt::print("{}: removed\n", printable(name));
}

void remove_volumes(const Context& context, const RemovalArguments& arguments) {
  const auto store = context.open_store();
  const int64_t keep_s =
      arguments.keep.empty() ? store->removal_keep_s() : parse_duration_s("--keep", arguments.keep);
  for_each_of(arguments.names,
              [&](const std::string& name) { remove_volume(*store, name, arguments, keep_s); });
}

// --- restore, rename

struct NewName {
  std::string name, new_name;
};

void restore_volume(const Context& context, const NewName& arguments) {
  const auto store = context.open_store();
  VolumeInfo restored;
  retry_while_busy([&] { restored = store->restore_volume(arguments.name, arguments.new_name); });
  context.print(volume_json(restored, false), [](const json& value) {
    return fmt::format("{}: {}, {}\n", plain(value["name"]), size(value["size"]),
                       origin_text(value));
  });
}

void rename_volume(const Context& context, const NewName& arguments) {
  const auto store = context.open_store();
  retry_while_busy([&] { store->rename_volume(arguments.name, arguments.new_name); });
}

}  // namespace

void add_volume_making_commands(const Command& group, Context& context) {
  add_create(group, context);

  auto flattened = std::make_shared<std::string>();
  const Command flatten =
      add_command(group, context, "flatten",
                  "Give a fork its own copy of what it shares with the volume it started from",
                  [&context, flattened] { flatten_volume(context, *flattened); });
  flatten.add_option("NAME", *flattened, "The fork").required();
  add_json_option(flatten, context);

  auto removed = std::make_shared<RemovalArguments>();
  const Command remove = add_command(group, context, "rm", "Remove volumes with all their versions",
                                     [&context, removed] { remove_volumes(context, *removed); });
  remove.add_option("NAME", removed->names, "The volumes").required().type_name("");
  add_keep_option(remove, removed->keep, "volume restore");
  remove.add_flag("--force", removed->is_forced, "Also when a header cannot be read");

  auto restored = std::make_shared<NewName>();
  const Command restore =
      add_command(group, context, "restore", "Bring back a volume that was removed and kept",
                  [&context, restored] { restore_volume(context, *restored); });
  restore.add_option("NAME", restored->name, "The name that it had, or its uuid").required();
  restore.add_option("--as", restored->new_name, "What to call it now, if not as before")
      .type_name("NEW");
  add_json_option(restore, context);

  auto renamed = std::make_shared<NewName>();
  const Command rename = add_command(group, context, "rename", "Give a volume another name",
                                     [&context, renamed] { rename_volume(context, *renamed); });
  rename.add_option("OLD", renamed->name, "The volume").required();
  rename.add_option("NEW", renamed->new_name, "What to call it").required();
}

}  // namespace tplstore::tool
