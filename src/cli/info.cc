// `xent info`: machine, targets and versions, as a report of a defect needs them.
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <fstream>
#include <optional>
#include <vector>

#include "commands.h"
#include "error.h"
#include "report.h"

namespace xent_cli {
namespace {

// Returns the first word of a file, empty where there is none.
std::string ReadWord(const std::string &path) {
  std::string word;
  std::ifstream(path) >> word;
  return word;
}

// Returns the processor's name, nothing where the system does not tell it.
std::optional<std::string> ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return std::nullopt;
}

// Returns the operating system, its version and the architecture: "Linux 6.1.0 x86_64".
std::optional<std::string> SystemName() {
  struct utsname system;
  if (uname(&system) != 0) return std::nullopt;
  return std::string(system.sysname) + " " + system.release + " " + system.machine;
}

// Returns the bytes of the data or unified cache of each level 1 to 3 that the first processor sees, where the system
// tells them.
std::array<std::optional<int64_t>, 3> CacheSizes() {
  std::array<std::optional<int64_t>, 3> sizes;
  for (int index = 0; index < 16; ++index) {
    const std::string directory = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
    const std::string level = ReadWord(directory + "/level");
    const std::string size = ReadWord(directory + "/size");  // "48K"
    if (level.size() != 1 || level[0] < '1' || level[0] > '3' || ReadWord(directory + "/type") == "Instruction")
      continue;
    int64_t value = 0;
    const auto [end, error] = std::from_chars(size.data(), size.data() + size.size(), value);
    if (error != std::errc()) continue;
    const char unit = end == size.data() + size.size() ? ' ' : *end;
    sizes[static_cast<size_t>(level[0] - '1')] = value << (unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0);
  }
#if defined(_SC_LEVEL1_DCACHE_SIZE)  // glibc asks the processor itself, which helps where /sys has no caches
  constexpr int kNames[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  for (size_t i = 0; i < sizes.size(); ++i) {
    const long size = sysconf(kNames[i]);
    if (!sizes[i] && size > 0) sizes[i] = size;
  }
#endif
  return sizes;
}

std::vector<std::string> Names(const char *(*name)(int32_t)) {
  std::vector<std::string> names;
  for (int32_t i = 0; name(i) != nullptr; ++i) names.emplace_back(name(i));
  return names;
}

std::string Join(const std::vector<std::string> &names) {
  std::string text;
  for (const std::string &name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

std::string SizeText(const std::optional<int64_t> &size) {
  return size ? std::to_string(*size / 1024) + " KiB" : "unknown";
}

std::string CompilerText() {
#if defined(__clang__)
  return std::string("Clang ") + __clang_version__;
#else
  return std::string("GCC ") + __VERSION__;
#endif
}

}  // namespace

int RunInfo(bool json) {
  const auto caches = CacheSizes();
  const auto available = Names([](int32_t i) { return xent_available_target(i); });
  const auto compiled = Names([](int32_t i) { return xent_compiled_target(i); });
  std::optional<std::string> unknown;
  if (xent_unknown_max_target() != nullptr) unknown = xent_unknown_max_target();
  // Those of xent_dtype, on every target.
  const std::vector<std::string> dtypes = {"float32", "float64", "bfloat16", "float16"};
  const int64_t threads = xent_default_threads();
  const std::optional<std::string> processor = ProcessorName(), system = SystemName();
  if (json) {
    JsonObject report;
    report.Add("version", xent_version());
    report.Add("target", xent_active_target());
    report.Add("targets_available", available);
    report.Add("targets_compiled", compiled);
    report.Add("unknown_max_target", unknown);
    report.Add("dtypes", dtypes);
    report.Add("threads", threads);
    report.Add("processor", processor);
    report.Add("system", system);
    report.Add("l1d_bytes", caches[0]);
    report.Add("l2_bytes", caches[1]);
    report.Add("l3_bytes", caches[2]);
    report.Add("highway", xent_highway_version());
    report.Add("compiler", CompilerText());
    Print(STDOUT_FILENO, report.Line());
    return kExitOk;
  }
  std::string text = TextLine("xent", xent_version()) + TextLine("target", xent_active_target()) +
                     TextLine("available", Join(available)) + TextLine("compiled", Join(compiled));
  if (unknown) text += TextLine("ignored", "XENT_MAX_TARGET=" + *unknown + ", which names no target");
  text +=
      TextLine("dtypes", Join(dtypes)) + TextLine("threads", std::to_string(threads)) +
      TextLine("processor", processor.value_or("unknown")) + TextLine("system", system.value_or("unknown")) +
      TextLine("caches", "L1d " + SizeText(caches[0]) + ", L2 " + SizeText(caches[1]) + ", L3 " + SizeText(caches[2])) +
      TextLine("Highway", xent_highway_version()) + TextLine("compiler", CompilerText());
  Print(STDOUT_FILENO, text);
  return kExitOk;
}

}  // namespace xent_cli
