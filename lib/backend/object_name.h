// The form of object and folder names, checked by every backend before it uses one.
//
// A name is one or more parts joined by '/'; a part starts with a letter or a digit and goes on
// with letters, digits, '.', '_' and '-'. So a part is never empty, never "." or "..", and never
// collides with the hidden names (".tmp-…") that a backend may keep for itself: whatever goes wrong
// above, no name leads out of the store. Thread safety: pure functions.
#pragma once

#include <string>
#include <string_view>

namespace tplstore {

// Whether `part` may stand between two '/'; at most 255 bytes.
bool is_object_name_part(std::string_view part);

// Error(EINVAL) unless the name of an object.
void check_object_name(std::string_view name);
// Error(EINVAL) unless the name of a folder; the empty name is the folder of all.
void check_folder_name(std::string_view folder);

// What stands before the last '/', or nothing; and what stands behind it.
std::string_view folder_of(std::string_view name);
std::string_view last_part_of(std::string_view name);

// Whether `name` lies in `folder`, however deep.
bool is_beneath(std::string_view name, std::string_view folder);

}  // namespace tplstore
