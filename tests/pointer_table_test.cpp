#include "base/pointer_table.h"

#include <doctest/doctest.h>

#include <map>

#include "volume_testing.h"

namespace tplstore::pointer_table_test {

TEST_CASE("a table finds what was put last under a number, and nothing else") {
  Random random(test_seed());
  std::vector<int> things(100);
  PointerTable<int> table;
  std::map<uint32_t, int*> model;
  for (int i = 0; i < 20'000; ++i) {
    // Numbers in rows, and some anywhere up to the largest.
    const auto number = static_cast<uint32_t>(random.chance(4)   ? random.below(1ull << 32)
                                              : random.chance(9) ? UINT32_MAX - random.below(300)
                                                                 : random.below(5000));
    int* thing = random.chance(5) ? nullptr : &things[random.below(things.size())];
    table.put(number, thing);
    model[number] = thing;
    const auto other = static_cast<uint32_t>(random.below(70'000));
    const auto found = model.find(other);
    REQUIRE(table.find(other) == (found == model.end() ? nullptr : found->second));
  }
  for (const auto& [number, thing] : model) REQUIRE(table.find(number) == thing);
}

}  // namespace tplstore::pointer_table_test
