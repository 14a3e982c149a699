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

// In Highway a better target has a lower bit.
struct Registry {
  Kernels compiled[kMaxTargets];
  bool available[kMaxTargets];
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
                            ExpSumKernelsOf(target),
                            RowWriteKernelsOf(target),
                            GeneralKernelsOf(target),
                            BinaryKernelsOf(target),
                            DivergenceKernelsOf(target),
                            SmallRowsKernelsOf(target)};
      if (kernels.array == nullptr || count == kMaxTargets) continue;
      compiled[count] = kernels;
      available[count] = (supported & target) != 0;
      targets_[count] = target;
      ++count;
    }
    if (has_cap && cap == 0) std::strncpy(unknown_max_target, cap_name, sizeof(unknown_max_target) - 1);
    // The best one allowed; where the cap lies below all of them, the last.
    for (best = 0; best < count - 1; ++best) {
      if (available[best] && targets_[best] >= cap) break;
    }
  }

  const char *Name(int32_t i, bool only_available) const {
    for (int k = 0; k < count; ++k) {
      if ((!only_available || available[k]) && i-- == 0) return compiled[k].name;
    }
    return nullptr;
  }

 private:
  int64_t targets_[kMaxTargets];
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
    active = &registry.compiled[registry.best];
    g_active.store(active, std::memory_order_release);
  }
  return *active;
}

const char *CompiledTarget(int32_t i) { return i < 0 ? nullptr : GetRegistry().Name(i, false); }
const char *AvailableTarget(int32_t i) { return i < 0 ? nullptr : GetRegistry().Name(i, true); }
const char *UnknownMaxTarget() {
  const char *const name = GetRegistry().unknown_max_target;
  return name[0] == '\0' ? nullptr : name;
}

const char *HighwayVersion() {
  return XENT_STRINGIFY(HWY_MAJOR) "." XENT_STRINGIFY(HWY_MINOR) "." XENT_STRINGIFY(HWY_PATCH);
}

bool ForceTarget(const char *name) {
  const Registry &registry = GetRegistry();
  if (name == nullptr) {
    g_active.store(&registry.compiled[registry.best], std::memory_order_release);
    return true;
  }
  for (int k = 0; k < registry.count; ++k) {
    if (registry.available[k] && std::strcmp(registry.compiled[k].name, name) == 0) {
      g_active.store(&registry.compiled[k], std::memory_order_release);
      return true;
    }
  }
  return false;
}

}  // namespace xent::internal
