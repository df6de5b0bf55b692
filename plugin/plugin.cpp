// The nbdkit plugin: one nbdkit process serves all disks of a store. All it does is to translate
// between nbdkit's callbacks and the library's Store and Disk.
//
// Every callback goes through guard(), which turns an exception into nbdkit's way of failing;
// nothing is ever thrown into nbdkit's C code. The server's state hangs on one pointer: nbdkit's
// parent process leaves by exit() after the fork, and a global object's destructor would run there
// while the child serves.
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <arpa/inet.h>
#include <malloc.h>
#include <nbdkit-plugin.h>
#include <netinet/in.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <unordered_set>

#include "backend/open_backend.h"
#include "base/host.h"
#include "base/log.h"
#include "base/text.h"
#include "base/units.h"
#include "base/version.h"
#include "control/server.h"
#include "control/servers.h"
#include "store/store.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace tplstore {
namespace {

constexpr rlim_t kDescriptorsWanted = 65536;
constexpr uint32_t kGraceSecondsMax = 86400;
constexpr uint32_t kKeepSecondsMax = 10 * 365 * 86400;
constexpr uint32_t kBootSecondsMax = 86400;
constexpr uint64_t kBootCacheBytes = uint64_t{256} << 20;
// From this size on the boot cache's memory is of huge pages, where nothing else is said.
constexpr uint64_t kHugePagesFromBytes = uint64_t{64} << 20;

StoreOptions default_options() {
  StoreOptions options;
  options.boot.cap_bytes = kBootCacheBytes;
  return options;
}

struct Server {
  std::string location;
  StoreOptions options = default_options();
  std::optional<bool> has_huge_pages;
  bool is_shared = false;  // somebody has said that hosts may have the store
  std::unique_ptr<Store> store;
  std::unique_ptr<ControlServer> control;

  // What connections have open. nbdkit does not close those that are there when it is told to end.
  std::mutex disks_mutex;
  std::unordered_set<Disk*> disks;
};
Server* server = nullptr;

// Only these pass the wire; nbdkit turns every other errno into EINVAL, as if the client had asked
// for something wrong.
int wire_errno(int code) {
  switch (code) {
    case EPERM:
    case EROFS:
    case EIO:
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ESHUTDOWN:
    case EINVAL:
      return code;
    default:
      return EIO;
  }
}

// A server that leaves its store tells nobody: what a client has asked for it asks the next one,
// when this process has ended.
void keep_silent_if_leaving() {
  if (server == nullptr || !server->store || !server->store->is_leaving()) return;
  while (true) pause();
}

std::atomic<bool> is_serving{false};

// nbdkit knows errors only, and no levels: under the journal a line goes there by itself, in one
// piece.
void log_line(LogLevel level, const char* line) noexcept {
  try {
    if (is_journal_stderr()) {
      const std::string text = with_level(level, fmt::format("tplstore: {}\n", line));
      (void)!::write(STDERR_FILENO, text.data(), text.size());
      return;
    }
  } catch (const std::exception&) {
    // There is no memory for a level.
  }
  nbdkit_error("%s", line);
}

// Why something failed. Before it serves that is the end of the process, whatever it is.
void log_failure(LogLevel level, const char* line) noexcept {
  log_line(is_serving ? level : LogLevel::kError, line);
}

// Runs a callback's body; `failure` is what the callback returns when it throws.
template <typename Body, typename Result>
Result guard(Result failure, Body body) noexcept {
  try {
    return body();
  } catch (const Error& error) {
    keep_silent_if_leaving();
    log_failure(level_of(error), error.what());
    nbdkit_set_error(wire_errno(error.code()));
  } catch (const std::bad_alloc&) {
    keep_silent_if_leaving();
    log_failure(LogLevel::kError, "out of memory");
    nbdkit_set_error(ENOMEM);
  } catch (const std::exception& error) {
    keep_silent_if_leaving();
    log_failure(LogLevel::kError, printable(error.what()).c_str());
    nbdkit_set_error(EIO);
  }
  return failure;
}

template <typename Body>
int guard_void(Body body) noexcept {
  return guard(-1, [&] {
    body();
    return 0;
  });
}

Server& configured() {
  if (server == nullptr) server = new Server();
  return *server;
}

Disk& disk_of(void* handle) { return *static_cast<Disk*>(handle); }

// --- the server's life

// glibc would keep freed buffers of the log in each of its many arenas: a server of a hundred
// volumes would hold tens of megabytes that nobody uses.
void on_load() noexcept {
  mallopt(M_MMAP_THRESHOLD, 64 << 10);
  mallopt(M_TRIM_THRESHOLD, 128 << 10);
  mallopt(M_ARENA_MAX, 4);
}

std::chrono::seconds parse_seconds(const std::string& name, std::string_view text, uint32_t max) {
  uint32_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || seconds > max)
    fail(EINVAL, name, "'{}' is no number of seconds up to {}", text, max);
  return std::chrono::seconds(seconds);
}

bool parse_switch(const std::string& name, std::string_view text, std::string_view on,
                  std::string_view off) {
  if (text != on && text != off) fail(EINVAL, name, "'{}' is neither '{}' nor '{}'", text, on, off);
  return text == on;
}

int on_config(const char* key, const char* value) noexcept {
  return guard_void([&] {
    const std::string name = key;
    if (name == "store") {
      configured().location = absolute_location(value);
    } else if (name == "io") {
      const std::string mode = value;
      if (mode != "buffered" && mode != "direct")
        fail(EINVAL, "io", "'{}' is neither 'buffered' nor 'direct'", mode);
      configured().options.io = mode == "direct" ? IoMode::kDirect : IoMode::kBuffered;
    } else if (name == "map-cache") {
      configured().options.map_cache_bytes = parse_size("map-cache", value);
    } else if (name == "same-vm") {
      if (std::string_view(value) != "pid") fail(EINVAL, name, "'{}' is not 'pid'", value);
      configured().options.same_vm_is_pid = true;
    } else if (name == "reconnect-grace") {
      configured().options.reconnect_grace = parse_seconds(name, value, kGraceSecondsMax);
    } else if (name == "tier-state") {
      configured().options.tier_state = absolute_location(value);
    } else if (name == "tier-fill") {
      configured().options.tier_fill_bytes_per_second = parse_size("tier-fill", value);
    } else if (name == "tier-keep") {
      configured().options.tier_keep = parse_seconds(name, value, kKeepSecondsMax);
    } else if (name == "boot-cache") {
      configured().options.boot.cap_bytes = parse_size(name, value);
    } else if (name == "boot-cache-hugepages") {
      configured().has_huge_pages = parse_switch(name, value, "on", "off");
    } else if (name == "boot-quiet") {
      configured().options.boot.quiet = parse_seconds(name, value, kBootSecondsMax);
    } else if (name == "boot-time") {
      configured().options.boot.time = parse_seconds(name, value, kBootSecondsMax);
    } else if (name == "boot-bytes") {
      configured().options.boot.bytes = parse_size(name, value);
    } else if (name == "prefetch") {
      configured().options.boot.prefetch = parse_switch(name, value, "on", "off");
    } else if (name == "packs") {
      configured().options.boot.packs = parse_switch(name, value, "auto", "off");
    } else if (name == "shared") {
      if (std::string_view(value) != "refuse-foreign")
        fail(EINVAL, name, "'{}' is not 'refuse-foreign'", value);
      configured().is_shared = true;
    } else {
      fail(EINVAL, name,
           "is not a parameter of tplstore; there are store, io, map-cache, same-vm, "
           "reconnect-grace, shared, tier-state, tier-fill, tier-keep, boot-cache, "
           "boot-cache-hugepages, boot-quiet, boot-time, boot-bytes, prefetch and packs");
    }
  });
}

int on_config_complete() noexcept {
  return guard_void([] {
    if (configured().location.empty())
      fail(EINVAL, "store",
           "is missing: give the store's directory, as in 'nbdkit tplstore /srv/store'");
  });
}

// The templates' segments and the data files of many versions want descriptors.
void raise_descriptor_limit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min(limit.rlim_max, kDescriptorsWanted);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int on_get_ready() noexcept {
  return guard_void([] {
    Server& ready = configured();
    ready.options.has_tier = true;
    BootOptions& boot = ready.options.boot;
    boot.huge_pages = ready.has_huge_pages.value_or(boot.cap_bytes >= kHugePagesFromBytes);
    const char* tier_state = std::getenv("TPLSTORE_TIER_STATE");
    if (ready.options.tier_state.empty() && tier_state != nullptr && *tier_state != '\0')
      ready.options.tier_state = absolute_location(tier_state);
    raise_descriptor_limit();
    ready.options.log = [](LogLevel level, const std::string& line) {
      log_line(level, printable(line).c_str());
    };
    ready.options.run_directory = [] { return control::run_directory(/*makes=*/true); };
    ready.store = Store::open(ready.location, ready.options);
    const StorageKind kind = ready.store->backend().kind();
    check_shared(ready.location, kind, ready.is_shared, "shared=refuse-foreign");
    if (kind.reach == StorageKind::Reach::kHosts)
      ready.options.log(LogLevel::kNotice,
                        fmt::format("{}: on {}; what another host has, or has left, is refused "
                                    "until 'tplstore lock break'",
                                    ready.location, kind.name));
  });
}

int on_after_fork() noexcept {
  return guard_void([] {
    server->store->start();
    // Only now is this the user who serves.
    server->control = std::make_unique<ControlServer>(
        *server->store, control::run_directory(/*makes=*/true), server->options.log);
    // Not by nbdkit's own way, on which it answers ESHUTDOWN: that is an I/O error in the guests.
    server->control->when_left([] { _exit(0); });
    server->control->start();
    is_serving = true;
  });
}

void on_cleanup() noexcept {
  guard_void([] {
    if (server == nullptr) return;
    keep_silent_if_leaving();
    // What is under way for a control request must not hold up the end.
    if (server->store) server->store->stop();
    if (server->control) server->control->stop();
    server->control.reset();
    for (Disk* disk : server->disks) delete disk;
    server->store.reset();
    delete server;
    server = nullptr;
  });
}

void on_dump_plugin() noexcept {
  printf("tplstore_version=%s\n", kProgramVersion);
  printf("tplstore_compiler=%s\n", __VERSION__);
  printf("tplstore_build=%s\n", TPLSTORE_BUILD);
  printf("tplstore_nbdkit=%s\n", TPLSTORE_NBDKIT_VERSION);
  printf("tplstore_liburing=%s\n", TPLSTORE_LIBURING_VERSION);
  printf("tplstore_xxhash=%d.%d.%d\n", XXH_VERSION_MAJOR, XXH_VERSION_MINOR, XXH_VERSION_RELEASE);
  printf("tplstore_block_size=%u\n", kBlockBytes);
}

// --- connections

Peer peer_of_connection() {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  Peer peer;
  if (nbdkit_peer_name(reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    peer.address = "unknown peer";
    return peer;
  }
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_UNIX) {
    peer.pid = std::max<int64_t>(0, nbdkit_peer_pid());
    peer.start_time = process_start_time(peer.pid);
    // A process that is gone already is nobody that a second connection could belong to.
    if (peer.start_time == 0) peer.pid = 0;
    peer.address = peer.pid == 0 ? "unix socket, unknown process"
                                 : fmt::format("unix socket, pid {}", peer.pid);
  } else if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
    peer.address = fmt::format("{}:{}", text, ntohs(in.sin_port));
  } else if (address.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text);
    peer.address = fmt::format("[{}]:{}", text, ntohs(in.sin6_port));
  } else {
    peer.address = fmt::format("peer of address family {}", address.ss_family);
  }
  return peer;
}

int on_list_exports(int, int, nbdkit_exports* exports) noexcept {
  return guard_void([&] {
    for (const ExportInfo& info : server->store->list_exports())
      if (nbdkit_add_export(exports, info.name.c_str(), printable(info.description).c_str()) != 0)
        fail(EIO, info.name, "cannot be listed");
  });
}

// `only_reads` is set by nbdkit -r, and by filters that keep what is written to themselves.
void* on_open(int only_reads) noexcept {
  return guard<>(static_cast<void*>(nullptr), [only_reads]() -> void* {
    const char* name = nbdkit_export_name();
    if (name == nullptr) fail(EINVAL, "export", "the client's export name cannot be read");
    auto disk = server->store->open_export(name, peer_of_connection(), only_reads != 0);
    const std::lock_guard lock(server->disks_mutex);
    server->disks.insert(disk.get());
    return disk.release();
  });
}

void on_close(void* handle) noexcept {
  guard_void([&] {
    {
      const std::lock_guard lock(server->disks_mutex);
      server->disks.erase(&disk_of(handle));
    }
    delete &disk_of(handle);
  });
}

int64_t on_get_size(void* handle) noexcept {
  return guard(int64_t{-1}, [&] { return static_cast<int64_t>(disk_of(handle).size_bytes()); });
}

int on_block_size(void*, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum) noexcept {
  *minimum = 1;
  *preferred = kBlockBytes;
  *maximum = UINT32_MAX;
  return 0;
}

int on_can_write(void* handle) noexcept {
  return guard(-1, [&] { return disk_of(handle).is_writable() ? 1 : 0; });
}
int on_can_multi_conn(void* handle) noexcept {
  return guard(-1, [&] { return disk_of(handle).allows_multi_conn() ? 1 : 0; });
}
int on_can_fua(void*) noexcept { return NBDKIT_FUA_NATIVE; }
int on_can_cache(void*) noexcept { return NBDKIT_CACHE_NATIVE; }
int answer_yes(void*) noexcept { return 1; }
int answer_no(void*) noexcept { return 0; }

// --- data

int on_pread(void* handle, void* buffer, uint32_t count, uint64_t offset, uint32_t) noexcept {
  return guard_void(
      [&] { disk_of(handle).read(offset, MutableBytes(static_cast<std::byte*>(buffer), count)); });
}

int on_pwrite(void* handle, const void* buffer, uint32_t count, uint64_t offset,
              uint32_t flags) noexcept {
  return guard_void([&] {
    disk_of(handle).write(offset, Bytes(static_cast<const std::byte*>(buffer), count),
                          (flags & NBDKIT_FLAG_FUA) != 0);
  });
}

int on_flush(void* handle, uint32_t) noexcept {
  return guard_void([&] { disk_of(handle).flush(); });
}

int on_trim(void* handle, uint32_t count, uint64_t offset, uint32_t flags) noexcept {
  return guard_void([&] { disk_of(handle).trim(offset, count, (flags & NBDKIT_FLAG_FUA) != 0); });
}

// Zeroing changes the map only, so it is always fast; a zeroed block never occupies space.
int on_zero(void* handle, uint32_t count, uint64_t offset, uint32_t flags) noexcept {
  return guard_void([&] { disk_of(handle).zero(offset, count, (flags & NBDKIT_FLAG_FUA) != 0); });
}

int on_extents(void* handle, uint32_t count, uint64_t offset, uint32_t flags,
               nbdkit_extents* extents) noexcept {
  return guard_void([&] {
    disk_of(handle).extents(offset, count, [&](const Extent& extent) {
      const uint32_t type = extent.is_hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;
      if (nbdkit_add_extent(extents, extent.offset, extent.length, type) != 0)
        fail(EIO, "extents", "cannot be told");
      return (flags & NBDKIT_FLAG_REQ_ONE) == 0;
    });
  });
}

int on_cache(void* handle, uint32_t count, uint64_t offset, uint32_t) noexcept {
  return guard_void([&] { disk_of(handle).cache(offset, count); });
}

constexpr nbdkit_plugin make_plugin() {
  nbdkit_plugin table{};
  table.name = "tplstore";
  table.longname = "tplstore: disks of virtual machines from golden templates";
  table.version = kProgramVersion;
  table.description =
      "Serves the volumes, versions and templates of a store: VOLUME[;writer=TOKEN[;multi]],\n"
      "VOLUME@current, VOLUME@VERSION, template/NAME. See nbdkit-tplstore-plugin(1) and "
      "tplstore(1).";
  table.config_help =
      "[store=]DIRECTORY  (required) The store, made by 'tplstore init'.\n"
      "io=buffered|direct            Use the page cache (default) or bypass it.\n"
      "map-cache=SIZE                Memory for the maps of all volumes (default 64M).\n"
      "same-vm=pid                   Each process at a Unix socket is one VM.\n"
      "reconnect-grace=SECONDS       How long a VM may take to come back after a crash (30).\n"
      "shared=refuse-foreign         Several hosts have the store.\n"
      "tier-state=DIRECTORY          Where this host's table of the tier is.\n"
      "tier-fill=SIZE                Bytes a second at which the tier is filled (100M).\n"
      "tier-keep=SECONDS             How long a copy stays that is not read (86400).";
  table.magic_config_key = "store";
  table.errno_is_preserved = 0;
  table.load = on_load;
  table.config = on_config;
  table.config_complete = on_config_complete;
  table.get_ready = on_get_ready;
  table.after_fork = on_after_fork;
  table.cleanup = on_cleanup;
  table.dump_plugin = on_dump_plugin;
  table.list_exports = on_list_exports;
  table.open = on_open;
  table.close = on_close;
  table.get_size = on_get_size;
  table.block_size = on_block_size;
  table.can_write = on_can_write;
  table.can_multi_conn = on_can_multi_conn;
  table.can_flush = answer_yes;
  table.can_trim = answer_yes;
  table.can_zero = answer_yes;
  table.can_fast_zero = answer_yes;
  table.can_fua = on_can_fua;
  table.can_extents = answer_yes;
  table.can_cache = on_can_cache;
  table.is_rotational = answer_no;
  table.pread = on_pread;
  table.pwrite = on_pwrite;
  table.flush = on_flush;
  table.trim = on_trim;
  table.zero = on_zero;
  table.extents = on_extents;
  table.cache = on_cache;
  return table;
}

constinit nbdkit_plugin plugin = make_plugin();

}  // namespace
}  // namespace tplstore

using tplstore::plugin;
NBDKIT_REGISTER_PLUGIN(plugin)
