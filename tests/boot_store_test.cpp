// What volumes, forks, versions and templates of a store have of its boot cache, and what they must
// never have of it.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <thread>

#include "store_testing.h"
#include "template/segment.h"
#include "template_testing.h"

namespace tplstore::boot_store_test {
namespace {

constexpr uint64_t kTemplateBlocks = 600;

struct BootFixture {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  ForwardingBackend* backend = nullptr;  // the store's
  std::unique_ptr<Store> store;
  int64_t clock_ms = 0;
  int last_vm = 0;

  BootFixture() {
    memory->set_recording(false);
    import_test_template(*memory, "golden", image(1));
    open();
  }
  void open() {
    auto forwarding = std::make_unique<ForwardingBackend>(*memory);
    backend = forwarding.get();
    StoreOptions options;
    options.boot.cap_bytes = 16 << 20;
    options.boot.clock_ms = [this] { return clock_ms; };
    store = std::make_unique<Store>(std::move(forwarding), options);
  }
  // Every block is another one; those of two seeds differ in the first half.
  static ByteVector image(uint64_t seed) {
    ByteVector bytes(kTemplateBlocks * kBlockBytes);
    for (uint64_t block = 0; block < kTemplateBlocks; ++block)
      for (uint64_t at = 0; at < kBlockBytes; at += 8) {
        const uint64_t value =
            (block < kTemplateBlocks / 2 ? seed << 40 : 0) + block * kBlockBytes + at + 1;
        std::memcpy(bytes.data() + block * kBlockBytes + at, &value, sizeof value);
      }
    return bytes;
  }
  std::unique_ptr<Disk> attach(const std::string& volume) {
    clock_ms += 20'000;
    return store->open_export(fmt::format("{};writer=t{}", volume, ++last_vm), vm_peer());
  }
  // Reads as a boot begins, and then these blocks.
  ByteVector boot(Disk& disk, uint64_t first, uint64_t count) {
    // The one before is over, and for some time.
    clock_ms += 20'000;
    store->boot()->tend();
    clock_ms += 20'000;
    bytes_at(disk, 0, 512);
    bytes_at(disk, 0, kBlockBytes);
    return bytes_at(disk, first * kBlockBytes, count * kBlockBytes);
  }
  static ByteVector part(const ByteVector& bytes, uint64_t first, uint64_t count) {
    const auto begin = bytes.begin() + static_cast<ptrdiff_t>(first * kBlockBytes);
    return {begin, begin + static_cast<ptrdiff_t>(count * kBlockBytes)};
  }
  // Whether reading asks the backend for data.
  bool reads(const std::string& object, const std::function<void()>& work) {
    bool has_read = false;
    backend->on_read = [&](const std::string& name) {
      if (name.find(object) != std::string::npos) has_read = true;
    };
    work();
    backend->on_read = nullptr;
    return has_read;
  }
  BootCacheStats stats() { return store->stats().boot_cache; }
};

}  // namespace

TEST_CASE_FIXTURE(BootFixture, "what one VM has read of a template all find in memory") {
  import_test_template(*memory, "other", image(2));
  for (const char* name : {"vm1", "vm2"}) store->create_volume(name, 0, "golden");
  store->create_volume("vm3", 0, "other");
  const auto first = attach("vm1");
  CHECK(boot(*first, 280, 40) == part(image(1), 280, 40));
  const auto second = attach("vm2");
  const auto third = attach("vm3");
  const auto of_template = store->open_export("template/golden", vm_peer());
  CHECK_FALSE(reads("segments/", [&] {
    CHECK(bytes_at(*second, 280 * kBlockBytes, 40 * kBlockBytes) == part(image(1), 280, 40));
    CHECK(bytes_at(*of_template, 290 * kBlockBytes, 4096) == part(image(1), 290, 1));
    // What two images have in common is there once.
    CHECK(bytes_at(*third, 300 * kBlockBytes, 20 * kBlockBytes) == part(image(1), 300, 20));
  }));
  CHECK(bytes_at(*third, 280 * kBlockBytes, 20 * kBlockBytes) == part(image(2), 280, 20));
  CHECK(stats().hits >= 61);
}

TEST_CASE_FIXTURE(BootFixture, "what a VM has written others find in memory when it is frozen") {
  store->create_volume("vm1", 0, "golden");
  auto disk = attach("vm1");
  disk->write(100 * kBlockBytes, filled(8 * kBlockBytes, 'a'), false);
  boot(*disk, 100, 8);
  CHECK(bytes_at(*disk, 100 * kBlockBytes) == filled(kBlockBytes, 'a'));
  store->create_version("vm1", {"v", "", {}});
  const uint64_t before = stats().slots;
  CHECK(boot(*disk, 100, 8) == filled(8 * kBlockBytes, 'a'));
  CHECK(stats().slots >= before + 8);
  store->fork_volume("vm2", "vm1", "v", 0);
  const auto fork = attach("vm2");
  const auto version = store->open_export("vm1@v", vm_peer());
  // Its own writes are nobody else's.
  disk->write(100 * kBlockBytes, filled(kBlockBytes, 'b'), false);
  CHECK_FALSE(reads("/data.", [&] {
    CHECK(bytes_at(*fork, 100 * kBlockBytes) == filled(kBlockBytes, 'a'));
    CHECK(bytes_at(*version, 100 * kBlockBytes, 8 * kBlockBytes) == filled(8 * kBlockBytes, 'a'));
  }));
  CHECK(bytes_at(*disk, 100 * kBlockBytes) == filled(kBlockBytes, 'b'));
}

TEST_CASE_FIXTURE(BootFixture,
                  "forks boot by the nearest profile that is theirs, as they are now") {
  const auto boot_and_learn = [&](const std::string& name) {
    const auto disk = attach(name);
    const ByteVector bytes = boot(*disk, 90, 40);
    CHECK(bytes == bytes_at(*disk, 90 * kBlockBytes, 40 * kBlockBytes));
    store->end_boot(name);
    store->boot()->tend();
  };
  const auto write = [&](const std::string& name, uint64_t block, char with) {
    attach(name)->write(block * kBlockBytes, filled(8 * kBlockBytes, with), false);
    store->create_version(name, {"v", "", {}});
  };
  const auto boots_of = [&](const std::string& name) {
    const auto profile = store->show_boot(name).profile;
    return profile ? profile->boots : 0;
  };
  store->create_volume("vm1", 0, "golden");
  write("vm1", 100, 'a');
  boot_and_learn("vm1");
  CHECK(boots_of("vm1") == 1);
  store->fork_volume("vm2", "vm1", "v", 0);
  boot_and_learn("vm2");
  CHECK(boots_of("vm1") == 2);
  CHECK(boots_of("vm2") == 0);
  store->create_version("vm2", {"w", "", {}});
  store->fork_volume("vm3", "vm2", "w", 0);
  boot_and_learn("vm3");
  CHECK(boots_of("vm1") == 3);
  // Removed, it is there for its forks.
  store->remove_volume("vm1");
  write("vm2", 110, 'b');
  boot_and_learn("vm2");
  CHECK(boots_of("vm2") == 1);
  boot_and_learn("vm3");
  CHECK(boots_of("vm3") == 0);
  CHECK(store->show_boot("golden").profile == std::nullopt);
  store->flatten_volume("vm3", [](uint64_t) {});
  CHECK(boots_of("vm3") == 4);
  CHECK(store->show_boot("vm3").profile->own_blocks == 8);
  boot_and_learn("vm3");
  CHECK(boots_of("vm3") == 5);
}

TEST_CASE_FIXTURE(BootFixture, "what a fork has of its parent's is read in the parent's pack") {
  store->create_volume("vm1", 0, "golden");
  attach("vm1")->write(100 * kBlockBytes, filled(8 * kBlockBytes, 'a'), false);
  const VersionInfo frozen = store->create_version("vm1", {"v", "", {}});
  store->fork_volume("vm2", "vm1", "v", 0);
  const std::string folder = volume_folder(store->show_volume("vm1").uuid);
  // Reading ahead takes long here.
  std::set<std::string> asked;
  const auto boot_ahead = [&](const std::string& name) {
    const auto disk = attach(name);
    backend->on_read = [&](const std::string& object) {
      clock_ms += 300;
      asked.insert(object);
    };
    boot(*disk, 1, 1);
    store->boot()->tend();
    ByteVector bytes = bytes_at(*disk, 98 * kBlockBytes, 30 * kBlockBytes);
    backend->on_read = nullptr;
    store->end_boot(name);
    store->boot()->tend();
    return bytes;
  };
  ByteVector wanted = part(image(1), 98, 30);
  std::ranges::copy(filled(8 * kBlockBytes, 'a'), wanted.begin() + 2 * kBlockBytes);
  for (int i = 0; i < 5; ++i) {
    CHECK(boot_ahead("vm2") == wanted);
    store.reset();
    open();  // with nothing in memory
  }
  CHECK(store->show_boot("vm1").pack == BootStatus::PackState::kReady);
  CHECK(store->show_boot("vm2").pack == BootStatus::PackState::kNone);
  const std::string data = fmt::format("{}/data.{}", folder, frozen.number);
  asked.clear();
  CHECK(boot_ahead("vm2") == wanted);
  CHECK(asked.contains(folder + "/pack.1"));
  CHECK_FALSE(asked.contains(data));
  // What somebody writes is not what is in it, frozen or not.
  attach("vm2")->write(100 * kBlockBytes, filled(kBlockBytes, 'b'), false);
  std::ranges::copy(filled(kBlockBytes, 'b'), wanted.begin() + 2 * kBlockBytes);
  store.reset();
  open();
  CHECK(boot_ahead("vm2") == wanted);
  store->create_version("vm2", {"w", "", {}});
  CHECK(boot_ahead("vm2") == wanted);
  store->flatten_volume("vm2", [](uint64_t) {});
  store.reset();
  open();
  CHECK(boot_ahead("vm2") == wanted);
}

TEST_CASE_FIXTURE(BootFixture, "a version whose freezing was lost leaves nothing in memory") {
  memory->set_recording(true);
  store->create_volume("vm1", 0, "golden");
  auto disk = attach("vm1");
  disk->write(100 * kBlockBytes, filled(8 * kBlockBytes, 'a'), false);
  disk->flush();
  bool has_read = false;
  // The log cannot be synced; meanwhile the VM reads what is frozen by then.
  backend->around = [&](ForwardingBackend::Call call, const std::string& name,
                        const std::function<void()>& go_on) {
    if (call != ForwardingBackend::Call::kSync || name.find("/map.") == std::string::npos)
      return go_on();
    backend->around = nullptr;
    std::thread([&] { has_read = boot(*disk, 100, 8) == filled(8 * kBlockBytes, 'a'); }).join();
    CHECK(stats().slots >= 8);
    go_on();
  };
  memory->fail_next_sync(volume_folder(store->show_volume("vm1").uuid) + "/map.", EIO);
  CHECK(error_code([&] { store->create_version("vm1", {"v", "", {}}); }) == EIO);
  CHECK(has_read);
  disk.reset();
  disk = attach("vm1");
  CHECK(store->show_volume("vm1").current_version == 1);
  disk->write(100 * kBlockBytes, filled(8 * kBlockBytes, 'b'), false);
  store->create_version("vm1", {"v", "", {}});
  CHECK(boot(*disk, 100, 8) == filled(8 * kBlockBytes, 'b'));
}

TEST_CASE_FIXTURE(BootFixture, "what is damaged does not come into memory") {
  store->create_volume("vm1", 0, "golden");
  store->create_volume("vm2", 0, "golden");
  const std::string segment = segment_path(list_segments(*memory).front());
  ByteVector content = memory->content(segment);
  content[17 * kBlockBytes + 5] ^= std::byte{1};
  memory->set_content(segment, content);
  const auto disk = attach("vm1");
  CHECK(error_code([&] { boot(*disk, 16, 4); }) == EIO);
  CHECK(stats().verify_failures == 1);
  content[17 * kBlockBytes + 5] ^= std::byte{1};
  memory->set_content(segment, content);
  CHECK(bytes_at(*disk, 16 * kBlockBytes, 4 * kBlockBytes) == part(image(1), 16, 4));
  const auto second = attach("vm2");
  CHECK_FALSE(reads("segments/", [&] {
    CHECK(bytes_at(*second, 16 * kBlockBytes, 4 * kBlockBytes) == part(image(1), 16, 4));
  }));
}

TEST_CASE_FIXTURE(BootFixture,
                  "only who writes a volume boots from it, and reading on is no boot") {
  store->create_volume("vm1", 0, "golden");
  store->create_volume("vm2", 0, "golden");
  store->create_version("vm1", {"v", "", {}});
  for (const char* name : {"template/golden", "vm1@v", "vm1@current"}) {
    const auto reader = store->open_export(name, vm_peer());
    CHECK(boot(*reader, 10, 10) == part(image(1), 10, 10));
    CHECK(stats().slots == 0);
  }
  const auto disk = attach("vm2");
  bytes_at(*disk, 10 * kBlockBytes, 10 * kBlockBytes);
  CHECK(stats().slots == 0);
  CHECK(stats().windows_open == 0);
  boot(*disk, 10, 10);
  CHECK(stats().windows_open == 1);
  const BootWindow ended = store->end_boot("vm2");
  CHECK(ended.blocks >= 10);
  bytes_at(*disk, 200 * kBlockBytes, 10 * kBlockBytes);
  CHECK(stats().windows_open == 0);
  CHECK(error_code([&] { store->end_boot("vm2"); }) == EINVAL);
}

TEST_CASE_FIXTURE(BootFixture, "without a boot cache nothing is followed") {
  store = std::make_unique<Store>(std::make_unique<ForwardingBackend>(*memory), StoreOptions());
  store->create_volume("vm1", 0, "golden");
  const auto disk = store->open_export("vm1", vm_peer());
  CHECK(bytes_at(*disk, 0, kBlockBytes) == part(image(1), 0, 1));
  CHECK(store->boot() == nullptr);
  CHECK_FALSE(store->stats().boot_cache.is_used);
  CHECK(store->show_boot("golden").cached_bytes == 0);
  CHECK(error_code([&] { store->end_boot("vm1"); }) == EINVAL);
  const auto never = [] { return false; };
  CHECK(error_code([&] {
          store->warm_boot(
              "vm1", [](uint64_t, uint64_t) {}, never);
        }) == EINVAL);
}

}  // namespace tplstore::boot_store_test
