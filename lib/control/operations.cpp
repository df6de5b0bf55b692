// The table of operations, and the shapes of their answers, which mirror control/json_output.h.
#include "control/operations.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>

#include "base/error.h"
#include "base/names.h"
#include "base/version.h"
#include "control/json_output.h"
#include "control/metrics.h"

namespace tplstore::control {
namespace {

using nlohmann::json;
using Argument = Operation::Argument;
using Kind = Operation::Argument::Kind;

// --- what is answered

const Shape& version_number() {
  static const Shape shape = Shape::number(UINT32_MAX);
  return shape;
}

const Shape& version_shape() {
  static const Shape shape = Shape::object({{"number", version_number()},
                                            {"name", Shape::name().or_null()},
                                            {"note", Shape::text().or_null()},
                                            {"parent", version_number().or_null()},
                                            {"created", Shape::time()},
                                            {"size", Shape::number()},
                                            {"own_bytes", Shape::number()},
                                            {"hidden", Shape::boolean()},
                                            {"current", Shape::boolean()},
                                            {"children", Shape::list_of(version_number())},
                                            {"forks", Shape::list_of(Shape::name())},
                                            {"origin", Shape::text()}});
  return shape;
}

const Shape& versions_shape() {
  static const Shape shape = Shape::list_of(version_shape());
  return shape;
}

const Shape& writer_shape() {
  static const Shape shape = Shape::object({{"host", Shape::text().or_null()},
                                            {"server_pid", Shape::number()},
                                            {"peer", Shape::text().or_null()},
                                            {"epoch", Shape::number(UINT64_MAX)}});
  return shape;
}

const Shape& volume_shape() {
  static const Shape shape = Shape::object({{"name", Shape::name()},
                                            {"uuid", Shape::text().or_null()},
                                            {"size", Shape::number()},
                                            {"template", Shape::text().or_null()},
                                            {"parent", Shape::text().or_null()},
                                            {"current_version", version_number()},
                                            {"attached", Shape::boolean()},
                                            {"writer", writer_shape().or_null()},
                                            {"unique_bytes", Shape::number()},
                                            {"shared_bytes", Shape::number()}});
  return shape;
}

const Shape& volume_with_versions_shape() {
  static const Shape shape = volume_shape().with({{"versions", versions_shape()}});
  return shape;
}

const Shape& changes_shape() {
  static const Shape range = Shape::object(
      {{"offset", Shape::number()}, {"length", Shape::number()}, {"zero", Shape::boolean()}});
  static const Shape shape = Shape::object({{"data_bytes", Shape::number()},
                                            {"zero_bytes", Shape::number()},
                                            {"ranges", Shape::list_of(range)}});
  return shape;
}

const Shape& server_shape() {
  static const Shape shape = Shape::object({{"pid", Shape::number()}, {"version", Shape::text()}});
  return shape;
}

// An object with a number at each of these paths, of one or two keys.
Shape numbers_at(const std::vector<std::string_view>& paths) {
  std::map<std::string, std::vector<std::pair<std::string, Shape>>> parts;
  for (const std::string_view path : paths) {
    const size_t slash = path.find('/', 1);
    auto& part = parts[std::string(path.substr(1, slash - 1))];
    if (slash != std::string_view::npos)
      part.emplace_back(path.substr(slash + 1), Shape::number(UINT64_MAX));
  }
  std::vector<std::pair<std::string, Shape>> members;
  members.reserve(parts.size());
  for (auto& [key, part] : parts)
    members.emplace_back(key,
                         part.empty() ? Shape::number(UINT64_MAX) : Shape::object(std::move(part)));
  return Shape::object(std::move(members));
}

Shape durations_shape() {
  const Shape numbers = Shape::list_of(Shape::number(UINT64_MAX));
  std::vector<std::pair<std::string, Shape>> members = {{"bounds_ns", numbers}};
  for (const DurationMetric& metric : duration_metrics())
    members.emplace_back(
        metric.metric.pointer().back(),
        Shape::object({{"counts", numbers}, {"sum_ns", Shape::number(UINT64_MAX)}}));
  return Shape::object(std::move(members));
}

const Shape& stats_shape() {
  std::vector<std::string_view> of_volume, of_all = {"/map/max_bytes"};
  for (const VolumeMetric& metric : volume_metrics()) {
    of_volume.push_back(metric.metric.path);
    if (is_summed(metric)) of_all.push_back(metric.metric.path);
  }
  static const Shape shape = numbers_at(of_all).with(
      {{"servers", Shape::list_of(server_shape())},
       {"request_durations", durations_shape()},
       {"volumes", Shape::list_of(numbers_at(of_volume).with(
                       {{"name", Shape::name()},
                        {"open", Shape::boolean()},
                        {"space", Shape::object({{"old", Shape::boolean()}})}}))}});
  return shape;
}

const Shape& lock_shape() {
  static const Shape writer = writer_shape().with({{"host_name", Shape::text().or_null()},
                                                   {"host_id", Shape::text()},
                                                   {"boot_id", Shape::text()},
                                                   {"token", Shape::text().or_null()},
                                                   {"since", Shape::time()},
                                                   {"connections", Shape::number()},
                                                   {"wrote", Shape::boolean()}});
  static const Shape loser = Shape::object({{"peer", Shape::text().or_null()},
                                            {"epoch", Shape::number(UINT64_MAX)},
                                            {"writes_lost", Shape::boolean()}});
  static const Shape hand_over = Shape::object(
      {{"to", Shape::text()}, {"standby", Shape::boolean()}, {"until", Shape::time()}});
  static const Shape shape = Shape::object({{"volume", Shape::name()},
                                            {"attached", Shape::boolean()},
                                            {"state", Shape::text()},
                                            {"epoch", Shape::number(UINT64_MAX)},
                                            {"size_bytes", Shape::number()},
                                            {"writer", writer.or_null()},
                                            {"losers", Shape::list_of(loser)},
                                            {"handover", hand_over.or_null()}});
  return shape;
}

const Shape& tier_shape() {
  static const Shape directory =
      Shape::object({{"path", Shape::text()},
                     {"uuid", Shape::text()},
                     {"kind", Shape::text()},
                     {"state", Shape::text()},
                     {"weight", Shape::number()},
                     {"ranges", Shape::list_of(Shape::list_of(Shape::text()))},
                     {"segments", Shape::number()},
                     {"bytes", Shape::number()},
                     {"bytes_out_of_place", Shape::number()},
                     {"reads", Shape::number(UINT64_MAX)},
                     {"read_bytes", Shape::number(UINT64_MAX)},
                     {"fills", Shape::number(UINT64_MAX)},
                     {"fill_bytes", Shape::number(UINT64_MAX)},
                     {"errors", Shape::number(UINT64_MAX)},
                     {"damaged", Shape::number(UINT64_MAX)},
                     {"last_error", Shape::text().or_null()}});
  static const Shape shape = Shape::object({{"directories", Shape::list_of(directory)},
                                            {"generation", Shape::number(UINT64_MAX)},
                                            {"moving", Shape::boolean()},
                                            {"origin_reads", Shape::number(UINT64_MAX)},
                                            {"origin_read_bytes", Shape::number(UINT64_MAX)}});
  return shape;
}

const Shape& warm_shape() {
  static const Shape missing = Shape::object({{"segment", Shape::text()}, {"why", Shape::text()}});
  static const Shape shape = Shape::object({{"filled_segments", Shape::number()},
                                            {"filled_bytes", Shape::number()},
                                            {"missing", Shape::list_of(missing)}});
  return shape;
}

const Shape& boot_window_shape() {
  static const Shape shape = Shape::object({{"volume", Shape::name()},
                                            {"opened", Shape::time()},
                                            {"reason", Shape::text().or_null()},
                                            {"ended", Shape::time().or_null()},
                                            {"blocks", Shape::number()},
                                            {"bytes", Shape::number()},
                                            {"read_bytes", Shape::number()},
                                            {"streamed_bytes", Shape::number()},
                                            {"first_touch_hits", Shape::number()},
                                            {"hits", Shape::number()},
                                            {"misses", Shape::number()},
                                            {"prefetched", Shape::number()},
                                            {"prefetched_unused", Shape::number()}});
  return shape;
}

const Shape& boots_shape() {
  static const Shape profile = Shape::object({{"generation", Shape::number()},
                                              {"boots", Shape::number()},
                                              {"blocks", Shape::number()},
                                              {"bytes", Shape::number()},
                                              {"created", Shape::time()},
                                              {"updated", Shape::time()},
                                              {"own_bytes", Shape::number()}});
  static const Shape pack = Shape::object({{"state", Shape::text()}, {"bytes", Shape::number()}});
  static const Shape boot = Shape::object({{"name", Shape::name()},
                                           {"kind", Shape::text()},
                                           {"profile", profile.or_null()},
                                           {"pack", pack},
                                           {"cached_bytes", Shape::number()},
                                           {"windows", Shape::list_of(boot_window_shape())}});
  static const Shape shape = Shape::object({{"boots", Shape::list_of(boot)}});
  return shape;
}

const Shape& boot_warm_shape() {
  static const Shape shape =
      Shape::object({{"wanted_bytes", Shape::number()}, {"cached_bytes", Shape::number()}});
  return shape;
}

const Shape& left_shape() {
  static const Shape shape = server_shape().with(
      {{"closed_volumes", Shape::number()}, {"unclean_volumes", Shape::list_of(Shape::text())}});
  return shape;
}

const Shape& version_set_shape() {
  static const Shape shape = Shape::list_of(version_shape().with({{"volume", Shape::name()}}));
  return shape;
}

const Shape& nothing_shape() {
  static const Shape shape = Shape::object({});
  return shape;
}

// --- what is asked for

std::string text_of(const json& request, const char* key) {
  const auto found = request.find(key);
  if (found == request.end() || !found->is_string())
    fail(EINVAL, "control request", "it has no \"{}\", which must be a text", key);
  return found->get<std::string>();
}

void check_argument(const json& request, const Argument& argument) {
  const json value = request.value(argument.key, json());
  const auto require = [&](bool is_fit, const char* what) {
    if (!is_fit)
      fail(EINVAL, "control request", "it has no \"{}\", which must be {}", argument.key, what);
  };
  const auto is_text = [](const json& item) { return item.is_string(); };
  switch (argument.kind) {
    case Kind::kText:
      return require(value.is_string(), "a text");
    case Kind::kOptionalText:
      return require(value.is_string() || value.is_null(), "a text");
    case Kind::kTexts:
      return require(value.is_array() && std::all_of(value.begin(), value.end(), is_text),
                     "a list of texts");
    case Kind::kNumber:
      return require(value.is_number_unsigned(), "a number");
  }
}

}  // namespace

struct Operation::Call {
  Store& store;
  const json& request;
  const Progress& progress;
  std::string volume;  // empty when it concerns none

  // What is not there is empty.
  std::string text(const char* key) const {
    const json value = request.value(key, json());
    return value.is_null() ? "" : value.get<std::string>();
  }
  std::vector<std::string> texts(const char* key) const { return request.at(key); }
  uint64_t number(const char* key) const { return request.at(key); }
};

namespace {

// --- what is done

using Call = Operation::Call;

json self() { return {{"pid", ::getpid()}, {"version", std::string(kProgramVersion)}}; }

json stats(const Call& call) {
  json stats = stats_json(call.store.stats());
  stats["servers"].push_back(self());
  return stats;
}

json list_tier(const Call& call) {
  const Tier* tier = call.store.tier();
  return tier_json(tier == nullptr ? TierStatus() : tier->status());
}

json warm(const Call& call) {
  return warm_json(call.store.warm_template(
      call.text("template"), [&](uint64_t done_bytes, uint64_t) { call.progress(done_bytes); }));
}

json show_boots(const Call& call) {
  const std::string name = call.text("name");
  json boots = json::array();
  if (!name.empty()) {
    boots.push_back(boot_json(call.store.show_boot(name)));
  } else {
    for (const BootStatus& status : call.store.show_boots()) boots.push_back(boot_json(status));
  }
  return {{"boots", std::move(boots)}};
}

json warm_boot(const Call& call) {
  return boot_warm_json(call.store.warm_boot(
      call.text("name"), [&](uint64_t done_bytes, uint64_t) { call.progress(done_bytes); },
      [] { return false; }));
}

json forget_boot(const Call& call) {
  call.store.forget_boot(call.text("name"));
  return json::object();
}

json leave(const Call& call) {
  const Left left = call.store.leave();
  json result = self();
  result["closed_volumes"] = left.closed;
  result["unclean_volumes"] = left.unclean;
  return result;
}

json reclaim(const Call& call) {
  call.store.reclaim();
  return self();
}

json reclaim_volume(const Call& call) {
  call.store.reclaim_volume(call.volume);
  return json::object();
}

json fork(const Call& call) {
  return volume_json(call.store.fork_volume(call.text("name"), call.volume, call.text("version"),
                                            call.number("size")),
                     false);
}

json create_version(const Call& call) {
  return version_json(
      call.store.create_version(call.volume, {call.text("name"), call.text("note"), {}}));
}

// At one moment; "volume" is any of them.
json create_versions(const Call& call) {
  const std::vector<std::string> volumes = call.texts("volumes");
  const std::vector<VersionInfo> made =
      call.store.create_versions(volumes, {call.text("name"), call.text("note"), {}});
  json result = json::array();
  for (size_t i = 0; i < made.size(); ++i) {
    result.push_back(version_json(made[i]));
    result.back()["volume"] = volumes[i];
  }
  return result;
}

json hand_over(const Call& call) {
  const std::chrono::seconds duration(std::min(call.number("seconds"), kHandOverSecondsMax));
  return lock_json(call.store.hand_over(call.volume, call.text("to"), duration));
}

json diff(const Call& call) {
  std::vector<ChangedRange> changes;
  call.store.diff_versions(call.volume, call.text("from"), call.text("to"),
                           [&](const ChangedRange& change) { changes.push_back(change); });
  return changes_json(changes);
}

const std::vector<Operation>& operations() {
  constexpr bool kVolume = true, kServer = false;
  static const std::vector<Operation> table = {
      {"ping", kServer, server_shape, [](const Call&) { return self(); }},
      {"stats", kServer, stats_shape, stats},
      // The server ends behind its answer, without a word to those that are connected.
      {"server-stop", kServer, left_shape, leave, {}, Patience::kEndless},
      // This host's, as this server sees it.
      {"tier-list", kServer, tier_shape, list_tier},
      {"template-warm", kServer, warm_shape, warm, {{"template", Kind::kText}}, Patience::kEndless},
      // How a volume or a template boots; without a name, all do.
      {"boot-show", kServer, boots_shape, show_boots, {{"name", Kind::kOptionalText}}},
      {"boot-warm",
       kServer,
       boot_warm_shape,
       warm_boot,
       {{"name", Kind::kText}},
       Patience::kEndless},
      {"boot-forget", kServer, nothing_shape, forget_boot, {{"name", Kind::kText}}},
      {"boot-done", kVolume, boot_window_shape,
       [](const Call& c) { return boot_window_json(c.store.end_boot(c.volume)); }},
      // Gives back the space of versions that are gone, of all volumes.
      {"reclaim", kServer, server_shape, reclaim, {}, Patience::kEndless},
      {"volume-show", kVolume, volume_with_versions_shape,
       [](const Call& c) { return volume_json(c.store.show_volume(c.volume), true); }},
      {"volume-resize",
       kVolume,
       volume_shape,
       [](const Call& c) {
         return volume_json(c.store.resize_volume(c.volume, c.number("size")), false);
       },
       {{"size", Kind::kNumber}}},
      // For so many seconds the VM that has it may come with a second connection.
      {"volume-let-join",
       kVolume,
       nothing_shape,
       [](const Call& c) {
         c.store.let_join(c.volume,
                          std::chrono::seconds(std::min(c.number("seconds"), kJoinSecondsMax)));
         return json::object();
       },
       {{"seconds", Kind::kNumber}}},
      // Makes the volume "name" of "version"; with the size 0 it has the version's.
      {"volume-fork",
       kVolume,
       volume_shape,
       fork,
       {{"version", Kind::kText}, {"name", Kind::kText}, {"size", Kind::kNumber}},
       Patience::kEndless},
      {"volume-flatten",
       kVolume,
       volume_shape,
       [](const Call& c) {
         return volume_json(c.store.flatten_volume(c.volume, c.progress), false);
       },
       {},
       Patience::kEndless},
      {"volume-reclaim", kVolume, nothing_shape, reclaim_volume},
      {"version-list", kVolume, versions_shape,
       [](const Call& c) { return versions_json(c.store.show_volume(c.volume).versions); }},
      {"version-create",
       kVolume,
       version_shape,
       create_version,
       {{"name", Kind::kOptionalText}, {"note", Kind::kOptionalText}}},
      {"version-create-together",
       kVolume,
       version_set_shape,
       create_versions,
       {{"volumes", Kind::kTexts}, {"name", Kind::kOptionalText}, {"note", Kind::kOptionalText}}},
      {"version-rollback",
       kVolume,
       version_shape,
       [](const Call& c) { return version_json(c.store.rollback(c.volume, c.text("version"))); },
       {{"version", Kind::kText}}},
      {"version-rm",
       kVolume,
       versions_shape,
       [](const Call& c) {
         return versions_json(c.store.remove_versions(c.volume, c.texts("versions")));
       },
       {{"versions", Kind::kTexts}}},
      // They can be restored for so many seconds.
      {"version-put-aside",
       kVolume,
       versions_shape,
       [](const Call& c) {
         return versions_json(c.store.put_versions_aside(
             c.volume, c.texts("versions"),
             static_cast<int64_t>(std::min(c.number("seconds"), kKeepSecondsMax))));
       },
       {{"versions", Kind::kTexts}, {"seconds", Kind::kNumber}}},
      {"version-restore",
       kVolume,
       version_shape,
       [](const Call& c) {
         return version_json(c.store.restore_version(c.volume, c.text("version")));
       },
       {{"version", Kind::kText}}},
      {"lock-show", kVolume, lock_shape,
       [](const Call& c) { return lock_json(c.store.show_lock(c.volume)); }},
      // Of the epoch that was shown; answers what was.
      {"lock-break",
       kVolume,
       lock_shape,
       [](const Call& c) { return lock_json(c.store.break_lock(c.volume, c.number("epoch"))); },
       {{"epoch", Kind::kNumber}}},
      // To the VM with this token, if it comes within so many seconds.
      {"volume-handover",
       kVolume,
       lock_shape,
       hand_over,
       {{"to", Kind::kText}, {"seconds", Kind::kNumber}}},
      {"volume-handover-cancel", kVolume, lock_shape,
       [](const Call& c) { return lock_json(c.store.cancel_hand_over(c.volume)); }},
      // From a frozen version to another one, or to current.
      {"version-diff",
       kVolume,
       changes_shape,
       diff,
       {{"from", Kind::kText}, {"to", Kind::kOptionalText}},
       Patience::kEndless},
  };
  return table;
}

// What code that follows parents, or looks for the current version, takes for granted.
void check_history(const std::string& server, const json& versions) {
  const auto refuse = [&](const char* what) {
    fail(EPROTO, server, "its answer makes no sense: {}", what);
  };
  if (versions.empty()) refuse("a volume without versions");
  uint64_t before = 0;
  for (const json& version : versions) {
    const uint64_t number = version["number"];
    if (number <= before) refuse("its versions do not rise");
    if (!version["parent"].is_null() && version["parent"].get<uint64_t>() >= number)
      refuse("a version that starts from a later one");
    const bool is_last = &version == &versions.back();
    if (version["current"] != is_last || (is_last && version["hidden"] == true))
      refuse("its last version is not the current one");
    before = number;
  }
}

}  // namespace

const Operation& operation_of(const json& request) {
  const std::string name = text_of(request, "op");
  for (const Operation& operation : operations())
    if (operation.name == name) return operation;
  fail(EINVAL, "control request", "there is no such operation");
}

std::string volume_of(const json& request) {
  std::string volume = text_of(request, "volume");
  check_name("volume", volume);
  return volume;
}

json perform(Store& store, const json& request, const Operation::Progress& progress) {
  const Operation& operation = operation_of(request);
  const Call call{store, request, progress, operation.concerns_volume ? volume_of(request) : ""};
  for (const Argument& argument : operation.arguments) check_argument(request, argument);
  return operation.perform(call);
}

void check_result(const std::string& server, const json& request, const json& result) {
  const Operation& operation = operation_of(request);
  operation.answer().check(result, server);

  if (operation.name == "version-list") check_history(server, result);
  if (operation.answer == lock_shape && result["volume"] != request.at("volume"))
    fail(EPROTO, server, "its answer makes no sense: it is about another volume");
  if (!result.contains("name") || !operation.name.starts_with("volume-")) return;
  if (result["name"] != request.at(operation.name == "volume-fork" ? "name" : "volume"))
    fail(EPROTO, server, "its answer makes no sense: it is about another volume");
  if (operation.name == "volume-show") check_history(server, result["versions"]);
}

}  // namespace tplstore::control
