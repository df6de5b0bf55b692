// Mutexes that clang's thread safety analysis knows (-Wthread-safety, see tests/tidy.py):
// what a mutex guards, and which functions are called with it held, is written down and checked by
// the compiler. Other compilers see nothing of it.
//
// A member that a mutex guards is declared GUARDED_BY(mutex_), a function that needs it held
// REQUIRES(mutex_) (or REQUIRES_SHARED), one that takes it itself EXCLUDES(mutex_). The attributes
// are described in the Clang documentation, "Thread Safety Analysis".
//
// Thread safety: all. Nothing here costs more than the standard library's own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <shared_mutex>

#ifdef __clang__
#define TPLSTORE_THREAD_ATTRIBUTE(x) __attribute__((x))
#else
#define TPLSTORE_THREAD_ATTRIBUTE(x)
#endif

#define CAPABILITY(name) TPLSTORE_THREAD_ATTRIBUTE(capability(name))
#define SCOPED_CAPABILITY TPLSTORE_THREAD_ATTRIBUTE(scoped_lockable)
#define GUARDED_BY(mutex) TPLSTORE_THREAD_ATTRIBUTE(guarded_by(mutex))
#define PT_GUARDED_BY(mutex) TPLSTORE_THREAD_ATTRIBUTE(pt_guarded_by(mutex))
#define REQUIRES(...) TPLSTORE_THREAD_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define REQUIRES_SHARED(...) TPLSTORE_THREAD_ATTRIBUTE(requires_shared_capability(__VA_ARGS__))
#define ACQUIRE(...) TPLSTORE_THREAD_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define ACQUIRE_SHARED(...) TPLSTORE_THREAD_ATTRIBUTE(acquire_shared_capability(__VA_ARGS__))
#define RELEASE(...) TPLSTORE_THREAD_ATTRIBUTE(release_capability(__VA_ARGS__))
#define RELEASE_SHARED(...) TPLSTORE_THREAD_ATTRIBUTE(release_shared_capability(__VA_ARGS__))
#define RELEASE_GENERIC(...) TPLSTORE_THREAD_ATTRIBUTE(release_generic_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) TPLSTORE_THREAD_ATTRIBUTE(try_acquire_capability(__VA_ARGS__))
#define EXCLUDES(...) TPLSTORE_THREAD_ATTRIBUTE(locks_excluded(__VA_ARGS__))
#define RETURN_CAPABILITY(x) TPLSTORE_THREAD_ATTRIBUTE(lock_returned(x))
// Says why behind it.
#define NO_THREAD_SAFETY_ANALYSIS TPLSTORE_THREAD_ATTRIBUTE(no_thread_safety_analysis)

namespace tplstore {

class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRE() { mutex_.lock(); }
  void unlock() RELEASE() { mutex_.unlock(); }
  bool try_lock() TRY_ACQUIRE(true) { return mutex_.try_lock(); }

 private:
  friend class ConditionVariable;
  std::mutex mutex_;
};

class CAPABILITY("mutex") SharedMutex {
 public:
  void lock() ACQUIRE() { mutex_.lock(); }
  void unlock() RELEASE() { mutex_.unlock(); }
  void lock_shared() ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void unlock_shared() RELEASE_SHARED() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
};

// Has any of our mutexes from here to its end; may be let go of and taken again in between.
template <typename M>
class SCOPED_CAPABILITY Lock {
 public:
  explicit Lock(M& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex.lock(); }
  // It is held already.
  Lock(M& mutex, std::adopt_lock_t) REQUIRES(mutex) : mutex_(mutex) {}
  ~Lock() RELEASE() {
    if (has_it_) mutex_.unlock();
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  void unlock() RELEASE() {
    has_it_ = false;
    mutex_.unlock();
  }
  void lock() ACQUIRE() {
    mutex_.lock();
    has_it_ = true;
  }

 private:
  M& mutex_;
  bool has_it_ = true;
};

// Shares it with others that do.
template <typename M>
class SCOPED_CAPABILITY SharedLock {
 public:
  explicit SharedLock(M& mutex) ACQUIRE_SHARED(mutex) : mutex_(mutex) { mutex.lock_shared(); }
  ~SharedLock() RELEASE_GENERIC() { mutex_.unlock_shared(); }
  SharedLock(const SharedLock&) = delete;
  SharedLock& operator=(const SharedLock&) = delete;

 private:
  M& mutex_;
};

// Waits let go of the mutex meanwhile and may end for no reason: they stand in a loop.
class ConditionVariable {
 public:
  void wait(Mutex& mutex) REQUIRES(mutex) {
    Adopted adopted(mutex.mutex_);
    condition_.wait(adopted.lock);
  }
  template <typename Clock, typename Duration>
  std::cv_status wait_until(Mutex& mutex, std::chrono::time_point<Clock, Duration> deadline)
      REQUIRES(mutex) {
    Adopted adopted(mutex.mutex_);
    return condition_.wait_until(adopted.lock, deadline);
  }
  template <typename Rep, typename Period>
  std::cv_status wait_for(Mutex& mutex, std::chrono::duration<Rep, Period> time) REQUIRES(mutex) {
    return wait_until(mutex, std::chrono::steady_clock::now() + time);
  }
  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  // The mutex is the caller's before and behind a wait.
  struct Adopted {
    explicit Adopted(std::mutex& mutex) : lock(mutex, std::adopt_lock) {}
    ~Adopted() { lock.release(); }
    std::unique_lock<std::mutex> lock;
  };

  std::condition_variable condition_;
};

}  // namespace tplstore
