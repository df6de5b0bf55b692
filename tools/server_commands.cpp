// server stop: what a store's servers are told as a whole.
#include <algorithm>
#include <cerrno>
#include <thread>

#include "backend/open_backend.h"
#include "command.h"
#include "control/servers.h"
#include "table.h"
#include "template/store_identity.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

// A process ends in no time, but its memory may have to be given back.
constexpr std::chrono::seconds kEndWaitMax{60};
constexpr std::chrono::milliseconds kLookAgain{10};

constexpr const char* kEvery = "all";

struct StopArguments {
  // Of the one server that is meant. Empty for none: a unit whose server has ended knows no pid.
  std::string pid = kEvery;
};

std::string stopped_text(const json& servers) {
  std::string text;
  for (const json& server : servers)
    text += fmt::format("server {}: stopped, {} volumes closed\n", plain(server["pid"]),
                        plain(server["closed_volumes"]));
  return text.empty() ? "no such server runs here\n" : text;
}

using IsThere = std::function<bool(const control::ServerPlace& server)>;

void stop_these(const Context& context, const std::vector<control::ServerPlace>& servers,
                const IsThere& is_there) {
  const json stopped = ask_each(servers, {{"op", "server-stop"}}, Patience::kEndless);
  const auto deadline = std::chrono::steady_clock::now() + kEndWaitMax;
  for (const control::ServerPlace& server : servers) {
    while (is_there(server)) {
      if (std::chrono::steady_clock::now() >= deadline)
        fail(ETIMEDOUT, server.describe(), "it has closed its volumes, and does not end");
      std::this_thread::sleep_for(kLookAgain);
    }
  }
  context.print(stopped, stopped_text);
  for (const json& server : stopped)
    for (const json& volume : server["unclean_volumes"])
      fail(EIO, "volume " + plain(volume),
           "could not be closed, the server's log says why; its next opening recovers it");
}

bool listens(const control::ServerPlace& server) {
  try {
    return bool{control::connect_to(server, control::Clock::now() + kLookAgain)};
  } catch (const Error& error) {
    if (error.code() != ETIMEDOUT) throw;
    return true;
  }
}

void stop_servers(const Context& context, const StopArguments& arguments) {
  if (arguments.pid.empty()) return stop_these(context, {}, {});
  const std::string directory = control::run_directory(/*makes=*/false);
  if (arguments.pid != kEvery) {
    // A unit's configuration may name another store by now than the one that its server has.
    const auto servers = control::find_servers_of(std::stoi(arguments.pid), directory);
    if (!servers.empty() || context.store_directory.empty())
      return stop_these(context, servers, listens);
  }
  // No Store: the server may be of a release that has put something into it that we do not know.
  const auto backend = open_backend(context.store_directory, {});
  load_store_uuid(*backend);  // a clear error when it is none
  auto servers = control::find_servers(*backend, directory);
  std::erase_if(servers, [&](const control::ServerPlace& server) {
    return arguments.pid != kEvery && server.pid() != arguments.pid;
  });
  stop_these(context, servers, [&](const control::ServerPlace& server) {
    return std::ranges::any_of(control::find_servers(*backend, directory),
                               [&](const auto& other) { return other.object == server.object; });
  });
}

}  // namespace

void add_server_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "server", "The servers of the store");
  auto arguments = std::make_shared<StopArguments>();
  const Command stop = add_command(
      group, context, "stop",
      "End them as soon as all that was answered is durable, and tell their clients nothing", {});
  stop.on_parsed([&context, arguments] {
    context.needs_store = arguments->pid == kEvery;
    context.action = [&context, arguments] { stop_servers(context, *arguments); };
  });
  stop.add_option("--pid", arguments->pid, "Only the one that is this process, whatever its store")
      .type_name("PID")
      .check([](const std::string& pid) {
        return pid.empty() ? "" : whole_number_from(1, INT32_MAX)(pid);
      });
  add_json_option(stop, context);
}

}  // namespace tplstore::tool
