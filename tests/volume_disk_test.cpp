// Reading a volume as it is now, beside the VM that writes it: "vm1@current".
#include "store/volume_disk.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <thread>

#include "store_testing.h"

namespace tplstore::volume_disk_test {
namespace {

struct Fixture {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  std::unique_ptr<Store> store = open();

  Fixture() { store->create_volume("vm1", kDiskBytes, ""); }

  // A server's, on the same storage.
  std::unique_ptr<Store> open() {
    return std::make_unique<Store>(std::make_unique<ForwardingBackend>(*memory), StoreOptions());
  }
  std::unique_ptr<Disk> writer() { return store->open_export("vm1", vm_peer()); }
  std::unique_ptr<Disk> reader() { return store->open_export("vm1@current", test_peer()); }
  std::string folder() { return volume_folder(store->show_volume("vm1").uuid); }
  // How many versions there are, hidden ones too.
  size_t versions() { return store->show_volume("vm1").versions.size() - 1; }
  std::unique_ptr<MemoryBackend> power_cut() {
    return memory->crash(memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
  }
  ByteVector header() { return memory->content(header_name(folder())); }
};

}  // namespace

TEST_CASE("current is read as it was at the first read, while its VM goes on writing") {
  Fixture f;
  const auto writer = f.writer();
  writer->write(0, filled(kBlockBytes, 1), false);
  const auto reader = f.reader();
  CHECK(reader->size_bytes() == kDiskBytes);
  CHECK_FALSE(reader->is_writable());
  CHECK_FALSE(reader->allows_multi_conn());
  writer->write(kBlockBytes, filled(kBlockBytes, 2), false);  // not flushed
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 1));
  CHECK(bytes_at(*reader, kBlockBytes) == filled(kBlockBytes, 2));
  writer->write(0, filled(kBlockBytes, 3), false);
  writer->trim(kBlockBytes, kBlockBytes, true);
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 1));
  CHECK(bytes_at(*reader, kBlockBytes) == filled(kBlockBytes, 2));
  CHECK(bytes_at(*writer, 0) == filled(kBlockBytes, 3));
  std::vector<Extent> extents;
  reader->extents(0, kDiskBytes, [&](const Extent& extent) {
    extents.push_back(extent);
    return true;
  });
  REQUIRE(extents.size() == 2);
  CHECK(extents[0].length == 2 * kBlockBytes);
  CHECK_FALSE(extents[0].is_hole);
  CHECK(extents[1].is_hole);
}

TEST_CASE("a reader of current changes nothing") {
  Fixture f;
  const auto reader = f.reader();
  CHECK(error_code([&] { reader->write(0, filled(512, 1), false); }) == EROFS);
  CHECK(error_code([&] { reader->trim(0, 512, false); }) == EROFS);
  CHECK(error_code([&] { reader->zero(0, 512, false); }) == EROFS);
  reader->flush();
}

TEST_CASE("opening a volume for reading only, and listing, costs nothing until something is read") {
  Fixture f;
  f.store->open_export("vm1", vm_peer())->write(0, filled(kBlockBytes, 1), true);
  const size_t events = f.memory->event_count();
  const auto reader = f.store->open_export("vm1", test_peer(), true);
  CHECK(reader->size_bytes() == kDiskBytes);
  const auto exports = f.store->list_exports();
  REQUIRE(exports.size() == 1);
  CHECK(exports[0].name == "vm1@current");
  CHECK(f.memory->event_count() == events);
  // Nor is it in anybody's way.
  f.writer()->write(0, filled(kBlockBytes, 2), true);
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 2));
}

TEST_CASE("the version of a reader is hidden, and gone soon after its connection") {
  Fixture f;
  const auto writer = f.writer();
  writer->write(0, filled(kBlockBytes, 1), true);
  auto reader = f.reader();
  bytes_at(*reader, 0);
  const auto list = f.store->show_volume("vm1").versions;
  REQUIRE(list.size() == 2);
  CHECK(list[0].is_hidden);
  CHECK(error_code([&] { f.store->open_export("vm1@1", test_peer()); }) == ENOENT);
  CHECK(error_code([&] { f.store->remove_versions("vm1", {"1"}); }) == ENOENT);
  CHECK(f.store->list_exports().size() == 1);

  // The upkeep leaves it as long as it is read.
  writer->write(0, filled(kBlockBytes, 2), true);
  f.store->reclaim_volume("vm1");
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 1));
  CHECK(f.versions() == 1);
  reader.reset();
  f.store->reclaim_volume("vm1");
  CHECK(f.versions() == 0);
  check_no_leak(*f.memory, f.store->show_volume("vm1").uuid, kDiskBytes);
  CHECK(allocated_cells(*f.memory, f.store->show_volume("vm1").uuid).size() == 1);
  CHECK(bytes_at(*writer, 0) == filled(kBlockBytes, 2));
}

TEST_CASE("at most four read one volume as it is now; each sees its own moment") {
  Fixture f;
  const auto writer = f.writer();
  std::vector<std::unique_ptr<Disk>> readers;
  for (int i = 0; i < 4; ++i) {
    writer->write(0, filled(kBlockBytes, i + 1), false);
    readers.push_back(f.reader());
    bytes_at(*readers.back(), 0);
  }
  const auto fifth = f.reader();
  CHECK(error_code([&] { bytes_at(*fifth, 0); }) == EBUSY);
  for (int i = 0; i < 4; ++i) CHECK(bytes_at(*readers[i], 0) == filled(kBlockBytes, i + 1));
  readers.erase(readers.begin());
  CHECK(bytes_at(*fifth, 0) == filled(kBlockBytes, 4));
}

TEST_CASE("a volume that nobody has is read without a claim, and its VM may come meanwhile") {
  Fixture f;
  f.writer()->write(0, filled(kBlockBytes, 1), true);
  const ByteVector header = f.header();
  const auto reader = f.reader();
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 1));
  CHECK(f.header() == header);
  CHECK_FALSE(f.memory->is_locked(lock_name(f.folder())));
  const auto writer = f.writer();
  writer->write(0, filled(kBlockBytes, 2), true);
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 1));
  f.store->reclaim_volume("vm1");
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 1));
}

TEST_CASE("reading again and again what nobody writes leaves one version at most") {
  Fixture f;
  for (int i = 0; i < 10; ++i) bytes_at(*f.reader(), 0);
  CHECK(f.versions() <= 1);
}

TEST_CASE("a volume of another server is refused to who reads it as it is now, naming that one") {
  Fixture f;
  const auto other = f.open();
  const auto writer = other->open_export("vm1", vm_peer());
  writer->write(0, filled(kBlockBytes, 1), true);
  const auto reader = f.reader();
  try {
    bytes_at(*reader, 0);
    FAIL("it was read");
  } catch (const Error& error) {
    CHECK(error.code() == EBUSY);
    CHECK(std::string(error.what()).find("a VM") != std::string::npos);
  }
}

TEST_CASE("what a crash left is refused until the next writer has come") {
  Fixture f;
  auto writer = f.writer();
  writer->write(0, filled(kBlockBytes, 1), true);
  // Another process, which has what was flushed and nothing of who holds which lock.
  const auto after = f.power_cut();
  Store store(std::make_unique<ForwardingBackend>(*after), StoreOptions());
  const auto reader = store.open_export("vm1@current", test_peer());
  CHECK(reader->size_bytes() == kDiskBytes);
  CHECK(error_code([&] { bytes_at(*reader, 0); }) == EBUSY);
  CHECK(store.list_exports()[0].description.find("its server died") != std::string::npos);
  store.open_export("vm1", vm_peer());
  CHECK(bytes_at(*reader, 0) == filled(kBlockBytes, 1));
}

TEST_CASE("versions of readers that a crash left are removed by the next owner") {
  Fixture f;
  auto writer = f.writer();
  writer->write(0, filled(kBlockBytes, 1), true);
  auto reader = f.reader();
  bytes_at(*reader, 0);
  writer->write(0, filled(kBlockBytes, 2), true);
  SUBCASE("before a checkpoint") {}
  SUBCASE("after one") { f.store->checkpoint(false); }
  SUBCASE("after a compaction") { f.store->checkpoint(true); }
  const auto after = f.power_cut();
  Store store(std::make_unique<ForwardingBackend>(*after), StoreOptions());
  const auto again = store.open_export("vm1", vm_peer());
  CHECK(bytes_at(*again, 0) == filled(kBlockBytes, 2));
  store.reclaim_volume("vm1");
  CHECK(store.show_volume("vm1").versions.size() == 1);
  check_no_leak(*after, store.show_volume("vm1").uuid, kDiskBytes);
}

TEST_CASE("a list names volumes, then versions, then templates, and who has them") {
  Fixture f;
  f.store->create_volume("vm0", kDiskBytes, "");
  f.store->create_version("vm0", {"clean", "", {}});
  import_test_template(*f.memory, "golden", filled(kRegionBytes, 1));
  const auto writer = f.writer();
  const auto exports = f.store->list_exports();
  REQUIRE(exports.size() == 4);
  CHECK(exports[0].name == "vm0@current");
  CHECK(exports[0].description == "volume of 16.0 MiB, write as vm0");
  CHECK(exports[1].name == "vm1@current");
  CHECK(exports[1].description.starts_with("volume of 16.0 MiB, write as vm1; in use by a VM of " +
                                           this_host().host_name + " since 2"));
  CHECK(exports[2].name == "vm0@1");
  CHECK(exports[3].name == "template/golden");
}

TEST_CASE("no version is called current, which names what is now") {
  Fixture f;
  CHECK(error_code([&] { f.store->create_version("vm1", {"current", "", {}}); }) == EINVAL);
  CHECK(error_code([&] { f.store->open_export("vm1@current..2", test_peer()); }) == EINVAL);
  CHECK(error_code([&] { f.store->open_export("vm1@1..current", test_peer()); }) == EINVAL);
}

}  // namespace tplstore::volume_disk_test
