#include "template/block_source.h"

#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "backend/dir/dir_backend.h"
#include "forwarding_backend.h"
#include "memory/memory_backend.h"
#include "template/template_image.h"
#include "template_testing.h"
#include "temporary_directory.h"

namespace tplstore::block_source_test {
using namespace tplstore::testing;

namespace {

// Two templates of the same blocks, in segments of 10, and who opens these.
struct Fixture {
  MemoryBackend memory;
  ForwardingBackend backend{memory};
  BlockSource blocks{backend};
  std::vector<uint64_t> numbers;
  std::mutex mutex;
  std::multiset<std::string> opened;

  Fixture() {
    for (uint64_t i = 0; i < 40; ++i) numbers.push_back(i + 1);
    for (const char* name : {"a", "b"})
      make_template(memory, name, numbers, numbers.size() * kBlockBytes, 10);
    backend.around = [this](ForwardingBackend::Call call, const std::string& name,
                            const std::function<void()>& go_on) {
      if (call == ForwardingBackend::Call::kOpen && name.starts_with("segments/")) {
        const std::lock_guard guard(mutex);
        opened.insert(name);
      }
      go_on();
    };
  }
  std::shared_ptr<TemplateImage> open(const std::string& name) {
    return TemplateImage::open(backend, blocks, name);
  }
  bool has_block(TemplateImage& image, uint64_t block) {
    ByteVector into(kBlockBytes);
    image.read(block * kBlockBytes, into);
    return into == block_of(numbers[block]);
  }
};

}  // namespace

TEST_CASE("segments are opened when they are read, once for all templates and threads") {
  Fixture f;
  const auto a = f.open("a");
  const auto b = f.open("b");
  a->run_at(0, 40);
  CHECK(f.opened.empty());
  CHECK(f.has_block(*a, 15));
  CHECK(f.opened.size() == 1);
  CHECK(f.has_block(*b, 15));
  CHECK(f.opened.size() == 1);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 200; ++i)
        if (!f.has_block(t % 2 == 0 ? *a : *b, (i * 7 + t) % 40)) ++wrong;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(f.opened.size() == 4);
  CHECK(std::set<std::string>(f.opened.begin(), f.opened.end()).size() == 4);
}

TEST_CASE("a segment that takes long to be opened holds up nobody who reads another") {
  Fixture f;
  const auto a = f.open("a");
  std::condition_variable changed;
  bool is_opening = false;
  bool may_go_on = false;
  f.backend.around = [&](ForwardingBackend::Call call, const std::string& name,
                         const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kOpen && name.starts_with("segments/")) {
      std::unique_lock guard(f.mutex);
      f.opened.insert(name);
      if (f.opened.size() == 1) {
        is_opening = true;
        changed.notify_all();
        changed.wait(guard, [&] { return may_go_on; });
      }
    }
    go_on();
  };
  std::atomic<int> wrong = 0;
  std::vector<std::thread> slow;
  for (int i = 0; i < 2; ++i)
    slow.emplace_back([&] {
      if (!f.has_block(*a, 0)) ++wrong;
    });
  {
    std::unique_lock guard(f.mutex);
    changed.wait(guard, [&] { return is_opening; });
  }
  for (uint64_t block = 10; block < 40; ++block) CHECK(f.has_block(*a, block));
  const auto b = f.open("b");
  CHECK(f.has_block(*b, 20));
  {
    const std::lock_guard guard(f.mutex);
    may_go_on = true;
  }
  changed.notify_all();
  for (std::thread& thread : slow) thread.join();
  CHECK(wrong == 0);
  CHECK(f.opened.size() == 4);
}

TEST_CASE("a segment that cannot be opened is tried again") {
  Fixture f;
  const auto a = f.open("a");
  const std::string path = segment_path(list_segments(f.memory).at(0));
  const ByteVector content = f.memory.content(path);
  f.memory.remove(path);
  std::set<uint64_t> failed;
  for (uint64_t block = 0; block < 40; ++block)
    if (thrown_by([&] { f.has_block(*a, block); }).code == EIO) failed.insert(block / 10);
  CHECK(failed.size() == 1);
  f.memory.put_new(path, content);
  for (uint64_t block = 0; block < 40; ++block) CHECK(f.has_block(*a, block));
}

TEST_CASE("a segment that nobody holds is closed, and one held anew is opened anew") {
  Fixture f;
  {
    const auto a = f.open("a");
    CHECK(f.has_block(*a, 0));
  }
  const auto b = f.open("b");
  CHECK(f.has_block(*b, 0));
  CHECK(f.opened.size() == 2);
  // Also after very many others have come and gone.
  const Hash128 name = list_segments(f.memory).at(0);
  for (uint32_t i = 0; i < 1000; ++i) f.blocks.hold(Hash128{i, i}, 1);
  CHECK(f.blocks.hold(name, 10) == f.blocks.hold(name, 10));
}

TEST_CASE("who is wrong about a segment's size keeps nobody from it") {
  Fixture f;
  const Hash128 name = list_segments(f.memory).at(0);
  ByteVector into(kBlockBytes);
  const auto wrong = f.blocks.hold(name, 11);
  CHECK(thrown_by([&] { wrong->read(0, into); }).code == EIO);
  f.blocks.hold(name, 10)->read(0, into);
  CHECK_FALSE(is_zero(into));
  CHECK_FALSE(wrong->is_missing());
  f.memory.remove(segment_path(name));
  CHECK(wrong->is_missing());
}

TEST_CASE(
    "a segment that was moved while its descriptor was closed is found again, by all who read") {
  const TemporaryDirectory directory;
  DirOptions few;
  few.descriptor_cap = 1;
  DirBackend backend(
      directory.path(), false, [](const std::string&) {}, few);
  std::vector<uint64_t> numbers;
  for (uint64_t i = 0; i < 40; ++i) numbers.push_back(i + 1);
  make_template(backend, "a", numbers, numbers.size() * kBlockBytes, 10);
  BlockSource blocks(backend);
  const auto image = TemplateImage::open(backend, blocks, "a");
  const auto reads_right = [&] {
    ByteVector into(kBlockBytes);
    for (uint64_t block = 0; block < 40; ++block) {
      image->read(block * kBlockBytes, into);
      if (into != block_of(numbers[block])) return false;
    }
    return true;
  };
  REQUIRE(reads_right());
  std::map<std::string, ByteVector> contents;
  for (const Hash128& name : list_segments(backend))
    contents[segment_path(name)] = backend.get(segment_path(name), kSegmentBytesMax).value();
  for (const auto& [path, content] : contents) backend.remove(path);
  CHECK(thrown_by(reads_right).code == EIO);
  for (const auto& [path, content] : contents) backend.put_new(path, content);
  CHECK(reads_right());
  for (const auto& [path, content] : contents) {
    backend.remove(path);
    backend.put_new(path, content);
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i)
        if (!reads_right()) ++wrong;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace tplstore::block_source_test
