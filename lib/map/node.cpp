// Nodes in memory are counted by reference; on disk they are varints, each number as what it
// differs by from the one before.
#include "map/node.h"

#include <algorithm>
#include <new>

namespace tplstore {
namespace {

std::atomic<uint64_t> memory_bytes{0};

size_t leaf_bytes(size_t capacity) { return sizeof(Leaf) + capacity * sizeof(Interval); }

Leaf* allocate_leaf(size_t capacity, uint32_t version, NodeAddress address, bool is_dirty) {
  void* memory = ::operator new(leaf_bytes(capacity));
  memory_bytes.fetch_add(leaf_bytes(capacity), std::memory_order_relaxed);
  auto* leaf = new (memory) Leaf(0, version, address, is_dirty);
  leaf->count = 0;
  leaf->capacity = static_cast<uint16_t>(capacity);
  return leaf;
}

void free_leaf(Leaf* leaf) {
  memory_bytes.fetch_sub(leaf_bytes(leaf->capacity), std::memory_order_relaxed);
  leaf->~Leaf();
  ::operator delete(leaf);
}

}  // namespace

static_assert(sizeof(Leaf) <= 48 && sizeof(Page) <= 48 + 8 * kPageSlots);
static_assert(sizeof(Leaf) % alignof(Interval) == 0);

NodeAddress NodeAddress::make(uint64_t offset, uint64_t length) {
  ensure(offset % 8 == 0 && length % 8 == 0 && length > 0 && length < uint64_t{8} * 4096 &&
             offset / 8 < uint64_t{1} << 48,
         "a node's address fits its word");
  return {length / 8 << 48 | offset / 8};
}

std::optional<NodeAddress> NodeAddress::from_disk(uint64_t offset, uint64_t length) {
  const bool is_good = offset < uint64_t{1} << 48 && length < 4096 && length * 8 >= kNodeBytesMin;
  return is_good ? std::optional(make(offset * 8, length * 8)) : std::nullopt;
}

NodeRef::NodeRef(const NodeRef& other) : word_(other.word_) {
  if (is_node()) retain(node());
}

void NodeRef::release() {
  if (is_node()) tplstore::release(node());
}

NodeRef NodeRef::of_interval(const Interval& interval) {
  return NodeRef(kIntervalTag | uint64_t{interval.first} << 32 |
                 uint64_t{interval.count - 1u} << 42 | interval.source);
}

NodeRef NodeRef::of_address(NodeAddress address) { return NodeRef(kAddressTag | address.word); }

NodeRef NodeRef::adopt(Node* node) { return NodeRef(reinterpret_cast<uint64_t>(node)); }

Interval NodeRef::interval() const {
  return {static_cast<uint16_t>(word_ >> 32 & 1023),
          static_cast<uint16_t>((word_ >> 42 & 1023) + 1), static_cast<uint32_t>(word_)};
}

bool NodeRef::from_disk(uint64_t word, uint32_t level, NodeRef& into) {
  NodeRef slot;
  slot.word_ = word & (kIntervalTag | kAddressTag) ? word : 0;  // never a pointer from disk
  if (slot.word_ != word) return false;
  bool is_good = true;
  if (slot.is_interval()) {
    const Interval interval = slot.interval();
    is_good = level == 0 && are_valid({&interval, 1}) && slot == of_interval(interval);
  } else if (slot.is_address()) {
    is_good = slot.address().length() >= kNodeBytesMin && (word & (uint64_t{3} << 60)) == 0;
  }
  if (is_good) into = std::move(slot);
  return is_good;
}

uint64_t NodeRef::disk_word() const {
  if (!is_node()) return word_;
  ensure(!node()->is_dirty, "a slot goes to disk after the node it leads to");
  return kAddressTag | node()->address.word;
}

bool NodeRef::is_clean() const { return !node()->is_dirty; }

uint64_t node_memory_bytes() { return memory_bytes.load(std::memory_order_relaxed); }

Leaf* new_leaf(std::span<const Interval> intervals, uint32_t version, NodeAddress address,
               bool is_dirty) {
  Leaf* leaf = allocate_leaf(intervals.size(), version, address, is_dirty);
  leaf->count = static_cast<uint16_t>(intervals.size());
  std::copy(intervals.begin(), intervals.end(), leaf->intervals().begin());
  return leaf;
}

Page* new_page(uint32_t level, uint32_t version, NodeAddress address, bool is_dirty) {
  Page* page = new Page(level, version, address, is_dirty);
  memory_bytes.fetch_add(sizeof(Page), std::memory_order_relaxed);
  return page;
}

Leaf* apply_splice(Leaf* leaf, const Splice& splice) {
  const size_t removed = splice.end - splice.begin;
  const size_t count = leaf->count - removed + splice.fresh_count;
  ensure(count <= kRegionBlocks, "a leaf has at most one interval for each block");
  const size_t tail = leaf->count - splice.end;
  if (count > leaf->capacity) {
    const size_t capacity = std::min<size_t>(count + std::max<size_t>(2, count / 8), kRegionBlocks);
    Leaf* grown = allocate_leaf(capacity, leaf->version, leaf->address, leaf->is_dirty);
    grown->count = leaf->count;
    grown->replaces_own = leaf->replaces_own;
    std::copy_n(leaf->intervals().begin(), leaf->count, reinterpret_cast<Interval*>(grown + 1));
    free_leaf(leaf);
    leaf = grown;
  }
  auto* array = reinterpret_cast<Interval*>(leaf + 1);
  std::memmove(array + splice.begin + splice.fresh_count, array + splice.end,
               tail * sizeof(Interval));
  std::copy_n(splice.fresh.begin(), splice.fresh_count, array + splice.begin);
  leaf->count = static_cast<uint16_t>(count);
  return leaf;
}

void retain(Node* node) { node->references.fetch_add(1, std::memory_order_relaxed); }

void release(Node* node) {
  if (node->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (node->is_leaf()) {
    free_leaf(static_cast<Leaf*>(node));
  } else {
    memory_bytes.fetch_sub(sizeof(Page), std::memory_order_relaxed);
    delete static_cast<Page*>(node);
  }
}

// --- bytes in the log

namespace {

uint64_t node_seed(uint64_t seed, uint32_t index) {
  return seed + (uint64_t{index} + 1) * 0x9e3779b97f4a7c15;
}

}  // namespace

uint64_t begin_node(Encoder& to, NodeKind kind, uint32_t level, uint32_t count, uint32_t version) {
  ensure(to.size() % 8 == 0, "nodes begin at multiples of 8 bytes");
  const uint64_t start = to.size();
  to.put(NodeHeader{0, static_cast<uint8_t>(kind), static_cast<uint8_t>(level),
                    static_cast<uint16_t>(count)});
  to.put_varint(version);
  return start;
}

uint64_t end_node(Encoder& to, uint64_t start, uint64_t seed, uint32_t index) {
  while (to.size() % 8 != 0 || to.size() - start < kNodeBytesMin) to.put(uint8_t{0});
  const Bytes node = Bytes(to.bytes()).subspan(start);
  const auto sum =
      static_cast<uint32_t>(checksum(node.subspan(sizeof(uint32_t)), node_seed(seed, index)));
  std::memcpy(to.bytes().data() + start, &sum, sizeof sum);
  return node.size();
}

namespace {

void put_intervals(Encoder& to, std::span<const Interval> intervals) {
  uint32_t at = 0;
  for (const Interval& interval : intervals) {
    to.put_varint(interval.first - at);
    to.put_varint(interval.count - 1u);
    to.put_varint(static_cast<uint32_t>(interval.source + 1));  // kSourceUnmapped becomes 0
    at = interval.end();
  }
}

}  // namespace

uint64_t encode_leaf(Encoder& to, uint64_t seed, uint32_t index, uint32_t version,
                     std::span<const Interval> intervals) {
  const uint64_t start =
      begin_node(to, NodeKind::kLeaf, 0, static_cast<uint32_t>(intervals.size()), version);
  put_intervals(to, intervals);
  return end_node(to, start, seed, index);
}

uint64_t encode_delta(Encoder& to, uint64_t seed, uint32_t index, uint32_t version, uint32_t depth,
                      NodeAddress base, std::span<const Interval> changes) {
  const uint64_t start =
      begin_node(to, NodeKind::kLeafDelta, depth, static_cast<uint32_t>(changes.size()), version);
  to.put_varint(base.offset() / 8);
  to.put_varint(base.length() / 8);
  put_intervals(to, changes);
  return end_node(to, start, seed, index);
}

namespace {

constexpr uint64_t zigzag(int64_t value) {
  return static_cast<uint64_t>(value) << 1 ^ static_cast<uint64_t>(value >> 63);
}
constexpr int64_t unzigzag(uint64_t value) {
  return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
}

}  // namespace

uint64_t encode_page(Encoder& to, uint64_t seed, uint32_t index, uint32_t version, uint32_t level,
                     std::span<const NodeRef, kPageSlots> slots) {
  uint64_t present = 0;
  for (uint32_t i = 0; i < kPageSlots; ++i)
    if (!slots[i].is_empty()) present |= uint64_t{1} << i;
  const uint64_t start = begin_node(to, NodeKind::kPage, level,
                                    static_cast<uint32_t>(std::popcount(present)), version);
  to.put(present);
  // Nodes that were written together follow each other, so each is looked for behind the last.
  uint64_t expected = 0;
  for (const NodeRef& slot : slots) {
    if (slot.is_empty()) continue;
    NodeRef read;
    ensure(NodeRef::from_disk(slot.disk_word(), level - 1, read), "a page's slots can be read");
    if (slot.is_interval()) {
      const Interval interval = slot.interval();
      to.put_varint(uint64_t{interval.source} << 1 | 1);
      to.put_varint(interval.first);
      to.put_varint(interval.count - 1u);
      continue;
    }
    const uint64_t offset = read.address().offset() / 8;
    const uint64_t length = read.address().length() / 8;
    to.put_varint(zigzag(static_cast<int64_t>(offset - expected)) << 1);
    to.put_varint(length);
    expected = offset + length;
  }
  return end_node(to, start, seed, index);
}

std::pair<NodeInfo, Decoder> open_node(Bytes bytes, uint64_t seed, uint32_t index,
                                       const std::string& object) {
  Decoder decoder(bytes, object);
  const auto header = decoder.take<NodeHeader>();
  const auto damaged = [&] {
    fail(EIO, object,
         "damaged: a node of the map fails its checksum; restore the volume from a backup or "
         "export a version that is not affected");
  };
  if (header.checksum !=
      static_cast<uint32_t>(checksum(bytes.subspan(sizeof(uint32_t)), node_seed(seed, index))))
    damaged();
  const uint64_t version = decoder.take_varint();
  if (version > UINT32_MAX) damaged();
  return {{static_cast<NodeKind>(header.kind), header.level, header.count,
           static_cast<uint32_t>(version)},
          decoder};
}

std::vector<Interval> decode_intervals(Decoder& body, uint32_t count, bool allows_unmapped) {
  std::vector<Interval> intervals;
  intervals.reserve(std::min<uint32_t>(count, kRegionBlocks));
  uint64_t at = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t gap = body.take_varint();
    const uint64_t last = body.take_varint();  // so many behind the first
    const uint64_t blocks = last + 1;
    const uint64_t source = body.take_varint();
    const bool is_good = gap <= kRegionBlocks && last < kRegionBlocks &&
                         at + gap + blocks <= kRegionBlocks && source <= UINT32_MAX &&
                         (allows_unmapped || source != 0);
    if (!is_good)
      fail(EIO, body.object(), "damaged: a leaf of the map holds an impossible interval");
    intervals.push_back({static_cast<uint16_t>(at + gap), static_cast<uint16_t>(blocks),
                         static_cast<uint32_t>(source) - 1});
    at += gap + blocks;
  }
  if (!allows_unmapped && !are_valid(intervals))
    fail(EIO, body.object(), "damaged: a leaf of the map is not in order");
  return intervals;
}

void decode_page(Decoder& body, uint32_t count, Page& into) {
  const auto present = body.take<uint64_t>();
  const auto impossible = [&body] {
    fail(EIO, body.object(), "damaged: a page of the map holds an impossible slot");
  };
  if (static_cast<uint32_t>(std::popcount(present)) != count)
    fail(EIO, body.object(), "damaged: a page of the map miscounts its slots");
  uint64_t expected = 0;
  for (uint32_t i = 0; i < kPageSlots; ++i) {
    if ((present >> i & 1) == 0) continue;
    const uint64_t tagged = body.take_varint();
    const uint64_t second = body.take_varint();
    NodeRef slot;
    if ((tagged & 1) != 0) {
      const uint64_t last = body.take_varint();
      const uint64_t blocks = last + 1;
      const bool is_good =
          tagged >> 1 < kSourceUnmapped && second < kRegionBlocks && last < kRegionBlocks - second;
      if (!is_good) impossible();
      slot = NodeRef::of_interval({static_cast<uint16_t>(second), static_cast<uint16_t>(blocks),
                                   static_cast<uint32_t>(tagged >> 1)});
    } else {
      const uint64_t offset = expected + static_cast<uint64_t>(unzigzag(tagged >> 1));
      const std::optional<NodeAddress> address = NodeAddress::from_disk(offset, second);
      if (!address) impossible();
      slot = NodeRef::of_address(*address);
      expected = offset + second;
    }
    // Checked like a word that was read.
    if (!NodeRef::from_disk(slot.disk_word(), into.level - 1u, into.slots[i]) ||
        into.slots[i].is_empty())
      impossible();
  }
}

}  // namespace tplstore
