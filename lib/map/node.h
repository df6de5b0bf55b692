// Nodes of the map: leaves (the intervals of one region) and pages (64 slots to the level below),
// in memory and as bytes in the map log.
//
// A NodeRef is the 8-byte reference from a page (or a version's root) to what is below it: nothing,
// a region that is one interval, the address of a node in the map log, or a node in memory. The
// first three are the same word in memory and on disk. Nodes in memory are shared by reference
// count between the trees that have them in common. A node that more than one reference leads to
// is never changed, but copied, except that its slots may be loaded and evicted.
//
// Thread safety: reference counts are atomic; everything else is guarded by the map's lock.
// Memory: a leaf is 32 bytes and 8 for each interval (and room to grow by an eighth); a page is
// 24 bytes and 8 for each of its 64 slots.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "map/interval.h"

namespace tplstore {

inline constexpr uint32_t kPageSlots = 64;
inline constexpr uint32_t kPageLevels = 4;  // root is a page of level 4; leaves are level 0
static_assert(kRegionsMax == uint64_t{1} << (6 * kPageLevels));
inline constexpr uint32_t kLeafDeltasMax = 12;

// Where a node lies in the log: offset and length, both in units of 8 bytes.
struct NodeAddress {
  uint64_t word = 0;  // length in bits 48 to 59, offset in bits 0 to 47; 0 is no address

  static NodeAddress make(uint64_t offset, uint64_t length);
  // From disk, in these units; nothing when no node can be there.
  static std::optional<NodeAddress> from_disk(uint64_t offset, uint64_t length);
  uint64_t offset() const { return (word & ((uint64_t{1} << 48) - 1)) * 8; }
  uint64_t length() const { return (word >> 48) * 8; }
  explicit operator bool() const { return word != 0; }
  bool operator==(const NodeAddress&) const = default;
};

struct Node;

class NodeRef {
 public:
  NodeRef() = default;
  NodeRef(const NodeRef& other);
  NodeRef(NodeRef&& other) noexcept : word_(std::exchange(other.word_, 0)) {}
  NodeRef& operator=(NodeRef other) noexcept {
    std::swap(word_, other.word_);
    return *this;
  }
  ~NodeRef() { release(); }

  static NodeRef of_interval(const Interval& interval);
  static NodeRef of_address(NodeAddress address);
  static NodeRef adopt(Node* node);  // takes over the caller's reference
  // From disk: false when the word is none of what may stand there.
  static bool from_disk(uint64_t word, uint32_t level, NodeRef& into);

  bool is_empty() const { return word_ == 0; }
  bool is_interval() const { return (word_ & kIntervalTag) != 0; }
  bool is_address() const { return (word_ & (kIntervalTag | kAddressTag)) == kAddressTag; }
  bool is_node() const { return word_ != 0 && (word_ & (kIntervalTag | kAddressTag)) == 0; }
  bool is_dirty_node() const { return is_node() && !is_clean(); }
  Interval interval() const;
  NodeAddress address() const { return {word_ & ~kAddressTag}; }
  Node* node() const { return reinterpret_cast<Node*>(word_); }
  // Whether it leads to a node.
  bool leads_on() const { return is_node() || is_address(); }
  // The same, and its word, as it stands on disk; not for a node in memory that is dirty.
  NodeRef on_disk() const { return NodeRef(disk_word()); }
  uint64_t disk_word() const;
  // Equal for slots that lead to the same for sure: an address, or a clean node that has it.
  uint64_t key() const { return is_dirty_node() ? word_ : disk_word(); }
  bool is_same(const NodeRef& other) const { return word_ == other.word_ || key() == other.key(); }
  bool operator==(const NodeRef& other) const { return word_ == other.word_; }
  // Drops the word without dropping the reference, which somebody else has ended.
  void forget() { word_ = 0; }

 private:
  static constexpr uint64_t kIntervalTag = uint64_t{1} << 63;
  static constexpr uint64_t kAddressTag = uint64_t{1} << 62;
  explicit NodeRef(uint64_t word) : word_(word) {}
  void release();
  bool is_clean() const;

  uint64_t word_ = 0;
};
static_assert(sizeof(NodeRef) == 8);

// What leaves and pages have in common.
struct Node {
  std::atomic<uint32_t> references{1};
  uint8_t level;                       // 0 for a leaf
  bool is_dirty;                       // changed since it was written to the log, if ever
  std::atomic<bool> is_touched{true};  // looked at since the evictor passed
  bool replaces_own = false;           // what `address` names is of this version only
  uint32_t version;                    // that was current when this node's bytes were made
  NodeAddress address;                 // where it was written last; of a copy, its original's

  Node(uint32_t level_of, uint32_t version_of, NodeAddress address_of, bool dirty)
      : level(static_cast<uint8_t>(level_of)),
        is_dirty(dirty),
        version(version_of),
        address(address_of) {}
  bool is_leaf() const { return level == 0; }
};

struct Leaf : Node {
  uint16_t count;
  uint16_t capacity;

  using Node::Node;
  std::span<Interval> intervals() { return {reinterpret_cast<Interval*>(this + 1), count}; }
  std::span<const Interval> intervals() const {
    return {reinterpret_cast<const Interval*>(this + 1), count};
  }
};

struct Page : Node {
  std::array<NodeRef, kPageSlots> slots;

  using Node::Node;
};

// Bytes of memory that all nodes of the process have, for the cap of the map cache.
uint64_t node_memory_bytes();

Leaf* new_leaf(std::span<const Interval> intervals, uint32_t version, NodeAddress address,
               bool is_dirty);
Page* new_page(uint32_t level, uint32_t version, NodeAddress address, bool is_dirty);
// Applies a splice to a leaf; the leaf returned replaces it (it may have had to grow). When it
// throws, the leaf is as it was.
Leaf* apply_splice(Leaf* leaf, const Splice& splice);
void retain(Node* node);
void release(Node* node);

// --- bytes in the log: see FORMAT.md, "Nodes"

enum class NodeKind : uint8_t { kLeaf = 1, kLeafDelta = 2, kPage = 3, kVersions = 4, kFree = 5 };

// Followed by the version that was current when the node was written, as a varint. Which region,
// page of its level, group of versions or list of free ranges it is goes into the checksum.
struct NodeHeader {
  uint32_t checksum;  // low half of XXH3-64 of all that follows
  uint8_t kind;
  uint8_t level;   // of a page 1 to 4; of a leaf 0; of a delta its depth over the full leaf
  uint16_t count;  // intervals, slots, versions or free ranges in it
};
static_assert(sizeof(NodeHeader) == 8);
inline constexpr uint64_t kNodeBytesMin = 16;

// What a node's header says.
struct NodeInfo {
  NodeKind kind;
  uint32_t level;
  uint32_t count;
  uint32_t version;
};

// Appends a node, padded to 8 bytes; returns its length.
uint64_t encode_leaf(Encoder& to, uint64_t seed, uint32_t index, uint32_t version,
                     std::span<const Interval> intervals);
uint64_t encode_delta(Encoder& to, uint64_t seed, uint32_t index, uint32_t version, uint32_t depth,
                      NodeAddress base, std::span<const Interval> changes);
uint64_t encode_page(Encoder& to, uint64_t seed, uint32_t index, uint32_t version, uint32_t level,
                     std::span<const NodeRef, kPageSlots> slots);
// Starts and ends a node whose body the caller encodes in between.
uint64_t begin_node(Encoder& to, NodeKind kind, uint32_t level, uint32_t count, uint32_t version);
uint64_t end_node(Encoder& to, uint64_t start, uint64_t seed, uint32_t index);

// Checks the header and the checksum, and returns the header and a decoder of the body. `object`
// is for the Error(EIO) of damage.
std::pair<NodeInfo, Decoder> open_node(Bytes bytes, uint64_t seed, uint32_t index,
                                       const std::string& object);
// Bodies, checked.
std::vector<Interval> decode_intervals(Decoder& body, uint32_t count, bool allows_unmapped);
void decode_page(Decoder& body, uint32_t count, Page& into);

}  // namespace tplstore
