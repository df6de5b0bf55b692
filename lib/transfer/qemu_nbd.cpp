// A socket in a folder of our own, qemu-nbd with the image's descriptor, and a look at what it
// opened.
#include "transfer/qemu_nbd.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace tplstore {
namespace {

// A folder that nobody else can enter, with a socket in it: gone as soon as we are connected.
class MeetingPlace {
 public:
  MeetingPlace() {
    const char* base = getenv("TMPDIR");
    folder_ = std::string(base != nullptr && *base == '/' ? base : "/tmp") + "/tplstore-XXXXXX";
    if (mkdtemp(folder_.data()) == nullptr) fail_errno(errno, folder_, "cannot make a folder");
    path_ = folder_ + "/s";
  }
  ~MeetingPlace() {
    unlink(path_.c_str());
    rmdir(folder_.c_str());
  }
  MeetingPlace(const MeetingPlace&) = delete;
  MeetingPlace& operator=(const MeetingPlace&) = delete;

  // A connection waits in the listening socket until somebody accepts it.
  void connect(FileDescriptor& listening, FileDescriptor& connection) const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path_.size() >= sizeof address.sun_path) fail(ENAMETOOLONG, path_, "TMPDIR is too long");
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    const auto* where = reinterpret_cast<const sockaddr*>(&address);
    listening.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    connection.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!listening || !connection || bind(listening.get(), where, sizeof address) != 0 ||
        listen(listening.get(), 1) != 0 || ::connect(connection.get(), where, sizeof address) != 0)
      fail_errno(errno, path_, "cannot make a socket");
  }

 private:
  std::string folder_;
  std::string path_;
};

}  // namespace

std::string descriptor_path(int descriptor) { return fmt::format("/proc/self/fd/{}", descriptor); }

std::string descriptor_image(std::string_view format, int descriptor, bool is_block_device) {
  return fmt::format(R"(json:{{{}"backing":null,"file":{{"driver":"{}","filename":"{}"}}}})",
                     format.empty() ? "" : fmt::format(R"("driver":"{}",)", format),
                     is_block_device ? "host_device" : "file", descriptor_path(descriptor));
}

QemuNbd::QemuNbd(std::vector<std::string> arguments, const std::string& image,
                 int image_descriptor) {
  FileDescriptor listening;
  MeetingPlace().connect(listening, connection_);
  arguments.insert(arguments.begin(), "qemu-nbd");
  arguments.push_back(image);
  ChildDescriptors descriptors{.more = {listening.get()}, .is_listening = true};
  static_assert(kImageDescriptor == 4);
  if (image_descriptor >= 0) descriptors.more.push_back(image_descriptor);
  child_ = std::make_unique<ChildProcess>(arguments, kQemuPackage, descriptors);
}

bool QemuNbd::has_other_files(int image_descriptor) const {
  const std::string folder = fmt::format("/proc/{}/fd", child_->pid());
  const FileDescriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat image;
  if (!opened || fstat(image_descriptor, &image) != 0)
    fail_errno(errno, folder, "cannot see what qemu-nbd has opened");
  const int folder_fd = opened.get();
  std::vector<std::string> names;
  if (read_folder(folder_fd, names) != 0)
    fail_errno(errno, folder, "cannot see what qemu-nbd has opened");
  unsigned sockets = 0;
  for (const std::string& name : names) {
    if (name == "0" || name == "1" || name == "2") continue;
    struct stat status;
    if (fstatat(folder_fd, name.c_str(), &status, 0) != 0) {
      if (errno == ENOENT) continue;
      fail_errno(errno, folder, "cannot see what qemu-nbd has opened");
    }
    const bool is_image = status.st_dev == image.st_dev && status.st_ino == image.st_ino;
    if ((S_ISREG(status.st_mode) || S_ISBLK(status.st_mode) || S_ISDIR(status.st_mode)) &&
        !is_image)
      return true;
    if (S_ISSOCK(status.st_mode)) ++sockets;
  }
  return sockets > 2;  // where it listens, and we
}

}  // namespace tplstore
