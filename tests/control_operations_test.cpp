// What requests to a server do to versions and forks, and what it answers: without a socket.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "control/protocol.h"
#include "control/server.h"
#include "memory/memory_backend.h"
#include "volume_testing.h"

namespace tplstore::control_operations_test {
using nlohmann::json;

namespace {

const Peer kVm{"a virtual machine", 4711, 1};

// A store with the volume vm1 of 1 MiB, which a VM has open. Version 1 has 64 KiB of data; in
// version 2 the first half of them is different, and the last quarter zeroes.
struct Served {
  std::unique_ptr<Store> store;
  std::unique_ptr<Disk> disk;

  Served() {
    auto backend = std::make_unique<MemoryBackend>();
    backend->set_recording(false);
    Store::init(*backend);
    store = std::make_unique<Store>(std::move(backend), StoreOptions{});
    store->create_volume("vm1", 1 << 20, "");
    disk = store->open_export("vm1", kVm);
    disk->write(0, as_bytes(std::string(65536, 'a')), false);
    CHECK(result({{"op", "version-create"}, {"volume", "vm1"}, {"name", "first"}})["number"] == 1);
    disk->write(0, as_bytes(std::string(32768, 'b')), false);
    disk->zero(49152, 16384, false);
    CHECK(result({{"op", "version-create"}, {"volume", "vm1"}, {"note", "so so"}})["note"] ==
          "so so");
  }

  json ask(json request) {
    request["protocol"] = control::kProtocol;
    return json::parse(answer_control_request(*store, request.dump()));
  }
  json result(const json& request) {
    const json answer = ask(request);
    CAPTURE(answer.dump());
    REQUIRE(answer["ok"] == true);
    return answer["result"];
  }
  std::string code(const json& request) {
    const json answer = ask(request);
    return answer["ok"] == true ? "" : answer["code"].get<std::string>();
  }
  std::string read(const std::string& export_name, uint64_t offset) {
    std::string text(1, ' ');
    store->open_export(export_name, Peer{"a reader", 0, 0})
        ->read(offset, std::as_writable_bytes(std::span(text)));
    return text;
  }
};

json numbers_of(const json& versions) {
  json numbers = json::array();
  for (const json& version : versions) numbers.push_back(version["number"]);
  return numbers;
}

}  // namespace

TEST_CASE("a fork is made by its parent's server, and lets go of the parent when flattened") {
  Served served;
  const json fork = served.result({{"op", "volume-fork"},
                                   {"volume", "vm1"},
                                   {"version", "first"},
                                   {"name", "vm2"},
                                   {"size", 2 << 20}});
  CHECK(fork["name"] == "vm2");
  CHECK(fork["parent"] == "vm1@1");
  CHECK(fork["size"] == 2 << 20);
  CHECK(fork["shared_bytes"] == 65536);
  CHECK_FALSE(fork.contains("versions"));
  const json parent = served.result({{"op", "volume-show"}, {"volume", "vm1"}});
  CHECK(parent["versions"][0]["forks"] == json({"vm2"}));
  CHECK(parent["versions"][1]["forks"] == json::array());

  auto disk = served.store->open_export("vm2", Peer{"another machine", 4712, 1});
  const json flat = served.result({{"op", "volume-flatten"}, {"volume", "vm2"}});
  CHECK(flat["parent"] == nullptr);
  CHECK(flat["shared_bytes"] == 0);
  CHECK(served.code({{"op", "volume-flatten"}, {"volume", "vm2"}}) == "EINVAL");
  std::string text(1, ' ');
  disk->read(65535, std::as_writable_bytes(std::span(text)));
  CHECK(text == "a");
}

TEST_CASE("versions are removed in any order, all or none, and given back on demand") {
  Served served;
  served.result({{"op", "version-create"}, {"volume", "vm1"}});
  const auto rm = [&](const json& versions) {
    return json{{"op", "version-rm"}, {"volume", "vm1"}, {"versions", versions}};
  };
  CHECK(served.code(rm({"2", "nothing"})) == "ENOENT");
  CHECK(served.code(rm({"2", "4"})) == "EBUSY");  // current
  {
    const auto reader = served.store->open_export("vm1@2", Peer{"a reader", 0, 0});
    CHECK(served.code(rm({"1", "2"})) == "EBUSY");
  }
  const json list = {{"op", "version-list"}, {"volume", "vm1"}};
  CHECK(numbers_of(served.result(list)) == json({1, 2, 3, 4}));

  const json removed = served.result(rm({"2", "first"}));
  CHECK(numbers_of(removed) == json({2, 1}));
  CHECK(removed[1]["name"] == "first");
  CHECK(served.code(rm({"2"})) == "ENOENT");
  CHECK(served.result(rm(json::array())) == json::array());
  // There is no background thread here that would do it.
  CHECK(numbers_of(served.result(list)) == json({1, 2, 3, 4}));
  CHECK(served.result({{"op", "volume-reclaim"}, {"volume", "vm1"}}) == json::object());
  CHECK(numbers_of(served.result(list)) == json({3, 4}));
  CHECK(served.read("vm1@3", 0) == "b");
}

TEST_CASE("the whole store is given back what it can have") {
  Served served;
  served.result({{"op", "version-rm"}, {"volume", "vm1"}, {"versions", {"1"}}});
  const uint64_t before = served.store->space().volume_bytes;
  served.result({{"op", "reclaim"}});
  CHECK(served.store->space().volume_bytes <= before - 32768);
  CHECK(numbers_of(served.result({{"op", "version-list"}, {"volume", "vm1"}})) == json({2, 3}));
}

TEST_CASE("differences come as ranges, to a version or to current") {
  Served served;
  json diff =
      served.result({{"op", "version-diff"}, {"volume", "vm1"}, {"from", "1"}, {"to", "2"}});
  const json data = {{"offset", 0}, {"length", 32768}, {"zero", false}};
  const json zeroes = {{"offset", 49152}, {"length", 16384}, {"zero", true}};
  CHECK(diff["ranges"] == json({data, zeroes}));
  CHECK(diff["data_bytes"] == 32768);
  CHECK(diff["zero_bytes"] == 16384);

  served.disk->write(1 << 19, as_bytes("current"), false);
  const json changed = {{"offset", 1 << 19}, {"length", 4096}, {"zero", false}};
  for (const json& to : {json(nullptr), json("")}) {
    diff = served.result({{"op", "version-diff"}, {"volume", "vm1"}, {"from", "2"}, {"to", to}});
    CHECK(diff["ranges"] == json::array({changed}));
  }
  diff = served.result({{"op", "version-diff"}, {"volume", "vm1"}, {"from", "first"}});
  CHECK(diff["ranges"] == json({data, zeroes, changed}));
  CHECK(served.code({{"op", "version-diff"}, {"volume", "vm1"}, {"from", "9"}}) == "ENOENT");
}

TEST_CASE("requests about versions and forks without what they need are refused") {
  Served served;
  const char* const requests[] = {
      R"({"op":"volume-fork","volume":"vm1","version":"1","size":0})",
      R"({"op":"volume-fork","volume":"vm1","version":"1","name":"vm2"})",
      R"({"op":"volume-fork","volume":"vm1","version":1,"name":"vm2","size":0})",
      R"({"op":"volume-fork","volume":"vm1","version":"1","name":"../vm2","size":0})",
      R"({"op":"volume-fork","volume":"vm1","version":"1","name":"vm2","size":-1})",
      R"({"op":"volume-fork","volume":"vm1","version":"1","name":"vm2","size":512})",
      R"({"op":"volume-fork","volume":"vm1","version":"1","name":"vm2","size":1048577})",
      R"({"op":"volume-flatten","volume":"vm1"})",
      R"({"op":"version-create","volume":"vm1","note":7})",
      R"({"op":"version-rm","volume":"vm1"})",
      R"({"op":"version-rm","volume":"vm1","versions":"1"})",
      R"({"op":"version-rm","volume":"vm1","versions":[1]})",
      R"({"op":"version-rm","volume":"vm1","versions":["1",null]})",
      R"({"op":"version-rm","volume":"vm1","versions":{"1":"1"}})",
      R"({"op":"version-diff","volume":"vm1"})",
      R"({"op":"version-diff","volume":"vm1","from":"1","to":2})"};
  for (const char* request : requests) {
    CAPTURE(request);
    CHECK(served.code(json::parse(request)) == "EINVAL");
  }
  const json long_note = std::string(513, 'x');
  CHECK(served.code({{"op", "version-create"}, {"volume", "vm1"}, {"note", long_note}}) ==
        "EINVAL");
  // None of it has done anything.
  CHECK(served.store->list_volumes().size() == 1);
  CHECK(numbers_of(served.result({{"op", "version-list"}, {"volume", "vm1"}})) == json({1, 2, 3}));
}

TEST_CASE("whatever is asked for, there is an answer, and the volumes are sound") {
  std::mt19937_64 random(test_seed());
  Served served;
  const json values[] = {nullptr,       true,    -1,           0,          1,
                         UINT64_MAX,    1.5,     "",           "vm1",      "vm2",
                         "../vm1",      "1",     "4294967295", "current",  "first",
                         json::array(), {"1"},   {1},          {{"a", 1}}, std::string(5000, 'x'),
                         1 << 20,       2 << 20, "a;b",        "\u0000"};
  // All but a rollback, which waits for a VM whose process has gone.
  const char* const operations[] = {"ping",
                                    "stats",
                                    "reclaim",
                                    "volume-show",
                                    "volume-resize",
                                    "volume-fork",
                                    "volume-flatten",
                                    "volume-reclaim",
                                    "volume-handover",
                                    "volume-handover-cancel",
                                    "version-list",
                                    "version-create",
                                    "version-rm",
                                    "version-diff",
                                    "lock-show",
                                    "lock-break",
                                    "none"};
  const char* const keys[] = {"volume", "name", "note",    "size",  "version", "versions",
                              "from",   "to",   "seconds", "epoch", "op",      "protocol"};
  const auto any_of = [&random](const auto& list) { return list[random() % std::size(list)]; };
  uint64_t done = 0;
  for (int i = 0; i < (kIsSanitized ? 2'000 : 20'000); ++i) {
    json request = {
        {"protocol", control::kProtocol}, {"op", any_of(operations)}, {"volume", "vm1"}};
    for (size_t count = random() % 5; count > 0; --count) request[any_of(keys)] = any_of(values);
    std::string line = request.dump(-1, ' ', false, json::error_handler_t::replace);
    if (random() % 4 == 0) line[random() % line.size()] = static_cast<char>(random());
    if (random() % 16 == 0) line.resize(random() % line.size());
    CAPTURE(line);
    const json answer = json::parse(answer_control_request(*served.store, line));
    REQUIRE(answer["ok"].is_boolean());
    if (answer["ok"] == false) REQUIRE(answer["error"].get<std::string>() != "");
    if (answer["ok"] == true) ++done;
  }
  CHECK(done > 100);
  // Its VM may have been put out meanwhile; the next one has what it wrote.
  served.disk.reset();
  CHECK(served.read("vm1@current", 0) == "b");
  CHECK(served.store->open_export("vm1", Peer{"another", 4712, 1})->size_bytes() >= 1 << 20);
}

}  // namespace tplstore::control_operations_test
