// Claims: who was first, whose they are, and what becomes of them.
#include "lock/claims.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <cstring>

#include "store_testing.h"

namespace tplstore::claims_test {
namespace {

struct ClaimFixture : TwoServers {
  Uuid uuid = one->create_volume("vm", 1 << 20, "").uuid;
  std::string folder = volume_folder(uuid);

  uint64_t epoch() { return read_header(*memory, folder, uuid).epoch; }
  bool has(uint64_t of_epoch) {
    return memory->get(claim_name(folder, of_epoch), 4096).has_value();
  }
  HostClaim claim_of(uint64_t of_epoch) {
    HostClaim claim{};
    const ByteVector content = memory->content(claim_name(folder, of_epoch));
    REQUIRE(content.size() == sizeof claim);
    std::memcpy(&claim, content.data(), sizeof claim);
    return claim;
  }
  void put(HostClaim claim) {
    claim.checksum = checksum(bytes_of(claim).subspan(sizeof(uint64_t)), kClaimMagic);
    memory->put_new(claim_name(folder, claim.epoch), bytes_of(claim));
  }
  // A claim on the next epoch by a host that came no further, or has not yet.
  void claim_as_another_host(Store& store) {
    store.create_version("vm", {});
    HostClaim claim = claim_of(epoch());
    claim.epoch = epoch() + 1;
    claim.host_id = random_uuid();
    std::memcpy(claim.host_name, "kvm2", 5);
    put(claim);
  }
};

}  // namespace

TEST_CASE("who opens a volume has claimed the epoch before the header says so") {
  ClaimFixture f;
  std::vector<std::string> steps;
  f.between->around = [&](ForwardingBackend::Call call, const std::string& name,
                          const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kPutNew) steps.push_back("claim");
    if (name == header_name(f.folder) && call == ForwardingBackend::Call::kOpen)
      steps.push_back("look");
    if (name == header_name(f.folder) && call == ForwardingBackend::Call::kWrite)
      steps.push_back("write");
    go_on();
  };
  const auto disk = f.two->open_export("vm", living_peer());
  CHECK(steps == std::vector<std::string>{"look", "claim", "look", "write", "write"});
  const HostClaim claim = f.claim_of(1);
  CHECK(claim.host_id == this_host().host_id);
  CHECK(claim.boot_id == this_host().boot_id);
  CHECK(claim.server_pid == static_cast<uint32_t>(getpid()));
  CHECK(claim.volume == f.uuid);
}

TEST_CASE("claims are removed two epochs later, and go with the volume") {
  ClaimFixture f;
  for (uint64_t epoch = 1; epoch <= 12; ++epoch) {
    f.one->open_export("vm", living_peer());
    CHECK(f.epoch() == epoch);
    for (uint64_t old = 1; old <= epoch; ++old) CHECK(f.has(old) == (old + 1 >= epoch));
  }
  // One that a crash has brought back.
  f.memory->put_new(claim_name(f.folder, 8), {});
  f.one->open_export("vm", living_peer());
  CHECK_FALSE(f.has(8));
  f.one->remove_volume("vm");
  CHECK(f.memory->list(f.folder).empty());
}

TEST_CASE("a claim of this host that nothing came of is passed over") {
  ClaimFixture f;
  f.one->open_export("vm", living_peer());
  for (const bool is_whole : {true, false}) {
    const uint64_t before = f.epoch();
    HostClaim claim = f.claim_of(before);
    claim.epoch = before + 1;
    if (is_whole)
      f.put(claim);
    else
      f.memory->put_new(claim_name(f.folder, claim.epoch), {});  // a crash took what was in it
    CHECK(f.one->show_lock("vm").state == LockInfo::State::kFree);
    f.one->open_export("vm", living_peer())->write(0, as_bytes("x"), true);
    CHECK(f.epoch() == before + 2);
  }
}

TEST_CASE("what another host claims is refused and named, until an operator breaks it") {
  ClaimFixture f;
  f.claim_as_another_host(*f.one);
  const uint64_t epoch = f.epoch() + 1;
  const LockInfo shown = f.one->show_lock("vm");
  CHECK(shown.state == LockInfo::State::kForeign);
  CHECK(shown.epoch == epoch);
  REQUIRE(shown.writer);
  CHECK(shown.writer->host_name == "kvm2");
  for (const auto& action : std::vector<std::function<void()>>{
           [&] { f.one->open_export("vm", living_peer()); },
           [&] { f.one->create_version("vm", {}); }, [&] { f.one->remove_volume("vm"); }}) {
    const std::string message = error_message(action);
    CHECK(message.find("kvm2") != std::string::npos);
    CHECK(message.find(fmt::format("lock break vm --epoch {}", epoch)) != std::string::npos);
  }
  const auto current = f.one->open_export("vm@current", living_peer());
  ByteVector bytes(4);
  CHECK(error_message([&] { current->read(0, bytes); }).find("kvm2") != std::string::npos);
  CHECK(error_code([&] { f.one->break_lock("vm", epoch - 1); }) == EBUSY);
  f.one->break_lock("vm", epoch);
  CHECK(f.epoch() == epoch + 1);
  CHECK(f.has(epoch + 1));
  CHECK(f.one->show_lock("vm").state == LockInfo::State::kFree);
  CHECK(f.one->open_export("vm", living_peer()) != nullptr);
}

TEST_CASE("who is not the first to claim an epoch, or has read an old header, looks again") {
  ClaimFixture f;
  f.one->open_export("vm", living_peer());
  std::function<void()> meanwhile;
  f.between->around = [&](ForwardingBackend::Call call, const std::string&,
                          const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kPutNew) std::exchange(meanwhile, [] {})();
    go_on();
  };
  SUBCASE("another host has it") {
    meanwhile = [&] {
      HostClaim claim = f.claim_of(1);
      claim.epoch = 2;
      claim.host_id = random_uuid();
      f.put(claim);
    };
    CHECK(error_message([&] { f.two->open_export("vm", vm_peer()); }).find("lock break") !=
          std::string::npos);
    CHECK(f.epoch() == 1);
  }
  SUBCASE("it is another host's by now, and what it claimed was removed") {
    meanwhile = [&] {
      const auto object = f.memory->open(header_name(f.folder), Access::kWrite, Purpose::kMetadata);
      HeaderSlots slots(kHeaderMagic);
      VolumeHeader header = read_header(*object, f.folder, f.uuid, slots);
      header.epoch = 7;
      header.is_taken = 1;
      header.true_size_bytes = std::exchange(header.size_bytes, 0);
      header.host_id = random_uuid();
      slots.write(*object, header);
    };
    CHECK(error_message([&] {
            f.two->open_export("vm", vm_peer());
          }).find("lock break vm --epoch 7") != std::string::npos);
    CHECK(f.epoch() == 7);
  }
}

TEST_CASE("a claim that cannot be read is another host's where others can have the storage") {
  ClaimFixture f;
  f.one->open_export("vm", living_peer());
  f.memory->set_kind({"NFS", StorageKind::Reach::kHosts});
  SUBCASE("empty") { f.memory->put_new(claim_name(f.folder, 2), {}); }
  SUBCASE("of another volume") {
    HostClaim claim = f.claim_of(1);
    claim.epoch = 2;
    claim.volume = random_uuid();
    f.put(claim);
  }
  SUBCASE("long") { f.memory->put_new(claim_name(f.folder, 2), ByteVector(1 << 20)); }
  SUBCASE("without an end of the name") {
    HostClaim claim = f.claim_of(1);
    claim.epoch = 2;
    std::memset(claim.host_name, 'x', sizeof claim.host_name);
    f.put(claim);
  }
  CHECK(error_code([&] { f.one->open_export("vm", vm_peer()); }) == EBUSY);
  CHECK(f.one->show_lock("vm").state == LockInfo::State::kForeign);
  f.one->break_lock("vm", 2);
  CHECK(f.one->open_export("vm", vm_peer()) != nullptr);
}

TEST_CASE("what another host had last is not removed because its header cannot be read") {
  ClaimFixture f;
  for (int i = 0; i < 9; ++i) f.one->open_export("vm", living_peer());
  const ByteVector header = f.memory->content(header_name(f.folder));
  SUBCASE("another host's") {
    HostClaim claim = f.claim_of(f.epoch());
    claim.epoch = f.epoch() + 1;
    claim.host_id = random_uuid();
    std::memcpy(claim.host_name, "kvm2", 5);
    f.put(claim);
    f.memory->set_content(header_name(f.folder), ByteVector(header.size()));
    const std::string message =
        error_message([&] { f.one->remove_volume("vm", Store::IfDamaged::kRemove); });
    CHECK(message.find("on host kvm2") != std::string::npos);
    CHECK(message.find(claim_name(f.folder, claim.epoch)) != std::string::npos);
    CHECK(f.memory->get("names/vm", 100));
    f.memory->remove(claim_name(f.folder, claim.epoch));
  }
  SUBCASE("this host's") {
    f.memory->set_content(header_name(f.folder), ByteVector(header.size()));
  }
  f.one->remove_volume("vm", Store::IfDamaged::kRemove);
  CHECK_FALSE(f.memory->get("names/vm", 100));
}

TEST_CASE("an opening that fails leaves no claim, and the next one takes the same epoch") {
  ClaimFixture f;
  const ByteVector map = f.memory->content(f.folder + "/map");
  f.memory->set_content(f.folder + "/map", ByteVector(map.size()));
  for (int i = 0; i < 3; ++i) CHECK_THROWS_AS(f.one->open_export("vm", living_peer()), Error);
  CHECK(f.epoch() == 0);
  CHECK_FALSE(f.has(1));
  f.memory->set_content(f.folder + "/map", map);
  CHECK(f.one->open_export("vm", living_peer()) != nullptr);
  CHECK(f.epoch() == 1);
}

TEST_CASE("a volume is opened on a full disk, and a second host still sees the claim") {
  ClaimFixture f;
  f.one->open_export("vm", living_peer());
  f.memory->set_capacity_bytes(f.memory->allocated_bytes());
  for (int i = 0; i < 4; ++i) CHECK(f.one->open_export("vm", living_peer()) != nullptr);
  CHECK(f.has(f.epoch()));
}

}  // namespace tplstore::claims_test
