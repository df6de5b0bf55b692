// Looks at a volume as a whole: its header (lock/lock_check.h), its map (map/map_check.h), and
// whether its data files, its template and the volumes that it was forked from are what these say.
// Changes nothing, but for cells that nothing has, which can be given back.
//
// Beside a server that has the volume open its header and its map are looked at, which owners write
// so that others can read them at any time; its files are not, since they are ahead of its log.
//
// What is a hole though versions have it is no fault: copies of a store make holes of zeroes.
//
// Thread safety: functions. Errors of what is looked at become findings.
#pragma once

#include <string>

#include "backend/backend.h"
#include "base/findings.h"

namespace tplstore {

// `name` is the volume's, or its uuid where it has none. What was found of a volume that somebody
// has opened or changed meanwhile is dropped, and that is noted.
void check_volume(Backend& backend, const Uuid& volume, const std::string& name,
                  Findings& findings);

// Gives back what no version of a volume has, of its data files: cells, and whole ones. Takes the
// volume's lock; EBUSY where somebody has that, where the volume was not closed, and where other
// hosts may have the storage. Nothing is given back of a volume whose map cannot be read whole.
void give_back_lone_cells(Backend& backend, const Uuid& volume, const std::string& name);

}  // namespace tplstore
