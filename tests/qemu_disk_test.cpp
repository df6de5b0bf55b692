// What a node's file name in qemu says of an NBD connection.
#include "qemu_disk.h"

#include <doctest/doctest.h>

namespace tplstore::tool::qemu_disk_test {

using nlohmann::json;

TEST_CASE("an NBD connection is read from what qemu calls its node") {
  CHECK(parse_nbd_node("nbd+unix:///vm1?socket=/run/a b.sock") ==
        json({{"driver", "nbd"},
              {"export", "vm1"},
              {"server", {{"type", "unix"}, {"path", "/run/a b.sock"}}}}));
  CHECK(parse_nbd_node("nbd+unix:///vm1;writer=a.b;multi?socket=s")["export"] ==
        "vm1;writer=a.b;multi");
  CHECK(parse_nbd_node("nbd://host:10809/vm1") ==
        json({{"driver", "nbd"},
              {"export", "vm1"},
              {"server", {{"type", "inet"}, {"host", "host"}, {"port", "10809"}}}}));
  CHECK(parse_nbd_node("nbd://[::1]:10809/vm1")["server"]["host"] == "::1");
  const json server = {{"type", "inet"}, {"host", "h"}, {"port", "1"}};
  const json wanted = {
      {"driver", "nbd"}, {"export", "vm1"}, {"server", server}, {"tls-creds", "tls0"}};
  CHECK(parse_nbd_node(R"(json:{"driver":"nbd","server.type":"inet","server.host":"h",)"
                       R"("server.port":"1","export":"vm1","tls-creds":"tls0"})") == wanted);
  CHECK(parse_nbd_node(R"(json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"inet",)"
                       R"("host":"h","port":"1"},"export":"vm1","tls-creds":"tls0"}})") == wanted);
  CHECK(parse_nbd_node(R"(json:{"driver":"raw","file.driver":"nbd","file.path":"/s",)"
                       R"("file.export":"x"})")["server"]["path"] == "/s");
}

TEST_CASE("what is no NBD connection is none") {
  for (const char* name :
       {"", "/srv/disk.raw", "nbd+unix:///vm1", "nbd://host/vm1", "json:", "json:[]", "json:{\"a",
        "json:{}", R"(json:{"driver":"nbd"})", R"(json:{"driver":"raw","file":7})",
        R"(json:{"driver":"qcow2","file":{"driver":"file"}})"})
    CHECK(parse_nbd_node(name).is_null());
  // One that would take all of the stack.
  std::string layers;
  for (int i = 0; i < 100000; ++i) layers += "file.";
  CHECK(parse_nbd_node("json:{\"" + layers + "driver\":\"nbd\"}").is_null());
}

}  // namespace tplstore::tool::qemu_disk_test
