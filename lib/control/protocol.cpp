// The shapes of all requests and answers, put together from those of their parts.
#include "control/protocol.h"

#include <cerrno>
#include <map>

#include "base/error.h"
#include "control/json_shape.h"

namespace tplstore::control {
namespace {

using nlohmann::json;

constexpr uint64_t kErrnoMax = 4095;  // as the kernel has it

const Shape& version_number() {
  static const Shape shape = Shape::number(UINT32_MAX);
  return shape;
}

// The shapes of control/json_output.h's objects.
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

const Shape& volume_shape() {
  static const Shape writer = Shape::object({{"host", Shape::text().or_null()},
                                             {"server_pid", Shape::number()},
                                             {"peer", Shape::text().or_null()},
                                             {"epoch", Shape::number(UINT64_MAX)}});
  static const Shape shape = Shape::object({{"name", Shape::name()},
                                            {"uuid", Shape::text().or_null()},
                                            {"size", Shape::number()},
                                            {"template", Shape::text().or_null()},
                                            {"parent", Shape::text().or_null()},
                                            {"current_version", version_number()},
                                            {"attached", Shape::boolean()},
                                            {"writer", writer.or_null()},
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

Shape counters(std::initializer_list<const char*> names) {
  std::vector<std::pair<std::string, Shape>> members;
  for (const char* name : names) members.emplace_back(name, Shape::number(UINT64_MAX));
  return Shape::object(std::move(members));
}

const Shape& stats_shape() {
  static const Shape volume =
      counters({"current_version", "size", "connections", "errors", "first_writes"})
          .with({{"name", Shape::name()},
                 {"requests", counters({"reads", "writes", "trims", "zeroes", "flushes"})},
                 {"bytes", counters({"reads", "writes", "trims", "zeroes"})},
                 {"template_reads", counters({"reads", "bytes"})},
                 {"data_file_reads", counters({"reads", "bytes"})},
                 {"map", counters({"bytes", "loads", "evictions"})},
                 {"log", counters({"bytes", "garbage_bytes", "generation", "commits", "checkpoints",
                                   "compactions"})}});
  static const Shape shape = Shape::object(
      {{"servers", Shape::list_of(server_shape())},
       {"volumes", Shape::list_of(volume)},
       {"map", counters({"bytes", "max_bytes", "loads", "evictions"})},
       {"log", counters({"bytes", "garbage_bytes", "commits", "checkpoints", "compactions"})}});
  return shape;
}

const std::map<std::string_view, const Shape& (*)()>& shapes_of_results() {
  static const Shape nothing = Shape::object({});
  static const std::map<std::string_view, const Shape& (*)()> shapes = {
      {"ping", server_shape},
      {"stats", stats_shape},
      {"reclaim", server_shape},
      {"volume-show", volume_with_versions_shape},
      {"volume-resize", volume_shape},
      {"volume-fork", volume_shape},
      {"volume-flatten", volume_shape},
      {"volume-reclaim", []() -> const Shape& { return nothing; }},
      {"version-list", versions_shape},
      {"version-create", version_shape},
      {"version-rollback", version_shape},
      {"version-rm", versions_shape},
      {"version-diff", changes_shape},
  };
  return shapes;
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

json parse_answer(const std::string& server, std::string_view line) {
  static const Shape begin = Shape::object({{"ok", Shape::boolean()}});
  static const Shape error = Shape::object({{"errno", Shape::number(kErrnoMax)},
                                            {"code", Shape::text()},
                                            {"object", Shape::text()},
                                            {"error", Shape::text()}});
  json answer = parse_json_from(server, line);
  begin.check(answer, server);
  const auto protocol = answer.find("protocol");
  if (protocol == answer.end() || *protocol != kProtocol)
    fail(EPROTO, server,
         "it is of another release and speaks another protocol ({} instead of {}): use the "
         "tplstore that belongs to it, or restart it",
         protocol != answer.end() && protocol->is_number_unsigned() ? protocol->dump() : "none",
         kProtocol);
  if (answer["ok"] == true) {
    if (!answer.contains("result")) fail(EPROTO, server, "its answer makes no sense: no result");
    return answer;
  }
  error.check(answer, server);
  if (answer["errno"] == 0 || answer["error"] == "")
    fail(EPROTO, server, "its answer makes no sense: it failed, without an error");
  return answer;
}

void check_result(const std::string& server, const json& request, const json& result) {
  const std::string op = request.at("op");
  const auto shape = shapes_of_results().find(op);
  ensure(shape != shapes_of_results().end(), "only what has an answer is asked");
  shape->second().check(result, server);

  if (op == "version-list") check_history(server, result);
  if (!result.contains("name") || !op.starts_with("volume-")) return;
  if (result["name"] != request.at(op == "volume-fork" ? "name" : "volume"))
    fail(EPROTO, server, "its answer makes no sense: it is about another volume");
  if (op == "volume-show") check_history(server, result["versions"]);
}

}  // namespace tplstore::control
