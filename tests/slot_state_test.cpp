// Every order of the steps of those who share a slot: two readers of a cell, one who fills and one
// who evicts. Each step is what boot/cell_memory.cpp does at once: a change of the slot's word, a
// load or store of the entry, a part of a copy.
#include "boot/slot_state.h"

#include <doctest/doctest.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "explorer_testing.h"

namespace tplstore::slot_state_test {
namespace {

enum class Entry : uint8_t { kAbsent, kComing, kThere };
constexpr int kGarbage = 9;

// What is left out on purpose.
enum class Fault { kNone, kNoWait, kWaitFirst, kPublishEarly, kReleaseWithWindows };

struct World {
  // Two cells take turns in the slot.
  std::array<Entry, 2> entries{};
  uint32_t word = 0;
  int content = kGarbage;
  struct Reader {
    int step = 0;
    int rounds = 0;
    int cell = 0;
    bool is_in_flight = false;
    bool operator==(const Reader&) const = default;
  };
  std::array<Reader, 2> readers;
  int filler = 0;
  int filled_cell = 0;
  int fills = 0;
  int evictor = 0;
  std::array<bool, 2> awaited{};  // readers whose end the evictor waits for
  int evictions = 0;
  std::string broken;

  std::string key() const {
    std::string key;
    const auto add = [&](int value) { key.push_back(static_cast<char>(value)); };
    for (const Entry entry : entries) add(static_cast<int>(entry));
    add(static_cast<int>(word & 255));
    add(static_cast<int>(word >> 8));
    add(content);
    for (const Reader& reader : readers) {
      add(reader.step);
      add(reader.rounds);
      add(reader.cell);
      add(reader.is_in_flight);
    }
    for (const int value : {filler, filled_cell, fills, evictor, evictions}) add(value);
    for (const bool value : awaited) add(value);
    return key;
  }
};

bool becomes(World& world, const std::optional<SlotState>& next) {
  if (next) world.word = next->word();
  return next.has_value();
}

// Each gives what the world is after the next step, several where it may turn out in several ways,
// or nothing where there is none.
std::vector<World> read(const World& before, size_t who) {
  World world = before;
  World::Reader& reader = world.readers[who];
  Entry& entry = world.entries[static_cast<size_t>(reader.cell)];
  const SlotState state = SlotState::of(world.word);
  switch (reader.step) {
    case 0:  // enters
      if (reader.rounds == 2) return {};
      reader.is_in_flight = true;
      reader.step = 1;
      return {world};
    case 1:  // looks
      reader.step = entry == Entry::kThere ? 2 : entry == Entry::kComing ? 5 : 4;
      return {world};
    case 2:  // begins to copy
    case 3:  // ends
      if (world.content != reader.cell) world.broken = "a reader sees what is not its cell's";
      if (reader.step == 3) becomes(world, state.use());
      ++reader.step;
      return {world};
    case 4:  // leaves; the next time it reads the other cell
      reader.is_in_flight = false;
      world.awaited[who] = false;
      reader.step = 0;
      ++reader.rounds;
      reader.cell ^= 1;
      return {world};
    case 5:  // waits for who fills
      if (entry == Entry::kComing) return {};
      reader.step = entry == Entry::kThere ? 2 : 4;
      return {world};
  }
  return {};
}

std::vector<World> fill(const World& before, Fault fault) {
  World world = before;
  const SlotState state = SlotState::of(world.word);
  Entry& entry = world.entries[static_cast<size_t>(world.filled_cell)];
  switch (world.filler) {
    case 0:  // takes the slot for the cell that is absent
      if (world.fills == 3 || entry != Entry::kAbsent || !becomes(world, state.take(false)))
        return {};
      world.filler = 1;
      return {world};
    case 1:
      entry = fault == Fault::kPublishEarly ? Entry::kThere : Entry::kComing;
      world.filler = 2;
      return {world};
    case 2: {  // reads into it; that may fail
      world.content = kGarbage;
      world.filler = 3;
      World failed = world;
      failed.filler = 6;
      return {world, failed};
    }
    case 3:
      world.content = world.filled_cell;
      world.filler = 4;
      return {world};
    case 4:
      becomes(world, state.publish());
      world.filler = 5;
      return {world};
    case 5:
      entry = Entry::kThere;
      world.filler = 8;
      return {world};
    case 6:  // gives it up
      entry = Entry::kAbsent;
      world.filler = 7;
      return {world};
    case 7:
      if (!becomes(world, state.abandon())) world.broken = "what came cannot be given up";
      world.filler = 9;
      return {world};
    case 8:  // its window ends
      if (!becomes(world, state.leave())) world.broken = "no window to leave";
      world.filler = 9;
      return {world};
    case 9:
      world.filler = 0;
      ++world.fills;
      world.filled_cell ^= 1;
      return {world};
  }
  return {};
}

std::vector<World> evict(const World& before, Fault fault) {
  World world = before;
  const SlotState state = SlotState::of(world.word);
  switch (world.evictor) {
    case 0: {
      if (world.evictions == 2) return {};
      auto next = state.pass();
      if (fault == Fault::kReleaseWithWindows && state.life == SlotLife::kThere)
        next = SlotState{SlotLife::kEvicted, false, false, state.windows};
      if (!becomes(world, next)) return {};
      if (SlotState::of(world.word).life == SlotLife::kEvicted) world.evictor = 1;
      if (fault == Fault::kWaitFirst)
        for (size_t i = 0; i < 2; ++i) world.awaited[i] = world.readers[i].is_in_flight;
      return {world};
    }
    case 1:
      if (fault == Fault::kWaitFirst && (world.awaited[0] || world.awaited[1])) return {};
      for (Entry& entry : world.entries)
        if (entry == Entry::kThere) entry = Entry::kAbsent;
      for (size_t i = 0; i < 2; ++i)
        world.awaited[i] =
            fault != Fault::kNoWait && fault != Fault::kWaitFirst && world.readers[i].is_in_flight;
      world.evictor = 2;
      return {world};
    case 2:
      if (world.awaited[0] || world.awaited[1]) return {};
      if (!becomes(world, state.release())) world.broken = "what was evicted is not free";
      if (SlotState::of(world.word).windows != 0) world.broken = "a free slot has a window";
      ++world.evictions;
      world.evictor = 0;
      return {world};
  }
  return {};
}

Violation explore(Fault fault) {
  struct Visited {
    std::string from;
    const char* step;
  };
  std::map<std::string, Visited> visited;
  World first;
  first.readers[1].cell = 1;
  std::vector<World> open{first};
  visited[first.key()] = {"", "begin"};
  Violation finding;
  while (!open.empty()) {
    const World world = open.back();
    open.pop_back();
    const auto go = [&](const char* step, std::vector<World> nexts) {
      for (World& next : nexts) {
        if (!visited.try_emplace(next.key(), Visited{world.key(), step}).second) continue;
        if (finding.broken.empty() && !next.broken.empty()) {
          finding.broken = next.broken;
          for (std::string at = next.key(); !at.empty(); at = visited[at].from)
            finding.run.insert(finding.run.begin(), visited[at].step);
        }
        open.push_back(std::move(next));
      }
    };
    go("reader 1", read(world, 0));
    go("reader 2", read(world, 1));
    go("filler", fill(world, fault));
    go("evictor", evict(world, fault));
    if (!finding.broken.empty()) break;
  }
  finding.worlds = visited.size();
  return finding;
}

}  // namespace

TEST_CASE("in no order of steps does anybody read another cell's bytes") {
  const Violation finding = explore(Fault::kNone);
  INFO(text_of(finding));
  CHECK(finding.broken.empty());
  CHECK(finding.worlds > 10000);
  MESSAGE(finding.worlds, " worlds");
}

TEST_CASE("each rule is needed") {
  for (const Fault fault :
       {Fault::kNoWait, Fault::kWaitFirst, Fault::kPublishEarly, Fault::kReleaseWithWindows}) {
    CAPTURE(static_cast<int>(fault));
    CHECK_FALSE(explore(fault).broken.empty());
  }
}

TEST_CASE("a word is what its state was") {
  for (uint32_t word = 0; word < 4096; ++word) CHECK(SlotState::of(word).word() == word);
}

}  // namespace tplstore::slot_state_test
