#include "backend/dir/io_ring.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>

#include "base/bytes.h"
#include "base/files.h"
#include "restricted_process.h"
#include "temporary_directory.h"

namespace tplstore::io_ring_test {
namespace {

constexpr size_t kFileBytes = 1 << 20;

ByteVector pattern(size_t size, uint64_t seed) {
  ByteVector bytes(size);
  std::mt19937_64 random(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// A file of kFileBytes + 5000 random bytes.
struct FilledFile {
  TemporaryDirectory directory;
  ByteVector content = pattern(kFileBytes + 5000, 1);
  FileDescriptor fd{open((directory.path() + "/file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};

  FilledFile() {
    IoOp op = IoOp::write(fd.get(), 0, content, false);
    run_plain(op);
    REQUIRE(op.error == 0);
    REQUIRE(op.done == content.size());
  }
};

// Whole pages, aligned as O_DIRECT wants them.
struct AlignedPages {
  explicit AlignedPages(size_t count)
      : bytes(static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, count * kBlockBytes)),
              count * kBlockBytes) {}
  ~AlignedPages() { std::free(bytes.data()); }
  MutableBytes bytes;
};

// Reads many ranges as one batch; whether all came right.
bool reads_right(IoRingPool& pool, const FilledFile& file, uint64_t seed, const Log& log = {}) {
  std::mt19937_64 random(seed);
  std::vector<ByteVector> buffers(200);
  std::vector<IoOp> ops;
  for (ByteVector& buffer : buffers) {
    buffer.resize(random() % 5000);
    ops.push_back(IoOp::read(file.fd.get(), random() % (kFileBytes - 5000), buffer, false));
  }
  pool.run_batch(ops, log);
  return std::ranges::all_of(ops, [&](const IoOp& op) {
    return op.error == 0 && op.done == op.length &&
           std::equal(op.data, op.data + op.length, file.content.begin() + op.offset);
  });
}

// Whether somebody has the file locked; as one who has nothing to do with us sees it.
bool is_locked(const std::string& path) {
  const FileDescriptor fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct flock asked {};
  asked.l_type = F_WRLCK;
  asked.l_whence = SEEK_SET;
  REQUIRE(fcntl(fd.get(), F_OFD_GETLK, &asked) == 0);
  return asked.l_type != F_UNLCK;
}

// Returns when nobody has the file locked.
void wait_for_unlock(const std::string& path) {
  const FileDescriptor fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct flock wanted {};
  wanted.l_type = F_WRLCK;
  wanted.l_whence = SEEK_SET;
  REQUIRE(fcntl(fd.get(), F_OFD_SETLKW, &wanted) == 0);
}

bool has_io_uring() {
  FilledFile file;
  IoRingPool pool;
  return reads_right(pool, file, 1) && pool.ring_batches() == 1;
}

}  // namespace

TEST_CASE("a batch through a ring reads what is there") {
  FilledFile file;
  IoRingPool pool;
  for (uint64_t seed = 0; seed < 20; ++seed) CHECK(reads_right(pool, file, seed));
  if (!has_io_uring()) MESSAGE("io_uring is not allowed here: tested without");
}

TEST_CASE("a read ends at the end of the file, a part of it or all") {
  FilledFile file;
  IoRingPool pool;
  for (const bool is_direct : {false, true}) {
    CAPTURE(is_direct);
    if (is_direct) REQUIRE(fcntl(file.fd.get(), F_SETFL, O_DIRECT) == 0);
    AlignedPages pages(8);
    IoOp ops[] = {
        IoOp::read(file.fd.get(), kFileBytes, pages.bytes.first(4 * kBlockBytes), is_direct),
        IoOp::read(file.fd.get(), 2 * kFileBytes, pages.bytes.last(2 * kBlockBytes), is_direct),
        IoOp::read(file.fd.get(), 0, pages.bytes.subspan(4 * kBlockBytes, kBlockBytes), is_direct),
    };
    pool.run_batch(ops);
    CHECK(ops[0].error == 0);
    CHECK(ops[0].done == 5000);
    CHECK(std::equal(ops[0].data, ops[0].data + 5000, file.content.begin() + kFileBytes));
    CHECK(ops[1].error == 0);
    CHECK(ops[1].done == 0);
    CHECK(ops[2].done == kBlockBytes);
    IoOp alone = IoOp::read(file.fd.get(), kFileBytes, pages.bytes, is_direct);
    run_plain(alone);
    CHECK(alone.done == 5000);
  }
}

TEST_CASE("direct writes go through a ring, and buffered ones beside it") {
  FilledFile file;
  IoRingPool pool;
  const FileDescriptor direct(
      open((file.directory.path() + "/file").c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  REQUIRE(direct);
  AlignedPages pages(100);
  std::ranges::copy(pattern(pages.bytes.size(), 9), pages.bytes.begin());
  std::vector<IoOp> ops;
  for (size_t i = 0; i < 100; ++i) {
    const bool is_direct = i % 3 != 0;
    ops.push_back(IoOp::write(is_direct ? direct.get() : file.fd.get(), i * kBlockBytes,
                              pages.bytes.subspan(i * kBlockBytes, kBlockBytes), is_direct));
  }
  pool.run_batch(ops);
  for (const IoOp& op : ops) {
    REQUIRE(op.error == 0);
    REQUIRE(op.done == kBlockBytes);
  }
  ByteVector read(pages.bytes.size());
  IoOp op = IoOp::read(file.fd.get(), 0, read, false);
  run_plain(op);
  CHECK(std::ranges::equal(read, pages.bytes));
}

TEST_CASE("each operation of a batch has its own result") {
  FilledFile file;
  const FileDescriptor read_only(
      open((file.directory.path() + "/file").c_str(), O_RDONLY | O_CLOEXEC));
  ByteVector buffer(3 * 4096);
  for (const size_t rings_max : {size_t{0}, kRingsMax}) {
    CAPTURE(rings_max);
    IoRingPool pool(rings_max);
    const MutableBytes into(buffer);
    IoOp ops[] = {IoOp::read(file.fd.get(), 0, into.first(4096), false),
                  IoOp::read(-1, 0, into.subspan(4096, 4096), false),
                  IoOp::write(read_only.get(), 0, into.first(10), false),
                  IoOp::read(file.fd.get(), 0, into.first(0), false),
                  IoOp::read(file.fd.get(), 8192, into.last(4096), false)};
    pool.run_batch(ops);
    CHECK(ops[0].error == 0);
    CHECK(ops[0].done == 4096);
    CHECK(ops[1].error == EBADF);
    CHECK(ops[2].error == EBADF);
    CHECK(ops[3].error == 0);
    CHECK(ops[4].error == 0);
    CHECK(ops[4].done == 4096);
  }
}

TEST_CASE("a transfer that stops short is continued") {
  if (!has_io_uring()) {
    MESSAGE("skipped: io_uring is not allowed here");
    return;
  }
  // The kernel gives a list that it makes while it is read a page at a time, however many are asked
  // for.
  const FileDescriptor list(open("/proc/kallsyms", O_RDONLY | O_CLOEXEC));
  ByteVector expected(100'000);
  if (!list || pread(list.get(), expected.data(), expected.size(), 0) <= 0) {
    MESSAGE("skipped: no /proc/kallsyms here");
    return;
  }
  IoOp plain = IoOp::read(list.get(), 0, expected, false);
  run_plain(plain);
  FilledFile file;
  IoRingPool pool;
  ByteVector received(expected.size());
  ByteVector other(100);
  IoOp ops[] = {IoOp::read(list.get(), 0, received, false),
                IoOp::read(file.fd.get(), 0, other, false)};
  pool.run_batch(ops);
  CHECK(pool.ring_batches() == 1);
  CHECK(ops[0].error == 0);
  CHECK(ops[0].done == expected.size());
  CHECK(received == expected);
}

TEST_CASE("more threads than rings") {
  FilledFile file;
  IoRingPool pool(2);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (uint64_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 20; ++i) {
        if (!reads_right(pool, file, t * 100 + i)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("the environment can forbid rings") {
  FilledFile file;
  setenv("TPLSTORE_NO_IO_URING", "1", 1);
  IoRingPool pool;
  unsetenv("TPLSTORE_NO_IO_URING");
  CHECK(reads_right(pool, file, 1));
  CHECK(pool.ring_batches() == 0);
}

TEST_CASE("a process that may make no rings works without, and says so once") {
  FilledFile file;
  const int result = in_child([&] {
    int lines = 0;
    IoRingPool pool;
    const auto count = [&](const std::string&) { ++lines; };
    if (!forbid(SYS_io_uring_setup)) return 77;
    for (uint64_t seed = 0; seed < 5; ++seed) {
      if (!reads_right(pool, file, seed, count)) return 1;
    }
    return pool.ring_batches() == 0 && lines == 1 ? 0 : 2;
  });
  if (result == 77) {
    MESSAGE("skipped: no seccomp here");
    return;
  }
  CHECK(result == 0);
}

TEST_CASE("a ring that takes nothing any more leaves no operation undone") {
  if (!has_io_uring()) {
    MESSAGE("skipped: io_uring is not allowed here");
    return;
  }
  FilledFile file;
  const int result = in_child([&] {
    IoRingPool pool(1);
    if (!reads_right(pool, file, 1)) return 1;
    if (!forbid(SYS_io_uring_enter)) return 77;
    for (uint64_t seed = 2; seed < 6; ++seed) {
      if (!reads_right(pool, file, seed)) return 2;
    }
    return 0;
  });
  if (result == 77) {
    MESSAGE("skipped: no seccomp here");
    return;
  }
  CHECK(result == 0);
}

TEST_CASE("a child does not use the rings of its parent") {
  if (!has_io_uring()) {
    MESSAGE("skipped: io_uring is not allowed here");
    return;
  }
  FilledFile file;
  IoRingPool pool;
  CHECK(reads_right(pool, file, 1));
  CHECK(in_child([&] {
          for (uint64_t seed = 0; seed < 5; ++seed) {
            if (!reads_right(pool, file, seed)) return 1;
          }
          return pool.ring_batches() == 6 ? 0 : 2;
        }) == 0);
  CHECK(reads_right(pool, file, 2));
}

TEST_CASE("a ring that writes keeps the locks that are held, until it is gone or they are let go") {
  if (!has_io_uring()) {
    MESSAGE("skipped: no io_uring here");
    return;
  }
  TemporaryDirectory directory;
  const auto path_of = [&](int i) { return fmt::format("{}/lock{}", directory.path(), i); };
  FileDescriptor locks[3];
  for (int i = 0; i < 3; ++i) {
    locks[i] = FileDescriptor(open(path_of(i).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    struct flock wanted {};
    wanted.l_type = F_WRLCK;
    wanted.l_whence = SEEK_SET;
    REQUIRE(fcntl(locks[i].get(), F_OFD_SETLK, &wanted) == 0);
  }
  const FileDescriptor data(
      open((directory.path() + "/data").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600));
  if (!data) {
    MESSAGE("skipped: no O_DIRECT here");
    return;
  }
  AlignedPages pages(2);
  const auto write_two = [&](IoRingPool& pool) {
    std::array<IoOp, 2> ops = {
        IoOp::write(data.get(), 0, pages.bytes.first(kBlockBytes), true),
        IoOp::write(data.get(), kBlockBytes, pages.bytes.last(kBlockBytes), true)};
    pool.run_batch(ops);
    for (const IoOp& op : ops) CHECK(op.error == 0);
  };
  {
    IoRingPool pool;
    pool.kept_files()->add(locks[0].get());
    write_two(pool);
    // And one that was taken when the ring was there already.
    pool.kept_files()->add(locks[1].get());
    write_two(pool);
    CHECK(pool.ring_batches() == 2);
    // As the kernel does when the process is killed: nobody says a word to the pool.
    for (int i = 0; i < 2; ++i) {
      locks[i].reset();
      CHECK(is_locked(path_of(i)));
    }
  }
  // The kernel takes a ring apart in the background.
  for (int i = 0; i < 2; ++i) wait_for_unlock(path_of(i));

  IoRingPool pool;
  pool.kept_files()->add(locks[2].get());
  write_two(pool);
  pool.kept_files()->remove(locks[2].get());
  write_two(pool);
  CHECK(is_locked(path_of(2)));
  locks[2].reset();
  wait_for_unlock(path_of(2));
}

}  // namespace tplstore::io_ring_test
