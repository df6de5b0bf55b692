// Reading looks at where the segments were, and only if one is missing there whether they have been
// moved; everything else looks first.
#include "template/origin.h"

#include <algorithm>
#include <charconv>

#include "template/store_identity.h"

namespace tplstore {
namespace {

constexpr uint64_t kLineBytesMax = 4096;
constexpr std::string_view kPlacePrefix = "origin.";

std::optional<uint64_t> number_of(std::string_view name) {
  if (!name.starts_with(kPlacePrefix)) return {};
  name.remove_prefix(kPlacePrefix.size());
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc() || end != name.data() + name.size() || number == 0 || name[0] == '0')
    return {};
  return number;
}

std::string place_name(uint64_t number) { return fmt::format("{}{}", kPlacePrefix, number); }

std::string origin_line(const Uuid& store, const Uuid& id) {
  return fmt::format("{} {}\n", store.text(), id.text());
}

// Nothing when there is none.
std::optional<std::string> line_of(Backend& directory) {
  const auto content = directory.get(kOriginObject, kLineBytesMax);
  if (!content) return {};
  return to_text(*content);
}

std::optional<OriginPlace> load_place(Backend& store, uint64_t number) {
  const auto content = store.get(place_name(number), kLineBytesMax);
  if (!content) return {};
  const std::string line = to_text(*content);
  constexpr size_t kIdBytes = 36;
  OriginPlace place{number};
  if (line.size() < kIdBytes + 2 || !parse_uuid(line.substr(0, kIdBytes), place.id) ||
      line[kIdBytes] != ' ' || line.find_first_of(std::string_view("\n\0", 2)) != line.size() - 1 ||
      (line.size() > kIdBytes + 2 && line[kIdBytes + 1] != '/'))
    fail(EIO, place_name(number), "damaged: it does not say where the segments are");
  place.location = line.substr(kIdBytes + 1, line.size() - kIdBytes - 2);
  return place;
}

std::vector<uint64_t> place_numbers(Backend& store) {
  std::vector<uint64_t> numbers;
  for (const std::string& name : store.list(""))
    if (const auto number = number_of(name)) numbers.push_back(*number);
  std::ranges::sort(numbers);
  return numbers;
}

// The place that counts. One that is gone since it was listed has a newer one.
OriginPlace present_place(Backend& store) {
  for (;;) {
    const std::vector<uint64_t> numbers = place_numbers(store);
    if (numbers.empty()) return {};
    if (const auto place = load_place(store, numbers.back())) return *place;
  }
}

}  // namespace

std::vector<OriginPlace> list_origin_places(Backend& store) {
  std::vector<OriginPlace> places = {{}};
  for (const uint64_t number : place_numbers(store))
    if (const auto place = load_place(store, number)) places.push_back(*place);
  return places;
}

void put_origin_place(Backend& store, const OriginPlace& place) {
  if (!store.put_new(place_name(place.number),
                     as_bytes(fmt::format("{} {}\n", place.id.text(), place.location))))
    fail(EEXIST, place_name(place.number), "is there already");
}

void claim_origin(Backend& directory, const Uuid& store, const Uuid& id) {
  const std::string line = origin_line(store, id);
  const auto before = line_of(directory);
  if (!before && directory.list("segments").empty() &&
      directory.put_new(kOriginObject, as_bytes(line)))
    return;
  if (!before || before->size() != line.size() || !before->starts_with(store.text() + ' '))
    fail(EEXIST, directory.describe(),
         "has the segments of another store: choose a directory of this store's own");
  const auto object = directory.open(kOriginObject, Access::kWrite, Purpose::kMetadata);
  object->write(0, as_bytes(line));  // as long as the one before, and within one sector
  object->sync();
}

bool is_origin(Backend& directory, const Uuid& store, const Uuid& id) {
  return line_of(directory) == origin_line(store, id);
}

Origin::Origin(Backend& store, OpenLocation open_location)
    : store_(store), open_location_(std::move(open_location)) {}
Origin::~Origin() = default;

Backend& Origin::present() {
  const OriginPlace place = present_place(store_);
  const Lock guard(mutex_);
  if (places_.empty() || places_.back().number != place.number) {
    Place found{place.number, nullptr};
    if (!place.location.empty()) {
      try {
        found.apart = open_location_(place.location);
      } catch (const Error& error) {
        fail(EIO, place.location, "the templates' segments are here and cannot be reached: {}",
             error.what());
      }
      if (!is_origin(*found.apart, load_identity(store_).uuid, place.id))
        fail(EIO, place.location,
             "the templates' segments should be here, and it is not this store's origin "
             "('{}' is missing or another's); is it mounted?",
             kOriginObject);
    }
    places_.push_back(std::move(found));
  }
  Backend* backend = places_.back().apart ? places_.back().apart.get() : &store_;
  known_.store(backend, std::memory_order_release);
  return *backend;
}

std::string Origin::location() { return present_place(store_).location; }

std::unique_ptr<Object> Origin::open(const std::string& name, Access access, Purpose purpose) {
  if (Backend* known = known_.load(std::memory_order_acquire)) {
    try {
      return known->open(name, access, purpose);
    } catch (const Error& error) {
      if (error.code() != ENOENT || &present() == known) throw;
    }
  }
  return present().open(name, access, purpose);
}

std::unique_ptr<Object> Origin::create(const std::string& name, uint64_t size_bytes,
                                       Purpose purpose) {
  return present().create(name, size_bytes, purpose);
}
bool Origin::put_new(const std::string& name, Bytes content) {
  return present().put_new(name, content);
}
std::optional<ByteVector> Origin::get(const std::string& name, uint64_t max_bytes) {
  return present().get(name, max_bytes);
}
std::vector<std::string> Origin::list(const std::string& folder) { return present().list(folder); }
bool Origin::remove(const std::string& name) { return present().remove(name); }
void Origin::remove_folder(const std::string& folder) { present().remove_folder(folder); }
void Origin::sync_folder(const std::string& folder) { present().sync_folder(folder); }
std::unique_ptr<HeldLock> Origin::try_lock(const std::string& name, LockMode mode, uint64_t slot) {
  return present().try_lock(name, mode, slot);
}
bool Origin::is_locked(const std::string& name) { return present().is_locked(name); }

uint32_t Origin::write_alignment_bytes() const { return store_.write_alignment_bytes(); }
std::string Origin::describe() const { return store_.describe(); }
StorageKind Origin::kind() const { return store_.kind(); }

}  // namespace tplstore
