// The tables of a template in one object: whole, damaged, short, and missing.
#include "template/template_tables.h"

#include <doctest/doctest.h>

#include <set>

#include "boot/cell_memory.h"
#include "forwarding_backend.h"
#include "memory/memory_backend.h"
#include "template/template_image.h"
#include "template_testing.h"

namespace tplstore::template_tables_test {
using namespace tplstore::testing;

namespace {

// A template of 40 blocks in segments of 10, its tables, and what of it is opened.
struct Fixture {
  MemoryBackend memory;
  ForwardingBackend backend{memory};
  CellMemory cells{16 << 20};
  std::set<std::string> opened;
  std::string tables;
  size_t asked_for_tables = 0;
  bool is_read_once = false;  // by two images at once

  Fixture() {
    std::vector<uint64_t> numbers;
    for (uint64_t i = 0; i < 40; ++i) numbers.push_back(i + 1);
    make_template(memory, "golden", numbers, numbers.size() * kBlockBytes, 10);
    backend.around = [this](ForwardingBackend::Call call, const std::string& name,
                            const std::function<void()>& go_on) {
      if (call == ForwardingBackend::Call::kOpen && name.starts_with("segments/"))
        opened.insert(name);
      asked_for_tables += name == tables;
      go_on();
    };
    const Manifest manifest = load_manifest(memory, "golden").value();
    BlockSource blocks(memory);
    put_template_tables(memory, manifest, blocks, kTestSecret);
    tables = fmt::format("boot/{}.tables", manifest.uuid.text());
  }
  // Whether all blocks are found to be right and wrong ones to be wrong, and how many segments are
  // opened for that.
  size_t opened_to_compare() {
    opened.clear();
    BlockSource blocks(backend);
    blocks.set_cells(cells, kTestSecret);
    const auto image = TemplateImage::open(backend, blocks, "golden");
    image->take_tables(backend);
    CHECK(opened.empty());
    const size_t asked = asked_for_tables;
    const auto another = TemplateImage::open(backend, blocks, "golden");
    another->take_tables(backend);
    is_read_once = asked > 0 && asked_for_tables == asked;
    std::vector<CellPlace> places;
    image->find_cells(0, 40, 0, places);
    REQUIRE(places.size() == 4);
    for (const CellPlace& place : places) {
      for (uint32_t i = 0; i < place.count; ++i) {
        CHECK(place.source->are_sound(place.block + i, block_of(place.first + i + 1)));
        CHECK_FALSE(place.source->are_sound(place.block + i, block_of(place.first + i + 2)));
      }
    }
    return opened.size();
  }
  void put(ByteVector content) {
    memory.remove(tables);
    memory.put_new(tables, content);
  }
};

}  // namespace

TEST_CASE("with its tables in one object no segment is opened for its own") {
  Fixture f;
  CHECK(f.memory.get(f.tables, 1 << 20)->size() == 40 * sizeof(Hash128));
  CHECK(f.opened_to_compare() == 0);
  CHECK(f.is_read_once);
}

TEST_CASE("tables that are damaged, short, long or missing are not believed") {
  Fixture f;
  const ByteVector whole = f.memory.get(f.tables, 1 << 20).value();
  for (const size_t at : {size_t{0}, size_t{10 * 16 + 3}, whole.size() - 1}) {
    ByteVector damaged = whole;
    damaged[at] ^= std::byte{1};
    f.put(damaged);
    CHECK(f.opened_to_compare() == 1);
  }
  f.put({whole.begin(), whole.end() - 1});
  CHECK(f.opened_to_compare() == 4);
  ByteVector longer = whole;
  longer.push_back(std::byte{0});
  f.put(longer);
  CHECK(f.opened_to_compare() == 4);
  f.memory.remove(f.tables);
  CHECK(f.opened_to_compare() == 4);
}

}  // namespace tplstore::template_tables_test
