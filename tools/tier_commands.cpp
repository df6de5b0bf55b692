// tier add, list, rm: the table of this host's tier. What it means for copies is lib/tier's.
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "backend/open_backend.h"
#include "base/host.h"
#include "base/units.h"
#include "command.h"
#include "table.h"
#include "template/store_identity.h"
#include "tier/tier_identity.h"
#include "tier/tier_table.h"

namespace tplstore::tool {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json entry_json(const TierTable& table, const TierEntry& entry) {
  json ranges = json::array();
  for (const auto& [first, last] : table.placement.ranges_of(entry.uuid))
    ranges.push_back({fmt::format("{:016x}", first), fmt::format("{:016x}", last)});
  return {{"path", entry.path},
          {"uuid", entry.uuid.text()},
          {"kind", entry.kind == TierEntry::Kind::kSsd ? "ssd" : "local"},
          {"state", entry.is_leaving ? "leaving" : "in"},
          {"weight_bytes", entry.weight_bytes},
          {"share", entry.is_leaving                        ? 0
                    : entry.kind == TierEntry::Kind::kLocal ? 1
                                                            : table.placement.share_of(entry.uuid)},
          {"ranges", ranges}};
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
void check_place(const std::string& path, Backend& directory, const std::string& store) {
  for (fs::path above = path;; above = above.parent_path()) {
    std::error_code error;
    if (fs::equivalent(above, store, error))
      fail(EINVAL, path,
           "is the store itself, or inside it; the tier holds copies of what the store has: choose "
           "a directory on another file system");
    if (above == above.root_path()) break;
  }
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
  check_place(path, *directory, store->backend().describe());
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
                       size(entry["weight_bytes"]), percent(entry["share"]));
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

void remove_directory(const Context& context, const std::string& directory) {
  const auto store = context.open_store();
  const Uuid store_uuid = load_identity(store->backend()).uuid;
  json result;
  retry_while_busy([&] {
    TierTableChange change(context.tier_folder(store_uuid), store_uuid, this_host());
    const TierEntry& entry = find_directory(change.table, directory);
    change.table.remove(entry.uuid);
    change.save();
    result = entry_json(change.table, entry);
  });
  context.print(result, [](const json& entry) {
    return fmt::format("{}: leaving; 'tplstore tier rebalance' moves its copies\n",
                       plain(entry["path"]));
  });
}

std::string directories_text(const json& directories) {
  Table table({{"PATH", Align::kLeft},
               {"KIND", Align::kLeft},
               {"STATE", Align::kLeft},
               {"WEIGHT", Align::kRight},
               {"SHARE", Align::kRight},
               {"RANGES", Align::kRight}});
  for (const json& entry : directories)
    table.add_row({plain(entry["path"]), plain(entry["kind"]), plain(entry["state"]),
                   size(entry["weight_bytes"]), percent(entry["share"]),
                   std::to_string(entry["ranges"].size())});
  return table.text();
}

void list_directories(const Context& context) {
  const auto store = context.open_store();
  const Uuid store_uuid = load_identity(store->backend()).uuid;
  const auto table =
      TierTable::load(TierTable::file_in(context.tier_folder(store_uuid)), store_uuid, this_host());
  json directories = json::array();
  if (table)
    for (const TierEntry& entry : table->directories)
      directories.push_back(entry_json(*table, entry));
  context.print(directories, directories_text);
}

}  // namespace

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

  const Command list = add_command(group, context, "list", "List the directories of the tier",
                                   [&context] { list_directories(context); });
  add_json_option(list, context);

  auto removed = std::make_shared<std::string>();
  const Command remove = add_command(group, context, "rm", "Take a directory out of the tier",
                                     [&context, removed] { remove_directory(context, *removed); });
  remove.add_option("DIR", *removed, "Its path, or its uuid").required().check(not_empty());
  add_json_option(remove, context);
}

}  // namespace tplstore::tool
