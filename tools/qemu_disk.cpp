// Goes by what query-block and query-named-block-nodes tell.
#include "qemu_disk.h"

#include <algorithm>
#include <cerrno>

#include "base/bytes.h"
#include "base/error.h"
#include "control/json_shape.h"

namespace tplstore::tool {
namespace {

using nlohmann::json;

// As README recommends it; what the connection before had, qemu does not tell.
constexpr int kReconnectDelay_s = 60;
// Nodes upon nodes that a name may tell of; no guest has as many.
constexpr ptrdiff_t kLayersMax = 32;

std::string text(const json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

json member(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? json(nullptr) : *found;
}

// qemu's own, which cannot be named in a command that changes the node.
bool is_generated(const std::string& node) { return node.empty() || node[0] == '#'; }

std::string volume_in(const json& connection) {
  const std::string name = text(connection, "export");
  return name.substr(0, name.find(';'));
}

// {"a.b": 1} as {"a": {"b": 1}}; without what is too deep for any use.
json nested(const json& flat) {
  if (!flat.is_object()) return nullptr;
  json result = json::object();
  for (const auto& [key, value] : flat.items()) {
    if (std::ranges::count(key, '.') > kLayersMax) continue;
    json* at = &result;
    size_t begin = 0;
    for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', begin)) {
      json& next = (*at)[key.substr(begin, dot - begin)];
      if (!next.is_object()) next = json::object();
      at = &next;
      begin = dot + 1;
    }
    (*at)[key.substr(begin)] = value.is_object() ? nested(value) : value;
  }
  return result;
}

json parse_nbd_json(const std::string& content) {
  json node;
  try {
    node = nested(parse_json_from("qemu", content));
  } catch (const Error&) {
    return nullptr;
  }
  while (text(node, "driver") != "nbd") {
    json below = member(node, "file");
    if (!below.is_object()) return nullptr;
    node = std::move(below);
  }
  json result = {{"driver", "nbd"}, {"export", text(node, "export")}};
  result["server"] = member(node, "server");
  if (!result["server"].is_object()) {
    const std::string path = text(node, "path"), host = text(node, "host");
    if (path.empty() && host.empty()) return nullptr;
    if (!path.empty())
      result["server"] = {{"type", "unix"}, {"path", path}};
    else
      result["server"] = {{"type", "inet"}, {"host", host}, {"port", text(node, "port")}};
  }
  for (const char* key : {"tls-creds", "tls-hostname"})
    if (!text(node, key).empty()) result[key] = text(node, key);
  return result;
}

}  // namespace

json parse_nbd_node(const std::string& file_name) {
  constexpr std::string_view kJson = "json:", kUnix = "nbd+unix://", kTcp = "nbd://";
  if (file_name.starts_with(kJson)) return parse_nbd_json(file_name.substr(kJson.size()));
  if (file_name.starts_with(kUnix)) {
    const std::string rest = file_name.substr(kUnix.size());
    const size_t socket = rest.find("?socket=");
    if (socket == std::string::npos) return nullptr;
    std::string name = rest.substr(0, socket);
    if (name.starts_with('/')) name.erase(0, 1);
    return {{"driver", "nbd"},
            {"export", name},
            {"server", {{"type", "unix"}, {"path", rest.substr(socket + 8)}}}};
  }
  if (!file_name.starts_with(kTcp)) return nullptr;
  const std::string rest = file_name.substr(kTcp.size());
  const size_t slash = rest.find('/');
  const std::string place = rest.substr(0, slash);
  const size_t colon = place.rfind(':');
  if (colon == std::string::npos) return nullptr;
  std::string host = place.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  return {{"driver", "nbd"},
          {"export", slash == std::string::npos ? "" : rest.substr(slash + 1)},
          {"server", {{"type", "inet"}, {"host", host}, {"port", place.substr(colon + 1)}}}};
}

QemuDisk::QemuDisk(Qmp& qmp, const std::string& volume) : qmp_(qmp), volume_(volume) {
  const std::string object = "volume " + volume;
  const auto is_it = [&](const json& node) {
    return volume_in(parse_nbd_node(text(member(node, "image"), "filename"))) == volume;
  };
  size_t devices = 0;
  std::string top;
  for (const json& device : qmp_.run("query-block")) {
    const json inserted = member(device, "inserted");
    if (!is_it(inserted)) continue;
    ++devices;
    top = text(inserted, "node-name");
    device_ = text(device, "qdev");
    const json size = member(member(inserted, "image"), "virtual-size");
    if (size.is_number_unsigned()) size_bytes_ = size;
  }
  if (devices == 0)
    fail(ENOENT, object, "the qemu that was named has no disk which is that volume");
  size_t connections = 0;
  for (const json& node : qmp_.run("query-named-block-nodes", {{"flat", true}})) {
    if (!is_it(node)) continue;
    const std::string name = text(node, "node-name"), driver = text(node, "drv");
    if (name == top && driver != "raw" && driver != "nbd") device_.clear();
    if (driver == "raw" && !is_generated(name)) raw_ = name;
    if (driver == "raw" || cache_.is_null()) {
      cache_ = {{"direct", member(member(node, "cache"), "direct") == json(true)},
                {"no-flush", member(member(node, "cache"), "no-flush") == json(true)}};
      detect_zeroes_ = text(node, "detect_zeroes");
    }
    if (driver != "nbd") continue;
    ++connections;
    old_ = name;
    connect_ = parse_nbd_node(text(member(node, "image"), "filename"));
  }
  if (devices > 1 || connections != 1)
    fail(EINVAL, object,
         "that qemu has it {} times, in a way that cannot be changed under the guest",
         std::max(devices, connections));
  if (raw_.empty() && device_.empty())
    fail(EINVAL, object,
         "what that qemu has over it has no name; give its node of the driver raw a node-name");
}

bool QemuDisk::has_node(const std::string& name) {
  const json nodes = qmp_.run("query-named-block-nodes", {{"flat", true}});
  return std::ranges::any_of(nodes,
                             [&](const json& node) { return text(node, "node-name") == name; });
}

void QemuDisk::remove_node(const std::string& name) noexcept {
  try {
    if (has_node(name)) qmp_.run("blockdev-del", {{"node-name", name}});
  } catch (const std::exception&) {
    // It is in nobody's way.
  }
}

void QemuDisk::replace(const std::string& connection, uint64_t size_bytes) {
  json raw = {{"driver", "raw"}, {"file", connection}, {"discard", "unmap"}, {"cache", cache_}};
  if (!detect_zeroes_.empty()) raw["detect-zeroes"] = detect_zeroes_;
  if (!raw_.empty()) {
    raw["node-name"] = raw_;
    qmp_.run("blockdev-reopen", {{"options", json::array({raw})}});
  } else {
    raw["node-name"] = raw_ = connection + "-raw";
    qmp_.run("blockdev-add", raw);
    try {
      qmp_.run("qom-set", {{"path", device_}, {"property", "drive"}, {"value", raw_}});
    } catch (const Error&) {
      remove_node(raw_);
      throw;
    }
  }
  qmp_.run("block_resize", {{"node-name", raw_}, {"size", size_bytes}});
}

void QemuDisk::grow(uint64_t size_bytes) {
  const std::string connection = "tplstore-" + random_uuid().text().substr(0, 8);
  json add = connect_;
  add["node-name"] = connection;
  add["reconnect-delay"] = kReconnectDelay_s;
  add["discard"] = "unmap";
  add["cache"] = cache_;
  qmp_.run("blockdev-add", add);
  try {
    replace(connection, size_bytes);
  } catch (const Error&) {
    remove_node(connection);  // where it is not in use
    throw;
  }
  if (!is_generated(old_)) remove_node(old_);
}

}  // namespace tplstore::tool
