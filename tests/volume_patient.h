// A volume to which something happens while it works: memory runs out, a sync fails. A script that
// does a bit of everything, and what each block may show afterwards: what was written to it; after
// a crash, what was flushed or something written since.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "forwarding_backend.h"
#include "volume_testing.h"

namespace tplstore {

inline constexpr uint64_t kPatientBytes = 2 * kRegionBytes;
inline constexpr uint64_t kUnitBytes = kBlockBytes / 2;
// Units that the test touches, in two regions.
inline constexpr uint64_t kFirstBlock = kRegionBlocks - 8;
inline constexpr uint64_t kUnits = 32;

inline uint64_t offset_of(uint64_t unit) { return kFirstBlock * kBlockBytes + unit * kUnitBytes; }

// The content that stands for a value; 0 is zeroes.
inline ByteVector content_of(uint64_t unit, uint64_t value) {
  ByteVector bytes(kUnitBytes);
  if (value == 0) return bytes;
  const uint64_t word = value << 16 | unit;
  for (size_t i = 0; i < kUnitBytes; i += 8) std::memcpy(bytes.data() + i, &word, 8);
  return bytes;
}

// The values that a unit may show.
using Values = std::set<uint64_t>;
using Content = std::vector<Values>;

// What may strike while a volume works.
class Illness {
 public:
  virtual ~Illness() = default;
  virtual bool has_struck() const = 0;
  // Does something during which it may strike.
  virtual void expose(const std::function<void()>& work) = 0;
};

// A volume that is worked on meanwhile, and what it has to show.
class Patient {
 public:
  Patient(Illness& illness, Backend& backend, const Uuid& uuid, Content content,
          std::map<uint32_t, Content> versions)
      : illness_(illness),
        backend_(backend),
        uuid_(uuid),
        shown_(content),
        durable_(std::move(content)),
        versions_(std::move(versions)) {}

  void open() {
    perform([&] { volume_ = open_volume(backend_, uuid_); });
    if (!volume_) volume_ = open_volume(backend_, uuid_);
  }

  void write(uint64_t first, uint64_t count, bool durable = false) {
    const uint64_t value = ++next_value_;
    ByteVector bytes;
    for (uint64_t unit = first; unit < first + count; ++unit) {
      const ByteVector content = content_of(unit, value);
      bytes.insert(bytes.end(), content.begin(), content.end());
    }
    change(first, count, value, durable, [&] { volume_->write(offset_of(first), bytes, durable); });
  }
  void zero(uint64_t first, uint64_t count) {
    change(first, count, 0, false,
           [&] { volume_->zero(offset_of(first), count * kUnitBytes, false); });
  }
  void trim(uint64_t first, uint64_t count) {
    change(first, count, 0, false,
           [&] { volume_->trim(offset_of(first), count * kUnitBytes, false); });
  }
  void flush() {
    if (perform([&] { volume_->flush(); })) durable_ = shown_;
  }
  void create_version(const std::string& name) {
    const uint32_t number = volume_->versions().current().number;
    uint32_t frozen = 0;
    const Content content = shown_;
    if (perform([&] { frozen = volume_->versions().create({name, "", {}}).number; })) {
      CHECK(frozen == number);
      versions_[frozen] = content;
      durable_ = shown_;
    } else {
      perhaps_[number] = content;
    }
  }
  void rollback(uint32_t to) {
    if (!versions_.contains(to)) return;
    const uint32_t number = volume_->versions().current().number;
    const Content content = shown_;
    if (perform([&] { volume_->versions().rollback(std::to_string(to)); })) {
      versions_[number] = content;
      shown_ = versions_.at(to);
      durable_ = shown_;
    } else {
      perhaps_[number] = content;
      for (uint64_t unit = 0; unit < kUnits; ++unit) {
        shown_[unit].merge(Values(versions_.at(to)[unit]));
        durable_[unit].merge(Values(versions_.at(to)[unit]));
      }
    }
  }
  void remove_version(uint32_t number) {
    if (!versions_.contains(number)) return;
    const bool is_done = perform([&] { volume_->versions().remove({std::to_string(number)}); });
    if (!is_done) perhaps_[number] = versions_.at(number);
    versions_.erase(number);
  }
  void fork(uint32_t version) {
    if (!versions_.contains(version)) return;
    const Uuid child = random_uuid();
    const bool is_done = perform([&] { volume_->forks().create(std::to_string(version), child); });
    if (!is_done) return;
    const auto volume = open_volume(backend_, child);
    compare(*volume, 0, versions_.at(version));
    volume->close();
    backend_.remove_folder(volume_folder(child));
  }
  void resize() {
    perform([&] { volume_->resize(volume_->size_bytes() + kBlockBytes); });
  }
  template <typename Work>
  void work(Work work_of) {
    perform([&] { work_of(*volume_); });
  }

  // When the illness has struck in the last operation: the volume is as it should be, and goes on
  // working unless it says that it does not.
  void check_alive() {
    if (!std::exchange(needs_check_, false)) return;
    try {
      volume_->flush();
      durable_ = shown_;
    } catch (const Error& error) {
      REQUIRE(error.code() == EIO);
      is_stopped_ = true;
    }
    compare_all(*volume_, is_stopped_ ? durable_ : shown_, is_stopped_);
  }

  void close() {
    perform([&] { volume_->close(); });
    volume_.reset();
  }
  void crash() { volume_.reset(); }

  // What is there after a crash, or an end.
  void check_again(Backend& after, bool may_leak) const {
    const auto volume = open_volume(after, uuid_);
    compare_all(*volume, durable_, false);
    volume->space().run();
    volume->flush();
    if (!may_leak) check_no_leak(after, uuid_, kPatientBytes);
    volume->write(offset_of(3), content_of(3, 999), true);
    CHECK(read_bytes(*volume, 0, offset_of(3), kUnitBytes) == content_of(3, 999));
  }

 private:
  // Whether an operation has succeeded.
  template <typename Operation>
  bool perform(Operation operation) {
    const bool had_struck = illness_.has_struck();
    bool is_done = false;
    try {
      illness_.expose(operation);
      is_done = true;
    } catch (const std::exception& error) {
      INFO(error.what());
      CHECK(illness_.has_struck());
    }
    if (illness_.has_struck() && !had_struck) needs_check_ = true;
    return is_done;
  }

  template <typename Operation>
  void change(uint64_t first, uint64_t count, uint64_t value, bool durable, Operation operation) {
    const bool is_done = perform(operation);
    for (uint64_t unit = first; unit < first + count; ++unit) {
      durable_[unit].insert(value);
      if (is_done) {
        shown_[unit] = {value};
      } else {
        shown_[unit].insert(value);
      }
    }
    if (is_done && durable) durable_ = shown_;
  }

  static void compare(Volume& volume, uint32_t version, const Content& content) {
    for (uint64_t unit = 0; unit < kUnits; ++unit) {
      const ByteVector bytes = read_bytes(volume, version, offset_of(unit), kUnitBytes);
      const bool is_good = std::any_of(content[unit].begin(), content[unit].end(),
                                       [&](uint64_t v) { return bytes == content_of(unit, v); });
      INFO("version " << version << ", unit " << unit);
      REQUIRE(is_good);
    }
  }
  void compare_all(Volume& volume, const Content& content, bool may_refuse) const {
    const auto is_there = [&](uint32_t number) {
      try {
        return !volume.versions().find(std::to_string(number)).is_hidden;
      } catch (const Error& error) {
        REQUIRE(error.code() == ENOENT);
        return false;
      }
    };
    try {
      compare(volume, 0, content);
    } catch (const Error&) {
      REQUIRE(may_refuse);
    }
    for (const auto& [number, frozen] : versions_) {
      INFO("version " << number);
      REQUIRE(is_there(number));
      compare(volume, number, frozen);
    }
    for (const auto& [number, frozen] : perhaps_)
      if (!versions_.contains(number) && is_there(number)) compare(volume, number, frozen);
  }

  Illness& illness_;
  Backend& backend_;
  const Uuid uuid_;
  std::unique_ptr<Volume> volume_;
  Content shown_;
  Content durable_;  // what may be there after a crash
  std::map<uint32_t, Content> versions_;
  std::map<uint32_t, Content> perhaps_;  // that were being made or removed when memory ran out
  uint64_t next_value_ = 100;
  bool is_stopped_ = false;
  bool needs_check_ = false;
};

// A bit of everything that a volume does.
inline const std::vector<std::function<void(Patient&)>>& script() {
  static const std::vector<std::function<void(Patient&)>> steps{
      [](Patient& p) { p.open(); },
      [](Patient& p) { p.write(0, 2); },
      [](Patient& p) { p.write(5, 1); },
      [](Patient& p) { p.write(13, 7); },
      [](Patient& p) { p.work([](Volume& v) { v.maintain(true); }); },
      [](Patient& p) { p.flush(); },
      [](Patient& p) { p.write(13, 3); },
      [](Patient& p) { p.zero(15, 4); },
      [](Patient& p) { p.write(26, 1, true); },
      [](Patient& p) { p.create_version("one"); },
      [](Patient& p) { p.write(14, 4); },
      [](Patient& p) { p.trim(0, 2); },
      [](Patient& p) { p.work([](Volume& v) { v.checkpoint(); }); },
      [](Patient& p) { p.write(8, 3); },
      [](Patient& p) { p.fork(2); },
      [](Patient& p) { p.create_version(""); },
      [](Patient& p) { p.write(8, 20); },
      [](Patient& p) { p.remove_version(2); },
      [](Patient& p) { p.work([](Volume& v) { v.space().run(); }); },
      [](Patient& p) { p.work([](Volume& v) { v.maintain(true); }); },
      [](Patient& p) { p.write(4, 2); },
      [](Patient& p) { p.work([](Volume& v) { v.compact_log(); }); },
      [](Patient& p) { p.write(6, 2); },
      [](Patient& p) { p.flush(); },
      [](Patient& p) { p.rollback(1); },
      [](Patient& p) { p.write(10, 3); },
      [](Patient& p) { p.resize(); },
      [](Patient& p) { p.work([](Volume& v) { v.compact_log(); }); },
      [](Patient& p) { p.write(20, 3); },
  };
  return steps;
}

// Where patients come from: a volume with two versions, closed; or left behind by a crash, with
// something in current's file that no block of the map is in.
class Ward {
 public:
  explicit Ward(bool is_closed = true) {
    first_ = memory_store();
    create_volume(*first_, uuid_, kPatientBytes, nullptr);
    const auto volume = open_volume(*first_, uuid_);
    Content content(kUnits, Values{0});
    for (uint64_t unit = 0; unit < kUnits; unit += 3) {
      volume->write(offset_of(unit), content_of(unit, 1), false);
      content[unit] = {1};
    }
    volume->versions().create({});
    versions_[1] = content;
    volume->write(offset_of(1), content_of(1, 2), false);
    content[1] = {2};
    if (is_closed) {
      volume->close();
    } else {
      volume->flush();
      volume->write(offset_of(kUnits - 1), content_of(kUnits - 1, 3), false);
    }
    content_ = content;
  }

  std::unique_ptr<MemoryBackend> admit() const {
    auto memory = first_->clone();
    memory->set_recording(false);
    memory->set_recording(true);
    return memory;
  }
  const Uuid& uuid() const { return uuid_; }
  Patient patient(Illness& illness, Backend& backend) const {
    return Patient(illness, backend, uuid_, content_, versions_);
  }

 private:
  std::unique_ptr<MemoryBackend> first_;
  const Uuid uuid_ = random_uuid();
  Content content_;
  std::map<uint32_t, Content> versions_;
};

}  // namespace tplstore
