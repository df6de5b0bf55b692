// serve: becomes nbdkit with our plugin and the store.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <tuple>

#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "command.h"
#include "transfer/child_process.h"

namespace tplstore::tool {
namespace {

constexpr std::tuple kSoundNbdkit{1u, 33u, 10u};

struct ServeArguments {
  std::string socket;
  unsigned port = 0;
  Command command{nullptr};
};

// A key=value for the plugin or a filter: nbdkit wants those behind the plugin's name.
bool is_parameter(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos) return false;
  return std::all_of(text.begin(), text.begin() + static_cast<ptrdiff_t>(equals),
                     [](char c) {
                       return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
                              c == '_';
                     }) &&
         text[0] != '-';
}

bool has_any(const std::vector<std::string>& options, std::initializer_list<const char*> wanted) {
  return std::any_of(options.begin(), options.end(), [&](const std::string& option) {
    return std::any_of(wanted.begin(), wanted.end(), [&](std::string_view name) {
      // "-U/path", "--unix=/path", and both with the value in the next word
      return option == name || option.starts_with(std::string(name) + "=") ||
             (name.size() == 2 && option.starts_with(name));
    });
  });
}

// The plugin of the build this tool comes from, or that was installed with it where nbdkit does not
// look, else the one that nbdkit finds.
std::string find_plugin() {
  if (const char* plugin = std::getenv("TPLSTORE_PLUGIN"); plugin && *plugin != '\0') return plugin;
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return "tplstore";
  for (const char* folder : {"plugin", "lib/nbdkit/plugins"}) {
    const auto plugin = self.parent_path().parent_path() / folder / "nbdkit-tplstore-plugin.so";
    if (std::filesystem::exists(plugin, error)) return plugin.string();
  }
  return "tplstore";
}

std::string percent_encoded(const std::string& path) {
  std::string text;
  for (const char c : path) {
    const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                          (c >= 'A' && c <= 'Z') ||
                          std::string_view("/._-~").find(c) != std::string_view::npos;
    text += is_plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return text;
}

// nbdkit refuses a socket that is there already; one that a dead server left is removed.
void clear_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    fail(ENAMETOOLONG, path, "a socket's path has at most 107 bytes: choose another with --socket");
  path.copy(address.sun_path, path.size());
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return;
  const FileDescriptor probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const bool is_stale =
      S_ISSOCK(status.st_mode) && probe &&
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
      errno == ECONNREFUSED;
  if (!is_stale)
    fail(EADDRINUSE, path,
         "it exists: another server listens there, or it is something else; choose another "
         "with --socket");
  if (::unlink(path.c_str()) != 0) fail_errno(errno, path, "removing a stale socket");
}

// Whether whoever started this process has opened the sockets, as systemd and the like do: nbdkit,
// which this process becomes, takes them over then.
bool has_sockets() {
  const char* const pid = std::getenv("LISTEN_PID");
  const char* const count = std::getenv("LISTEN_FDS");
  return pid != nullptr && count != nullptr && pid == std::to_string(::getpid()) &&
         std::string_view(count) != "0";
}

bool is_in_path(const std::string& program) {
  std::istringstream path(std::getenv("PATH") ? std::getenv("PATH") : "/usr/bin:/bin");
  for (std::string folder; std::getline(path, folder, ':');)
    if (::access(fmt::format("{}/{}", folder, program).c_str(), X_OK) == 0) return true;
  return false;
}

void say(LogLevel level, const std::string& line) {
  print_error(with_level(level, fmt::format("tplstore: {}\n", line)));
}

// Says what follows from a fault of releases of nbdkit that are still in use.
void warn_of_nbdkit() {
  std::string text;
  try {
    run_process(
        {"nbdkit", "--version"}, "nbdkit", [&](std::string_view piece) { text += piece; },
        [] { return false; });
  } catch (const Error&) {
    return;  // whoever becomes it says more
  }
  std::tuple<unsigned, unsigned, unsigned> release;
  auto& [major, minor, patch] = release;
  if (std::sscanf(text.c_str(), "nbdkit %u.%u.%u", &major, &minor, &patch) != 3) return;
  if (release >= kSoundNbdkit) return;
  say(LogLevel::kWarning,
      fmt::format("nbdkit {}.{}.{} may end, and all VMs lose their connections, when one that has "
                  "requests under way is killed; nothing acknowledged is lost: have it started "
                  "again, and give "
                  "VMs reconnect-delay, then they see a pause. 1.34 does not have this fault",
                  major, minor, patch));
}

[[noreturn]] void become(std::vector<std::string> words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  ::execvp(pointers[0], pointers.data());
  fail_errno(errno, words[0], "starting the program");
}

void serve(const Context& context, const ServeArguments& arguments) {
  if (!is_in_path("nbdkit"))
    fail(ENOENT, "nbdkit", "this program is needed and not installed: install nbdkit");
  context.open_store();  // a clear error when there is none
  const std::string store = std::filesystem::canonical(context.store_directory);
  std::vector<std::string> extras = arguments.command.extras();
  extras.insert(extras.end(), context.nbdkit_options.begin(), context.nbdkit_options.end());
  std::vector<std::string> options, parameters;
  for (const std::string& extra : extras)
    (is_parameter(extra) ? parameters : options).push_back(extra);

  std::vector<std::string> words = {"nbdkit", "--foreground"};
  std::string uri;
  const std::initializer_list<const char*> kListening = {"-U",      "--unix", "-p",      "--port",
                                                         "--vsock", "-s",     "--single"};
  if (has_sockets()) {
    if (arguments.port != 0 || !arguments.socket.empty() || has_any(options, kListening))
      fail(EINVAL, "serve",
           "it was started with sockets that are open (LISTEN_FDS), and listens on no other: leave "
           "out what says where to listen");
    say(LogLevel::kInfo, fmt::format("serving {} on the sockets it was given", printable(store)));
  } else if (arguments.port != 0) {
    words.insert(words.end(), {"--port", std::to_string(arguments.port)});
    // NBD without TLS lets everybody write: only this host, unless an address is given.
    if (!has_any(options, {"-i", "--ipaddr", "--vsock"})) {
      words.insert(words.end(), {"--ipaddr", "127.0.0.1"});
      uri = fmt::format("nbd://127.0.0.1:{}/VOLUME", arguments.port);
    }
  } else if (!has_any(options, kListening)) {
    const std::string socket = arguments.socket.empty()
                                   ? store + "/nbd.sock"
                                   : std::filesystem::absolute(arguments.socket).string();
    clear_socket(socket);
    words.insert(words.end(), {"--unix", socket});
    uri = "nbd+unix:///VOLUME?socket=" + percent_encoded(socket);
  }
  if (context.is_verbose) words.push_back("--verbose");
  words.insert(words.end(), options.begin(), options.end());
  words.push_back(find_plugin());
  words.push_back("store=" + store);
  words.insert(words.end(), parameters.begin(), parameters.end());
  if (!uri.empty()) say(LogLevel::kInfo, fmt::format("serving {} as {}", printable(store), uri));
  warn_of_nbdkit();
  become(std::move(words));
}

}  // namespace

void add_serve_command(const Command& app, Context& context) {
  auto arguments = std::make_shared<ServeArguments>();
  const Command command =
      add_command(app, context, "serve", "Serve the store with nbdkit, in the foreground",
                  [&context, arguments] { serve(context, *arguments); });
  arguments->command = command;
  const Option socket =
      command.add_option("--socket", arguments->socket, "Listen on this Unix socket")
          .type_name("PATH");
  command.add_option("--port", arguments->port, "Listen on this TCP port of the loopback address")
      .check(whole_number_from(1, 65535))
      .type_name("N")
      .excludes(socket);
  command.allow_extras();
  command.footer("All other options go to nbdkit, as does what follows \"--\".");
}

}  // namespace tplstore::tool
