// Which version of tplstore this is: "0.1.0", and with "+gCOMMIT" behind it where it is no release.
#pragma once

namespace tplstore {

extern const char kProgramVersion[];

}  // namespace tplstore
