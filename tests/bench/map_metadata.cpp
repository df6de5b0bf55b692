// How large the metadata of a 1 TiB volume is, in memory and on disk, at the level of the map; and
// how long a fork of a large map takes. Part of tests/bench/versions.sh; prints JSON.
//
//   map_metadata DIRECTORY [SCALE]    SCALE divides the size of the disk and the number of versions
//
// Beside it stand what a flat table of 8 bytes for each 4 KiB takes, one for each version, and the
// L2 tables of qcow2: 64 KiB clusters that map 512 MiB each, copied whole by the first write into
// their range after a snapshot.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "backend/dir/dir_backend.h"
#include "map/creation.h"
#include "map/volume_map.h"

namespace tplstore {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class BenchedMap {
 public:
  BenchedMap(Backend& backend, const std::string& folder, uint64_t size_bytes)
      : backend_(backend), folder_(folder) {
    create_map(backend, folder, uuid_, size_bytes);
    open();
  }
  void open() {
    map_ = VolumeMap::open(backend_, folder_, uuid_, Access::kWrite);
    map_->start_writing([] {}, [] {});
  }
  void assign(uint64_t first, uint64_t count) {
    LogReservation reserved(*map_, LogReservation::records_for(first, count));
    map_->assign({{first, count}, map_->current()}, reserved);
    if (++assigned_ % 65536 == 0) upkeep();
  }
  void freeze() {
    {
      LogReservation reserved(*map_, VersionChange::kFreezeRecords);
      map_->change_versions().freeze({}, reserved);
    }
    map_->commit();
    upkeep();
  }
  // What the upkeep of a server does all the time.
  void upkeep() {
    map_->commit();
    if (map_->wants(VolumeMap::Upkeep::kCheckpoint)) map_->checkpoint();
    if (map_->wants(VolumeMap::Upkeep::kCompaction)) map_->compact();
  }
  // After a close and a look at every region of current, as a long-running server has it.
  json measure(uint64_t size_bytes) {
    map_->checkpoint();
    map_->compact();
    map_->close();
    map_.reset();
    const uint64_t before = node_memory_bytes();
    const auto start = Clock::now();
    open();
    const double open_ms = milliseconds_since(start);
    RunList runs;
    for (uint64_t block = 0; block < size_bytes / kBlockBytes; block += kRegionBlocks) {
      runs.clear();
      map_->find(0, {block, 1}, runs);
    }
    return {{"memory_bytes", node_memory_bytes() - before},
            {"disk_bytes", map_->stats().log_bytes},
            {"open_ms", open_ms}};
  }
  double fork(const std::string& folder) {
    std::filesystem::create_directories(backend_.describe() + "/" + folder);
    const auto start = Clock::now();
    map_->create_fork(map_->current() - 1, folder, random_uuid());
    return milliseconds_since(start);
  }
  VolumeMap& operator*() { return *map_; }

 private:
  Backend& backend_;
  const std::string folder_;
  const Uuid uuid_ = random_uuid();
  std::unique_ptr<VolumeMap> map_;
  uint64_t assigned_ = 0;
};

// Clusters of L2 tables that so many random writes touch, of so many there are.
double touched(double clusters, double writes) {
  return clusters * (1 - std::exp(-writes / clusters));
}

int run(const std::string& directory, uint64_t scale) {
  const uint64_t size_bytes = (uint64_t{1} << 40) / scale;
  const uint64_t blocks = size_bytes / kBlockBytes;
  const double l2_clusters = static_cast<double>(size_bytes) / (512 << 20);
  constexpr double kClusterBytes = 64 << 10;
  const double flat_bytes = static_cast<double>(blocks) * 8;
  std::mt19937_64 random(20261120);
  DirBackend backend(directory, false, [](const std::string&) {});
  json results = json::array();
  const auto bench = [&](const std::string& name, double versions, double writes_per_version,
                         const std::function<void(BenchedMap&)>& fill) {
    BenchedMap map(backend, "map" + std::to_string(results.size()), size_bytes);
    const auto start = Clock::now();
    fill(map);
    json result = map.measure(size_bytes);
    result["case"] = name;
    result["fill_seconds"] = milliseconds_since(start) / 1000;
    result["qcow2_bytes"] = touched(l2_clusters, writes_per_version) * kClusterBytes * versions;
    result["flat_bytes"] = flat_bytes * versions;
    results.push_back(result);
  };

  bench("written sequentially", 1, static_cast<double>(blocks), [&](BenchedMap& map) {
    for (uint64_t block = 0; block < blocks; block += 256) map.assign(block, 256);
  });
  bench("10 % random 4 KiB", 1, static_cast<double>(blocks) / 10, [&](BenchedMap& map) {
    for (uint64_t i = 0; i < blocks / 10; ++i) map.assign(random() % blocks, 1);
  });
  bench("the same through 100 versions", 100, static_cast<double>(blocks) / 1000,
        [&](BenchedMap& map) {
          for (int version = 0; version < 100; ++version) {
            for (uint64_t i = 0; i < blocks / 1000; ++i) map.assign(random() % blocks, 1);
            map.freeze();
          }
        });
  const uint64_t versions = 10'000 / scale;
  bench(fmt::format("{} versions of 64 random blocks", versions), static_cast<double>(versions), 64,
        [&](BenchedMap& map) {
          for (uint64_t version = 0; version < versions; ++version) {
            for (int i = 0; i < 64; ++i) map.assign(random() % blocks, 1);
            map.freeze();
          }
        });

  // A fork of a map of a million intervals: every other block of 8 GiB.
  BenchedMap large(backend, "large", size_bytes);
  for (uint64_t i = 0; i < (uint64_t{1} << 20) / scale; ++i) large.assign(2 * i, 1);
  large.freeze();
  (*large).checkpoint();
  std::vector<double> forks;
  for (int i = 0; i < 5; ++i) forks.push_back(large.fork("fork" + std::to_string(i)));
  std::sort(forks.begin(), forks.end());
  fmt::print("{}\n", json{{"cases", results}, {"fork_ms", forks[2]}}.dump(2));
  return 0;
}

}  // namespace
}  // namespace tplstore

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: map_metadata DIRECTORY [SCALE]\n");
    return 2;
  }
  return tplstore::run(argv[1], argc > 2 ? std::stoull(argv[2]) : 1);
}
