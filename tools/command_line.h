// Commands, their options and arguments: a thin cover over CLI11, whose templates cost every source
// that sees them more time to compile than all the rest of it. Only main.cpp and command_line.cpp
// do.
//
// What is declared here lives as long as the whole command line; a Command and an Option are only
// handles on it. Where `into` is given it must live until the action has run.
//
// Thread safety: the tool has one thread of its own. Errors: wrong usage is an exception that
// main() turns into two lines and exit status 2.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tplstore::tool {

// Says what is wrong with a value; empty when nothing is.
using Check = std::function<std::string(const std::string&)>;

// What these say does not depend on CLI11's release.
Check whole_number_from(uint64_t min, uint64_t max);
Check one_of(std::set<std::string> words);
Check not_empty();  // a shell's unset variable, most of the time

// For what only all options together show.
[[noreturn]] void wrong_usage(const std::string& message);

class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}
  Option required() const;
  Option type_name(const std::string& name) const;  // in the help
  Option check(const Check& check) const;
  Option excludes(const Option& other) const;

 private:
  CLI::Option* option_;
};

class Command {
 public:
  explicit Command(CLI::App* app) : app_(app) {}

  Command add_command(const std::string& name, const std::string& description) const;
  // Of a group: one of its commands must be given.
  void require_command() const;
  // "-s,--store" is an option, "NAME" an argument, of which a list takes all that are left.
  Option add_option(const std::string& names, std::string& into,
                    const std::string& description) const;
  Option add_option(const std::string& names, uint32_t& into, const std::string& description) const;
  Option add_option(const std::string& names, std::vector<std::string>& into,
                    const std::string& description) const;
  Option add_flag(const std::string& names, bool& into, const std::string& description) const;
  // Runs when this command has been found, and all its options.
  void on_parsed(std::function<void()> action) const;
  // Options that it does not know are kept, in their order.
  void allow_extras() const;
  std::vector<std::string> extras() const;
  void footer(const std::string& text) const;

 private:
  CLI::App* app_;
};

}  // namespace tplstore::tool
