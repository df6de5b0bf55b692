// Leaves go into frames of many; pages are written when all below them have their addresses.
#include "map/tree_writer.h"

#include <algorithm>

namespace tplstore {
namespace {

constexpr uint64_t kNodesFrameBytesMax = 1 << 20;
// A leaf smaller than this is written whole: a delta would save nothing.
constexpr uint64_t kDeltaWorthBytes = 64;

}  // namespace

TreeWriter::PlannedPage& TreeWriter::add_page(Place place, uint32_t version, Node* node) {
  ensure(place.level > 0, "below a page of level 1 there are leaves");
  PlannedPage& page = pages_[place.level].emplace_back();
  page.node = node;
  page.slots_to_it = {place.slot};
  page.level = place.level;
  page.index = place.index;
  page.version = version;
  if (node != nullptr) known_[node] = &page;
  return page;
}

void TreeWriter::add_leaf(Place place, uint32_t version, std::span<const Interval> intervals,
                          NodeAddress base, Node* node) {
  ensure(place.level == 0, "leaves stand below pages of level 1");
  ensure(are_valid(intervals), "a leaf is in order before it is written");
  Planned& leaf = leaves_.emplace_back(Planned{node, 0, true, {place.slot}, {}});
  if (node != nullptr) known_[node] = &leaf;
  const uint64_t offset = bytes_.size();
  uint64_t length = encode_leaf(bytes_, log_.seed(), place.index, version, intervals);
  if (base && length > kDeltaWorthBytes) {
    const StoredLeaf stored = read_leaf(log_, base, place.index);
    if (stored.depth < kLeafDeltasMax) {
      const std::vector<Interval> changes = difference(stored.intervals, intervals);
      Encoder delta;
      const uint64_t delta_length =
          encode_delta(delta, log_.seed(), place.index, version, stored.depth + 1, base, changes);
      if (stored.delta_bytes + delta_length <= std::min(stored.full_bytes, length)) {
        bytes_.bytes().resize(offset);
        bytes_.put_bytes(delta.bytes());
        length = delta_length;
        leaf.is_full = false;
      }
    }
  }
  add_to_frame(leaf, length);
}

void TreeWriter::add_changed(TreeReader& reader, const NodeRef& slot, Place place) {
  if (!slot.is_dirty_node()) {
    *place.slot = slot.on_disk();
    return;
  }
  Node* node = slot.node();
  if (const auto known = known_.find(node); known != known_.end()) {
    known->second->slots_to_it.push_back(place.slot);
    if (known->second->address) *place.slot = NodeRef::of_address(known->second->address);
    return;
  }
  if (node->is_leaf()) {
    add_leaf(place, node->version, static_cast<Leaf*>(node)->intervals(), node->address, node);
    return;
  }
  PlannedPage& page = add_page(place, node->version, node);
  const PageSlots slots = reader.slots_below(slot, place.level, place.index);
  for (uint32_t i = 0; i < kPageSlots; ++i) add_changed(reader, slots[i], page.place(i));
}

// What was encoded last is this node.
void TreeWriter::add_to_frame(Planned& planned, uint64_t length) {
  planned.length = length;
  in_frame_.push_back(&planned);
  if (bytes_.size() >= kNodesFrameBytesMax) flush();
}

void TreeWriter::flush() {
  if (in_frame_.empty()) return;
  uint64_t offset = log_.append(FrameKind::kNodes, bytes_.bytes(), 0);
  for (Planned* planned : in_frame_) {
    planned->address = NodeAddress::make(offset, planned->length);
    offset += planned->length;
    for (NodeRef* slot : planned->slots_to_it) *slot = NodeRef::of_address(planned->address);
    if (planned->node != nullptr)
      written_.push_back({planned->node, planned->address, planned->is_full});
  }
  written_bytes_ += bytes_.size();
  bytes_.bytes().clear();
  in_frame_.clear();
  if (known_.empty()) leaves_.clear();
}

void TreeWriter::finish() {
  flush();
  for (auto& pages : pages_) {
    for (PlannedPage& page : pages)
      add_to_frame(
          page, encode_page(bytes_, log_.seed(), page.index, page.version, page.level, page.slots));
    flush();
  }
}

}  // namespace tplstore
