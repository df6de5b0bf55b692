// Which directories there are, and their threads. What moves copies on demand is in tier_moves.cpp.
#include "tier/tier.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>

#include "base/io_priority.h"
#include "template/segment.h"

namespace tplstore {
namespace {

constexpr int64_t kWatchNs = 1'000'000'000;
constexpr int64_t kWaitMaxNs = 3'600'000'000'000;

// Whether a file is another one than it was.
std::string trace_of(const std::filesystem::path& file) {
  struct stat status {};
  if (stat(file.c_str(), &status) != 0) return fmt::format("error {}", errno);
  return fmt::format("{} {} {} {}.{}", status.st_dev, status.st_ino, status.st_size,
                     status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}

}  // namespace

Tier::Tier(TierOptions options, std::filesystem::path state_folder)
    : world_(std::make_shared<TierWorld>(std::move(options), [this] { generation_.fetch_add(1); })),
      state_folder_(std::move(state_folder)),
      layout_(std::make_shared<Layout>()) {}

Tier::~Tier() { stop(); }

std::shared_ptr<const Tier::Layout> Tier::layout() const {
  const Lock guard(mutex_);
  return layout_;
}

// --- the table

void Tier::look_at_table() {
  if (state_folder_.empty()) return;
  const Lock guard(file_mutex_);
  const auto file = TierTable::file_in(state_folder_);
  const std::string trace = trace_of(file);
  if (trace == file_seen_) return;
  std::optional<TierTable> table;
  std::string problem;
  try {
    table = TierTable::load(file, world_->options.identity.uuid, world_->options.host);
  } catch (const Error& error) {
    problem = error.what();
  }
  if (!problem.empty() && problem != said_of_file_)
    world_->log(fmt::format("tier: {}; all segments are read at the origin", problem));
  said_of_file_ = problem;
  file_seen_ = trace;
  set_table(std::move(table));
}

void Tier::set_table(std::optional<TierTable> table) {
  const Lock guard(keepers_mutex_);
  const auto before = layout();
  auto now = std::make_shared<Layout>();
  Directories gone = before->directories;
  if (table) {
    now->table = std::make_shared<const TierTable>(std::move(*table));
    for (const TierEntry& entry : now->table->directories) {
      const auto known = gone.find(entry.uuid);
      const bool is_known =
          known != gone.end() && known->second->entry(*known->second->table()).path == entry.path;
      if (is_known) {
        known->second->set_table(now->table);
        now->directories.insert(gone.extract(known));
        continue;
      }
      auto directory = std::make_shared<TierDirectory>(world_, entry.uuid, now->table);
      if (has_threads_) keep(directory);
      now->directories.emplace(entry.uuid, std::move(directory));
    }
  }
  {
    const Lock layout_guard(mutex_);
    layout_ = now;
  }
  for (const auto& [uuid, directory] : gone) directory->close();
  world_->changed();
}

// --- threads

void Tier::keep(const std::shared_ptr<TierDirectory>& directory) {
  directory->set_kept();
  std::promise<void> promise;
  auto ended = promise.get_future();
  std::thread thread([directory, promise = std::move(promise)]() mutable {
    make_thread_io_idle();
    for (int64_t wait_ns = 0;;) {
      if (!directory->alarm().wait(std::min(wait_ns, kWaitMaxNs))) break;
      try {
        wait_ns = directory->tend();
      } catch (const std::exception&) {  // out of memory
        wait_ns = TierDirectory::kRetryNs;
      }
    }
    promise.set_value();
  });
  keepers_.push_back({directory, std::move(thread), std::move(ended)});
}

void Tier::start() {
  look_at_table();
  const Lock guard(keepers_mutex_);
  has_threads_ = true;
  const auto layout = this->layout();
  for (const auto& [uuid, directory] : layout->directories) keep(directory);
  watcher_ = std::thread([this] { watch(); });
}

void Tier::watch() {
  while (alarm_.wait(kWatchNs)) {
    try {
      look_at_table();
      const auto layout = this->layout();
      for (const auto& [uuid, directory] : layout->directories) directory->watch();
      const Lock guard(keepers_mutex_);
      std::erase_if(keepers_, [](Keeper& keeper) {
        if (keeper.ended.wait_for(std::chrono::seconds(0)) != std::future_status::ready)
          return false;
        keeper.thread.join();
        return true;
      });
    } catch (const std::exception&) {  // out of memory; the next time may be better
    }
  }
}

void Tier::stop() {
  alarm_.stop();
  if (watcher_.joinable()) watcher_.join();
  const Lock guard(keepers_mutex_);
  has_threads_ = false;
  for (const Keeper& keeper : keepers_) keeper.directory->alarm().stop();
  const auto deadline = std::chrono::steady_clock::now() + world_->options.stop_patience;
  for (const Keeper& keeper : keepers_) keeper.ended.wait_until(deadline);
  world_->leave();
  for (Keeper& keeper : keepers_) {
    if (keeper.ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
      keeper.thread.join();
    } else {
      keeper.thread.detach();
    }
  }
  keepers_.clear();
}

void Tier::open_directories() {
  const auto layout = this->layout();
  for (const auto& [uuid, directory] : layout->directories) directory->try_to_open();
}

void Tier::tend() {
  constexpr int kRoundsMax = 100'000;
  const auto layout = this->layout();
  for (const auto& [uuid, directory] : layout->directories)
    for (int round = 0; round < kRoundsMax && directory->tend() <= 0; ++round) {
    }
}

// --- reading

std::unique_ptr<SegmentCopy> Tier::open(const Hash128& name, uint32_t block_count) noexcept {
  try {
    const auto layout = this->layout();
    if (!layout->table) return nullptr;
    for (const Uuid& uuid : layout->table->places_of(name)) {
      const auto directory = layout->directories.find(uuid);
      if (directory == layout->directories.end()) continue;
      if (auto copy = directory->second->open(name, block_count)) return copy;
    }
  } catch (const std::exception&) {  // out of memory: the origin needs less
  }
  return nullptr;
}

std::vector<TierDirectory*> Tier::targets_of(const Layout& layout, const Hash128& name) {
  std::vector<TierDirectory*> targets;
  if (!layout.table) return targets;
  const Uuid* owner = layout.table->placement.at(name.high);
  for (const TierEntry& entry : layout.table->directories) {
    const bool is_meant = entry.kind == TierEntry::Kind::kLocal
                              ? !entry.is_leaving
                              : owner != nullptr && *owner == entry.uuid;
    const auto directory = layout.directories.find(entry.uuid);
    if (is_meant && directory != layout.directories.end())
      targets.push_back(directory->second.get());
  }
  return targets;
}

void Tier::was_read_at_origin(const Hash128& name, uint32_t block_count, uint64_t bytes) noexcept {
  origin_reads_.fetch_add(1, std::memory_order_relaxed);
  origin_read_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  if (world_->options.fill_bytes_per_second == 0 || !mutex_.try_lock()) return;
  std::shared_ptr<const Layout> layout;
  {
    const Lock guard(mutex_, std::adopt_lock);
    layout = layout_;
  }
  try {
    for (TierDirectory* directory : targets_of(*layout, name)) directory->want({name, block_count});
  } catch (const std::bad_alloc&) {  // who reads it again asks again
  }
}

TierStatus Tier::status() const {
  const auto layout = this->layout();
  TierStatus status;
  if (layout->table) {
    status.has_table = true;
    status.generation = layout->table->generation;
    status.is_moving = layout->table->before.has_value();
    for (const TierEntry& entry : layout->table->directories)
      status.directories.push_back(layout->directories.at(entry.uuid)->status());
  }
  status.origin_reads = origin_reads_;
  status.origin_read_bytes = origin_read_bytes_;
  return status;
}

TierStats Tier::stats() const {
  const TierStatus status = this->status();
  TierStats stats;
  stats.is_used = status.has_table;
  stats.origin_reads = status.origin_reads;
  stats.origin_read_bytes = status.origin_read_bytes;
  for (const TierDirectoryStatus& directory : status.directories) stats += directory;
  return stats;
}

}  // namespace tplstore
