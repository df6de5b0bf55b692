// A map of names; the one read least recently is looked for when it is needed.
#include "tier/inventory.h"

#include <algorithm>

namespace tplstore {

std::shared_ptr<CopyInventory::Copy> CopyInventory::add(const Hash128& name, uint64_t bytes,
                                                        int64_t now_ns) {
  auto copy = std::make_shared<Copy>();
  copy->bytes = bytes;
  copy->read_ns = now_ns;
  const Lock guard(mutex_);
  const auto [known, is_new] = copies_.try_emplace(name, std::move(copy));
  if (is_new) {
    bytes_ += bytes;
    all_read_since_ns_ = std::min(all_read_since_ns_, now_ns);
  }
  return known->second;
}

std::shared_ptr<CopyInventory::Copy> CopyInventory::find(const Hash128& name) const {
  const Lock guard(mutex_);
  const auto known = copies_.find(name);
  return known == copies_.end() ? nullptr : known->second;
}

void CopyInventory::remove(const Hash128& name) {
  const Lock guard(mutex_);
  const auto known = copies_.find(name);
  if (known == copies_.end()) return;
  bytes_ -= known->second->bytes;
  copies_.erase(known);
}

std::vector<Hash128> CopyInventory::names() const {
  const Lock guard(mutex_);
  std::vector<Hash128> names;
  names.reserve(copies_.size());
  for (const auto& [name, copy] : copies_) names.push_back(name);
  return names;
}

std::vector<Hash128> CopyInventory::damaged() const {
  const Lock guard(mutex_);
  std::vector<Hash128> names;
  for (const auto& [name, copy] : copies_)
    if (copy->is_damaged.load(std::memory_order_relaxed)) names.push_back(name);
  return names;
}

uint64_t CopyInventory::count() const {
  const Lock guard(mutex_);
  return copies_.size();
}

uint64_t CopyInventory::bytes() const {
  const Lock guard(mutex_);
  return bytes_;
}

uint64_t CopyInventory::bytes_of(const std::function<bool(const Hash128&)>& is_meant) const {
  const Lock guard(mutex_);
  uint64_t bytes = 0;
  for (const auto& [name, copy] : copies_)
    if (is_meant(name)) bytes += copy->bytes;
  return bytes;
}

CopyInventory::Room::Room(CopyInventory& inventory, uint64_t bytes)
    : inventory_(inventory), bytes_(bytes) {
  const Lock guard(inventory_.mutex_);
  inventory_.coming_bytes_ += bytes_;
}

CopyInventory::Room::~Room() {
  const Lock guard(inventory_.mutex_);
  inventory_.coming_bytes_ -= bytes_;
}

uint64_t CopyInventory::claimed_bytes() const {
  const Lock guard(mutex_);
  return bytes_ + coming_bytes_;
}

std::optional<Hash128> CopyInventory::oldest(int64_t latest_ns) {
  const Lock guard(mutex_);
  // A full directory is asked again and again, and looks at all of them only when it may find one.
  if (copies_.empty() || all_read_since_ns_ > latest_ns) return {};
  const auto read_ns = [](const auto& known) {
    return known.second->read_ns.load(std::memory_order_relaxed);
  };
  const auto found = std::ranges::min_element(copies_, {}, read_ns);
  all_read_since_ns_ = read_ns(*found);
  if (all_read_since_ns_ > latest_ns) return {};
  return found->first;
}

}  // namespace tplstore
