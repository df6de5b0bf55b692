// Looks at what a store knows of boots: profiles and packs. All of it is derived; what is damaged
// or of nothing costs time only, and can be removed. Changes nothing.
//
// Thread safety: functions. Errors of what is looked at become findings.
#pragma once

#include <set>

#include "backend/backend.h"
#include "base/findings.h"

namespace tplstore {

// Of templates; `templates` are those that are there, or none when that is not known. A server may
// be writing a pack: `is_served`. Without a secret packs are not looked at.
void check_template_boots(Backend& store, const std::set<Uuid>* templates, const HashSecret* secret,
                          bool is_served, Findings& findings);
void check_volume_profiles(Backend& store, const Uuid& volume, Findings& findings);

}  // namespace tplstore
