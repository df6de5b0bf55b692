// One object after the other, by its name.
#include "boot/boot_check.h"

#include <cerrno>
#include <string>

#include "backend/layout.h"
#include "boot/pack.h"
#include "boot/profile.h"
#include "boot/profile_store.h"

namespace tplstore {
namespace {

constexpr const char* kLearnt = "; the next boots learn it again";

void check_profile(Backend& store, const std::string& path, const Uuid& owner, Findings& findings) {
  try {
    const auto bytes = store.get(path, kProfileBytesMax);
    if (!bytes || decode_profile(*bytes, path).owner == owner) return;
    findings.fault(path, fmt::format("is a profile of something else{}", kLearnt),
                   Repair::kDerived);
  } catch (const Error& error) {
    findings.fault(error, error.code() == EIO ? Repair::kDerived : Repair::kNone);
  }
}

void check_pack(Backend& store, const std::string& path, const Uuid& owner,
                const HashSecret& secret, Findings& findings) {
  try {
    if (Pack(store, path, secret).description().owner == owner) return;
    findings.fault(path, "is a pack of something else", Repair::kDerived);
  } catch (const Error& error) {
    if (error.code() == ENOENT) return;  // a newer one has taken its place
    findings.fault(error, error.code() == EIO ? Repair::kDerived : Repair::kNone);
  }
}

// Gives the objects of a folder that are called "UUID.…", with what stands behind the dot.
template <typename Visit>
void for_each_of(Backend& store, const std::string& folder, const std::set<Uuid>* templates,
                 Findings& findings, const Visit& visit) {
  for (const std::string& name : store.list(folder)) {
    const std::string path = fmt::format("{}/{}", folder, name);
    const size_t dot = name.find('.');
    Uuid uuid;
    if (dot == std::string::npos || !parse_uuid(std::string_view(name).substr(0, dot), uuid)) {
      findings.note(path, "is unknown, and was not looked at");
    } else if (templates != nullptr && !templates->contains(uuid)) {
      findings.fault(path, "is of a template that is not there", Repair::kDerived);
    } else {
      visit(path, uuid, name.substr(dot + 1));
    }
  }
}

}  // namespace

void check_template_boots(Backend& store, const std::set<Uuid>* templates, const HashSecret* secret,
                          bool is_served, Findings& findings) {
  for_each_of(store, std::string(paths::kBoot), templates, findings,
              [&](const std::string& path, const Uuid& uuid, const std::string& rest) {
                if (parse_object_number(rest)) check_profile(store, path, uuid, findings);
              });
  if (secret == nullptr || is_served) return;
  for_each_of(store, std::string(paths::kPacks), templates, findings,
              [&](const std::string& path, const Uuid& uuid, const std::string& rest) {
                if (parse_object_number(rest)) check_pack(store, path, uuid, *secret, findings);
              });
}

void check_volume_boots(Backend& store, const Uuid& volume, const HashSecret* secret,
                        bool is_served, Findings& findings) {
  const NumberedObject profile = volume_profile(volume), pack = volume_pack(volume);
  for (const uint64_t number : profile.numbers(store))
    check_profile(store, profile.path(number), volume, findings);
  if (secret == nullptr || is_served) return;
  for (const uint64_t number : pack.numbers(store))
    check_pack(store, pack.path(number), volume, *secret, findings);
}

}  // namespace tplstore
