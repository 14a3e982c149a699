#include "rows/divergence.h"

#include <algorithm>
#include <limits>

#include "rows/run_rows.h"

namespace xent::internal {
namespace {

// The largest logit of a chunk.
struct Maximum {
  double max;
  int64_t argmax;  // -1: all are masked
  bool special;    // NaN or +inf
};

// sum / total, infinite where the sum is; no part of it overflows before.
double MeanOf(double sum, double total) { return sum / total; }
Wide MeanOf(Wide sum, Wide total) {
  constexpr double kHuge = 0x1p900;
  if (!IsFinite(sum.hi)) return {sum.hi, 0.0};
  if (sum.hi <= kHuge && sum.hi >= -kHuge) return Divide(sum, total);
  return Scale(Divide(Scale(sum, -200), total), 200);
}

// A row: what the kernels take of it, and what its passes find.
template <class T>
struct DivergenceState {
  using N = Number<T>;

  DivergenceRow row;
  bool nan;
  N totals[2];  // of the exponentials
  N loss;
  T stored;
  Fill fill;

  // Takes the maxima of the row's chunks, in the order of their columns: of equal ones the first.
  void Take(const auto *parts, int64_t chunks) {
    for (int side = 0; side < 2; ++side) {
      row.argmax[side] = -1.0;
      for (int64_t i = 0; i < chunks; ++i) {
        const Maximum &chunk = parts[i].maxima[side];
        nan = nan || chunk.special;
        if (chunk.argmax < 0 || (row.argmax[side] >= 0.0 && chunk.max <= row.max[side])) continue;
        row.max[side] = chunk.max;
        row.argmax[side] = static_cast<double>(chunk.argmax);
      }
      nan = nan || row.argmax[side] < 0.0;
    }
  }

  void Take(const DivergenceCall &call, const DivergenceSums &sums) {
    N logs[2];
    for (int side = 0; side < 2; ++side) {
      const N others = ToNumber<T>(sums.sides[side]);
      logs[side] = Log1p(others);
      totals[side] = Add(others, N{1.0});
    }
    const bool reverse = call.Kind() == DivergenceKind::kReverseKl;
    const N cross = MeanOf(ToNumber<T>(sums.cross), totals[reverse ? kStudent : kTeacher]);
    N rest = logs[kStudent];
    if (call.Kind() != DivergenceKind::kCrossEntropy) rest = Subtract(rest, logs[kTeacher]);
    if (reverse) rest = Subtract(N{}, rest);
    loss = AddOrOverflow(cross, rest);
    row.log_ratio = Value(Subtract(logs[kTeacher], logs[kStudent]));
    row.mean = Wide{cross};  // of a - b; what of a reverse KL's logarithms is the same in all columns cancels
  }

  void TakeJensenShannon(const DivergenceCall &call, const DivergenceSums &sums) {
    const N student = MeanOf(ToNumber<T>(sums.sides[kStudent]), totals[kStudent]);
    const N teacher = MeanOf(ToNumber<T>(sums.sides[kTeacher]), totals[kTeacher]);
    const double beta = call.options.beta;
    loss = AddOrOverflow(MultiplyAny(teacher, N{beta}), MultiplyAny(student, N{1.0 - beta}));
    row.mean = Wide{student};
  }

  // Writes the loss, and prepares the gradient.
  void Finish(const DivergenceCall &call, int64_t index) {
    const double weight = call.RowWeight(index);
    if (Value(loss) < 0.0) loss = N{};  // by rounding alone
    stored = nan ? static_cast<T>(kNan) : RoundTo<T>(Weighted(loss, weight));
    Call::Write(call.args.row_losses, index, stored);
    if (call.mode == Mode::kForward) return;
    const bool no_number = call.Kind() == DivergenceKind::kReverseKl && Value(loss) == kInfinity && weight != 0.0;
    Factor g;
    fill = call.FillOf(index, nan || no_number, &g);
    if (fill != Fill::kCompute) return;
    // The same over T, with its rounding errors.
    const Factor u = Decompose(call.Upstream(index)), r = Decompose(weight), t = Decompose(call.options.temperature);
    const double share = call.HasSecondSums() ? 1.0 - call.options.beta : 1.0;
    const N divisor = Multiply(N{call.denominator.mantissa}, N{t.mantissa});
    const N product = Multiply(Multiply(N{u.mantissa}, N{r.mantissa}), N{share});
    const int64_t exponent = u.exponent + r.exponent - call.denominator.exponent - t.exponent;
    for (int side = 0; side < 2; ++side) row.factor[side] = Wide{Divide(product, Multiply(divisor, totals[side]))};
    // v is 0 or at least 2^-1022: past 2^2046 everything is infinite.
    constexpr int64_t kLargest = 2046;
    row.scale[0] = exponent > kLargest ? kInfinity : PowerOfTwo(exponent / 2);
    row.scale[1] = exponent > kLargest ? 1.0 : PowerOfTwo(exponent - exponent / 2);
  }
};

template <class T>
struct DivergenceJob {
  static constexpr int kPasses = 4;  // maxima, sums, those of Jensen-Shannon, gradient
  struct Part {
    Maximum maxima[2];
    DivergenceSums sums;
  };
  using Row = DivergenceState<T>;

  const DivergenceCall &call;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return true; }

  void Chunk(int pass, int64_t row, const Piece &chunk, Row &state, Part &part) const {
    if (pass == 0 || !state.nan || state.fill != Fill::kCompute) Tile(pass, row, 0, chunk, &state, &part);
  }
  // Does one pass over a piece of one row (count 0), or of `count` adjacent positions.
  void Tile(int pass, int64_t row, int64_t count, const Piece &piece, const Row *states, Part *parts) const {
    if (pass == 0) return FindMaxima(row, count, piece, parts);
    if (pass == 2 && !call.HasSecondSums()) return;
    if (pass == 3 && call.mode == Mode::kForward) return;
    const xent_matrix &student = call.args.student, &teacher = call.args.teacher, &grad = call.args.grad;
    const int64_t units = std::max<int64_t>(count, 1);
    bool computes = false;
    for (int64_t i = 0; i < units; ++i) computes = computes || states[i].fill == Fill::kCompute;
    const DivergenceTask task{
        .logits = {call.BytesAt(student, row, piece.first), call.BytesAt(teacher, row, piece.first)},
        .dtypes = {static_cast<Dtype>(student.dtype), static_cast<Dtype>(teacher.dtype)},
        .stride = call.shape.inner,
        .cols = piece.cols,
        .first = piece.first,
        .count = count,
        .rows = &states->row,
        .row_bytes = sizeof(Row),
        .kind = call.Kind(),
        .beta = call.options.beta,
        .factor = call.factor,
        .gradient = call.BytesAt(grad, row, piece.first)};
    const DivergenceKernels &kernels = *call.kernels->divergence;
    if (pass < 3) return kernels.sums[pass - 1][call.IsWide()](task, &parts->sums, sizeof(Part));
    if (computes) kernels.gradient[call.IsWide()](task);
    for (int64_t i = 0; i < units; ++i) {
      const Fill fill = states[i].fill;
      if (fill != Fill::kCompute) call.FillGradient(grad, row + i, piece.first, piece.cols, NumberOf(fill));
    }
  }

  void Between(int pass, int64_t row, Row &state, const Part *parts) const {
    if (pass == 0) {
      state.Take(parts, call.shape.chunks);
    } else if (pass < 3) {
      DivergenceSums sums;
      for (int64_t i = 0; i < call.shape.chunks; ++i) {
        const DivergenceSums &chunk = parts[i].sums;
        for (int side = 0; side < 2; ++side) sums.sides[side] = Add(sums.sides[side], chunk.sides[side]);
        sums.cross = AddOrOverflow(sums.cross, chunk.cross);
      }
      if (pass == 1 && !state.nan) state.Take(call, sums);
      if (pass == 2 && !state.nan && call.HasSecondSums()) state.TakeJensenShannon(call, sums);
      if (pass == 2) state.Finish(call, row);
    }
  }

  void End(int64_t row, const Row &state, Totals &totals) const {
    call.FillGradient(call.args.grad, row, call.shape.cols, call.args.cols - call.shape.cols, 0.0);
    totals.AddRow(static_cast<double>(state.stored));
  }

 private:
  // A frame of its own, so that its scratch is not there beside that of the sums.
  XENT_NOINLINE void FindMaxima(int64_t row, int64_t count, const Piece &piece, Part *parts) const {
    GeneralSums seen[kTile];
    for (const Side side : {kStudent, kTeacher}) {
      const xent_matrix &matrix = side == kStudent ? call.args.student : call.args.teacher;
      GeneralTask task = call.TaskOf(matrix, row, count, piece);
      task.sums = false;
      call.kernels->general->sums[matrix.dtype](task, seen);
      for (int64_t i = 0; i < std::max<int64_t>(count, 1); ++i) {
        parts[i].maxima[side] = {seen[i].max, seen[i].argmax, seen[i].special != Special::kNone};
      }
    }
  }
};
static_assert(TileJob<DivergenceJob<float>>);

// Returns 1/T over kDivergenceShrink, at most the largest number.
Wide InverseTemperature(double temperature) {
  const Factor t = Decompose(temperature);
  const Wide inverse = Scale(Divide({1.0 / kDivergenceShrink, 0.0}, {t.mantissa, 0.0}), -t.exponent);
  return IsFinite(inverse.hi) ? inverse : Wide{std::numeric_limits<double>::max(), 0.0};
}

}  // namespace

void DivergenceCall::Prepare() {
  kernels = &ActiveKernels();
  shape = RowShape(args.rows, options.valid_cols, args.inner);
  denominator = Denominator(options.reduction, static_cast<double>(args.rows));
  factor = InverseTemperature(options.temperature);
  plan = MakePlan(*this);
}

bool RunDivergence(DivergenceCall *call) {
  const FpMode mode(Subnormals::kFlush);
  call->Prepare();
  Totals totals;
  const bool complete =
      call->IsWide() ? RunRows(DivergenceJob<double>{*call}, &totals) : RunRows(DivergenceJob<float>{*call}, &totals);
  if (complete) call->WriteReducedLoss(totals.loss);
  return complete;
}

}  // namespace xent::internal
