// volume export, import: out of a store, and from one store into another.
#include <algorithm>
#include <cerrno>

#include "base/names.h"
#include "command.h"
#include "control/json_output.h"
#include "export_command.h"
#include "map/version_table.h"
#include "progress.h"
#include "table.h"
#include "transfer/increment.h"
#include "version_text.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

// --- export

std::unique_ptr<Disk> open_for_export(Store& store, const std::string& name) {
  const ExportName parsed = parse_export_name(name);
  if (parsed.kind == ExportName::Kind::kTemplate)
    fail(EINVAL, name, "that is a template: use `tplstore template export`");
  if (parsed.kind == ExportName::Kind::kChanges)
    fail(EINVAL, name,
         "that is what changed between two versions, and no whole disk: use `tplstore volume "
         "export {}@{} FILE --since {}`",
         parsed.name, parsed.version, parsed.since);
  std::unique_ptr<Disk> disk;
  try {
    retry_while_busy([&] { disk = store.open_export(name, tool_peer()); });
  } catch (const Error& error) {
    if (error.code() != EBUSY || parsed.kind != ExportName::Kind::kCurrent) throw;
    fail(EBUSY, "volume " + name,
         "it is in use and cannot be exported while it changes: make a version with "
         "`tplstore version create {}` and export that as {}@VERSION",
         name, name);
  }
  return disk;
}

const VersionInfo& version_of(const VolumeInfo& volume, const std::string& named) {
  const std::string number_or_name = version_of_volume(volume.name, named);
  const std::optional<uint32_t> number = parse_version_number(number_or_name);
  const auto found =
      std::find_if(volume.versions.begin(), volume.versions.end(), [&](const VersionInfo& version) {
        return !version.is_hidden && !version.is_current &&
               (number ? version.number == *number : version.name == number_or_name);
      });
  if (found == volume.versions.end())
    fail(ENOENT, "volume " + volume.name,
         "has no frozen version '{}'; see 'tplstore version list {}'", number_or_name, volume.name);
  return *found;
}

std::pair<uint64_t, IncrementInfo> write_volume_increment(Store& store,
                                                          const ExportArguments& arguments,
                                                          const IncrementOptions& options) {
  const ExportName parsed = parse_export_name(arguments.name);
  if (parsed.kind != ExportName::Kind::kVersion)
    fail(EINVAL, arguments.name,
         "an incremental file has a frozen version of a volume: name it as VOLUME@VERSION");
  const VolumeInfo volume = store.show_volume(parsed.name);
  const VersionInfo& version = version_of(volume, parsed.version);
  std::string source = fmt::format("{}@{}", volume.name, version.number);
  IncrementInfo info;
  if (!arguments.since.empty()) {
    const VersionInfo& base = version_of(volume, arguments.since);
    if (base.number == version.number)
      fail(EINVAL, arguments.name, "nothing can have changed since the version itself");
    source = fmt::format("{}@{}..{}", volume.name, base.number, version.number);
    info.base = base.identity;
    info.base_size_bytes = base.size_bytes;
  }
  info.version = version.identity;
  info.volume_name = volume.name;
  info.version_name = version.name;
  info.note = version.note;
  info.created_ns = version.created_ns;
  info.size_bytes = version.size_bytes;
  std::unique_ptr<Disk> disk;
  retry_while_busy([&] { disk = store.open_export(source, tool_peer()); });
  return {write_increment(*disk, info, arguments.file, options), info};
}

// --- import

struct VersionImportArguments {
  std::string name, file, base;
};

// What can be known before anything is written: the reasons why the import would fail in the end.
void check_import(Store& store, const VersionImportArguments& arguments,
                  const IncrementInfo& info) {
  const std::string object = "volume " + arguments.name;
  if (info.note.size() > kNoteBytesMax)
    fail(EINVAL, arguments.file,
         "the note of its version has more than {} bytes, which is the most", kNoteBytesMax);
  const std::string base_text = fmt::format("{}@{}", info.base.volume.text(), info.base.number);
  if (!arguments.base.empty() && info.base.is_nil())
    fail(EINVAL, arguments.file,
         "has a whole version, which makes a volume of its own: leave out --base, and give a name "
         "that is new");
  std::optional<VolumeInfo> volume;
  try {
    volume = store.show_volume(arguments.name);
  } catch (const Error& error) {
    if (error.code() != ENOENT || !arguments.base.empty()) throw;
  }
  if (info.base.is_nil()) {
    if (volume) fail(EEXIST, object, "exists already: a whole version makes a new volume");
    return;
  }
  if (arguments.base.empty()) {
    std::string hint = "import that version first, and name it with --base";
    if (volume)
      for (const VersionInfo& version : volume->versions)
        if (version.identity == info.base && !version.is_hidden)
          hint = fmt::format("use --base {}, which is that version", version.number);
    fail(EINVAL, arguments.file, "has only what changed since {} (of {}): {}", base_text,
         info.volume_name, hint);
  }
  version_of(*volume, arguments.base);
  for (const VersionInfo& version : volume->versions)
    if (!info.version_name.empty() && version.name == info.version_name && !version.is_hidden)
      fail(EEXIST, object,
           "has a version '{}' already, as number {}: the one in {} has the same name",
           version.name, version.number, arguments.file);
}

void import_version(const Context& context, const VersionImportArguments& arguments) {
  const auto store = context.open_store();
  const InterruptGuard guard;
  const IncrementReader reader = IncrementReader::open(arguments.file);
  const IncrementInfo& info = reader.info();
  check_import(*store, arguments, info);
  VersionInfo version;
  try {
    {
      Progress progress("verifying " + arguments.file);
      reader.verify([&](uint64_t done, uint64_t total) { progress.update(done, total); },
                    interrupted);
    }
    Progress progress("importing " + arguments.file);
    const Store::ImportedVersion imported = {
        arguments.base, info.base, info.size_bytes, {info.version_name, info.note, info.version}};
    // Nothing in `apply` is ever busy, so it is not begun twice.
    retry_while_busy([&] {
      version = store->import_version(arguments.name, imported, [&](Disk& disk) {
        reader.apply(
            disk, [&](uint64_t done, uint64_t total) { progress.update(done, total); },
            interrupted);
      });
    });
  } catch (const Error& error) {
    if (error.code() != EINTR) throw;
    fail(EINTR, arguments.file, "interrupted: nothing of it was kept");
  }
  context.print(version_json(version),
                [&](const json& value) { return version_title(arguments.name, value) + "\n"; });
}

}  // namespace

void add_volume_transfer_commands(const Command& group, Context& context) {
  add_export_command(
      group, context,
      {"VOLUME", "Write a volume (VOLUME), or one of its versions (VOLUME@VERSION), to a file",
       open_for_export, write_volume_increment});

  auto arguments = std::make_shared<VersionImportArguments>();
  const Command command =
      add_command(group, context, "import", "Make a version, or a volume, from an incremental file",
                  [&context, arguments] { import_version(context, *arguments); });
  command.add_option("NAME", arguments->name, "The volume").required();
  command.add_option("FILE", arguments->file, "The incremental file").required();
  command
      .add_option("--base", arguments->base,
                  "The volume's version that the changes are based on; without it the volume is "
                  "made")
      .type_name("VERSION");
  add_json_option(command, context);
}

}  // namespace tplstore::tool
