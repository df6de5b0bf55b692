// Flattening: what comes between its beginning and its end.
#include <doctest/doctest.h>

#include <algorithm>
#include <future>
#include <map>
#include <thread>

#include "store_testing.h"

namespace tplstore::volume_fork_test {
namespace {

constexpr uint64_t kBlocks = 4;

// vm1@1 has blocks of values 1, 2, …; vm2 is a fork of it that a VM has open.
struct ForkFixture {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  ForwardingBackend* backend = nullptr;
  std::unique_ptr<Store> store;
  std::unique_ptr<Disk> disk;
  std::string parents_file;
  std::string copys_file;

  ForkFixture() {
    auto forwarding = std::make_unique<ForwardingBackend>(*memory);
    backend = forwarding.get();
    store = std::make_unique<Store>(std::move(forwarding), StoreOptions{});
    const Uuid parent = store->create_volume("vm1", kRegionBytes, "").uuid;
    disk = store->open_export("vm1", test_peer());
    for (uint64_t block = 0; block < kBlocks; ++block) write(block, 1 + static_cast<int>(block));
    disk.reset();
    store->create_version("vm1", {});
    const Uuid fork = store->fork_volume("vm2", "vm1", "1", 0).uuid;
    disk = store->open_export("vm2", test_peer());
    parents_file = volume_folder(parent) + "/data.1";
    copys_file = volume_folder(fork) + "/data.1";
  }

  void write(uint64_t block, int value) {
    disk->write(block * kBlockBytes, filled(kBlockBytes, value), true);
  }
  ByteVector read(uint64_t block) {
    ByteVector bytes(kBlockBytes);
    disk->read(block * kBlockBytes, bytes);
    return bytes;
  }
  int flatten() {
    return error_code([&] { store->flatten_volume("vm2", [](uint64_t) {}); });
  }
};

}  // namespace

TEST_CASE("a fork that is flattened after a first try has failed has all its data") {
  ForkFixture f;
  f.backend->on_write = [&](const std::string& name) {
    if (name == f.copys_file) fail(ENOSPC, name, "no space left on device");
  };
  CHECK(f.flatten() == ENOSPC);
  f.backend->on_write = nullptr;
  // The fork needs what it had of its parent's block 0 no more, and upkeep comes by.
  f.write(0, 9);
  f.store->reclaim();
  CHECK(f.flatten() == 0);
  f.store->remove_volume("vm1");
  CHECK(f.memory->list("volumes").size() == 1);
  CHECK(f.read(0) == filled(kBlockBytes, 9));
  for (uint64_t block = 1; block < kBlocks; ++block)
    CHECK(f.read(block) == filled(kBlockBytes, 1 + static_cast<int>(block)));
  f.disk.reset();
  f.disk = f.store->open_export("vm2", test_peer());
  for (uint64_t block = 1; block < kBlocks; ++block)
    CHECK(f.read(block) == filled(kBlockBytes, 1 + static_cast<int>(block)));
}

TEST_CASE(
    "upkeep of a half flattened fork leaves its parent's files open for those who read them") {
  ForkFixture f;
  // A process that dies in the middle leaves a copy of the first block.
  f.backend->on_write = [&](const std::string& name) {
    if (name == f.copys_file) fail(ENOSPC, name, "no space left on device");
  };
  CHECK(f.flatten() == ENOSPC);
  f.backend->on_write = nullptr;
  ByteVector copied(kBlocks * kBlockBytes);
  std::ranges::copy(filled(kBlockBytes, 1), copied.begin());
  f.memory->set_content(f.copys_file, copied);
  f.memory->open(f.copys_file, Access::kWrite, Purpose::kMetadata)
      ->punch(kBlockBytes, (kBlocks - 1) * kBlockBytes);
  f.write(0, 9);
  // Just as that block's cell is punched, a read of the parent's next block begins, and is slow.
  std::promise<void> reads;
  std::promise<void> goes_on;
  std::future<ByteVector> reader;
  f.backend->on_read = [&](const std::string& name) {
    if (name != f.parents_file) return;
    reads.set_value();
    goes_on.get_future().wait();
  };
  f.backend->on_punch = [&](const std::string& name) {
    if (name != f.copys_file || reader.valid()) return;
    reader = std::async(std::launch::async, [&] { return f.read(1); });
    reads.get_future().wait();
  };
  f.store->reclaim();
  REQUIRE(reader.valid());
  goes_on.set_value();
  CHECK(reader.get() == filled(kBlockBytes, 2));
  // Empty or not, no file of an ancestor's number is removed before the end.
  CHECK_NOTHROW(f.memory->content(f.copys_file));
  f.backend->on_read = nullptr;
  f.backend->on_punch = nullptr;
  CHECK(f.flatten() == 0);
  for (uint64_t block = 1; block < kBlocks; ++block)
    CHECK(f.read(block) == filled(kBlockBytes, 1 + static_cast<int>(block)));
}

TEST_CASE("flattening ends early when the server does, and the next one does it") {
  ForkFixture f;
  unsigned copied = 0;
  f.backend->on_write = [&](const std::string& name) {
    if (name != f.copys_file) return;
    ++copied;
    f.store->stop();
  };
  // Pieces that are not neighbours, so that there are several to copy.
  f.write(1, 9);
  CHECK(f.flatten() == ESHUTDOWN);
  CHECK(copied == 1);
  f.backend->on_write = nullptr;
  f.disk.reset();
  f.store.reset();
  Store next(std::make_unique<ForwardingBackend>(*f.memory), StoreOptions{});
  next.flatten_volume("vm2", [](uint64_t) {});
  next.remove_volume("vm1");
  f.disk = next.open_export("vm2", test_peer());
  CHECK(f.read(0) == filled(kBlockBytes, 1));
  CHECK(f.read(1) == filled(kBlockBytes, 9));
  CHECK(f.read(3) == filled(kBlockBytes, 4));
  f.disk.reset();
}

TEST_CASE("a fork has all its data after flattening that failed anywhere") {
  using Call = ForwardingBackend::Call;
  // The call that fails, before it is done or after it.
  for (unsigned failing = 0;; ++failing) {
    ForkFixture f;
    f.write(2, 7);
    f.store->create_version("vm2", {});
    f.write(3, 8);
    unsigned calls = 0;
    std::string what;
    f.backend->around = [&](Call call, const std::string& name,
                            const std::function<void()>& go_on) {
      const bool fails = calls++ == failing / 2;
      if (!fails || failing % 2 == 1) go_on();
      if (!fails) return;
      what = fmt::format("call {} of {}", static_cast<int>(call), name);
      fail(call == Call::kWrite || call == Call::kCreate ? ENOSPC : EIO, name, "made to fail");
    };
    const int code = f.flatten();
    f.backend->around = nullptr;
    INFO("failing: " << what << std::string(failing % 2 == 0 ? ", not done" : ", done"));
    // The VM goes on; when its volume has stopped, it connects again.
    try {
      f.write(0, 9);
    } catch (const Error&) {
      f.disk.reset();
      f.disk = f.store->open_export("vm2", test_peer());
      f.write(0, 9);
    }
    f.disk->trim(kBlockBytes, kBlockBytes, true);
    f.store->reclaim();
    const int second = f.flatten();
    CHECK((second == 0 || second == EINVAL));  // it may be flat already
    CHECK(f.store->show_volume("vm2").parent.empty());
    f.store->reclaim();
    f.store->remove_volume("vm1");
    f.disk.reset();
    Store again(std::make_unique<ForwardingBackend>(*f.memory), StoreOptions{});
    again.remove_orphans();
    CHECK(f.memory->list("volumes").size() == 1);
    const std::map<std::string, std::vector<int>> expected{{"vm2", {9, 0, 7, 8}},
                                                           {"vm2@2", {1, 2, 7, 4}}};
    for (const auto& [name, values] : expected) {
      const auto disk = again.open_export(name, test_peer());
      for (uint64_t block = 0; block < kBlocks; ++block) {
        ByteVector bytes(kBlockBytes);
        INFO(name << " block " << block);
        CHECK_NOTHROW(disk->read(block * kBlockBytes, bytes));
        CHECK(bytes == filled(kBlockBytes, values[block]));
      }
    }
    check_no_leak(*f.memory, again.show_volume("vm2").uuid, kRegionBytes);
    if (what.empty()) {
      CHECK(code == 0);
      MESSAGE(failing << " ways to fail");
      CHECK(failing > 50);
      break;
    }
  }
}

TEST_CASE("flattening that fails gives back what it has copied") {
  ForkFixture f;
  const uint64_t before = f.memory->allocated_bytes();
  CHECK(error_code([&] {
          f.store->flatten_volume("vm2", [](uint64_t) { fail(EINTR, "vm2", "interrupted"); });
        }) == EINTR);
  CHECK_THROWS_AS(f.memory->content(f.copys_file), Error);
  CHECK(f.memory->allocated_bytes() <= before + kBlockBytes);  // a page of the log
  CHECK(f.flatten() == 0);
  for (uint64_t block = 0; block < kBlocks; ++block)
    CHECK(f.read(block) == filled(kBlockBytes, 1 + static_cast<int>(block)));
}

}  // namespace tplstore::volume_fork_test
