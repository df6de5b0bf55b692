// What DirBackend does beyond the contract of backend/backend.h: descriptors, O_DIRECT, paths,
// processes.
#include "backend/dir/dir_backend.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <latch>
#include <random>
#include <thread>

#include "restricted_process.h"
#include "temporary_directory.h"

namespace tplstore::dir_backend_test {

namespace fs = std::filesystem;

namespace {

void no_log(const std::string&) {}

ByteVector pattern(size_t size, uint64_t seed) {
  ByteVector bytes(size);
  std::mt19937_64 random(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

ByteVector read_all(Object& object, uint64_t offset, size_t size) {
  ByteVector bytes(size, std::byte{0xee});
  object.read(offset, bytes);
  return bytes;
}

template <typename F>
int error_code(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code();
  }
  return 0;
}

// The flags of this process's descriptor of a file, as in open(2); -1 when it has none.
int flags_of_open_file(const std::string& path) {
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (fs::read_symlink(entry.path(), gone) != path) continue;
    std::ifstream info("/proc/self/fdinfo/" + entry.path().filename().string());
    for (std::string key, value; info >> key >> value;) {
      if (key == "flags:") return std::stoi(value, nullptr, 8);
    }
  }
  return -1;
}

// Of a file's pages, how many are in the page cache.
size_t cached_pages(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const size_t size = fs::file_size(path);
  void* map = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  std::vector<unsigned char> pages((size + 4095) / 4096);
  REQUIRE(mincore(map, size, pages.data()) == 0);
  munmap(map, size);
  close(fd);
  return static_cast<size_t>(std::ranges::count_if(pages, [](auto page) { return page & 1; }));
}

}  // namespace

TEST_CASE("what is synced can be dropped from the page cache") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log);
  const std::string path = directory.path() + "/v/data.1";
  auto object = backend.create("v/data.1", 0, Purpose::kData);
  object->write(0, pattern(100'000, 1));
  object->sync();
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
  if (cached_pages(path) > 0) {
    MESSAGE("skipped: this file system keeps all in memory");
    return;
  }
  CHECK(read_all(*object, 0, 100'000) == pattern(100'000, 1));
  CHECK(cached_pages(path) > 0);
  object->drop_cached();
  CHECK(cached_pages(path) == 0);
  CHECK(read_all(*object, 0, 100'000) == pattern(100'000, 1));
}

TEST_CASE("a directory that is not there is an error") {
  TemporaryDirectory directory;
  CHECK(error_code([&] { DirBackend(directory.path() + "/no", false, no_log); }) == ENOENT);
}

TEST_CASE("errors name the directory and the object") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log);
  CHECK(backend.describe() == directory.path());
  try {
    backend.open("volumes/x", Access::kRead, Purpose::kMetadata);
    FAIL("opened what is not there");
  } catch (const Error& error) {
    CHECK(error.object() == directory.path() + "/volumes/x");
  }
}

TEST_CASE("many objects work with few descriptors") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log, {.descriptor_cap = 3});
  constexpr size_t kObjects = 50;
  std::vector<std::unique_ptr<Object>> objects;
  for (size_t i = 0; i < kObjects; ++i) {
    objects.push_back(backend.create(fmt::format("v/data.{}", i), 100'000, Purpose::kData));
  }
  CHECK(backend.open_descriptors() <= 3);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 500; ++i) {
        Object& object = *objects[random() % kObjects];
        object.write(t * 10'000, pattern(100, t));
        object.sync();
        if (read_all(object, t * 10'000, 100) != pattern(100, t)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  for (size_t i = 0; i < kObjects; ++i) {
    objects[i]->write(50'000, pattern(1000, i));
    objects[i]->sync();
  }
  for (size_t i = 0; i < kObjects; ++i) {
    CHECK(read_all(*objects[i], 50'000, 1000) == pattern(1000, i));
    CHECK(backend.open_descriptors() <= 3);
  }
}

TEST_CASE("an object with unsynced writes keeps its descriptor") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log, {.descriptor_cap = 3});
  std::vector<std::unique_ptr<Object>> objects;
  for (size_t i = 0; i < 10; ++i) {
    objects.push_back(backend.create(fmt::format("v/data.{}", i), 100, Purpose::kData));
    objects.back()->write(0, pattern(10, i));
  }
  for (size_t i = 0; i < 10; ++i) {
    CHECK(flags_of_open_file(fmt::format("{}/v/data.{}", directory.path(), i)) >= 0);
  }
  backend.create("v/data.10", 0, Purpose::kData);
  CHECK(backend.open_descriptors() >= 10);
  for (auto& object : objects) object->sync();
  auto last = backend.create("v/data.11", 0, Purpose::kData);
  CHECK(backend.open_descriptors() <= 3);
}

TEST_CASE("an object whose file was replaced or removed meanwhile is not there") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log, {.descriptor_cap = 1});
  auto object = backend.create("v/a", 100, Purpose::kMetadata);
  auto other = backend.create("v/b", 100, Purpose::kMetadata);
  for (int round = 0; round < 2; ++round) {  // the cap leaves room for one of them only
    read_all(*object, 0, 1);
    read_all(*other, 0, 1);
  }
  REQUIRE(flags_of_open_file(directory.path() + "/v/a") == -1);
  fs::rename(directory.path() + "/v/a", directory.path() + "/v/kept");
  CHECK(error_code([&] { read_all(*object, 0, 1); }) == ENOENT);
  const auto imposter = backend.create("v/a", 100, Purpose::kMetadata);
  CHECK(error_code([&] { read_all(*object, 0, 1); }) == ENOENT);
  CHECK(error_code([&] { object->write(0, pattern(1, 1)); }) == ENOENT);
  ByteVector a(10), b(10);
  const ReadPiece pieces[] = {{object.get(), 0, a}, {other.get(), 0, b}};
  CHECK(error_code([&] { backend.read_batch(pieces).throw_first(); }) == ENOENT);
  fs::rename(directory.path() + "/v/kept", directory.path() + "/v/a");
  CHECK(read_all(*object, 0, 100) == ByteVector(100, std::byte{0}));
}

TEST_CASE("a process short of descriptors closes idle ones") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log, {.descriptor_cap = 10'000});
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const FileDescriptor probe(open("/dev/null", O_RDONLY | O_CLOEXEC));
  rlimit low = before;
  low.rlim_cur = probe.get() + 10;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
  std::vector<std::unique_ptr<Object>> objects;
  const int code = error_code([&] {
    for (size_t i = 0; i < 50; ++i) {
      objects.push_back(backend.create(fmt::format("v{}/data", i), 100, Purpose::kData));
      objects.push_back(backend.open(fmt::format("v{}/data", i), Access::kRead, Purpose::kData));
      backend.put_new(fmt::format("v{}/x", i), pattern(10, i));
      backend.list("v0");
    }
    for (auto& object : objects) read_all(*object, 0, 10);
  });
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(code == 0);
  CHECK(objects.size() == 100);
}

TEST_CASE("directories share what descriptors there are, and the rings") {
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const FileDescriptor probe(open("/dev/null", O_RDONLY | O_CLOEXEC));
  rlimit low = before;
  low.rlim_cur = probe.get() + 40;
  constexpr size_t kDirectories = 5;
  constexpr size_t kEach = 60;
  TemporaryDirectory directories[kDirectories];
  std::vector<std::unique_ptr<DirBackend>> backends;
  std::vector<std::unique_ptr<Object>> objects;
  // Threads begin before and end after descriptors are short: the sanitizers need some for either.
  std::latch all_made(1), all_read(4), limit_is_back(1);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      all_made.wait();
      std::mt19937_64 random(t);
      for (int round = 0; round < 500 && !objects.empty(); ++round) {
        const size_t i = random() % objects.size();
        if (read_all(*objects[i], 0, 100) != pattern(100, i)) ++wrong;
      }
      all_read.count_down();
      limit_is_back.wait();
    });
  REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
  size_t open_max = 0;
  const int making = error_code([&] {
    for (const TemporaryDirectory& directory : directories)
      backends.push_back(std::make_unique<DirBackend>(directory.path(), false, no_log));
    for (size_t i = 0; i < kDirectories * kEach; ++i) {
      objects.push_back(backends[i / kEach]->create(fmt::format("v/{}", i), 100, Purpose::kData));
      objects.back()->write(0, pattern(100, i));
      objects.back()->sync();
      open_max = std::max(open_max, backends[0]->open_descriptors());
    }
  });
  all_made.count_down();
  all_read.wait();
  const int code = error_code([&] {
    if (objects.size() < kDirectories * kEach) return;
    // A batch of each, that has more objects than there are descriptors, is done all the same.
    for (size_t d = 0; d < kDirectories; ++d) {
      std::vector<ByteVector> buffers(16, ByteVector(100));
      std::vector<ReadPiece> pieces;
      for (size_t i = 0; i < buffers.size(); ++i)
        pieces.push_back({objects[d * kEach + i].get(), 0, buffers[i]});
      backends[d]->read_batch(pieces).throw_first();
      for (size_t i = 0; i < buffers.size(); ++i)
        if (buffers[i] != pattern(100, d * kEach + i)) fail(EIO, "a piece", "has other bytes");
    }
  });
  const bool is_back = setrlimit(RLIMIT_NOFILE, &before) == 0;
  limit_is_back.count_down();
  for (std::thread& thread : threads) thread.join();
  REQUIRE(is_back);
  CHECK(making == 0);
  CHECK(wrong == 0);
  CHECK(code == 0);
  CHECK(objects.size() == kDirectories * kEach);
  CHECK(open_max <= low.rlim_cur - low.rlim_cur / 4);
  for (const auto& backend : backends) {
    CHECK(backend->open_descriptors() == backends[0]->open_descriptors());
    CHECK(backend->ring_batches() == backends[0]->ring_batches());
  }
}

TEST_CASE("threads that open the same objects again and again get the right ones") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log, {.descriptor_cap = 1});
  std::vector<std::unique_ptr<Object>> objects;
  for (size_t i = 0; i < 4; ++i) {
    objects.push_back(backend.create(fmt::format("v/{}", i), 100, Purpose::kData));
    objects[i]->write(0, pattern(100, i));
    objects[i]->sync();
  }
  // Each use closes the others; many threads use each at once.
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (size_t round = 0; round < 2000; ++round) {
        const size_t i = (round + t / 2) % objects.size();
        if (read_all(*objects[i], 0, 100) != pattern(100, i)) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(backend.open_descriptors() <= 4);
}

TEST_CASE("after a failed sync an object is not written or synced any more") {
  TemporaryDirectory directory;
  std::atomic<int> failure = 0;
  DirBackend backend(directory.path(), false, no_log, {.fdatasync = [&](int fd) {
                       if (failure == 0) return ::fdatasync(fd);
                       errno = failure.exchange(0);
                       return -1;
                     }});
  auto object = backend.create("v/data.1", 1000, Purpose::kData);
  object->write(0, pattern(10, 1));
  failure = ENOSPC;
  CHECK(error_code([&] { object->sync(); }) == ENOSPC);
  CHECK(error_code([&] { object->sync(); }) == EIO);
  CHECK(error_code([&] { object->write(0, pattern(10, 2)); }) == EIO);
  CHECK(error_code([&] { object->write(5000, pattern(10, 2)); }) == EIO);
  const ByteVector bytes = pattern(10, 3);
  const WritePiece pieces[] = {{object.get(), 0, bytes}, {object.get(), 100, bytes}};
  CHECK(error_code([&] { backend.write_batch(pieces).throw_first(); }) == EIO);
  CHECK(read_all(*object, 0, 10) == pattern(10, 1));
  object = backend.open("v/data.1", Access::kWrite, Purpose::kData);
  object->write(0, pattern(10, 4));
  object->sync();
  failure = EINTR;
  object->sync();
}

TEST_CASE("only data and segments bypass the page cache") {
  TemporaryDirectory directory;
  int lines = 0;
  DirBackend backend(directory.path(), true, [&](const std::string&) { ++lines; });
  if (backend.write_alignment_bytes() == 1) {
    CHECK(lines == 1);
    MESSAGE("skipped: no O_DIRECT in ", directory.path());
    return;
  }
  CHECK(backend.write_alignment_bytes() == kBlockBytes);
  auto data = backend.create("volumes/u/data.7", 1 << 20, Purpose::kData);
  auto map = backend.create("volumes/u/map.1", 0, Purpose::kMetadata);
  CHECK(backend.put_new("segments/ab/abcd", pattern(10'000, 1)));
  auto segment = backend.open("segments/ab/abcd", Access::kRead, Purpose::kData);
  CHECK((flags_of_open_file(directory.path() + "/volumes/u/data.7") & O_DIRECT) != 0);
  CHECK((flags_of_open_file(directory.path() + "/volumes/u/map.1") & O_DIRECT) == 0);
  CHECK((flags_of_open_file(directory.path() + "/segments/ab/abcd") & O_DIRECT) != 0);
  CHECK(read_all(*segment, 0, 10'000) == pattern(10'000, 1));
  CHECK(lines == 0);

  DirBackend buffered(directory.path(), false, no_log);
  CHECK(buffered.write_alignment_bytes() == 1);
  auto same = buffered.open("volumes/u/data.7", Access::kRead, Purpose::kData);
  data->write(4096, pattern(4096, 2));
  CHECK(error_code([&] { data->write(4000, pattern(50, 3)); }) == EINVAL);
  CHECK(read_all(*same, 4000, 96) == ByteVector(96));
  CHECK(read_all(*same, 4096, 4096) == pattern(4096, 2));
}

TEST_CASE("a batch of reads goes through a ring, whatever its alignment") {
  TemporaryDirectory directory;
  for (const bool direct : {false, true}) {
    CAPTURE(direct);
    DirBackend backend(directory.path(), direct, no_log);
    const std::string name = direct ? "v/data.1" : "v/data.2";
    auto object = backend.create(name, 0, Purpose::kData);
    object->write(0, pattern(25 * kBlockBytes, 1));
    std::vector<ByteVector> buffers(100, ByteVector(777));
    std::vector<ReadPiece> pieces;
    for (size_t i = 0; i < buffers.size(); ++i)
      pieces.push_back({object.get(), i * 999, buffers[i]});
    backend.read_batch(pieces).throw_first();
    for (size_t i = 0; i < buffers.size(); ++i) {
      REQUIRE(buffers[i] == read_all(*object, i * 999, 777));
    }
    WARN(backend.ring_batches() == 1);
  }
}

TEST_CASE("where the file system knows no holes, all of an object is data") {
  for (const int code : {EINVAL, EOPNOTSUPP}) {
    CAPTURE(code);
    TemporaryDirectory directory;
    const int result = in_child([&] {
      DirBackend backend(directory.path(), false, no_log);
      auto object = backend.create("v/data.1", 1 << 20, Purpose::kData);
      if (!forbid(SYS_lseek, code)) return 77;
      const auto all = object->find_data(0);
      if (!all || all->offset != 0 || all->length != 1 << 20) return 1;
      const auto rest = object->find_data(5000);
      if (!rest || rest->offset != 5000 || rest->length != (1 << 20) - 5000) return 2;
      if (object->find_data(1 << 20) || object->find_data(UINT64_MAX)) return 3;
      return 0;
    });
    if (result == 77) {
      MESSAGE("skipped: no seccomp here");
      return;
    }
    CHECK(result == 0);
  }
}

TEST_CASE("an error of looking for data is one, and not the absence of data") {
  TemporaryDirectory directory;
  const int result = in_child([&] {
    DirBackend backend(directory.path(), false, no_log);
    auto object = backend.create("v/data.1", 1 << 20, Purpose::kData);
    if (!forbid(SYS_lseek, EIO)) return 77;
    return error_code([&] { object->find_data(0); });
  });
  if (result == 77) {
    MESSAGE("skipped: no seccomp here");
    return;
  }
  CHECK(result == EIO);
}

// Delayed allocation: the file system has given it no place yet, so only its cache knows it.
TEST_CASE("data that was never written back is found, by every descriptor of the file") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log);
  auto object = backend.create("v/data.1", 64 << 20, Purpose::kData);
  auto reader = backend.open("v/data.1", Access::kRead, Purpose::kData);
  for (uint64_t i = 0; i < 16; ++i) {
    const uint64_t offset = i * (4 << 20);
    object->write(offset, pattern(4096, i));
    for (Object* from : {object.get(), reader.get()}) {
      const auto found = from->find_data(offset);
      REQUIRE(found);
      CHECK(found->offset == offset);
      CHECK(found->length == 4096);
    }
  }
}

TEST_CASE("symbolic links are not followed, and what is no object is not listed") {
  TemporaryDirectory outside;
  TemporaryDirectory directory;
  std::ofstream(outside.path() + "/secret") << "secret";
  fs::create_directory(directory.path() + "/names");
  fs::create_symlink(outside.path(), directory.path() + "/volumes");
  fs::create_symlink(outside.path() + "/secret", directory.path() + "/names/link");
  fs::create_directory_symlink(outside.path(), directory.path() + "/names/inside");
  std::ofstream(directory.path() + "/names/.tmp-0123") << "left over";
  std::ofstream(directory.path() + "/names/odd name~") << "odd";
  mkfifo((directory.path() + "/names/fifo").c_str(), 0600);
  DirBackend backend(directory.path(), false, no_log);

  CHECK(error_code([&] { backend.open("volumes/secret", Access::kRead, Purpose::kMetadata); }) ==
        ELOOP);
  CHECK(error_code([&] { backend.open("names/link", Access::kWrite, Purpose::kMetadata); }) ==
        ELOOP);
  CHECK(error_code([&] { backend.create("volumes/new", 0, Purpose::kMetadata); }) != 0);
  CHECK(error_code([&] { backend.create("names/link", 0, Purpose::kMetadata); }) == EEXIST);
  CHECK(error_code([&] { backend.put_new("volumes/new", {}); }) != 0);
  CHECK(error_code([&] { backend.get("names/link", 100); }) == ELOOP);
  CHECK(error_code([&] { backend.open("names/fifo", Access::kRead, Purpose::kMetadata); }) ==
        EISDIR);
  CHECK(error_code([&] { backend.get("names/fifo", 100); }) == EISDIR);
  CHECK(backend.list("names") == std::vector<std::string>{"fifo", "inside", "link"});
  CHECK(error_code([&] { backend.list("volumes"); }) == ELOOP);
  backend.remove_folder("names");
  CHECK_FALSE(fs::exists(directory.path() + "/names"));
  CHECK(fs::exists(outside.path() + "/secret"));
  CHECK(std::distance(fs::directory_iterator(outside.path()), fs::directory_iterator()) == 1);
}

TEST_CASE("a kernel without openat2 follows no symbolic links either") {
  TemporaryDirectory outside;
  TemporaryDirectory directory;
  std::ofstream(outside.path() + "/secret") << "secret";
  fs::create_symlink(outside.path(), directory.path() + "/volumes");
  fs::create_symlink(outside.path() + "/secret", directory.path() + "/link");
  const int result = in_child([&] {
    if (!forbid(SYS_openat2)) return 77;
    DirBackend backend(directory.path(), false, no_log);
    if (!backend.put_new("a/b/x", pattern(10, 1))) return 1;
    if (backend.get("a/b/x", 10) != pattern(10, 1)) return 2;
    if (backend.list("").size() != 3 || backend.list("a/b").size() != 1) return 3;
    if (error_code([&] { backend.open("a/c/x", Access::kRead, Purpose::kMetadata); }) != ENOENT)
      return 4;
    if (error_code([&] { backend.open("link", Access::kRead, Purpose::kMetadata); }) != ELOOP)
      return 5;
    if (error_code([&] { backend.create("volumes/x", 0, Purpose::kMetadata); }) == 0) return 6;
    if (error_code([&] { backend.get("volumes/secret", 100); }) != ELOOP) return 7;
    // Not the same as empty, or absent.
    if (error_code([&] { backend.list("volumes"); }) != ELOOP) return 9;
    backend.remove_folder("a");
    return backend.list("").size() == 2 ? 0 : 8;
  });
  if (result == 77) {
    MESSAGE("skipped: no seccomp here");
    return;
  }
  CHECK(result == 0);
}

TEST_CASE("nothing is left of a put_new that lost, with or without unnamed files") {
  for (const bool without_tmpfile : {false, true}) {
    CAPTURE(without_tmpfile);
    TemporaryDirectory directory;
    DirBackend backend(directory.path(), false, no_log, {.without_tmpfile = without_tmpfile});
    CHECK(backend.put_new("a/x", pattern(100, 1)));
    CHECK_FALSE(backend.put_new("a/x", pattern(100, 2)));
    CHECK(std::distance(fs::directory_iterator(directory.path() + "/a"),
                        fs::directory_iterator()) == 1);
  }
}

TEST_CASE("a lock is never of a file that lost its name before it was taken") {
  TemporaryDirectory directory;
  DirBackend other(directory.path(), false, no_log);
  other.create("lock", 0, Purpose::kMetadata);
  int opened = 0;
  DirOptions options;
  options.before_locking = [&] {
    if (++opened > 1) return;
    other.remove("lock");
    other.create("lock", 0, Purpose::kMetadata);
  };
  DirBackend backend(directory.path(), false, no_log, options);
  auto lock = backend.try_lock("lock", LockMode::kExclusive);
  REQUIRE(lock);
  CHECK(opened == 2);
  CHECK_FALSE(other.try_lock("lock", LockMode::kExclusive));
  lock.reset();

  options.before_locking = [&] { other.remove("lock"); };
  DirBackend late(directory.path(), false, no_log, options);
  CHECK_THROWS_AS(late.try_lock("lock", LockMode::kShared), Error);
}

TEST_CASE("locks exclude other backends and other processes, and die with their process") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), false, no_log);
  DirBackend other(directory.path(), false, no_log);
  backend.create("lock", 0, Purpose::kMetadata);
  auto lock = backend.try_lock("lock", LockMode::kExclusive);
  REQUIRE(lock);
  CHECK_FALSE(other.try_lock("lock", LockMode::kShared));
  lock.reset();
  lock = other.try_lock("lock", LockMode::kShared);
  REQUIRE(lock);
  CHECK(backend.try_lock("lock", LockMode::kShared));
  CHECK_FALSE(backend.try_lock("lock", LockMode::kExclusive));
  CHECK(backend.try_lock("lock", LockMode::kExclusive, 1));
  lock.reset();

  int ready[2];
  REQUIRE(pipe2(ready, O_CLOEXEC) == 0);
  const pid_t child = fork();
  if (child == 0) {
    auto held = backend.try_lock("lock", LockMode::kExclusive);
    auto held_too = backend.try_lock("lock", LockMode::kExclusive, kLockSlotMax);
    const char has_it = held && held_too ? 'y' : 'n';
    if (write(ready[1], &has_it, 1) != 1) _exit(1);
    pause();
  }
  char has_it = 'n';
  CHECK(read(ready[0], &has_it, 1) == 1);
  CHECK(has_it == 'y');
  CHECK_FALSE(backend.try_lock("lock", LockMode::kShared));
  CHECK_FALSE(backend.try_lock("lock", LockMode::kShared, kLockSlotMax));
  CHECK(backend.try_lock("lock", LockMode::kExclusive, 1));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  CHECK(backend.try_lock("lock", LockMode::kExclusive));
  CHECK(backend.try_lock("lock", LockMode::kExclusive, kLockSlotMax));
  close(ready[0]);
  close(ready[1]);
}

TEST_CASE("a lock lasts until what its dead owner wrote has ended, and no longer") {
  TemporaryDirectory directory;
  DirBackend other(directory.path(), false, no_log);
  other.create("lock", 0, Purpose::kMetadata);
  int words[2];
  REQUIRE(pipe2(words, O_CLOEXEC) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto say = [&](char word) {
      if (write(words[1], &word, 1) != 1) _exit(1);
    };
    DirBackend backend(directory.path(), true, no_log);
    auto lock = backend.try_lock("lock", LockMode::kExclusive);
    const auto data = backend.create("data.1", 4 * kBlockBytes, Purpose::kData);
    const ByteVector block = pattern(kBlockBytes, 1);
    const std::array<WritePiece, 2> pieces = {WritePiece{data.get(), 0, block},
                                              WritePiece{data.get(), 2 * kBlockBytes, block}};
    backend.write_batch(pieces).throw_first();
    if (backend.ring_batches() == 0) say('n');
    // What a lock that is let go of leaves in the ring is not locked.
    lock.reset();
    if (backend.is_locked("lock")) say('l');
    lock = backend.try_lock("lock", LockMode::kExclusive);
    backend.write_batch(pieces).throw_first();
    // The kernel closes the descriptors of who is killed, and then waits for the ring's requests.
    // Closing the lock's own one looks the same from outside.
    for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
      std::error_code ignored;
      if (fs::read_symlink(entry.path(), ignored) == directory.path() + "/lock")
        close(std::stoi(entry.path().filename()));
    }
    say('y');
    pause();
  }
  char word = 0;
  CHECK(read(words[0], &word, 1) == 1);
  if (word == 'n') {
    MESSAGE("skipped: no O_DIRECT or no io_uring here");
  } else {
    CHECK(word == 'y');
    CHECK(other.is_locked("lock"));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  // The kernel takes a ring apart in the background.
  while (other.is_locked("lock")) std::this_thread::yield();
  close(words[0]);
  close(words[1]);
}

TEST_CASE("what root makes belongs to the owner of the directory") {
  if (geteuid() != 0) {
    MESSAGE("skipped: not root");
    return;
  }
  constexpr uid_t kUser = 65534;
  constexpr gid_t kGroup = 12345;
  for (const bool without_tmpfile : {false, true}) {
    TemporaryDirectory directory;
    REQUIRE(chown(directory.path().c_str(), kUser, kGroup) == 0);
    DirOptions options;
    options.without_tmpfile = without_tmpfile;
    DirBackend backend(directory.path(), false, no_log, options);
    backend.create("one", 5, Purpose::kMetadata);
    backend.create("deep/down/two", 0, Purpose::kMetadata);
    backend.put_new("three", pattern(10, 1));
    backend.put_new("another/four", pattern(10, 1));
    size_t count = 0;
    for (const auto& entry : fs::recursive_directory_iterator(directory.path())) {
      INFO(entry.path());
      struct stat status;
      REQUIRE(lstat(entry.path().c_str(), &status) == 0);
      CHECK(status.st_uid == kUser);
      CHECK(status.st_gid == kGroup);
      ++count;
    }
    CHECK(count == 7);
    // What was there stays whose it was, and nothing is given away through a link.
    std::ofstream(directory.path() + "/another/mine") << "x";
    fs::create_symlink("/", directory.path() + "/link");
    CHECK_THROWS_AS(backend.create("link/five", 0, Purpose::kMetadata), Error);
    CHECK_THROWS_AS(backend.create("another/mine", 0, Purpose::kMetadata), Error);
    CHECK_FALSE(backend.put_new("another/mine", pattern(1, 1)));
    struct stat status;
    REQUIRE(lstat((directory.path() + "/another/mine").c_str(), &status) == 0);
    CHECK(status.st_uid == 0);
  }
}

TEST_CASE("a directory knows its space, and whether its path still leads to it") {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/ssd";
  fs::create_directory(path);
  DirBackend backend(path, false, no_log);
  const auto space = backend.space();
  REQUIRE(space);
  const fs::space_info expected = fs::space(path);
  CHECK(space->total_bytes == expected.capacity);
  CHECK(space->free_bytes > 0);
  CHECK(space->free_bytes <= space->total_bytes);
  CHECK(backend.is_in_place());
  fs::rename(path, path + ".old");
  CHECK_FALSE(backend.is_in_place());
  fs::create_directory(path);
  CHECK_FALSE(backend.is_in_place());
  backend.put_new("object", pattern(10, 1));
  CHECK(fs::exists(path + ".old/object"));
  fs::remove(path);
  fs::rename(path + ".old", path);
  CHECK(backend.is_in_place());
}

TEST_CASE("every descriptor closes on exec") {
  TemporaryDirectory directory;
  DirBackend backend(directory.path(), true, no_log);
  auto object = backend.create("v/data.1", 100, Purpose::kData);
  auto lock = backend.try_lock("v/data.1", LockMode::kShared);
  size_t seen = 0;
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (!fs::read_symlink(entry.path(), gone).string().starts_with(directory.path())) continue;
    ++seen;
    CHECK((fcntl(std::stoi(entry.path().filename()), F_GETFD) & FD_CLOEXEC) != 0);
  }
  CHECK(seen == 3);
}

}  // namespace tplstore::dir_backend_test
