// One writer: the lock, the header, and who may join.
#include "lock/writer_lock.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/host.h"
#include "store_testing.h"

namespace tplstore::writer_lock_test {
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

TEST_CASE("after a crash the VM that was connected comes back at once, others when it has gone") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  Peer owner = vm_peer();
  SUBCASE("it lives") {}
  SUBCASE("it has gone") { owner.start_time += 1; }
  const bool lives = owner.start_time == vm_peer().start_time;
  auto disk = s.one->open_export("vm", owner);
  disk->write(5, as_bytes("flushed"), true);
  const auto after = s.memory->crash(s.memory->event_count(), MemoryBackend::Crash::kKill, 1);
  Store next(std::make_unique<ForwardingBackend>(*after), s.options);
  CHECK_FALSE(next.show_volume("vm").is_attached);
  CHECK(next.show_lock("vm").state == LockInfo::State::kCrashed);
  if (lives) {
    CHECK(refusal(next, other_peer()).find("kept for a VM") != std::string::npos);
    CHECK(error_code([&] { next.create_version("vm", {}); }) == EBUSY);
    CHECK(error_code([&] { next.remove_volume("vm"); }) == EBUSY);
  }
  const auto again = next.open_export("vm", lives ? owner : other_peer());
  ByteVector bytes(7);
  again->read(5, bytes);
  CHECK(to_text(bytes) == "flushed");
  const bool told = std::any_of(s.log.begin(), s.log.end(), [](const std::string& line) {
    return line.find("taking over from a VM") != std::string::npos;
  });
  CHECK(told);
}

TEST_CASE("what is known by its token only has a time to come back after a crash") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  const Peer anywhere{"127.0.0.1:4711", 0, 0};
  auto disk = s.one->open_export("vm;writer=a", anywhere);
  const auto after = s.memory->crash(s.memory->event_count(), MemoryBackend::Crash::kKill, 1);
  StoreOptions options = s.options;
  options.reconnect_grace = std::chrono::milliseconds(200);
  Store next(std::make_unique<ForwardingBackend>(*after), options);
  CHECK(refusal(next, anywhere).find("kept for 127.0.0.1") != std::string::npos);
  SUBCASE("it comes") { CHECK(next.open_export("vm;writer=a", anywhere) != nullptr); }
  SUBCASE("it does not, and another one writes") {
    std::unique_ptr<Disk> another;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!another && std::chrono::steady_clock::now() < deadline) {
      try {
        another = next.open_export("vm", anywhere);
      } catch (const Error&) {
      }
    }
    REQUIRE(another);
    another->write(0, as_bytes("new"), true);
    another.reset();
    CHECK(error_message([&] { next.open_export("vm;writer=a", anywhere); }).find("others have") !=
          std::string::npos);
  }
}

TEST_CASE("who was replaced, or lost its lock, is refused whatever it asks for") {
  TwoServers s;
  s.one->create_volume("vm", 1 << 20, "");
  auto disk = s.one->open_export("vm", vm_peer());
  disk->write(0, as_bytes("old"), true);
  const LockInfo held = s.one->show_lock("vm");
  CHECK(held.state == LockInfo::State::kHeld);
  CHECK(held.connections == 1);
  CHECK(held.has_written);
  CHECK(error_code([&] { s.one->break_lock("vm", held.epoch + 1); }) == EBUSY);
  CHECK(error_code([&] { s.two->break_lock("vm", held.epoch); }) == EBUSY);
  s.one->break_lock("vm", held.epoch);
  ByteVector bytes(3);
  CHECK(error_code([&] { disk->read(0, bytes); }) == ESHUTDOWN);
  CHECK(error_code([&] { disk->write(0, as_bytes("bad"), false); }) == ESHUTDOWN);
  CHECK(error_code([&] { disk->trim(0, 4096, false); }) == ESHUTDOWN);
  CHECK(error_code([&] { disk->flush(); }) == ESHUTDOWN);
  CHECK(error_message([&] { s.one->open_export("vm", vm_peer()); }).find("others have") !=
        std::string::npos);
  auto next = s.one->open_export("vm", other_peer());
  next->read(0, bytes);
  CHECK(to_text(bytes) == "old");
  next.reset();
  disk.reset();
  const LockInfo after = s.two->show_lock("vm");
  CHECK(after.state == LockInfo::State::kFree);
  REQUIRE(after.losers.size() == 1);
  CHECK(after.losers[0].peer == "a VM");
  CHECK(error_code([&] { s.one->break_lock("vm", after.epoch); }) == EINVAL);
}

TEST_CASE("a header of an older format is refused, and says so") {
  TwoServers s;
  const VolumeInfo info = s.one->create_volume("vm", 1 << 20, "");
  const std::string header = volume_folder(info.uuid) + "/header";
  ByteVector bytes = s.memory->content(header);
  for (const uint64_t slot : {uint64_t{0}, kSlotBytes}) bytes[slot + 15] = std::byte{'1'};
  s.memory->set_content(header, bytes);
  CHECK(error_message([&] { s.one->open_export("vm", vm_peer()); }).find("older tplstore") !=
        std::string::npos);
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

}  // namespace tplstore::writer_lock_test
