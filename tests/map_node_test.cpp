// What nodes of the map hold is refused when it is impossible, whatever its checksum says.
#include <doctest/doctest.h>

#include <cerrno>

#include "map/node.h"
#include "template_testing.h"

namespace tplstore::map_node_test {
using namespace tplstore::testing;

namespace {

constexpr uint64_t kSeed = 7;
constexpr uint32_t kIndex = 3;

// A node of one interval, with a checksum that is right.
ByteVector node_of(NodeKind kind, uint64_t gap, uint64_t count_less_one, uint64_t source) {
  Encoder to;
  const uint64_t start = begin_node(to, kind, kind == NodeKind::kLeafDelta ? 1 : 0, 1, 5);
  to.put_varint(gap);
  to.put_varint(count_less_one);
  to.put_varint(source);
  end_node(to, start, kSeed, kIndex);
  return to.bytes();
}

int code_of(const ByteVector& bytes, bool allows_unmapped) {
  return thrown_by([&] {
           auto [info, body] = open_node(bytes, kSeed, kIndex, "log");
           decode_intervals(body, info.count, allows_unmapped);
         })
      .code;
}

}  // namespace

TEST_CASE("an interval of a leaf has at least one block, and ends within its region") {
  for (const bool is_delta : {false, true}) {
    const NodeKind kind = is_delta ? NodeKind::kLeafDelta : NodeKind::kLeaf;
    CAPTURE(is_delta);
    CHECK(code_of(node_of(kind, 0, 0, 2), is_delta) == 0);
    CHECK(code_of(node_of(kind, 0, kRegionBlocks - 1, 2), is_delta) == 0);
    CHECK(code_of(node_of(kind, 0, kRegionBlocks, 2), is_delta) == EIO);
    CHECK(code_of(node_of(kind, 1, kRegionBlocks - 1, 2), is_delta) == EIO);
    // One more is nothing.
    CHECK(code_of(node_of(kind, 0, UINT64_MAX, 2), is_delta) == EIO);
    CHECK(code_of(node_of(kind, UINT64_MAX, 1, 2), is_delta) == EIO);
  }
}

}  // namespace tplstore::map_node_test
