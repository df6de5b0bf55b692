// Connections that join, replace and wait for each other.
#include "store/volume_registry.h"

#include <doctest/doctest.h>

#include <future>
#include <thread>

#include "store_testing.h"

namespace tplstore::volume_registry_test {
namespace {

// How long a request stalls when nothing ends it before.
constexpr std::chrono::milliseconds kStall{300};

struct Fixture : StoreFixture {
  // Starts `change` on a connection and lets it stall as soon as it reads or writes an object
  // whose name ends so. Then the VM comes with another connection, writes and flushes; for which
  // it may have to wait for the end of what stalls.
  void reconnect_during(const std::function<void(Disk&)>& change, const std::string& object,
                        const std::function<void(Disk&)>& newer) {
    auto given_up = store->open_export("vm1", test_peer());
    Stall stall(*backend, object, kStall);
    std::thread old([&] { change(*given_up); });
    stall.await();
    auto disk = store->open_export("vm1", test_peer());
    newer(*disk);
    disk->flush();
    stall.end();
    old.join();
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

TEST_CASE("one connection more of a VM is let in where an operator says so, and no second") {
  Fixture f;
  const auto first = f.store->open_export("vm1", vm_peer());
  f.store->let_join("vm1", std::chrono::seconds(30));
  const auto second = f.store->open_export("vm1", vm_peer());
  CHECK(f.store->show_lock("vm1").connections == 2);
  auto third =
      std::async([&] { return error_code([&] { f.store->open_export("vm1", vm_peer()); }); });
  // Which is in use, and does not go by itself.
  do first->write(0, filled(kBlockBytes, 1), false);
  while (third.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready);
  CHECK(third.get() == EBUSY);
  CHECK(f.store->show_lock("vm1").connections == 2);
}

TEST_CASE("a VM gets a volume at once that is open for the store's own work") {
  Fixture f;
  f.store->open_export("vm1", test_peer())->write(0, filled(kBlockBytes, 1), true);
  f.store->create_version("vm1", {});
  f.store->fork_volume("fork", "vm1", "1", 0);
  const Peer vm = vm_peer();
  std::unique_ptr<Disk> disk;
  f.store->flatten_volume("fork", [&](uint64_t) {
    if (disk) return;
    const auto start = std::chrono::steady_clock::now();
    disk = f.store->open_export("fork", vm);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(1));
    disk->write(kBlockBytes, filled(kBlockBytes, 2), true);
  });
  REQUIRE(disk);
  // It is the VM's from then on.
  const VolumeInfo info = f.store->show_volume("fork");
  REQUIRE(info.writer);
  CHECK(info.writer->peer == "a VM");
  CHECK(info.writer->epoch == 2);
  CHECK_THROWS_AS(f.store->open_export("fork", {"another", 2, 2}), Error);
  ByteVector bytes(2 * kBlockBytes);
  disk->read(0, bytes);
  ByteVector wanted = filled(kBlockBytes, 1);
  wanted.resize(2 * kBlockBytes, std::byte{2});
  CHECK(bytes == wanted);
  disk.reset();
  CHECK_FALSE(f.store->is_open("fork"));
}

TEST_CASE("a VM gets a volume at once that another one has left while the store works on it") {
  Fixture f;
  f.store->open_export("vm1", test_peer())->write(0, filled(kBlockBytes, 1), true);
  f.store->create_version("vm1", {});
  f.store->fork_volume("fork", "vm1", "1", 0);
  auto disk = f.store->open_export("fork", {"the first", 1, 1});
  bool is_second = false;
  f.store->flatten_volume("fork", [&](uint64_t) {
    if (std::exchange(is_second, true)) return;
    disk->write(kBlockBytes, filled(kBlockBytes, 2), true);
    disk.reset();
    disk = f.store->open_export("fork", {"the second", 2, 2});
  });
  CHECK(f.store->show_volume("fork").writer->peer == "the second");
  ByteVector bytes(kBlockBytes);
  disk->read(kBlockBytes, bytes);
  CHECK(bytes == filled(kBlockBytes, 2));
}

TEST_CASE("a volume that has failed is opened again for the next VM, whatever else has it open") {
  Fixture f;
  f.store->open_export("vm1", test_peer())->write(0, filled(kBlockBytes, 1), true);
  f.store->create_version("vm1", {});
  const VolumeInfo fork = f.store->fork_volume("fork", "vm1", "1", 0);
  auto disk = f.store->open_export("fork", {"the first", 1, 1});
  std::future<std::unique_ptr<Disk>> next;
  try {
    f.store->flatten_volume("fork", [&](uint64_t) {
      if (!disk) return;
      disk->write(kBlockBytes, filled(kBlockBytes, 2), false);
      f.memory->fail_next_sync(volume_folder(fork.uuid) + "/data.2", EIO);
      CHECK_THROWS_AS(disk->flush(), Error);
      disk.reset();
      next = std::async(std::launch::async, [&] {
        return f.store->open_export("fork", {"the second", 2, 2});
      });
    });
  } catch (const Error& error) {
    CHECK(error.code() == EIO);
  }
  REQUIRE(next.valid());
  disk = next.get();
  disk->write(kBlockBytes, filled(kBlockBytes, 3), true);
}

TEST_CASE("a VM waits for what the store does alone with the volume") {
  Fixture f;
  f.store->open_export("vm1", test_peer())->write(0, filled(kBlockBytes, 1), true);
  f.store->create_version("vm1", {});
  std::future<std::unique_ptr<Disk>> vm;
  f.backend->on_write = [&](const std::string& name) {
    if (vm.valid() || !name.ends_with("/map.1")) return;
    vm = std::async(std::launch::async,
                    [&] { return f.store->open_export("vm1", test_peer(4712)); });
    // One that is refused is so by then.
    vm.wait_for(kStall);
  };
  f.store->rollback("vm1", "1");
  REQUIRE(vm.valid());
  CHECK(vm.get() != nullptr);
}

TEST_CASE("a VM with a token replaces its connection that is idle, and none that works") {
  Fixture f;
  const Peer anywhere{"127.0.0.1:4711", 0, 0};
  f.store->open_export("vm1;writer=before", anywhere).reset();
  auto first = f.store->open_export("vm1;writer=a", anywhere);
  CHECK_FALSE(first->allows_multi_conn());
  first->write(0, filled(kBlockBytes, 1), false);
  std::unique_ptr<Disk> second;
  const auto begun = std::chrono::steady_clock::now();
  SUBCASE("it works") {
    auto late = std::async(std::launch::async,
                           [&] { return f.store->open_export("vm1;writer=a", anywhere); });
    while (late.wait_for(std::chrono::milliseconds(10)) == std::future_status::timeout)
      first->write(0, filled(kBlockBytes, 2), false);
    CHECK_THROWS_AS(late.get(), Error);
    CHECK(std::chrono::steady_clock::now() - begun < kLockIdle);
    return;
  }
  second = f.store->open_export("vm1;writer=a", anywhere);
  CHECK(std::chrono::steady_clock::now() - begun >= kLockIdle);
  CHECK(error_code([&] { first->write(0, filled(kBlockBytes, 3), false); }) == ESHUTDOWN);
  CHECK(bytes_at(*second, 0) == filled(kBlockBytes, 1));
  // What the VM wrote counts, though its second connection has written nothing.
  first.reset();
  second.reset();
  CHECK(error_code([&] { f.store->open_export("vm1;writer=before", anywhere); }) == EBUSY);
}

TEST_CASE("of two connections that wait for the place of a third one, one gets it and keeps it") {
  Fixture f;
  const Peer anywhere{"127.0.0.1:4711", 0, 0};
  auto first = f.store->open_export("vm1;writer=a", anywhere);
  first->write(0, filled(kBlockBytes, 1), false);
  // The client of one of them has gone, as the first one's, and nobody knows which.
  std::vector<std::future<std::unique_ptr<Disk>>> waiting;
  for (int i = 0; i < 2; ++i)
    waiting.push_back(std::async(std::launch::async,
                                 [&] { return f.store->open_export("vm1;writer=a", anywhere); }));
  std::unique_ptr<Disk> second;
  int refused = 0;
  for (auto& one : waiting) {
    const int code = error_code([&] { second = one.get(); });
    CHECK((code == 0 || code == EBUSY));
    refused += code == EBUSY ? 1 : 0;
  }
  CHECK(refused == 1);
  REQUIRE(second);
  // It has asked for nothing all the time.
  second->write(0, filled(kBlockBytes, 2), false);
  CHECK(bytes_at(*second, 0) == filled(kBlockBytes, 2));
}

TEST_CASE("a VM waits for one that has the volume and has asked for nothing") {
  Fixture f;
  auto probe = f.store->open_export("vm1", vm_peer());
  auto late =
      std::async(std::launch::async, [&] { return f.store->open_export("vm1", test_peer()); });
  // Most likely it has come by then; if not this shows nothing.
  CHECK(late.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  probe.reset();
  CHECK(late.get()->is_writable());
}

TEST_CASE("a VM does not wait for one that uses the volume") {
  Fixture f;
  const auto owner = f.store->open_export("vm1", vm_peer());
  ByteVector bytes(512);
  SUBCASE("reading") { owner->read(0, bytes); }
  SUBCASE("asking for extents") {
    owner->extents(0, 512, [](const Extent&) { return false; });
  }
  SUBCASE("flushing") { owner->flush(); }
  const auto begun = std::chrono::steady_clock::now();
  CHECK_THROWS_AS(f.store->open_export("vm1", test_peer()), Error);
  CHECK(std::chrono::steady_clock::now() - begun < WriterLock::kWaitMax);
}

TEST_CASE("with same-vm=pid a token and a process are two VMs, and other processes too") {
  const auto memory = memory_store();
  StoreOptions options;
  options.same_vm_is_pid = true;
  Store store(std::make_unique<ForwardingBackend>(*memory), options);
  store.create_volume("vm1", kDiskBytes, "");
  const Peer process = {"unix socket, pid 1", getpid(), process_start_time(getpid())};
  const Peer other = vm_peer();
  const auto open = [&](const std::string& name, const Peer& peer) {
    auto disk = store.open_export(name, peer);
    ByteVector bytes(512);
    disk->read(0, bytes);  // so that nobody waits for one who may only look
    return disk;
  };
  const auto is_refused = [&](const std::string& name, const Peer& peer) {
    return error_code([&] { open(name, peer); }) == EBUSY;
  };
  SUBCASE("a process has it") {
    const auto first = open("vm1", process);
    const auto second = open("vm1", process);
    CHECK(first->allows_multi_conn());
    for (const char* name : {"vm1;writer=a", "vm1;writer=a;multi"})
      CHECK(is_refused(name, process));
    CHECK(is_refused("vm1", other));
  }
  SUBCASE("a token has it") {
    const auto first = open("vm1;writer=a", process);
    CHECK_FALSE(first->allows_multi_conn());
    CHECK(is_refused("vm1", process));
    CHECK(is_refused("vm1;writer=b", process));
    CHECK(is_refused("vm1;writer=a", other));
  }
  SUBCASE("a token has it on several connections") {
    const auto first = open("vm1;writer=a;multi", process);
    const auto second = open("vm1;writer=a;multi", process);
    CHECK(is_refused("vm1", process));
    CHECK(is_refused("vm1;writer=a;multi", other));
  }
  SUBCASE("over TCP a process is nothing") {
    const Peer anywhere{"127.0.0.1:4711", 0, 0};
    const auto first = open("vm1", anywhere);
    CHECK_FALSE(first->allows_multi_conn());
    CHECK(is_refused("vm1", anywhere));
  }
  CHECK(memory->list("volumes").size() == 1);
}

TEST_CASE("connections of one token that add up, and one that does not, are never there together") {
  Fixture f;
  f.store->create_volume("vm2", kDiskBytes, "");
  const Peer anywhere{"127.0.0.1:4711", 0, 0};
  const auto write = [](Disk& disk, int value) {
    return error_code([&] { disk.write(0, filled(kBlockBytes, value), false); });
  };
  // One comes to several, or several to one.
  const auto change = [&](const std::string& volume, bool begins_single) {
    const std::string single = volume + ";writer=a", multi = single + ";multi";
    std::vector<std::unique_ptr<Disk>> before;
    for (int i = 0; i < (begins_single ? 1 : 2); ++i)
      before.push_back(f.store->open_export(begins_single ? single : multi, anywhere));
    const auto come = [&] {
      return f.store->open_export(begins_single ? multi : single, anywhere);
    };
    int failed = before[0]->allows_multi_conn() == begins_single ? 1 : 0;
    for (auto& disk : before) failed += write(*disk, 1) != 0;
    // As long as they work it stays outside; then it replaces all of them.
    auto late = std::async(std::launch::async, come);
    while (late.wait_for(std::chrono::milliseconds(5)) == std::future_status::timeout)
      for (auto& disk : before) failed += write(*disk, 2) != 0;
    failed += error_code([&] { late.get(); }) != EBUSY;
    const std::unique_ptr<Disk> after = come();
    for (auto& disk : before) failed += write(*disk, 3) != ESHUTDOWN;
    failed += write(*after, 4) != 0;
    if (begins_single) failed += write(*f.store->open_export(multi, anywhere), 4) != 0;
    before.clear();
    failed += bytes_at(*after, 0) != filled(kBlockBytes, 4);
    return failed;
  };
  auto one = std::async(std::launch::async, change, "vm1", false);
  CHECK(change("vm2", true) == 0);
  CHECK(one.get() == 0);
}

}  // namespace tplstore::volume_registry_test
