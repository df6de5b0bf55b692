// Where profiles are kept: "boot/<uuid of the template>.N", and "boot.N" beside a volume's header.
//
// The highest N counts. A new profile is put under the next one, whole and durable, before the
// others are removed: nothing is ever replaced in place, so of two hosts that learn the same
// profile at once one is refused, and a crash leaves the old one or the new one.
//
// Thread safety: pure functions of the backend. Errors: the backend's; a profile that cannot be
// used is not there.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "boot/profile.h"

namespace tplstore {

// Objects of which the one with the highest number counts: "<folder>/<prefix>.N".
struct NumberedObject {
  std::string folder;
  std::string prefix;

  std::string path(uint64_t number) const {
    return fmt::format("{}/{}.{}", folder, prefix, number);
  }
  // Those that are there, rising.
  std::vector<uint64_t> numbers(Backend& store) const;
  // Removes those below a number, durably.
  void remove_below(Backend& store, uint64_t number) const;
  void remove_all(Backend& store) const { remove_below(store, UINT64_MAX); }
};
// Nothing where a number is to be that none can be.
std::optional<uint64_t> parse_object_number(std::string_view text);

NumberedObject template_profile(const Uuid& template_uuid);
NumberedObject volume_profile(const Uuid& volume);

struct StoredProfile {
  uint64_t number = 0;  // 0: there is none
  Profile profile;
};
// The newest that can be used, of this owner; `number` is that of the newest that is there.
StoredProfile load_profile(Backend& store, const NumberedObject& object, const Uuid& owner);
// False when another one has come since it was loaded.
bool put_profile(Backend& store, const NumberedObject& object, uint64_t loaded_number,
                 const Profile& profile);
// Removes objects of "<folder>/<uuid>.N" that are of no such uuid; how many.
uint64_t remove_orphans_in(Backend& store, const std::string& folder, const std::set<Uuid>& live);

}  // namespace tplstore
