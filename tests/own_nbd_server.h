// An NBD server in a thread of the test, which answers reads as the test wants: also as no server
// may. It knows what a client needs to connect, structured replies, and no extents.
#pragma once

#include <endian.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "base/bytes.h"
#include "base/error.h"

namespace tplstore::testing {

class OwnNbdServer {
 public:
  // Answers one read. All methods return false when the client has gone.
  class Reply {
   public:
    // `is_last` ends the reply.
    bool data(uint64_t offset, Bytes bytes, bool is_last) {
      Encoder body;
      body.put(htobe64(offset));
      body.put_bytes(bytes);
      return chunk(1, body.bytes(), is_last);
    }
    bool hole(uint64_t offset, uint32_t length, bool is_last) {
      Encoder body;
      body.put(htobe64(offset));
      body.put(htobe32(length));
      return chunk(2, body.bytes(), is_last);
    }
    bool end() { return chunk(0, {}, true); }
    // Lets some time pass.
    bool wait(std::chrono::milliseconds time) {
      pollfd client{fd_, POLLRDHUP, 0};
      return poll(&client, 1, static_cast<int>(time.count())) == 0;
    }

   private:
    friend class OwnNbdServer;
    Reply(int fd, uint64_t handle) : fd_(fd), handle_(handle) {}

    bool chunk(uint16_t type, Bytes body, bool is_last) {
      Encoder chunk;
      chunk.put(htobe32(0x668e33ef));
      chunk.put(htobe16(is_last ? 1 : 0));
      chunk.put(htobe16(type));
      chunk.put(handle_);
      chunk.put(htobe32(static_cast<uint32_t>(body.size())));
      chunk.put_bytes(body);
      return send_all(fd_, chunk.bytes());
    }

    const int fd_;
    const uint64_t handle_;
  };
  using Read = std::function<bool(Reply& reply, uint64_t offset, uint32_t length)>;

  // Serves any number of clients on a Unix socket, one after the other.
  OwnNbdServer(const std::string& path, uint64_t size_bytes, Read read)
      : path_(path), size_bytes_(size_bytes), read_(std::move(read)) {
    listening_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    if (listening_ < 0 ||
        bind(listening_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        listen(listening_, 4) != 0)
      fail_errno(errno, path, "listening");
    thread_ = std::thread([this] {
      for (int fd = 0; (fd = accept(listening_, nullptr, nullptr)) >= 0; close(fd))
        if (shake_hands(fd)) serve(fd);
    });
  }
  // No client may be connected.
  ~OwnNbdServer() {
    shutdown(listening_, SHUT_RDWR);
    thread_.join();
    close(listening_);
  }
  OwnNbdServer(const OwnNbdServer&) = delete;
  OwnNbdServer& operator=(const OwnNbdServer&) = delete;

  std::string uri() const { return "nbd+unix:///?socket=" + path_; }

 private:
  static bool send_all(int fd, Bytes bytes) {
    while (!bytes.empty()) {
      const ssize_t count = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
    return true;
  }
  template <typename T>
  static bool receive(int fd, T& value) {
    return recv(fd, &value, sizeof value, MSG_WAITALL) == static_cast<ssize_t>(sizeof value);
  }

  static bool answer_option(int fd, uint32_t option, uint32_t type, Bytes data = {}) {
    Encoder answer;
    answer.put(htobe64(0x3e889045565a9));
    answer.put(htobe32(option));
    answer.put(htobe32(type));
    answer.put(htobe32(static_cast<uint32_t>(data.size())));
    answer.put_bytes(data);
    return send_all(fd, answer.bytes());
  }

  // Whether the client goes on to requests.
  bool shake_hands(int fd) {
    constexpr uint32_t kStructuredReply = 8, kGo = 7;
    constexpr uint32_t kAck = 1, kInfo = 3, kUnsupported = uint32_t{1} << 31 | 1;
    uint32_t client_flags;
    Encoder greeting;
    greeting.put_bytes(as_bytes("NBDMAGICIHAVEOPT"));
    greeting.put(htobe16(3));  // the newer form of it
    bool is_fine = send_all(fd, greeting.bytes()) && receive(fd, client_flags);
    while (is_fine) {
      struct {
        uint64_t magic;
        uint32_t option, length;
      } header;
      if (!receive(fd, header)) return false;
      for (uint32_t i = 0; i < be32toh(header.length); ++i)
        if (char skipped; !receive(fd, skipped)) return false;
      const uint32_t option = be32toh(header.option);
      if (option == kGo) {
        Encoder info;
        info.put(htobe16(0));  // what follows is the export
        info.put(htobe64(size_bytes_));
        info.put(htobe16(3));  // it has flags, and is read-only
        return answer_option(fd, option, kInfo, info.bytes()) && answer_option(fd, option, kAck);
      }
      is_fine = answer_option(fd, option, option == kStructuredReply ? kAck : kUnsupported);
    }
    return false;
  }

  void serve(int fd) {
    struct __attribute__((packed)) {
      uint32_t magic;
      uint16_t flags, type;
      uint64_t handle, offset;
      uint32_t length;
    } request;
    while (receive(fd, request) && request.type == 0) {
      Reply reply(fd, request.handle);
      if (!read_(reply, be64toh(request.offset), be32toh(request.length))) return;
    }
  }

  const std::string path_;
  const uint64_t size_bytes_;
  const Read read_;
  int listening_ = -1;
  std::thread thread_;
};

}  // namespace tplstore::testing
