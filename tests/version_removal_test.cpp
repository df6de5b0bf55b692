// Removing versions, forks, flattening, importing: what the model test cannot bring about, each by
// itself.
#include <doctest/doctest.h>

#include <algorithm>
#include <future>
#include <thread>

#include "map/creation.h"
#include "store_testing.h"

namespace tplstore::version_removal_test {
namespace {

struct Fixture : EmptyStoreFixture {
  void write(const std::string& volume, uint64_t block, int value) {
    const auto disk = store->open_export(volume, test_peer());
    disk->write(block * kBlockBytes, filled(kBlockBytes, value), true);
  }
  ByteVector read(const std::string& name, uint64_t block) {
    const auto disk = store->open_export(name, test_peer());
    return bytes_at(*disk, block * kBlockBytes);
  }
  uint32_t version(const std::string& volume) { return store->create_version(volume, {}).number; }
  uint64_t allocated(const std::string& uuid) {
    uint64_t bytes = 0;
    for (const std::string& part : memory->list("volumes/" + uuid))
      if (part.starts_with("data."))
        bytes += memory->open("volumes/" + uuid + "/" + part, Access::kRead, Purpose::kMetadata)
                     ->allocated_bytes();
    return bytes;
  }
};

}  // namespace

TEST_CASE("a hole is not punched as long as a request may read what was there") {
  const auto memory = memory_store();
  ForwardingBackend backend(*memory);
  const Uuid uuid = random_uuid();
  create_volume(backend, uuid, kRegionBytes, nullptr);
  const auto volume = open_volume(backend, uuid);
  volume->write(0, filled(kBlockBytes, 1), false);
  volume->versions().create({});
  volume->versions().remove({"1"});
  volume->space().run();
  // Version 1 is gone, and its block is current's alone. A read has found it, and is slow.
  std::promise<void> reads;
  std::promise<void> goes_on;
  std::atomic<bool> is_first{true};
  backend.on_read = [&](const std::string& name) {
    if (!name.ends_with("data.1") || !is_first.exchange(false)) return;
    reads.set_value();
    goes_on.get_future().wait();
  };
  auto reader =
      std::async(std::launch::async, [&] { return read_bytes(*volume, 0, 0, kBlockBytes); });
  reads.get_future().wait();
  volume->write(0, filled(kBlockBytes, 2), true);
  auto reclaimer = std::async(std::launch::async, [&] { volume->space().run(); });
  const auto reclaiming = reclaimer.wait_for(std::chrono::milliseconds(100));
  goes_on.set_value();
  CHECK(reclaiming == std::future_status::timeout);
  CHECK(reader.get() == filled(kBlockBytes, 1));
  reclaimer.get();
  backend.on_read = nullptr;
  CHECK(memory->list(volume_folder(uuid)) ==
        std::vector<std::string>{"data.2", "header", "lock", "map", "map.1", "owner.1", "readers"});
  volume->close();
}

TEST_CASE("a version that is being read is not removed, and one that was is not read") {
  Fixture f;
  f.store->create_volume("vm1", kRegionBytes, "");
  f.write("vm1", 0, 1);
  f.version("vm1");
  f.version("vm1");
  f.version("vm1");
  {
    const auto disk = f.store->open_export("vm1@1", test_peer());
    CHECK(error_code([&] { f.store->remove_versions("vm1", {"1"}); }) == EBUSY);
    // All or none.
    CHECK(error_code([&] { f.store->remove_versions("vm1", {"2", "1"}); }) == EBUSY);
    CHECK(f.read("vm1@2", 0) == filled(kBlockBytes, 1));
    // Another process has a store of its own.
    Store other(std::make_unique<ForwardingBackend>(*f.memory), StoreOptions{});
    CHECK(error_code([&] { other.remove_versions("vm1", {"1"}); }) == EBUSY);
  }
  {
    const auto disk = f.store->open_export("vm1@1..2", test_peer());
    CHECK(error_code([&] { f.store->remove_versions("vm1", {"1"}); }) == EBUSY);
    CHECK(error_code([&] { f.store->remove_versions("vm1", {"2"}); }) == EBUSY);
  }
  // The server has the volume open, and readers of its other versions; somebody else removes one.
  const auto kept = f.store->open_export("vm1@2", test_peer());
  f.store->remove_versions("vm1", {"1"});
  CHECK(error_code([&] { f.store->open_export("vm1@1", test_peer()); }) == ENOENT);
  CHECK(error_code([&] { f.store->remove_versions("vm1", {"1"}); }) == ENOENT);
  CHECK(error_code([&] { f.store->remove_versions("vm1", {"4"}); }) == EBUSY);
  f.store->reclaim();
  CHECK(f.read("vm1@2", 0) == filled(kBlockBytes, 1));
  CHECK(f.read("vm1", 0) == filled(kBlockBytes, 1));
}

TEST_CASE("a name leads to the version that has it now, whatever other readers have open") {
  for (const bool has_owner : {true, false}) {
    INFO("beside a writer: " << has_owner);
    Fixture f;
    f.store->create_volume("vm1", kRegionBytes, "");
    f.write("vm1", 0, 1);
    f.store->create_version("vm1", {"daily", "", {}});
    f.write("vm1", 0, 2);
    f.version("vm1");
    // A reader that comes while somebody has the volume open shares its map with those after it.
    auto writer = f.store->open_export("vm1", test_peer());
    const auto reader = f.store->open_export("vm1@2", test_peer());
    f.store->remove_versions("vm1", {"daily"});
    f.write("vm1", 0, 3);
    if (!has_owner) writer.reset();
    CHECK(error_code([&] { f.store->open_export("vm1@daily", test_peer()); }) == ENOENT);
    f.store->create_version("vm1", {"daily", "", {}});
    CHECK(f.read("vm1@daily", 0) == filled(kBlockBytes, 3));
    CHECK(f.read("vm1@2", 0) == filled(kBlockBytes, 2));
  }
}

TEST_CASE("a file that cannot be punched keeps no other from giving back its space") {
  const auto memory = memory_store();
  ForwardingBackend backend(*memory);
  const Uuid uuid = random_uuid();
  create_volume(backend, uuid, kRegionBytes, nullptr);
  const auto volume = open_volume(backend, uuid);
  for (int value = 1; value <= 3; ++value) {
    volume->write(0, filled(kBlockBytes, value), false);
    volume->versions().create({});
  }
  volume->write(0, filled(kBlockBytes, 4), true);
  volume->versions().remove({"1", "2", "3"});
  const std::string folder = volume_folder(uuid);
  int punches = 0;
  backend.on_punch = [&](const std::string& name) {
    if (name != folder + "/data.1") return;
    ++punches;
    fail(EIO, name, "cannot be punched");
  };
  CHECK(error_code([&] { volume->space().run(); }) == EIO);
  CHECK(punches == 1);
  const auto files = [&] {
    std::set<std::string> names;
    for (const std::string& name : memory->list(folder))
      if (name.starts_with("data.")) names.insert(name);
    return names;
  };
  CHECK(files() == std::set<std::string>{"data.1", "data.4"});
  // Upkeep does not try it each time it comes by, and a checkpoint does not forget it.
  for (int i = 0; i < 5; ++i) volume->space().run(std::chrono::milliseconds(100));
  CHECK(punches <= 2);
  volume->checkpoint();
  volume->close();
  backend.on_punch = nullptr;
  const auto again = open_volume(backend, uuid);
  again->space().run();
  CHECK(files() == std::set<std::string>{"data.4"});
  again->close();
}

TEST_CASE("a fork of a fork a hundred times over still reads with one lookup") {
  Fixture f;
  constexpr uint32_t kDepth = 100;
  f.store->create_volume("f0", kRegionBytes, "");
  f.write("f0", 0, 1);
  for (uint32_t i = 1; i <= kDepth; ++i) {
    const std::string parent = fmt::format("f{}", i - 1);
    const uint32_t number = f.version(parent);
    f.store->fork_volume(fmt::format("f{}", i), parent, std::to_string(number), 0);
    f.write(fmt::format("f{}", i), i, static_cast<int>(i % 200 + 2));
  }
  const std::string last = fmt::format("f{}", kDepth);
  // Without the volumes in between.
  for (uint32_t i = 0; i < kDepth; ++i) f.store->remove_volume(fmt::format("f{}", i));
  CHECK(f.store->list_volumes().size() == 1);
  CHECK(f.memory->list("volumes").size() == kDepth + 1);
  {
    const auto disk = f.store->open_export(last, test_peer());
    for (uint32_t i = 0; i <= kDepth; ++i) {
      ByteVector bytes(kBlockBytes);
      disk->read(i * kBlockBytes, bytes);
      CHECK(bytes == filled(kBlockBytes, i == 0 ? 1 : static_cast<int>(i % 200 + 2)));
    }
    const StoreStats stats = f.store->stats();
    CHECK(stats.volumes.at(0)[Counter::kDataFileReads] == kDepth + 1);
  }
  CHECK(f.store->show_volume(last).shared_bytes == kDepth * kBlockBytes);
  // Its own copy frees all the others, one after the other.
  f.store->flatten_volume(last, [](uint64_t) {});
  CHECK(f.memory->list("volumes").size() == 1);
  CHECK(f.store->show_volume(last).shared_bytes == 0);
  for (uint32_t i = 0; i <= kDepth; ++i)
    CHECK(f.read(last, i) == filled(kBlockBytes, i == 0 ? 1 : static_cast<int>(i % 200 + 2)));
}

TEST_CASE("a volume that forks need keeps what they need, and nothing else") {
  Fixture f;
  const std::string uuid = f.store->create_volume("vm1", 4 * kRegionBytes, "").uuid.text();
  for (uint64_t block = 0; block < 100; ++block) f.write("vm1", block, 1);
  f.version("vm1");
  for (uint64_t block = 50; block < 150; ++block) f.write("vm1", block, 2);
  f.version("vm1");
  for (uint64_t block = 100; block < 300; ++block) f.write("vm1", block, 3);
  f.store->fork_volume("vm2", "vm1", "1", 0);
  CHECK(error_code([&] { f.store->fork_volume("vm2", "vm1", "2", 0); }) == EEXIST);
  CHECK(error_code([&] { f.store->fork_volume("vm3", "vm1", "7", 0); }) == ENOENT);
  CHECK(error_code([&] { f.store->fork_volume("vm3", "vm1", "1", kRegionBytes); }) == EINVAL);
  f.store->remove_versions("vm1", {"1"});
  // It is hidden, and says for whom.
  const VolumeInfo info = f.store->show_volume("vm1");
  CHECK(info.versions.at(0).is_hidden);
  CHECK(info.versions.at(0).forks == std::vector<std::string>{"vm2"});
  CHECK(error_code([&] { f.store->open_export("vm1@1", test_peer()); }) == ENOENT);
  CHECK(error_code([&] { f.store->fork_volume("vm3", "vm1", "1", 0); }) == ENOENT);
  f.store->remove_volume("vm1");
  CHECK(f.allocated(uuid) == 100 * kBlockBytes);
  for (uint64_t block = 0; block < 100; ++block) CHECK(f.read("vm2", block) == filled(4096, 1));
  CHECK(f.read("vm2", 100) == filled(kBlockBytes, 0));
  // What the fork does not need any more is needed by its base all the same.
  f.write("vm2", 0, 9);
  f.store->reclaim();
  CHECK(f.allocated(uuid) == 100 * kBlockBytes);
  f.store->remove_volume("vm2");
  CHECK(f.memory->list("volumes").empty());
}

TEST_CASE("a volume that forks need lets go of what current has of removed versions") {
  Fixture f;
  const std::string uuid = f.store->create_volume("vm1", 4 * kRegionBytes, "").uuid.text();
  f.write("vm1", 0, 1);
  f.version("vm1");
  f.store->fork_volume("vm2", "vm1", "1", 0);
  for (uint64_t block = 0; block < 100; ++block) f.write("vm1", block, 2);
  f.version("vm1");
  // Current starts from the version that is pinned then, and has written nothing.
  f.store->remove_versions("vm1", {"2"});
  f.store->reclaim();
  CHECK(f.allocated(uuid) == 101 * kBlockBytes);
  f.store->remove_volume("vm1");
  f.store->reclaim();
  CHECK(f.allocated(uuid) == kBlockBytes);
  CHECK(f.read("vm2", 0) == filled(kBlockBytes, 1));
}

TEST_CASE("a fork's readers keep the parent from going when it is flattened") {
  Fixture f;
  f.store->create_volume("vm1", kRegionBytes, "");
  f.write("vm1", 0, 1);
  f.version("vm1");
  f.store->fork_volume("vm2", "vm1", "1", 0);
  f.version("vm2");
  f.store->remove_volume("vm1");
  auto reader = f.store->open_export("vm2@2", test_peer());
  CHECK(error_code([&] { f.store->flatten_volume("vm2", [](uint64_t) {}); }) == EBUSY);
  f.store->reclaim();
  ByteVector bytes(kBlockBytes);
  reader->read(0, bytes);
  CHECK(bytes == filled(kBlockBytes, 1));
  reader.reset();
  f.store->flatten_volume("vm2", [](uint64_t) {});
  CHECK(error_code([&] { f.store->flatten_volume("vm2", [](uint64_t) {}); }) == EINVAL);
  CHECK(f.memory->list("volumes").size() == 1);
  CHECK(f.read("vm2@2", 0) == filled(kBlockBytes, 1));
  CHECK(f.read("vm2", 0) == filled(kBlockBytes, 1));
}

TEST_CASE("on a full disk a version can be removed, and that makes room") {
  Fixture f;
  f.store->create_volume("vm1", 4 * kRegionBytes, "");
  const auto disk = f.store->open_export("vm1", test_peer());
  disk->write(0, filled(kRegionBytes, 1), true);
  f.version("vm1");
  disk->write(0, filled(kRegionBytes, 2), true);
  f.memory->set_capacity_bytes(f.memory->allocated_bytes());
  CHECK(error_code([&] { disk->write(kRegionBytes, filled(kRegionBytes, 3), true); }) == ENOSPC);
  f.store->remove_versions("vm1", {"1"});
  f.store->reclaim();
  disk->write(kRegionBytes, filled(kRegionBytes / 2, 3), true);
  CHECK(f.read("vm1", 0) == filled(kBlockBytes, 2));
  CHECK(f.read("vm1", kRegionBlocks) == filled(kBlockBytes, 3));
}

TEST_CASE("versions that are removed and kept can be restored until their time has come") {
  Fixture f;
  const Uuid uuid = f.store->create_volume("vm1", kRegionBytes, "").uuid;
  for (int value = 1; value <= 3; ++value) {
    f.write("vm1", 0, value);
    f.store->create_version("vm1", {fmt::format("v{}", value), "", {}});
  }
  const auto visible = [&] {
    std::string names;
    for (const VersionInfo& version : f.store->show_volume("vm1").versions)
      if (!version.is_hidden && !version.is_current) names += version.name + " ";
    return names;
  };
  const std::string object = "removed/" + uuid.text();
  CHECK(f.store->put_versions_aside("vm1", {"v1", "2"}, 3600).size() == 2);
  CHECK(visible() == "v3 ");
  for (const std::string version : {"v1", "2"}) {
    CHECK(error_code([&] { f.store->open_export("vm1@" + version, new_peer()); }) == ENOENT);
    CHECK(error_code([&] { f.store->rollback("vm1", version); }) == ENOENT);
    CHECK(error_code([&] { f.store->fork_volume("vm2", "vm1", version, 0); }) == ENOENT);
    CHECK(error_code([&] { f.store->remove_versions("vm1", {version}); }) == ENOENT);
  }
  CHECK(error_message([&] { f.store->rollback("vm1", "v1"); }).find("restore vm1 v1") !=
        std::string::npos);
  // All or none; and a name is not given twice, so that each can come back.
  CHECK(error_code([&] { f.store->put_versions_aside("vm1", {"v3", "v1"}, 3600); }) == ENOENT);
  CHECK(visible() == "v3 ");
  CHECK(error_code([&] { f.store->create_version("vm1", {"v1", "", {}}); }) == EEXIST);
  CHECK(error_code([&] { f.store->restore_version("vm1", "v3"); }) == ENOENT);
  CHECK(f.store->list_removed_versions("vm1").size() == 2);
  // Nothing takes them for garbage.
  f.store->remove_expired();
  f.store->remove_orphans();
  f.store->reclaim();
  CHECK(f.store->restore_version("vm1", "v1").number == 1);
  CHECK(visible() == "v1 v3 ");
  CHECK(f.read("vm1@v1", 0) == filled(kBlockBytes, 1));

  // Its time comes; what is read stays until that ends, and what is damaged stays.
  f.memory->set_content(object + ".2", as_bytes(std::string_view("{\"removed_ns\":1}")));
  f.store->remove_expired();
  CHECK(f.store->restore_version("vm1", "v2").number == 2);
  const auto reader = f.store->open_export("vm1@v2", new_peer());
  const std::string_view expired = "{\"removed_ns\":1,\"until_ns\":2}";
  f.memory->set_content(object + ".2", as_bytes(expired));
  f.memory->set_content(object + ".3", as_bytes(expired));
  f.store->put_versions_aside("vm1", {"v1"}, 3600);
  f.store->remove_expired();
  CHECK(f.memory->list("removed") ==
        std::vector<std::string>{uuid.text() + ".1", uuid.text() + ".2"});
  f.store->restore_version("vm1", "v1");
  CHECK(visible() == "v1 ");
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 2));
  f.store->create_version("vm1", {"v3", "", {}});

  // Of a volume that can be restored they can be, too; with the volume they go.
  f.store->remove_versions("vm1", {"v3"});
  CHECK(error_code([&] { f.store->remove_volume("vm1"); }) == EBUSY);
}

TEST_CASE("what is kept of a volume's versions goes with the volume and not before") {
  Fixture f;
  const Uuid uuid = f.store->create_volume("vm1", kRegionBytes, "").uuid;
  f.write("vm1", 0, 1);
  f.version("vm1");
  f.store->put_versions_aside("vm1", {"1"}, 1);
  const std::string object = "removed/" + uuid.text() + ".1";
  const std::string_view expired = "{\"removed_ns\":1,\"until_ns\":2}";
  f.memory->set_content(object, as_bytes(expired));
  f.store->remove_volume("vm1", Store::IfDamaged::kKeep, 3600);
  f.store->remove_expired();
  f.store->remove_orphans();
  CHECK(f.memory->get(object, 4096));
  f.store->restore_volume("vm1");
  f.store->restore_version("vm1", "1");
  CHECK(f.read("vm1@1", 0) == filled(kBlockBytes, 1));
  f.store->put_versions_aside("vm1", {"1"}, 3600);
  f.store->remove_volume("vm1");
  CHECK(f.memory->list("removed").empty());
  f.memory->put_new("removed/" + random_uuid().text() + ".7", as_bytes(expired));
  f.store->remove_expired();
  CHECK(f.memory->list("removed").empty());
}

TEST_CASE("a version that could not be put aside is there, and one of several is all of them") {
  Fixture f;
  f.store->create_volume("vm1", kRegionBytes, "");
  for (int i = 0; i < 3; ++i) f.version("vm1");
  size_t puts = 0;
  f.backend->on_put = [&](const std::string& name) {
    if (name.starts_with("removed/") && ++puts == 2) fail(EIO, name, "syncing its folder");
  };
  CHECK(error_code([&] { f.store->put_versions_aside("vm1", {"1", "2", "3"}, 60); }) == EIO);
  CHECK(f.memory->list("removed").empty());
  for (const std::string version : {"1", "2", "3"})
    CHECK(f.store->open_export("vm1@" + version, new_peer()) != nullptr);
}

TEST_CASE("an import that fails leaves the volume as it was") {
  Fixture f;
  f.store->create_volume("vm1", kRegionBytes, "");
  f.write("vm1", 0, 1);
  f.version("vm1");
  f.write("vm1", 0, 2);
  const auto breaks = [](Disk& disk) {
    disk.write(kBlockBytes, filled(kBlockBytes, 3), false);
    fail(EIO, "file", "breaks");
  };
  Store::ImportedVersion imported;
  imported.base = "1";
  imported.size_bytes = 2 * kRegionBytes;
  CHECK(error_code([&] { f.store->import_version("vm1", imported, breaks); }) == EIO);
  CHECK(f.read("vm1@1", 0) == filled(kBlockBytes, 1));
  // What current was is kept as a version; now it is like version 1.
  CHECK(f.read("vm1@2", 0) == filled(kBlockBytes, 2));
  {
    const auto disk = f.store->open_export("vm1", new_peer());
    CHECK(bytes_at(*disk, 0) == filled(kBlockBytes, 1));
    CHECK(bytes_at(*disk, kBlockBytes) == filled(kBlockBytes, 0));
  }
  CHECK(f.store->show_volume("vm1").size_bytes == kRegionBytes);
  imported.version = {"there", "from elsewhere", {random_uuid(), 7}};
  const VersionInfo made = f.store->import_version(
      "vm1", imported, [](Disk& disk) { disk.write(kBlockBytes, filled(kBlockBytes, 3), false); });
  CHECK(made.name == "there");
  CHECK(made.size_bytes == 2 * kRegionBytes);
  CHECK(f.read("vm1@there", 0) == filled(kBlockBytes, 1));
  CHECK(f.read("vm1@there", 1) == filled(kBlockBytes, 3));
  // It is known as what it was there, and no other one passes for it.
  imported.base = "there";
  imported.base_identity = {random_uuid(), 7};
  imported.version = {};
  CHECK(error_code([&] { f.store->import_version("vm1", imported, [](Disk&) {}); }) == EINVAL);
  imported.base_identity = made.identity;
  CHECK(f.store->import_version("vm1", imported, [](Disk&) {}).parent == made.number);
  // A new volume is not left half made.
  imported = {};
  imported.size_bytes = kRegionBytes;
  CHECK(error_code([&] { f.store->import_version("vm2", imported, breaks); }) == EIO);
  CHECK(f.store->list_volumes().size() == 1);
}

TEST_CASE("an import that is cut off anywhere is complete, or has not been") {
  Random random(test_seed());
  const auto backend = memory_store();
  {
    Store store(std::make_unique<ForwardingBackend>(*backend), StoreOptions());
    store.create_volume("vm1", kRegionBytes, "");
    store.open_export("vm1", new_peer())->write(0, filled(kBlockBytes, 1), true);
    const VersionInfo base = store.create_version("vm1", {"base", "", {}});
    backend->set_recording(false);
    backend->set_recording(true);
    Store::ImportedVersion imported;
    imported.base = "base";
    imported.base_identity = base.identity;
    imported.size_bytes = 2 * kRegionBytes;
    imported.version = {"there", "", {random_uuid(), 7}};
    const auto fill = [](Disk& disk) {
      disk.write(0, filled(kBlockBytes, 3), true);
      disk.write(kBlockBytes, filled(kBlockBytes, 3), false);
    };
    store.import_version("vm1", imported, fill);
  }
  size_t whole = 0, none = 0;
  const auto look = [&](MemoryBackend& after) {
    Store store(std::make_unique<ForwardingBackend>(after), StoreOptions());
    const auto disk = store.open_export("vm1", new_peer());
    std::vector<std::string> names;
    const VolumeInfo volume = store.show_volume("vm1");
    for (const VersionInfo& version : volume.versions)
      if (!version.is_hidden) names.push_back(version.name);
    const bool is_whole = names.size() == 3;
    CHECK(names[0] == "base");
    if (is_whole) CHECK(names[1] == "there");
    CHECK(names.back().empty());
    CHECK(names.size() == (is_whole ? 3 : 2));
    CHECK(volume.size_bytes == (is_whole ? 2 : 1) * kRegionBytes);
    CHECK(bytes_at(*disk, 0) == filled(kBlockBytes, is_whole ? 3 : 1));
    CHECK(bytes_at(*disk, kBlockBytes) == filled(kBlockBytes, is_whole ? 3 : 0));
    CHECK(!after.get(volume_folder(volume.uuid) + "/import", 100));
    ++(is_whole ? whole : none);
  };
  for (CrashWalker walker(*backend);; walker.advance()) {
    for (const auto kind : {MemoryBackend::Crash::kKill, MemoryBackend::Crash::kLoseUnsynced,
                            MemoryBackend::Crash::kRandom}) {
      if (kIsSanitized && !random.chance(4)) continue;
      const auto after = walker.crash(kind, random.below(UINT64_MAX));
      const size_t events = walker.event_count();
      INFO("crash " << static_cast<int>(kind) << " behind event " << events << ": "
                    << (events == 0 ? "-" : backend->describe_event(events - 1)));
      if (random.chance(2)) {
        // Undoing it is cut off too.
        Store(std::make_unique<ForwardingBackend>(*after), StoreOptions()).reclaim_volume("vm1");
        look(*after->crash(random.below(after->event_count() + 1), kind, random.below(UINT64_MAX)));
      } else {
        look(*after);
      }
    }
    if (walker.is_at_end()) break;
  }
  MESSAGE(whole << " whole, " << none << " not begun");
  CHECK(whole > 0);
  CHECK(none > 0);
}

TEST_CASE("a volume with half an import that cannot be undone is not a VM's until it is put back") {
  Fixture f;
  const Uuid uuid = f.store->create_volume("vm1", kRegionBytes, "").uuid;
  f.write("vm1", 0, 1);
  f.version("vm1");
  f.memory->set_content(volume_folder(uuid) + "/import", as_bytes(std::string_view("1 x")));
  CHECK(error_message([&] { f.store->open_export("vm1", new_peer()); }).find("rollback vm1") !=
        std::string::npos);
  f.store->rollback("vm1", "1");
  CHECK(bytes_at(*f.store->open_export("vm1", new_peer()), 0) == filled(kBlockBytes, 1));
}

TEST_CASE("the log stays small while versions come and go") {
  MemoryBackend backend;
  const Uuid uuid = random_uuid();
  create_map(backend, "v", uuid, uint64_t{1} << 40);
  const auto map = VolumeMap::open(backend, "v", uuid, Access::kWrite);
  map->start_writing([] {}, [] {});
  Random random(test_seed());
  const auto write = [&](uint64_t block) {
    LogReservation reserved(*map, 1);
    map->assign({{block, 1}, map->current()}, reserved);
  };
  const auto upkeep = [&] {
    map->commit();
    if (map->wants(VolumeMap::Upkeep::kCheckpoint)) map->checkpoint();
    if (map->wants(VolumeMap::Upkeep::kCompaction)) map->compact();
    while (map->collect_one()) {
    }
    map->commit();
    map->update_free_ranges([](FreeRanges& free) {
      while (!free.take(1000).empty()) free.finish({});
    });
  };
  for (int i = 0; i < 20'000; ++i) write(random.below(64 * kRegionBlocks));
  upkeep();
  map->checkpoint();
  map->compact();
  const uint64_t base_bytes = map->stats().log_bytes;
  uint64_t largest = 0;
  for (int i = 0; i < 400; ++i) {
    const uint32_t frozen = [&] {
      LogReservation reserved(*map, VersionChange::kFreezeRecords);
      return map->change_versions().freeze({}, reserved);
    }();
    for (int j = 0; j < 300; ++j) write(random.below(64 * kRegionBlocks));
    map->change_versions().hide({frozen});
    if (i % 4 == 0) map->checkpoint();
    upkeep();
    largest = std::max(largest, map->stats().log_bytes);
  }
  CHECK(map->versions().size() <= 1);
  CHECK(largest < 4 * base_bytes + (2 << 20));
  CHECK_FALSE(map->ask(&MapState::has_outstanding));
}

}  // namespace tplstore::version_removal_test
