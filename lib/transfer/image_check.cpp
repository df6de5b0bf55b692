// Asks qemu-img for its view of the file, our own look at it for what qemu does not say, and
// refuses.
#include "transfer/image_check.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"
#include "base/units.h"
#include "template/manifest.h"
#include "transfer/child_process.h"
#include "transfer/image_file.h"
#include "transfer/qemu_nbd.h"

namespace tplstore {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 12> kFormats = {"raw",       "qcow2", "qcow",  "qed",
                                                       "vmdk",      "vhdx",  "vdi",   "vpc",
                                                       "parallels", "dmg",   "cloop", "bochs"};
bool is_known_format(std::string_view name) {
  return std::ranges::find(kFormats, name) != kFormats.end();
}
// More images than this, each the backing file of the one before, are taken for a circle.
constexpr unsigned kBackingDepthMax = 64;
constexpr size_t kExtentsMax = 1 << 20;
constexpr int kImageDescriptor = 3;  // in qemu-img
constexpr std::string_view kFetchAgain =
    "fetch the image again, or if it is whole after all, rewrite it with 'qemu-img convert'";

// The first line of what a tool said (it has the cause, those behind it the consequences), without
// the tool's name and what it calls the image, and without what could upset a terminal.
std::string first_line(std::string text) {
  text = text.substr(0, text.find('\n'));
  if (text.starts_with("qemu-img: ")) text = text.substr(10);
  constexpr std::string_view kName = "Could not open 'json:";
  if (text.starts_with(kName)) {
    if (const size_t end = text.find("}': "); end != std::string::npos) text = text.substr(end + 4);
  }
  return printable(text.substr(0, 300));
}

// Keeps what a tool prints, but no flood of it.
std::function<void(std::string_view)> kept_in(std::string& output) {
  return [&output](std::string_view text) {
    if (output.size() < (1u << 20)) output += text;
  };
}

json parse_output(const std::string& source, const std::string& text) {
  json parsed = json::parse(text, nullptr, false);
  if (!parsed.is_object()) fail(EIO, source, "qemu-img gave an answer that is not JSON");
  return parsed;
}

std::string text_at(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

uint64_t number_at(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_unsigned() ? found->get<uint64_t>() : 0;
}

bool flag_at(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

// Cuts a JSON array of flat objects into its objects while it arrives.
class ObjectSplitter {
 public:
  template <typename F>
  void feed(std::string_view text, const F& on_object) {
    for (const char c : text) {
      if (!object_.empty() || c == '{') object_ += c;
      if (is_escaped_) {
        is_escaped_ = false;
      } else if (in_string_) {
        is_escaped_ = c == '\\';
        in_string_ = c != '"';
      } else if (c == '"') {
        in_string_ = true;
      } else if (c == '}') {
        on_object(object_);
        object_.clear();
      }
    }
  }

 private:
  std::string object_;
  bool in_string_ = false;
  bool is_escaped_ = false;
};

// Where a disk's data is in the image's file, as `qemu-img map` tells it.
class ExtentList {
 public:
  ExtentList(uint64_t disk_bytes, uint64_t file_bytes)
      : disk_bytes_(disk_bytes), file_bytes_(file_bytes) {}

  void add(const json& extent) {
    const FileExtent part{number_at(extent, "start"), number_at(extent, "length"),
                          number_at(extent, "offset")};
    const bool is_next = part.disk_offset == end_ && part.length <= disk_bytes_ - end_;
    const bool is_zero = flag_at(extent, "zero");
    const bool is_in_file = number_at(extent, "depth") == 0 && flag_at(extent, "data") &&
                            extent.contains("offset") && part.file_offset <= file_bytes_ &&
                            part.length <= file_bytes_ - part.file_offset;
    is_all_ = is_all_ && is_next && (is_zero || (is_in_file && parts_.size() < kExtentsMax));
    if (!is_all_) return;
    end_ += part.length;
    if (!is_zero) parts_.push_back(part);
  }
  // Nothing when some of it is elsewhere or not as it is, or there is too much to tell.
  std::optional<std::vector<FileExtent>> take() {
    if (!is_all_ || end_ != disk_bytes_) return {};
    return std::move(parts_);
  }

 private:
  const uint64_t disk_bytes_;
  const uint64_t file_bytes_;
  std::vector<FileExtent> parts_;
  uint64_t end_ = 0;
  bool is_all_ = true;
};

class Checker {
 public:
  Checker(const ImageFile& file, const ImageCheckOptions& options)
      : source_(file.path()),
        options_(options),
        path_(std::filesystem::absolute(source_).string()),
        file_(file) {}

  ImageFacts run() {
    check_before_qemu();
    const json info = read_info();
    const bool is_found_out = format_.empty();
    format_ = text_at(info, "format");
    check_format();
    if (is_found_out && format_ == "raw") check_is_plain_disk();
    check_references(info);
    if (options_.allow_backing) check_backing_depth(info);
    const uint64_t size_bytes =
        format_ == "raw" ? file_.size_bytes() : number_at(info, "virtual-size");
    if (format_ == "raw" && size_bytes % kSectorBytes != 0)
      fail(EINVAL, source_,
           "is cut short: {} bytes is not a whole number of 512-byte sectors; fetch the image "
           "again, or stretch it with 'truncate -s %512' if its end does not matter",
           size_bytes);
    check_disk_size(source_, size_bytes);
    if (format_ != "raw") {
      if (!has_other_files_) check_host_offsets(size_bytes);
      check_structure();
      check_tail();
    }
    return {path_, format_, size_bytes, std::move(extents_)};
  }

 private:
  [[noreturn]] void refuse_cut(uint64_t needed_bytes) const {
    fail(EINVAL, source_, "is cut short: the file has {} bytes, its {} image needs {}; {}",
         file_.size_bytes(), format_, needed_bytes, kFetchAgain);
  }

  ProcessResult qemu_img(std::vector<std::string> arguments,
                         const std::function<void(std::string_view)>& on_output) const {
    std::vector<int> inherited;
    if (options_.allow_backing) {
      if (!format_.empty()) arguments.insert(arguments.begin() + 1, {"-f", format_});
      // An absolute path is neither an option nor a protocol, whatever characters are in it.
      arguments.push_back(path_);
    } else {
      arguments.push_back(descriptor_image(format_, kImageDescriptor, file_.is_block_device()));
      inherited.push_back(file_.descriptor());
    }
    return run_qemu_img(std::move(arguments), on_output, inherited);
  }

  ProcessResult run_qemu_img(std::vector<std::string> arguments,
                             const std::function<void(std::string_view)>& on_output,
                             const std::vector<int>& inherited) const {
    arguments.insert(arguments.begin(), "qemu-img");
    try {
      return run_process(arguments, kQemuPackage, on_output, options_.interrupted, inherited);
    } catch (const Error& error) {
      if (error.code() != EINTR) throw;
      fail(EINTR, source_, "interrupted");
    }
  }

  void check_before_qemu() {
    format_ = options_.format;
    if (!format_.empty()) check_format();
    if (format_ == "raw") return;
    if (!options_.allow_backing) check_no_reference(file_, format_);
    // A VHD of fixed size has its header at the end, where qemu does not look for it.
    if (format_.empty() && !file_.magic_format() && file_.has_vpc_footer()) format_ = "vpc";
  }

  // Of what no format was said and none was found.
  void check_is_plain_disk() const {
    if (const auto kind = file_.archive_kind())
      fail(EINVAL, source_,
           "is not a disk image but compressed or an archive ({}): unpack it first, or say "
           "--format raw if it is a disk",
           *kind);
    std::string extension = std::filesystem::path(source_).extension().string();
    if (!extension.empty()) extension.erase(0, 1);
    if (extension == "vhd") extension = "vpc";
    if (extension != "raw" && extension != "dmg" && is_known_format(extension))
      fail(EINVAL, source_,
           "is called .{} and is no such image: fetch it again, or say --format raw if it is a "
           "plain disk",
           extension);
  }

  void check_format() const {
    if (!is_known_format(format_))
      fail(EINVAL, source_,
           "images of format '{}' cannot be imported; convert it with 'qemu-img convert'",
           first_line(format_));
  }

  json read_info() const {
    std::string output;
    const auto result = qemu_img({"info", "--output=json"}, kept_in(output));
    if (result.exit_status != 0)
      fail(EINVAL, source_, "qemu-img cannot open it, it is damaged, cut short or in use ({}); {}",
           first_line(result.errors), kFetchAgain);
    return parse_output(source_, output);
  }

  void check_references(const json& info) {
    if (flag_at(info, "encrypted"))
      fail(EINVAL, source_, "is encrypted: decrypt it with 'qemu-img convert' first");
    const json specific = info.value("format-specific", json::object());
    const json data =
        specific.is_object() ? specific.value("data", json::object()) : json::object();
    if (flag_at(data, "corrupt"))
      fail(EINVAL, source_, "is marked as corrupt: repair it with 'qemu-img check -r all'");
    std::string_view reference;
    if (!text_at(info, "backing-filename").empty()) reference = "a backing file";
    if (data.contains("data-file")) {
      reference = "an external data file";
      has_other_files_ = true;
    }
    const std::string own_name = options_.allow_backing ? path_ : descriptor_path(kImageDescriptor);
    if (const auto extents = data.find("extents"); extents != data.end() && extents->is_array()) {
      for (const json& extent : *extents) {
        if (text_at(extent, "filename") == own_name) continue;
        reference = "extents in other files";
        has_other_files_ = true;
      }
    }
    if (options_.allow_backing) return;
    if (!reference.empty()) refuse_reference(file_, reference);
    check_no_reference(file_, format_);
  }

  // qemu follows a chain of backing files to its end, and a circle until it runs out of something.
  void check_backing_depth(json info) const {
    for (unsigned depth = 0; !text_at(info, "backing-filename").empty(); ++depth) {
      if (depth == kBackingDepthMax)
        fail(ELOOP, source_,
             "has more than {} backing files, one behind the other, or they lead in a circle: "
             "merge them with 'qemu-img convert'",
             kBackingDepthMax);
      std::vector<std::string> arguments = {"info", "--output=json"};
      if (const std::string format = text_at(info, "backing-filename-format"); !format.empty())
        arguments.insert(arguments.end(), {"-f", format});
      const std::string name = text_at(info, "full-backing-filename");
      arguments.insert(arguments.end(),
                       {"--", name.empty() ? text_at(info, "backing-filename") : name});
      std::string output;
      const auto result = run_qemu_img(arguments, kept_in(output), {});
      if (result.exit_status != 0)
        fail(EINVAL, source_, "qemu-img cannot open one of its backing files ({})",
             first_line(result.errors));
      info = parse_output(source_, output);
    }
  }

  void check_host_offsets(uint64_t size_bytes) {
    ExtentList extents(size_bytes, file_.size_bytes());
    ObjectSplitter splitter;
    uint64_t needed_bytes = 0;
    const auto result = qemu_img({"map", "--output=json"}, [&](std::string_view text) {
      splitter.feed(text, [&](const std::string& object) {
        const json extent = parse_output(source_, object);
        extents.add(extent);
        if (number_at(extent, "depth") == 0 && flag_at(extent, "data") && extent.contains("offset"))
          needed_bytes =
              std::max(needed_bytes, number_at(extent, "offset") + number_at(extent, "length"));
      });
    });
    if (result.exit_status != 0)
      fail(EINVAL, source_, "qemu-img cannot read its map, it is damaged or cut short ({}); {}",
           first_line(result.errors), kFetchAgain);
    if (needed_bytes > file_.size_bytes()) refuse_cut(needed_bytes);
    extents_ = extents.take();
  }

  void check_structure() const {
    constexpr int kLeaksOnly = 3, kNotSupported = 63;
    std::string output;
    const auto result = qemu_img({"check", "--output=json"}, kept_in(output));
    if (result.exit_status == 0 || result.exit_status == kLeaksOnly ||
        result.exit_status == kNotSupported)
      return;
    const json report = json::parse(output, nullptr, false);
    if (report.is_object() && number_at(report, "corruptions") > 0)
      fail(EINVAL, source_, "is damaged or cut short: qemu-img check finds {} corruptions; {}",
           number_at(report, "corruptions"), kFetchAgain);
    fail(EINVAL, source_, "is damaged or cut short: qemu-img check fails ({}); {}",
         first_line(result.errors), kFetchAgain);
  }

  void check_tail() const {
    constexpr std::array<std::string_view, 5> kWholeSectors = {"vhdx", "vdi", "vmdk", "vpc", "qed"};
    if (std::ranges::find(kWholeSectors, format_) != kWholeSectors.end() &&
        file_.size_bytes() % kSectorBytes != 0)
      refuse_cut(round_up(file_.size_bytes(), kSectorBytes));
    if (format_ == "vpc" && !file_.has_vpc_footer())
      fail(EINVAL, source_, "is cut short: its last sector is not a VHD footer; {}", kFetchAgain);
    std::optional<uint64_t> end = 0;
    if (format_ == "qcow2") end = file_.qcow2_compressed_end();
    if (format_ == "vmdk" && !has_other_files_) end = file_.vmdk_compressed_end();
    if (!end)
      fail(EINVAL, source_, "is cut short: its tables are past the end of the file; {}",
           kFetchAgain);
    if (!has_other_files_ && *end > file_.size_bytes()) refuse_cut(*end);
  }

  const std::string source_;
  const ImageCheckOptions& options_;
  const std::string path_;
  const ImageFile& file_;
  std::string format_;
  bool has_other_files_ = false;
  std::optional<std::vector<FileExtent>> extents_;
};

}  // namespace

void check_disk_size(const std::string& source, uint64_t size_bytes) {
  if (size_bytes == 0) fail(EINVAL, source, "holds a disk of 0 bytes: there is nothing to import");
  if (size_bytes % kSectorBytes != 0)
    fail(EINVAL, source, "its disk of {} bytes is not a whole number of 512-byte sectors",
         size_bytes);
  if (size_bytes > kTemplateBytesMax)
    fail(EFBIG, source, "its disk of {} is larger than a template can be ({})",
         format_size(size_bytes), format_size(kTemplateBytesMax));
}

void refuse_reference(const ImageFile& file, std::string_view what) {
  fail(EINVAL, file.path(),
       "has {}, so it is not the whole image: merge it with 'qemu-img convert', or say "
       "--allow-backing if you trust what it names",
       what);
}

void check_no_reference(const ImageFile& file, std::string_view format) {
  if (format == "raw") return;
  const auto magic = file.magic_format();
  if (format == "vmdk" && magic && *magic != "vmdk")
    fail(EINVAL, file.path(), "is {} and not vmdk: give the right --format, or none", *magic);
  if (const auto reference = file.find_reference(format)) refuse_reference(file, *reference);
}

ImageFacts check_image_file(const ImageFile& file, const ImageCheckOptions& options) {
  return Checker(file, options).run();
}

}  // namespace tplstore
