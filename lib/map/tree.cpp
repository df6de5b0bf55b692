// Lookups and assignments from the root down; what a frozen version shares is copied on the way.
#include "map/tree.h"

#include <algorithm>

namespace tplstore {
namespace {

// The slot of a page of `level` that leads to `region`.
uint32_t slot_index(uint64_t region, uint32_t level) {
  return static_cast<uint32_t>(region >> (6 * (level - 1)) & (kPageSlots - 1));
}

MissingNode missing(const NodeRef& slot, uint64_t region, uint32_t level) {
  return {slot.address(), level, static_cast<uint32_t>(region >> (6 * level)), region};
}

Page* page_of(const NodeRef& slot) {
  ensure(slot.is_node() && !slot.node()->is_leaf(), "a page is where a page has to be");
  return static_cast<Page*>(slot.node());
}

void touch(Node* node) {
  if (!node->is_touched.load(std::memory_order_relaxed))
    node->is_touched.store(true, std::memory_order_relaxed);
}

bool is_shared(const Node* node) { return node->references.load(std::memory_order_acquire) != 1; }

// A node of the log is no longer needed when a new one takes its place in the same version.
void note_superseded(const Node* node, uint32_t current, AssignEffect& effect) {
  if (!node->is_dirty && node->address && node->version == current)
    effect.superseded_bytes += node->address.length();
}

// Makes the page in `slot` one that may be changed.
Page* writable_page(NodeRef& slot, uint32_t level, uint32_t current, AssignEffect& effect) {
  if (slot.is_empty()) {
    slot = NodeRef::adopt(new_page(level, current, {}, true));
    return page_of(slot);
  }
  Page* page = page_of(slot);
  note_superseded(page, current, effect);
  if (is_shared(page)) {
    Page* copy = new_page(level, current, {}, true);
    copy->slots = page->slots;
    slot = NodeRef::adopt(copy);
    return copy;
  }
  page->is_dirty = true;
  page->version = current;
  touch(page);
  return page;
}

// Changes the leaf in `slot`, of which there is one in memory, by a splice.
void change_leaf(NodeRef& slot, const Splice& splice, uint32_t current, AssignEffect& effect) {
  auto* leaf = static_cast<Leaf*>(slot.node());
  const bool was_dirty = leaf->is_dirty;
  const bool was_own = leaf->version == current;
  const bool was_shared = is_shared(leaf);
  // A shared leaf that is dirty is being written for a snapshot: its copy is dirty anew.
  if (!was_dirty || was_shared) ++effect.leaves_dirtied;
  if (was_shared) {
    // The copy keeps the address: its next node in the log may be a delta over that one.
    const bool replaced_own = leaf->replaces_own;
    leaf = new_leaf(leaf->intervals(), current, leaf->address, true);
    leaf->replaces_own = replaced_own && was_own;
    slot = NodeRef::adopt(leaf);
  }
  if (!was_dirty) leaf->replaces_own = was_own && leaf->address;
  leaf->is_dirty = true;
  leaf->version = current;
  Leaf* changed = apply_splice(leaf, splice);
  if (changed != leaf) {
    // apply_splice has freed the old one and the slot's reference with it.
    NodeRef fresh = NodeRef::adopt(changed);
    slot.forget();
    slot = std::move(fresh);
  }
  touch(changed);
}

}  // namespace

std::optional<MissingNode> find(const NodeRef& root, const BlockRange& blocks, RunList& runs) {
  const uint64_t region = blocks.region();
  const NodeRef* slot = &root;
  for (uint32_t level = kPageLevels; level > 0; --level) {
    if (slot->is_empty()) {
      runs.add({blocks, kSourceUnmapped});
      return std::nullopt;
    }
    if (slot->is_address()) return missing(*slot, region, level);
    Page* page = page_of(*slot);
    touch(page);
    slot = &page->slots[slot_index(region, level)];
  }
  if (slot->is_address()) return missing(*slot, region, 0);
  if (slot->is_node()) {
    auto* leaf = static_cast<Leaf*>(slot->node());
    touch(leaf);
    find_runs(leaf->intervals(), blocks, runs);
  } else if (slot->is_interval()) {
    const Interval interval = slot->interval();
    find_runs({&interval, 1}, blocks, runs);
  } else {
    runs.add({blocks, kSourceUnmapped});
  }
  return std::nullopt;
}

void assign(NodeRef& root, const Run& run, uint32_t current, AssignEffect& effect) {
  const uint64_t region = run.region();
  const uint64_t first = run.first % kRegionBlocks;
  ensure(region < kRegionsMax && run.count > 0 && first + run.count <= kRegionBlocks,
         "an assignment lies within one region");
  NodeRef* slot = &root;
  for (uint32_t level = kPageLevels; level > 0; --level)
    slot = &writable_page(*slot, level, current, effect)->slots[slot_index(region, level)];

  Interval single{};
  std::span<const Interval> intervals;
  if (slot->is_node()) {
    intervals = static_cast<const Leaf*>(slot->node())->intervals();
  } else if (slot->is_interval()) {
    single = slot->interval();
    intervals = {&single, 1};
  }
  const Splice splice = splice_for(
      intervals, {static_cast<uint16_t>(first), static_cast<uint16_t>(run.count), run.source});
  const size_t left = intervals.size() - (splice.end - splice.begin) + splice.fresh_count;
  if (left > 1) {
    if (slot->is_node()) {
      change_leaf(*slot, splice, current, effect);
    } else {
      NodeRef fresh = NodeRef::adopt(new_leaf(intervals, current, {}, true));
      change_leaf(fresh, splice, current, effect);
      *slot = std::move(fresh);
      ++effect.leaves_dirtied;
    }
    return;
  }
  // What remains fits into the slot.
  if (slot->is_node()) note_superseded(slot->node(), current, effect);
  if (left == 0) {
    *slot = NodeRef();
  } else {
    Interval last = splice.fresh[0];
    if (splice.fresh_count == 0) last = splice.begin > 0 ? intervals.front() : intervals.back();
    *slot = NodeRef::of_interval(last);
  }
}

void install(NodeRef& root, const MissingNode& absent, NodeRef loaded) {
  NodeRef* slot = &root;
  for (uint32_t level = kPageLevels; level > absent.level; --level) {
    if (!slot->is_node()) return;
    slot = &page_of(*slot)->slots[slot_index(absent.region, level)];
  }
  if (slot->is_address() && slot->address() == absent.address) *slot = std::move(loaded);
}

namespace {

// True when the node in the slot may go and has not been looked at since the last call.
bool is_idle(const NodeRef& slot) {
  if (!slot.is_node() || slot.node()->is_dirty) return false;
  return !slot.node()->is_touched.exchange(false, std::memory_order_relaxed);
}

}  // namespace

void evict(NodeRef& root, uint64_t& cursor, uint32_t page_count) {
  for (uint32_t pages = 0; pages < page_count; ++pages) {
    if (cursor >= kRegionsMax) {
      cursor = 0;
      return;
    }
    NodeRef* slot = &root;
    uint32_t level = kPageLevels;
    while (level > 1 && slot->is_node()) {
      slot = &page_of(*slot)->slots[slot_index(cursor, level)];
      --level;
    }
    // The subtree in `slot`, of pages of `level`, spans this many regions.
    const uint64_t span = uint64_t{1} << (6 * level);
    cursor = (cursor / span + 1) * span;
    if (!slot->is_node()) continue;
    bool has_nodes = false;
    for (NodeRef& below : page_of(*slot)->slots) {
      if (is_idle(below)) below = below.on_disk();
      has_nodes = has_nodes || below.is_node();
    }
    if (!has_nodes && is_idle(*slot)) *slot = slot->on_disk();
  }
}

uint64_t loaded_bytes(const NodeRef& slot) {
  if (!slot.is_node()) return 0;
  if (slot.node()->is_leaf())
    return sizeof(Leaf) + static_cast<Leaf*>(slot.node())->capacity * sizeof(Interval);
  uint64_t bytes = sizeof(Page);
  for (const NodeRef& below : page_of(slot)->slots) bytes += loaded_bytes(below);
  return bytes;
}

}  // namespace tplstore
