// The comparison of trees that are in two logs at once.
#include "map/tree_copy.h"

namespace tplstore {
namespace {

// Where a slot leads to in its log, if it does.
NodeAddress address_in(const NodeRef& slot) {
  return slot.is_address() ? slot.address() : NodeAddress{};
}

}  // namespace

CopiedTree TreeCopier::copy(const NodeRef& root, const CopiedTree& base) {
  TreeWriter writer(*to_log_);
  CopiedTree copied{root, {}};
  plan(writer, root, base, {&copied.copy});
  writer.finish();
  written_bytes_ += writer.written_bytes();
  return copied;
}

void TreeCopier::plan(TreeWriter& writer, const NodeRef& slot, const CopiedTree& base,
                      TreeWriter::Place place) {
  if (from_.is_same(slot, base.root)) {
    *place.slot = base.copy;
    return;
  }
  if (!slot.leads_on()) {
    if (slot.is_interval()) count({{slot.interval()}});
    *place.slot = slot;
    return;
  }
  const NodeRef node = from_.loaded(slot, place.level, place.index);
  const uint32_t version = node.node()->version;
  if (place.level == 0) {
    const auto intervals = static_cast<const Leaf*>(node.node())->intervals();
    count(intervals);
    writer.add_leaf(place, version, intervals, address_in(base.copy), nullptr);
    return;
  }
  TreeWriter::PlannedPage& page = writer.add_page(place, version, nullptr);
  const PageSlots slots = from_.slots_below(node, place.level, place.index);
  const PageSlots base_roots = from_.slots_below(base.root, place.level, place.index);
  const PageSlots base_copies = to_.slots_below(base.copy, place.level, place.index);
  for (uint32_t i = 0; i < kPageSlots; ++i)
    plan(writer, slots[i], {base_roots[i], base_copies[i]}, page.place(i));
}

void TreeCopier::count(std::span<const Interval> intervals) {
  for (const Interval& interval : intervals)
    if (interval.source != kSourceZero) data_blocks_ += interval.count;
}

TreeCopier::Relocation TreeCopier::plan_relocation(NodeRef& root, const CopiedTree& copied) {
  Relocation relocation;
  plan_relocation(relocation, root, copied, kPageLevels, 0);
  return relocation;
}

void TreeCopier::plan_relocation(Relocation& to, NodeRef& slot, const CopiedTree& copied,
                                 uint32_t level, uint32_t index) {
  if (!slot.leads_on()) return;
  if (slot.is_same(copied.root)) {
    to.slots.emplace_back(&slot, copied.copy);
    return;
  }
  ensure(slot.is_dirty_node(), "what changed since it was copied is in memory and dirty");
  to.nodes.emplace_back(slot.node(), address_in(copied.copy));
  if (level == 0) return;
  const auto slots_of = [&](TreeReader& reader, const NodeRef& page) {
    if (!page.leads_on()) return PageSlots{};
    return static_cast<Page*>(reader.loaded(page, level, index).node())->slots;
  };
  const PageSlots roots = slots_of(from_, copied.root);
  const PageSlots copies = slots_of(to_, copied.copy);
  auto& slots = static_cast<Page*>(slot.node())->slots;
  for (uint32_t i = 0; i < kPageSlots; ++i)
    plan_relocation(to, slots[i], {roots[i], copies[i]}, level - 1, index * kPageSlots + i);
}

}  // namespace tplstore
