// check: what a store is found to be, for people and as JSON.
#include <cerrno>

#include "backend/open_backend.h"
#include "base/text.h"
#include "base/units.h"
#include "command.h"
#include "progress.h"
#include "store/store_check.h"
#include "table.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

struct CheckArguments {
  std::string volume;
  bool reads_data = false;
  bool repairs = false;
};

json finding_json(const Finding& finding) {
  json lost = json::array();
  for (const LostRange& range : finding.lost)
    lost.push_back({{"disk", range.disk}, {"offset", range.offset}, {"length", range.length}});
  return {{"subject", finding.subject},
          {"object", finding.object.empty() ? json(nullptr) : json(finding.object)},
          {"problem", finding.problem},
          {"can_repair", finding.repair != Repair::kNone},
          {"repaired", finding.is_repaired},
          {"lost", lost},
          {"lost_more", finding.lost_more}};
}

json report_json(const CheckReport& report) {
  json faults = json::array(), notes = json::array();
  uint64_t repaired = 0;
  for (const Finding& finding : report.findings.all()) {
    if (finding.is_fault) {
      faults.push_back(finding_json(finding));
      repaired += finding.is_repaired ? 1 : 0;
    } else {
      notes.push_back({{"subject", finding.subject},
                       {"object", finding.object.empty() ? json(nullptr) : json(finding.object)},
                       {"text", finding.problem}});
    }
  }
  return {{"volumes", report.volumes},  {"templates", report.templates},
          {"faults", faults},           {"fault_count", report.findings.faults()},
          {"repaired_count", repaired}, {"notes", notes}};
}

std::string line_of(const json& finding, const char* text) {
  std::string line = plain(finding["subject"]);
  if (!finding["object"].is_null()) line += ": " + plain(finding["object"]);
  return line + ": " + plain(finding[text]);
}

std::string lost_text(const json& finding) {
  std::string text;
  for (const json& range : finding["lost"]) {
    const uint64_t offset = range["offset"], length = range["length"];
    text += length == 0 ? fmt::format("    lost: {}\n", plain(range["disk"]))
                        : fmt::format("    lost: {}, bytes {} to {} ({})\n", plain(range["disk"]),
                                      offset, offset + length - 1, format_size(length));
  }
  if (finding["lost_more"] != 0)
    text += fmt::format("    lost: {} ranges more\n", plain(finding["lost_more"]));
  return text;
}

std::string count_text(uint64_t count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

std::string report_text(const json& report) {
  std::string text;
  for (const json& finding : report["faults"]) {
    const bool can_repair = finding["can_repair"], is_repaired = finding["repaired"];
    text += fmt::format("{}{}\n", line_of(finding, "problem"),
                        is_repaired  ? " [repaired]"
                        : can_repair ? " [--repair]"
                                     : "");
    text += lost_text(finding);
  }
  for (const json& note : report["notes"]) text += fmt::format("note: {}\n", line_of(note, "text"));
  text += fmt::format("{} and {} checked", count_text(report["volumes"], "volume"),
                      count_text(report["templates"], "template"));
  if (report["fault_count"] == 0) return text + ": no faults\n";
  return text + fmt::format(": {}, {} repaired\n", count_text(report["fault_count"], "fault"),
                            plain(report["repaired_count"]));
}

void check(const Context& context, const CheckArguments& arguments) {
  CheckOptions options;
  options.volume = arguments.volume;
  options.reads_data = arguments.reads_data;
  // One bar for each template.
  std::string shown;
  std::unique_ptr<Progress> progress;
  options.progress = [&](const std::string& name, uint64_t done, uint64_t total) {
    if (!progress || shown != name) {
      progress.reset();
      progress = std::make_unique<Progress>("reading template " + name);
      shown = name;
    }
    progress->update(done, total);
  };
  const auto backend = open_backend(context.store_directory, {});
  const OpenLocation open_location = [](const std::string& location) {
    return open_backend(location, {});
  };
  const auto look = [&] {
    CheckReport report = check_store(*backend, open_location, options);
    progress.reset();
    return report;
  };
  CheckReport report = look();
  uint64_t faults = report.findings.faults();
  if (arguments.repairs && faults > 0) {
    context.open_store(/*with_tier=*/true)->repair(report.findings);
    const CheckReport after = look();
    faults = after.findings.faults();
    note_repaired(report, after);
  }
  const json result = report_json(report);
  context.print(result, report_text);
  if (faults > 0)
    fail(EIO, context.store_directory, "has {} fault{}{}", faults, faults == 1 ? "" : "s",
         arguments.repairs ? " that could not be repaired" : "");
}

}  // namespace

void add_check_command(const Command& app, Context& context) {
  auto arguments = std::make_shared<CheckArguments>();
  const Command command =
      add_command(app, context, "check", "Look whether all of a store is as it should be",
                  [&context, arguments] { check(context, *arguments); });
  command.add_option("VOLUME", arguments->volume, "This volume only");
  command.add_flag("--data", arguments->reads_data,
                   "Compare all blocks of templates with their hashes, too");
  command.add_flag("--repair", arguments->repairs, "Mend what can be mended without guessing");
  add_json_option(command, context);
}

}  // namespace tplstore::tool
