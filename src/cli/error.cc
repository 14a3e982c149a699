// Messages of the command line program.
#include "error.h"

#include <system_error>

namespace xent_cli {

Error SystemError(std::string_view action, std::string_view name, int error_number) {
  return Error(std::string(action) + " " + std::string(name) + ": " +
               std::error_code(error_number, std::generic_category()).message());
}

std::string Printable(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string printable;
  printable.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      printable += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      printable += c;
    }
  }
  return printable;
}

}  // namespace xent_cli
