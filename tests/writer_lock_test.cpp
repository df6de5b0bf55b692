// One writer: the lock, the header, and who may join.
#include "lock/writer_lock.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <thread>

#include "base/host.h"
#include "store_testing.h"

namespace tplstore {
namespace {

Peer other_peer() { return {"init", 1, process_start_time(1)}; }

std::string refusal(Store& store, const Peer& peer) {
  try {
    store.open_export("vm", peer);
  } catch (const Error& error) {
    CHECK(error.code() == EBUSY);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("one VM may connect several times, a second VM is refused and told who has it") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  auto first = s.one->open_export("vm", living_peer());
  auto second = s.one->open_export("vm", living_peer());
  CHECK(first->allows_multi_conn());
  CHECK(refusal(*s.one, other_peer()).find("this test") != std::string::npos);
  CHECK(refusal(*s.two, living_peer()).find("this test") != std::string::npos);
  const VolumeInfo info = s.two->show_volume("vm");
  CHECK(info.is_attached);
  REQUIRE(info.writer);
  CHECK(info.writer->peer == "this test");
  CHECK(info.size_bytes == 1 << 20);
  CHECK_THROWS_AS(s.two->remove_volume("vm"), Error);
  CHECK_THROWS_AS(s.one->rollback("vm", "1"), Error);
  // Only the last connection to go frees it.
  first.reset();
  CHECK(!refusal(*s.one, other_peer()).empty());
  second.reset();
  CHECK_FALSE(s.two->show_volume("vm").is_attached);
  CHECK(s.two->open_export("vm", other_peer()) != nullptr);
}

TEST_CASE("a peer without a known process gets one connection") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  const Peer peer{"127.0.0.1:4711", 0, 0};
  const auto first = s.one->open_export("vm", peer);
  CHECK_FALSE(first->allows_multi_conn());
  CHECK(!refusal(*s.one, peer).empty());
}

TEST_CASE("the header's size is 0 while a writer has the volume, and true otherwise") {
  TwoServers s;
  const VolumeInfo info = s.one->create_volume("vm", 3 << 20, "");
  const std::string folder = volume_folder(info.uuid);
  CHECK(read_header(*s.memory, folder, info.uuid).size_bytes == 3 << 20);
  {
    const auto disk = s.one->open_export("vm", living_peer());
    CHECK(read_header(*s.memory, folder, info.uuid).size_bytes == 0);
    CHECK(disk_size(read_header(*s.memory, folder, info.uuid)) == 3 << 20);
  }
  const VolumeHeader header = read_header(*s.memory, folder, info.uuid);
  CHECK(header.size_bytes == 3 << 20);
  CHECK(header.is_taken == 0);
  CHECK(header.epoch == 1);
}

TEST_CASE("after a crash the next server takes over at once") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  auto disk = s.one->open_export("vm", living_peer());
  disk->write(5, as_bytes("flushed"), true);
  const auto after = s.memory->crash(s.memory->event_count(), MemoryBackend::Crash::kKill, 1);
  Store next(std::make_unique<ForwardingBackend>(*after), s.options);
  CHECK_FALSE(next.show_volume("vm").is_attached);
  const auto start = std::chrono::steady_clock::now();
  const auto again = next.open_export("vm", other_peer());
  CHECK(std::chrono::steady_clock::now() - start < WriterLock::kWaitMax);
  ByteVector bytes(7);
  again->read(5, bytes);
  CHECK(to_text(bytes) == "flushed");
  const bool told = std::any_of(s.log.begin(), s.log.end(), [](const std::string& line) {
    return line.find("taking over from this test") != std::string::npos;
  });
  CHECK(told);
}

TEST_CASE("a connection waits for the tool that has the volume for a moment") {
  TwoServers s;
  const VolumeInfo info = s.one->create_volume("vm", 1 << 20, "");
  const std::string lock = volume_folder(info.uuid) + "/lock";
  auto held = s.memory->try_lock(lock, LockMode::kExclusive);
  std::unique_ptr<Disk> disk;
  std::thread connects([&] { disk = s.one->open_export("vm", living_peer()); });
  held.reset();
  connects.join();
  CHECK(disk != nullptr);
}

TEST_CASE("an opening that fails gives the volume back") {
  TwoServers s;
  const VolumeInfo info = s.one->create_volume("vm", 1 << 20, "");
  const std::string folder = volume_folder(info.uuid);
  const ByteVector map = s.memory->content(folder + "/map");
  s.memory->set_content(folder + "/map", ByteVector(map.size()));
  CHECK_THROWS_AS(s.one->open_export("vm", living_peer()), Error);
  CHECK(read_header(*s.memory, folder, info.uuid).size_bytes == 1 << 20);
  s.memory->set_content(folder + "/map", map);
  CHECK(s.two->open_export("vm", other_peer()) != nullptr);
}

TEST_CASE("readers of frozen versions neither take the lock nor lose their volume") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  s.one->open_export("vm", living_peer())->write(0, as_bytes("one"), true);
  s.one->create_version("vm", {"first", "", {}});
  auto reader = s.two->open_export("vm@first", other_peer());
  const auto writer = s.one->open_export("vm", living_peer());
  writer->write(0, as_bytes("two"), true);
  ByteVector bytes(3);
  reader->read(0, bytes);
  CHECK(to_text(bytes) == "one");
  CHECK_THROWS_AS(reader->write(0, bytes, false), Error);
  CHECK_THROWS_AS(s.two->open_export("vm@2", other_peer()), Error);
  s.one->create_version("vm", {});
  CHECK(s.two->open_export("vm@2", other_peer())->size_bytes() == 1 << 20);
}

TEST_CASE("a volume whose version is being read is not removed") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  s.one->create_version("vm", {});
  auto reader = s.two->open_export("vm@1", other_peer());
  CHECK_THROWS_AS(s.one->remove_volume("vm"), Error);
  reader.reset();
  s.one->remove_volume("vm");
  CHECK(s.one->list_volumes().empty());
}

}  // namespace tplstore
