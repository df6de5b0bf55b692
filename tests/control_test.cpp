// The control socket between a server and the tool: every kind of request, hostile and slow
// clients, stale sockets, and slow operations.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "base/text.h"
#include "control/client.h"
#include "control/json_output.h"
#include "control/operations.h"
#include "control/protocol.h"
#include "control/server.h"
#include "control/servers.h"
#include "control/socket.h"
#include "memory/memory_backend.h"
#include "store_testing.h"
#include "temporary_directory.h"

namespace tplstore::control_test {
using nlohmann::json;

namespace {

const Peer kVm{"a virtual machine", 4711, 1};
constexpr auto kNotLong = std::chrono::seconds(20);

// Lets syncs through, or holds them up while it is closed.
class Gate {
 public:
  void close() {
    const std::lock_guard lock(mutex_);
    is_open_ = false;
  }
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return is_open_; });
    --waiting_;
  }
  void await_somebody() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = true;
  int waiting_ = 0;
};

// A store with a running server. Syncs wait at a gate.
struct Served {
  TemporaryDirectory run_directory;
  std::string directory = run_directory.path();
  Gate gate;
  MemoryBackend memory;
  std::unique_ptr<Store> store;
  std::optional<ControlServer> server;

  explicit Served(ControlLimits limits = {}) {
    memory.set_recording(false);
    Store::init(memory);
    auto backend = std::make_unique<ForwardingBackend>(memory);
    backend->around = [this](ForwardingBackend::Call call, const std::string&,
                             const std::function<void()>& go_on) {
      if (call == ForwardingBackend::Call::kSync) gate.pass();
      go_on();
    };
    store = std::make_unique<Store>(std::move(backend), StoreOptions{});
    server.emplace(
        *store, directory, [](const std::string&) {}, limits);
    server->start();
  }
  ControlClient client() { return ControlClient(memory, directory, kNotLong); }
};

FileDescriptor listening_socket(const std::string& path) {
  FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(socket.get(), 5) == 0);
  return socket;
}

// A store whose server is played.
struct Unserved {
  TemporaryDirectory run_directory;
  std::string directory = run_directory.path();
  MemoryBackend memory;
  std::optional<control::Announcement> announcement;

  Unserved() {
    memory.set_recording(false);
    Store::init(memory);
  }
  FileDescriptor listen() {
    announcement.emplace(memory, directory);
    return listening_socket(announcement->place().path());
  }
  ControlClient client(std::chrono::milliseconds timeout) {
    return ControlClient(memory, directory, timeout);
  }
};

// A connection that sends whatever one likes.
class RawClient {
 public:
  explicit RawClient(const std::string& path) {
    socket_ = FileDescriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(path.size() < sizeof address.sun_path);
    path.copy(address.sun_path, path.size());
    is_connected_ =
        ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  bool is_connected() const { return is_connected_; }
  void send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t count = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (count <= 0) return;  // the server has had enough
      text.remove_prefix(static_cast<size_t>(count));
    }
  }
  // Waits until the server has closed its side, without reading what it sent.
  void await_end() {
    pollfd polled = {socket_.get(), POLLRDHUP, 0};
    REQUIRE(::poll(&polled, 1, 20'000) == 1);
  }
  // Null at the end of the stream.
  json receive() {
    control::LineChannel::Result result =
        channel().read_line(line_, control::Clock::now() + kNotLong);
    return result == control::LineChannel::Result::kLine ? json::parse(line_) : json();
  }
  json ask(std::string_view request) {
    send(std::string(request) + "\n");
    return receive();
  }

 private:
  control::LineChannel& channel() {
    if (!channel_) channel_.emplace(socket_.get(), control::kAnswerBytesMax);
    return *channel_;
  }
  FileDescriptor socket_;
  bool is_connected_ = false;
  std::optional<control::LineChannel> channel_;
  std::string line_;
};

// One request on a connection of its own.
json ask_once(Served& served, std::string_view request) {
  return RawClient(served.server->socket_path()).ask(request);
}

const std::string kPing = R"({"protocol":1,"op":"ping"})";

mode_t mode_of(const std::string& path) {
  struct stat status {};
  REQUIRE(::lstat(path.c_str(), &status) == 0);
  return status.st_mode & 07777;
}

}  // namespace

TEST_CASE("a server tells who it is, and nothing of volumes that it does not have open") {
  Served served;
  served.store->create_volume("vm1", 1 << 20, "");
  const auto pings = served.client().ask_all({{"op", "ping"}});
  REQUIRE(pings.size() == 1);
  CHECK(pings[0]["pid"] == ::getpid());
  for (const char* op :
       {"volume-show", "volume-resize", "volume-fork", "volume-flatten", "volume-reclaim",
        "version-list", "version-create", "version-rollback", "version-rm", "version-diff"}) {
    CAPTURE(op);
    const json request = {{"op", op},      {"volume", "vm1"},   {"size", 2 << 20}, {"version", "1"},
                          {"name", "vm2"}, {"versions", {"1"}}, {"from", "1"}};
    CHECK_FALSE(served.client().ask_owner(request).has_value());
    json request_here = request;
    request_here["protocol"] = control::kProtocol;
    const json answer = ask_once(served, request_here.dump());
    CHECK(answer["code"] == "ENOENT_OPEN");
  }
  CHECK(served.store->show_volume("vm1").current_version == 1);
  CHECK(served.store->show_volume("vm1").size_bytes == 1 << 20);
}

TEST_CASE("a server does what concerns a volume that it has open") {
  Served served;
  served.store->create_volume("vm1", 1 << 20, "");
  const auto disk = served.store->open_export("vm1", kVm);
  const ControlClient client = served.client();

  disk->write(0, as_bytes("first"), true);
  json version = client.ask_owner({{"op", "version-create"}, {"volume", "vm1"}}).value();
  CHECK(version["number"] == 1);
  CHECK(version["name"] == nullptr);
  version =
      client.ask_owner({{"op", "version-create"}, {"volume", "vm1"}, {"name", "clean"}}).value();
  CHECK(version["number"] == 2);
  CHECK(version["name"] == "clean");
  const json versions = client.ask_owner({{"op", "version-list"}, {"volume", "vm1"}}).value();
  REQUIRE(versions.size() == 3);
  CHECK(versions[2]["current"] == true);

  const json grown =
      client.ask_owner({{"op", "volume-resize"}, {"volume", "vm1"}, {"size", 2 << 20}}).value();
  CHECK(grown["size"] == 2 << 20);
  const json shown = client.ask_owner({{"op", "volume-show"}, {"volume", "vm1"}}).value();
  CHECK(shown["attached"] == true);
  CHECK(shown["current_version"] == 3);
  CHECK(shown["versions"].size() == 3);

  // What the store refuses arrives as the same error.
  CHECK(error_code([&] {
          client.ask_owner({{"op", "version-create"}, {"volume", "vm1"}, {"name", "clean"}});
        }) == EEXIST);
  CHECK(error_code([&] {
          client.ask_owner({{"op", "version-rollback"}, {"volume", "vm1"}, {"version", "1"}});
        }) == EBUSY);
  CHECK(error_code([&] {
          client.ask_owner({{"op", "volume-resize"}, {"volume", "vm1"}, {"size", 512}});
        }) == EINVAL);

  const json stats = merge_stats(client.ask_all({{"op", "stats"}}));
  REQUIRE(stats["volumes"].size() == 1);
  CHECK(stats["volumes"][0]["requests"]["writes"] == 1);
  CHECK(stats["volumes"][0]["connections"] == 1);
  CHECK(stats["servers"][0]["pid"] == ::getpid());
}

TEST_CASE("whatever a request contains, it gets an answer, and the next one too") {
  Served served;
  const std::string deep(60000, '[');
  const std::string requests[] = {
      "",
      " ",
      "{",
      "[]",
      "7",
      "null",
      "\"ping\"",
      "\xff\xfe",
      std::string("\0", 1),
      deep,
      R"({"protocol":1})",
      R"({"protocol":1,"op":7})",
      R"({"protocol":1,"op":null})",
      R"({"protocol":1,"op":"reboot"})",
      R"({"protocol":1,"op":"version-create"})",
      R"({"protocol":1,"op":"version-create","volume":7})",
      R"({"protocol":1,"op":"volume-show","volume":"../../etc"})",
      R"({"protocol":1,"op":"volume-show","volume":""})",
      R"({"protocol":1,"op":"volume-show","volume":"\u0000\n\u009b2J"})",
      "{\"protocol\":1,\"op\":\"volume-show\",\"volume\":\"\xc3\x28\"}"};
  for (const std::string& request : requests) {
    CAPTURE(request.substr(0, 80));
    const json answer = ask_once(served, request);
    REQUIRE(answer.is_object());
    CHECK(answer["protocol"] == 1);
    CHECK(answer["ok"] == false);
    CHECK(answer["code"] == "EINVAL");
    CHECK(answer["errno"] == EINVAL);
    const auto error = answer["error"].get<std::string>();
    CHECK(error == printable(error));
  }
  CHECK(ask_once(served, kPing)["ok"] == true);

  // Arguments of a volume that is open.
  served.store->create_volume("vm1", 1 << 20, "");
  const auto disk = served.store->open_export("vm1", kVm);
  for (const char* request :
       {R"({"protocol":1,"op":"volume-resize","volume":"vm1"})",
        R"({"protocol":1,"op":"volume-resize","volume":"vm1","size":-1})",
        R"({"protocol":1,"op":"volume-resize","volume":"vm1","size":1e9})",
        R"({"protocol":1,"op":"volume-resize","volume":"vm1","size":"1G"})",
        R"({"protocol":1,"op":"version-create","volume":"vm1","name":7})",
        R"({"protocol":1,"op":"version-create","volume":"vm1","name":"../7"})",
        R"({"protocol":1,"op":"version-rollback","volume":"vm1"})",
        R"({"protocol":1,"op":"version-rollback","volume":"vm1","version":1})"}) {
    CAPTURE(request);
    CHECK(ask_once(served, request)["code"] == "EINVAL");
  }
  CHECK(served.store->show_volume("vm1").current_version == 1);
}

TEST_CASE("a request of another protocol is refused, and so is an answer") {
  Served served;
  for (const char* request :
       {R"({"op":"stats"})", R"({"protocol":2,"op":"stats"})", R"({"protocol":"1","op":"stats"})",
        R"({"protocol":2,"op":"what nobody knows yet"})"}) {
    CAPTURE(request);
    const json answer = ask_once(served, request);
    CHECK(answer["code"] == "EPROTO");
    CHECK(answer["error"].get<std::string>().find("speaks protocol 1") != std::string::npos);
  }
}

TEST_CASE("whatever protocol a server speaks, any tool may ask who it is and end it") {
  Served served;
  CHECK(ask_once(served, R"({"protocol":2,"op":"ping"})")["result"]["pid"] == ::getpid());
  CHECK(ask_once(served, R"({"op":"server-stop","more":[1]})")["result"]["closed_volumes"] == 0);
  CHECK(served.store->has_left());

  // And the other way round: first it is a ping that is answered, since this may take long.
  Unserved unserved;
  const FileDescriptor listener = unserved.listen();
  std::thread server([&] {
    constexpr std::string_view kAnswer =
        R"({"protocol":2,"ok":true,"new":0,"result":{"pid":7,"version":"2.0","closed_volumes":3,)"
        R"("unclean_volumes":[],"new":{}}})"
        "\n";
    for (int i = 0; i < 3; ++i) {
      const FileDescriptor accepted(::accept(listener.get(), nullptr, nullptr));
      char request[1000];
      CHECK(::recv(accepted.get(), request, sizeof request, 0) > 0);
      CHECK(::send(accepted.get(), kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL) > 0);
    }
  });
  const ControlClient client = unserved.client(kNotLong);
  const std::vector<json> stopped = client.ask_all({{"op", "server-stop"}}, Patience::kEndless);
  REQUIRE(stopped.size() == 1);
  CHECK(stopped[0]["closed_volumes"] == 3);
  CHECK(error_code([&] { client.ask_all({{"op", "stats"}}); }) == EPROTO);
  server.join();
}

TEST_CASE("a connection carries one request, and is closed behind its answer") {
  Served served;
  RawClient client(served.server->socket_path());
  client.send("{\"protocol\":1,\"op\":\"no\"}\n" + kPing + "\n");
  CHECK(client.receive()["code"] == "EINVAL");
  CHECK(client.receive().is_null());

  RawClient slow(served.server->socket_path());
  slow.send(kPing.substr(0, 10));
  slow.send(kPing.substr(10));
  CHECK(slow.ask("")["ok"] == true);
  CHECK(slow.receive().is_null());
}

TEST_CASE("a line of 64 KiB is taken, a longer one refused") {
  Served served;
  std::string request = kPing;
  request.resize(control::kRequestBytesMax, ' ');
  CHECK(ask_once(served, request)["ok"] == true);
  CHECK(ask_once(served, request + " ")["code"] == "EINVAL");

  RawClient endless(served.server->socket_path());
  endless.send(std::string(1 << 20, 'x'));
  CHECK(endless.receive()["code"] == "EINVAL");
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
}

TEST_CASE("connections that say nothing, or half a request, hold up nobody") {
  Served served;
  std::vector<std::unique_ptr<RawClient>> idle;
  const auto add_idle = [&](size_t count) {
    while (idle.size() < count) {
      idle.push_back(std::make_unique<RawClient>(served.server->socket_path()));
      idle.back()->send(idle.size() % 2 == 0 ? "" : "{\"op\":");
    }
  };
  // Within what is served at once, and beyond.
  for (const size_t count : {100, 300}) {
    add_idle(count);
    const auto before = control::Clock::now();
    CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
    CHECK(served.client().ask_all({{"op", "stats"}}).size() == 1);
    CHECK(control::Clock::now() - before < std::chrono::milliseconds(900));
  }
}

TEST_CASE("a request must be there, and its answer be taken, in time") {
  Served served(ControlLimits{.request_timeout = std::chrono::milliseconds(50),
                              .answer_timeout = std::chrono::milliseconds(50)});
  RawClient silent(served.server->socket_path()), half(served.server->socket_path());
  half.send("{\"op\":");
  CHECK(silent.receive().is_null());
  CHECK(half.receive().is_null());

  // An answer that does not fit into the socket's buffer, and that nobody reads.
  served.store->create_volume("vm1", 1 << 30, "");
  auto disk = served.store->open_export("vm1", kVm);
  served.store->create_version("vm1", {});
  for (uint64_t block = 0; block < 14'000; block += 2)
    disk->write(block * kBlockBytes, as_bytes("x"), false);
  RawClient deaf(served.server->socket_path());
  deaf.send("{\"protocol\":1,\"op\":\"version-diff\",\"volume\":\"vm1\",\"from\":\"1\"}\n");
  deaf.await_end();
  const json diff =
      served.client().ask_owner({{"op", "version-diff"}, {"volume", "vm1"}, {"from", "1"}}).value();
  CHECK(diff["ranges"].size() == 7'000);
}

TEST_CASE("more operations than are done at once wait for their turn, and a ping does not") {
  Served served(ControlLimits{.operations_max = 2});
  served.store->create_volume("vm1", 1 << 20, "");
  auto disk = served.store->open_export("vm1", kVm);
  disk->write(0, as_bytes("something to commit"), false);
  served.gate.close();
  std::atomic<int> done = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 5; ++i)
    threads.emplace_back([&] {
      if (served.client().ask_owner({{"op", "version-create"}, {"volume", "vm1"}})) ++done;
    });
  served.gate.await_somebody();
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
  CHECK(done == 0);
  served.gate.open();
  for (std::thread& thread : threads) thread.join();
  CHECK(done == 5);
}

TEST_CASE("many clients at once are all answered") {
  Served served;
  served.store->create_volume("vm1", 1 << 20, "");
  const auto disk = served.store->open_export("vm1", kVm);
  std::atomic<int> done = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 50; ++i)
    threads.emplace_back([&] {
      for (int j = 0; j < 4; ++j)
        if (served.client().ask_owner({{"op", "version-list"}, {"volume", "vm1"}})) ++done;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(done == 200);
}

TEST_CASE("a slow operation holds up nobody else, and stop() waits for it") {
  Served served;
  served.store->create_volume("vm1", 1 << 20, "");
  auto disk = served.store->open_export("vm1", kVm);
  disk->write(0, as_bytes("something to commit"), false);

  served.gate.close();
  json created;
  std::thread slow([&] {
    created = served.client().ask_owner({{"op", "version-create"}, {"volume", "vm1"}}).value();
  });
  served.gate.await_somebody();
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
  CHECK(served.client().ask_all({{"op", "stats"}})[0]["volumes"].size() == 1);
  std::thread stopping([&] { served.server->stop(); });
  served.gate.open();
  slow.join();
  stopping.join();
  CHECK(created["number"] == 1);
}

TEST_CASE("a server that is told to stop has left its store when it answers, and then ends") {
  Served s;
  s.server.reset();
  s.store->create_volume("vm1", 1 << 20, "");
  std::promise<void> ended;
  s.server.emplace(*s.store, s.directory, [](const std::string&) {});
  s.server->when_left([&] { ended.set_value(); });
  s.server->start();
  const auto disk = s.store->open_export("vm1", kVm);
  const std::vector<json> stopped = s.client().ask_all({{"op", "server-stop"}}, Patience::kEndless);
  CHECK(s.store->has_left());
  REQUIRE(stopped.size() == 1);
  CHECK(stopped[0]["pid"] == ::getpid());
  CHECK(stopped[0]["closed_volumes"] == 1);
  CHECK(stopped[0]["unclean_volumes"].empty());
  ended.get_future().wait();
  s.server->stop();
}

TEST_CASE("an operation that takes long is waited for, if the client says so") {
  Served served;
  served.store->create_volume("vm1", 1 << 20, "");
  auto disk = served.store->open_export("vm1", kVm);
  disk->write(0, as_bytes("something to commit"), false);
  constexpr auto kShort = std::chrono::milliseconds(300);
  const ControlClient client(served.memory, served.directory, kShort);
  const json request = {{"op", "version-create"}, {"volume", "vm1"}};

  served.gate.close();
  CHECK(error_code([&] { client.ask_owner(request); }) == ETIMEDOUT);
  std::optional<json> created;
  std::vector<json> reclaimed;
  std::thread owner([&] { created = client.ask_owner(request, Patience::kEndless); });
  std::thread all([&] { reclaimed = client.ask_all({{"op", "reclaim"}}, Patience::kEndless); });
  std::this_thread::sleep_for(2 * kShort);
  served.gate.open();
  owner.join();
  all.join();
  CHECK(created.value()["number"] == 2);  // the first one was made too
  CHECK(reclaimed.size() == 1);
}

TEST_CASE("however long it would wait, a client notices a server that hangs or refuses") {
  Unserved unserved;
  const ControlClient client = unserved.client(std::chrono::milliseconds(200));
  const FileDescriptor silent = unserved.listen();
  const json request = {{"op", "volume-flatten"}, {"volume", "vm1"}};
  CHECK(error_code([&] { client.ask_owner(request, Patience::kEndless); }) == ETIMEDOUT);
  CHECK(error_code([&] { client.ask_all(request, Patience::kEndless); }) == ETIMEDOUT);
  for (int i = 0; i < 2; ++i) FileDescriptor(::accept(silent.get(), nullptr, nullptr));

  std::thread server([&] {
    const FileDescriptor accepted(::accept(silent.get(), nullptr, nullptr));
    constexpr std::string_view kRefusal =
        R"({"protocol":1,"ok":false,"errno":13,"code":"EACCES","object":"control socket",)"
        R"("error":"no"})"
        "\n";
    CHECK(::send(accepted.get(), kRefusal.data(), kRefusal.size(), MSG_NOSIGNAL) > 0);
  });
  const ControlClient patient = unserved.client(kNotLong);
  CHECK(error_code([&] { patient.ask_owner(request, Patience::kEndless); }) == EACCES);
  server.join();
}

TEST_CASE("the socket is for one user, is removed at the end, and can be started again") {
  Served served;
  const std::string path = served.server->socket_path();
  CHECK(path.starts_with(served.directory + "/"));
  CHECK(served.memory.list("servers").size() == 1);
  CHECK(mode_of(path) == 0600);
  RawClient connected(path);

  served.server->stop();
  CHECK(connected.receive().is_null());
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK(served.memory.list("servers").empty());
  CHECK(served.client().ask_all({{"op", "ping"}}).empty());
  served.server->stop();
  served.server->start();
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
}

TEST_CASE("another user is refused, even if he reaches the socket") {
  if (::geteuid() != 0) return;  // nobody else can be played
  Served served;
  REQUIRE(::chmod(served.directory.c_str(), 0711) == 0);
  REQUIRE(::chmod(served.server->socket_path().c_str(), 0666) == 0);
  json answer;
  std::thread([&] {
    // Of this thread alone, which the library's setresuid() does not do.
    REQUIRE(::syscall(SYS_setresuid, 65534, 65534, 65534) == 0);
    RawClient client(served.server->socket_path());
    REQUIRE(client.is_connected());
    answer = client.ask(kPing);
  }).join();
  CHECK(answer["code"] == "EACCES");
}

TEST_CASE("a stale socket is replaced by a server") {
  Served served;
  const std::string own = served.server->socket_path();
  served.server->stop();
  { const FileDescriptor dead = listening_socket(own); }
  { const FileDescriptor dead = listening_socket(own + ".new"); }
  served.server->start();
  CHECK(served.server->socket_path() == own);
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
}

TEST_CASE("on storage that hosts may share a server signs its object as long as it runs") {
  Served served;
  served.server->stop();
  served.memory.set_kind({"NFS", StorageKind::Reach::kHosts});
  for (int i = 0; i < 3; ++i) {
    served.server->start();
    const std::vector<std::string> objects = served.memory.list("servers");
    REQUIRE(objects.size() == 1);
    while (!to_text(served.memory.content("servers/" + objects[0])).ends_with("0001\n"))
      std::this_thread::yield();
    CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
    served.server->stop();
    CHECK(served.memory.list("servers").empty());
  }
}

TEST_CASE("on a full disk a server is found by those who have its run directory") {
  Served served;
  served.server->stop();
  served.memory.set_capacity_bytes(served.memory.allocated_bytes());
  served.server->start();
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
}

TEST_CASE("two servers that think they have the same pid both get a socket") {
  Served served;
  ControlServer other(*served.store, served.directory, [](const std::string&) {});
  other.start();
  CHECK(other.socket_path() != served.server->socket_path());
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 2);
  other.stop();
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
}

TEST_CASE("the path of a run directory may be longer than a socket's address") {
  Served served;
  served.server->stop();
  const std::string deep =
      served.directory + "/" + std::string(100, 'a') + "/" + std::string(200, 'b');
  std::filesystem::create_directories(deep);
  ControlServer server(*served.store, deep, [](const std::string&) {});
  server.start();
  // The store leads there, whatever the client's own run directory is.
  CHECK(served.client().ask_all({{"op", "ping"}}).size() == 1);
}

TEST_CASE("a server that does not answer in time, ends, or talks nonsense is an error") {
  Unserved unserved;
  const ControlClient client = unserved.client(std::chrono::milliseconds(200));
  const json ping = {{"op", "ping"}};
  const json show = {{"op", "volume-show"}, {"volume", "vm1"}};
  CHECK(client.ask_all(ping).empty());
  CHECK_FALSE(client.ask_owner(show).has_value());

  const FileDescriptor silent = unserved.listen();
  CHECK(error_code([&] { client.ask_owner(show); }) == ETIMEDOUT);
  CHECK(error_code([&] { client.ask_all(ping); }) == ETIMEDOUT);
  // The two connections above, which nobody accepted.
  for (int i = 0; i < 2; ++i) FileDescriptor(::accept(silent.get(), nullptr, nullptr));

  const auto answer_once = [&](std::string_view text) {
    return std::thread([&silent, text] {
      const FileDescriptor accepted(::accept(silent.get(), nullptr, nullptr));
      char request[1000];
      CHECK(::recv(accepted.get(), request, sizeof request, 0) > 0);
      CHECK(::send(accepted.get(), text.data(), text.size(), MSG_NOSIGNAL) >= 0);
    });
  };
  const ControlClient patient = unserved.client(kNotLong);
  struct {
    const char* text;
    int code;
  } const cases[] = {
      {"", ECONNRESET},
      {R"({"protocol":1,"ok":true)", ECONNRESET},
      {"nonsense\n", EPROTO},
      {"[]\n", EPROTO},
      {"{}\n", EPROTO},
      {"{\"ok\":true,\"result\":{}}\n", EPROTO},  // of a release without protocols
      {"{\"protocol\":2,\"ok\":true,\"result\":{}}\n", EPROTO},
      {"{\"protocol\":1,\"ok\":1}\n", EPROTO},
      {"{\"protocol\":1,\"ok\":true}\n", EPROTO},
      {"{\"protocol\":1,\"ok\":true,\"result\":[]}\n", EPROTO},
      {"{\"protocol\":1,\"ok\":true,\"code\":\"ENOENT_OPEN\",\"result\":[]}\n", EPROTO},
      {"{\"protocol\":1,\"ok\":false}\n", EPROTO},
      {R"({"protocol":1,"ok":false,"errno":"x","code":"","object":"","error":"y"})"
       "\n",
       EPROTO},
      {R"({"protocol":1,"ok":false,"errno":4294967324,"code":"","object":"","error":"y"})"
       "\n",
       EPROTO},
      {R"({"protocol":1,"ok":false,"errno":28,"code":"ENOSPC","object":"","error":"full"})"
       "\n",
       ENOSPC}};
  for (const auto& [text, code] : cases) {
    CAPTURE(text);
    std::thread server = answer_once(text);
    CHECK(error_code([&] { patient.ask_owner(show); }) == code);
    server.join();
  }
  std::string deep = R"({"protocol":1,"ok":true,"result":)" + std::string(1 << 20, '[') + "\n";
  std::thread server = answer_once(deep);
  CHECK(error_code([&] { patient.ask_owner(show); }) == EPROTO);
  server.join();
}

// All places in a JSON value.
void collect_places(const json& value, const json::json_pointer& here,
                    std::vector<json::json_pointer>& into) {
  if (!here.empty()) into.push_back(here);
  if (value.is_object())
    for (const auto& [key, part] : value.items()) collect_places(part, here / key, into);
  if (value.is_array())
    for (size_t i = 0; i < value.size(); ++i) collect_places(value[i], here / i, into);
}

TEST_CASE("the result of every request is what it is said to be, and nothing else is accepted") {
  Served served;
  served.store->create_volume("vm1", 1 << 20, "");
  auto disk = served.store->open_export("vm1", kVm);
  disk->write(0, as_bytes("first"), true);
  const json about = {{"volume", "vm1"}};
  const auto request = [&](const char* op, json more = json::object()) {
    json whole = {{"op", op}, {"volume", "vm1"}};
    whole.update(more);
    return whole;
  };
  const json requests[] = {request("version-create", {{"name", "clean"}, {"note", "so so"}}),
                           request("version-create"),
                           request("volume-show"),
                           request("version-list"),
                           request("volume-resize", {{"size", 2 << 20}}),
                           request("version-diff", {{"from", "1"}}),
                           request("volume-fork", {{"version", "1"}, {"name", "vm2"}, {"size", 0}}),
                           request("volume-show"),
                           request("volume-reclaim"),
                           request("version-rm", {{"versions", {"1", "2"}}}),
                           request("lock-show"),
                           request("volume-handover", {{"to", "b"}, {"seconds", 60}}),
                           request("volume-handover-cancel"),
                           request("lock-break", {{"epoch", 1}}),
                           request("stats"),
                           request("ping"),
                           request("reclaim")};
  for (const json& one : requests) {
    CAPTURE(one.dump());
    json asked = one;
    asked["protocol"] = control::kProtocol;
    const json answer =
        control::parse_answer("server", one, answer_control_request(*served.store, asked.dump()));
    CAPTURE(answer.dump());
    REQUIRE(answer["ok"] == true);
    const json& result = answer["result"];
    CHECK_NOTHROW(control::check_result("server", one, result));
    CHECK_THROWS_AS(control::check_result("server", one, nullptr), Error);

    std::vector<json::json_pointer> places;
    collect_places(result, json::json_pointer(), places);
    for (const json::json_pointer& place : places) {
      // Nobody has a use for these.
      const std::string key = place.back();
      if (place.to_string().starts_with("/cache") || place.to_string().starts_with("/tier") ||
          place.to_string().starts_with("/boot_cache") || key == "host_id" || key == "boot_id" ||
          key == "server_start_time")
        continue;
      CAPTURE(place.to_string());
      for (const json& wrong : {json(-1), json(1.5), json::array({json::object()}), json(false)}) {
        CAPTURE(wrong.dump());
        json changed = result;
        if (changed[place].type() == wrong.type()) continue;
        changed[place] = wrong;
        CHECK_THROWS_AS(control::check_result("server", one, changed), Error);
      }
      if (result.at(place.parent_pointer()).is_array()) continue;
      json changed = result;
      (place.parent_pointer().empty() ? changed : changed[place.parent_pointer()]).erase(key);
      CHECK_THROWS_AS(control::check_result("server", one, changed), Error);
    }
  }
}

TEST_CASE("a history that goes round, or has no current version, is not accepted") {
  Served served;
  served.store->create_volume("vm1", 1 << 20, "");
  auto disk = served.store->open_export("vm1", kVm);
  for (int i = 0; i < 3; ++i) served.store->create_version("vm1", {});
  const json request = {{"op", "volume-show"}, {"volume", "vm1"}};
  const json shown = served.client().ask_owner(request).value();
  const auto refuses = [&](const char* place, const json& value) {
    json changed = shown;
    changed[json::json_pointer(place)] = value;
    CHECK(error_code([&] { control::check_result("server", request, changed); }) == EPROTO);
  };
  refuses("/versions", json::array());
  refuses("/versions/1/parent", 2);
  refuses("/versions/1/parent", 3);
  refuses("/versions/1/number", 1);
  refuses("/versions/1/number", uint64_t{1} << 32);
  refuses("/versions/3/current", false);
  refuses("/versions/2/current", true);
  refuses("/versions/3/hidden", true);
  refuses("/versions/0/created", "9999-12-31T23:59:59Z");
  refuses("/versions/0/name", "\x1b[2J");
  refuses("/name", "vm2");
  refuses("/size", uint64_t{1} << 63);
}

TEST_CASE("the counters of several servers are added up") {
  StoreStats a, b;
  a.map_cache_bytes = 10;
  a.map_cache_max_bytes = b.map_cache_max_bytes = 100;
  VolumeStats volume;
  volume.name = "vm2";
  volume.usage = {3, 100, 200, 300};
  volume.size_bytes = 4096;
  volume.counters[size_t(Counter::kReads)] = 5;
  volume.map.log_bytes = 7;
  a.volumes = {volume};
  volume.usage = {4, 90, 200, 300};
  volume.counters[size_t(Counter::kReads)] = 6;
  b.volumes = {volume};
  volume.name = "vm1";
  b.volumes.push_back(volume);

  const json merged = merge_stats({stats_json(a), stats_json(b), json("nonsense"), json::object()});
  REQUIRE(merged["volumes"].size() == 2);
  CHECK(merged["volumes"][0]["name"] == "vm1");
  const json& both = merged["volumes"][1];
  CHECK(both["name"] == "vm2");
  CHECK(both["requests"]["reads"] == 11);
  CHECK(both["current_version"] == 4);
  CHECK(both["space"]["unique_bytes"] == 100);
  CHECK(both["size"] == 4096);
  CHECK(merged["map"]["bytes"] == 10);
  CHECK(merged["map"]["max_bytes"] == 200);
  CHECK(merged["log"]["bytes"] == 21);
  CHECK(merged["cache"]["enabled"] == false);
  CHECK(merged["tier"]["enabled"] == false);
  CHECK(merge_stats({})["volumes"] == json::array());
}

}  // namespace tplstore::control_test
