// Who waits for which commit, alone: commits that take long, fail, or are asked for by many.
#include "map/commit_pipeline.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <new>
#include <thread>
#include <vector>

#include "template_testing.h"

namespace tplstore::commit_pipeline_test {
namespace {

using testing::thrown_by;

const CommitPipeline::Step kNothing = [] {};

// Something that becomes durable by commits: what was written has tickets, 1, 2, …
class Journal {
 public:
  // Writes something, and commits it; false when that failed.
  bool write_and_commit() {
    const uint64_t ticket = ++written_;
    try {
      pipeline.commit([this] { perform(); });
    } catch (const std::exception&) {
      return false;
    }
    CHECK_MESSAGE(durable_ >= ticket, "a commit counted whose cut came before the question");
    return true;
  }
  void perform() {
    uint64_t taken = 0;
    pipeline.perform(
        [&] {
          at_cut();
          CHECK_MESSAGE(!is_running_.exchange(true), "one commit runs at a time");
          taken = written_;
          ++commits;
        },
        [&] {
          before_sync(taken);
          durable_ = taken;
          is_running_ = false;
        });
  }
  uint64_t written() const { return written_; }

  CommitPipeline pipeline;
  std::function<void()> at_cut = [] {};
  std::function<void(uint64_t taken)> before_sync = [](uint64_t) {};
  std::atomic<uint64_t> commits{0};

 private:
  std::atomic<uint64_t> written_{0};
  std::atomic<uint64_t> durable_{0};
  std::atomic<bool> is_running_{false};
};

constexpr int kThreads = 8;

// Runs `work` in many threads at once.
void in_threads(const std::function<void()>& work) {
  std::vector<std::jthread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work);
}

}  // namespace

TEST_CASE("what was written before a commit was asked for is durable after it, with many who ask") {
  constexpr uint64_t kCommits = 500;
  Journal journal;
  journal.before_sync = [](uint64_t) {
    for (int i = 0; i < 20; ++i) std::this_thread::yield();
  };
  in_threads([&] {
    for (uint64_t i = 0; i < kCommits; ++i) CHECK(journal.write_and_commit());
  });
  // Those who wait together share one.
  CHECK(journal.commits < kThreads * kCommits);
  CHECK(journal.commits >= kCommits);
}

TEST_CASE("a commit that runs already is not one's own") {
  for (int round = 0; round < 100; ++round) {
    Journal journal;
    std::thread other;
    // The second one is at its sync when the third is asked for.
    journal.before_sync = [&](uint64_t taken) {
      if (taken != 2) return;
      other = std::thread([&] { CHECK(journal.write_and_commit()); });
      while (journal.written() < 3) std::this_thread::yield();
    };
    CHECK(journal.write_and_commit());
    CHECK(journal.write_and_commit());
    other.join();
    CHECK(journal.commits == 3);
  }
}

TEST_CASE("whatever is thrown between cut and sync stops all that comes after") {
  Journal journal;
  SUBCASE("a failed sync") {
    journal.before_sync = [](uint64_t) { fail(EIO, "log", "cannot be synced"); };
  }
  SUBCASE("want of memory") {
    journal.before_sync = [](uint64_t) { throw std::bad_alloc(); };
  }
  std::atomic<int> succeeded{0};
  in_threads([&] {
    for (int i = 0; i < 10; ++i) succeeded += journal.write_and_commit();
  });
  CHECK(succeeded == 0);
  CHECK(journal.commits == 1);
  CHECK(journal.pipeline.is_stopped());
  const auto thrown = thrown_by([&] { journal.pipeline.check(); });
  CHECK(thrown.code == EIO);
  CHECK(thrown.text.find("is stopped after an earlier error") != std::string::npos);
}

TEST_CASE("what fails before anything was taken fails for the one who ran it only") {
  Journal journal;
  std::atomic<int> failures{0};
  journal.at_cut = [&] {
    if (failures.fetch_add(1) % 2 == 0) throw std::bad_alloc();
  };
  std::atomic<int> failed{0};
  in_threads([&] {
    for (int i = 0; i < 100; ++i) failed += !journal.write_and_commit();
  });
  CHECK_FALSE(journal.pipeline.is_stopped());
  CHECK(failed == (failures + 1) / 2);
  journal.at_cut = [] {};
  CHECK(journal.write_and_commit());
}

TEST_CASE("commits that fail now and then never say that something is durable that is not") {
  for (uint64_t round = 0; round < 50; ++round) {
    Journal journal;
    std::atomic<uint64_t> cuts{0};
    journal.at_cut = [&] {
      if (++cuts % 7 == 0) throw std::bad_alloc();
    };
    journal.before_sync = [&](uint64_t taken) {
      if (taken > round * 10) fail(EIO, "log", "cannot be synced");
    };
    in_threads([&] {
      for (int i = 0; i < 30; ++i) journal.write_and_commit();
    });
    if (round * 10 >= kThreads * 30) CHECK_FALSE(journal.pipeline.is_stopped());
  }
}

TEST_CASE("nothing commits while something runs alone, but what that does itself") {
  Journal journal;
  std::atomic<uint64_t> alone{0};
  in_threads([&] {
    for (int i = 0; i < 100; ++i) {
      journal.write_and_commit();
      journal.pipeline.run_alone([&] {
        CHECK(alone.fetch_add(1) == 0);
        const uint64_t before = journal.commits;
        journal.perform();
        std::this_thread::yield();
        CHECK(journal.commits == before + 1);
        --alone;
      });
    }
  });
  CHECK_THROWS_AS(journal.pipeline.run_alone([] { throw std::bad_alloc(); }), std::bad_alloc);
  CHECK(journal.write_and_commit());
}

TEST_CASE("the first failure is the one that is told") {
  CommitPipeline pipeline;
  CHECK_THROWS_AS(pipeline.or_stop([] { fail(EIO, "map", "was the first"); }), Error);
  CHECK_THROWS_AS(pipeline.or_stop([] { throw std::bad_alloc(); }), std::bad_alloc);
  CHECK(thrown_by([&] {
          pipeline.commit([&] { pipeline.perform(kNothing, kNothing); });
        }).text.find("was the first") != std::string::npos);
}

}  // namespace tplstore::commit_pipeline_test
