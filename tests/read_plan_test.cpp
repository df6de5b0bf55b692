#include "backend/read_plan.h"

#include <doctest/doctest.h>

#include <algorithm>

namespace tplstore::read_plan_test {
namespace {

// An object whose bytes are its number; both it and its backend count what they are asked.
class Counted final : public Backend {
 public:
  explicit Counted(uint8_t value) : value_(value) {}
  size_t reads = 0;
  std::vector<size_t> batches;  // their pieces

  std::unique_ptr<Object> open(const std::string&, Access, Purpose) override {
    return std::make_unique<CountedObject>(*this);
  }
  std::unique_ptr<Object> create(const std::string&, uint64_t, Purpose) override { return nullptr; }
  bool put_new(const std::string&, Bytes) override { return false; }
  std::optional<ByteVector> get(const std::string&, uint64_t) override { return {}; }
  std::vector<std::string> list(const std::string&) override { return {}; }
  bool remove(const std::string&) override { return false; }
  void remove_folder(const std::string&) override {}
  void sync_folder(const std::string&) override {}
  std::unique_ptr<HeldLock> try_lock(const std::string&, LockMode, uint64_t) override {
    return nullptr;
  }
  bool is_locked(const std::string&) override { return false; }
  uint32_t write_alignment_bytes() const override { return 1; }
  std::string describe() const override { return "counted"; }

 private:
  class CountedObject final : public Object {
   public:
    explicit CountedObject(Counted& backend) : Object(backend), backend_(backend) {}
    void read(uint64_t offset, MutableBytes into) override {
      ++backend_.reads;
      if (offset == kBad) fail(EIO, "counted", "is bad");
      std::ranges::fill(into, std::byte{backend_.value_});
    }
    void write(uint64_t, Bytes) override {}
    void punch(uint64_t, uint64_t) override {}
    void grow(uint64_t) override {}
    void sync() override {}
    void drop_cached() override {}
    uint64_t size_bytes() override { return 0; }
    uint64_t allocated_bytes() override { return 0; }
    std::optional<DataRange> find_data(uint64_t) override { return {}; }

   private:
    Counted& backend_;
  };
  void run_reads(std::span<const ReadPiece> pieces, BatchFailures& failures) override {
    batches.push_back(pieces.size());
    for (size_t i = 0; i < pieces.size(); ++i)
      failures.attempt(i, [&] { pieces[i].object->read(pieces[i].offset, pieces[i].into); });
  }

 public:
  static constexpr uint64_t kBad = 1 << 30;

 private:
  const uint8_t value_;
};

struct Fixture {
  Counted a{1};
  Counted b{2};
  std::unique_ptr<Object> of_a = a.open("x", Access::kRead, Purpose::kData);
  std::unique_ptr<Object> of_b = b.open("x", Access::kRead, Purpose::kData);
  ByteVector buffer = ByteVector(100 * 16);
  MutableBytes part(size_t i) { return MutableBytes(buffer).subspan(i * 16, 16); }
};

}  // namespace

TEST_CASE("nothing is read of an empty plan, and one piece without a batch") {
  Fixture f;
  ReadPlan().run();
  ReadPlan plan;
  plan.add(*f.of_a, 0, f.part(0));
  plan.run();
  CHECK(f.a.reads == 1);
  CHECK(f.a.batches.empty());
}

TEST_CASE("pieces that go on in the object and in memory are one") {
  Fixture f;
  ReadPlan plan;
  for (size_t i = 0; i < 40; ++i) plan.add(*f.of_a, i * 16, f.part(i));
  CHECK(plan.size() == 1);
  plan.add(*f.of_a, 40 * 16, f.part(41));  // goes on in the object only
  plan.add(*f.of_a, 50 * 16, f.part(42));  // in memory only
  plan.add(*f.of_b, 51 * 16, f.part(43));  // in neither's object
  CHECK(plan.size() == 4);
  plan.run();
  CHECK(f.a.batches == std::vector<size_t>{3});
  CHECK(f.b.batches == std::vector<size_t>{1});
}

TEST_CASE("a request over two backends is one batch for each, however many pieces it has") {
  for (const size_t count : {2, 3, 16, 17, 33, 100}) {
    CAPTURE(count);
    Fixture f;
    ReadPlan plan;
    for (size_t i = 0; i < count; ++i) plan.add(i % 2 == 0 ? *f.of_a : *f.of_b, i * 32, f.part(i));
    CHECK(plan.size() == count);
    plan.run();
    CHECK(f.a.batches == std::vector<size_t>{(count + 1) / 2});
    CHECK(f.b.batches == std::vector<size_t>{count / 2});
    for (size_t i = 0; i < count; ++i)
      for (const std::byte byte : f.part(i)) REQUIRE(byte == std::byte(i % 2 == 0 ? 1 : 2));
  }
}

TEST_CASE("what a piece fails with is thrown, alone and among others") {
  Fixture f;
  for (const size_t others : {0, 1, 20}) {
    CAPTURE(others);
    ReadPlan plan;
    for (size_t i = 0; i < others; ++i) plan.add(*f.of_b, i * 32, f.part(i));
    plan.add(*f.of_a, Counted::kBad, f.part(50));
    CHECK_THROWS_AS(plan.run(), Error);
  }
}

namespace {

// Answers for pieces: which may be read now, and which are right.
struct Check final : ReadCheck {
  bool may_begin = true;
  bool is_right = true;
  int begun = 0, ended = 0, failed = 0;
  std::vector<uint64_t> elsewhere;

  bool begin() noexcept override {
    begun += may_begin;
    return may_begin;
  }
  bool end(const ReadPiece&, const std::exception_ptr& error) noexcept override {
    ++ended;
    failed += error != nullptr;
    return !error && is_right;
  }
  void read_elsewhere(uint64_t offset, MutableBytes into) override {
    elsewhere.push_back(offset);
    std::ranges::fill(into, std::byte{9});
  }
};

}  // namespace

TEST_CASE("checked pieces are read backend by backend, and each is answered for") {
  for (const size_t count : {1, 2, 4, 5, 16, 17, 40}) {
    CAPTURE(count);
    Fixture f;
    Check right, wrong;
    wrong.is_right = false;
    ReadPlan plan;
    for (size_t i = 0; i < count; ++i) {
      plan.add_checked(*f.of_a, i * 32, f.part(2 * i), right);
      plan.add_checked(*f.of_b, i * 32, f.part(2 * i + 1), wrong);
    }
    CHECK(plan.size() == 2 * count);
    plan.run();
    CHECK(right.begun == static_cast<int>(count));
    CHECK(right.ended == right.begun);
    CHECK(wrong.ended == right.begun);
    CHECK(right.elsewhere.empty());
    CHECK(wrong.elsewhere.size() == count);
    for (size_t i = 0; i < count; ++i) {
      for (const std::byte byte : f.part(2 * i)) REQUIRE(byte == std::byte{1});
      for (const std::byte byte : f.part(2 * i + 1)) REQUIRE(byte == std::byte{9});
    }
  }
}

TEST_CASE("a checked piece that may not be read now, or cannot be, is read elsewhere") {
  for (const size_t others : {0, 1, 20}) {
    CAPTURE(others);
    Fixture f;
    Check off, well;
    off.may_begin = false;
    ReadPlan plan;
    for (size_t i = 0; i < others; ++i) plan.add_checked(*f.of_a, i * 32, f.part(i), well);
    plan.add_checked(*f.of_a, 4000, f.part(50), off);
    plan.add_checked(*f.of_a, Counted::kBad, f.part(51), well);
    plan.add(*f.of_b, 0, f.part(52));
    plan.run();
    CHECK(off.ended == 0);
    CHECK(off.elsewhere == std::vector<uint64_t>{4000});
    CHECK(well.begun == static_cast<int>(others) + 1);
    CHECK(well.ended == well.begun);
    CHECK(well.failed == 1);
    CHECK(well.elsewhere == std::vector<uint64_t>{Counted::kBad});
    CHECK(f.part(52)[0] == std::byte{2});
  }
}

TEST_CASE("checked pieces that go on are one only if the same check answers for them") {
  Fixture f;
  Check one, other;
  ReadPlan plan;
  plan.add_checked(*f.of_a, 0, f.part(0), one);
  plan.add_checked(*f.of_a, 16, f.part(1), one);
  CHECK(plan.size() == 1);
  plan.add_checked(*f.of_a, 32, f.part(2), other);
  CHECK(plan.size() == 2);
}

}  // namespace tplstore::read_plan_test
