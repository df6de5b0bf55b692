// The table of operations: what each must be given, and what one costs that the tool performs by
// itself.
#include "control/operations.h"

#include <doctest/doctest.h>

#include "store_testing.h"

namespace tplstore::operations_test {
namespace {

using nlohmann::json;

}  // namespace

TEST_CASE("what is performed here is asked for, and answered, as from a server") {
  StoreFixture f;
  const json version = {{"op", "version-create"}, {"volume", "vm1"}, {"name", "clean"}};
  const json made = control::perform(*f.store, version);
  CHECK(made["name"] == "clean");
  CHECK_NOTHROW(control::check_result("here", version, made));
  CHECK(error_code([&] { control::perform(*f.store, version); }) == EEXIST);
  for (const json& wrong :
       {json::object(), json{{"op", "reboot"}}, json{{"op", "version-list"}},
        json{{"op", "version-list"}, {"volume", "../vm1"}},
        json{{"op", "version-create"}, {"volume", "vm1"}, {"name", 7}},
        json{{"op", "version-rm"}, {"volume", "vm1"}, {"versions", {"1", nullptr}}},
        json{{"op", "volume-resize"}, {"volume", "vm1"}, {"size", -1}}}) {
    CAPTURE(wrong.dump());
    CHECK(error_code([&] { control::perform(*f.store, wrong); }) == EINVAL);
  }
  CHECK(control::perform(*f.store, {{"op", "version-list"}, {"volume", "vm1"}}).size() == 2);
}

TEST_CASE("a version of a volume that nobody has open is removed with one opening of it") {
  StoreFixture f;
  for (int value = 1; value <= 3; ++value) {
    f.store->open_export("vm1", vm_peer())->write(0, filled(1 << 20, value), true);
    f.store->create_version("vm1", {});
  }
  struct Counts {
    int openings = 0, headers = 0, syncs = 0;
  };
  const auto count = [&](const json& request) {
    Counts counts;
    f.backend->around = [&](ForwardingBackend::Call call, const std::string& name,
                            const std::function<void()>& go_on) {
      using Call = ForwardingBackend::Call;
      counts.openings += call == Call::kLock && name.ends_with("/lock");
      counts.headers += call == Call::kOpen && name.ends_with("/header");
      counts.syncs += call == Call::kSync || call == Call::kSyncFolder;
      go_on();
    };
    control::perform(*f.store, request);
    f.backend->around = nullptr;
    return counts;
  };
  const Counts created = count({{"op", "version-create"}, {"volume", "vm1"}});
  const uint64_t before = f.store->space().volume_bytes;
  const Counts removed = count({{"op", "version-rm"}, {"volume", "vm1"}, {"versions", {"1"}}});
  CHECK(removed.openings == 1);
  CHECK(removed.headers == 2);  // behind the claim it is looked at again
  CHECK(removed.syncs <= created.syncs);
  // Nothing is left for later.
  CHECK(f.store->show_volume("vm1").versions.front().number == 2);
  CHECK(f.store->space().volume_bytes + (1 << 20) <= before);
}

}  // namespace tplstore::operations_test
