// Reads chains of deltas down to their full leaf; walks load what they need and keep nothing.
#include "map/tree_reader.h"

#include <algorithm>

namespace tplstore {
namespace {

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
    if (header.kind == NodeKind::kLeaf && (deltas.empty() || expected_depth == 0)) {
      leaf.full_bytes = bytes.size();
      leaf.intervals = decode_intervals(body, header.count, false);
      break;
    }
    const bool fits = header.kind == NodeKind::kLeafDelta && header.level >= 1 &&
                      header.level <= kLeafDeltasMax &&
                      (deltas.empty() || header.level == expected_depth);
    if (!fits) wrong_kind(log);
    const uint64_t offset = body.take_varint();
    const std::optional<NodeAddress> base = NodeAddress::from_disk(offset, body.take_varint());
    if (!base) wrong_kind(log);
    if (deltas.empty()) leaf.depth = header.level;
    expected_depth = header.level - 1u;
    leaf.delta_bytes += bytes.size();
    deltas.push_back(decode_intervals(body, header.count, true));
    address = *base;
  }
  for (auto delta = deltas.rbegin(); delta != deltas.rend(); ++delta) {
    for (const Interval& change : *delta) {
      const Splice splice = splice_for(leaf.intervals, change);
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

NodeRef read_node(MapLog& log, const MissingNode& missing) {
  if (missing.level == 0) {
    const StoredLeaf leaf = read_leaf(log, missing.address, missing.index);
    return NodeRef::adopt(new_leaf(leaf.intervals, leaf.version, missing.address, false));
  }
  const ByteVector bytes = read_bytes(log, missing.address);
  auto [header, body] = open_node(bytes, log.seed(), missing.index, log.name());
  if (header.kind != NodeKind::kPage || header.level != missing.level) wrong_kind(log);
  NodeRef page = NodeRef::adopt(new_page(missing.level, header.version, missing.address, false));
  decode_page(body, header.count, *static_cast<Page*>(page.node()));
  return page;
}

NodeRef TreeReader::loaded(const NodeRef& slot, uint32_t level, uint32_t index) {
  if (slot.is_node()) return slot;
  return read_node(*log_, {slot.address(), level, index, uint64_t{index} << (6 * level)});
}

PageSlots TreeReader::slots_below(const NodeRef& slot, uint32_t level, uint32_t index) {
  if (slot.is_empty()) return {};
  const NodeRef page = loaded(slot, level, index);
  const SharedLock guard(mutex_);
  return static_cast<Page*>(page.node())->slots;
}

std::vector<Interval> TreeReader::intervals(const NodeRef& slot, uint32_t region) {
  if (slot.is_empty()) return {};
  if (slot.is_interval()) return {slot.interval()};
  if (slot.is_address()) return read_leaf(*log_, slot.address(), region).intervals;
  // A leaf that two trees lead to is copied before it is changed, and ours is one of them.
  const auto intervals = static_cast<const Leaf*>(slot.node())->intervals();
  return {intervals.begin(), intervals.end()};
}

bool TreeReader::is_same(const NodeRef& a, const NodeRef& b) const {
  if (a == b) return true;
  const SharedLock guard(mutex_);
  return a.is_same(b);
}

void TreeReader::remove_duplicates(std::vector<NodeRef>& slots) const {
  const SharedLock guard(mutex_);
  std::erase_if(slots, [](const NodeRef& slot) { return slot.is_empty(); });
  std::sort(slots.begin(), slots.end(),
            [](const NodeRef& a, const NodeRef& b) { return a.key() < b.key(); });
  slots.erase(std::unique(slots.begin(), slots.end(),
                          [](const NodeRef& a, const NodeRef& b) { return a.key() == b.key(); }),
              slots.end());
}

void TreeReader::walk(Slots slots, uint32_t level, uint32_t index, const Walk& how) {
  const uint64_t span = uint64_t{1} << (6 * level);  // regions below these slots
  if (index * span >= how.end || (index + uint64_t{1}) * span <= how.begin) return;
  if (!how.leads_on(slots, level)) return;
  if (level == 0) {
    how.visit(index, slots);
    return;
  }
  std::vector<PageSlots> pages;
  for (const NodeRef& slot : slots) pages.push_back(slots_below(slot, level, index));
  for (uint32_t i = 0; i < kPageSlots; ++i) {
    Slots below;
    for (const PageSlots& page : pages) below.push_back(page[i]);
    walk(std::move(below), level - 1, index * kPageSlots + i, how);
  }
}

}  // namespace tplstore
