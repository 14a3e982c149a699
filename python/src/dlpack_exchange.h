// The part of DLPack's C exchange API (dmlc.github.io/dlpack, version 1) that reads a tensor without a Python call:
// data, shape and strides of a torch.Tensor in some 20 ns, where its methods take 70 ns each. Declarations alone: the
// binary interface is fixed by the version in the header.
#pragma once

#include <cstdint>

namespace xent_python::dlpack {

inline constexpr int32_t kCpu = 1;
inline constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;

struct Device {
  int32_t type, id;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void *data;
  Device device;
  int32_t dimensions;
  DataType dtype;
  int64_t *shape;
  int64_t *strides;  // in elements; null: no gaps
  uint64_t byte_offset;
};
struct Version {
  uint32_t major, minor;
};
struct ExchangeApi {
  Version version;
  const ExchangeApi *previous;  // of an older major version, or null
  void *allocate, *from_object, *to_object;
  int (*view)(void *object, Tensor *out);  // 0, or -1 with a Python error set. May be null
  void *current_work_stream;
};

}  // namespace xent_python::dlpack
