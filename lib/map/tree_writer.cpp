// Leaves go into frames of many; pages are written when all below them have their addresses.
#include "map/tree_writer.h"

#include <algorithm>

namespace tplstore {
namespace {

constexpr uint64_t kNodesFrameBytesMax = 1 << 20;
// A leaf smaller than this is written whole: a delta would save nothing.
constexpr uint64_t kDeltaWorthBytes = 64;

ByteVector read_bytes(MapLog& log, NodeAddress address) {
  ByteVector bytes(address.length());
  log.read(address.offset(), bytes);
  return bytes;
}

[[noreturn]] void wrong_kind(const MapLog& log) {
  fail(EIO, log.name(), "damaged: a node of the map is not of the kind that belongs there");
}

}  // namespace

StoredLeaf read_leaf(MapLog& log, NodeAddress address, uint32_t region) {
  // Deltas from the newest down to the full leaf; each says how deep it lies, so this ends.
  std::vector<std::vector<Interval>> deltas;
  StoredLeaf leaf;
  uint32_t expected_depth = kLeafDeltasMax + 1;
  while (true) {
    const ByteVector bytes = read_bytes(log, address);
    auto [header, body] = open_node(bytes, log.seed(), region, log.name());
    if (deltas.empty()) leaf.version = header.version;
    if (header.kind == NodeKind::kLeafDelta) {
      bool fits = header.level >= 1 && header.level <= kLeafDeltasMax &&
                  (deltas.empty() || header.level == expected_depth);
      const uint64_t offset = body.take_varint();
      const uint64_t length = body.take_varint();
      fits = fits && offset < uint64_t{1} << 48 && length < uint64_t{1} << 12 &&
             length * 8 >= kNodeBytesMin;
      if (!fits) wrong_kind(log);
      const NodeAddress base = NodeAddress::make(offset * 8, length * 8);
      if (deltas.empty()) leaf.depth = header.level;
      expected_depth = header.level - 1u;
      leaf.delta_bytes += bytes.size();
      deltas.push_back(decode_intervals(body, header.count, true));
      address = base;
      continue;
    }
    if (header.kind != NodeKind::kLeaf || (!deltas.empty() && expected_depth != 0)) wrong_kind(log);
    leaf.full_bytes = bytes.size();
    leaf.intervals = decode_intervals(body, header.count, false);
    break;
  }
  for (auto delta = deltas.rbegin(); delta != deltas.rend(); ++delta) {
    for (const Interval& change : *delta) {
      const Splice splice = splice_for(leaf.intervals, change.first, change.count, change.source);
      const auto begin = leaf.intervals.begin();
      const auto at = leaf.intervals.erase(begin + static_cast<ptrdiff_t>(splice.begin),
                                           begin + static_cast<ptrdiff_t>(splice.end));
      leaf.intervals.insert(at, splice.fresh.begin(), splice.fresh.begin() + splice.fresh_count);
    }
  }
  if (!are_valid(leaf.intervals))
    fail(EIO, log.name(), "damaged: what leaves of the map differ in makes no leaf");
  return leaf;
}

Node* read_node(MapLog& log, const MissingNode& missing) {
  if (missing.level == 0) {
    const StoredLeaf leaf = read_leaf(log, missing.address, missing.index);
    return new_leaf(leaf.intervals, leaf.version, missing.address, false);
  }
  const ByteVector bytes = read_bytes(log, missing.address);
  auto [header, body] = open_node(bytes, log.seed(), missing.index, log.name());
  if (header.kind != NodeKind::kPage || header.level != missing.level) wrong_kind(log);
  NodeRef holder = NodeRef::adopt(new_page(missing.level, header.version, missing.address, false));
  decode_page(body, header.count, *static_cast<Page*>(holder.node()));
  Node* node = holder.node();
  holder.forget();
  return node;
}

void TreeWriter::fill(const Place& place, NodeAddress address) {
  if (place.page != nullptr)
    place.page->words[place.slot] = NodeRef::of_address(address).disk_word();
}

bool TreeWriter::link(Node* node, Place place) {
  if (const auto leaf = known_leaves_.find(node); leaf != known_leaves_.end()) {
    if (leaf->second->address) {
      fill(place, leaf->second->address);
    } else {
      leaf->second->places.push_back(place);
    }
    return true;
  }
  PlannedPage* page = planned(node);
  if (page == nullptr) return false;
  page->places.push_back(place);
  return true;
}

TreeWriter::PlannedPage* TreeWriter::planned(Node* node) const {
  const auto page = known_pages_.find(node);
  return page == known_pages_.end() ? nullptr : page->second;
}

TreeWriter::PlannedPage* TreeWriter::add_page(Place place, uint32_t version, Node* node) {
  auto page = std::make_unique<PlannedPage>();
  page->level = place.page == nullptr ? kPageLevels : place.page->level - 1;
  ensure(page->level > 0, "below a page of level 1 there are leaves");
  page->index = place.page == nullptr ? 0 : place.page->index * kPageSlots + place.slot;
  page->version = version;
  page->node = node;
  page->places.push_back(place);
  PlannedPage* added = pages_[page->level].emplace_back(std::move(page)).get();
  if (node != nullptr) known_pages_[node] = added;
  return added;
}

void TreeWriter::add_leaf(Place place, uint32_t version, std::span<const Interval> intervals,
                          NodeAddress base, Node* node) {
  ensure(place.page != nullptr && place.page->level == 1, "leaves stand below pages of level 1");
  ensure(are_valid(intervals), "a leaf is in order before it is written");
  const uint32_t region = place.page->index * kPageSlots + place.slot;
  const uint64_t offset = leaf_bytes_.size();
  bool is_full = true;
  uint64_t length = encode_leaf(leaf_bytes_, log_.seed(), region, version, intervals);
  if (base && length > kDeltaWorthBytes) {
    const StoredLeaf stored = read_leaf(log_, base, region);
    if (stored.depth < kLeafDeltasMax) {
      const std::vector<Interval> changes = difference(stored.intervals, intervals);
      Encoder delta;
      const uint64_t delta_length =
          encode_delta(delta, log_.seed(), region, version, stored.depth + 1, base, changes);
      if (stored.delta_bytes + delta_length <= std::min(stored.full_bytes, length)) {
        leaf_bytes_.bytes().resize(offset);
        leaf_bytes_.put_bytes(delta.bytes());
        length = delta_length;
        is_full = false;
      }
    }
  }
  PlannedLeaf& leaf = leaves_.emplace_back(PlannedLeaf{node, offset, length, is_full, {place}, {}});
  if (node != nullptr) known_leaves_[node] = &leaf;
  if (leaf_bytes_.size() >= kNodesFrameBytesMax) flush_leaves();
}

void TreeWriter::flush_leaves() {
  if (leaf_bytes_.size() == 0) return;
  const uint64_t start = log_.append(FrameKind::kNodes, leaf_bytes_.bytes(), 0);
  for (; leaves_flushed_ < leaves_.size(); ++leaves_flushed_) {
    PlannedLeaf& leaf = leaves_[leaves_flushed_];
    leaf.address = NodeAddress::make(start + leaf.offset, leaf.length);
    for (const Place& place : leaf.places) fill(place, leaf.address);
    if (leaf.node != nullptr) written_.push_back({leaf.node, leaf.address, leaf.is_full});
  }
  written_bytes_ += leaf_bytes_.size();
  leaf_bytes_.bytes().clear();
  if (known_leaves_.empty()) {
    leaves_.clear();
    leaves_flushed_ = 0;
  }
}

void TreeWriter::finish() {
  flush_leaves();
  for (uint32_t level = 1; level <= kPageLevels; ++level) {
    const auto& pages = pages_[level];
    for (size_t begin = 0; begin < pages.size();) {
      Encoder bytes;
      std::vector<uint64_t> offsets{0};
      size_t end = begin;
      for (; end < pages.size() && bytes.size() < kNodesFrameBytesMax; ++end) {
        const PlannedPage& page = *pages[end];
        encode_page(bytes, log_.seed(), page.index, page.version, page.level, page.words);
        offsets.push_back(bytes.size());
      }
      const uint64_t start = log_.append(FrameKind::kNodes, bytes.bytes(), 0);
      for (size_t i = begin; i < end; ++i) {
        PlannedPage& page = *pages[i];
        const uint64_t offset = offsets[i - begin];
        page.address = NodeAddress::make(start + offset, offsets[i - begin + 1] - offset);
        for (const Place& place : page.places) fill(place, page.address);
        if (page.node != nullptr) written_.push_back({page.node, page.address, true});
      }
      written_bytes_ += bytes.size();
      begin = end;
    }
  }
}

}  // namespace tplstore
