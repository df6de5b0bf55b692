// A write of a part of a block while somebody else writes and trims that block, at each moment when
// the writer is about to look something up. Such a moment is where it takes a lock that is shared,
// which this program sees by having the C library's function for that in its place.
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <utility>
#include <vector>

#include "forwarding_backend.h"
#include "volume_testing.h"

namespace {

// What the thread does before it takes a shared lock.
thread_local std::function<void()> before_shared_lock;

}  // namespace

extern "C" int pthread_rwlock_tryrdlock(pthread_rwlock_t* lock) noexcept {
  static const auto take =
      reinterpret_cast<int (*)(pthread_rwlock_t*)>(dlsym(RTLD_NEXT, "pthread_rwlock_tryrdlock"));
  if (const auto hook = std::exchange(before_shared_lock, nullptr)) {
    hook();
    if (!before_shared_lock) before_shared_lock = hook;
  }
  return take(lock);
}

namespace tplstore {
namespace {

using Call = ForwardingBackend::Call;

// Others do something while a thread waits; which cannot be done before it has gone on when they
// need a lock of its.
class Meanwhile {
 public:
  void run(std::function<void()> work) {
    const std::future<void>& done = works_.emplace_back(std::async(std::launch::async, work));
    is_in_time_ = done.wait_for(std::chrono::seconds(1)) == std::future_status::ready;
  }
  bool is_in_time() const { return is_in_time_; }  // the last one
  void wait() { works_.clear(); }

 private:
  std::vector<std::future<void>> works_;
  bool is_in_time_ = false;
};

}  // namespace

TEST_CASE("a split block is not made whole with bytes that were trimmed while its rest was read") {
  const ByteVector block(kBlockBytes, std::byte{1});
  const ByteVector sector(kSectorBytes, std::byte{2});
  unsigned undisturbed = 0;
  for (unsigned chosen = 1;; ++chosen) {
    INFO("the block is written before lock " << chosen);
    const auto memory = memory_store();
    ForwardingBackend backend(*memory);
    const Uuid uuid = random_uuid();
    create_volume(backend, uuid, kRegionBytes, nullptr);
    const auto volume = open_volume(backend, uuid);
    Meanwhile others;
    bool is_written = false;
    bool is_trimmed = false;
    unsigned locks = 0;
    // It is trimmed again when the writer has read it.
    backend.around = [&](Call call, const std::string& name, const std::function<void()>& go_on) {
      go_on();
      if (call != Call::kRead || !name.ends_with("data.1") || !is_written || is_trimmed) return;
      is_trimmed = true;
      others.run([&] { volume->trim(0, kBlockBytes, false); });
    };
    before_shared_lock = [&] {
      if (++locks != chosen) return;
      others.run([&] { volume->write(0, block, false); });
      is_written = others.is_in_time();
    };
    volume->write(kSectorBytes, sector, false);
    before_shared_lock = nullptr;
    others.wait();
    backend.around = nullptr;
    if (locks < chosen) break;
    const ByteVector found = read_bytes(*volume, 0, 0, kBlockBytes);
    ByteVector expected(kBlockBytes, is_trimmed ? std::byte{0} : std::byte{1});
    // When the other had to wait, either may have come last.
    const ByteVector& last = is_written ? sector : found;
    std::copy_n(last.begin() + (is_written ? 0 : kSectorBytes), kSectorBytes,
                expected.begin() + kSectorBytes);
    if (is_written) ++undisturbed;
    CHECK(found == expected);
    volume->close();
  }
  CHECK(undisturbed > 0);
}

TEST_CASE("a write looks its blocks up once, or twice when it covers one in part") {
  const auto memory = memory_store();
  const Uuid uuid = random_uuid();
  create_volume(*memory, uuid, kRegionBytes, nullptr);
  const auto volume = open_volume(*memory, uuid);
  unsigned locks = 0;
  const auto locks_of = [&](uint64_t offset, size_t length) {
    const ByteVector bytes(length, std::byte{1});
    locks = 0;
    before_shared_lock = [&] { ++locks; };
    volume->write(offset, bytes, false);
    before_shared_lock = nullptr;
    return locks;
  };
  // Setting log space aside is one of these locks.
  constexpr unsigned kReservation = 1;
  CHECK(locks_of(0, kBlockBytes) == 1 + kReservation);
  CHECK(locks_of(8 * kBlockBytes, 8 * kBlockBytes) == 1 + kReservation);
  CHECK(locks_of(kRegionBytes / 2, kSectorBytes) == 2 + kReservation);
  CHECK(locks_of(32 * kBlockBytes + kSectorBytes, 8 * kBlockBytes) == 2 + kReservation);
  // What is current's already.
  CHECK(locks_of(0, kBlockBytes) == 1);
  CHECK(locks_of(kSectorBytes, kSectorBytes) == 1);
  CHECK(locks_of(9 * kBlockBytes + kSectorBytes, 3 * kBlockBytes) == 1);
  volume->close();
}

}  // namespace tplstore
