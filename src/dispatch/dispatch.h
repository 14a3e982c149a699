// The kernels of the SIMD target in use. Our own table and our own cap: Highway's choice is state of the whole process.
#pragma once

#include <cstdint>

#include "kernels/across.h"
#include "kernels/array.h"
#include "kernels/binary.h"
#include "kernels/divergence.h"
#include "kernels/general.h"
#include "kernels/row.h"
#include "kernels/small_rows.h"

namespace xent::internal {

struct Kernels {
  const char *name;  // Highway's
  const ArrayKernels *array;
  const RowKernels *row;
  const AcrossKernels *across;
  const GeneralKernels *general;
  const BinaryKernels *binary;
  const DivergenceKernels *divergence;
  const SmallRowsKernels *small_rows;
};

// The best that the processor has, capped by XENT_MAX_TARGET as the process's first call found it.
const Kernels &ActiveKernels();

// i-th target, best first: of this build, and of those the ones that this processor runs. Null past the last.
const char *CompiledTarget(int32_t i);
const char *AvailableTarget(int32_t i);
// XENT_MAX_TARGET where it names no target, else null.
const char *UnknownMaxTarget();
const char *HighwayVersion();

// For tests: makes every later call run on that target; null: the default again. False, and nothing changes, when this
// build or processor lacks it.
bool ForceTarget(const char *name);

}  // namespace xent::internal
