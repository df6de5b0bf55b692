// Profiles as objects of a store.
#include "boot/profile_store.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "backend/layout.h"

namespace tplstore {

std::optional<uint64_t> parse_object_number(std::string_view text) {
  constexpr size_t kDigitsMax = 15;  // so that there always is a next one
  uint64_t number = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || text.size() > kDigitsMax || text[0] == '0' || parsed.ec != std::errc() ||
      parsed.ptr != text.data() + text.size())
    return std::nullopt;
  return number;
}

std::vector<uint64_t> NumberedObject::numbers(Backend& store) const {
  std::vector<uint64_t> found;
  for (const std::string_view name : store.list(folder)) {
    if (!name.starts_with(prefix) || name.substr(prefix.size(), 1) != ".") continue;
    if (const auto number = parse_object_number(name.substr(prefix.size() + 1)))
      found.push_back(*number);
  }
  std::ranges::sort(found);
  return found;
}

void NumberedObject::remove_below(Backend& store, uint64_t number) const {
  bool is_changed = false;
  for (const uint64_t other : numbers(store))
    if (other < number && store.remove(path(other))) is_changed = true;
  if (is_changed) store.sync_folder(folder);
}

NumberedObject template_profile(const Uuid& template_uuid) {
  return {std::string(paths::kBoot), template_uuid.text()};
}

NumberedObject volume_profile(const Uuid& volume) {
  return {fmt::format("{}/{}", paths::kVolumes, volume.text()), "boot"};
}

StoredProfile load_profile(Backend& store, const NumberedObject& object, const Uuid& owner) {
  StoredProfile stored;
  std::vector<uint64_t> numbers = object.numbers(store);
  if (!numbers.empty()) stored.number = numbers.back();
  for (; !numbers.empty(); numbers.pop_back()) {
    const std::string path = object.path(numbers.back());
    try {
      const auto bytes = store.get(path, kProfileBytesMax);
      if (!bytes) continue;
      Profile profile = decode_profile(*bytes, path);
      if (profile.owner != owner) continue;
      stored.profile = std::move(profile);
      break;
    } catch (const Error&) {
      // Without it the next boots are slower, and learn it again.
    }
  }
  return stored;
}

bool put_profile(Backend& store, const NumberedObject& object, uint64_t loaded_number,
                 const Profile& profile) {
  const uint64_t number = loaded_number + 1;
  if (!store.put_new(object.path(number), encode_profile(profile))) return false;
  if (object.numbers(store).back() > number) {  // others have gone on, and removed what was here
    store.remove(object.path(number));
    return false;
  }
  object.remove_below(store, number);
  return true;
}

uint64_t remove_orphans_in(Backend& store, const std::string& folder, const std::set<Uuid>& live) {
  uint64_t removed = 0;
  for (const std::string& name : store.list(folder)) {
    Uuid uuid;
    const size_t dot = name.find('.');
    if (dot == std::string::npos || !parse_uuid(std::string_view(name).substr(0, dot), uuid) ||
        live.contains(uuid))
      continue;
    removed += store.remove(fmt::format("{}/{}", folder, name)) ? 1 : 0;
  }
  if (removed != 0) store.sync_folder(folder);
  return removed;
}

}  // namespace tplstore
