// Divergences between student and teacher logits: forward, and forward with backward.
#include <algorithm>
#include <cstdint>

#include "api/check_call.h"
#include "api/validate.h"
#include "dispatch/dispatch.h"
#include "numbers/fp_mode.h"
#include "rows/call.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

struct DivergenceCall {
  xent_divergence args = XENT_DIVERGENCE_INIT;
  xent_options options = XENT_OPTIONS_INIT;
  xent_exec exec = XENT_EXEC_INIT;
  Mode mode = Mode::kForward;
  int64_t strides[2] = {}, grad_stride = 0;
  RowShape shape{0, 1};  // of the valid columns
  const Kernels *kernels = nullptr;
  Factor denominator;
  Wide factor;  // DivergenceTask's

  DivergenceKind Kind() const { return static_cast<DivergenceKind>(args.kind); }
  bool HasSecondSums() const { return Kind() == DivergenceKind::kJensenShannon; }
  bool IsWide() const { return args.student_dtype == XENT_F64; }
  int64_t Inner() const { return args.inner > 1 ? args.inner : 1; }
  int32_t DtypeOf(int side) const { return side == kStudent ? args.student_dtype : args.teacher_dtype; }

  // Element (row, col) of a matrix.
  int64_t Offset(int64_t row, int64_t col, int64_t stride) const {
    return row / Inner() * stride + row % Inner() + col * Inner();
  }
  const void *Logits(int side, int64_t row, int64_t col) const {
    const void *const data = side == kStudent ? args.student : args.teacher;
    return static_cast<const char *>(data) +
           Offset(row, col, strides[side]) * static_cast<int64_t>(ElementSize(DtypeOf(side)));
  }
  void *Grad(int64_t row, int64_t col) const {
    return static_cast<char *>(args.grad) +
           Offset(row, col, grad_stride) * static_cast<int64_t>(ElementSize(args.student_dtype));
  }
  double RowWeight(int64_t row) const { return WeightAt(args.row_weights, IsWide(), row); }
  void FillGradient(int64_t row, int64_t first, int64_t end, double value) const {
    DispatchDtype(args.student_dtype, [&](auto storage) {
      FillColumns(static_cast<decltype(storage) *>(Grad(row, 0)), Inner(), first, end, value);
    });
  }

  // `cols` columns from `first` on, of one row or of `count` adjacent positions.
  DivergenceTask Task(int64_t row, int64_t first, int64_t cols, int64_t count, const DivergenceRow *rows) const {
    return {{Logits(kStudent, row, first), Logits(kTeacher, row, first)},
            {static_cast<Dtype>(args.student_dtype), static_cast<Dtype>(args.teacher_dtype)},
            {Inner(), Inner()},
            cols,
            first,
            count,
            rows,
            Kind(),
            args.beta,
            factor,
            mode == Mode::kForward ? nullptr : Grad(row, first),
            Inner()};
  }
};

struct Extremes {
  double max = -kInfinity;
  int64_t argmax = -1;
  bool nan = false;  // NaN or +inf

  Extremes() = default;
  explicit Extremes(const GeneralSums &sums)
      : max(sums.max), argmax(sums.argmax), nan(sums.special != Special::kNone) {}

  // Columns to the right of those seen so far.
  void Merge(const Extremes &next) {
    nan = nan || next.nan;
    if (next.argmax < 0 || (argmax >= 0 && next.max <= max)) return;
    max = next.max;
    argmax = next.argmax;
  }
  bool IsNan() const { return nan || argmax < 0; }
};

template <class T>
struct DivergenceState {
  using N = Number<T>;
  bool nan;
  N totals[2];  // of the exponentials
  N loss;
  T stored;
  Fill fill;
};

// sum / total, infinite where the sum is; no part of it overflows before.
double Ratio(double sum, double total) { return sum / total; }
Wide Ratio(Wide sum, Wide total) {
  constexpr double kHuge = 0x1p900;
  if (sum.hi - sum.hi != 0.0) return {sum.hi, 0.0};
  if (sum.hi <= kHuge && sum.hi >= -kHuge) return Divide(sum, total);
  return Scale(Divide(Scale(sum, -200), total), 200);
}

void AddSums(const DivergenceSums &chunk, DivergenceSums *row) {
  for (int side = 0; side < 2; ++side) row->sides[side] = Add(row->sides[side], chunk.sides[side]);
  row->cross = AddOrOverflow(row->cross, chunk.cross);
}

template <class T>
void SetExtremes(const Extremes *extremes, DivergenceRow *row, DivergenceState<T> *state) {
  state->nan = extremes[kStudent].IsNan() || extremes[kTeacher].IsNan();
  for (int side = 0; side < 2; ++side) {
    row->max[side] = extremes[side].max;
    row->argmax[side] = static_cast<double>(extremes[side].argmax);
  }
}

template <class T>
void FinishSums(const DivergenceCall &call, const DivergenceSums &sums, DivergenceRow *row, DivergenceState<T> *state) {
  using N = Number<T>;
  N logs[2];
  for (int side = 0; side < 2; ++side) {
    const N others = ToNumber<T>(sums.sides[side]);
    logs[side] = Log1p(others);
    state->totals[side] = Add(others, N{1.0});
  }
  const bool reverse = call.Kind() == DivergenceKind::kReverseKl;
  const N cross = Ratio(ToNumber<T>(sums.cross), state->totals[reverse ? kStudent : kTeacher]);
  N rest = logs[kStudent];
  if (call.Kind() != DivergenceKind::kCrossEntropy) rest = Subtract(rest, logs[kTeacher]);
  if (reverse) rest = Subtract(N{}, rest);
  state->loss = AddOrOverflow(cross, rest);
  row->log_ratio = Value(Subtract(logs[kTeacher], logs[kStudent]));
  row->mean = Wide{cross};  // of a - b; what of a reverse KL's logarithms is the same in all columns cancels
}

template <class T>
void FinishJensenShannon(const DivergenceCall &call, const DivergenceSums &sums, DivergenceRow *row,
                         DivergenceState<T> *state) {
  using N = Number<T>;
  const N student = Ratio(ToNumber<T>(sums.sides[kStudent]), state->totals[kStudent]);
  const N teacher = Ratio(ToNumber<T>(sums.sides[kTeacher]), state->totals[kTeacher]);
  state->loss = AddOrOverflow(MultiplyAny(teacher, N{call.args.beta}), MultiplyAny(student, N{1.0 - call.args.beta}));
  row->mean = Wide{student};
}

// Writes the loss, and prepares the gradient.
template <class T>
void FinishRow(const DivergenceCall &call, int64_t index, DivergenceRow *row, DivergenceState<T> *state) {
  using N = Number<T>;
  const double weight = call.RowWeight(index);
  if (Value(state->loss) < 0.0) state->loss = N{};  // by rounding alone
  state->stored = state->nan ? std::numeric_limits<T>::quiet_NaN() : RoundTo<T>(Weighted(state->loss, weight));
  Call::Write(call.args.losses, index, state->stored);
  if (call.mode == Mode::kForward) return;
  const bool no_number = call.Kind() == DivergenceKind::kReverseKl && Value(state->loss) == kInfinity && weight != 0.0;
  const double u = UpstreamOf(call.args.upstream, call.args.upstream_kind, call.IsWide(), index);
  Factor g;
  state->fill = FillOf(call.denominator, u, weight, state->nan || no_number, &g);
  if (state->fill != Fill::kCompute) return;
  // The same over T, with its rounding errors.
  const Factor upstream = Decompose(u), r = Decompose(weight), t = Decompose(call.args.temperature);
  const double share = call.HasSecondSums() ? 1.0 - call.args.beta : 1.0;
  const N divisor = Multiply(N{call.denominator.mantissa}, N{t.mantissa});
  const N product = Multiply(Multiply(N{upstream.mantissa}, N{r.mantissa}), N{share});
  const int64_t exponent = upstream.exponent + r.exponent - call.denominator.exponent - t.exponent;
  for (int side = 0; side < 2; ++side) {
    row->factor[side] = Wide{Divide(product, Multiply(divisor, state->totals[side]))};
  }
  // v is 0 or at least 2^-1022: past 2^2046 everything is infinite.
  constexpr int64_t kLargest = 2046;
  row->scale[0] = exponent > kLargest ? kInfinity : PowerOfTwo(exponent / 2);
  row->scale[1] = exponent > kLargest ? 1.0 : PowerOfTwo(exponent - exponent / 2);
}

template <class T>
void EndRow(const DivergenceCall &call, int64_t row, const DivergenceState<T> &state) {
  if (call.mode == Mode::kForward) return;
  if (state.fill != Fill::kCompute) {
    call.FillGradient(row, 0, call.shape.cols, state.fill == Fill::kNan ? kNan : 0.0);
  }
  call.FillGradient(row, call.shape.cols, call.args.cols, 0.0);
}

// Adjacent columns.
template <class T>
struct DivergenceJob {
  static constexpr int kPasses = 4;  // maxima, sums, those of Jensen-Shannon, gradient
  struct alignas(64) Part {
    Extremes extremes[2];
    DivergenceSums sums;
  };
  using Sums = Totals;
  struct Row {
    DivergenceRow row;
    DivergenceState<T> state;
  };

  const DivergenceCall &call;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return true; }

  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, Part &part) const {
    const int64_t first = chunk * call.shape.chunk_cols;
    const int64_t cols = call.shape.ColsOf(chunk);
    if (pass == 0) {
      for (int side = 0; side < 2; ++side) {
        GeneralSums seen;
        call.kernels->general->sums[call.DtypeOf(side)](
            {call.Logits(side, row, first), cols, first, {}, {}, -1, {}, false, false, false}, &seen);
        part.extremes[side] = Extremes(seen);
      }
      return;
    }
    if (state.state.nan) return;
    const auto &kernels = *call.kernels->divergence;
    const DivergenceTask task = call.Task(row, first, cols, 0, &state.row);
    if (pass == 1) kernels.sums[call.IsWide()](task, &part.sums);
    if (pass == 2 && call.HasSecondSums()) kernels.jensen_shannon[call.IsWide()](task, &part.sums);
    if (pass == 3 && call.mode != Mode::kForward && state.state.fill == Fill::kCompute) {
      kernels.gradient[call.IsWide()](task);
    }
  }

  void Between(int pass, int64_t row, Row &state, const Part *parts) const {
    if (pass == 0) {
      Extremes extremes[2];
      for (int64_t i = 0; i < call.shape.chunks; ++i) {
        for (int side = 0; side < 2; ++side) extremes[side].Merge(parts[i].extremes[side]);
      }
      SetExtremes(extremes, &state.row, &state.state);
    } else if (pass < 3) {
      DivergenceSums sums;
      for (int64_t i = 0; i < call.shape.chunks; ++i) AddSums(parts[i].sums, &sums);
      if (pass == 1 && !state.state.nan) FinishSums(call, sums, &state.row, &state.state);
      if (pass == 2 && !state.state.nan && call.HasSecondSums())
        FinishJensenShannon(call, sums, &state.row, &state.state);
      if (pass == 2) FinishRow(call, row, &state.row, &state.state);
    }
  }

  void End(int64_t row, const Row &state, Totals &totals) const {
    EndRow(call, row, state.state);
    totals.Add({{static_cast<double>(state.state.stored), 0.0}, {}});
  }
};

// Maxima of adjacent positions.
XENT_NOINLINE void TileExtremes(const DivergenceCall &call, int64_t row, int64_t count, Extremes (*out)[2]) {
  GeneralSums seen[kLanes];
  for (int side = 0; side < 2; ++side) {
    TileTask task{};
    task.logits = call.Logits(side, row, 0);
    task.cols = call.shape.cols;
    task.stride = call.Inner();
    task.count = count;
    task.sums = false;
    call.kernels->general->tile_sums[call.DtypeOf(side)](task, seen);
    for (int64_t i = 0; i < count; ++i) out[i][side] = Extremes(seen[i]);
  }
}

template <class T>
XENT_NOINLINE void RunTile(const DivergenceCall &call, int64_t first, int64_t count, const Extremes (*extremes)[2],
                           Groups<Totals> &groups) {
  const auto &kernels = *call.kernels->divergence;
  DivergenceState<T> states[kLanes] = {};
  DivergenceRow rows[kLanes];
  DivergenceSums sums[kLanes];
  const DivergenceTask task = call.Task(first, 0, call.shape.cols, count, rows);
  for (int64_t i = 0; i < count; ++i) SetExtremes(extremes[i], &rows[i], &states[i]);
  kernels.sums[call.IsWide()](task, sums);
  for (int64_t i = 0; i < count; ++i) {
    if (!states[i].nan) FinishSums(call, sums[i], &rows[i], &states[i]);
  }
  if (call.HasSecondSums()) {
    kernels.jensen_shannon[call.IsWide()](task, sums);
    for (int64_t i = 0; i < count; ++i) {
      if (!states[i].nan) FinishJensenShannon(call, sums[i], &rows[i], &states[i]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    FinishRow(call, first + i, &rows[i], &states[i]);
    groups.Of(first + i).Add({{static_cast<double>(states[i].stored), 0.0}, {}});
  }
  if (call.mode == Mode::kForward) return;
  kernels.gradient[call.IsWide()](task);
  for (int64_t i = 0; i < count; ++i) EndRow(call, first + i, states[i]);
}

// Lanes over positions: rows [first, end), tile after tile, each row added to its group's totals in order. Maxima and
// sums have frames of their own, so that their scratch is not there at once.
template <class T>
XENT_NOINLINE void RunTiles(const DivergenceCall &call, int64_t first_row, int64_t end_row, Groups<Totals> &groups) {
  const int64_t inner = call.Inner();
  for (int64_t first = first_row, count; first < end_row; first += count) {
    count = std::min({kLanes, end_row - first, inner - first % inner});
    Extremes extremes[kLanes][2];
    TileExtremes(call, first, count, extremes);
    RunTile<T>(call, first, count, extremes, groups);
  }
}

template <class T>
XENT_NOINLINE bool Run(const DivergenceCall &call, Totals *totals) {
  if (call.Inner() == 1) return RunRows(DivergenceJob<T>{call}, call.shape, call.exec, totals);
  const auto run = [&](int64_t first, int64_t end, Groups<Totals> &groups) { RunTiles<T>(call, first, end, groups); };
  return RunTiled(call.shape, call.exec, run, totals);
}

// Outputs and inputs that forward has no use for must be unset: nothing is silently left undone.
xent_status CheckUnused(const xent_divergence &args, Mode mode, xent_error *error) {
  if (mode != Mode::kForward) return XENT_OK;
  const char *name = nullptr;
  if (args.grad != nullptr) name = "grad";
  if (args.grad_stride != 0) name = "grad_stride";
  if (args.upstream != nullptr) name = "upstream";
  if (args.upstream_kind != XENT_UPSTREAM_ONE) name = "upstream_kind";
  if (args.in_place != 0) name = "in_place";
  return name == nullptr ? XENT_OK : Invalid(error, "%s is set, but forward writes no gradient", name);
}

xent_status CheckKind(const xent_divergence &args, xent_error *error) {
  if (args.kind < XENT_DIVERGENCE_FORWARD_KL || args.kind > XENT_DIVERGENCE_CROSS_ENTROPY) {
    return Invalid(error,
                   "kind is %d, expected XENT_DIVERGENCE_FORWARD_KL, XENT_DIVERGENCE_REVERSE_KL, "
                   "XENT_DIVERGENCE_JENSEN_SHANNON or XENT_DIVERGENCE_CROSS_ENTROPY",
                   args.kind);
  }
  if (args.temperature - args.temperature != 0.0 || args.temperature <= 0.0) {
    return Invalid(error, "temperature is %.17g, expected a finite number > 0", args.temperature);
  }
  if (!(args.beta > 0.0 && args.beta < 1.0)) {
    return Invalid(error, "beta is %.17g, expected a number between 0 and 1, both excluded", args.beta);
  }
  if (args.beta != 0.5 && args.kind != XENT_DIVERGENCE_JENSEN_SHANNON) {
    return Invalid(error, "beta %.17g and kind %d do not go together: expected XENT_DIVERGENCE_JENSEN_SHANNON, or 0.5",
                   args.beta, args.kind);
  }
  if (args.reserved != 0) return Invalid(error, "args: reserved is %d, expected 0", args.reserved);
  return XENT_OK;
}

xent_status CheckDivergence(const xent_divergence *given, const xent_options *given_options,
                            const xent_exec *given_exec, Mode mode, DivergenceCall *call, xent_error *error) {
  const FpMode fp_mode(Subnormals::kKeep);  // comparisons neither trap nor flush, whatever the caller's mode
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_divergence &args = call->args;
  call->mode = mode;
  XENT_RETURN_IF_ERROR(ReadStruct(given, "args", &args, error));
  XENT_RETURN_IF_ERROR(CheckDtype(args.student_dtype, "student_dtype", error));
  XENT_RETURN_IF_ERROR(CheckDtype(args.teacher_dtype, "teacher_dtype", error));
  XENT_RETURN_IF_ERROR(CheckShape(args.rows, args.cols, args.student_dtype, error));
  XENT_RETURN_IF_ERROR(CheckOptions(given_options, args.cols, &call->options, error));
  XENT_RETURN_IF_ERROR(RefuseOptions(call->options, kUsesValidCols, "a divergence", error));
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &call->exec, error));
  XENT_RETURN_IF_ERROR(CheckInner(args.rows, args.inner, error));
  XENT_RETURN_IF_ERROR(CheckKind(args, error));
  XENT_RETURN_IF_ERROR(CheckUnused(args, mode, error));
  XENT_RETURN_IF_ERROR(CheckLossWanted(args.loss, call->options, error));
  const int64_t inner = call->Inner();
  Matrix student{"student", "student_stride", args.student, args.student_stride};
  Matrix teacher{"teacher", "teacher_stride", args.teacher, args.teacher_stride};
  Matrix grad{"grad", "grad_stride", args.grad, args.grad_stride};
  XENT_RETURN_IF_ERROR(CheckLayout(args.rows, args.cols, inner, args.student_dtype, &student, error));
  XENT_RETURN_IF_ERROR(CheckLayout(args.rows, args.cols, inner, args.teacher_dtype, &teacher, error));
  const size_t size = call->IsWide() ? 8 : 4;
  XENT_RETURN_IF_ERROR(CheckArray(args.losses, 0, size, "losses", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.loss, 0, size, "loss", error));
  if (mode != Mode::kForward) {
    XENT_RETURN_IF_ERROR(CheckLayout(args.rows, args.cols, inner, args.student_dtype, &grad, error));
    XENT_RETURN_IF_ERROR(CheckInPlace(student, grad, args.rows, args.in_place, error));
    if (args.rows > 0 && args.grad == args.teacher) {
      return Invalid(error, "grad is teacher, expected memory of its own");
    }
    XENT_RETURN_IF_ERROR(CheckUpstream(args.upstream, args.upstream_kind, args.rows, args.student_dtype, error));
  }
  XENT_RETURN_IF_ERROR(CheckWeights(args.row_weights, args.rows, call->IsWide(), "row_weights", error));
  call->strides[kStudent] = student.stride;
  call->strides[kTeacher] = teacher.stride;
  call->grad_stride = grad.stride;
  return XENT_OK;
}

// 1/T over kDivergenceShrink; what is past the largest number becomes that.
Wide InverseTemperature(double temperature) {
  const Factor t = Decompose(temperature);
  const Wide inverse = Scale(Divide({1.0 / kDivergenceShrink, 0.0}, {t.mantissa, 0.0}), -t.exponent);
  return inverse.hi - inverse.hi == 0.0 ? inverse : Wide{std::numeric_limits<double>::max(), 0.0};
}

xent_status Divergence(const xent_divergence *given, const xent_options *given_options, const xent_exec *given_exec,
                       Mode mode, xent_error *error) {
  DivergenceCall call;
  XENT_RETURN_IF_ERROR(CheckDivergence(given, given_options, given_exec, mode, &call, error));
  const FpMode fp_mode(Subnormals::kFlush);
  const int64_t valid_cols = call.options.valid_cols;
  call.shape = RowShape(call.args.rows, valid_cols != 0 ? valid_cols : call.args.cols);
  call.kernels = &ActiveKernels();
  call.denominator = Denominator(call.options, static_cast<double>(call.args.rows));
  call.factor = InverseTemperature(call.args.temperature);
  Totals totals;
  const bool complete = call.IsWide() ? Run<double>(call, &totals) : Run<float>(call, &totals);
  if (!complete) return FailIncomplete(error);
  if (call.args.loss != nullptr) {
    WriteReduced(call.args.loss, call.IsWide(), totals.loss, call.options, call.denominator);
  }
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_divergence_forward(const xent_divergence *args, const xent_options *options, const xent_exec *exec,
                                    xent_error *error) noexcept {
  return xent::internal::Divergence(args, options, exec, xent::internal::Mode::kForward, error);
}

xent_status xent_divergence_forward_backward(const xent_divergence *args, const xent_options *options,
                                             const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::Divergence(args, options, exec, xent::internal::Mode::kForwardBackward, error);
}

}  // extern "C"
