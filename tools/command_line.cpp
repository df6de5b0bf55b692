// Hands everything on to CLI11.
#include "command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>

namespace tplstore::tool {

Check whole_number_from(uint64_t min, uint64_t max) {
  return [min, max](const std::string& text) -> std::string {
    uint64_t number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    if (error == std::errc() && stop == end && number >= min && number <= max) return {};
    return fmt::format("'{}' is not a whole number from {} to {}", text, min, max);
  };
}

Check one_of(std::set<std::string> words) {
  return [words = std::move(words)](const std::string& text) -> std::string {
    if (words.contains(text)) return {};
    std::string list;
    for (const std::string& word : words) list += (list.empty() ? "" : ",") + word;
    return fmt::format("{} not in {{{}}}", text, list);
  };
}

Check not_empty() {
  return [](const std::string& text) -> std::string {
    return text.empty() ? "a name is needed, and this is an empty text" : "";
  };
}

void wrong_usage(const std::string& message) {
  throw CLI::ParseError(message, CLI::ExitCodes::ValidationError);
}

Option Option::required() const {
  option_->required();
  return *this;
}

Option Option::type_name(const std::string& name) const {
  option_->type_name(name);
  return *this;
}

Option Option::check(const Check& check) const {
  option_->check(CLI::Validator(check, ""));
  return *this;
}

Option Option::excludes(const Option& other) const {
  option_->excludes(other.option_);
  return *this;
}

Command Command::add_command(const std::string& name, const std::string& description) const {
  return Command(app_->add_subcommand(name, description));
}

void Command::require_command() const { app_->require_subcommand(1); }

Option Command::add_option(const std::string& names, std::string& into,
                           const std::string& description) const {
  return Option(app_->add_option(names, into, description));
}

Option Command::add_option(const std::string& names, uint32_t& into,
                           const std::string& description) const {
  return Option(app_->add_option(names, into, description));
}

Option Command::add_option(const std::string& names, std::vector<std::string>& into,
                           const std::string& description) const {
  return Option(app_->add_option(names, into, description));
}

// It may be given at several places: each only ever sets it.
Option Command::add_flag(const std::string& names, bool& into,
                         const std::string& description) const {
  return Option(app_->add_flag_callback(
      names, [&into] { into = true; }, description));
}

void Command::on_parsed(std::function<void()> action) const { app_->callback(std::move(action)); }

void Command::allow_extras() const { app_->allow_extras(); }

std::vector<std::string> Command::extras() const { return app_->remaining(); }

void Command::footer(const std::string& text) const { app_->footer(text); }

}  // namespace tplstore::tool
