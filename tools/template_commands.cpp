// template import, list, show, verify, rm, export.
#include <cerrno>

#include "base/text.h"
#include "base/units.h"
#include "command.h"
#include "control/json_output.h"
#include "export_command.h"
#include "progress.h"
#include "table.h"
#include "template/segment.h"
#include "template/template_catalog.h"
#include "transfer/importer.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

const Columns kTemplateColumns = {{"NAME", Align::kLeft},  {"SIZE", Align::kRight},
                                  {"DATA", Align::kRight}, {"UNIQUE", Align::kRight},
                                  {"STATE", Align::kLeft}, {"CREATED", Align::kLeft}};

std::string templates_text(const json& templates, const ListOptions& options) {
  Table table(kTemplateColumns);
  for (const json& info : templates)
    table.add_row({plain_cell(info["name"]), size_cell(info["size"]), size_cell(info["data_bytes"]),
                   size_cell(info["unique_bytes"]), plain_cell(info["state"]),
                   plain_cell(info["created"])});
  std::string text = table.text(options);
  for (const json& info : templates)
    if (!info["problem"].is_null())
      text += fmt::format("{}: {}\n", plain(info["name"]), plain(info["problem"]));
  return text;
}

std::string template_text(const json& info) {
  std::string text = format_fields({{"name", plain(info["name"])},
                                    {"uuid", plain(info["uuid"])},
                                    {"size", size(info["size"])},
                                    {"data", size(info["data_bytes"])},
                                    {"unique", size(info["unique_bytes"])},
                                    {"segments", plain(info["segments"])},
                                    {"state", plain(info["state"])},
                                    {"created", plain(info["created"])},
                                    {"source", plain(info["source"])},
                                    {"content", plain(info["content_id"])}});
  if (!info["problem"].is_null()) text += fmt::format("{}\n", plain(info["problem"]));
  return text;
}

json damage_json(const SegmentDamage& damage) {
  return {{"segment", damage.segment.hex()},
          {"missing", damage.is_missing},
          {"problem", damage.problem},
          {"blocks", damage.blocks}};
}

void verify(const Context& context, const std::string& name, bool repairs) {
  const auto store = context.open_store(/*with_tier=*/repairs);
  const auto look = [&] {
    Progress progress("verifying " + name);
    return verify_template(store->templates(), name,
                           [&](uint64_t done, uint64_t total) { progress.update(done, total); });
  };
  VerifyReport report = look();
  size_t mended = 0;
  if (repairs && !report.damage.empty()) {
    std::vector<Hash128> segments;
    for (const SegmentDamage& one : report.damage) segments.push_back(one.segment);
    mended = store->repair_template(name, segments);
    if (mended > 0) report = look();
  }
  json damage = json::array();
  for (const SegmentDamage& one : report.damage) damage.push_back(damage_json(one));
  const json result = {
      {"name", name},
      {"sound", report.is_sound()},
      {"segments", report.segments},
      {"blocks", report.blocks},
      {"content_sound", report.damage.empty() ? json(report.has_content_id) : json(nullptr)},
      {"repaired_segments", mended},
      {"damage", damage}};
  context.print(result, [](const json& value) {
    std::string text = fmt::format("{}: {} segments, {} blocks checked\n", plain(value["name"]),
                                   plain(value["segments"]), plain(value["blocks"]));
    if (value["repaired_segments"] != 0)
      text += fmt::format("{} segments were damaged, and are mended\n",
                          plain(value["repaired_segments"]));
    for (const json& one : value["damage"])
      text += fmt::format("segment {}: {}\n", plain(one["segment"]), plain(one["problem"]));
    return text;
  });
  if (!report.damage.empty())
    fail(EIO, name, "{} of its {} segments are damaged{} import it again under another name",
         report.damage.size(), report.segments,
         repairs ? ", and this host's tier has no sound copies of them:"
                 : "; if this host's tier has copies, --repair mends it from those; else");
  if (!report.has_content_id)
    fail(EIO, name,
         "its segments are sound, but together they are not the disk that was imported: import it "
         "again under another name");
}

struct TemplateImportArguments {
  std::string name;
  std::string source;
  std::string size_max;
  bool is_eager = false;
  ImportOptions options;
};

void import_template(const Context& context, const TemplateImportArguments& arguments) {
  const auto store = context.open_store();
  Progress progress("importing " + arguments.name);
  const InterruptGuard guard;
  ImportOptions options = arguments.options;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.interrupted = interrupted;
  if (!arguments.size_max.empty())
    options.size_bytes_max = parse_size("--max-size", arguments.size_max);
  ImportResult imported;
  try {
    imported = import_template(store->templates(), arguments.name, arguments.source, options);
  } catch (const Error&) {
    // A terminal sends its SIGINT to qemu's programs too, so anything may have failed.
    if (!interrupted()) throw;
    fail(EINTR, arguments.name,
         "interrupted: nothing is lost, the same import continues; `tplstore template rm {}` "
         "gives it up",
         arguments.name);
  }
  progress.clear();
  json result = template_json(imported.info);
  result["stored_bytes"] = imported.stored_bytes;
  result["referenced_bytes"] = imported.referenced_bytes;
  result["zero_bytes"] = imported.zero_bytes;
  result["unreadable_segments"] = imported.unreadable_segments;
  context.print(result, [](const json& value) {
    return fmt::format("{}: {}, of which {} stored, {} shared, {} zeroes\n", plain(value["name"]),
                       size(value["size"]), size(value["stored_bytes"]),
                       size(value["referenced_bytes"]), size(value["zero_bytes"]));
  });
  if (imported.unreadable_segments > 0)
    print_error(
        fmt::format("tplstore: {}: {} segments of the store could not be read for comparison; "
                    "`tplstore template verify` tells which\n",
                    arguments.name, imported.unreadable_segments));
  if (arguments.is_eager) check_warmed(arguments.name, warm(context, arguments.name));
}

void add_import(const Command& group, Context& context) {
  auto arguments = std::make_shared<TemplateImportArguments>();
  const Command command =
      add_command(group, context, "import", "Make a template from an image",
                  [&context, arguments] { import_template(context, *arguments); });
  command.add_option("NAME", arguments->name, "What to call it").required();
  command
      .add_option("SOURCE", arguments->source,
                  "An image file of any format that qemu knows, or an NBD URI")
      .required();
  add_size_option(command, arguments->size_max, "Refuse a disk that is larger than this",
                  "--max-size");
  command.add_flag("--allow-backing", arguments->options.allow_backing,
                   "Read an image that refers to other files, through them");
  command
      .add_option("--format", arguments->options.format,
                  "The file's format (raw, qcow2, vmdk, …), which is found out otherwise")
      .type_name("FORMAT");
  command.add_flag("--eager", arguments->is_eager, "Copy it to this host's tier at once, too");
  add_json_option(command, context);
}

void move_origin(const Context& context, const std::string& location) {
  const auto store = context.open_store();
  Progress progress("moving segments");
  const InterruptGuard guard;
  // In whole segments of the largest size, which most are.
  const OriginMove moved = store->move_origin(
      location,
      [&](uint64_t done, uint64_t all) {
        progress.update(done * kSegmentBytesMax, all * kSegmentBytesMax);
      },
      interrupted);
  progress.clear();
  fmt::print("{}: {} segments, {} copied\n", printable(location), moved.segments,
             format_size(moved.copied_bytes));
  if (!moved.left.empty())
    print_error(fmt::format(
        "tplstore: {}: cannot be reached, so the segments stay there too; 'tplstore gc' removes "
        "them when it is there again\n",
        moved.left));
}

}  // namespace

void add_template_commands(const Command& app, Context& context) {
  const Command group = add_group(app, context, "template", "Golden images");
  add_import(group, context);

  auto with_unfinished = std::make_shared<bool>(false);
  const Command list =
      add_command(group, context, "list", "List the templates", [&context, with_unfinished] {
        const auto store = context.open_store();
        json templates = json::array();
        for (const TemplateInfo& info : list_templates(store->backend()))
          if (*with_unfinished || (info.state != "importing" && info.state != "failed"))
            templates.push_back(template_json(info));
        context.print(templates,
                      [&](const json& value) { return templates_text(value, context.list); });
      });
  list.add_flag("--all", *with_unfinished, "Unfinished imports too");
  add_list_options(list, context, kTemplateColumns);

  auto shown = std::make_shared<std::string>();
  const Command show = add_command(group, context, "show", "Show a template", [&context, shown] {
    const auto store = context.open_store();
    context.print(template_json(show_template(store->backend(), *shown)), template_text);
  });
  show.add_option("NAME", *shown, "The template").required();
  add_json_option(show, context);

  auto verified = std::make_shared<std::string>();
  auto repairs = std::make_shared<bool>(false);
  const Command check =
      add_command(group, context, "verify", "Compare all of a template's blocks with their hashes",
                  [&context, verified, repairs] { verify(context, *verified, *repairs); });
  check.add_option("NAME", *verified, "The template").required();
  check.add_flag("--repair", *repairs, "Mend what is damaged from sound copies in the tier");
  add_json_option(check, context);

  add_warm_command(group, context);

  auto removed = std::make_shared<std::string>();
  const Command remove = add_command(
      group, context, "rm", "Remove a template, or an unfinished import", [&context, removed] {
        const auto store = context.open_store();
        remove_template(store->templates(), *removed,
                        [&] { return store->template_users()[*removed]; });
        store->remove_boot_orphans();
      });
  remove.add_option("NAME", *removed, "The template").required();

  auto location = std::make_shared<std::string>();
  const Command move =
      add_command(group, context, "move-origin", "Move the data of all templates to a directory",
                  [&context, location] { move_origin(context, *location); });
  move.add_option("DIR", *location, "The directory; the store's own: back into the store")
      .required()
      .check(not_empty());

  add_export_command(group, context,
                     {"NAME", "Write a template to an image file",
                      [](Store& store, const std::string& name) {
                        return store.open_export("template/" + name, tool_peer());
                      },
                      nullptr});
}

}  // namespace tplstore::tool
