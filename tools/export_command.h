// The command "export", which templates and volumes share.
#pragma once

#include <functional>
#include <string>

#include "command.h"
#include "transfer/increment.h"

namespace tplstore::tool {

struct ExportArguments {
  std::string name;
  std::string file;
  std::string format;       // empty unless given
  std::string since;        // of an incremental file, the version that it is based on; or empty
  std::string compression;  // likewise
  bool is_forced = false;

  bool is_since_template() const { return since == "template"; }
};

// What is exported, and how.
struct Exported {
  std::string what;         // the word for its name in the usage
  std::string description;  // of the command
  // Opens the disk that the text given for `what` names.
  std::function<std::unique_ptr<Disk>(Store& store, const std::string& name)> open;
  // Writes an incremental file; the bytes of data in it, and what it is. Without it there is no
  // such format.
  std::function<std::pair<uint64_t, IncrementInfo>(Store& store, const ExportArguments& arguments,
                                                   const IncrementOptions& options)>
      write_increment;
};

// Declares `export WHAT FILE [--format F] [--since VERSION] [--compress C] [--force]` below
// `group`.
void add_export_command(const Command& group, Context& context, const Exported& exported);

// Who the tool is when it opens an export.
Peer tool_peer();

}  // namespace tplstore::tool
