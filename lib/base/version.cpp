// The one source that is compiled anew when the commit changes; see packaging/version.cmake.
#include "base/version.h"

namespace tplstore {

const char kVersion[] = TPLSTORE_FULL_VERSION;

}  // namespace tplstore
