// The one source that is compiled anew when the commit changes; see tools/packaging/version.cmake.
#include "base/version.h"

namespace tplstore {

const char kProgramVersion[] = TPLSTORE_FULL_VERSION;

}  // namespace tplstore
