// What the tests of stores share: a store with one volume on a backend that can be interfered with,
// and who connects to it.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>

#include "base/host.h"
#include "forwarding_backend.h"
#include "store/store.h"
#include "volume_testing.h"

namespace tplstore {

inline constexpr uint64_t kDiskBytes = 4 * kRegionBytes;  // of vm1

inline ByteVector filled(uint64_t length, int value) {
  return ByteVector(length, static_cast<std::byte>(value));
}

inline ByteVector bytes_at(Disk& disk, uint64_t offset, uint64_t length = kBlockBytes) {
  ByteVector bytes(length);
  disk.read(offset, bytes);
  return bytes;
}

// A VM that is this process.
inline Peer living_peer() {
  Peer peer{"this test", getpid(), process_start_time(getpid())};
  peer.is_multi = true;
  return peer;
}
// Another VM: a process that is there, so that nobody takes it for one that has gone.
inline Peer vm_peer() { return {"a VM", getppid(), process_start_time(getppid())}; }

// The code of the Error that `action` throws, or 0.
inline int error_code(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return 0;
}

// What it says, or nothing.
inline std::string error_message(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Lets the first read or write of an object whose name ends so wait until end(), or for so long.
// It ends after what waits.
class Stall {
 public:
  Stall(ForwardingBackend& backend, const std::string& object,
        std::chrono::milliseconds longest = std::chrono::seconds(20))
      : backend_(backend) {
    backend.on_read = backend.on_write = [this, object, longest](const std::string& name) {
      if (!name.ends_with(object) || !is_first_.exchange(false)) return;
      begun_.set_value();
      end_.get_future().wait_for(longest);
    };
  }
  ~Stall() { backend_.on_read = backend_.on_write = nullptr; }
  Stall(const Stall&) = delete;

  void await() { begun_.get_future().wait(); }
  void end() { end_.set_value(); }

 private:
  ForwardingBackend& backend_;
  std::atomic<bool> is_first_{true};
  std::promise<void> begun_;
  std::promise<void> end_;
};

// Two processes on one store.
struct TwoServers {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  std::vector<std::string> log;
  StoreOptions options{IoMode::kBuffered, 64 << 20,
                       [this](const std::string& line) { log.push_back(line); }};
  std::unique_ptr<Store> one =
      std::make_unique<Store>(std::make_unique<ForwardingBackend>(*memory), options);
  ForwardingBackend* between = new ForwardingBackend(*memory);  // two's
  std::unique_ptr<Store> two = std::make_unique<Store>(std::unique_ptr<Backend>(between), options);
};

struct EmptyStoreFixture {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  ForwardingBackend* backend = nullptr;  // the store's
  std::unique_ptr<Store> store;

  EmptyStoreFixture() {
    auto forwarding = std::make_unique<ForwardingBackend>(*memory);
    backend = forwarding.get();
    store = std::make_unique<Store>(std::move(forwarding), StoreOptions());
  }
};

struct StoreFixture : EmptyStoreFixture {
  StoreFixture() { store->create_volume("vm1", kDiskBytes, ""); }
};

}  // namespace tplstore
