// Values, targets and buffers of a benchmark.
#include "bench/problem.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numbers>
#include <stdexcept>
#include <string>

#include "bench/parallel.h"
#include "hwy/base.h"

namespace xent_bench {
namespace {

constexpr std::align_val_t kAlignment{128};

// SplitMix64 (Steele, Lea, Flood 2014): a row's values depend on its index alone, so that threads may fill rows in any
// order.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15) {}

  uint64_t Bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t Below(int64_t n) { return static_cast<int64_t>(Bits() % static_cast<uint64_t>(n)); }
  // Two independent normal values of deviation 1 (Box and Muller 1958).
  void NormalPair(float *a, float *b) {
    const uint64_t bits = Bits();
    const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float angle = static_cast<float>(bits & 0xffffff) * (2 * std::numbers::pi_v<float> * 0x1p-24f);
    const float radius = std::sqrt(-2 * std::log(u));
    *a = radius * std::cos(angle);
    *b = radius * std::sin(angle);
  }

 private:
  uint64_t state_;
};

// The mask is one of a vocabulary, the same for every row. Column 0 stays, so that each row has a finite logit.
bool IsMasked(int64_t column) {
  return column != 0 && Random(static_cast<uint64_t>(column) + 0x6d61736b).Below(10) < 3;
}

void FillNormal(uint64_t seed, double deviation, xent_dtype dtype, void *row, int64_t cols) {
  Random random(seed);
  for (int64_t j = 0; j < cols; j += 2) {
    float a, b;
    random.NormalPair(&a, &b);
    Store(dtype, row, j, deviation * a);
    if (j + 1 < cols) Store(dtype, row, j + 1, deviation * b);
  }
}

void FillRow(Data data, uint64_t row_index, xent_dtype dtype, void *row, int64_t cols, int64_t *target) {
  Random random(row_index + 0x746172676574);
  *target = random.Below(cols);
  FillNormal(row_index, 2, dtype, row, cols);
  if (data == Data::kMargin && row_index % 2 == 0) {
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < cols; ++j) {
      if (j != *target) largest = std::max(largest, Load(dtype, row, j));
    }
    if (cols > 1) Store(dtype, row, *target, largest + 20);
  } else if (data == Data::kAscending) {
    for (int64_t j = 0; j < cols; ++j) {
      Store(dtype, row, j, cols > 1 ? -500 + 1000.0 * static_cast<double>(j) / static_cast<double>(cols - 1) : 0);
    }
  } else if (data == Data::kMasked) {
    while (IsMasked(*target)) *target = random.Below(cols);
    for (int64_t j = 0; j < cols; ++j) {
      if (IsMasked(j)) Store(dtype, row, j, -std::numeric_limits<double>::infinity());
    }
  }
}

int64_t L2Bytes() {
  for (const auto &cache : benchmark::CPUInfo::Get().caches) {
    if (cache.level == 2) return cache.size;
  }
  return int64_t{512} << 10;
}

}  // namespace

const char *Name(Data data) {
  switch (data) {
    case Data::kNormal:
      return "normal";
    case Data::kMargin:
      return "margin";
    case Data::kAscending:
      return "ascending";
    case Data::kMasked:
      return "masked";
  }
  return "";
}

bool ParseData(std::string_view name, Data *data) {
  for (const Data candidate : {Data::kNormal, Data::kMargin, Data::kAscending, Data::kMasked}) {
    if (name == Name(candidate)) {
      *data = candidate;
      return true;
    }
  }
  return false;
}

const char *Name(xent_dtype dtype) {
  switch (dtype) {
    case XENT_F32:
      return "f32";
    case XENT_F64:
      return "f64";
    case XENT_BF16:
      return "bf16";
    case XENT_F16:
      return "f16";
  }
  return "";
}

int64_t ElementBytes(xent_dtype dtype) { return dtype == XENT_F64 ? 8 : dtype == XENT_F32 ? 4 : 2; }

xent_dtype ArithmeticType(xent_dtype dtype) { return dtype == XENT_F64 ? XENT_F64 : XENT_F32; }

double Load(xent_dtype dtype, const void *x, int64_t i) {
  switch (dtype) {
    case XENT_F32:
      return static_cast<const float *>(x)[i];
    case XENT_F64:
      return static_cast<const double *>(x)[i];
    case XENT_BF16:
      return hwy::F32FromBF16(static_cast<const hwy::bfloat16_t *>(x)[i]);
    case XENT_F16:
      return hwy::F32FromF16(static_cast<const hwy::float16_t *>(x)[i]);
  }
  return 0;
}

void Store(xent_dtype dtype, void *x, int64_t i, double value) {
  switch (dtype) {
    case XENT_F32:
      static_cast<float *>(x)[i] = static_cast<float>(value);
      break;
    case XENT_F64:
      static_cast<double *>(x)[i] = value;
      break;
    case XENT_BF16:
      static_cast<hwy::bfloat16_t *>(x)[i] = hwy::BF16FromF32(static_cast<float>(value));
      break;
    case XENT_F16:
      static_cast<hwy::float16_t *>(x)[i] = hwy::F16FromF32(static_cast<float>(value));
      break;
  }
}

Buffer::Buffer(int64_t bytes) : data_(::operator new(static_cast<size_t>(bytes), kAlignment)), bytes_(bytes) {}

void Buffer::Free::operator()(void *p) const { ::operator delete(p, kAlignment); }

Problem::Problem(xent_dtype dtype, Shape shape, Data data) : dtype(dtype), shape(shape), data(data) {
  slot_bytes = (matrix_bytes() + 127) / 128 * 128;
  slots = std::clamp<int64_t>(L2Bytes() / 2 / slot_bytes, 1, 512);
  logits = Buffer(slot_bytes);
  out = Buffer(slots * slot_bytes);
  records = Buffer(shape.rows * XENT_RECORD_BYTES);
  const int most_threads = std::max(MaxThreads(), ManyThreads());
  workspace = Buffer(static_cast<int64_t>(xent_workspace_bytes(shape.cols, dtype, most_threads)));
  const int64_t row_values = shape.rows * ElementBytes(ArithmeticType(dtype));
  losses = Buffer(row_values);
  lse = Buffer(row_values);
  loss = Buffer(sizeof(double));
  targets.resize(static_cast<size_t>(shape.rows));
  entropy = Buffer(row_values);
  logprobs = Buffer(row_values);
  argmax = Buffer(shape.rows * int64_t{8});
  rank = Buffer(shape.rows * int64_t{8});
  top = Buffer(shape.rows * kTop * int64_t{8});
  maxima.resize(static_cast<size_t>(std::max<int64_t>(shape.rows, most_threads)));
  ParallelRanges(MaxThreads(), shape.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(shape.cols));  // room for every dtype
    for (int64_t i = begin; i < end; ++i) {
      FillRow(data, static_cast<uint64_t>(i), dtype, row.data(), shape.cols, &targets[static_cast<size_t>(i)]);
      for (int64_t j = 0; j < shape.cols; ++j) {
        Store(dtype, logits.data(), Offset(i, j), Load(dtype, row.data(), j));
      }
    }
  });
  for (int64_t i = 0; i < slots; ++i) RestoreSlot(i);
  // A mean over positive losses is what xent_reduce gets where no forward call has run before it.
  for (int64_t i = 0; i < shape.rows; ++i) {
    Store(ArithmeticType(dtype), losses.data(), i, std::fabs(Load(dtype, logits.data(), i * shape.cols)));
  }
}

void Problem::RestoreSlot(int64_t i) const { std::memcpy(slot(i), logits.data(), static_cast<size_t>(matrix_bytes())); }

void Problem::FillAux(Aux what) {
  if (aux_holds == what) return;
  if (aux.data() == nullptr) aux = Buffer(slot_bytes);
  xent_error error = XENT_ERROR_INIT;
  xent_status status = XENT_OK;
  switch (what) {
    case Aux::kNothing:
      break;
    case Aux::kSoftmax:
      status =
          xent_softmax(shape.rows, shape.cols, shape.inner, matrix(logits.data()), matrix(aux.data()), nullptr, &error);
      break;
    case Aux::kLogSoftmax:
      status = xent_log_softmax(shape.rows, shape.cols, shape.inner, matrix(logits.data()), matrix(aux.data()), nullptr,
                                &error);
      break;
    case Aux::kPositive:
    case Aux::kAboveMinusOne:
      // Over many binades, as probabilities are, and above -1 after the rounding too.
      for (int64_t i = 0; i < elements(); ++i) {
        const double value = std::exp(std::clamp(Load(dtype, logits.data(), i), -20.0, 20.0) / 2);
        Store(dtype, aux.data(), i, what == Aux::kPositive ? value : value - 1);
      }
      break;
    case Aux::kUnit: {
      Random random(0x756e6974);
      for (int64_t i = 0; i < elements(); ++i) {
        Store(dtype, aux.data(), i, (static_cast<double>(random.Bits() >> 40) + 0.5) * 0x1p-24);
      }
      break;
    }
  }
  if (status != XENT_OK) throw std::runtime_error(std::string("preparing an input: ") + error.message);
  aux_holds = what;
}

void Problem::FillUpstream() {
  if (upstream.data() != nullptr) return;
  upstream = Buffer(slot_bytes);
  const int64_t row_bytes = shape.cols * ElementBytes(dtype);
  ParallelRanges(MaxThreads(), shape.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      FillNormal(static_cast<uint64_t>(i) + 0x7570, 1, dtype, static_cast<char *>(upstream.data()) + i * row_bytes,
                 shape.cols);
    }
  });
}

void Problem::FillRowMaxima() {
  const auto *z = static_cast<const float *>(logits.data());
  row_maxima.resize(static_cast<size_t>(shape.rows));
  for (float &maximum : row_maxima) {
    maximum = *std::max_element(z, z + shape.cols);
    z += shape.cols;
  }
}

void Problem::FillWeights() {
  if (class_weights.data() != nullptr) return;
  const xent_dtype arithmetic = ArithmeticType(dtype);
  Random random(0x77656967);
  const auto weights = [&](int64_t n) {
    Buffer buffer(n * ElementBytes(arithmetic));
    for (int64_t i = 0; i < n; ++i) {
      Store(arithmetic, buffer.data(), i, std::exp2(static_cast<double>(random.Below(2049)) / 1024 - 1));
    }
    return buffer;
  };
  class_weights = weights(shape.cols);
  row_weights = weights(shape.rows);
}

void Problem::FillRecords() {
  xent_statistics statistics = XENT_STATISTICS_INIT;
  statistics.lse = lse.data();
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.inner = shape.inner;
  args.logits = matrix(logits.data());
  args.targets.data = targets.data();
  args.records = records.data();
  args.statistics = &statistics;
  xent_error error = XENT_ERROR_INIT;
  if (xent_cross_entropy_forward(&args, nullptr, nullptr, &error) != XENT_OK) {
    throw std::runtime_error(std::string("saving the records: ") + error.message);
  }
}

}  // namespace xent_bench
