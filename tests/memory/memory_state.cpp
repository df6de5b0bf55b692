#include "memory/memory_state.h"

#include <algorithm>
#include <array>
#include <ranges>
#include <set>

#include "backend/object_name.h"

namespace tplstore {
namespace {

// splitmix64: small, and the same everywhere, so that a printed seed means the same crash.
uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
uint64_t random_below(uint64_t& state, uint64_t bound) { return next_random(state) % bound; }

// Calls `f(iterator)` for every name beneath a folder; `f` must not erase other names.
template <typename Map, typename F>
void for_each_beneath(Map& names, const std::string& folder, F f) {
  auto at = folder.empty() ? names.begin() : names.lower_bound(folder + "/");
  while (at != names.end() && is_beneath(at->first, folder)) {
    const auto here = at++;
    f(here);
  }
}

using Kind = MemoryEvent::Kind;

// Carries out a change of content.
void change_image(MemoryImage& image, const MemoryEvent& event) {
  switch (event.kind) {
    case Kind::kWrite:
      return image.write(event.offset, event.data);
    case Kind::kPunch:
      return image.punch(event.offset, event.length);
    case Kind::kCreate:
    case Kind::kGrow:
      if (event.length > image.size_bytes()) image.set_size(event.length);
      return;
    default:
      ensure(false, "an event that changes no content");
  }
}

// The size that an object had got by such a change, or 0.
uint64_t size_given_by(const MemoryEvent& event) {
  if (event.kind == Kind::kWrite) return event.offset + event.data.size();
  return event.kind == Kind::kPunch ? 0 : event.length;
}

// One sector's share of a write or punch.
void change_sector(std::span<std::byte, kSectorBytes> sector, uint64_t sector_offset,
                   const MemoryEvent& event) {
  const bool is_write = event.kind == Kind::kWrite;
  const uint64_t length = is_write ? event.data.size() : event.length;
  const uint64_t from = std::max(event.offset, sector_offset);
  const uint64_t to = std::min(event.offset + length, sector_offset + kSectorBytes);
  std::byte* into = sector.data() + (from - sector_offset);
  if (is_write) {
    std::memcpy(into, event.data.data() + (from - event.offset), to - from);
  } else {
    std::memset(into, 0, to - from);
  }
}

struct SectorChange {
  uint64_t sector;
  size_t change;  // index into the unsynced changes
  auto operator<=>(const SectorChange&) const = default;
};

// Which unsynced changes touch which sectors, ordered by sector and then by time. Punches may be
// huge: they count only where there is something to be punched.
std::vector<SectorChange> sector_changes(const MemoryImage& durable,
                                         std::span<const MemoryEventPtr> unsynced) {
  std::vector<SectorChange> changes;
  std::vector<uint64_t> filled;  // sectors that may hold something
  for (size_t i = 0; i < unsynced.size(); ++i) {
    const MemoryEvent& event = *unsynced[i];
    if (event.kind == Kind::kWrite) {
      const uint64_t end = event.offset + event.data.size();
      for (uint64_t s = event.offset / kSectorBytes; s * kSectorBytes < end; ++s) {
        changes.push_back({s, i});
        filled.push_back(s);
      }
    } else if (event.kind == Kind::kPunch) {
      for (const uint64_t page : durable.allocated_pages(event.offset, event.length)) {
        for (uint64_t s = 0; s < kBlockBytes / kSectorBytes; ++s) {
          filled.push_back(page / kSectorBytes + s);
        }
      }
    }
  }
  std::ranges::sort(filled);
  filled.erase(std::unique(filled.begin(), filled.end()), filled.end());
  for (size_t i = 0; i < unsynced.size(); ++i) {
    const MemoryEvent& event = *unsynced[i];
    if (event.kind != Kind::kPunch) continue;
    const uint64_t end = event.offset + event.length;
    for (auto s = std::ranges::lower_bound(filled, event.offset / kSectorBytes);
         s != filled.end() && *s * kSectorBytes < end; ++s) {
      changes.push_back({*s, i});
    }
  }
  std::ranges::sort(changes);
  return changes;
}

}  // namespace

std::string MemoryEvent::describe() const {
  switch (kind) {
    case Kind::kCreate:
      return fmt::format("create {}: {} bytes", name, length);
    case Kind::kWrite:
      return fmt::format("write {}: {} bytes at {}", name, data.size(), offset);
    case Kind::kPunch:
      return fmt::format("punch {}: {} bytes at {}", name, length, offset);
    case Kind::kGrow:
      return fmt::format("grow {}: to {} bytes", name, length);
    case Kind::kSync:
      return fmt::format("sync {}", name);
    case Kind::kFailSync:
      return fmt::format("failed sync {}", name);
    case Kind::kDropCached:
      return fmt::format("drop_cached {}", name);
    case Kind::kPutNew:
      return fmt::format("put_new {}: {} bytes", name, data.size());
    case Kind::kSetContent:
      return fmt::format("set_content {}: {} bytes", name, data.size());
    case Kind::kRemove:
      return fmt::format("remove {}", name);
    case Kind::kRemoveFolder:
      return fmt::format("remove_folder {}", name);
    case Kind::kSyncFolder:
      return fmt::format("sync_folder {}", name.empty() ? "(the top)" : name);
  }
  return "?";
}

// --- what can be seen

uint64_t MemoryState::current_of(const Names& names, std::string_view name) {
  const auto found = names.find(name);
  return found == names.end() ? 0 : found->second.back().object;
}

uint64_t MemoryState::find(const std::string& name) const { return current_of(names_, name); }

bool MemoryState::has_folder(const std::string& folder) const {
  return folder.empty() || current_of(folders_, folder) != 0;
}

std::vector<std::string> MemoryState::list(const std::string& folder) const {
  std::vector<std::string> found;
  for (const Names* names : {&names_, &folders_}) {
    for_each_beneath(*names, folder, [&](auto at) {
      if (folder_of(at->first) == folder && at->second.back().object != 0) {
        found.emplace_back(last_part_of(at->first));
      }
    });
  }
  std::ranges::sort(found);
  return found;
}

const MemoryImage& MemoryState::image(uint64_t object) const {
  return objects_.at(object)->current;
}

bool MemoryState::has_lost(uint64_t object) const { return objects_.at(object)->has_lost; }

uint64_t MemoryState::allocated_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, history] : names_) {
    if (const uint64_t object = history.back().object) bytes += image(object).allocated_bytes();
  }
  return bytes;
}

// --- changes

void MemoryState::set_keeps_history(bool keeps_history) {
  if (keeps_history == keeps_history_) return;
  keeps_history_ = keeps_history;
  for (Names* names : {&names_, &folders_}) {
    for (History& history : *names | std::views::values)
      history.erase(history.begin(), history.end() - 1);
    std::erase_if(*names, [](const auto& entry) { return entry.second.back().object == 0; });
  }
  for (auto& [number, shared] : objects_) {
    Content& content = writable(number);
    content.durable = keeps_history ? content.current : MemoryImage();
    content.unsynced.clear();
    content.has_lost = false;
  }
}

MemoryState::Content& MemoryState::writable(uint64_t object) {
  std::shared_ptr<Content>& content = objects_.at(object);
  if (content.use_count() > 1) content = std::make_shared<Content>(*content);
  return *content;
}

void MemoryState::set(Names& names, const std::string& name, uint64_t object) {
  History& history = names[name];
  if (history.empty()) history.push_back({0, 0});
  history.push_back({event_, object});
  if (!keeps_history_) settle(names, name, event_);
}

void MemoryState::make_folders_of(const std::string& name) {
  for (std::string folder(folder_of(name)); !has_folder(folder); folder = folder_of(folder)) {
    set(folders_, folder, 1);
  }
}

// Makes what the name stood for right after the event durable.
void MemoryState::settle(Names& names, const std::string& name, uint64_t up_to_event) {
  const auto found = names.find(name);
  if (found == names.end()) return;
  History& history = found->second;
  const auto kept = std::find_if(history.begin() + 1, history.end(),
                                 [&](const Step& step) { return step.event > up_to_event; });
  history.erase(history.begin(), kept - 1);
  if (history.size() == 1 && history.front().object == 0) names.erase(found);
}

void MemoryState::settle_beneath(const std::string& folder, uint64_t up_to_event) {
  for (Names* names : {&names_, &folders_}) {
    for_each_beneath(*names, folder,
                     [&](auto at) { settle(*names, std::string(at->first), up_to_event); });
  }
}

// With a removal of the folder becoming durable, what it held is gone for good.
void MemoryState::settle_folder_name(const std::string& folder) {
  const auto found = folders_.find(folder);
  if (found == folders_.end()) return;
  const History& history = found->second;
  const auto removal = std::find_if(history.rbegin(), history.rend() - 1,
                                    [](const Step& step) { return step.object == 0; });
  if (removal != history.rend() - 1) settle_beneath(folder, removal->event);
  settle(folders_, folder, event_);
}

void MemoryState::settle_folders_of(const std::string& name) {
  for (std::string folder(folder_of(name)); !folder.empty(); folder = folder_of(folder)) {
    settle_folder_name(folder);
  }
}

void MemoryState::sync_folder(const std::string& folder) {
  std::vector<std::string> children;
  for_each_beneath(folders_, folder, [&](auto at) {
    if (folder_of(at->first) == folder) children.push_back(at->first);
  });
  for (const std::string& child : children) settle_folder_name(child);
  for_each_beneath(names_, folder, [&](auto at) {
    if (folder_of(at->first) == folder) settle(names_, std::string(at->first), event_);
  });
  if (folder.empty()) return;
  settle_folders_of(folder);
  settle_folder_name(folder);
}

void MemoryState::remove_folder(const std::string& folder) {
  for (Names* names : {&names_, &folders_}) {
    std::vector<std::string> gone;
    for_each_beneath(*names, folder, [&](auto at) {
      if (at->second.back().object != 0) gone.push_back(at->first);
    });
    for (const std::string& name : gone) set(*names, name, 0);
  }
  set(folders_, folder, 0);
}

void MemoryState::change(const MemoryEventPtr& event) {
  Content& content = writable(event->object);
  change_image(content.current, *event);
  if (keeps_history_) content.unsynced.push_back(event);
}

void MemoryState::sync(Content& content) const {
  if (!content.has_lost) {
    content.durable = content.current;
  } else {
    for (const MemoryEventPtr& event : content.unsynced) change_image(content.durable, *event);
  }
  content.unsynced.clear();
}

void MemoryState::fail_sync(Content& content, const MemoryEvent& failure) {
  std::erase_if(content.unsynced,
                [](const MemoryEventPtr& event) { return event->kind == Kind::kWrite; });
  // By which the writes made it longer.
  MemoryEvent growth = failure;
  growth.kind = Kind::kGrow;
  growth.length = content.current.size_bytes();
  content.unsynced.push_back(std::make_shared<const MemoryEvent>(std::move(growth)));
  content.has_lost = true;
}

void MemoryState::drop_cached(Content& content) {
  content.current = content.durable;
  for (const MemoryEventPtr& event : content.unsynced) change_image(content.current, *event);
  content.has_lost = false;
}

void MemoryState::apply(const MemoryEventPtr& event) {
  ++event_;
  const std::string& name = event->name;
  switch (event->kind) {
    case Kind::kCreate:
    case Kind::kPutNew:
    case Kind::kSetContent:
      if (event->object > last_object_) {
        make_folders_of(name);
        last_object_ = event->object;
        objects_[event->object] = std::make_shared<Content>();
        set(names_, name, event->object);
      }
      break;
    case Kind::kWrite:
    case Kind::kPunch:
    case Kind::kGrow:
      return change(event);
    case Kind::kRemove:
      return set(names_, name, 0);
    case Kind::kRemoveFolder:
      return remove_folder(name);
    case Kind::kSyncFolder:
      return sync_folder(name);
    case Kind::kSync:
      if (keeps_history_) sync(writable(event->object));
      return;
    case Kind::kFailSync:
      if (keeps_history_) fail_sync(writable(event->object), *event);
      return;
    case Kind::kDropCached:
      if (has_lost(event->object)) drop_cached(writable(event->object));
      return;
  }
  if (event->kind == Kind::kCreate) return change(event);
  Content& content = writable(event->object);
  content.current.set_size(0);
  content.current.write(0, event->data);
  settle(names_, name, event_);
  settle_folders_of(name);
  content.unsynced.clear();
  content.has_lost = false;
  if (keeps_history_) content.durable = content.current;
}

void MemoryState::forget_unnamed(const std::function<bool(uint64_t)>& is_free) {
  if (keeps_history_) return;
  std::set<uint64_t> named;
  for (const History& history : names_ | std::views::values) named.insert(history.back().object);
  std::erase_if(objects_, [&](const auto& entry) {
    return !named.contains(entry.first) && is_free(entry.first);
  });
}

void MemoryState::forget_if_unnamed(uint64_t object) {
  forget_unnamed([object](uint64_t candidate) { return candidate == object; });
}

// --- crashes

// A kept name comes with the folders it is in.
void MemoryState::keep(MemoryState& into, const std::string& name, uint64_t object,
                       MemoryImage image) const {
  auto content = std::make_shared<Content>();
  content->current = image;
  if (keeps_history_) content->durable = std::move(image);
  into.objects_[object] = std::move(content);
  into.names_[name] = {{0, object}};
  for (std::string folder(folder_of(name)); !folder.empty(); folder = folder_of(folder)) {
    into.folders_[folder] = {{0, 1}};
  }
}

MemoryState MemoryState::after_losing_unsynced() const {
  MemoryState after;
  after.keeps_history_ = keeps_history_;
  after.last_object_ = last_object_;
  for (const auto& [folder, history] : folders_) {
    if (history.front().object != 0) after.folders_[folder] = {{0, 1}};
  }
  for (const auto& [name, history] : names_) {
    const uint64_t object = history.front().object;
    if (object == 0) continue;
    const Content& content = *objects_.at(object);
    keep(after, name, object, keeps_history_ ? content.durable : content.current);
  }
  return after;
}

MemoryState MemoryState::after_random_crash(uint64_t seed) const {
  MemoryState after;
  after.keeps_history_ = keeps_history_;
  after.last_object_ = last_object_;
  uint64_t random = seed;
  for (const auto& [folder, history] : folders_) {
    if (history[random_below(random, history.size())].object == 0) continue;
    after.folders_[folder] = {{0, 1}};
    for (std::string above(folder_of(folder)); !above.empty(); above = folder_of(above)) {
      after.folders_[above] = {{0, 1}};
    }
  }
  for (const auto& [name, history] : names_) {
    const uint64_t object = history[random_below(random, history.size())].object;
    if (object == 0) continue;
    const Content& content = *objects_.at(object);
    keep(after, name, object, keeps_history_ ? random_content(content, random) : content.current);
  }
  return after;
}

MemoryImage MemoryState::random_content(const Content& content, uint64_t& random) {
  MemoryImage image = content.durable;
  if (content.unsynced.empty()) return image;

  // Sectors decide each for itself, but not always evenly: whole writes, or nearly whole ones,
  // would otherwise hardly ever stick or get lost.
  constexpr uint64_t kBiasMax = 4;
  const uint64_t bias = random_below(random, kBiasMax + 1);
  const std::vector<SectorChange> changes = sector_changes(content.durable, content.unsynced);
  std::vector<uint64_t> punched_pages;
  for (auto from = changes.begin(); from != changes.end();) {
    const auto to = std::find_if(from, changes.end(),
                                 [&](const SectorChange& c) { return c.sector != from->sector; });
    const uint64_t count = to - from;
    const uint64_t stuck =
        random_below(random, kBiasMax) < bias ? count : random_below(random, count);
    const uint64_t offset = from->sector * kSectorBytes;
    if (stuck > 0) {
      std::array<std::byte, kSectorBytes> sector;
      image.read(offset, sector);
      for (auto change = from; change != from + stuck; ++change) {
        change_sector(sector, offset, *content.unsynced[change->change]);
      }
      image.write(offset, sector);
      const bool is_punched = content.unsynced[(from + stuck - 1)->change]->kind == Kind::kPunch;
      if (is_punched) punched_pages.push_back(round_down(offset, kBlockBytes));
    }
    from = to;
  }
  // A page whose punch stuck as a whole is free again.
  punched_pages.erase(std::unique(punched_pages.begin(), punched_pages.end()), punched_pages.end());
  for (const uint64_t page : punched_pages) {
    std::array<std::byte, kBlockBytes> bytes;
    image.read(page, bytes);
    if (is_zero(bytes)) image.punch(page, kBlockBytes);
  }

  // Each growth is kept or lost with all after it; what stuck past the end is gone with it.
  std::vector<uint64_t> sizes = {content.durable.size_bytes()};
  for (const MemoryEventPtr& event : content.unsynced) {
    const uint64_t size = size_given_by(*event);
    if (size > sizes.back()) sizes.push_back(size);
  }
  const bool is_last = random_below(random, 2) == 0;
  image.set_size(is_last ? sizes.back() : sizes[random_below(random, sizes.size())]);
  return image;
}

}  // namespace tplstore
