#include "export_command.h"

#include <unistd.h>

#include <map>

#include "export_file.h"
#include "progress.h"
#include "table.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

struct Arguments {
  std::string name;
  std::string file;
  std::string format = "raw";
  bool is_forced = false;
};

using Opener = std::function<std::unique_ptr<Disk>(Store& store, const std::string& name)>;

void run_export(const Context& context, const Arguments& arguments, const Opener& open) {
  Progress progress("exporting " + arguments.name);
  const InterruptGuard guard;
  ExportOptions options;
  options.format = arguments.format == "raw" ? ImageFormat::kRaw : ImageFormat::kQcow2;
  options.may_replace = arguments.is_forced;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.interrupted = interrupted;
  // Before the disk is opened: opening a volume takes its lock.
  check_export_target(arguments.file, options);

  const auto store = context.open_store();
  const auto disk = open(*store, arguments.name);
  const uint64_t written = export_disk(*disk, arguments.file, options);
  progress.clear();
  const json result = {{"file", arguments.file},
                       {"format", arguments.format},
                       {"size", disk->size_bytes()},
                       {"data_bytes", written}};
  context.print(result, [](const json& value) {
    return fmt::format("{}: {}, {} of them data\n", plain(value["file"]), size(value["size"]),
                       size(value["data_bytes"]));
  });
}

}  // namespace

void add_export_command(CLI::App& group, Context& context, const std::string& what,
                        const std::string& description, Opener open) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      add_command(group, context, "export", description,
                  [&context, arguments, open] { run_export(context, *arguments, open); });
  command->add_option(what, arguments->name, "What to export")->required();
  command->add_option("FILE", arguments->file, "The image file to write")->required();
  command->add_option("--format", arguments->format, "raw (the default) or qcow2")
      ->type_name("FORMAT")
      ->check(CLI::IsMember({"raw", "qcow2"}), "");
  command->add_flag("--force", arguments->is_forced, "Replace the file if it exists");
  add_json_option(command, context);
}

Peer tool_peer() {
  Peer peer;
  peer.address = fmt::format("tplstore export, pid {}", ::getpid());
  return peer;
}

}  // namespace tplstore::tool
