// What the tests of incremental files share: a sparse disk in memory, and an example on it.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "template_testing.h"
#include "temporary_directory.h"
#include "transfer/increment.h"

namespace tplstore::testing {

struct Range {
  uint64_t offset;
  uint64_t length;

  uint64_t end() const { return offset + length; }
  bool operator==(const Range&) const = default;
};

// A disk in memory of any size: blocks that were written, and ranges that it says are data. It
// remembers how it was changed.
class SparseDisk final : public Disk {
 public:
  explicit SparseDisk(uint64_t size_bytes, std::vector<Range> data = {})
      : size_bytes_(size_bytes), data_(std::move(data)) {}

  std::vector<Range> written, zeroed;
  uint64_t fail_read_at = UINT64_MAX;

  // Content as test data is put in: does not count as written.
  void put(uint64_t offset, Bytes from) {
    for (uint64_t done = 0; done < from.size();) {
      const uint64_t at = offset + done, begin = at % kBlockBytes;
      const uint64_t count = std::min<uint64_t>(kBlockBytes - begin, from.size() - done);
      ByteVector& block = blocks_.try_emplace(at / kBlockBytes, kBlockBytes).first->second;
      std::copy_n(from.begin() + done, count, block.begin() + begin);
      done += count;
    }
  }
  bool has_content_of(const SparseDisk& other) const {
    for (const auto& [number, block] : blocks_)
      if (block != other.block(number)) return false;
    for (const auto& [number, block] : other.blocks_)
      if (block != this->block(number)) return false;
    return size_bytes_ == other.size_bytes_;
  }

  uint64_t size_bytes() const override { return size_bytes_; }
  bool is_writable() const override { return true; }
  bool allows_multi_conn() const override { return true; }
  void read(uint64_t offset, MutableBytes into) override {
    REQUIRE(offset + into.size() <= size_bytes_);
    if (offset + into.size() > fail_read_at) fail(EIO, "disk", "a bad sector");
    std::fill(into.begin(), into.end(), std::byte{0});
    const auto first = blocks_.lower_bound(offset / kBlockBytes);
    for (auto it = first; it != blocks_.end() && it->first * kBlockBytes < offset + into.size();
         ++it) {
      const uint64_t begin = std::max(offset, it->first * kBlockBytes);
      const uint64_t end = std::min(offset + into.size(), (it->first + 1) * kBlockBytes);
      std::copy_n(it->second.begin() + (begin - it->first * kBlockBytes), end - begin,
                  into.begin() + (begin - offset));
    }
  }
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override {
    const uint64_t end = offset + length;
    REQUIRE(end <= size_bytes_);
    for (const Range& range : data_) {
      if (range.end() <= offset) continue;
      if (range.offset >= end) break;
      if (range.offset > offset && !add({offset, range.offset - offset, true})) return;
      offset = std::max(offset, range.offset);
      const uint64_t stop = std::min(end, range.end());
      if (!add({offset, stop - offset, false})) return;
      offset = stop;
    }
    if (offset < end) add({offset, end - offset, true});
  }
  void write(uint64_t offset, Bytes from, bool durable) override {
    REQUIRE(offset + from.size() <= size_bytes_);
    CHECK_FALSE(durable);
    written.push_back({offset, from.size()});
    put(offset, from);
  }
  void trim(uint64_t, uint64_t, bool) override { FAIL("trimmed"); }
  void zero(uint64_t offset, uint64_t length, bool durable) override {
    REQUIRE(offset + length <= size_bytes_);
    CHECK_FALSE(durable);
    zeroed.push_back({offset, length});
    for (auto it = blocks_.lower_bound(offset / kBlockBytes);
         it != blocks_.end() && it->first * kBlockBytes < offset + length; ++it) {
      const uint64_t begin = std::max(offset, it->first * kBlockBytes);
      const uint64_t end = std::min(offset + length, (it->first + 1) * kBlockBytes);
      std::fill_n(it->second.begin() + (begin - it->first * kBlockBytes), end - begin,
                  std::byte{0});
    }
  }
  void flush() override { FAIL("flushed"); }
  void cache(uint64_t, uint64_t) override { FAIL("cached"); }

 private:
  ByteVector block(uint64_t number) const {
    const auto it = blocks_.find(number);
    return it != blocks_.end() ? it->second : ByteVector(kBlockBytes);
  }

  const uint64_t size_bytes_;
  const std::vector<Range> data_;
  std::map<uint64_t, ByteVector> blocks_;
};

inline Uuid uuid_of(const char* text) {
  Uuid uuid;
  REQUIRE(parse_uuid(text, uuid));
  return uuid;
}

inline IncrementInfo example_info(uint64_t size_bytes) {
  IncrementInfo info;
  info.base = {uuid_of("6f1d3a52-8c07-4e4b-9f60-2b7a51c0d9e4"), 3};
  info.version = {uuid_of("1b4e28ba-2fa1-4f3c-883f-0016d3cca427"), 5};
  info.volume_name = "vm1";
  info.version_name = "clean";
  info.note = "before the upgrade";
  info.created_ns = 1'767'225'600'000'000'000;
  info.size_bytes = size_bytes;
  info.base_size_bytes = 8192;
  return info;
}

inline ByteVector pattern(uint64_t count, uint64_t seed) {
  ByteVector bytes(count);
  std::mt19937_64 random(seed);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() % 255 + 1);
  return bytes;
}

// A folder with one file in it, and what the tests do to that file.
struct Place {
  TemporaryDirectory folder;
  std::string file = folder.path() + "/vm1.increment";

  uint64_t write(Disk& disk, const IncrementInfo& info) {
    return write_increment(disk, info, file, {.may_replace = true});
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
      found.push_back(entry.path().filename());
    return found;
  }
};

// The code with which opening and verifying a file ends; 0 when it is good.
inline int check_file(const std::string& file) {
  return thrown_by([&] { IncrementReader::open(file).verify(); }).code;
}

// A disk with a bit of everything: ranges with odd ends, zeroes, and data up to an odd end.
inline constexpr uint64_t kExampleBytes = 3 * kBlockBytes + 512;
inline SparseDisk example_disk() {
  SparseDisk disk(kExampleBytes, {{100, 150}, {4096, 4096}, {9000, 200}, {12'288, 512}});
  disk.put(100, pattern(150, 1));
  disk.put(9000, pattern(200, 2));
  disk.put(12'288, pattern(512, 3));
  return disk;
}

}  // namespace tplstore::testing
