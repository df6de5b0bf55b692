// A qemu-nbd of our own, that serves one image to us alone and ends with us.
//
// The image is handed over as an open descriptor, never as a name: what is served is the file that
// was looked at, whatever has its name meanwhile.
//
// Thread safety: as ChildProcess.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/files.h"
#include "transfer/child_process.h"

namespace tplstore {

inline constexpr std::string_view kQemuPackage = "qemu-utils";

// What qemu's tools call the file that they have as a descriptor: with no backing file, whatever
// the image says. Without a format, they find it out.
std::string descriptor_image(std::string_view format, int descriptor, bool is_block_device);
// Its plain name, which they give it in what they say.
std::string descriptor_path(int descriptor);

class QemuNbd {
 public:
  // The descriptor that `image` is to have in the child.
  static constexpr int kImageDescriptor = 4;

  // `arguments` come between the program's name and `image`, which is what it is to open.
  // `image_descriptor`: becomes kImageDescriptor; -1 for none.
  QemuNbd(std::vector<std::string> arguments, const std::string& image, int image_descriptor);

  // The one connection to it; taken once. It answers when it has opened the image.
  FileDescriptor take_connection() { return std::move(connection_); }

  // Once it has answered: whether it has anything open but the image and our connection. Images
  // can be changed while qemu opens them. EIO when that cannot be found out.
  bool has_other_files(int image_descriptor) const;

  // Its end, after the connection's.
  int wait() { return child_->wait(); }

 private:
  FileDescriptor connection_;
  std::unique_ptr<ChildProcess> child_;
};

}  // namespace tplstore
