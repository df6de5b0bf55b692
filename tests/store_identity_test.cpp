#include "template/store_identity.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "memory/memory_backend.h"
#include "store/store.h"
#include "template_testing.h"
#include "temporary_directory.h"

namespace tplstore::store_identity_test {
using namespace tplstore::testing;

namespace {

Thrown refusal_of(const MemoryBackend& store) {
  return thrown_by(
      [&] { Store(store.crash(store.event_count(), MemoryBackend::Crash::kLoseUnsynced, 0), {}); });
}

bool mentions(const Thrown& thrown, std::string_view text) {
  return thrown.text.find(text) != std::string::npos;
}

// Where it is in every format.
Uuid uuid_of(const MemoryBackend& store) {
  const ByteVector content = store.content(kIdentityObject);
  Uuid uuid;
  std::memcpy(&uuid, content.data() + 32, sizeof uuid);
  return uuid;
}

}  // namespace

TEST_CASE("a store of another format is refused, and the line says what to do") {
  MemoryBackend good;
  Store::init(good);
  CHECK(refusal_of(good).code == 0);
  for (const uint32_t format : {1, 2, 4}) {
    CAPTURE(format);
    MemoryBackend store;
    put_identity(store, kTestSecret, format);
    const Thrown thrown = refusal_of(store);
    CHECK(thrown.code == EINVAL);
    CHECK(mentions(thrown, format < 3 ? "was made by an older tplstore (format"
                                      : "was made by a newer tplstore (format"));
    CHECK(mentions(thrown,
                   format < 3 ? "export its volumes and templates with that one" : "use that one"));
    // Its servers can be found nevertheless, and ended.
    CHECK(load_store_uuid(store) == uuid_of(store));
  }
}

TEST_CASE("a damaged or cut identity is refused") {
  MemoryBackend good;
  Store::init(good);
  const ByteVector content = good.content(kIdentityObject);
  REQUIRE(content.size() == 256);
  for (size_t i = 0; i < content.size(); ++i) {
    ByteVector bad = content;
    bad[i] ^= std::byte{4};
    MemoryBackend store;
    store.put_new(kIdentityObject, bad);
    CHECK(thrown_by([&] { load_identity(store); }).code == EIO);
  }
  for (size_t size = 0; size < content.size(); ++size) {
    MemoryBackend store;
    store.put_new(kIdentityObject, Bytes(content).first(size));
    CHECK(thrown_by([&] { load_identity(store); }).code == EIO);
  }
}

TEST_CASE("each store has a secret of its own") {
  MemoryBackend a, b;
  Store::init(a);
  Store::init(b);
  const ByteVector block = block_of(1);
  CHECK(content_hash(block, load_identity(a).secret) !=
        content_hash(block, load_identity(b).secret));
  CHECK(content_hash(block, load_identity(a).secret) ==
        content_hash(block, load_identity(a).secret));
}

TEST_CASE("the store's secret is readable for its owner alone, whatever the umask") {
  const mode_t old = umask(0);
  const TemporaryDirectory folder;
  Store::init(folder.path() + "/store");
  umask(old);
  struct stat status;
  REQUIRE(stat((folder.path() + "/store/store").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
}

}  // namespace tplstore::store_identity_test
