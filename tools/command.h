// What every command of the tool shares: the store it works on, how results are printed, and how a
// volume is reached that a server has open.
//
// A command is declared with command_line.h and sets Context::action; main() runs the action after
// the whole command line has been understood. Actions throw Error, which main() prints.
//
// Thread safety: the tool has one thread of its own.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "command_line.h"
#include "control/client.h"
#include "store/store.h"
#include "table.h"

namespace tplstore::tool {

struct Context {
  std::string store_directory;  // where the store is: from --store, or the environment
  std::string tier_state;  // where the tier's table is, likewise; empty: where it is by default
  bool needs_store = true;
  bool is_json = false;
  bool is_verbose = false;
  ListOptions list;                         // of the command that lists
  std::vector<std::string> nbdkit_options;  // what stands after "--"; for serve only
  std::function<void()> action;

  // With the tier, if that is wanted, of which the store does not read without being told.
  std::unique_ptr<Store> open_store(bool with_tier = false) const;
  // The folder of the tier's table for a store of this uuid.
  std::filesystem::path tier_folder(const Uuid& store) const;
  // Prints `value` with --json, else what `for_people` returns, which ends with a newline or is
  // empty. Control characters in it never reach the terminal.
  void print(const nlohmann::json& value,
             const std::function<std::string(const nlohmann::json&)>& for_people) const;
};

// The options that are accepted before, within and after a command.
void add_common_options(const Command& command, Context& context);
// Declares a command below `parent`, with the common options.
Command add_command(const Command& parent, Context& context, const std::string& name,
                    const std::string& description, std::function<void()> action);
// A command that has commands of its own, and needs one.
Command add_group(const Command& parent, Context& context, const std::string& name,
                  const std::string& description);
Option add_json_option(const Command& command, Context& context);
// --json, and -o, --sort and --no-headings, of which a table of these columns takes what it is
// told.
void add_list_options(const Command& command, Context& context, const Columns& columns);
// --size and the like, and the positional SIZE of a resize, which may be +SIZE too. They take 10G,
// 512M, …; anything else is wrong usage.
void add_size_option(const Command& command, std::string& into, const std::string& description,
                     const std::string& name = "--size");
// --keep of what is removed, as "volume restore" brings it back.
void add_keep_option(const Command& command, std::string& into, std::string_view restore);
void add_new_size(const Command& command, std::string& into, const std::string& description);

// For options that take a time like 90s or 7d.
Check is_duration();

// Has an operation of control/operations.h performed: by the server that has the volume open that
// the request names, else here, where `progress` is told of what takes long.
nlohmann::json perform_once(
    Store& store, const nlohmann::json& request,
    const std::function<void(uint64_t done_bytes)>& progress = [](uint64_t) {});
// The same for two seconds as long as it fails with EBUSY: while a server opens or closes the
// volume neither can do it.
nlohmann::json perform(
    Store& store, const nlohmann::json& request,
    const std::function<void(uint64_t done_bytes)>& progress = [](uint64_t) {});
// Does `work`, again and again for two seconds as long as it fails with EBUSY.
void retry_while_busy(const std::function<void()>& work);

// The volume as the server that has it open sees it, else as the store has it.
nlohmann::json find_volume(Store& store, const std::string& name);
// The version of a volume that find_volume() found, by number or name; ENOENT. Removed ones are not
// found.
const nlohmann::json& find_version(const nlohmann::json& volume, const std::string& version);
// Has the server that has the volume open give back what a fork's end has freed, if there is one.
// Whatever goes wrong, the server does it by itself some time later.
void ask_to_reclaim(Store& store, const std::string& volume);

// Copies a template's data to its places in this host's tier, by a server where one uses that; the
// fields of the manual's `warm`. Throws where this host has no tier for the store.
nlohmann::json warm(const Context& context, const std::string& name);
// Throws when something is not in all of its places.
void check_warmed(const std::string& name, const nlohmann::json& result);

// Does `work` for each of these, whatever becomes of the others; what fails is reported, and in the
// end NotAllDone is thrown. Of one alone the error is thrown as it is.
void for_each_of(const std::vector<std::string>& names,
                 const std::function<void(const std::string& name)>& work);
// What is to be said has been said: the exit status is all that is left.
struct NotAllDone {};

// One function per file of commands.
void add_store_commands(const Command& app, Context& context);
void add_check_command(const Command& app, Context& context);
void add_serve_command(const Command& app, Context& context);
void add_server_commands(const Command& app, Context& context);
void add_template_commands(const Command& app, Context& context);
void add_volume_commands(const Command& app, Context& context);
void add_version_commands(const Command& app, Context& context);
void add_lock_commands(const Command& app, Context& context);
void add_tier_commands(const Command& app, Context& context);
void add_boot_commands(const Command& app, Context& context);

// And those that have a file within a group.
void add_volume_making_commands(const Command& group, Context& context);    // create, flatten, rm
void add_volume_transfer_commands(const Command& group, Context& context);  // export, import
void add_diff_command(const Command& group, Context& context);
void add_prune_command(const Command& group, Context& context);
void add_warm_command(const Command& group, Context& context);

}  // namespace tplstore::tool
