// Connections that join, replace and wait for each other.
#include "volume_registry.h"

#include <doctest/doctest.h>

#include <future>
#include <thread>

#include "forwarding_backend.h"
#include "volume_testing.h"

namespace tplstore {
namespace {

constexpr uint64_t kDiskBytes = 4 * kRegionBytes;
// How long a request stalls when nothing ends it before.
constexpr std::chrono::milliseconds kStall{300};

ByteVector filled(uint64_t length, int value) {
  return ByteVector(length, static_cast<std::byte>(value));
}

struct Fixture {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  ForwardingBackend* backend = nullptr;  // the store's
  std::unique_ptr<Store> store;

  Fixture() {
    auto forwarding = std::make_unique<ForwardingBackend>(*memory);
    backend = forwarding.get();
    store = std::make_unique<Store>(std::move(forwarding), StoreOptions());
    store->create_volume("vm1", kDiskBytes, "");
  }

  // Starts `change` on a connection and lets it stall as soon as it reads or writes an object
  // whose name ends so. Then the VM comes with another connection, writes and flushes; for which
  // it may have to wait for the end of what stalls.
  void reconnect_during(const std::function<void(Disk&)>& change, const std::string& object,
                        const std::function<void(Disk&)>& newer) {
    auto given_up = store->open_export("vm1", test_peer());
    std::promise<void> stalls;
    std::promise<void> has_flushed;
    auto flushed = has_flushed.get_future();
    std::atomic<bool> is_first{true};
    const auto stall = [&](const std::string& name) {
      if (!name.ends_with(object) || !is_first.exchange(false)) return;
      stalls.set_value();
      flushed.wait_for(kStall);
    };
    backend->on_read = stall;
    backend->on_write = stall;
    std::thread old([&] { change(*given_up); });
    stalls.get_future().wait();
    auto disk = store->open_export("vm1", test_peer());
    newer(*disk);
    disk->flush();
    has_flushed.set_value();
    old.join();
    backend->on_read = nullptr;
    backend->on_write = nullptr;
    given_up.reset();
  }

  ByteVector read(uint64_t offset, uint64_t length) {
    ByteVector bytes(length);
    store->open_export("vm1", test_peer())->read(offset, bytes);
    return bytes;
  }
};

}  // namespace

TEST_CASE("an overwrite that a VM gave up does not land over what it wrote since") {
  Fixture f;
  const auto keep = f.store->open_export("vm1", test_peer());
  keep->write(0, filled(kBlockBytes, 1), true);
  f.reconnect_during([](Disk& disk) { disk.write(0, filled(kBlockBytes, 2), false); }, "data.1",
                     [](Disk& disk) { disk.write(0, filled(kBlockBytes, 3), false); });
  CHECK(f.read(0, kBlockBytes) == filled(kBlockBytes, 3));
}

TEST_CASE("a first write that was given up while it reads does not land over newer bytes") {
  Fixture f;
  const auto keep = f.store->open_export("vm1", test_peer());
  keep->write(0, filled(kBlockBytes, 1), true);
  f.store->create_version("vm1", {});
  f.reconnect_during([](Disk& disk) { disk.write(512, filled(512, 2), false); }, "data.1",
                     [](Disk& disk) { disk.write(0, filled(kBlockBytes, 3), false); });
  CHECK(f.read(0, kBlockBytes) == filled(kBlockBytes, 3));
}

TEST_CASE("zeroing that was given up does not zero newer bytes") {
  Fixture f;
  const auto keep = f.store->open_export("vm1", test_peer());
  keep->write(0, filled(2 * kBlockBytes, 1), true);
  // It begins with a part of the first block, for which it stalls; the second one comes later.
  f.reconnect_during([](Disk& disk) { disk.zero(512, 2 * kBlockBytes - 512, false); }, "data.1",
                     [](Disk& disk) { disk.write(0, filled(2 * kBlockBytes, 3), false); });
  CHECK(f.read(0, 2 * kBlockBytes) == filled(2 * kBlockBytes, 3));
}

}  // namespace tplstore
