// Chooses what is written: a disk, or what changed between two versions.
#include "export_command.h"

#include <signal.h>
#include <unistd.h>

#include "control/json_output.h"
#include "export_file.h"
#include "progress.h"
#include "table.h"
#include "transfer/atomic_file.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

constexpr const char* kIncrement = "increment";

bool is_increment(const ExportArguments& arguments) {
  return arguments.format == kIncrement || !arguments.since.empty();
}

Compression compression_of(const ExportArguments& arguments) {
  return arguments.compression.empty() ? Compression::kNone : Compression::kZstd;
}

// What was written, where that does not go to standard output itself.
void print_exported(const Context& context, const ExportArguments& arguments, json result,
                    const std::function<std::string(const json&)>& for_people) {
  if (is_standard_stream(arguments.file)) return;
  result["compression"] =
      arguments.compression.empty() ? json(nullptr) : json(arguments.compression);
  context.print(result, for_people);
}

void export_image(const Context& context, const ExportArguments& arguments,
                  const Exported& exported) {
  Progress progress("exporting " + arguments.name);
  const InterruptGuard guard;
  ExportOptions options;
  options.format = arguments.format == "qcow2" ? ImageFormat::kQcow2 : ImageFormat::kRaw;
  options.compression = compression_of(arguments);
  options.may_replace = arguments.is_forced;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.interrupted = interrupted;
  // Before the disk is opened: opening a volume takes its lock.
  check_export_target(arguments.file, options);

  const auto store = context.open_store();
  const auto disk = exported.open(*store, arguments.name);
  const uint64_t written = export_disk(*disk, arguments.file, options);
  progress.clear();
  const json result = {{"file", arguments.file},
                       {"format", arguments.format.empty() ? "raw" : arguments.format},
                       {"size", disk->size_bytes()},
                       {"data_bytes", written}};
  print_exported(context, arguments, result, [](const json& value) {
    return fmt::format("{}: {}, {} of them data\n", plain(value["file"]), size(value["size"]),
                       size(value["data_bytes"]));
  });
}

json identity_json(const VersionIdentity& identity) {
  if (identity.is_nil()) return nullptr;
  return fmt::format("{}@{}", identity.volume.text(), identity.number);
}

void export_increment(const Context& context, const ExportArguments& arguments,
                      const Exported& exported) {
  Progress progress("exporting " + arguments.name);
  const InterruptGuard guard;
  IncrementOptions options;
  options.compression = compression_of(arguments);
  options.may_replace = arguments.is_forced;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.interrupted = interrupted;
  check_publish_target(arguments.file, options.may_replace);

  const auto store = context.open_store();
  const auto [data_bytes, info] = exported.write_increment(*store, arguments, options);
  progress.clear();
  json result = {{"file", arguments.file},           {"format", kIncrement},
                 {"size", info.size_bytes},          {"data_bytes", data_bytes},
                 {"base", identity_json(info.base)}, {"origin", identity_json(info.version)}};
  result["base_template"] =
      info.is_since_template()
          ? json{{"name", info.template_name}, {"content_id", info.template_content.hex()}}
          : json(nullptr);
  const std::string since = info.is_since_template()  ? " since template " + info.template_name
                            : arguments.since.empty() ? ", whole"
                                                      : " since version " + arguments.since;
  print_exported(context, arguments, result, [&](const json& value) {
    return fmt::format("{}: {}{}, {} of data\n", plain(value["file"]), arguments.name, since,
                       size(value["data_bytes"]));
  });
}

// Wrong usage that only all arguments together show.
void check_arguments(const Context& context, const ExportArguments& arguments) {
  if (!arguments.since.empty() && !arguments.format.empty() && arguments.format != kIncrement)
    wrong_usage(
        fmt::format("--since writes an incremental file, not --format {}", arguments.format));
  const bool is_qcow2 = arguments.format == "qcow2";
  if (is_qcow2 && !arguments.compression.empty())
    wrong_usage("--compress is for raw and incremental files, not for --format qcow2");
  if (!is_standard_stream(arguments.file)) return;
  if (is_qcow2)
    wrong_usage("qcow2 cannot be written to a pipe: name a file, or ./- for one of that name");
  if (context.is_json) wrong_usage("standard output is for the data: leave out --json");
}

}  // namespace

void add_export_command(const Command& group, Context& context, const Exported& exported) {
  auto arguments = std::make_shared<ExportArguments>();
  const auto action = [&context, arguments, exported] {
    // Whoever reads it may go before all is written, and that is an error like others.
    if (is_standard_stream(arguments->file)) ::signal(SIGPIPE, SIG_IGN);
    (is_increment(*arguments) ? export_increment : export_image)(context, *arguments, exported);
  };
  const Command command = add_command(group, context, "export", exported.description, action);
  command.add_option(exported.what, arguments->name, "What to export").required();
  command.add_option("FILE", arguments->file, "The file to write; - is standard output").required();
  const bool has_increments = exported.write_increment != nullptr;
  const std::set<std::string> formats = has_increments
                                            ? std::set<std::string>{"raw", "qcow2", kIncrement}
                                            : std::set<std::string>{"raw", "qcow2"};
  command
      .add_option(
          "--format", arguments->format,
          has_increments ? "raw (the default), qcow2 or increment" : "raw (the default) or qcow2")
      .type_name("FORMAT")
      .check(one_of(formats));
  if (has_increments) {
    command
        .add_option(
            "--since", arguments->since,
            "Write an incremental file: what changed since this version, or since the template")
        .type_name("VERSION");
  }
  command.add_option("--compress", arguments->compression, "zstd: compress what is written")
      .type_name("METHOD")
      .check(one_of({"zstd"}));
  command.on_parsed([&context, arguments, action] {
    check_arguments(context, *arguments);
    context.action = action;
  });
  command.add_flag("--force", arguments->is_forced, "Replace the file if it exists");
  add_json_option(command, context);
}

Peer tool_peer() {
  Peer peer;
  peer.address = fmt::format("tplstore export, pid {}", ::getpid());
  return peer;
}

}  // namespace tplstore::tool
