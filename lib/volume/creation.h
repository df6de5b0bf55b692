// Making the objects of a new volume. Publishing its name is the caller's.
//
// The header comes last: without it there is no volume, and where it is, all other objects are,
// whatever a crash left of their making or removal. All is durable on return.
//
// Thread safety: functions of their own; nobody else knows of the volume yet. Errors: EFBIG for a
// disk that the storage cannot hold.
#pragma once

#include "lock/volume_header.h"
#include "template/template_image.h"

namespace tplstore {

void create_volume(Backend& backend, const Uuid& volume, uint64_t size_bytes,
                   const TemplateImage* base);

// The same of a volume whose map is there: what is left to be made.
VolumeHeader new_header(const Uuid& volume, uint64_t size_bytes, const TemplateImage* base);
void create_objects(Backend& backend, uint32_t current, const VolumeHeader& header);

}  // namespace tplstore
