// What the tests of volumes share: an environment on a memory backend, seeds, byte patterns.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "memory/memory_backend.h"
#include "store/store.h"
#include "template/template_image.h"
#include "temporary_directory.h"
#include "transfer/importer.h"
#include "volume/volume.h"

namespace tplstore {

// TPLSTORE_SEED repeats a run that failed; TPLSTORE_OPERATIONS makes it longer or shorter.
inline uint64_t test_seed() {
  const char* text = std::getenv("TPLSTORE_SEED");
  const uint64_t seed = text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
  MESSAGE("TPLSTORE_SEED=" << seed);
  return seed;
}
inline uint64_t test_operations(uint64_t usual) {
  const char* text = std::getenv("TPLSTORE_OPERATIONS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : usual;
}

// Sanitizers make everything some ten times slower.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kIsSanitized = true;
#else
inline constexpr bool kIsSanitized = false;
#endif

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t below(uint64_t bound) { return engine_() % bound; }
  bool chance(uint64_t in) { return below(in) == 0; }
  void fill(MutableBytes bytes) {
    size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      const uint64_t word = engine_();
      std::memcpy(bytes.data() + i, &word, 8);
    }
    for (; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(engine_());
  }

 private:
  std::mt19937_64 engine_;
};

inline VolumeEnvironment environment_on(Backend& backend) {
  return {backend,
          [&backend, blocks = std::make_shared<BlockSource>(backend)](const std::string& name) {
            // What it holds lasts as long as it does.
            using Held = std::pair<decltype(blocks), std::shared_ptr<TemplateImage>>;
            auto held = std::make_shared<Held>(blocks, TemplateImage::open(backend, *blocks, name));
            return std::shared_ptr<TemplateImage>(held, held->second.get());
          },
          [](const std::string&) {}, [] {}};
}

inline Peer test_peer(int64_t pid = 4711) {
  Peer peer{"test", pid, 1};
  peer.is_multi = true;
  return peer;
}
// One that has had nothing yet, and so is refused nothing for what others have written since.
inline Peer new_peer() {
  static std::atomic<int64_t> pid{int64_t{1} << 32};
  return test_peer(++pid);
}

// A backend with an empty store.
inline std::unique_ptr<MemoryBackend> memory_store() {
  auto backend = std::make_unique<MemoryBackend>();
  Store::init(*backend);
  return backend;
}

inline std::unique_ptr<Volume> open_volume(Backend& backend, const Uuid& uuid) {
  return Volume::open_for_writing(environment_on(backend), uuid, "vm", test_peer());
}

// Imports an image as a template.
inline void import_test_template(Backend& backend, const std::string& name, Bytes image) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/image.raw";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(image.data()),
             static_cast<std::streamsize>(image.size()));
  ImportOptions options;
  options.format = "raw";
  import_template(backend, name, path, options);
}

// A block of a version's data file.
using Cell = std::pair<uint32_t, uint64_t>;

// The cells of a volume that occupy space.
inline std::set<Cell> allocated_cells(Backend& backend, const Uuid& uuid) {
  std::set<Cell> cells;
  const std::string folder = volume_folder(uuid);
  for (const std::string& part : backend.list(folder)) {
    if (!part.starts_with("data.")) continue;
    const auto source = static_cast<uint32_t>(std::stoul(part.substr(5)));
    const auto object = backend.open(folder + "/" + part, Access::kRead, Purpose::kMetadata);
    for (auto data = object->find_data(0); data;
         data = object->find_data(data->offset + data->length))
      for (uint64_t b = data->offset / kBlockBytes; b < blocks_of(data->offset + data->length); ++b)
        cells.insert({source, b});
  }
  return cells;
}

// Every cell that occupies space is mapped by some version, of those that are hidden as well.
inline void check_no_leak(Backend& backend, const Uuid& uuid, uint64_t disk_bytes) {
  const auto map = VolumeMap::open(backend, volume_folder(uuid), uuid, Access::kRead);
  std::set<Cell> mapped;
  std::vector<uint32_t> numbers{0};
  for (const VersionRecord& version : map->versions()) numbers.push_back(version.number);
  for (const uint32_t number : numbers) {
    RunList runs;
    map->find(number, {0, disk_bytes / kBlockBytes}, runs);
    for (size_t i = 0; i < runs.size(); ++i)
      for (uint64_t b = runs[i].first; b < runs[i].first + runs[i].count; ++b)
        mapped.insert({runs[i].source, b});
  }
  for (const auto& [source, block] : allocated_cells(backend, uuid)) {
    INFO("block " << block << " of data." << source << " is a leak");
    REQUIRE(mapped.contains({source, block}));
  }
}

inline ByteVector read_bytes(Volume& volume, uint32_t version, uint64_t offset, uint64_t length) {
  ByteVector bytes(length);
  volume.read(version, offset, bytes);
  return bytes;
}

}  // namespace tplstore
