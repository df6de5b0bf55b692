// A volume's versions for people. Thread safety: pure function.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tplstore::tool {

std::string versions_text(const nlohmann::json& versions);

}  // namespace tplstore::tool
