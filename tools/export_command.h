// The command "export", which templates and volumes share.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "command.h"

namespace tplstore::tool {

// Declares `export WHAT FILE [--format F] [--force]` below `group`. `open` opens the disk that the
// text given for WHAT names.
void add_export_command(
    CLI::App& group, Context& context, const std::string& what, const std::string& description,
    std::function<std::unique_ptr<Disk>(Store& store, const std::string& name)> open);

// Who the tool is when it opens an export.
Peer tool_peer();

}  // namespace tplstore::tool
