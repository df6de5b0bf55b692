// tier add, list, rm, rebalance, and template warm: the table of this host's tier is changed here,
// where copies are moved and counted it is asked of lib/tier, and of the servers that use it.
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include "backend/open_backend.h"
#include "base/host.h"
#include "base/units.h"
#include "command.h"
#include "control/json_output.h"
#include "progress.h"
#include "table.h"
#include "template/store_identity.h"
#include "tier/tier_identity.h"
#include "tier/tier_table.h"

namespace tplstore::tool {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// How long a server may take to notice that the table has changed.
constexpr auto kNoticeTimeout = std::chrono::seconds(3);
constexpr auto kNoticePause = std::chrono::milliseconds(100);

json entry_json(const TierTable& table, const TierEntry& entry) {
  TierDirectoryStatus status;
  status.entry = entry;
  status.share = entry.kind == TierEntry::Kind::kSsd ? table.placement.share_of(entry.uuid)
                                                     : (entry.is_leaving ? 0 : 1);
  status.ranges = table.placement.ranges_of(entry.uuid);
  // What is in it has not been looked at.
  const json whole = tier_directory_json(status);
  json known;
  for (const char* key : {"path", "uuid", "kind", "weight", "share", "ranges"})
    known[key] = whole.at(key);
  return known;
}

std::string percent(const json& share) {
  return fmt::format("{:.1f} %", share.get<double>() * 100);
}

// The directory as it is called whatever the process' own one is and whatever links lead to it.
std::string real_path(const std::string& directory) {
  struct stat status {};
  if (::stat(directory.c_str(), &status) != 0)
    fail_errno(errno, directory, "looking for the directory");
  if (!S_ISDIR(status.st_mode)) fail(ENOTDIR, directory, "is not a directory");
  std::error_code error;
  const fs::path path = fs::canonical(directory, error);
  if (error) fail_errno(error.value(), directory, "looking for the directory");
  return path.string();
}

// Copies must not come where anything else keeps its files.
void check_place(const std::string& path, Backend& directory, Store& store) {
  check_apart(path, store.backend().describe());
  if (const std::string segments = store.segments_location(); !segments.empty())
    check_apart(path, segments);
  if (load_tier_identity(directory)) return;
  for (const std::string& name : directory.list(""))
    if (name == kIdentityObject || name == "segments" || name == "tplstore-origin")
      fail(EINVAL, path, "has '{}' in it, which is not of a tier; choose an empty directory", name);
}

uint64_t file_system_bytes(const std::string& path) {
  struct statvfs status {};
  if (::statvfs(path.c_str(), &status) != 0)
    fail_errno(errno, path, "asking for the size of its file system");
  const uint64_t bytes = uint64_t{status.f_blocks} * status.f_frsize;
  if (bytes < kTierWeightBytesMin)
    fail(EINVAL, path, "its file system has {} only; a directory of the tier needs 64 MiB",
         format_size(bytes));
  return std::min(bytes, kTierWeightBytesMax);
}

struct AddArguments {
  std::string directory;
  std::string weight;
  std::string kind = "ssd";
};

void add_directory(const Context& context, const AddArguments& arguments) {
  const auto store = context.open_store();
  const Uuid store_uuid = load_identity(store->backend()).uuid;
  const HostIdentity& host = this_host();
  const std::string path = real_path(arguments.directory);
  if (host.host_id.is_nil())
    fail(EINVAL, path, "this host has no id to know its directories by: make /etc/machine-id");
  const auto directory = open_backend(path, {});
  check_place(path, *directory, *store);
  const auto identity = load_tier_identity(*directory);
  if (identity && identity->store != store_uuid)
    fail(EINVAL, path, "is in the tier of another store ({}); choose another directory",
         identity->store.text());
  if (identity && !host.is_same(identity->host, {}))
    fail(
        EINVAL, path,
        "is in the tier of another host ({}); if that is no more, remove '{}' and 'segments' in it",
        identity->host.text(), kTierIdentityObject);

  const uint64_t weight =
      arguments.weight.empty() ? file_system_bytes(path) : parse_size("weight", arguments.weight);
  const auto kind = arguments.kind == "local" ? TierEntry::Kind::kLocal : TierEntry::Kind::kSsd;
  const Uuid uuid = identity ? identity->directory : random_uuid();
  json result;
  retry_while_busy([&] {
    TierTableChange change(context.tier_folder(store_uuid), store_uuid, host);
    const TierEntry* known = change.table.find(uuid);
    if (known != nullptr && !known->is_leaving && !arguments.weight.empty())
      change.table.set_weight(uuid, weight);
    else
      change.table.add({uuid, path, weight, kind});
    // The table names only what says so itself.
    if (!identity && !put_new_tier_identity(*directory, store_uuid, host.host_id, uuid))
      fail(EBUSY, path, "is being added by another tplstore");
    change.save();
    result = entry_json(change.table, *change.table.find(uuid));
  });
  context.print(result, [](const json& entry) {
    return fmt::format("{}: weight {}, {} of the segments\n", plain(entry["path"]),
                       size(entry["weight"]), percent(entry["share"]));
  });
}

// By its path, which may lead nowhere any more, or its uuid.
const TierEntry& find_directory(const TierTable& table, const std::string& directory) {
  std::error_code error;
  const fs::path real = fs::weakly_canonical(directory, error);
  const fs::path typed = fs::path(absolute_location(directory)).lexically_normal();
  for (const TierEntry& entry : table.directories)
    if (entry.path == real || entry.path == typed || entry.path + "/" == typed ||
        entry.uuid.text() == directory)
      return entry;
  fail(ENOENT, directory, "is not in the tier; see 'tplstore tier list'");
}

std::optional<TierTable> load_table(const Context& context, Store& store) {
  const Uuid uuid = load_identity(store.backend()).uuid;
  return TierTable::load(TierTable::file_in(context.tier_folder(uuid)), uuid, this_host());
}

// The same, where there must be one.
TierTable need_table(const Context& context, Store& store) {
  std::optional<TierTable> table = load_table(context, store);
  if (!table)
    fail(ENOENT, "tier", "this host has none for this store; 'tplstore tier add' makes one");
  return std::move(*table);
}

// What the servers know that use this table, of which each has taken over the newest if it can.
std::vector<json> ask_servers(Store& store, const TierTable& table) {
  const auto is_ours = [&](const json& answer) {
    return std::ranges::any_of(answer["directories"], [&](const json& directory) {
      Uuid uuid;
      return parse_uuid(directory["uuid"].get<std::string>(), uuid) && table.find(uuid) != nullptr;
    });
  };
  const auto deadline = std::chrono::steady_clock::now() + kNoticeTimeout;
  while (true) {
    std::vector<json> answers = ControlClient(store.backend()).ask_all({{"op", "tier-list"}});
    std::erase_if(answers, [&](const json& answer) { return !is_ours(answer); });
    const bool is_new = std::ranges::all_of(answers, [&](const json& answer) {
      return answer["generation"].get<uint64_t>() >= table.generation;
    });
    if (is_new || std::chrono::steady_clock::now() >= deadline) return answers;
    std::this_thread::sleep_for(kNoticePause);
  }
}

// What is moved is moved: it may end at any time.
void fail_if_interrupted() {
  if (interrupted())
    fail(EINTR, "tier", "interrupted: nothing is lost, and 'tplstore tier rebalance' goes on");
}

void rebalance(const Context& context, Store& store, bool is_dry_run) {
  Progress progress("rebalancing");
  const InterruptGuard guard;
  Tier& tier = *store.tier();
  Tier::MoveResult moved;
  // Who has the table of before still fills what is to be emptied.
  ask_servers(store, need_table(context, store));
  // One that was killed has its lock for a moment longer.
  retry_while_busy([&] {
    moved = tier.rebalance(is_dry_run, [&](uint64_t done_bytes, uint64_t total_bytes) {
      fail_if_interrupted();
      progress.update(done_bytes, total_bytes);
    });
  });
  const bool is_done = !is_dry_run && moved.problems.empty();
  const uint64_t removed = is_done ? tier.sweep() : 0;
  progress.clear();
  // Servers look anew at what the directories have when the table is another one. Who was killed
  // has not told them.
  if (!is_dry_run)
    retry_while_busy([&] {
      const Uuid uuid = load_identity(store.backend()).uuid;
      TierTableChange(context.tier_folder(uuid), uuid, this_host()).save();
    });
  const json result = {{"dry_run", is_dry_run},
                       {"segments", moved.segments},
                       {"bytes", moved.bytes},
                       {"moved_segments", moved.moved_segments},
                       {"dropped_segments", moved.dropped_segments},
                       {"removed_segments", removed},
                       {"problems", moved.problems}};
  context.print(result, [](const json& value) {
    std::string text = fmt::format("{} copies are out of place, {}\n", plain(value["segments"]),
                                   size(value["bytes"]));
    if (!value["dry_run"].get<bool>())
      text += fmt::format(
          "{} were moved, {} given up for want of room; {} that nothing needs were removed\n",
          plain(value["moved_segments"]), plain(value["dropped_segments"]),
          plain(value["removed_segments"]));
    return text;
  });
  if (moved.problems.empty()) return;
  fail(EIO, "tier", "{} copies are where they were, and are used there: {}",
       moved.segments - moved.moved_segments - moved.dropped_segments, moved.problems.front());
}

void remove_directory(const Context& context, const std::string& directory, bool drains) {
  const auto store = context.open_store(/*with_tier=*/true);
  const Uuid store_uuid = load_identity(store->backend()).uuid;
  json result;
  retry_while_busy([&] {
    TierTableChange change(context.tier_folder(store_uuid), store_uuid, this_host());
    const TierEntry& entry = find_directory(change.table, directory);
    change.table.remove(entry.uuid);
    change.save();
    result = entry_json(change.table, entry);
  });
  if (drains) return rebalance(context, *store, false);
  context.print(result, [](const json& entry) {
    return fmt::format("{}: leaving; 'tplstore tier rebalance' moves its copies\n",
                       plain(entry["path"]));
  });
}

const Columns kDirectoryColumns = {{"PATH", Align::kLeft},   {"KIND", Align::kLeft},
                                   {"STATE", Align::kLeft},  {"WEIGHT", Align::kRight},
                                   {"SHARE", Align::kRight}, {"SEGMENTS", Align::kRight},
                                   {"BYTES", Align::kRight}, {"ELSEWHERE", Align::kRight},
                                   {"READS", Align::kRight}, {"ERRORS", Align::kRight}};

std::string directories_text(const json& directories, const ListOptions& options) {
  Table table(kDirectoryColumns);
  std::string problems;
  for (const json& entry : directories) {
    table.add_row({plain_cell(entry["path"]), plain_cell(entry["kind"]), plain_cell(entry["state"]),
                   size_cell(entry["weight"]), Cell(percent(entry["share"]), entry["share"]),
                   plain_cell(entry["segments"]), size_cell(entry["bytes"]),
                   size_cell(entry["bytes_out_of_place"]), plain_cell(entry["reads"]),
                   plain_cell(entry["errors"])});
    if (const std::string problem = plain(entry["last_error"]); !entry["last_error"].is_null())
      problems += problem.starts_with(plain(entry["path"]))
                      ? problem + "\n"
                      : fmt::format("{}: {}\n", plain(entry["path"]), problem);
  }
  return table.text(options) + problems;
}

// The directories as one server sees them, with what all have counted.
json merged_directories(const std::vector<json>& answers) {
  json merged = answers.front()["directories"];
  for (size_t i = 1; i < answers.size(); ++i)
    for (const json& other : answers[i]["directories"])
      for (json& directory : merged)
        if (directory["uuid"] == other["uuid"])
          for (const char* key :
               {"reads", "read_bytes", "fills", "fill_bytes", "errors", "damaged"})
            directory[key] = directory[key].get<uint64_t>() + other[key].get<uint64_t>();
  return merged;
}

void list_directories(const Context& context, bool checks) {
  const auto store = context.open_store(/*with_tier=*/true);
  const std::optional<TierTable> table = load_table(context, *store);
  json directories = json::array();
  if (table && checks) {
    Progress progress("checking the copies");
    const InterruptGuard guard;
    store->tier()->check([&](uint64_t done_bytes, uint64_t total_bytes) {
      fail_if_interrupted();
      progress.update(done_bytes, total_bytes);
    });
    directories = tier_json(store->tier()->status())["directories"];
  } else if (table) {
    // A server has counted, and hangs in no directory that does not answer.
    const std::vector<json> answers = ask_servers(*store, *table);
    directories = answers.empty() ? tier_json(store->tier()->look())["directories"]
                                  : merged_directories(answers);
  }
  for (json& directory : directories) directory["layouts"] = table->layouts;
  context.print(directories,
                [&](const json& value) { return directories_text(value, context.list); });
  uint64_t damaged = 0;
  for (const json& directory : directories) damaged += directory["damaged"].get<uint64_t>();
  if (checks && damaged > 0)
    fail(EIO, "tier", "{} copies were damaged and are removed; they come back when they are read",
         damaged);
}

}  // namespace

json warm(const Context& context, const std::string& name) {
  const auto store = context.open_store(/*with_tier=*/true);
  const TierTable table = need_table(context, *store);
  json result;
  if (!ask_servers(*store, table).empty()) {
    // Those that use another table have no place for it.
    for (const json& answer :
         ControlClient(store->backend())
             .ask_all({{"op", "template-warm"}, {"template", name}}, Patience::kEndless))
      if (result.is_null() || answer["missing"].size() < result["missing"].size()) result = answer;
  }
  if (!result.is_null()) return result;
  Progress progress("warming " + name);
  const InterruptGuard guard;
  return warm_json(store->warm_template(name, [&](uint64_t done_bytes, uint64_t total_bytes) {
    if (interrupted()) fail(EINTR, name, "interrupted: what was copied stays");
    progress.update(done_bytes, total_bytes);
  }));
}

void check_warmed(const std::string& name, const json& result) {
  if (const json& missing = result["missing"]; !missing.empty())
    fail(EIO, name, "{} of its segments are not in all of their places: {}", missing.size(),
         plain(missing[0]["why"]));
}

void add_tier_commands(const Command& app, Context& context) {
  const Command group =
      add_group(app, context, "tier", "Copies of template data on this host's SSDs");

  auto added = std::make_shared<AddArguments>();
  const Command add = add_command(group, context, "add", "Take a directory into the tier",
                                  [&context, added] { add_directory(context, *added); });
  add.add_option("DIR", added->directory, "A directory that is on an SSD of its own")
      .required()
      .check(not_empty());
  add_size_option(add, added->weight,
                  "Its share, and how much it may hold [its file system's size]", "--weight");
  add.add_option("--kind", added->kind, "ssd: has a share; local: has everything")
      .type_name("KIND")
      .check(one_of({"ssd", "local"}));
  add_json_option(add, context);

  auto checks = std::make_shared<bool>(false);
  const Command list = add_command(group, context, "list", "List the directories of the tier",
                                   [&context, checks] { list_directories(context, *checks); });
  list.add_flag("--check", *checks, "Read all copies, and remove those that are damaged");
  add_list_options(list, context, kDirectoryColumns);

  auto removed = std::make_shared<std::string>();
  auto drains = std::make_shared<bool>(false);
  const Command remove =
      add_command(group, context, "rm", "Take a directory out of the tier",
                  [&context, removed, drains] { remove_directory(context, *removed, *drains); });
  remove.add_option("DIR", *removed, "Its path, or its uuid").required().check(not_empty());
  remove.add_flag("--drain", *drains, "Move its copies to the others, as rebalance does");
  add_json_option(remove, context);

  auto is_dry_run = std::make_shared<bool>(false);
  const Command move = add_command(group, context, "rebalance", "Move copies to where they belong",
                                   [&context, is_dry_run] {
                                     const auto store = context.open_store(/*with_tier=*/true);
                                     rebalance(context, *store, *is_dry_run);
                                   });
  move.add_flag("--dry-run", *is_dry_run, "Only tell how much is out of place");
  add_json_option(move, context);
}

void add_warm_command(const Command& group, Context& context) {
  auto name = std::make_shared<std::string>();
  const Command command = add_command(
      group, context, "warm", "Copy a template's data to this host's tier", [&context, name] {
        const json result = warm(context, *name);
        context.print(result, [&](const json& value) {
          return fmt::format("{}: {} segments copied, {}\n", *name, plain(value["filled_segments"]),
                             size(value["filled_bytes"]));
        });
        check_warmed(*name, result);
      });
  command.add_option("NAME", *name, "The template").required();
  add_json_option(command, context);
}

}  // namespace tplstore::tool
