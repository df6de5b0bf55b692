// Looks at what a store knows of boots: profiles and packs. All of it is derived; what is damaged
// or of nothing costs time only, and can be removed. Changes nothing.
//
// Thread safety: functions. Errors of what is looked at become findings.
#pragma once

#include <set>

#include "backend/backend.h"
#include "base/findings.h"

namespace tplstore {

// A server may be writing a pack: `is_served`. Without a secret packs are not looked at.

// Of templates; `templates` are those that are there, or none when that is not known.
void check_template_boots(Backend& store, const std::set<Uuid>* templates, const HashSecret* secret,
                          bool is_served, Findings& findings);
void check_volume_boots(Backend& store, const Uuid& volume, const HashSecret* secret,
                        bool is_served, Findings& findings);

}  // namespace tplstore
