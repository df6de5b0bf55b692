// The tier's table of a host: changed as a whole, and refused when it is not what was written.
#include "tier/tier_table.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "memory/memory_backend.h"
#include "temporary_directory.h"
#include "tier/tier_identity.h"
#include "volume_testing.h"

namespace tplstore::tier_table_test {
namespace {

using nlohmann::json;

constexpr uint64_t kGiB = uint64_t{1} << 30;

Uuid uuid_of(uint8_t number) {
  Uuid uuid;
  uuid.bytes[0] = number;
  return uuid;
}

const Uuid kStore = uuid_of(200);
const HostIdentity kHost = {"a", uuid_of(201), uuid_of(202), uuid_of(203)};
const Uuid kA = uuid_of(1), kB = uuid_of(2), kC = uuid_of(3), kLocal = uuid_of(4);

TierEntry entry(const Uuid& uuid, uint64_t weight_bytes = kGiB,
                TierEntry::Kind kind = TierEntry::Kind::kSsd) {
  return {uuid, fmt::format("/mnt/{}", uuid.bytes[0]), weight_bytes, kind};
}

std::string hex_of(uint64_t position) { return fmt::format("{:016x}", position); }

// A segment at a position.
Hash128 segment_at(uint64_t position) { return {position, 1}; }

// With a checksum that is right.
std::string text_of(json table) {
  table.erase("checksum");
  table["checksum"] = fmt::format("{:016x}", checksum(as_bytes(table.dump())));
  return table.dump();
}

struct Folder {
  TemporaryDirectory directory;
  std::string path = directory.path() + "/state";
  std::string file = path + "/tier";

  template <typename Do>
  void change(Do what) const {
    TierTableChange change(path, kStore, kHost);
    what(change.table);
    change.save();
  }
  std::optional<TierTable> load() const { return TierTable::load(file, kStore, kHost); }
  std::string text() const {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  void write(const std::string& text) const {
    std::filesystem::remove(file);  // to truncate it takes longer
    std::ofstream(file, std::ios::binary) << text;
  }
  // What a load of this text says; empty when it is accepted.
  std::string refusal(const std::string& text) const {
    write(text);
    return refusal(kStore, kHost);
  }
  std::string refusal(const Uuid& store, const HostIdentity& host) const {
    try {
      TierTable::load(file, store, host);
      return "";
    } catch (const Error& error) {
      const std::string what = error.what();
      CHECK_EQ(error.object(), file);
      CHECK_EQ(what.find('\n'), std::string::npos);
      return what.substr(file.size() + 2);
    }
  }
};

template <typename Do>
std::string refusal_of(Do what) {
  try {
    what();
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

bool is_same(const TierTable& one, const TierTable& other) {
  const auto as_tuple = [](const TierEntry& entry) {
    return std::tuple(entry.uuid, entry.path, entry.weight_bytes, entry.kind, entry.is_leaving);
  };
  return one.generation == other.generation && one.layouts == other.layouts &&
         std::ranges::equal(one.directories, other.directories, {}, as_tuple, as_tuple) &&
         std::ranges::all_of(one.directories, [&](const TierEntry& entry) {
           const auto parts = [&](const TierTable& table) {
             return std::pair(table.placement.ranges_of(entry.uuid),
                              table.before ? table.before->ranges_of(entry.uuid)
                                           : std::vector<PositionRange>{{1, 0}});
           };
           return parts(one) == parts(other);
         });
}

// One of everything.
TierTable full_table() {
  TierTable table;
  table.add(entry(kA));
  table.add(entry(kB, 3 * kGiB));
  table.add(entry(kLocal, kGiB, TierEntry::Kind::kLocal));
  table.finish_move();
  table.remove(kB);
  table.add(entry(kC));
  return table;
}

}  // namespace

TEST_CASE("what is saved is loaded, with a generation that rises") {
  const Folder folder;
  CHECK_FALSE(folder.load());
  folder.change([](TierTable& table) { table = full_table(); });
  TierTable wanted = full_table();
  wanted.generation = 1;
  CHECK(is_same(*folder.load(), wanted));
  folder.change([](TierTable&) {});
  CHECK_EQ(folder.load()->generation, 2);
  folder.change([](TierTable& table) { table.finish_move(); });
  CHECK_FALSE(folder.load()->before);
  CHECK_EQ(folder.load()->find(kB), nullptr);
  // Of all, and of none.
  folder.change([](TierTable& table) {
    table.remove(kA);
    table.remove(kC);
    table.remove(kLocal);
  });
  CHECK(folder.load()->placement.is_empty());
  CHECK_EQ(folder.load()->before->share_of(kA), 0.5);
  folder.change([](TierTable& table) { table.finish_move(); });
  CHECK(folder.load()->directories.empty());
}

TEST_CASE("a segment's copy is looked for where it belongs, where it was, and at the local ones") {
  const auto places = [](const TierTable& table, uint64_t position) {
    return table.places_of(segment_at(position));
  };
  using Places = std::vector<Uuid>;
  TierTable table;
  CHECK(places(table, 0).empty());
  table.add(entry(kA));
  CHECK_EQ(places(table, UINT64_MAX), Places{kA});
  CHECK_FALSE(table.before);
  table.add(entry(kLocal, kGiB, TierEntry::Kind::kLocal));
  CHECK_FALSE(table.before);
  table.add(entry(kB));
  // B has got the upper half, which A had.
  CHECK_EQ(places(table, 0), Places{kA, kLocal});
  CHECK_EQ(places(table, UINT64_MAX), Places{kB, kA, kLocal});
  table.finish_move();
  CHECK_EQ(places(table, UINT64_MAX), Places{kB, kLocal});

  table.remove(kB);
  CHECK_EQ(places(table, UINT64_MAX), Places{kA, kB, kLocal});
  CHECK(table.find(kB)->is_leaving);
  // The next change finds the copies where they were before the first.
  table.add(entry(kC));
  CHECK_EQ(*table.before->at(UINT64_MAX), kB);
  table.remove(kA);
  table.remove(kC);
  CHECK(table.placement.is_empty());
  CHECK_EQ(places(table, UINT64_MAX), Places{kB, kLocal});
  CHECK_EQ(places(table, 0), Places{kA, kLocal});
  // One that comes back has what is left.
  table.add(entry(kB, 2 * kGiB));
  CHECK_FALSE(table.find(kB)->is_leaving);
  CHECK_EQ(table.find(kB)->weight_bytes, 2 * kGiB);
  CHECK_EQ(places(table, 0), Places{kB, kA, kLocal});
  table.finish_move();
  CHECK_EQ(places(table, 0), Places{kB, kLocal});
  CHECK_EQ(table.directories.size(), 2);
}

TEST_CASE("what cannot be in the tier is refused, and changes nothing") {
  TierTable table = full_table();
  const auto add_refused = [&](const TierEntry& refused) {
    return refusal_of([&] { table.add(refused); });
  };
  CHECK_EQ(add_refused(entry(kA)), "/mnt/1: is in the tier already, as /mnt/1");
  TierEntry same_path = entry(uuid_of(9));
  same_path.path = "/mnt/1";
  CHECK_EQ(add_refused(same_path),
           fmt::format("/mnt/1: is a path of the tier already, where another directory was; take "
                       "that out with 'tplstore tier rm {}' and 'tplstore tier rebalance' first",
                       kA.text()));
  CHECK_EQ(add_refused(entry(uuid_of(9), kTierWeightBytesMin - 1)),
           "/mnt/9: its weight is 67108863 bytes; a weight is 64 MiB at least, and 64 PiB at most");
  CHECK_NE(add_refused(entry(uuid_of(9), kTierWeightBytesMax + 1)), "");
  CHECK_NE(add_refused(entry(kB, kGiB, TierEntry::Kind::kLocal)), "");
  for (const char* path : {"relative", "", "/a\nb", "/\xff"}) {
    TierEntry refused = entry(uuid_of(9));
    refused.path = path;
    CHECK_NE(add_refused(refused), "");
  }
  CHECK_EQ(refusal_of([&] { table.remove(kB); }), "/mnt/2: is not in the tier");
  CHECK_NE(refusal_of([&] { table.remove(uuid_of(9)); }), "");
  CHECK_NE(refusal_of([&] { table.set_weight(kB, kGiB); }), "");
  CHECK_NE(refusal_of([&] { table.set_weight(kA, 0); }), "");
  CHECK(is_same(table, full_table()));
  for (uint8_t i = 10; table.directories.size() < kTierDirectoriesMax; ++i)
    table.add(entry(uuid_of(i)));
  CHECK_EQ(add_refused(entry(uuid_of(9))), "/mnt/9: the tier has 64 directories already");
}

TEST_CASE("another weight is another share, and copies are found where they were") {
  TierTable table;
  table.add(entry(kA));
  table.add(entry(kB));
  table.finish_move();
  table.set_weight(kB, 3 * kGiB);
  CHECK_EQ(table.find(kB)->weight_bytes, 3 * kGiB);
  CHECK_EQ(table.placement.share_of(kB), 0.75);
  CHECK_EQ(table.before->share_of(kB), 0.5);
  table.finish_move();
  table.set_weight(kB, 3 * kGiB);
  CHECK_FALSE(table.before);
}

TEST_CASE("one process changes the table at a time") {
  const Folder folder;
  {
    const TierTableChange change(folder.path, kStore, kHost);
    CHECK_EQ(refusal_of([&] { TierTableChange(folder.path, kStore, kHost); }),
             folder.file + ": another tplstore is changing it; try again");
  }
  folder.change([](TierTable&) {});
  // What one left that was killed while it wrote.
  std::ofstream(folder.path + "/tier.new") << std::string(100'000, 'x');
  folder.change([](TierTable& table) { table = full_table(); });
  CHECK(folder.load()->find(kA) != nullptr);
}

TEST_CASE("another store's and another host's table are refused, and one of a newer program") {
  const Folder folder;
  folder.change([](TierTable& table) { table = full_table(); });
  CHECK_EQ(folder.refusal(kA, kHost),
           fmt::format("is the tier's table of store {}, and this is store {}; choose another "
                       "folder with --tier-state",
                       kStore.text(), kA.text()));
  HostIdentity other = kHost;
  other.host_id = kA;
  CHECK_EQ(folder.refusal(kStore, other),
           fmt::format("is the tier's table of another host ({}), whose directories are not here; "
                       "choose another folder with --tier-state, or remove this file",
                       kHost.host_id.text()));
  // What was made when the host had only its machine's id.
  other.machine_id = kHost.host_id;
  CHECK_EQ(folder.refusal(kStore, other), "");

  std::string text = folder.text();
  text.replace(text.find("\"format\":1"), 10, "\"format\":2");
  CHECK_EQ(folder.refusal(text),
           "was written by a newer tplstore (format 2); use that one, or another file with "
           "--tier-state");
}

TEST_CASE("a table in which a byte has changed is refused, or means the same") {
  const Folder folder;
  folder.change([](TierTable& table) { table = full_table(); });
  const std::string text = folder.text();
  const TierTable wanted = *folder.load();
  const uint8_t flips[] = {0x01, 0x20};
  size_t accepted = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    for (const uint8_t flip : flips) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      if (!folder.refusal(changed).empty()) continue;
      ++accepted;
      CHECK(is_same(*folder.load(), wanted));
    }
    // The end of the line need not be there, and can be another blank.
    if (i + 1 == text.size() || i % 5 != 0) continue;
    CHECK_NE(folder.refusal(text.substr(0, i)), "");
    CHECK_NE(folder.refusal(text.substr(0, i) + text.substr(i + 1)), "");
  }
  CHECK_LE(accepted, std::size(flips));
}

TEST_CASE("a table that says what cannot be is refused, though its checksum is right") {
  const Folder folder;
  folder.change([](TierTable& table) { table = full_table(); });
  const json good = json::parse(folder.text());
  const auto refusal_of_changed = [&](const std::function<void(json&)>& change) {
    json changed = good;
    change(changed);
    return folder.refusal(text_of(changed));
  };
  CHECK_EQ(refusal_of_changed([](json&) {}), "");
  const json all = json::array({json::array({"0000000000000000", "ffffffffffffffff"})});
  const struct {
    std::string problem;
    std::function<void(json&)> change;
  } cases[] = {
      {"no range has position", [](json& t) { t["directories"][0]["ranges"][0][1] = hex_of(5); }},
      {"no range has position", [](json& t) { t["before"].erase(kA.text()); }},
      {"overlap", [&](json& t) { t["before"][kA.text()] = all; }},
      {"not in it",
       [&](json& t) {
         t["before"] = {{uuid_of(9).text(), all}};
       }},
      {"not in it",
       [&](json& t) {
         t["before"] = {{kLocal.text(), all}};
       }},
      {"no ranges of before", [](json& t) { t["before"] = json::object(); }},
      {"unduly", [&](json& t) { t["directories"][1]["ranges"] = all; }},  // is leaving
      {"unduly", [&](json& t) { t["directories"][2]["ranges"] = all; }},  // is local
      {"unduly", [](json& t) { t["directories"][0]["ranges"] = json::array(); }},
      {"twice", [](json& t) { t["directories"][1]["uuid"] = kA.text(); }},
      {"twice", [](json& t) { t["directories"][1]["path"] = "/mnt/1"; }},
      {"a path is none", [](json& t) { t["directories"][1]["path"] = "mnt"; }},
      {"a weight is out of bounds", [](json& t) { t["directories"][1]["weight_bytes"] = 1; }},
      {"a kind is none", [](json& t) { t["directories"][1]["kind"] = "disk"; }},
      {"a state is none", [](json& t) { t["directories"][1]["state"] = "out"; }},
      {"has not 16 digits", [](json& t) { t["directories"][0]["ranges"][0][0] = "0"; }},
      {"a uuid is none", [](json& t) { t["directories"][0]["uuid"] = "A"; }},
      {"a number is none", [](json& t) { t["generation"] = -1; }},
      {"no list", [](json& t) { t["directories"] = json::object(); }},
      {"no list", [](json& t) { t["directories"][0]["ranges"] = json::object(); }},
      {"not the JSON", [](json& t) { t["directories"][0]["ranges"] = {7}; }},
      {"not the JSON", [](json& t) { t["directories"][0] = 7; }},
      {"not the JSON", [](json& t) { t.erase("layouts"); }},
  };
  for (const auto& [problem, change] : cases) {
    const std::string refusal = refusal_of_changed(change);
    CHECK_MESSAGE(refusal.starts_with("damaged: "), refusal);
    CHECK_MESSAGE(refusal.find(problem) != std::string::npos, (problem + " is not in: " + refusal));
  }
  const json one = good["directories"][2];
  CHECK(refusal_of_changed([&](json& t) {
          for (int i = 0; i < 64; ++i) {
            json another = one;
            another["uuid"] = random_uuid().text();
            another["path"] = "/" + another["uuid"].get<std::string>();
            t["directories"].push_back(another);
          }
        }).find("too many") != std::string::npos);
}

TEST_CASE("whatever values a table has, it is refused, or one that has a place for all") {
  const Folder folder;
  folder.change([](TierTable& table) { table = full_table(); });
  const json good = json::parse(folder.text());
  std::vector<std::string> keys;
  std::vector<json> values = {json(),
                              true,
                              0,
                              -1,
                              1.5,
                              UINT64_MAX,
                              INT64_MIN,
                              "",
                              "\u0000",
                              "leaving",
                              "ssd",
                              "ok",
                              hex_of(0),
                              hex_of(UINT64_MAX),
                              json::array(),
                              json::object(),
                              std::string(5000, '/')};
  const json flat = good.flatten();
  for (const auto& [key, value] : flat.items()) {
    keys.push_back(key);
    values.push_back(value);
  }
  Random random(test_seed());
  uint64_t accepted = 0;
  for (uint64_t i = test_operations(2000); i > 0; --i) {
    json changed = good;
    for (uint64_t changes = 1 + random.below(3); changes > 0; --changes) {
      json::json_pointer key(keys[random.below(keys.size())]);
      if (random.chance(5) && !key.parent_pointer().empty()) key = key.parent_pointer();
      try {
        changed.at(key) = values[random.below(values.size())];
      } catch (const json::exception&) {  // what it was in is something else by now
      }
    }
    if (!folder.refusal(text_of(changed)).empty()) continue;
    ++accepted;
    const TierTable table = *folder.load();
    for (const uint64_t position : {uint64_t{0}, random.below(UINT64_MAX), UINT64_MAX}) {
      const auto places = table.places_of(segment_at(position));
      CHECK_FALSE(places.empty());
      for (const Uuid& place : places) CHECK_NE(table.find(place), nullptr);
    }
    folder.change([](TierTable&) {});
    CHECK_EQ(folder.load()->directories.size(), table.directories.size());
  }
  CHECK_GT(accepted, 0);
}

TEST_CASE("what is no table, or one of absurd size, is refused in a line") {
  const Folder folder;
  folder.change([](TierTable& table) { table = full_table(); });
  const std::string advice =
      "; remove this file, then add its directories again with 'tplstore tier add'";
  const std::string no_json = "damaged: it is not the JSON that was written" + advice;
  for (const char* text : {"", "{", "[]", "null", "1", "{}", "{\"format\":1}", "\"x\"",
                           "{\"format\":1,\"checksum\":1}"})
    CHECK_EQ(folder.refusal(text), no_json);
  CHECK_EQ(folder.refusal("{\"format\":-1}"), "damaged: a number is none" + advice);
  CHECK_EQ(folder.refusal("{\"format\":1,\"checksum\":\"\"}"),
           "damaged: it fails its checksum" + advice);
  CHECK_EQ(folder.refusal(std::string(1'000'000, '[')),
           "damaged: it is nested too deeply" + advice);
  const std::string huge(8'388'609, ' ');
  CHECK_EQ(folder.refusal(huge), "damaged: it has 8388609 bytes, or is no file" + advice);
  std::filesystem::remove(folder.file);
  REQUIRE_EQ(::mkfifo(folder.file.c_str(), 0600), 0);
  CHECK_NE(folder.refusal(kStore, kHost), "");
}

TEST_CASE("the largest table there can be is within its bounds") {
  const Folder folder;
  folder.change([](TierTable& table) {
    for (uint8_t i = 1; i <= kTierDirectoriesMax; ++i) {
      TierEntry one = entry(uuid_of(i));
      one.path = fmt::format("/{:0>4000}", i);
      table.add(one);
    }
    // As many ranges as there may be, in turn.
    std::vector<DirectoryRanges> ranges;
    constexpr uint64_t kStep = (UINT64_MAX >> 16) + 1;
    static_assert(kTierDirectoriesMax * kTierRangesMax == 1 << 16);
    for (uint64_t i = 0; i < kTierDirectoriesMax; ++i) {
      ranges.push_back({table.directories[i].uuid, {}});
      for (uint64_t j = 0; j < kTierRangesMax; ++j) {
        const uint64_t first = (j * kTierDirectoriesMax + i) * kStep;
        ranges.back().ranges.push_back({first, first + (kStep - 1)});
      }
    }
    std::string problem;
    table.placement = *Placement::from_ranges(ranges, problem);
    table.before = table.placement;
  });
  CHECK_EQ(folder.load()->placement.ranges_of(uuid_of(64)).size(), kTierRangesMax);
}

TEST_CASE("whose a directory is can be read again, and nothing else is taken for it") {
  MemoryBackend directory;
  CHECK_FALSE(load_tier_identity(directory));
  CHECK(put_new_tier_identity(directory, kStore, kHost.host_id, kA));
  CHECK_FALSE(put_new_tier_identity(directory, kA, kB, kC));
  const TierIdentity identity = *load_tier_identity(directory);
  CHECK_EQ(identity.store, kStore);
  CHECK_EQ(identity.host, kHost.host_id);
  CHECK_EQ(identity.directory, kA);

  const ByteVector content = *directory.get(kTierIdentityObject, 4096);
  const auto is_refused = [&](const ByteVector& changed) {
    directory.remove(kTierIdentityObject);
    directory.put_new(kTierIdentityObject, changed);
    return !refusal_of([&] { load_tier_identity(directory); }).empty();
  };
  for (size_t i = 0; i < content.size(); ++i) {
    ByteVector changed = content;
    changed[i] ^= std::byte{0x10};
    CHECK(is_refused(changed));
    CHECK(is_refused(ByteVector(content.begin(), content.begin() + static_cast<ptrdiff_t>(i))));
  }
  ByteVector longer = content;
  longer.push_back(std::byte{0});
  CHECK(is_refused(longer));
  CHECK_FALSE(is_refused(content));
}

}  // namespace tplstore::tier_table_test
