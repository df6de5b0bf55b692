// Walks trees side by side and loads what it needs, keeping nothing.
#include "map/tree_reader.h"

#include <algorithm>

#include "map/tree_writer.h"

namespace tplstore {

NodeRef TreeReader::loaded(const NodeRef& slot, uint32_t level, uint32_t index) {
  if (slot.is_node()) return slot;
  return NodeRef::adopt(
      read_node(log_, {slot.address(), level, index, static_cast<uint64_t>(index) << (6 * level)}));
}

PageSlots TreeReader::slots_of(Node* page) const {
  const SharedLock guard(mutex_);
  return static_cast<Page*>(page)->slots;
}

PageSlots TreeReader::slots_below(const NodeRef& slot, uint32_t level, uint32_t index) {
  if (slot.is_empty()) return {};
  if (slot.is_node()) return slots_of(slot.node());
  const NodeRef page = loaded(slot, level, index);
  return static_cast<Page*>(page.node())->slots;
}

std::vector<Interval> TreeReader::intervals(const NodeRef& slot, uint32_t region) {
  if (slot.is_empty()) return {};
  if (slot.is_interval()) return {slot.interval()};
  if (slot.is_address()) return read_leaf(log_, slot.address(), region).intervals;
  // A leaf that two trees lead to is copied before it is changed, and ours is one of them.
  const auto intervals = static_cast<const Leaf*>(slot.node())->intervals();
  return {intervals.begin(), intervals.end()};
}

bool TreeReader::is_same(const NodeRef& a, const NodeRef& b) const {
  if (a == b) return true;
  const SharedLock guard(mutex_);
  return a.is_same(b);
}

// Leaves one of those slots that lead to the same, and none that is empty.
void TreeReader::remove_duplicates(std::vector<NodeRef>& slots) const {
  const SharedLock guard(mutex_);
  std::erase_if(slots, [](const NodeRef& slot) { return slot.is_empty(); });
  std::sort(slots.begin(), slots.end(),
            [](const NodeRef& a, const NodeRef& b) { return a.key() < b.key(); });
  slots.erase(std::unique(slots.begin(), slots.end(),
                          [](const NodeRef& a, const NodeRef& b) { return a.key() == b.key(); }),
              slots.end());
}

void TreeReader::walk_difference(const NodeRef& a, const NodeRef& b, uint32_t level, uint32_t index,
                                 uint64_t begin, uint64_t end, const Visit& visit) {
  const uint64_t span = uint64_t{1} << (6 * level);  // regions below these slots
  if (index * span >= end || (index + uint64_t{1}) * span <= begin) return;
  if (is_same(a, b)) return;
  if (level == 0) {
    visit(index, intervals(a, index), intervals(b, index));
    return;
  }
  const PageSlots below_a = slots_below(a, level, index);
  const PageSlots below_b = slots_below(b, level, index);
  for (uint32_t i = 0; i < kPageSlots; ++i)
    walk_difference(below_a[i], below_b[i], level - 1, index * kPageSlots + i, begin, end, visit);
}

void TreeReader::walk_all(std::vector<NodeRef> slots, uint32_t level, uint32_t index,
                          uint64_t begin, uint64_t end, const VisitAll& visit) {
  const uint64_t span = uint64_t{1} << (6 * level);
  if (index * span >= end || (index + uint64_t{1}) * span <= begin) return;
  remove_duplicates(slots);
  if (slots.empty()) return;
  if (level == 0) {
    visit(index, slots);
    return;
  }
  std::vector<PageSlots> pages;
  for (const NodeRef& slot : slots) pages.push_back(slots_below(slot, level, index));
  for (uint32_t i = 0; i < kPageSlots; ++i) {
    std::vector<NodeRef> below;
    for (const PageSlots& page : pages) below.push_back(page[i]);
    walk_all(std::move(below), level - 1, index * kPageSlots + i, begin, end, visit);
  }
}

uint64_t TreeReader::walk_removal(const NodeRef& version, const NodeRef& successor,
                                  const NodeRef& ancestor,
                                  const std::function<void(const Removal&)>& visit) {
  return walk_removal(version, successor, ancestor, kPageLevels, 0, visit);
}

uint64_t TreeReader::walk_removal(const NodeRef& version, const NodeRef& successor,
                                  const NodeRef& ancestor, uint32_t level, uint32_t index,
                                  const std::function<void(const Removal&)>& visit) {
  if (version.is_empty() || is_same(version, successor) || is_same(version, ancestor)) return 0;
  uint64_t garbage_bytes = 0;
  if (version.is_address()) {
    garbage_bytes = version.address().length();
  } else if (version.is_node() && !version.node()->is_dirty) {
    garbage_bytes = version.node()->address.length();
  }
  if (level == 0) {
    // The successor's leaf may be a delta over this one, which is needed then.
    if (!successor.is_empty() && !successor.is_interval()) garbage_bytes = 0;
    visit({index, intervals(version, index), intervals(successor, index)});
    return garbage_bytes;
  }
  const PageSlots below_version = slots_below(version, level, index);
  const PageSlots below_successor = slots_below(successor, level, index);
  const PageSlots below_ancestor = slots_below(ancestor, level, index);
  for (uint32_t i = 0; i < kPageSlots; ++i)
    garbage_bytes += walk_removal(below_version[i], below_successor[i], below_ancestor[i],
                                  level - 1, index * kPageSlots + i, visit);
  return garbage_bytes;
}

}  // namespace tplstore
