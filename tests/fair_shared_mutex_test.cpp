#include "base/fair_shared_mutex.h"

#include <doctest/doctest.h>

#include <mutex>
#include <set>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "volume/range_locks.h"

namespace tplstore::fair_shared_mutex_test {
namespace {

// Threads that take a mutex one after the other: each is in the queue before the next one comes.
class Queue {
 public:
  explicit Queue(FairSharedMutex& mutex) : mutex_(mutex) {}
  ~Queue() {
    for (std::thread& thread : threads_) thread.join();
  }

  // Each notes when it has the mutex, and keeps it until the test says so.
  void add(char name, bool is_writer) {
    const size_t waiting = mutex_.waiting() + 1;
    threads_.emplace_back([this, name, is_writer] {
      if (is_writer) {
        const std::lock_guard hold(mutex_);
        stay(name);
      } else {
        const std::shared_lock hold(mutex_);
        stay(name);
      }
    });
    while (mutex_.waiting() != waiting) std::this_thread::yield();
  }
  // Those that have the mutex, when there are `count` of them.
  std::set<char> await_holders(size_t count) {
    while (true) {
      {
        const std::lock_guard guard(guard_);
        if (inside_.size() == count) return inside_;
      }
      std::this_thread::yield();
    }
  }
  void let_go(char name) {
    const std::lock_guard guard(guard_);
    inside_.erase(name);
  }

 private:
  void stay(char name) {
    {
      const std::lock_guard guard(guard_);
      inside_.insert(name);
    }
    while (true) {
      {
        const std::lock_guard guard(guard_);
        if (!inside_.contains(name)) return;
      }
      std::this_thread::yield();
    }
  }

  FairSharedMutex& mutex_;
  std::mutex guard_;
  std::set<char> inside_;
  std::vector<std::thread> threads_;
};

using Names = std::set<char>;

}  // namespace

TEST_CASE("a writer waits for the readers that were there before it, and for nobody else") {
  FairSharedMutex mutex;
  Queue queue(mutex);
  mutex.lock_shared();
  REQUIRE(mutex.try_lock_shared());
  queue.add('w', true);
  // It has announced itself: who comes now comes after it.
  CHECK(!mutex.try_lock_shared());
  queue.add('r', false);
  queue.add('s', false);
  mutex.unlock_shared();
  CHECK(mutex.waiting() == 3);
  CHECK(!mutex.try_lock_shared());
  mutex.unlock_shared();
  CHECK(queue.await_holders(1) == Names{'w'});
  CHECK(mutex.waiting() == 2);
  queue.let_go('w');
  CHECK(queue.await_holders(2) == Names{'r', 's'});
  queue.let_go('r');
  queue.let_go('s');
}

TEST_CASE("who waits is served in the order of coming, readers together up to the next writer") {
  FairSharedMutex mutex;
  Queue queue(mutex);
  mutex.lock();
  queue.add('r', false);
  queue.add('s', false);
  queue.add('v', true);
  queue.add('w', true);
  queue.add('t', false);
  CHECK(!mutex.try_lock());
  mutex.unlock();
  CHECK(queue.await_holders(2) == Names{'r', 's'});
  CHECK(!mutex.try_lock_shared());
  queue.let_go('r');
  CHECK(mutex.waiting() == 3);
  queue.let_go('s');
  CHECK(queue.await_holders(1) == Names{'v'});
  CHECK(mutex.waiting() == 2);
  queue.let_go('v');
  CHECK(queue.await_holders(1) == Names{'w'});
  queue.let_go('w');
  CHECK(queue.await_holders(1) == Names{'t'});
  // The queue is empty: another reader may share.
  CHECK(mutex.try_lock_shared());
  mutex.unlock_shared();
  queue.let_go('t');
}

TEST_CASE("threads that share or exclude each other never meet where they must not") {
  FairSharedMutex mutex;
  int value = 0;  // guarded by it
  std::atomic<int> wrong{0};
  constexpr int kRounds = 5000;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 6; ++thread)
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kRounds; ++i) {
        if (thread < 3) {
          const std::lock_guard hold(mutex);
          ++value;
        } else {
          const std::shared_lock hold(mutex);
          const int before = value;
          if (i % 16 == 0) std::this_thread::yield();
          if (value != before) ++wrong;
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(value == 3 * kRounds);
  CHECK(mutex.try_lock());
  mutex.unlock();
}

TEST_CASE("requests far from each other take different locks, whatever the distance") {
  const auto locks_of = [](uint64_t first, uint64_t count) {
    std::set<uint32_t> locks;
    uint32_t last = 0;
    RangeLocks::Range(first, count).for_each([&](uint32_t line, uint32_t i) {
      const uint32_t lock = line * RangeLocks::kLineLocks + i;
      // Rising, so that no two requests wait for each other.
      CHECK((locks.empty() || lock > last));
      last = lock;
      locks.insert(lock);
    });
    return locks;
  };
  // 32 requests at once, of 32 streams that keep their distance.
  for (int shift = 3; shift < 32; ++shift) {
    std::set<uint32_t> all;
    for (uint64_t i = 0; i < 32; ++i) all.merge(locks_of(i << shift, 1));
    INFO("distance of " << (uint64_t{1} << shift) << " blocks");
    CHECK(all.size() == 32);
  }
  // Neighbours are apart, overlaps meet, and long ranges have a lock for each of their stretches.
  CHECK(locks_of(0, 8) != locks_of(8, 8));
  CHECK(locks_of(7, 2).size() == 2);
  CHECK(locks_of(1024, 1024).size() == 128);
  for (uint64_t block = 1024; block < 2048; ++block)
    CHECK(locks_of(1024, 1024).contains(*locks_of(block, 1).begin()));
  CHECK(locks_of(0, 1 << 20).size() == RangeLocks::kLockCount);
}

}  // namespace tplstore::fair_shared_mutex_test
