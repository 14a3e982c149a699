// Calls on addresses: each function takes dtype codes, sizes, strides and addresses as integers, and hands them to the
// C function of its name. xent.torch and xent.jax call these, and vouch for what is behind an address: memory that
// lives as long as the call, of the dtype, size and stride stated, on the CPU. Everything else the C API checks. An
// address of 0 is an absent array. Positions are cheap where keywords are not: a call costs about half a microsecond.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "common.h"
#include "dlpack_exchange.h"

namespace xent_python {
namespace {

namespace nb = nanobind;
using nb::literals::operator""_a;

using Address = uintptr_t;

// Calls on logits of fewer bytes keep the interpreter's lock and the calling thread: a lock that another thread takes
// in the meantime costs more than such a call, and so does waking a pool.
constexpr int64_t kTinyBytes = int64_t{1} << 14;

// The most that a thread keeps as the workspace of its calls.
constexpr size_t kMaxWorkspaceBytes = size_t{4} << 20;

int64_t BytesOf(int32_t dtype) { return dtype == XENT_F64 ? 8 : dtype == XENT_F32 ? 4 : 2; }

// Returns the bytes of [rows, cols] elements, the largest number where that is more; 0 for sizes that will be refused.
int64_t MatrixBytes(int64_t rows, int64_t cols, int32_t dtype) {
  if (rows <= 0 || cols <= 0) return 0;
  const int64_t row_bytes = cols > (INT64_MAX >> 3) ? INT64_MAX : cols * BytesOf(dtype);
  return rows > INT64_MAX / row_bytes ? INT64_MAX : rows * row_bytes;
}

bool IsTiny(int64_t rows, int64_t cols, int32_t dtype) { return MatrixBytes(rows, cols, dtype) < kTinyBytes; }

template <typename T = void>
T *At(Address address) {
  return reinterpret_cast<T *>(address);
}

xent_matrix Matrix(Address address, int64_t stride, int32_t dtype) {
  return {At(address), address == 0 ? 0 : stride, dtype, 0};
}

xent_targets Targets(Address address, int32_t type) { return {At<const void>(address), type, 0}; }

// Runs call(exec, error) as its size deserves, and throws what its status means.
template <typename Call>
void Run(int64_t rows, int64_t cols, int32_t dtype, int64_t threads, const Call &call) {
  xent_error error = XENT_ERROR_INIT;
  xent_status status;
  const int64_t bytes = MatrixBytes(rows, cols, dtype);
  if (bytes < kTinyBytes && threads >= 0) {
    xent_exec exec = XENT_EXEC_INIT;
    exec.threads = 1;
    status = call(&exec, &error);
  } else {
    const xent_exec exec = ExecOf(Pool::kTorch, threads, bytes);
    const nb::gil_scoped_release release;
    status = call(&exec, &error);
  }
  RaiseIf(status, error);
}

// Memory that a thread keeps from call to call: pages that are touched for the first time cost more than they help.
class Workspace {
 public:
  // Returns at least `bytes`, or null where they are too many or there is no memory.
  void *Get(size_t bytes) {
    if (bytes == 0 || bytes > kMaxWorkspaceBytes) return nullptr;
    if (bytes > size_) {
      data_.reset(new (std::nothrow) char[bytes]);
      size_ = data_ == nullptr ? 0 : bytes;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<char[]> data_;
  size_t size_ = 0;
};

void SetWorkspace(xent_cross_entropy &args, int64_t threads) {
  thread_local Workspace workspace;
  if (IsTiny(args.rows, args.cols, args.logits.dtype) || args.inner > 1) return;
  threads = ExecOf(Pool::kTorch, threads).threads;
  if (threads == 0) threads = xent_default_threads();
  const size_t bytes =
      xent_workspace_bytes(args.cols, static_cast<xent_dtype>(args.logits.dtype), static_cast<int32_t>(threads));
  args.workspace = workspace.Get(bytes);
  args.workspace_bytes = args.workspace == nullptr ? 0 : bytes;
}

// ---------------------------------------------------------------- rounding of one number to half precision

// Writes v, rounded to nearest even, as a float of two bytes with `digits` bits of significand (the hidden one
// counted). Exact arithmetic: v / q and the product back are powers of two away from each other.
uint16_t RoundToHalf(double v, int digits) {
  const int exponent_bits = 16 - digits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const uint16_t infinity = static_cast<uint16_t>(((1 << exponent_bits) - 1) << (digits - 1));
  if (std::isnan(v)) return static_cast<uint16_t>(infinity | (1 << (digits - 2)));
  const double magnitude = std::fabs(v);
  if (magnitude == 0.0) return sign;
  if (std::isinf(v)) return sign | infinity;
  const int exponent = std::max(std::ilogb(magnitude), 1 - bias);
  // In units of the last place: below 2^(digits - 1) a subnormal, 2^digits where rounding carried. Adding the biased
  // exponent's field to it carries both into the right binade.
  const auto units = static_cast<int64_t>(std::nearbyint(std::ldexp(magnitude, digits - 1 - exponent)));
  const int64_t bits = (int64_t{exponent} + bias - 1) * (int64_t{1} << (digits - 1)) + units;
  return sign | (bits >= infinity ? infinity : static_cast<uint16_t>(bits));
}

// Stores a loss of the arithmetic type at an address of another float dtype.
void StoreLoss(float loss, int32_t dtype, Address address) {
  if (dtype == XENT_F32) {
    std::memcpy(At(address), &loss, sizeof loss);
  } else if (dtype == XENT_F64) {
    const double wide = loss;
    std::memcpy(At(address), &wide, sizeof wide);
  } else {
    const uint16_t half = RoundToHalf(loss, dtype == XENT_BF16 ? 8 : 11);
    std::memcpy(At(address), &half, sizeof half);
  }
}

// ---------------------------------------------------------------- options

struct CrossEntropyOptions {
  xent_cross_entropy_options value = XENT_CROSS_ENTROPY_OPTIONS_INIT;
};
struct DivergenceOptions {
  xent_divergence_options value = XENT_DIVERGENCE_OPTIONS_INIT;
};
struct BinaryOptions {
  xent_binary_cross_entropy_options value = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
};
struct Statistics {
  xent_statistics value = XENT_STATISTICS_INIT;
};

void DefineOptions(nb::module_ &m) {
  nb::class_<CrossEntropyOptions>(m, "CrossEntropyOptions", "xent_cross_entropy_options; built once, used many times.")
      .def(
          "__init__",
          [](CrossEntropyOptions *self, int64_t ignore_index, int64_t valid_cols, double logit_scale, double softcap,
             double label_smoothing, double z_loss, int32_t smoothing, int32_t reduction, int32_t empty_mean,
             double divisor) {
            new (self) CrossEntropyOptions;
            xent_cross_entropy_options &o = self->value;
            o.ignore_index = ignore_index;
            o.valid_cols = valid_cols;
            o.logit_scale = logit_scale;
            o.softcap = softcap;
            o.label_smoothing = label_smoothing;
            o.z_loss = z_loss;
            o.smoothing = smoothing;
            o.reduction = {reduction, empty_mean, divisor};
          },
          "ignore_index"_a = -100, "valid_cols"_a = 0, "logit_scale"_a = 1.0, "softcap"_a = 0.0,
          "label_smoothing"_a = 0.0, "z_loss"_a = 0.0, "smoothing"_a = 0, "reduction"_a = 0, "empty_mean"_a = 0,
          "divisor"_a = 0.0);
  nb::class_<DivergenceOptions>(m, "DivergenceOptions", "xent_divergence_options")
      .def(
          "__init__",
          [](DivergenceOptions *self, int32_t kind, double temperature, double beta, int64_t valid_cols,
             int32_t reduction, int32_t empty_mean, double divisor) {
            new (self) DivergenceOptions;
            xent_divergence_options &o = self->value;
            o.kind = kind;
            o.temperature = temperature;
            o.beta = beta;
            o.valid_cols = valid_cols;
            o.reduction = {reduction, empty_mean, divisor};
          },
          "kind"_a = 0, "temperature"_a = 1.0, "beta"_a = 0.5, "valid_cols"_a = 0, "reduction"_a = 0,
          "empty_mean"_a = 0, "divisor"_a = 0.0);
  nb::class_<BinaryOptions>(m, "BinaryOptions", "xent_binary_cross_entropy_options")
      .def(
          "__init__",
          [](BinaryOptions *self, int32_t input, double focal_gamma, double focal_alpha, int32_t reduction,
             int32_t empty_mean, double divisor) {
            new (self) BinaryOptions;
            xent_binary_cross_entropy_options &o = self->value;
            o.input = input;
            o.focal_gamma = focal_gamma;
            o.focal_alpha = focal_alpha;
            o.reduction = {reduction, empty_mean, divisor};
          },
          "input"_a = 0, "focal_gamma"_a = 0.0, "focal_alpha"_a = -1.0, "reduction"_a = 0, "empty_mean"_a = 0,
          "divisor"_a = 0.0);
  nb::class_<Statistics>(m, "Statistics", "xent_statistics: the addresses of what a forward call is to write.")
      .def(
          "__init__",
          [](Statistics *self, Address lse, Address logprobs, Address argmax, Address hits, Address rank,
             Address entropy, int64_t top_k, Address topk_logprobs, Address topk_indices, int64_t gather_count,
             Address gather_cols, Address gathered, Address perplexity, Address live_rows, bool of_ignored) {
            new (self) Statistics;
            xent_statistics &s = self->value;
            s.lse = At(lse);
            s.logprobs = At(logprobs);
            s.argmax = At<int64_t>(argmax);
            s.hits = At<uint8_t>(hits);
            s.rank = At<int64_t>(rank);
            s.entropy = At(entropy);
            s.top_k = top_k;
            s.topk_logprobs = At(topk_logprobs);
            s.topk_indices = At<int64_t>(topk_indices);
            s.gather_count = gather_count;
            s.gather_cols = At<const int64_t>(gather_cols);
            s.gathered = At(gathered);
            s.perplexity = At<double>(perplexity);
            s.live_rows = At<int64_t>(live_rows);
            s.of_ignored = of_ignored ? 1 : 0;
          },
          "lse"_a = 0, "logprobs"_a = 0, "argmax"_a = 0, "hits"_a = 0, "rank"_a = 0, "entropy"_a = 0, "top_k"_a = 0,
          "topk_logprobs"_a = 0, "topk_indices"_a = 0, "gather_count"_a = 0, "gather_cols"_a = 0, "gathered"_a = 0,
          "perplexity"_a = 0, "live_rows"_a = 0, "of_ignored"_a = false);
}

// ---------------------------------------------------------------- cross-entropy

using CrossEntropyFunction = decltype(&xent_cross_entropy_forward);

// One binding for the three functions. `loss_dtype` is the dtype behind reduced_loss: where it is not that of the
// arithmetic, the loss is rounded once more.
template <CrossEntropyFunction kFunction>
void CrossEntropy(const CrossEntropyOptions &options, int64_t threads, int64_t rows, int64_t cols, int64_t inner,
                  int32_t dtype, Address logits, int64_t stride, Address targets, int32_t index_type,
                  Address row_losses, Address reduced_loss, int32_t loss_dtype, Address grad, int64_t grad_stride,
                  Address class_weights, Address row_weights, Address records, Address upstream, int32_t upstream_kind,
                  Address probs, int64_t probs_stride, int32_t probs_dtype, Address target_grad,
                  int64_t target_grad_stride, const Statistics *statistics) {
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.inner = inner;
  args.logits = Matrix(logits, stride, dtype);
  args.targets = Targets(targets, index_type);
  args.target_probs = Matrix(probs, probs_stride, probs_dtype);
  args.class_weights = At(class_weights);
  args.row_weights = At(row_weights);
  args.row_losses = At(row_losses);
  args.reduced_loss = At(reduced_loss);
  args.statistics = statistics == nullptr ? nullptr : &statistics->value;
  args.records = At(records);
  args.upstream = {At<const void>(upstream), 0, upstream == 0 ? 0 : upstream_kind, 0};
  args.grad = Matrix(grad, grad_stride, dtype);
  args.target_grad = Matrix(target_grad, target_grad_stride, probs_dtype);
  if constexpr (kFunction == &xent_cross_entropy_forward_backward) SetWorkspace(args, threads);
  float loss = 0.0f;
  const bool rounds = reduced_loss != 0 && dtype != XENT_F64 && loss_dtype != XENT_F32;
  if (rounds) args.reduced_loss = &loss;
  Run(rows, cols, dtype, threads,
      [&](const xent_exec *exec, xent_error *error) { return kFunction(&args, &options.value, exec, error); });
  if (rounds) StoreLoss(loss, loss_dtype, reduced_loss);
}

template <CrossEntropyFunction kFunction>
void DefineCrossEntropy(nb::module_ &m, const char *name) {
  m.def(name, &CrossEntropy<kFunction>, "options"_a, "threads"_a, "rows"_a, "cols"_a, "inner"_a, "dtype"_a, "logits"_a,
        "stride"_a, "targets"_a, "index_type"_a, "row_losses"_a, "reduced_loss"_a, "loss_dtype"_a, "grad"_a,
        "grad_stride"_a, "class_weights"_a = 0, "row_weights"_a = 0, "records"_a = 0, "upstream"_a = 0,
        "upstream_kind"_a = 0, "probs"_a = 0, "probs_stride"_a = 0, "probs_dtype"_a = 0, "target_grad"_a = 0,
        "target_grad_stride"_a = 0, "statistics"_a = nb::none());
}

// ---------------------------------------------------------------- the usual call, of tensors

// What reads a torch.Tensor; set by UseDlpack.
int (*view_of_tensor)(void *, dlpack::Tensor *) = nullptr;

// Takes torch.Tensor.__dlpack_c_exchange_api__. Returns false where its version is unknown.
bool UseDlpack(nb::handle capsule) {
  const auto *api =
      static_cast<const dlpack::ExchangeApi *>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) throw nb::python_error();
  while (api != nullptr && api->version.major != 1) api = api->previous;
  if (api == nullptr || api->view == nullptr) return false;
  view_of_tensor = api->view;
  return true;
}

// Returns false for a tensor that has no view: on a device that DLPack has no name for, or sparse.
bool View(nb::handle tensor, dlpack::Tensor &view) {
  if (view_of_tensor(tensor.ptr(), &view) == 0) return true;
  PyErr_Clear();
  return false;
}

// Returns xent_dtype, or -1 for another.
int32_t DtypeOf(dlpack::DataType type) {
  if (type.lanes != 1) return -1;
  if (type.code == dlpack::kBfloat) return type.bits == 16 ? XENT_BF16 : -1;
  if (type.code != dlpack::kFloat) return -1;
  return type.bits == 32 ? XENT_F32 : type.bits == 64 ? XENT_F64 : type.bits == 16 ? XENT_F16 : -1;
}

char *DataOf(const dlpack::Tensor &tensor) { return static_cast<char *>(tensor.data) + tensor.byte_offset; }

// cross_entropy of logits [N, C] without gaps and int64 targets [N] on the CPU. Writes `loss`, a scalar of the logits'
// dtype, and `grad`, which is absent or a tensor that was made like the logits. Returns false, having done nothing, for
// any other call: the caller then looks more closely. `options` must not have the reduction none.
bool PlainCrossEntropy(const CrossEntropyOptions &options, int64_t threads, nb::handle logits, nb::handle targets,
                       nb::handle loss, nb::handle grad = {}) {
  dlpack::Tensor x, t, out, g;
  if (!View(logits, x) || !View(targets, t) || !View(loss, out)) return false;
  const int32_t dtype = DtypeOf(x.dtype);
  if (x.dimensions != 2 || dtype < 0 || x.device.type != dlpack::kCpu) return false;
  const int64_t rows = x.shape[0], cols = x.shape[1];
  if (rows < 1 || cols < 2 || (x.strides != nullptr && (x.strides[1] != 1 || x.strides[0] < cols))) return false;
  if (t.dimensions != 1 || t.shape[0] != rows || t.dtype.code != dlpack::kInt || t.dtype.bits != 64 ||
      t.device.type != dlpack::kCpu || (rows > 1 && t.strides != nullptr && t.strides[0] != 1)) {
    return false;
  }
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.logits = {DataOf(x), x.strides == nullptr ? 0 : x.strides[0], dtype, 0};
  args.targets = {DataOf(t), XENT_I64, 0};
  float narrow = 0.0f;
  const bool rounds = dtype == XENT_BF16 || dtype == XENT_F16;
  args.reduced_loss = rounds ? static_cast<void *>(&narrow) : DataOf(out);
  const auto run = [&](const auto function) {
    Run(rows, cols, dtype, threads,
        [&](const xent_exec *exec, xent_error *error) { return function(&args, &options.value, exec, error); });
  };
  if (!grad.is_valid()) {
    run(&xent_cross_entropy_forward);
  } else {
    if (!View(grad, g)) return false;
    if (g.strides != nullptr && (g.strides[1] != 1 || g.strides[0] < cols)) return false;
    args.grad = {DataOf(g), g.strides == nullptr ? 0 : g.strides[0], dtype, 0};
    SetWorkspace(args, threads);
    run(&xent_cross_entropy_forward_backward);
  }
  if (rounds) StoreLoss(narrow, dtype, reinterpret_cast<Address>(DataOf(out)));
  return true;
}

void Reduce(const CrossEntropyOptions &options, int64_t rows, int64_t cols, int32_t dtype, Address row_losses,
            Address targets, int32_t index_type, Address class_weights, Address row_weights, Address reduced_loss) {
  xent_stored_losses args = XENT_STORED_LOSSES_INIT;
  args.rows = rows;
  args.cols = cols;
  args.row_losses = At(row_losses);
  args.targets = Targets(targets, index_type);
  args.class_weights = At(class_weights);
  args.row_weights = At(row_weights);
  args.reduced_loss = At(reduced_loss);
  args.dtype = dtype;
  xent_error error = XENT_ERROR_INIT;
  RaiseIf(xent_reduce(&args, &options.value, &error), error);
}

// Returns the first position of targets that is neither in [0, cols) nor ignore_index, or -1. For calls that hand the
// library a part of the rows, whose errors would count from there.
template <typename T>
int64_t FirstBadTarget(const T *targets, int64_t rows, int64_t cols, int64_t ignore_index) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t t = targets[i];
    if ((t < 0 || t >= cols) && t != ignore_index) return i;
  }
  return -1;
}

// ---------------------------------------------------------------- vocabulary shards

xent_shard Shard(int64_t total_cols, int64_t first_col) { return {sizeof(xent_shard), total_cols, first_col}; }

void ShardForward(const CrossEntropyOptions &options, int64_t threads, int64_t rows, int64_t cols, int32_t dtype,
                  Address logits, int64_t stride, Address targets, int32_t index_type, int64_t total_cols,
                  int64_t first_col, Address chunk_records, Address class_weights, Address probs, int64_t probs_stride,
                  int32_t probs_dtype) {
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.logits = Matrix(logits, stride, dtype);
  args.targets = Targets(targets, index_type);
  args.target_probs = Matrix(probs, probs_stride, probs_dtype);
  args.class_weights = At(class_weights);
  const xent_shard shard = Shard(total_cols, first_col);
  Run(rows, cols, dtype, threads, [&](const xent_exec *exec, xent_error *error) {
    return xent_shard_forward(&args, &options.value, &shard, At(chunk_records), exec, error);
  });
}

void ShardCombine(const CrossEntropyOptions &options, int64_t rows, int64_t cols, int32_t dtype, Address targets,
                  int32_t index_type, const std::vector<Address> &lists, const std::vector<int64_t> &list_chunks,
                  Address row_losses, Address reduced_loss, Address records, Address class_weights, Address row_weights,
                  const Statistics *statistics) {
  if (lists.size() != list_chunks.size()) {
    throw nb::value_error("lists and list_chunks differ in length, expected one number of chunks a list");
  }
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.logits = Matrix(0, 0, dtype);
  args.targets = Targets(targets, index_type);
  args.class_weights = At(class_weights);
  args.row_weights = At(row_weights);
  args.row_losses = At(row_losses);
  args.reduced_loss = At(reduced_loss);
  args.records = At(records);
  args.statistics = statistics == nullptr ? nullptr : &statistics->value;
  std::vector<const void *> pointers;
  for (const Address list : lists) pointers.push_back(At(list));
  xent_error error = XENT_ERROR_INIT;
  xent_status status;
  {
    const nb::gil_scoped_release release;
    status = xent_shard_combine(&args, &options.value, pointers.data(), list_chunks.data(),
                                static_cast<int64_t>(lists.size()), &error);
  }
  RaiseIf(status, error);
}

void ShardBackward(const CrossEntropyOptions &options, int64_t threads, int64_t rows, int64_t cols, int32_t dtype,
                   Address logits, int64_t stride, Address targets, int32_t index_type, int64_t total_cols,
                   int64_t first_col, Address records, Address grad, int64_t grad_stride, Address class_weights,
                   Address row_weights, Address upstream, int32_t upstream_kind, Address probs, int64_t probs_stride,
                   int32_t probs_dtype, Address target_grad, int64_t target_grad_stride) {
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.logits = Matrix(logits, stride, dtype);
  args.targets = Targets(targets, index_type);
  args.target_probs = Matrix(probs, probs_stride, probs_dtype);
  args.class_weights = At(class_weights);
  args.row_weights = At(row_weights);
  args.records = At(records);
  args.upstream = {At<const void>(upstream), 0, upstream == 0 ? 0 : upstream_kind, 0};
  args.grad = Matrix(grad, grad_stride, dtype);
  args.target_grad = Matrix(target_grad, target_grad_stride, probs_dtype);
  const xent_shard shard = Shard(total_cols, first_col);
  Run(rows, cols, dtype, threads, [&](const xent_exec *exec, xent_error *error) {
    return xent_shard_backward(&args, &options.value, &shard, exec, error);
  });
}

void DefineShards(nb::module_ &m) {
  m.def("chunk_cols", &xent_chunk_cols, "cols"_a);
  m.def("shard_chunks", &xent_shard_chunks, "total_cols"_a, "first_col"_a, "cols"_a);
  m.attr("RECORD_BYTES") = XENT_RECORD_BYTES;
  m.attr("CHUNK_RECORD_BYTES") = XENT_CHUNK_RECORD_BYTES;
  m.def("shard_forward", &ShardForward, "options"_a, "threads"_a, "rows"_a, "cols"_a, "dtype"_a, "logits"_a, "stride"_a,
        "targets"_a, "index_type"_a, "total_cols"_a, "first_col"_a, "chunk_records"_a, "class_weights"_a = 0,
        "probs"_a = 0, "probs_stride"_a = 0, "probs_dtype"_a = 0);
  m.def("shard_combine", &ShardCombine, "options"_a, "rows"_a, "cols"_a, "dtype"_a, "targets"_a, "index_type"_a,
        "lists"_a, "list_chunks"_a, "row_losses"_a, "reduced_loss"_a, "records"_a = 0, "class_weights"_a = 0,
        "row_weights"_a = 0, "statistics"_a = nb::none());
  m.def("shard_backward", &ShardBackward, "options"_a, "threads"_a, "rows"_a, "cols"_a, "dtype"_a, "logits"_a,
        "stride"_a, "targets"_a, "index_type"_a, "total_cols"_a, "first_col"_a, "records"_a, "grad"_a, "grad_stride"_a,
        "class_weights"_a = 0, "row_weights"_a = 0, "upstream"_a = 0, "upstream_kind"_a = 0, "probs"_a = 0,
        "probs_stride"_a = 0, "probs_dtype"_a = 0, "target_grad"_a = 0, "target_grad_stride"_a = 0);
}

// ---------------------------------------------------------------- row functions

void LogSumExp(int64_t threads, int64_t rows, int64_t cols, int64_t inner, int32_t dtype, Address x, int64_t stride,
               Address lse) {
  Run(rows, cols, dtype, threads, [&](const xent_exec *exec, xent_error *error) {
    return xent_logsumexp(rows, cols, inner, Matrix(x, stride, dtype), At(lse), exec, error);
  });
}

template <decltype(&xent_softmax) kFunction>
void RowFunction(int64_t threads, int64_t rows, int64_t cols, int64_t inner, int32_t dtype, Address x, int64_t x_stride,
                 Address y, int64_t y_stride) {
  Run(rows, cols, dtype, threads, [&](const xent_exec *exec, xent_error *error) {
    return kFunction(rows, cols, inner, Matrix(x, x_stride, dtype), Matrix(y, y_stride, dtype), exec, error);
  });
}

template <decltype(&xent_softmax_backward) kFunction>
void RowBackward(int64_t threads, int64_t rows, int64_t cols, int64_t inner, int32_t dtype, Address g, int64_t g_stride,
                 Address y, int64_t y_stride, Address dx, int64_t dx_stride) {
  Run(rows, cols, dtype, threads, [&](const xent_exec *exec, xent_error *error) {
    return kFunction(rows, cols, inner, Matrix(g, g_stride, dtype), Matrix(y, y_stride, dtype),
                     Matrix(dx, dx_stride, dtype), exec, error);
  });
}

void DefineRowFunctions(nb::module_ &m) {
  m.def("raw_logsumexp", &LogSumExp, "threads"_a, "rows"_a, "cols"_a, "inner"_a, "dtype"_a, "x"_a, "stride"_a, "lse"_a);
  m.def("raw_softmax", &RowFunction<&xent_softmax>, "threads"_a, "rows"_a, "cols"_a, "inner"_a, "dtype"_a, "x"_a,
        "x_stride"_a, "y"_a, "y_stride"_a);
  m.def("raw_log_softmax", &RowFunction<&xent_log_softmax>, "threads"_a, "rows"_a, "cols"_a, "inner"_a, "dtype"_a,
        "x"_a, "x_stride"_a, "y"_a, "y_stride"_a);
  m.def("raw_softmax_backward", &RowBackward<&xent_softmax_backward>, "threads"_a, "rows"_a, "cols"_a, "inner"_a,
        "dtype"_a, "g"_a, "g_stride"_a, "y"_a, "y_stride"_a, "dx"_a, "dx_stride"_a);
  m.def("raw_log_softmax_backward", &RowBackward<&xent_log_softmax_backward>, "threads"_a, "rows"_a, "cols"_a,
        "inner"_a, "dtype"_a, "g"_a, "g_stride"_a, "y"_a, "y_stride"_a, "dx"_a, "dx_stride"_a);
}

// ---------------------------------------------------------------- divergences

template <decltype(&xent_divergence_forward) kFunction>
void Divergence(const DivergenceOptions &options, int64_t threads, int64_t rows, int64_t cols, int64_t inner,
                int32_t dtype, Address student, int64_t stride, int32_t teacher_dtype, Address teacher,
                int64_t teacher_stride, Address row_losses, Address reduced_loss, int32_t loss_dtype, Address grad,
                int64_t grad_stride, Address row_weights, Address upstream, int32_t upstream_kind) {
  xent_divergence args = XENT_DIVERGENCE_INIT;
  args.rows = rows;
  args.cols = cols;
  args.inner = inner;
  args.student = Matrix(student, stride, dtype);
  args.teacher = Matrix(teacher, teacher_stride, teacher_dtype);
  args.row_weights = At(row_weights);
  args.row_losses = At(row_losses);
  args.reduced_loss = At(reduced_loss);
  args.upstream = {At<const void>(upstream), 0, upstream == 0 ? 0 : upstream_kind, 0};
  args.grad = Matrix(grad, grad_stride, dtype);
  float loss = 0.0f;
  const bool rounds = reduced_loss != 0 && dtype != XENT_F64 && loss_dtype != XENT_F32;
  if (rounds) args.reduced_loss = &loss;
  Run(rows, cols, dtype, threads,
      [&](const xent_exec *exec, xent_error *error) { return kFunction(&args, &options.value, exec, error); });
  if (rounds) StoreLoss(loss, loss_dtype, reduced_loss);
}

template <decltype(&xent_divergence_forward) kFunction>
void DefineDivergence(nb::module_ &m, const char *name) {
  m.def(name, &Divergence<kFunction>, "options"_a, "threads"_a, "rows"_a, "cols"_a, "inner"_a, "dtype"_a, "student"_a,
        "stride"_a, "teacher_dtype"_a, "teacher"_a, "teacher_stride"_a, "row_losses"_a, "reduced_loss"_a,
        "loss_dtype"_a, "grad"_a, "grad_stride"_a, "row_weights"_a = 0, "upstream"_a = 0, "upstream_kind"_a = 0);
}

// ---------------------------------------------------------------- binary cross-entropy

template <decltype(&xent_binary_cross_entropy_forward) kFunction>
void Binary(const BinaryOptions &options, int64_t threads, int64_t rows, int64_t cols, int64_t inner, int32_t dtype,
            Address input, int64_t stride, int32_t targets_dtype, Address targets, int64_t targets_stride,
            Address element_losses, int64_t losses_stride, Address reduced_loss, int32_t loss_dtype, Address grad,
            int64_t grad_stride, Address target_grad, int64_t target_grad_stride, Address pos_weight,
            Address class_weights, Address row_weights, Address element_weights, int64_t element_weights_stride,
            Address upstream, int32_t upstream_kind, int64_t upstream_stride) {
  const int32_t arithmetic = dtype == XENT_F64 ? XENT_F64 : XENT_F32;
  xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.inner = inner;
  args.input = Matrix(input, stride, dtype);
  args.targets = Matrix(targets, targets_stride, targets_dtype);
  args.pos_weight = At(pos_weight);
  args.class_weights = At(class_weights);
  args.row_weights = At(row_weights);
  args.element_weights = Matrix(element_weights, element_weights_stride, arithmetic);
  args.element_losses = Matrix(element_losses, losses_stride, arithmetic);
  args.reduced_loss = At(reduced_loss);
  args.upstream = {At<const void>(upstream), upstream == 0 ? 0 : upstream_stride, upstream == 0 ? 0 : upstream_kind, 0};
  args.grad = Matrix(grad, grad_stride, dtype);
  args.target_grad = Matrix(target_grad, target_grad_stride, targets_dtype);
  float loss = 0.0f;
  const bool rounds = reduced_loss != 0 && dtype != XENT_F64 && loss_dtype != XENT_F32;
  if (rounds) args.reduced_loss = &loss;
  Run(rows, cols, dtype, threads,
      [&](const xent_exec *exec, xent_error *error) { return kFunction(&args, &options.value, exec, error); });
  if (rounds) StoreLoss(loss, loss_dtype, reduced_loss);
}

template <decltype(&xent_binary_cross_entropy_forward) kFunction>
void DefineBinary(nb::module_ &m, const char *name) {
  m.def(name, &Binary<kFunction>, "options"_a, "threads"_a, "rows"_a, "cols"_a, "inner"_a, "dtype"_a, "input"_a,
        "stride"_a, "targets_dtype"_a, "targets"_a, "targets_stride"_a, "element_losses"_a, "losses_stride"_a,
        "reduced_loss"_a, "loss_dtype"_a, "grad"_a, "grad_stride"_a, "target_grad"_a = 0, "target_grad_stride"_a = 0,
        "pos_weight"_a = 0, "class_weights"_a = 0, "row_weights"_a = 0, "element_weights"_a = 0,
        "element_weights_stride"_a = 0, "upstream"_a = 0, "upstream_kind"_a = 0, "upstream_stride"_a = 0);
}

}  // namespace

void DefineRaw(nb::module_ &m) {
  // Options live in Python's caches until the interpreter is gone, which is no leak.
  nb::set_leak_warnings(false);
  DefineOptions(m);
  DefineCrossEntropy<&xent_cross_entropy_forward>(m, "raw_cross_entropy_forward");
  DefineCrossEntropy<&xent_cross_entropy_forward_backward>(m, "raw_cross_entropy_forward_backward");
  DefineCrossEntropy<&xent_cross_entropy_backward>(m, "raw_cross_entropy_backward");
  m.def("use_dlpack", &UseDlpack);
  // Two functions of a few positions: nanobind's quickest call takes neither defaults nor None.
  m.def("plain_forward", [](const CrossEntropyOptions &options, int64_t threads, nb::handle logits, nb::handle targets,
                            nb::handle loss) { return PlainCrossEntropy(options, threads, logits, targets, loss); });
  m.def("plain_forward_backward", &PlainCrossEntropy);
  m.def("raw_reduce", &Reduce, "options"_a, "rows"_a, "cols"_a, "dtype"_a, "row_losses"_a, "targets"_a, "index_type"_a,
        "class_weights"_a, "row_weights"_a, "reduced_loss"_a);
  m.def(
      "first_bad_target",
      [](Address targets, int32_t index_type, int64_t rows, int64_t cols, int64_t ignore_index) {
        return index_type == XENT_I32 ? FirstBadTarget(At<const int32_t>(targets), rows, cols, ignore_index)
                                      : FirstBadTarget(At<const int64_t>(targets), rows, cols, ignore_index);
      },
      "targets"_a, "index_type"_a, "rows"_a, "cols"_a, "ignore_index"_a);
  DefineShards(m);
  DefineRowFunctions(m);
  DefineDivergence<&xent_divergence_forward>(m, "raw_divergence_forward");
  DefineDivergence<&xent_divergence_forward_backward>(m, "raw_divergence_forward_backward");
  DefineBinary<&xent_binary_cross_entropy_forward>(m, "raw_binary_forward");
  DefineBinary<&xent_binary_cross_entropy_forward_backward>(m, "raw_binary_forward_backward");
  DefineBinary<&xent_binary_cross_entropy_backward>(m, "raw_binary_backward");
}

}  // namespace xent_python
