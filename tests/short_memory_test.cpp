// A server that is short of memory goes on. Each case runs in a process of its own.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "backend/dir/dir_backend.h"
#include "backend/dir/io_ring.h"
#include "control/server.h"
#include "map/map_log.h"
#include "store/store.h"
#include "temporary_directory.h"
#include "volume_testing.h"

namespace {
std::atomic<bool> is_everybody_exposed{false};
std::atomic<int64_t> failures_left{0};
std::atomic<std::size_t> largest{0};  // of what was allocated
thread_local bool is_exposed = false;

void* allocate(std::size_t size) {
  if ((is_exposed || is_everybody_exposed.load()) && failures_left.load() > 0 &&
      failures_left.fetch_sub(1) > 0)
    throw std::bad_alloc();
  if (size > largest.load()) largest = size;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return allocate(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace tplstore {
namespace {

// The signal that ends a process which does `work`, or 0.
int signal_of(const std::function<void()>& work) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    work();
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

}  // namespace

TEST_CASE("one failed allocation while a ring is made ends no server") {
  CHECK(signal_of([] {
          IoRingPool pool;
          char buffers[2][512];
          const int fd = open("/proc/self/exe", O_RDONLY);
          IoOp ops[] = {IoOp::read(fd, 0, std::as_writable_bytes(std::span(buffers[0])), false),
                        IoOp::read(fd, 4096, std::as_writable_bytes(std::span(buffers[1])), false)};
          failures_left = 1;
          is_exposed = true;
          pool.run_batch(ops);
          is_exposed = false;
        }) == 0);
}

TEST_CASE("no memory while a control request is answered ends no server") {
  CHECK(signal_of([] {
          auto memory = memory_store();
          Store store(std::move(memory), {});
          failures_left = 1'000;
          is_exposed = true;
          try {
            answer_control_request(store, R"({"protocol":1,"op":"stats"})");
          } catch (const std::bad_alloc&) {
          }
          is_exposed = false;
        }) == 0);
}

TEST_CASE("two failed allocations in the control thread end no server") {
  const TemporaryDirectory directory;
  CHECK(signal_of([&] {
          auto memory = memory_store();
          Store store(std::move(memory), {});
          ControlServer server(store, directory.path(), [](const std::string&) {});
          server.start();
          const std::string path = server.socket_path();
          const int client = socket(AF_UNIX, SOCK_STREAM, 0);
          sockaddr_un address{};
          address.sun_family = AF_UNIX;
          path.copy(address.sun_path, sizeof address.sun_path - 1);
          if (connect(client, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) _exit(9);
          failures_left = 2;
          is_everybody_exposed = true;
          if (send(client, "{", 1, 0) != 1) _exit(8);
          // The control thread has met them when the connection is gone, or the server.
          char byte;
          [[maybe_unused]] const ssize_t count = recv(client, &byte, 1, 0);
          is_everybody_exposed = false;
        }) == 0);
}

TEST_CASE("a frame of the map log that says it is huge takes no memory for it") {
  const TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, [](const std::string&) {});
  const Uuid volume = random_uuid();
  LogPosition end{};
  FrameHeader header{};
  {
    const auto log = MapLog::create(backend, "v", volume, 1);
    log->start_writing(MapLog::start());
    log->read(log->position().offset - kSectorBytes, std::as_writable_bytes(std::span(&header, 1)));
    end = log->position();
    log->sync();
  }
  header.previous = end.checksum;
  header.sequence = end.sequence + 1;
  header.kind = static_cast<uint16_t>(FrameKind::kUpdates);
  const auto object = backend.open(MapLog::object_name("v", 1), Access::kWrite, Purpose::kMetadata);
  object->grow(uint64_t{2} << 30);
  for (const uint32_t length : {uint32_t{512} << 20, uint32_t{1536} << 20}) {
    CAPTURE(length);
    header.length = length;
    header.payload_bytes = length - static_cast<uint32_t>(sizeof header);
    object->write(end.offset, bytes_of(header));
    const auto log = MapLog::open(backend, "v", volume, 1, Access::kRead);
    largest = 0;
    CHECK(log->scan(MapLog::start(), 0, [](const LogFrame&) {}).offset == end.offset);
    LogPosition after{};
    CHECK_THROWS_AS(log->read_frame(end.offset, FrameKind::kUpdates, after), Error);
    CHECK(largest.load() < 16 << 20);
  }
}

}  // namespace tplstore
