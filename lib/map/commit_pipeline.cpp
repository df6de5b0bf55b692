// Commits are numbered as they start; a caller needs one with a number that nobody has yet.
#include "map/commit_pipeline.h"

#include <cerrno>

#include "base/error.h"

namespace tplstore {

void CommitPipeline::commit(const Step& run) {
  Lock guard(mutex_);
  // The next commit to start is the first whose cut is sure to come after this call.
  const uint64_t mine = started_ + 1;
  while (finished_ < mine) {
    if (is_running_) {
      ended_.wait(mutex_);
      continue;
    }
    is_running_ = true;
    const uint64_t number = ++started_;
    guard.unlock();
    std::exception_ptr failed;
    try {
      run();
    } catch (...) {
      failed = std::current_exception();
    }
    guard.lock();
    is_running_ = false;
    if (!failed) finished_ = number;
    ended_.notify_all();
    if (failed) std::rethrow_exception(failed);
  }
  guard.unlock();
  check();
}

void CommitPipeline::run_alone(const Step& body) {
  {
    const Lock guard(mutex_);
    while (is_running_) ended_.wait(mutex_);
    is_running_ = true;
  }
  const auto end = [this] {
    const Lock guard(mutex_);
    is_running_ = false;
    ended_.notify_all();
  };
  try {
    body();
  } catch (...) {
    end();
    throw;
  }
  end();
}

void CommitPipeline::perform(const Step& cut, const Step& write) {
  check();
  cut();
  or_stop(write);
}

void CommitPipeline::stop(std::exception_ptr failure) noexcept {
  const Lock guard(failure_mutex_);
  if (!failure_) failure_ = std::move(failure);
  is_stopped_.store(true, std::memory_order_release);
}

void CommitPipeline::throw_stopped() const {
  std::exception_ptr failure;
  {
    const Lock guard(failure_mutex_);
    failure = failure_;
  }
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    fail(EIO, "volume", "is stopped after an earlier error ({}); disconnect and connect again",
         error.what());
  }
}

}  // namespace tplstore
