#include "dispatch/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "hwy/base.h"
#include "hwy/targets.h"
#include "numbers/compiler.h"

namespace xent::internal {
namespace {

constexpr int kMaxTargets = 16;

struct Compiled {
  int64_t target;  // a bit of Highway's, where a better target has a lower one
  bool available;
  Kernels kernels;
};

struct Registry {
  Compiled targets[kMaxTargets];  // best first
  int count = 0;
  int best = 0;                      // index of the default
  char unknown_max_target[64] = {};  // a copy: the environment may change

  Registry() {
    const int64_t supported = hwy::SupportedTargets();
    const char *const cap_name = std::getenv("XENT_MAX_TARGET");
    const bool has_cap = cap_name != nullptr && cap_name[0] != '\0';
    int64_t cap = 0;
    for (int bit = 0; bit < 63; ++bit) {
      const int64_t target = int64_t{1} << bit;
      const char *const name = hwy::TargetName(target);
      if (has_cap && cap == 0 && std::strcmp(name, cap_name) == 0 && std::strcmp(name, "Unknown") != 0) cap = target;
      const Kernels kernels{name,
                            ArrayKernelsOf(target),
                            RowKernelsOf(target),
                            AcrossKernelsOf(target),
                            GeneralKernelsOf(target),
                            BinaryKernelsOf(target),
                            DivergenceKernelsOf(target),
                            SmallRowsKernelsOf(target)};
      if (kernels.array == nullptr || count == kMaxTargets) continue;
      targets[count++] = {target, (supported & target) != 0, kernels};
    }
    if (has_cap && cap == 0) std::strncpy(unknown_max_target, cap_name, sizeof(unknown_max_target) - 1);
    // The best one allowed; where the cap lies below all of them, the last.
    while (best < count - 1 && !(targets[best].available && targets[best].target >= cap)) ++best;
  }
};

const Registry &GetRegistry() {
  static const Registry registry;
  return registry;
}

std::atomic<const Kernels *> g_active{nullptr};

}  // namespace

const Kernels &ActiveKernels() {
  const Kernels *active = g_active.load(std::memory_order_acquire);
  if (active == nullptr) {
    const Registry &registry = GetRegistry();
    active = &registry.targets[registry.best].kernels;
    g_active.store(active, std::memory_order_release);
  }
  return *active;
}

const char *CompiledTarget(int32_t i) {
  const Registry &registry = GetRegistry();
  return i < 0 || i >= registry.count ? nullptr : registry.targets[i].kernels.name;
}
const char *AvailableTarget(int32_t i) {
  const Registry &registry = GetRegistry();
  for (int k = 0; k < registry.count; ++k) {
    if (registry.targets[k].available && i-- == 0) return registry.targets[k].kernels.name;
  }
  return nullptr;
}
const char *UnknownMaxTarget() {
  const char *const name = GetRegistry().unknown_max_target;
  return name[0] == '\0' ? nullptr : name;
}

const char *HighwayVersion() {
  return XENT_STRINGIFY(HWY_MAJOR) "." XENT_STRINGIFY(HWY_MINOR) "." XENT_STRINGIFY(HWY_PATCH);
}

bool ForceTarget(const char *name) {
  const Registry &registry = GetRegistry();
  const Kernels *forced = name == nullptr ? &registry.targets[registry.best].kernels : nullptr;
  for (int k = 0; name != nullptr && k < registry.count; ++k) {
    const Kernels &kernels = registry.targets[k].kernels;
    if (registry.targets[k].available && std::strcmp(kernels.name, name) == 0) forced = &kernels;
  }
  if (forced != nullptr) g_active.store(forced, std::memory_order_release);
  return forced != nullptr;
}

}  // namespace xent::internal
