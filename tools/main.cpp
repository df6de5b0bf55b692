// tplstore: the command line of a store. What each command does is in the file of its group.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/text.h"
#include "base/version.h"
#include "command.h"

namespace {

using tplstore::LogLevel;
using tplstore::printable;
using tplstore::with_level;
using tplstore::tool::Context;

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

int report(const std::string& message) {
  tplstore::print_error(
      with_level(LogLevel::kError, fmt::format("tplstore: {}\n", printable(message))));
  return kFailed;
}

int report_wrong_usage(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* innermost = &app;
  std::string command = app.get_name();
  while (!innermost->get_subcommands().empty()) {
    innermost = innermost->get_subcommands().front();
    command += " " + innermost->get_name();
  }
  std::string message = error.what();
  // CLI11 only says that a command is missing, also when there is one that it does not know.
  const std::vector<std::string> unknown = app.remaining(true);
  if (!innermost->get_subcommands({}).empty() && !unknown.empty())
    message = fmt::format("'{}': there is no such command", unknown.front());
  tplstore::print_error(with_level(
      LogLevel::kError,
      fmt::format("tplstore: {}\nRun '{} --help' for its usage.\n", printable(message), command)));
  return kWrongUsage;
}

// What stands after "--" is for nbdkit, and CLI11 shall not see it.
std::vector<std::string> split_nbdkit_options(std::vector<std::string>& arguments) {
  std::vector<std::string> rest;
  bool is_serve = false;
  for (auto it = arguments.begin(); it != arguments.end(); ++it) {
    is_serve = is_serve || *it == "serve";
    if (*it != "--" || !is_serve) continue;
    rest.assign(it + 1, arguments.end());
    arguments.erase(it, arguments.end());
    break;
  }
  return rest;
}

int run(std::vector<std::string> arguments) {
  Context context;
  CLI::App app("Disks of VMs from golden templates, with versions, over NBD", "tplstore");
  app.set_version_flag("-V,--version", std::string("tplstore ") + tplstore::kProgramVersion);
  app.set_help_flag("-h,--help", "Print this help and exit");
  const tplstore::tool::Command commands(&app);
  tplstore::tool::add_common_options(commands, context);
  app.require_subcommand(1);
  app.footer("The manual page tplstore(1) has it all.");
  tplstore::tool::add_store_commands(commands, context);
  tplstore::tool::add_serve_command(commands, context);
  tplstore::tool::add_server_commands(commands, context);
  tplstore::tool::add_template_commands(commands, context);
  tplstore::tool::add_volume_commands(commands, context);
  tplstore::tool::add_version_commands(commands, context);
  tplstore::tool::add_lock_commands(commands, context);
  tplstore::tool::add_tier_commands(commands, context);
  tplstore::tool::add_boot_commands(commands, context);
  tplstore::tool::add_check_command(commands, context);

  context.nbdkit_options = split_nbdkit_options(arguments);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    if (!context.nbdkit_options.empty() && !app.got_subcommand("serve"))
      throw CLI::ExtrasError({"--"});
    if (context.store_directory.empty())
      if (const char* store = std::getenv("TPLSTORE_STORE")) context.store_directory = store;
    if (context.tier_state.empty())
      if (const char* folder = std::getenv("TPLSTORE_TIER_STATE")) context.tier_state = folder;
    if (context.store_directory.empty() && context.needs_store)
      throw CLI::ParseError("a store is needed: use --store DIR or the variable TPLSTORE_STORE",
                            CLI::ExitCodes::RequiredError);
  } catch (const CLI::Success& success) {  // --help, --version
    app.exit(success);
    return kDone;
  } catch (const CLI::ParseError& error) {
    return report_wrong_usage(app, error);
  }
  context.action();
  return kDone;
}

// A file that is opened next must not be taken for one of the standard ones.
bool have_standard_files() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd)
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) return false;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (!have_standard_files()) return kFailed;
  int status = kFailed;
  try {
    status = run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const tplstore::tool::NotAllDone&) {
    status = kFailed;
  } catch (const tplstore::Error& error) {
    return report(error.what());
  } catch (const std::exception& error) {
    return report(error.what());
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    return report("standard output: not all could be written");
  return status;
}
