// Who collects garbage and who keeps it from that, on storage that several hosts may have: which
// claims there are, whose are in the way, and what is left of those who were killed.
#include "template/gc_lock.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "store_testing.h"
#include "template/template_catalog.h"

namespace tplstore::gc_lock_test {
namespace {

constexpr auto kShared = LockMode::kShared;
constexpr auto kAlone = LockMode::kExclusive;

struct Fixture {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  ForwardingBackend backend{*memory};
  std::string own = this_host().host_id.text();
  std::string first = "00000000-0000-0000-0000-000000000001";
  std::string last = "ffffffff-ffff-ffff-ffff-ffffffffffff";

  Fixture() { memory->set_kind({"NFS", StorageKind::Reach::kHosts}); }
  std::vector<std::string> claims() { return memory->list("gc.claims"); }
  void put(const std::string& host, const std::string& mode) {
    memory->put_new("gc.claims/" + host + mode,
                    as_bytes(std::string("host kvm2 (pid 7) since now")));
  }
  std::unique_ptr<HeldLock> hold(LockMode mode) { return hold_gc_lock(backend, mode, "it"); }
  std::string refusal(LockMode mode) {
    return error_message([&] { hold(mode); });
  }
};

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("on storage that one host has, nothing is claimed") {
  Fixture f;
  f.memory->set_kind({"memory"});
  f.put(f.first, ".alone");
  for (const LockMode mode : {kShared, kAlone}) {
    const auto lock = f.hold(mode);
    CHECK(lock);
    CHECK(f.claims() == Names{f.first + ".alone"});
  }
}

TEST_CASE("a host's claim is there as long as one of its processes has the lock") {
  Fixture f;
  auto one = f.hold(kShared);
  auto two = f.hold(kShared);
  CHECK(f.claims() == Names{f.own + ".shared"});
  CHECK_FALSE(f.hold(kAlone));
  CHECK(f.claims() == Names{f.own + ".shared"});
  one.reset();
  CHECK(f.claims() == Names{f.own + ".shared"});
  two.reset();
  CHECK(f.claims().empty());

  one = f.hold(kAlone);
  CHECK(f.claims() == Names{f.own + ".alone"});
  CHECK_FALSE(f.hold(kShared));
  one.reset();
  CHECK(f.claims().empty());
}

TEST_CASE("another host is in the way of those who do not go together with it, and is named") {
  Fixture f;
  const std::string other = "gc.claims/" + f.first;
  f.put(f.first, ".alone");
  const std::string gc = "host kvm2 (pid 7) since now removes templates or runs gc";
  CHECK(f.refusal(kShared).find(gc) != std::string::npos);
  CHECK(f.refusal(kAlone).find("'rm memory/" + other + ".alone'") != std::string::npos);
  f.memory->remove(other + ".alone");

  f.put(f.first, ".shared");
  CHECK(f.hold(kShared));
  CHECK(f.refusal(kAlone).find("imports templates or makes volumes") != std::string::npos);
  {
    // Who is refused does not take the claim of others of its host along.
    const auto lock = f.hold(kShared);
    f.put(f.first, ".alone");
    CHECK(f.refusal(kShared).find("runs gc") != std::string::npos);
    CHECK(f.claims().size() == 3);
  }
  f.memory->remove(other + ".alone");
  CHECK(f.claims() == Names{f.first + ".shared"});
  f.memory->remove(other + ".shared");

  // One that has to give way is waited for, but not without end.
  f.put(f.last, ".alone");
  CHECK(f.refusal(kShared).find("runs gc") != std::string::npos);
  CHECK(f.claims() == Names{f.last + ".alone"});
}

TEST_CASE("what a killed process of this host has left is in nobody's way, and goes") {
  for (const std::string& host : {this_host().host_id.text(), this_host().machine_id.text()}) {
    for (const LockMode mode : {kShared, kAlone}) {
      Fixture f;
      f.put(host, ".alone");
      f.put(host, ".shared");
      auto lock = f.hold(mode);
      CHECK(lock);
      if (host != f.own) continue;
      CHECK(f.claims() == Names{f.own + (mode == kShared ? ".shared" : ".alone")});
      lock.reset();
      CHECK(f.claims().empty());
    }
  }
}

TEST_CASE("of two hosts that come at the same moment one goes on") {
  Fixture f;
  std::string other;
  int looks = 0;
  f.backend.on_put = [&](const std::string& name) {
    if (name.starts_with("gc.claims/")) f.put(other, ".alone");
  };
  // The other one sees ours, and gives way after a while.
  f.backend.around = [&](ForwardingBackend::Call call, const std::string& name,
                         const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kList && name == "gc.claims" && ++looks == 3)
      f.memory->remove("gc.claims/" + other + ".alone");
    go_on();
  };
  other = f.last;
  auto lock = f.hold(kAlone);
  CHECK(lock);
  CHECK(f.claims() == Names{f.own + ".alone"});
  lock.reset();
  // Now it is this one that gives way.
  other = f.first;
  looks = -1000;
  CHECK(f.refusal(kAlone).find("kvm2") != std::string::npos);
  CHECK(f.claims() == Names{other + ".alone"});
}

TEST_CASE("a claim is not looked for before one's own is there") {
  Fixture f;
  bool is_there = false;
  f.backend.around = [&](ForwardingBackend::Call call, const std::string& name,
                         const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kList && name == "gc.claims")
      is_there = f.claims() == Names{f.own + ".shared"};
    go_on();
  };
  CHECK(f.hold(kShared));
  CHECK(is_there);
}

TEST_CASE("on a full disk a claim has no content") {
  Fixture f;
  f.backend.around = [](ForwardingBackend::Call call, const std::string& name,
                        const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kPutNew) fail(ENOSPC, name, "full");
    go_on();
  };
  for (int i = 0; i < 2; ++i) {
    const auto one = f.hold(kShared);
    const auto two = f.hold(kShared);
    CHECK(f.memory->content("gc.claims/" + f.own + ".shared").empty());
  }
  CHECK(f.claims().empty());
  f.memory->create("gc.claims/" + f.first + ".alone", 0, Purpose::kMetadata);
  CHECK(f.refusal(kAlone).find("host " + f.first + " removes") != std::string::npos);
}

TEST_CASE("what is no claim is in nobody's way") {
  Fixture f;
  for (const char* name : {"x", "x.alone", ".alone"})
    if (*name != '.') f.memory->put_new(std::string("gc.claims/") + name, {});
  f.memory->put_new("gc.claims/" + f.first + ".other", {});
  CHECK(f.hold(kAlone));
}

TEST_CASE("volumes are not made while another host collects, nor garbage while it makes some") {
  StoreFixture s;
  s.memory->set_kind({"NFS", StorageKind::Reach::kHosts});
  const std::string other = "gc.claims/00000000-0000-0000-0000-000000000001";
  s.memory->put_new(other + ".alone", {});
  CHECK(error_code([&] { s.store->create_volume("vm2", kDiskBytes, ""); }) == EBUSY);
  s.memory->remove(other + ".alone");
  s.memory->put_new(other + ".shared", {});
  s.store->create_volume("vm2", kDiskBytes, "");
  CHECK(error_code([&] { s.store->remove_orphans(); }) == EBUSY);
  CHECK(error_code([&] { gc(s.store->backend(), {}); }) == EBUSY);
  CHECK(error_code([&] { remove_template(s.store->backend(), "t", [] { return Names(); }); }) ==
        EBUSY);
  s.memory->remove(other + ".shared");
  CHECK(s.store->remove_orphans() == 0);
  CHECK(s.memory->list("gc.claims").empty());
}

}  // namespace tplstore::gc_lock_test
