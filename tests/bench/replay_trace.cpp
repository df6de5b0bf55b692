// Replays what a guest asked of its disk, over NBD, for many guests at once:
//
//   replay_trace [--reads] [--depth N] [--hold] [--shift BYTES] TRACE URI...
//
// A line of TRACE is "R OFFSET LENGTH", "W OFFSET LENGTH", "T OFFSET LENGTH" (trim), "Z OFFSET
// LENGTH" (zero) or "F" (flush). Each URI gets a thread and a connection of its own, and sends all
// of it in order, without pauses, N requests at a time (1). With --reads it sends the reads only.
// What is written is the offset, again and again; where a server has no trim or zero, it does as
// guests do: nothing, and writes zeroes. With --hold the connections stay until the standard input
// ends. With --shift the n-th disk has all so many times n bytes further behind, and its first
// block is read first, as firmware does. Prints one line of JSON: how long the slowest and the
// fastest of them took, from before the first connection; and what 99 of 100 requests took at most,
// where N is 1.
#include <fmt/format.h>
#include <libnbd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <latch>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// A zeroing, where the server has none.
constexpr char kWriteZeroes = '0';

struct Request {
  char kind;
  uint64_t offset;
  uint64_t length;
};

[[noreturn]] void die(const std::string& what) {
  fmt::print(stderr, "replay_trace: {}\n", what);
  std::_Exit(1);
}

std::vector<Request> read_trace(const char* path, bool reads_only) {
  std::ifstream file(path);
  std::vector<Request> trace;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    Request request{};
    words >> request.kind >> request.offset >> request.length;
    if (std::strchr("RWTZF", request.kind) == nullptr) die("not a trace: " + line);
    if (!reads_only || request.kind == 'R') trace.push_back(request);
  }
  if (trace.empty()) die(fmt::format("{}: no requests", path));
  return trace;
}

struct Disk {
  nbd_handle* nbd = nullptr;
  double seconds = 0;
  std::vector<double> took{};  // each request, with a depth of 1
};

void replay(std::vector<Request> trace, const char* uri, size_t depth, uint64_t shift, Disk& disk) {
  nbd_handle* nbd = nbd_create();
  const auto check = [&](int64_t result) {
    if (result == -1) die(fmt::format("{}: {}", uri, nbd_get_error()));
    return result;
  };
  check(nbd_connect_uri(nbd, uri));
  const bool can_zero = check(nbd_can_zero(nbd)) == 1;
  if (check(nbd_can_trim(nbd)) == 0)
    std::erase_if(trace, [](const Request& request) { return request.kind == 'T'; });
  for (Request& request : trace) {
    request.offset += shift;
    if (request.kind == 'Z' && !can_zero) request.kind = kWriteZeroes;
  }
  if (shift != 0) trace.insert(trace.begin(), Request{'R', 0, 4096});
  uint64_t longest = 0;
  for (const Request& request : trace) longest = std::max(longest, request.length);
  std::vector<std::vector<char>> buffers(depth, std::vector<char>(longest));
  std::vector<int64_t> cookies(depth, 0);
  size_t next = 0;
  const auto await = [&](size_t slot) {
    while (cookies[slot] != 0) {
      if (check(nbd_aio_command_completed(nbd, cookies[slot])) == 1)
        cookies[slot] = 0;
      else
        check(nbd_poll(nbd, -1));
    }
  };
  for (const Request& request : trace) {
    // A guest waits for what it has under way before it flushes.
    if (request.kind == 'F')
      for (size_t slot = 0; slot < depth; ++slot) await(slot);
    const size_t slot = next++ % depth;
    await(slot);
    const auto begin = Clock::now();
    char* data = buffers[slot].data();
    if (request.kind == 'W')
      for (uint64_t at = 0; at + 8 <= request.length; at += 512) {
        const uint64_t word = request.offset + at;
        std::memcpy(data + at, &word, sizeof(word));
      }
    else if (request.kind == kWriteZeroes)
      std::memset(data, 0, request.length);
    switch (request.kind) {
      case 'R':
        cookies[slot] =
            check(nbd_aio_pread(nbd, data, request.length, request.offset, NBD_NULL_COMPLETION, 0));
        break;
      case 'W':
      case kWriteZeroes:
        cookies[slot] = check(
            nbd_aio_pwrite(nbd, data, request.length, request.offset, NBD_NULL_COMPLETION, 0));
        break;
      case 'T':
        cookies[slot] =
            check(nbd_aio_trim(nbd, request.length, request.offset, NBD_NULL_COMPLETION, 0));
        break;
      case 'Z':
        cookies[slot] =
            check(nbd_aio_zero(nbd, request.length, request.offset, NBD_NULL_COMPLETION, 0));
        break;
      default:
        cookies[slot] = check(nbd_aio_flush(nbd, NBD_NULL_COMPLETION, 0));
    }
    if (depth > 1) continue;
    await(slot);
    disk.took.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  for (size_t slot = 0; slot < depth; ++slot) await(slot);
  disk.nbd = nbd;
}

}  // namespace

int main(int argc, char** argv) {
  bool reads_only = false;
  bool holds = false;
  size_t depth = 1;
  uint64_t shift = 0;
  int first = 1;
  for (; first < argc && argv[first][0] == '-'; ++first) {
    if (std::strcmp(argv[first], "--reads") == 0) {
      reads_only = true;
    } else if (std::strcmp(argv[first], "--hold") == 0) {
      holds = true;
    } else if (std::strcmp(argv[first], "--depth") == 0 && first + 1 < argc) {
      depth = std::max<size_t>(1, std::strtoul(argv[++first], nullptr, 10));
    } else if (std::strcmp(argv[first], "--shift") == 0 && first + 1 < argc) {
      shift = std::strtoull(argv[++first], nullptr, 10);
    } else {
      die(fmt::format("{} is no option", argv[first]));
    }
  }
  if (argc - first < 2) die("usage: replay_trace [--reads] [--depth N] TRACE URI...");
  const std::vector<Request> trace = read_trace(argv[first], reads_only);
  const int clients = argc - first - 1;
  std::vector<Disk> disks(static_cast<size_t>(clients));
  std::latch ready(clients + 1);
  Clock::time_point begin;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < clients; ++i)
      threads.emplace_back([&, i] {
        ready.arrive_and_wait();
        Disk& disk = disks[static_cast<size_t>(i)];
        replay(trace, argv[first + 1 + i], depth, shift * static_cast<uint64_t>(i), disk);
        disk.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      });
    begin = Clock::now();
    ready.arrive_and_wait();
  }
  const auto [fastest, slowest] = std::ranges::minmax(disks, {}, &Disk::seconds);
  std::vector<double> took;
  for (const Disk& disk : disks) took.insert(took.end(), disk.took.begin(), disk.took.end());
  std::ranges::sort(took);
  fmt::print("{{\"seconds\": {:.4f}, \"fastest\": {:.4f}, \"requests\": {}, \"p99\": {:.6f}}}\n",
             slowest.seconds, fastest.seconds, trace.size() * static_cast<size_t>(clients),
             took.empty() ? 0 : took[took.size() * 99 / 100]);
  std::fflush(stdout);
  while (holds && std::getchar() != EOF) {
  }
  for (const Disk& disk : disks) {
    nbd_shutdown(disk.nbd, 0);
    nbd_close(disk.nbd);
  }
}
