// A store's operations on each other's way: beside each other, cut off, on a full disk, on damage.
#include <doctest/doctest.h>

#include <future>
#include <thread>

#include "store_testing.h"
#include "temporary_directory.h"
#include "transfer/importer.h"

namespace tplstore::store_operations_test {
namespace {

constexpr std::chrono::seconds kSoon{10};

using Fixture = StoreFixture;

// Fills the storage: not even the log can be made longer.
void fill_up(Fixture& f) { f.memory->set_capacity_bytes(f.memory->allocated_bytes()); }

}  // namespace

TEST_CASE("on a full disk reads of VOLUME@current do not use up what opening needs") {
  Fixture f;
  {
    const auto disk = f.store->open_export("vm1", vm_peer());
    disk->write(0, filled(kBlockBytes, 1), true);
  }
  f.store->create_version("vm1", {"old", "", {}});
  f.store->open_export("vm1", vm_peer())->write(0, filled(kBlockBytes, 2), true);
  fill_up(f);
  for (int i = 0; i < 300; ++i) {
    const auto reader = f.store->open_export("vm1@current", test_peer());
    ByteVector bytes(kBlockBytes);
    const int error = error_code([&] { reader->read(0, bytes); });
    REQUIRE((error == 0 || error == ENOSPC));
  }
  CHECK(error_code([&] { f.store->open_export("vm1", vm_peer()); }) == 0);
  // Removing versions is how a full disk gets room again.
  CHECK(error_code([&] { f.store->remove_versions("vm1", {"old"}); }) == 0);
}

TEST_CASE("on a full disk a VM that starts over and over again can still start") {
  Fixture f;
  f.store->open_export("vm1", vm_peer())->write(0, filled(kBlockBytes, 1), true);
  f.store->create_version("vm1", {"old", "", {}});
  fill_up(f);
  int starts = 0;
  for (; starts < 800; ++starts) {
    if (error_code([&] { bytes_at(*f.store->open_export("vm1", vm_peer()), 0); }) != 0) break;
  }
  CHECK(starts == 800);
  CHECK(error_code([&] { f.store->remove_versions("vm1", {"old"}); }) == 0);
}

TEST_CASE("flattening a volume that fails meanwhile ends, and its VM can open it again") {
  Fixture f;
  {
    const auto disk = f.store->open_export("vm1", vm_peer());
    for (int i = 0; i < 8; ++i) disk->write(2 * i * kBlockBytes, filled(kBlockBytes, 1 + i), true);
  }
  f.store->create_version("vm1", {});
  const Uuid fork = f.store->fork_volume("fork", "vm1", "1", 0).uuid;
  auto disk = f.store->open_export("fork", vm_peer());
  int pieces = 0;
  const int error = error_code([&] {
    f.store->flatten_volume("fork", [&](uint64_t) {
      if (++pieces > 1) return;
      disk->write(kBlockBytes, filled(kBlockBytes, 2), false);
      f.memory->fail_next_sync(volume_folder(fork) + "/data.2", EIO);
      CHECK(error_code([&] { disk->flush(); }) == EIO);
      disk.reset();
    });
  });
  CHECK(error == EIO);
  CHECK(pieces == 1);
  CHECK(bytes_at(*f.store->open_export("fork", vm_peer()), 2 * kBlockBytes) ==
        filled(kBlockBytes, 2));
}

TEST_CASE("a read of one volume that hangs keeps no other volume from being let go") {
  // The hooks use these until the store has ended.
  std::promise<void> hangs, goes_on, has_decided;
  std::atomic<bool> is_first_read{true}, is_first_sync{true};
  std::string folder;
  Fixture f;
  f.store->create_volume("vm2", kDiskBytes, "");
  auto one = f.store->open_export("vm1", vm_peer());
  one->write(0, filled(kBlockBytes, 1), true);
  f.store->create_version("vm1", {"v", "", {}});
  one->write(0, filled(kBlockBytes, 2), true);
  auto two = f.store->open_export("vm2", test_peer());
  two->write(0, filled(kBlockBytes, 3), true);

  f.backend->on_read = [&](const std::string& name) {
    if (!name.ends_with("/data.2") || !is_first_read.exchange(false)) return;
    hangs.set_value();
    goes_on.get_future().wait();
  };
  std::thread reader([&] { bytes_at(*one, 0); });
  hangs.get_future().wait();
  // Something of vm1 becomes free, which can be punched when that read has ended.
  f.store->remove_versions("vm1", {"v"});
  folder = volume_folder(f.store->show_volume("vm1").uuid);
  f.backend->on_synced = [&](const std::string& name) {
    if (name.starts_with(folder + "/map.") && is_first_sync.exchange(false))
      has_decided.set_value();
  };
  f.store->start();
  has_decided.get_future().wait();
  two.reset();
  const auto start = std::chrono::steady_clock::now();
  while (f.store->is_open("vm2") && std::chrono::steady_clock::now() - start < kSoon)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK_FALSE(f.store->is_open("vm2"));
  goes_on.set_value();
  reader.join();
}

TEST_CASE("who removes the last fork of a nameless volume does not remove what a new fork needs") {
  Fixture f;
  f.store->open_export("vm1", vm_peer())->write(0, filled(kBlockBytes, 7), true);
  f.store->create_version("vm1", {"v", "", {}});
  f.store->fork_volume("first", "vm1", "v", 0);
  const std::string lock = lock_name(volume_folder(f.store->show_volume("vm1").uuid));

  // Another process makes a fork. It has looked up the name, and waits for the volume's lock, when
  // a third one removes the volume; that one is killed as soon as the name is gone.
  auto makers = std::make_unique<ForwardingBackend>(*f.memory);
  ForwardingBackend* maker_backend = makers.get();
  Store maker(std::move(makers), StoreOptions());
  std::promise<void> waits, has_lost_name, may_lock, has_made;
  std::atomic<bool> is_first{true};
  maker_backend->around = [&](ForwardingBackend::Call call, const std::string& name,
                              const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kLock && name == lock && is_first.exchange(false)) {
      waits.set_value();
      may_lock.get_future().wait();
    }
    go_on();
  };
  std::thread making([&] {
    error_code([&] { maker.fork_volume("second", "vm1", "v", 0); });
    has_made.set_value();
  });
  waits.get_future().wait();
  {
    auto removers = std::make_unique<ForwardingBackend>(*f.memory);
    ForwardingBackend* remover_backend = removers.get();
    Store remover(std::move(removers), StoreOptions());
    struct Killed {};
    remover_backend->on_remove = [&](const std::string& name) {
      if (name == "names/vm1") throw Killed();
    };
    CHECK_THROWS_AS(remover.remove_volume("vm1"), Killed);
  }
  // A fourth removes the first fork, and then, it seems, the last that needs the volume. When it
  // has looked for others, the maker goes on.
  std::atomic<bool> has_looked{false};
  f.backend->around = [&](ForwardingBackend::Call call, const std::string& name,
                          const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kLock && name == lock && !has_looked.exchange(true)) {
      may_lock.set_value();
      has_made.get_future().wait();
    }
    go_on();
  };
  f.store->remove_volume("first");
  f.backend->around = nullptr;
  if (!has_looked) may_lock.set_value();
  making.join();
  int error = 0;
  ByteVector bytes;
  error = error_code([&] { bytes = bytes_at(*maker.open_export("second", test_peer()), 0); });
  CHECK(error == 0);
  CHECK(bytes == filled(kBlockBytes, 7));
}

TEST_CASE("an import of a version that fails for whatever reason leaves current like its base") {
  Fixture f;
  f.store->open_export("vm1", vm_peer())->write(0, filled(kBlockBytes, 1), true);
  const VersionInfo base = f.store->create_version("vm1", {"base", "", {}});
  Store::ImportedVersion imported;
  imported.base = "base";
  imported.base_identity = base.identity;
  imported.size_bytes = base.size_bytes;
  try {
    f.store->import_version("vm1", imported, [&](Disk& disk) {
      disk.write(0, filled(kBlockBytes, 9), false);
      throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
  }
  CHECK(bytes_at(*f.store->open_export("vm1", test_peer()), 0) == filled(kBlockBytes, 1));
}

TEST_CASE("an import whose version cannot be made is refused before anything of it is read") {
  Fixture f;
  const VersionInfo base = f.store->create_version("vm1", {"base", "", {}});
  bool is_read = false;
  const auto refusal = [&](const std::string& volume, const std::string& base_name,
                           const NewVersion& version) {
    Store::ImportedVersion imported;
    imported.base = base_name;
    if (!base_name.empty()) imported.base_identity = base.identity;
    imported.size_bytes = base.size_bytes;
    imported.version = version;
    return error_code(
        [&] { f.store->import_version(volume, imported, [&](Disk&) { is_read = true; }); });
  };
  const std::string long_note(513, 'n');
  for (const bool is_new : {false, true}) {
    CAPTURE(is_new);
    const std::string volume = is_new ? "vm2" : "vm1", from = is_new ? "" : "base";
    CHECK(refusal(volume, from, {"7", "", {}}) == EINVAL);
    CHECK(refusal(volume, from, {"a/b", "", {}}) == EINVAL);
    CHECK(refusal(volume, from, {"good", long_note, {}}) == EINVAL);
  }
  CHECK(refusal("vm1", "base", {"base", "", {}}) == EEXIST);
  CHECK_FALSE(is_read);
  CHECK(f.store->list_volumes().size() == 1);
  CHECK(f.store->show_volume("vm1").versions.size() == 2);
  // One that is taken only meanwhile is refused at the end, and leaves nothing.
  Store::ImportedVersion imported;
  imported.base = "base";
  imported.base_identity = base.identity;
  imported.size_bytes = base.size_bytes;
  imported.version.name = "late";
  CHECK(error_code([&] {
          f.store->import_version("vm1", imported, [&](Disk& disk) {
            disk.write(0, filled(kBlockBytes, 9), false);
            f.store->create_version("vm1", {"late", "", {}});
          });
        }) == EEXIST);
  CHECK(bytes_at(*f.store->open_export("vm1", vm_peer()), 0) == filled(kBlockBytes, 0));
}

TEST_CASE("links and folders that are no part of a store are left alone and named") {
  const TemporaryDirectory directory;
  const std::filesystem::path root = directory.path() + "/store";
  Store::init(root);
  std::string said;
  StoreOptions options;
  options.log = [&](const std::string& line) { said += line + "\n"; };
  const auto store = Store::open(root, options);
  store->create_volume("vm1", kDiskBytes, "");
  const std::string folder = volume_folder(store->show_volume("vm1").uuid);
  const uint64_t bytes = store->space().volume_bytes;
  const uint64_t unique_bytes = store->show_volume("vm1").unique_bytes;

  const std::string segment = "segments/ab/ab" + std::string(30, '0');
  const std::vector<std::string> links = {"link.1", "volumes/link.2", folder + "/link.3",
                                          "segments/cd", segment};
  std::filesystem::create_directories(root / "segments/ab");
  for (const std::string& link : links) std::filesystem::create_symlink("/usr", root / link);
  std::filesystem::create_directories(root / folder / "folder.4/inner");
  std::filesystem::create_symlink("nowhere", root / folder / "folder.4/inner/link.5");
  said.clear();

  CHECK(store->space().volume_bytes < bytes + (1 << 20));
  CHECK(store->show_volume("vm1").unique_bytes == unique_bytes);
  CHECK(store->list_volumes().at(0).size_bytes == kDiskBytes);
  CHECK(store->remove_orphans() == 0);
  CHECK(gc(store->backend(), [&] { store->template_users(); }).removed_segments == 0);
  store->reclaim();
  for (const std::string& link : links) {
    CAPTURE(link);
    CHECK(std::filesystem::is_symlink(root / link));
    CHECK(said.find(link + ": ") != std::string::npos);
  }
  CHECK(said.find("folder.4: ") != std::string::npos);
  CHECK(said.find("inner/link.5: ") != std::string::npos);
  // Each is told of once.
  CHECK(said.find("link.1: ") == said.rfind("link.1: "));

  store->remove_volume("vm1");
  CHECK_FALSE(std::filesystem::exists(root / folder));
  CHECK(std::filesystem::is_directory("/usr"));
}

TEST_CASE("VOLUME@current can be read though something of the volume cannot be punched") {
  Fixture f;
  {
    const auto disk = f.store->open_export("vm1", vm_peer());
    disk->write(0, filled(kBlockBytes, 1), true);
    f.store->create_version("vm1", {"v", "", {}});
    disk->write(0, filled(kBlockBytes, 2), true);
    f.backend->on_punch = [](const std::string& name) {
      if (name.ends_with("/data.1")) fail(EIO, name, "cannot be punched");
    };
    f.store->remove_versions("vm1", {"v"});
  }
  CHECK(error_code([&] {
          CHECK(bytes_at(*f.store->open_export("vm1@current", test_peer()), 0) ==
                filled(kBlockBytes, 2));
        }) == 0);
  CHECK(error_code([&] { f.store->open_export("vm1", vm_peer()); }) == 0);
}

TEST_CASE("a volume that is there after a power cut has its template") {
  for (const bool fails : {false, true}) {
    INFO("the template's folder cannot be synced: " << fails);
    const auto memory = memory_store();
    ForwardingBackend late(*memory);
    Store store(std::make_unique<ForwardingBackend>(*memory), StoreOptions());
    std::unique_ptr<MemoryBackend> after;
    const auto use = [&] {
      store.create_volume("vm1", 0, "golden");
      store.open_export("vm1", vm_peer())->write(0, filled(kBlockBytes, 5), true);
      after = memory->crash(memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
    };
    late.on_linked = [&](const std::string& name) {
      if (fails) fail(EIO, name, "its folder could not be synced");
      use();  // by another process
    };
    try {
      import_test_template(late, "golden", filled(16 * kBlockBytes, 3));
    } catch (const Error& error) {
      CHECK(fails);
    }
    if (fails) use();
    Store again(std::make_unique<ForwardingBackend>(*after), StoreOptions());
    CHECK(error_code([&] {
            CHECK(bytes_at(*again.open_export("vm1", vm_peer()), kBlockBytes) ==
                  filled(kBlockBytes, 3));
          }) == 0);
  }
}

TEST_CASE("a flattened fork that was restored from a sparse copy has its zeroes still") {
  Fixture f;
  {
    const auto disk = f.store->open_export("vm1", vm_peer());
    disk->write(0, filled(kBlockBytes, 1), true);
    disk->write(kBlockBytes, filled(kBlockBytes, 0), true);  // zeroes, as data
  }
  f.store->create_version("vm1", {"v", "", {}});
  const Uuid fork = f.store->fork_volume("fork", "vm1", "v", 0).uuid;
  f.store->flatten_volume("fork", [](uint64_t) {});
  // cp --sparse=always, rsync -S, tar -S, fallocate -d: no byte of it differs.
  f.memory->open(volume_folder(fork) + "/data.1", Access::kWrite, Purpose::kData)
      ->punch(kBlockBytes, kBlockBytes);
  const auto disk = f.store->open_export("fork", vm_peer());
  CHECK(bytes_at(*disk, kBlockBytes) == filled(kBlockBytes, 0));
  disk->trim(0, kBlockBytes, true);
  f.store->reclaim_volume("fork");
  CHECK(error_code([&] { CHECK(bytes_at(*disk, kBlockBytes) == filled(kBlockBytes, 0)); }) == 0);
}

TEST_CASE("one damaged name hides no other volume") {
  Fixture f;
  f.memory->set_content("names/bad", ByteVector(36));
  CHECK(error_code([&] { CHECK(f.store->list_volumes().size() >= 1); }) == 0);
  CHECK(error_code([&] { f.store->show_volume("vm1"); }) == 0);
  CHECK(error_code([&] { f.store->resize_volume("vm1", 2 * kDiskBytes); }) == 0);
}

TEST_CASE("a removal that comes late does not take the name of a new volume of that name") {
  Fixture f;
  const std::string lock = lock_name(volume_folder(f.store->show_volume("vm1").uuid));
  auto others = std::make_unique<ForwardingBackend>(*f.memory);
  Store other(std::move(others), StoreOptions());
  std::unique_ptr<Disk> disk;
  bool is_first = true;
  f.backend->around = [&](ForwardingBackend::Call call, const std::string& name,
                          const std::function<void()>& go_on) {
    // Somebody else has removed it and made a new one, which a VM uses, before this one locks.
    if (call == ForwardingBackend::Call::kLock && name == lock && std::exchange(is_first, false)) {
      other.remove_volume("vm1");
      other.create_volume("vm1", kDiskBytes, "");
      disk = other.open_export("vm1", vm_peer());
      disk->write(0, filled(kBlockBytes, 8), true);
    }
    go_on();
  };
  CHECK(error_code([&] { f.store->remove_volume("vm1"); }) == EBUSY);
  f.backend->around = nullptr;
  REQUIRE(disk);
  CHECK(f.memory->get("names/vm1", 256).has_value());
  disk.reset();
  f.store->remove_orphans();
  CHECK(error_code([&] {
          CHECK(bytes_at(*f.store->open_export("vm1", vm_peer()), 0) == filled(kBlockBytes, 8));
        }) == 0);
  CHECK(f.memory->list("volumes").size() == 1);
}

}  // namespace tplstore::store_operations_test
