// Where a store is. A location, as people give it, leads to a backend: so far it is the path of a
// directory, and nothing above this knows that.
//
// Thread safety: pure functions. Errors: Error that names the location.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "base/log.h"

namespace tplstore {

struct BackendOptions {
  bool direct = false;      // data bypasses the page cache, where that can be done
  bool is_private = false;  // new objects are for the owner's eyes alone
  // Gets a line when something works in a lesser way.
  Log log = {};
};

// The same location, whatever directory the process goes to. EINVAL.
std::string absolute_location(const std::string& location);
// Whether both lead to the same place, however they are written.
bool is_same_location(const std::string& a, const std::string& b);
// EINVAL when one of them is within the other.
void check_apart(const std::string& one, const std::string& other);
// ENOENT and ENOTDIR, among others, when there is nothing that could be a store.
std::unique_ptr<Backend> open_backend(const std::string& location, const BackendOptions& options);
// For a new store: what is not there yet is made. The backend need not be empty.
std::unique_ptr<Backend> make_backend(const std::string& location);
// What it is on, or what it would be made on; unknown where neither is there.
StorageKind kind_of_location(const std::string& location);
// EINVAL where hosts may have it at the same time and nobody has said so: their file locks may not
// meet, and then some things are not safe. `how` is what says it.
void check_shared(const std::string& location, const StorageKind& kind, bool is_said,
                  const std::string& how);

}  // namespace tplstore
