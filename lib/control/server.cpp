// One thread polls all connections; requests that may take long run on a few others, and their
// answers come back through an event.
#include "control/server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "base/version.h"
#include "control/json_output.h"
#include "control/operations.h"
#include "control/protocol.h"
#include "control/servers.h"
#include "control/socket.h"

namespace tplstore {
namespace {

using nlohmann::json;

// So long the listener is left alone when there are no descriptors or memory for a connection.
constexpr auto kAcceptPause = std::chrono::milliseconds(100);
// What is still to be sent when the server stops must be taken this soon.
constexpr auto kLastAnswerTimeout = std::chrono::seconds(1);

json error_answer(int code, std::string_view name, std::string_view object,
                  std::string_view message) {
  return {{"protocol", control::kProtocol},
          {"ok", false},
          {"errno", code},
          {"code", name},
          {"object", object},
          {"error", message}};
}

json error_answer(const Error& error) {
  const char* name = strerrorname_np(error.code());
  return error_answer(error.code(), name ? name : "EIO", error.object(), error.what());
}

// The whole answer to a request, but for what goes wrong.
json perform(Store& store, const json& request) {
  if (!request.is_object()) fail(EINVAL, "control request", "it is not a JSON object");
  const auto protocol = request.find("protocol");
  if (!control::is_for_ever(request) &&
      (protocol == request.end() || *protocol != control::kProtocol))
    fail(EPROTO, "control request",
         "it is of another release's protocol, and this server (tplstore {}) speaks protocol {}: "
         "use the tplstore that belongs to it, or restart it",
         std::string(kProgramVersion), control::kProtocol);
  const control::Operation& operation = control::operation_of(request);
  if (operation.concerns_volume) {
    const std::string volume = control::volume_of(request);
    if (!store.is_open(volume))
      return error_answer(ENOENT, control::kCodeNotOpen, volume,
                          volume + ": this server does not have it open");
  }
  return {
      {"protocol", control::kProtocol}, {"ok", true}, {"result", control::perform(store, request)}};
}

bool is_allowed(int socket) {
  const auto peer = control::peer_of(socket);
  return peer && (peer->uid == 0 || peer->uid == ::geteuid());
}

}  // namespace

std::string answer_control_request(Store& store, std::string_view request) noexcept {
  try {
    json answer;
    try {
      const json parsed = json::parse(request, nullptr, /*allow_exceptions=*/false);
      if (parsed.is_discarded()) fail(EINVAL, "control request", "it is not JSON");
      answer = perform(store, parsed);
    } catch (const Error& error) {
      answer = error_answer(error);
    } catch (const std::exception& error) {
      answer = error_answer(EIO, "EIO", "control request", error.what());
    }
    return json_text(answer);
  } catch (...) {
    return {};  // not even that can be said
  }
}

namespace {

// Of those that the server itself must know.
bool is_request(std::string_view request, const char* operation) {
  constexpr size_t kBytesMax = 256;
  if (request.size() > kBytesMax) return false;
  const json parsed = json::parse(request, nullptr, /*allow_exceptions=*/false);
  return parsed.is_object() && parsed.contains("op") && parsed["op"] == operation;
}

}  // namespace

// Runs operations on up to `threads_max` threads, which are started as they are needed.
class OperationThreads {
 public:
  struct Job {
    uint64_t id;
    std::string request;
    std::string answer;
  };

  // `finished` is called on an operation's thread, when there is an answer to be taken.
  OperationThreads(Store& store, size_t threads_max, std::function<void()> finished)
      : store_(store), threads_max_(threads_max), finished_(std::move(finished)) {}
  ~OperationThreads() { stop(); }

  void begin(uint64_t id, std::string request) {
    std::list<Job> job;
    job.push_back({id, std::move(request), ""});
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= idle_ && threads_.size() < threads_max_) {
      try {
        threads_.emplace_back([this] { run(); });
      } catch (const std::system_error&) {
        // Those that there are do it later.
        if (threads_.empty()) throw;
      }
    }
    waiting_.splice(waiting_.end(), job);
    changed_.notify_one();
  }

  // Jobs that have their answers.
  std::list<Job> take_done() {
    const std::lock_guard lock(mutex_);
    return std::exchange(done_, {});
  }

  // Lets those that have begun end; the others are dropped.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
      changed_.notify_all();
    }
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  // Allocates nothing, so that a job that was done is always answered.
  void run() {
    std::list<Job> job;
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      changed_.wait(lock, [&] { return is_stopping_ || !waiting_.empty(); });
      --idle_;
      if (is_stopping_) return;
      job.splice(job.end(), waiting_, waiting_.begin());
      lock.unlock();
      job.front().answer = answer_control_request(store_, job.front().request);
      lock.lock();
      done_.splice(done_.end(), job);
      finished_();
    }
  }

  Store& store_;
  const size_t threads_max_;
  const std::function<void()> finished_;

  std::mutex mutex_;
  std::condition_variable changed_;  // there is something to do, or is_stopping_
  std::list<Job> waiting_;
  std::list<Job> done_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool is_stopping_ = false;
};

namespace {

void signal_event(const FileDescriptor& event) {
  const uint64_t one = 1;
  ensure(::write(event.get(), &one, sizeof one) == sizeof one, "an eventfd takes a 1");
}

FileDescriptor new_event() {
  FileDescriptor event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) fail_errno(errno, "control socket", "eventfd");
  return event;
}

}  // namespace

struct ControlServer::Impl {
  struct Connection {
    FileDescriptor socket;
    enum class State { kRequest, kOperation, kAnswer } state = State::kRequest;
    control::Clock::time_point began{};
    control::Clock::time_point deadline{};
    std::string request;
    std::string answer;
    size_t sent_bytes = 0;
    bool is_done = false;
    bool may_leave = false;  // it has asked for the server's end
  };
  using State = Connection::State;

  Store& store;
  std::string directory;
  Log log;
  ControlLimits limits;
  std::function<void()> left = [] {};

  FileDescriptor listener;
  FileDescriptor stop_event;
  FileDescriptor answer_event;
  std::unique_ptr<control::Announcement> announcement;
  std::unique_ptr<control::NeighbourWatch> neighbours;  // where there may be other hosts
  std::thread thread;

  // Of the thread alone.
  bool has_left = false;                       // the store, and who asked for that has been told
  std::map<uint64_t, Connection> connections;  // by age
  uint64_t last_id = 0;
  control::Clock::time_point accept_at{};
  std::unique_ptr<OperationThreads> operations;

  Impl(Store& the_store, std::string the_directory, Log the_log, ControlLimits the_limits)
      : store(the_store),
        directory(std::move(the_directory)),
        log(std::move(the_log)),
        limits(the_limits) {}

  void run();
  void say(const char* what, const std::exception& error) const noexcept;
  void run_once();
  void finish();
  void accept_one();
  Connection* find_oldest_silent();
  void receive(uint64_t id, Connection& connection);
  void begin_answer(Connection& connection, std::string text);
  void send(Connection& connection);
  void take_answers();
  // Ends those that are done, and those whose time is over.
  void close_connections();
};

ControlServer::Impl::Connection* ControlServer::Impl::find_oldest_silent() {
  for (auto& [id, connection] : connections)
    if (connection.state == State::kRequest) return &connection;
  return nullptr;
}

void ControlServer::Impl::accept_one() {
  FileDescriptor socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  const auto now = control::Clock::now();
  if (!socket) {
    // Out of descriptors or memory: the client stays in the backlog. Whoever ends frees some.
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
      accept_at = now + kAcceptPause;
    return;
  }
  Connection& connection = connections[++last_id];
  connection.socket = std::move(socket);
  connection.began = now;
  connection.deadline = now + limits.request_timeout;
  if (!is_allowed(connection.socket.get()))
    begin_answer(connection,
                 json_text(error_answer(EACCES, "EACCES", "control socket",
                                        "only the server's own user and root may use it")));
}

void ControlServer::Impl::receive(uint64_t id, Connection& connection) {
  char chunk[16384];
  const ssize_t count = ::recv(connection.socket.get(), chunk, sizeof chunk, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) {
    connection.is_done = true;
    return;
  }
  const std::string_view fresh(chunk, static_cast<size_t>(count));
  const size_t end = fresh.find('\n');
  connection.request += fresh.substr(0, end);
  if (connection.request.size() > control::kRequestBytesMax) {
    begin_answer(connection, json_text(error_answer(EINVAL, "EINVAL", "control request",
                                                    "it is longer than 64 KiB")));
  } else if (end == std::string_view::npos) {
    return;
  } else if (is_request(connection.request, "ping")) {
    // Its answer needs nothing of the store, so it is given without waiting for an operation to
    // end.
    begin_answer(connection, answer_control_request(store, connection.request));
  } else {
    connection.may_leave = is_request(connection.request, "server-stop");
    operations->begin(id, std::move(connection.request));
    connection.state = State::kOperation;
    connection.deadline = control::Clock::time_point::max();
  }
}

void ControlServer::Impl::begin_answer(Connection& connection, std::string text) {
  connection.state = State::kAnswer;
  connection.deadline = control::Clock::now() + limits.answer_timeout;
  connection.answer = std::move(text) + "\n";
  send(connection);
}

void ControlServer::Impl::send(Connection& connection) {
  const std::string_view rest = std::string_view(connection.answer).substr(connection.sent_bytes);
  const ssize_t count =
      ::send(connection.socket.get(), rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (count < 0) {
    connection.is_done = errno != EAGAIN && errno != EINTR;
    return;
  }
  connection.sent_bytes += static_cast<size_t>(count);
  connection.is_done = connection.sent_bytes == connection.answer.size();
}

void ControlServer::Impl::take_answers() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t taken = ::read(answer_event.get(), &count, sizeof count);
  for (OperationThreads::Job& job : operations->take_done()) {
    const auto found = connections.find(job.id);
    if (found == connections.end()) continue;
    Connection& connection = found->second;
    try {
      connection.is_done = job.answer.empty();
      if (!connection.is_done) begin_answer(connection, std::move(job.answer));
    } catch (const std::exception&) {
      connection.is_done = true;  // the client learns that it has no answer
    }
  }
}

void ControlServer::Impl::close_connections() {
  const auto now = control::Clock::now();
  std::erase_if(connections, [&](auto& entry) {
    const Connection& connection = entry.second;
    if (!connection.is_done && now < connection.deadline) return false;
    has_left = has_left || (connection.may_leave && store.has_left());
    ::shutdown(connection.socket.get(), SHUT_RDWR);
    return true;
  });
}

// Waits until something can be done, and does all that can be done without waiting.
void ControlServer::Impl::run_once() {
  auto wake_at = control::Clock::time_point::max();
  const auto now = control::Clock::now();
  bool may_accept = now >= accept_at;
  if (!may_accept) wake_at = accept_at;
  if (may_accept && connections.size() >= limits.connections_max) {
    // The one that has been silent for the longest time makes room, unless it has come just now.
    Connection* silent = find_oldest_silent();
    may_accept = silent != nullptr && now >= silent->began + limits.young;
    if (silent != nullptr && !may_accept) wake_at = silent->began + limits.young;
  }

  std::vector<pollfd> polled = {{stop_event.get(), POLLIN, 0},
                                {answer_event.get(), POLLIN, 0},
                                {may_accept ? listener.get() : -1, POLLIN, 0}};
  std::vector<uint64_t> ids;
  for (const auto& [id, connection] : connections) {
    wake_at = std::min(wake_at, connection.deadline);
    if (connection.state == State::kOperation) continue;
    const short events = connection.state == State::kRequest ? POLLIN : POLLOUT;
    polled.push_back({connection.socket.get(), events, 0});
    ids.push_back(id);
  }
  if (::poll(polled.data(), polled.size(), control::milliseconds_until(wake_at)) < 0) return;

  if (polled[1].revents != 0) take_answers();
  for (size_t i = 0; i < ids.size(); ++i) {
    if (polled[3 + i].revents == 0) continue;
    Connection& connection = connections.at(ids[i]);
    if (connection.state == State::kRequest)
      receive(ids[i], connection);
    else
      send(connection);
  }
  close_connections();
  if (polled[2].revents == 0) return;
  if (connections.size() >= limits.connections_max) {
    Connection* silent = find_oldest_silent();
    if (silent == nullptr) return;
    silent->is_done = true;
    close_connections();
  }
  accept_one();
}

// Operations in progress end, and their answers are sent if somebody takes them.
void ControlServer::Impl::finish() {
  listener = FileDescriptor();
  operations->stop();
  take_answers();
  const auto deadline = control::Clock::now() + kLastAnswerTimeout;
  for (auto& [id, connection] : connections) {
    connection.is_done = connection.is_done || connection.state != State::kAnswer;
    while (!connection.is_done) {
      pollfd polled = {connection.socket.get(), POLLOUT, 0};
      if (::poll(&polled, 1, control::milliseconds_until(deadline)) == 0) break;
      send(connection);
    }
    connection.is_done = true;
  }
  close_connections();
}

void ControlServer::Impl::say(const char* what, const std::exception& error) const noexcept {
  try {
    log(fmt::format("control socket: {}: {}", what, error.what()));
  } catch (const std::exception&) {
    // There is no memory for a line.
  }
}

void ControlServer::Impl::run() {
  pollfd stop = {stop_event.get(), POLLIN, 0};
  while (::poll(&stop, 1, 0) == 0 && !has_left) {
    try {
      run_once();
    } catch (const std::exception& error) {
      // Memory or threads were short, for one of them: no client waits for what may never come.
      say("connections dropped", error);
      for (auto& [id, connection] : connections)
        connection.is_done = connection.state != State::kOperation;
      close_connections();
    }
  }
  if (has_left) left();
  try {
    finish();
  } catch (const std::exception& error) {
    say("the last answers were not sent", error);
  }
}

ControlServer::ControlServer(Store& store, std::string directory, Log log, ControlLimits limits)
    : impl_(std::make_unique<Impl>(store, std::move(directory), std::move(log), limits)) {}

ControlServer::~ControlServer() { stop(); }

void ControlServer::start() {
  Impl& impl = *impl_;
  ensure(!impl.thread.joinable(), "a control server is started once");
  impl.announcement = std::make_unique<control::Announcement>(impl.store.backend(), impl.directory);
  const FileDescriptor folder(::open(impl.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder) fail_errno(errno, impl.directory, "opening the folder of control sockets");
  impl.listener = control::listen_at(folder.get(), impl.announcement->place().socket);
  impl.stop_event = new_event();
  impl.answer_event = new_event();
  impl.operations = std::make_unique<OperationThreads>(
      impl.store, impl.limits.operations_max, [&impl] { signal_event(impl.answer_event); });

  // Signals are for the threads of the program that we are part of.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    if (impl.store.backend().kind().reach != StorageKind::Reach::kOneHost)
      impl.neighbours = std::make_unique<control::NeighbourWatch>(impl.store.backend(),
                                                                  *impl.announcement, impl.log);
    impl.thread = std::thread([&impl] { impl.run(); });
  } catch (const std::system_error&) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    fail(EAGAIN, "control socket", "cannot start a thread");
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ControlServer::stop() {
  Impl& impl = *impl_;
  if (!impl.thread.joinable()) return;
  impl.neighbours.reset();
  impl.announcement.reset();
  signal_event(impl.stop_event);
  impl.thread.join();
  auto next = std::make_unique<Impl>(impl.store, impl.directory, impl.log, impl.limits);
  next->left = std::move(impl.left);
  impl_ = std::move(next);
}

void ControlServer::when_left(std::function<void()> left) { impl_->left = std::move(left); }

std::string ControlServer::socket_path() const {
  return impl_->thread.joinable() ? impl_->announcement->place().path() : "";
}

}  // namespace tplstore
