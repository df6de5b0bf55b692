// Where the control sockets of a store's servers are: whom the store leads to, who is dead, and
// what is nobody's business here.
#include "control/servers.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include "backend/dir/dir_backend.h"
#include "base/host.h"
#include "store_testing.h"
#include "temporary_directory.h"

namespace tplstore::servers_test {
using control::Announcement;

namespace {

// A store that is a directory, for locks are what tells.
struct Fixture {
  TemporaryDirectory temporary;
  std::string directory = temporary.path() + "/run";
  std::string store = temporary.path() + "/store";
  std::optional<DirBackend> backend;

  Fixture() {
    std::filesystem::create_directory(directory);
    Store::init(store);
    backend.emplace(store, false, [](const std::string&) {});
  }
  std::vector<control::ServerPlace> find(const std::string& own_directory = "/nowhere") {
    return control::find_servers(*backend, own_directory);
  }
  bool has(const std::string& object) { return backend->get(object, 4096).has_value(); }
  // Made by nobody who holds its lock.
  std::string put(const std::string& process, const std::string& content) {
    const std::string object = "servers/" + this_host().host_id.text() + "." + process;
    backend->put_new(object, as_bytes(content));
    return object;
  }
};

// A socket at `place`, with somebody who listens or who has listened.
FileDescriptor listen_at(const control::ServerPlace& place) {
  const FileDescriptor folder(::open(place.directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  return control::listen_at(folder.get(), place.socket);
}

}  // namespace

TEST_CASE("the store leads to its servers, whatever run directory who asks has") {
  Fixture f;
  CHECK(f.find().empty());
  std::optional<Announcement> first(std::in_place, *f.backend, f.directory);
  CHECK(first->place().describe() == "server " + std::to_string(::getpid()));
  auto found = f.find();
  REQUIRE(found.size() == 1);
  CHECK(found[0].path() == first->place().path());
  CHECK_FALSE(control::connect_to(found[0], control::Clock::now()));
  const FileDescriptor listener = listen_at(first->place());
  CHECK(control::connect_to(found[0], control::Clock::now() + std::chrono::seconds(20)));

  const Announcement second(*f.backend, f.directory);
  CHECK(second.place().object != first->place().object);
  CHECK(f.find().size() == 2);
  const std::string path = first->place().path();
  first.reset();
  CHECK_FALSE(std::filesystem::exists(path));
  found = f.find();
  REQUIRE(found.size() == 1);
  CHECK(found[0].object == second.place().object);
}

TEST_CASE("what leads to a dead server of this host is removed, with its socket") {
  Fixture f;
  const Announcement alive(*f.backend, f.directory);
  control::ServerPlace dead = alive.place();
  dead.socket.replace(dead.socket.find('.') + 1, std::string::npos, "4711.sock");
  dead.object = f.put("4711", dead.path());
  listen_at(dead);
  REQUIRE(std::filesystem::exists(dead.path()));
  CHECK(f.find().size() == 1);
  CHECK_FALSE(f.has(dead.object));
  CHECK_FALSE(std::filesystem::exists(dead.path()));
  CHECK(f.has(alive.place().object));
}

TEST_CASE("a name that a dead server of the same pid has left is taken") {
  Fixture f;
  f.put(std::to_string(::getpid()), "/somewhere/else");
  const Announcement announcement(*f.backend, f.directory);
  CHECK(announcement.place().describe() == "server " + std::to_string(::getpid()));
  REQUIRE(f.find().size() == 1);
  CHECK(f.find()[0].path() == announcement.place().path());
}

TEST_CASE("what was left when this host was known by its machine id only is its own") {
  Fixture f;
  const std::string object = "servers/" + this_host().machine_id.text() + ".4711";
  f.backend->put_new(object, as_bytes("/run/tplstore/x.sock"));
  CHECK(f.find().empty());
  CHECK_FALSE(f.has(object));
}

TEST_CASE("a host that has the ids of another one, whose server runs, is refused") {
  Fixture f;
  std::optional<Announcement> other(std::in_place, *f.backend, f.directory);
  const std::string object =
      f.put("4711", other->place().path() + "\n" + random_uuid().text() + "\n");
  other.reset();
  auto lock = f.backend->try_lock(object, LockMode::kShared);
  CHECK(error_message([&] {
          const Announcement refused(*f.backend, f.directory);
        }).find(kHostIdFile) != std::string::npos);
  // Its boot is over: it was this host itself.
  lock.reset();
  const Announcement announcement(*f.backend, f.directory);
  CHECK(f.find().size() == 1);
  CHECK_FALSE(f.has(object));
}

TEST_CASE("a host's own number is made once, and is nil where it cannot be") {
  TemporaryDirectory temporary;
  const std::string path = temporary.path() + "/state/host-id";
  const Uuid number = own_number(path);
  CHECK_FALSE(number.is_nil());
  CHECK(own_number(path) == number);
  CHECK(own_number(temporary.path() + "/other/host-id") != number);
  CHECK(own_number("/proc/nowhere/host-id").is_nil());
  std::filesystem::resize_file(path, 10);  // damaged: left alone
  CHECK(own_number(path).is_nil());
}

TEST_CASE("what another host has there is left alone") {
  Fixture f;
  const std::string others = "servers/fedcba98-7654-3210-fedc-ba9876543210.1";
  f.backend->put_new(others, as_bytes("/run/tplstore/x.sock"));
  CHECK(f.find().empty());
  CHECK(f.has(others));
}

TEST_CASE("a server of another host that works while its lock is not seen is noticed") {
  Fixture f;
  const std::string object = "servers/fedcba98-7654-3210-fedc-ba9876543210.1";
  const auto sign = [&](const char* count) {
    f.backend->remove(object);
    f.backend->put_new(object, as_bytes(fmt::format("/run/x.sock\nboot\nkvm2\n{}\n", count)));
  };
  control::Neighbours neighbours;
  const auto finds = [&] { return !neighbours.look(*f.backend).empty(); };
  sign("01");
  CHECK_FALSE(finds());
  // A dead one signs nothing, and who takes its name begins to count anew.
  CHECK_FALSE(finds());
  sign("00");
  CHECK_FALSE(finds());
  sign("01");
  const auto found = neighbours.look(*f.backend);
  REQUIRE(found.size() == 1);
  CHECK(found[0].object == object);
  CHECK(found[0].host_name == "kvm2");
  {
    const auto lock = f.backend->try_lock(object, LockMode::kShared);
    sign("02");
    const auto again = f.backend->try_lock(object, LockMode::kShared);
    CHECK_FALSE(finds());
  }
  sign("03");
  CHECK_FALSE(finds());  // it was not free before
  f.backend->remove(object);
  CHECK_FALSE(finds());
  sign("04");
  CHECK_FALSE(finds());
  for (const char* content : {"", "\n\n", "x"}) {
    f.backend->remove(object);
    f.backend->put_new(object, as_bytes(std::string(content)));
    CHECK_FALSE(finds());
  }
}

TEST_CASE("a server signs its object, which leads to it as before") {
  Fixture f;
  Announcement announcement(*f.backend, f.directory);
  const auto content = [&] { return to_text(*f.backend->get(announcement.place().object, 9999)); };
  const std::string first = content();
  announcement.sign();
  CHECK(content() > first);
  CHECK(content().size() == first.size());
  REQUIRE(f.find().size() == 1);
  CHECK(f.find()[0].path() == announcement.place().path());
  // On a full disk it was made without content.
  const std::string object = announcement.place().object;
  f.backend->remove(object);
  f.backend->create(object, 0, Purpose::kMetadata);
  announcement.sign();
  CHECK(content().empty());
}

TEST_CASE("a copy of a store leads to nobody, and takes nothing from the original's servers") {
  Fixture f;
  const Announcement announcement(*f.backend, f.directory);
  const FileDescriptor listener = listen_at(announcement.place());
  const std::string copy = f.temporary.path() + "/copy";
  std::filesystem::copy(f.store, copy, std::filesystem::copy_options::recursive);
  DirBackend copied(copy, false, [](const std::string&) {});
  CHECK(control::find_servers(copied, f.directory).empty());
  CHECK(copied.list("servers").empty());
  CHECK(f.find().size() == 1);
  CHECK(std::filesystem::exists(announcement.place().path()));
}

TEST_CASE("the servers of a process are found without their stores") {
  Fixture f;
  const std::string uuid = "c0ffee00-0000-4000-8000-000000000001.";
  const std::string pid = std::to_string(::getpid());
  CHECK(control::find_servers_of(::getpid(), f.directory + "/nowhere").empty());

  const FileDescriptor own = listen_at({"", f.directory, uuid + pid + ".sock"});
  const FileDescriptor second = listen_at({"", f.directory, uuid + pid + "-1.sock"});
  listen_at({"", f.directory, uuid + pid + "-2.sock"});  // nobody listens any more
  // Another namespace's process of that number: the name is as right, who listens is not.
  const FileDescriptor others = listen_at({"", f.directory, uuid + "1.sock"});
  std::ofstream(f.directory + "/" + uuid + pid + "-3.sock");
  std::ofstream(f.directory + "/" + pid);

  auto found = control::find_servers_of(::getpid(), f.directory);
  std::ranges::sort(found, {}, &control::ServerPlace::socket);
  REQUIRE(found.size() == 2);
  CHECK(found[0].describe() == "server " + pid + "-1");
  CHECK(found[1].describe() == "server " + pid);
  CHECK(found[1].directory == f.directory);
  CHECK(control::find_servers_of(1, f.directory).empty());
}

TEST_CASE("what leads to no socket of this store is refused") {
  Fixture f;
  for (const char* path : {"/etc/passwd", "relative", "/run/tplstore/other.4711.sock"}) {
    CAPTURE(path);
    const std::string object = f.put("4711", path);
    const auto lock = f.backend->try_lock(object, LockMode::kShared);
    CHECK(error_code([&] { f.find(); }) == EIO);
    f.backend->remove(object);
  }
}

TEST_CASE("the run directory is the first that is safe and can be written to") {
  TemporaryDirectory temporary;
  const std::string top = temporary.path();
  const std::string first = top + "/first", second = top + "/second";
  const auto make_file = [](const std::string& path) {
    FileDescriptor(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  };
  CHECK(control::usable_directory({first, second}, false) == second);
  CHECK(control::usable_directory({top + "/missing/first", second}, true) == second);
  struct stat status {};
  REQUIRE(::stat(second.c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0700);
  CHECK(control::usable_directory({first, second}, false) == second);

  make_file(first);
  CHECK(control::usable_directory({first, second}, true) == second);
  std::filesystem::remove(first);
  std::filesystem::create_symlink(second, first);
  CHECK(control::usable_directory({first, second}, true) == second);
  std::filesystem::remove(first);
  std::filesystem::create_directory(first);
  REQUIRE(::chmod(first.c_str(), 0777) == 0);
  CHECK(control::usable_directory({first, second}, true) == second);
  CHECK(error_code([&] { control::usable_directory({first}, true); }) == EACCES);

  // Where everybody may make things, somebody else's is a trap.
  if (::geteuid() != 0) return;
  REQUIRE(::chmod(top.c_str(), 01777) == 0);
  REQUIRE(::chmod(first.c_str(), 0700) == 0);
  CHECK(control::usable_directory({first, second}, true) == first);
  REQUIRE(::chown(first.c_str(), 65534, 65534) == 0);
  CHECK(control::usable_directory({first, second}, true) == second);
}

}  // namespace tplstore::servers_test
