// What a directory's keeper does with all of its copies, and what status() tells of them.
#include <algorithm>
#include <cerrno>
#include <iterator>
#include <map>

#include "template/segment.h"
#include "template/segment_needs.h"
#include "tier/directory.h"

namespace tplstore {
namespace {

constexpr int64_t kFirstSweepNs = 60'000'000'000;  // after it was opened: machines start meanwhile

}  // namespace

int64_t TierDirectory::tend() {
  let_go();
  watch();
  if (!try_to_open()) return kLookNs;
  const std::shared_ptr<Mount> mount = this->mount();
  if (!mount) return kLookNs;
  try {
    const int64_t now_ns = world_->now_ns();
    if (now_ns >= next_look_ns_) {
      next_look_ns_ = now_ns + kLookNs;
      if (!perform(*mount, [](Backend& backend) { return backend.is_in_place(); })) {
        take_off(mount, Problem::kAbsent,
                 fmt::format("{}: something else is mounted there", mount->backend->describe()));
        return 0;
      }
    }
    if (!has_stock_.exchange(true)) {
      try {
        take_stock(*mount);
      } catch (...) {
        has_stock_ = false;
        throw;
      }
      const bool is_local = entry(*table()).kind == TierEntry::Kind::kLocal;
      next_sweep_ns_ = now_ns + (is_local ? 0 : std::min(kFirstSweepNs, world_->options.sweep_ns));
    }
    if (has_damaged_.exchange(false)) remove_damaged(*mount);
    if (has_news_of_templates() || now_ns >= next_sweep_ns_) {
      next_sweep_ns_ = now_ns + world_->options.sweep_ns;
      try_to_sweep(*mount);
    }
    return std::min({fill_next(*mount), next_sweep_ns_ - world_->now_ns(), kLookNs});
  } catch (const Error&) {  // noted
    return kLookNs;
  }
}

void TierDirectory::remove_damaged(Mount& mount) {
  uint64_t removed = 0;
  for (const Hash128& name : inventory_.damaged()) {
    try {
      remove_copy(mount, name);
      ++removed;
    } catch (const Error&) {  // noted; it is never read as long as this process runs
    }
  }
  if (removed > 0)
    world_->log(fmt::format("tier: {}: removed {} damaged copies of segments",
                            mount.backend->describe(), removed));
}

// --- sweeping

// Whether it is to have everything, and there are other templates than a while ago.
bool TierDirectory::has_news_of_templates() {
  const int64_t now_ns = world_->now_ns();
  if (entry(*table()).kind != TierEntry::Kind::kLocal || now_ns < next_news_ns_) return false;
  next_news_ns_ = now_ns + kRetryNs;
  const TierWorld::Visit visit(*world_);
  if (!visit) return false;
  try {
    auto templates = list_names(*world_->options.store, "templates");
    templates_.swap(templates);
    return templates_ != templates;
  } catch (const Error&) {  // a sweep says so
    return false;
  }
}

// The copies that are there, in the inventory too.
std::vector<Hash128> TierDirectory::take_stock(Mount& mount) {
  const std::vector<Hash128> known = inventory_.names();
  const int64_t now_ns = world_->now_ns();
  std::vector<Hash128> found =
      perform(mount, [](Backend& backend) { return list_segments(backend); });
  std::vector<Hash128> gone;
  std::ranges::set_difference(known, found, std::back_inserter(gone));
  for (const Hash128& name : gone) inventory_.remove(name);
  for (const Hash128& name : found) {
    if (inventory_.find(name)) continue;
    if (alarm_.is_stopped()) fail(ESHUTDOWN, mount.backend->describe(), "the tier is ending");
    try {
      const uint64_t size = perform(mount, [&](Backend& backend) {
        return backend.open(segment_path(name), Access::kRead, Purpose::kData)->size_bytes();
      });
      inventory_.add(name, size, world_->now_ns());
    } catch (const Error& error) {
      if (error.code() != ENOENT && error.code() != EISDIR && error.code() != ELOOP) throw;
    }
  }
  stock_ns_ = now_ns;
  return found;
}

uint64_t TierDirectory::sweep(Mount& mount) {
  // In this order: see find_needs().
  const std::vector<Hash128> found = take_stock(mount);
  SegmentNeeds needed;
  {
    const TierWorld::Visit visit(*world_);
    if (!visit) fail(ESHUTDOWN, mount.backend->describe(), "the tier is ending");
    needed = find_needs(*world_->options.store);
  }
  const auto table = this->table();
  uint64_t removed = 0;
  for (const Hash128& name : found) {
    if (needed.contains(name) && belongs(*table, name)) continue;
    remove_copy(mount, name);
    ++removed;
  }
  if (entry(*table).kind == TierEntry::Kind::kLocal) {
    eager_.clear();
    for (const auto& [name, need] : needed)
      if (need.block_count != 0 && !inventory_.find(name))
        eager_.push_back({name, need.block_count});
  }
  return removed;
}

uint64_t TierDirectory::sweep() {
  const std::shared_ptr<Mount> mount = this->mount();
  return mount ? sweep(*mount) : 0;
}

void TierDirectory::try_to_sweep(Mount& mount) {
  std::string problem;
  try {
    sweep(mount);
  } catch (const Error& error) {
    problem = error.what();
    if (problem != said_of_sweep_)
      world_->log(fmt::format("tier: {}: copies that nobody needs stay: {}",
                              mount.backend->describe(), problem));
  }
  said_of_sweep_ = problem;
}

std::optional<std::vector<Hash128>> TierDirectory::list() {
  const std::shared_ptr<Mount> mount = this->mount();
  if (!mount) return {};
  try {
    return take_stock(*mount);
  } catch (const Error&) {  // noted
    return {};
  }
}

// --- filling

// Fills with one segment; how long until the next may be.
int64_t TierDirectory::fill_next(Mount& mount) {
  const int64_t now_ns = world_->now_ns();
  auto wanted = queue_.first();
  const bool is_asked_for = wanted.has_value();
  if (!is_asked_for && !eager_.empty()) wanted = eager_.back();
  if (!wanted) return kLookNs;
  if (const int64_t wait_ns = world_->rate.wait_ns(now_ns); wait_ns > 0) return wait_ns;
  if (const int64_t wait_ns = no_fills_until_ns_ - now_ns; wait_ns > 0) return wait_ns;
  Fill result = Fill::kFailed;
  try {
    result = fill(*wanted, [&] {
      ByteVector bytes = world_->read_origin(*wanted);
      world_->rate.charge(bytes.size(), now_ns);
      return bytes;
    });
    if (result == Fill::kThere) world_->look_again(wanted->name);
    said_of_origin_.clear();
  } catch (const Error& error) {
    if (error.code() != ESHUTDOWN && said_of_origin_ != error.what()) {
      said_of_origin_ = error.what();
      world_->log(
          fmt::format("tier: {}: no copy is made: {}", mount.backend->describe(), said_of_origin_));
    }
  }
  if (is_asked_for) {
    queue_.done();
  } else {
    eager_.pop_back();
  }
  if (result == Fill::kNoRoom || result == Fill::kReadOnly) {
    // What is needed is asked for again.
    queue_.clear();
    no_fills_until_ns_ = now_ns + kRetryNs;
  }
  return 0;
}

// --- telling

TierDirectoryStatus TierDirectory::status() const {
  const auto table = this->table();
  TierDirectoryStatus status;
  status.entry = entry(*table);
  {
    const Lock guard(mutex_);
    using State = TierDirectoryStatus::State;
    status.last_error = last_error_;
    const bool is_off = mount_ && mount_->gate.off() != TierGate::Off::kNot;
    if (is_off || problem_ == Problem::kFailing) {
      status.state = State::kFailing;
    } else if (!mount_) {
      status.state = State::kAbsent;
    } else if (status.entry.is_leaving) {
      status.state = State::kLeaving;
    } else {
      status.state = is_read_only_ ? State::kReadOnly : is_full_ ? State::kFull : State::kOk;
    }
  }
  const bool is_local = status.entry.kind == TierEntry::Kind::kLocal;
  status.share = is_local ? 1 : table->placement.share_of(uuid_);
  status.ranges = table->placement.ranges_of(uuid_);
  status.segments = inventory_.count();
  status.bytes = inventory_.bytes();
  if (!is_local)
    status.bytes_out_of_place = inventory_.bytes_of([&](const Hash128& name) {
      const Uuid* owner = table->placement.at(name.high);
      return owner == nullptr || *owner != uuid_;
    });
  status.reads = reads_;
  status.read_bytes = read_bytes_;
  status.fills = fills_;
  status.fill_bytes = fill_bytes_;
  status.errors = errors_;
  status.damaged = damaged_;
  return status;
}

}  // namespace tplstore
