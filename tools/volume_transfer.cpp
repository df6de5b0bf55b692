// volume export, import: out of a store, and from one store into another.
#include <algorithm>
#include <cerrno>

#include "base/names.h"
#include "base/units.h"
#include "command.h"
#include "control/json_output.h"
#include "export_command.h"
#include "map/version_table.h"
#include "progress.h"
#include "table.h"
#include "transfer/disk_copy.h"
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
  std::unique_ptr<Disk> disk;
  if (arguments.is_since_template()) {
    Store::TemplateChanges changes;
    retry_while_busy([&] {
      changes = store.open_template_changes(volume.name, std::to_string(version.number));
    });
    disk = std::move(changes.disk);
    info.template_name = changes.template_name;
    info.template_content = changes.template_content;
    info.base_size_bytes = changes.template_bytes;
  } else if (!arguments.since.empty()) {
    const VersionInfo& base = version_of(volume, arguments.since);
    if (base.number == version.number)
      fail(EINVAL, arguments.name, "nothing can have changed since the version itself");
    source = fmt::format("{}@{}..{}", volume.name, base.number, version.number);
    info.base = base.identity;
    info.base_size_bytes = base.size_bytes;
    info.base_created_ns = base.created_ns;
  }
  info.version = version.identity;
  info.volume_name = volume.name;
  info.version_name = version.name;
  info.note = version.note;
  info.created_ns = version.created_ns;
  info.size_bytes = version.size_bytes;
  if (!disk) retry_while_busy([&] { disk = store.open_export(source, tool_peer()); });
  return {write_increment(*disk, info, arguments.file, options), info};
}

// --- import

constexpr const char* kRaw = "raw";
constexpr uint64_t kRawPieceBytes = uint64_t{1} << 20;
constexpr uint64_t kZeroUnitBytes = kBlockBytes;

struct ImportArguments {
  std::string name, file, base, format, size, size_max, compression;

  bool unpacks() const { return compression != "none"; }
};

std::string identity_text(const VersionIdentity& identity) {
  return fmt::format("{}@{}", identity.volume.text(), identity.number);
}

void check_size_max(const ImportArguments& arguments, const std::string& file,
                    uint64_t size_bytes) {
  if (arguments.size_max.empty()) return;
  const uint64_t max = parse_size("--max-size", arguments.size_max);
  if (size_bytes > max)
    fail(EFBIG, file, "its disk has {}, and it may have {} at most: allow more with --max-size",
         format_size(size_bytes), format_size(max));
}

std::optional<VolumeInfo> find_volume_info(Store& store, const std::string& name) {
  try {
    return store.show_volume(name);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
    return std::nullopt;
  }
}

std::vector<uint32_t> versions_that_are(const VolumeInfo& volume, const VersionIdentity& identity) {
  std::vector<uint32_t> numbers;
  for (const VersionInfo& version : volume.versions)
    if (version.identity == identity && !version.is_hidden && !version.is_current)
      numbers.push_back(version.number);
  return numbers;
}

// Where else in the store the base is, for people; a volume that cannot be read is passed over.
std::string find_elsewhere(Store& store, const VersionIdentity& base) {
  for (const VolumeInfo& listed : store.list_volumes()) {
    try {
      const std::vector<uint32_t> found = versions_that_are(store.show_volume(listed.name), base);
      if (!found.empty())
        return fmt::format("; {0}@{1} is that version: import it into {0}", listed.name, found[0]);
    } catch (const Error&) {
    }
  }
  return "; import that version first, or name another one with --base";
}

// Stores of which one was copied from the other have versions of the same identities that are not
// the same: those that each has made since.
void check_is_that_base(const VolumeInfo& volume, uint32_t number, const std::string& file,
                        const IncrementInfo& info) {
  const std::string version = std::to_string(number);
  const VersionInfo& base = version_of(volume, version);
  if (info.base_created_ns == 0 || base.created_ns == info.base_created_ns) return;
  fail(
      EINVAL, file,
      "has only what changed since {} (of {}) as of {}, and what volume {} has as that, version "
      "{}, is of {}: one of the two stores was copied, and both went on; say --base {} if you know "
      "that the two are the same",
      identity_text(info.base), info.volume_name, format_time(info.base_created_ns), volume.name,
      number, format_time(base.created_ns), number);
}

// The volume's version that the changes are based on: the one that has the base's identity, which
// it keeps from store to store.
std::string find_base(Store& store, const ImportArguments& arguments,
                      const std::optional<VolumeInfo>& volume, const std::string& file,
                      const IncrementInfo& info) {
  // A second one would be there for nothing, and the next increment's base would not be found.
  if (volume)
    for (const uint32_t number : versions_that_are(*volume, info.version))
      fail(EEXIST, "volume " + volume->name, "has the version in {} already, as number {}", file,
           number);
  const std::vector<uint32_t> found =
      volume ? versions_that_are(*volume, info.base) : std::vector<uint32_t>{};
  if (found.size() == 1) {
    check_is_that_base(*volume, found[0], file, info);
    return std::to_string(found[0]);
  }
  const std::string since = fmt::format("has only what changed since {} (of {})",
                                        identity_text(info.base), info.volume_name);
  if (found.empty())
    fail(ENOENT, file, "{}, and {}{}", since,
         volume ? fmt::format("volume {} has no such version", arguments.name)
                : fmt::format("there is no volume {}", arguments.name),
         find_elsewhere(store, info.base));
  fail(EINVAL, file, "{}, and versions {} of volume {} are that: say with --base which one", since,
       fmt::join(found, " and "), arguments.name);
}

// What can be known before anything is written: the reasons why the import would fail in the end.
// The version that it is based on, or nothing.
std::string check_import(Store& store, const ImportArguments& arguments, const std::string& file,
                         const IncrementInfo& info) {
  const std::string object = "volume " + arguments.name;
  if (info.note.size() > kNoteBytesMax)
    fail(EINVAL, file, "the note of its version has more than {} bytes, which is the most",
         kNoteBytesMax);
  check_size_max(arguments, file, info.size_bytes);
  if (!arguments.base.empty() && info.base.is_nil())
    fail(EINVAL, file,
         "has {}, which makes a volume of its own: leave out --base, and give a name "
         "that is new",
         info.is_since_template() ? "what changed since a template" : "a whole version");
  const std::optional<VolumeInfo> volume = find_volume_info(store, arguments.name);
  if (info.base.is_nil()) {
    if (volume) fail(EEXIST, object, "exists already: a whole version makes a new volume");
    return "";
  }
  std::string base = arguments.base;
  if (base.empty()) base = find_base(store, arguments, volume, file, info);
  if (!volume) fail(ENOENT, object, "is not there; see 'tplstore volume list'");
  version_of(*volume, base);
  for (const VersionInfo& version : volume->versions)
    if (!info.version_name.empty() && version.name == info.version_name && !version.is_hidden)
      fail(EEXIST, object,
           "has a version '{}' already, as number {}: the one in {} has the same name",
           version.name, version.number, file);
  return base;
}

// Says of an interrupted import what has become of it.
void run_import(const std::string& file, const std::function<void()>& work) {
  try {
    // What fills the volume is never busy, so it is not begun twice.
    retry_while_busy(work);
  } catch (const Error& error) {
    if (error.code() != EINTR) throw;
    fail(EINTR, file, "interrupted: nothing of it was kept");
  }
}

void import_version(const Context& context, const ImportArguments& arguments) {
  const auto store = context.open_store();
  const InterruptGuard guard;
  IncrementReader reader = IncrementReader::open(arguments.file, interrupted);
  const std::string& file = reader.name();
  const IncrementInfo& info = reader.info();
  Store::ImportedVersion imported;
  imported.base = check_import(*store, arguments, file, info);
  imported.base_identity = info.base;
  imported.size_bytes = info.size_bytes;
  // What is not a time after 1970 is none.
  imported.version = {info.version_name, info.note, info.version,
                      std::max<int64_t>(info.created_ns, 0)};
  if (info.is_since_template()) {
    imported.template_content = info.template_content;
    imported.template_name = info.template_name;
  }
  VersionInfo version;
  if (reader.can_verify()) {
    Progress progress("verifying " + file);
    run_import(file, [&] {
      reader.verify([&](uint64_t done, uint64_t total) { progress.update(done, total); },
                    interrupted);
    });
  }
  Progress progress("importing " + file);
  run_import(file, [&] {
    version = store->import_version(arguments.name, imported, [&](Disk& disk) {
      reader.apply(
          disk, [&](uint64_t done, uint64_t total) { progress.update(done, total); }, interrupted);
    });
  });
  progress.clear();
  context.print(version_json(version),
                [&](const json& value) { return version_title(arguments.name, value) + "\n"; });
}

// How large the disk is: as the stream says, which is then held to it, or as the user does.
uint64_t raw_size(const ImportArguments& arguments, const ByteReader& image) {
  const uint64_t said = arguments.size.empty() ? 0 : parse_size("--size", arguments.size);
  const uint64_t size = image.size_bytes().value_or(said);
  if (size == 0 && !image.size_bytes())
    fail(EINVAL, image.name(),
         "does not say how large its disk is, nor where it should end: say that with --size");
  if (said != 0 && size != said)
    fail(EINVAL, image.name(), "has {} bytes and not the {} of --size", size, said);
  return size;
}

void copy_image(ByteReader& image, uint64_t size, Disk& disk, Progress& progress) {
  ByteVector buffer(kRawPieceBytes);
  uint64_t done = 0;
  while (true) {
    if (interrupted()) fail(EINTR, image.name(), "interrupted");
    progress.update(done, size);
    const size_t count = image.read(buffer);
    if (count > size - done)
      fail(EINVAL, image.name(), "goes on behind the {} bytes that it should have", size);
    split_piece(done, Bytes(buffer).first(count), kZeroUnitBytes,
                [&](uint64_t offset, Bytes run, bool is_zeroes) {
                  if (!is_zeroes) disk.write(offset, run, false);
                });
    done += count;
    if (count < buffer.size()) break;
  }
  if (done < size)
    fail(EIO, image.name(), "ends after {} bytes, and should have {}: it was cut off", done, size);
}

void import_image(const Context& context, const ImportArguments& arguments) {
  const auto store = context.open_store();
  const InterruptGuard guard;
  ByteReader image(arguments.file, interrupted, arguments.unpacks());
  const uint64_t size_bytes = raw_size(arguments, image);
  check_size_max(arguments, image.name(), size_bytes);
  Progress progress("importing " + image.name());
  json volume;
  run_import(image.name(), [&] {
    const auto fill = [&](Disk& disk) { copy_image(image, size_bytes, disk, progress); };
    volume = volume_json(store->import_volume(arguments.name, size_bytes, fill), false);
  });
  progress.clear();
  context.print(volume, [](const json& value) {
    return fmt::format("{}: {}\n", plain(value["name"]), size(value["size"]));
  });
}

void add_volume_import(const Command& group, Context& context) {
  auto arguments = std::make_shared<ImportArguments>();
  const auto action = [&context, arguments] {
    (arguments->format == kRaw ? import_image : import_version)(context, *arguments);
  };
  const Command command =
      add_command(group, context, "import",
                  "Make a version, or a volume, from what `volume export` has written", action);
  command.on_parsed([&context, arguments, action] {
    const bool is_raw = arguments->format == kRaw;
    if (is_raw && !arguments->base.empty())
      wrong_usage("--base is for incremental files, not for --format raw");
    if (!is_raw && (!arguments->size.empty() || !arguments->compression.empty()))
      wrong_usage("--size and --compress are for --format raw: an incremental file says it itself");
    context.action = action;
  });
  command.add_option("NAME", arguments->name, "The volume").required();
  command.add_option("FILE", arguments->file, "The file to read; - is standard input").required();
  command
      .add_option("--base", arguments->base,
                  "The volume's version that the changes are based on; it is found unless given")
      .type_name("VERSION");
  command.add_option("--format", arguments->format, "increment (the default) or raw")
      .type_name("FORMAT")
      .check(one_of({"increment", kRaw}));
  add_size_option(command, arguments->size, "How large a raw image is, where it comes from a pipe");
  add_size_option(command, arguments->size_max, "Refuse a larger disk", "--max-size");
  command
      .add_option("--compress", arguments->compression,
                  "none: take a raw image for what it is, though it begins like zstd")
      .type_name("METHOD")
      .check(one_of({"none"}));
  add_json_option(command, context);
}

}  // namespace

void add_volume_transfer_commands(const Command& group, Context& context) {
  add_export_command(
      group, context,
      {"VOLUME", "Write a volume (VOLUME), or one of its versions (VOLUME@VERSION), to a file",
       open_for_export, write_volume_increment});
  add_volume_import(group, context);
}

}  // namespace tplstore::tool
