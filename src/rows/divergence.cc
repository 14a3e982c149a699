#include "rows/divergence.h"

#include <algorithm>
#include <limits>

#include "rows/across.h"
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
  bool floats;  // float lanes compute the row, so far
  bool nan;
  N totals[2];  // of the exponentials
  N loss;
  T stored;
  Fill fill;

  // Takes the maxima of the row's chunks, in the order of their columns: of equal ones the first.
  void Take(const DivergenceCall &call, const auto *parts) {
    for (int side = 0; side < 2; ++side) {
      row.argmax[side] = -1.0;
      for (int64_t i = 0; i < call.shape.chunks; ++i) {
        const Maximum &chunk = parts[i].maxima[side];
        nan = nan || chunk.special;
        if (chunk.argmax < 0 || (row.argmax[side] >= 0.0 && chunk.max <= row.max[side])) continue;
        row.max[side] = chunk.max;
        row.argmax[side] = static_cast<double>(chunk.argmax);
      }
      nan = nan || row.argmax[side] < 0.0;
      floats = floats && Magnitude(row.max[side] * call.Scale()) <= Format<float>::kLimit;
    }
  }

  int64_t Bias() const { return floats ? 0 : kDivergenceBias; }  // of the sums

  void Take(const DivergenceCall &call, const DivergenceSums &sums) {
    N logs[2];
    if (floats) {
      const double most = std::max(sums.sides[kStudent].hi, sums.sides[kTeacher].hi);
      const double finite =
          sums.sides[kStudent].hi + sums.sides[kTeacher].hi + (call.HasSecondSums() ? 0.0 : sums.cross.hi);
      floats = IsFinite(finite) && (most >= kLeastOthers || call.shape.cols == 1);
    }
    for (int side = 0; side < 2; ++side) {
      const N others = Scale(ToNumber<T>(sums.sides[side]), -Bias());
      logs[side] = Log1p(others);
      totals[side] = Add(others, N{1.0});
    }
    const bool reverse = call.Kind() == DivergenceKind::kReverseKl;
    const N mean = MeanOf(ToNumber<T>(sums.cross), totals[reverse ? kStudent : kTeacher]);
    const N cross = floats ? mean : Scale(mean, kDivergenceBias);
    N rest = logs[kStudent];
    if (call.Kind() != DivergenceKind::kCrossEntropy) rest = Subtract(rest, logs[kTeacher]);
    if (reverse) rest = Subtract(N{}, rest);
    loss = AddOrOverflow(cross, rest);
    row.log_ratio = Value(Subtract(logs[kTeacher], logs[kStudent]));
    row.mean = Wide{cross};  // of a - b; what of a reverse KL's logarithms is the same in all columns cancels
  }

  void TakeJensenShannon(const DivergenceCall &call, const DivergenceSums &sums) {
    const N student = Scale(MeanOf(ToNumber<T>(sums.sides[kStudent]), totals[kStudent]), -Bias());
    const N teacher = Scale(MeanOf(ToNumber<T>(sums.sides[kTeacher]), totals[kTeacher]), -Bias());
    const double beta = call.options.beta;
    loss = AddOrOverflow(MultiplyAny(teacher, N{beta}), MultiplyAny(student, N{1.0 - beta}));
    row.mean = Wide{student};
  }

  // Writes the loss, and prepares the gradient.
  void Finish(const DivergenceCall &call, int64_t index) {
    const double weight = call.RowWeight(index);
    if (Value(loss) < 0.0) loss = N{};  // by rounding alone
    stored = nan ? static_cast<T>(kNan) : RoundTo<T>(ValueOf(Times<N>({loss}, weight)));
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

// Rows of both matrices up to this size are asked for while the one before is summed.
constexpr int64_t kAheadBytes = 320 * 1024;

template <class T>
struct DivergenceJob {
  // Maxima and sums in float lanes; the same in double lanes, of rows that those are not made for; sums of
  // Jensen-Shannon; gradient.
  static constexpr int kPasses = 6;
  struct Part {
    Maximum maxima[2];
    DivergenceSums sums;
  };
  using Row = DivergenceState<T>;

  const DivergenceCall &call;

  bool Begin(int64_t row, Row &state) const {
    state.floats = call.float_lanes && call.plan.path == Path::kGeneral;
    if (!call.IsWeightless(row)) return true;
    state.fill = Fill::kZero;
    call.WriteZeros(row);
    return false;
  }
  static bool Skips(int pass, const Row &state) { return pass < 4 && state.floats != (pass < 2); }

  void Chunk(int pass, int64_t row, const Piece &chunk, Row &state, Part &part) const {
    if (!state.nan || state.fill != Fill::kCompute) Tile(pass, row, 0, chunk, &state, &part);
  }
  // Does one pass over a piece of one row (count 0), or of `count` adjacent positions.
  void Tile(int pass, int64_t row, int64_t count, const Piece &piece, const Row *states, Part *parts) const {
    if (Skips(pass, *states)) return;
    if (pass == 0) return FindLargest(row, piece, parts);
    if (pass == 2) return FindMaxima(row, count, piece, parts);
    if (pass == 4 && !call.HasSecondSums()) return;
    if (pass == 5 && call.mode == Mode::kForward) return;
    const xent_matrix &student = call.args.student, &teacher = call.args.teacher, &grad = call.args.grad;
    const int64_t units = std::max<int64_t>(count, 1);
    bool computes = false;
    for (int64_t i = 0; i < units; ++i) computes = computes || states[i].fill == Fill::kCompute;
    DivergenceTask task{.logits = {call.BytesAt(student, row, piece.first), call.BytesAt(teacher, row, piece.first)},
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
                        .gradient = call.BytesAt(grad, row, piece.first),
                        .stream = call.plan.stream,
                        .ahead = {},
                        .keeps_logs = call.HasSecondSums() && call.mode != Mode::kForward &&
                                      student.dtype == XENT_F32 && grad.data != student.data};
    // The next row, while the last sums of this one are in the caches.
    const int64_t row_bytes =
        call.shape.cols * static_cast<int64_t>(ElementSize(student.dtype) + ElementSize(teacher.dtype));
    if (pass == (call.HasSecondSums() ? 4 : 1) && row_bytes <= kAheadBytes) {
      for (const Side side : {kStudent, kTeacher}) {
        task.ahead[side] = call.MatrixOf(side).stride * static_cast<int64_t>(ElementSize(call.MatrixOf(side).dtype));
      }
    }
    const DivergenceKernels &kernels = *call.kernels->divergence;
    if (pass < 5 && states->floats) return kernels.float_sums[pass == 4](task, &parts->sums);
    if (pass < 5) return kernels.sums[pass == 4][call.IsWide()](task, &parts->sums, sizeof(Part));
    if (computes && !(states->floats && kernels.float_gradient(task))) kernels.gradient[call.IsWide()](task);
    for (int64_t i = 0; i < units; ++i) {
      const Fill fill = states[i].fill;
      if (fill != Fill::kCompute) call.FillGradient(grad, row + i, piece.first, piece.cols, NumberOf(fill));
    }
  }

  void Between(int pass, int64_t row, Row &state, const Part *parts) const {
    if (Skips(pass, state)) return;
    if (pass == 0 || pass == 2) return state.Take(call, parts);
    if (pass == 5) return;
    DivergenceSums sums;
    for (int64_t i = 0; i < call.shape.chunks; ++i) {
      const DivergenceSums &chunk = parts[i].sums;
      for (int side = 0; side < 2; ++side) sums.sides[side] = Add(sums.sides[side], chunk.sides[side]);
      sums.cross = AddOrOverflow(sums.cross, chunk.cross);
    }
    if (pass != 4 && !state.nan) state.Take(call, sums);
    if (pass == 4 && !state.nan && call.HasSecondSums()) state.TakeJensenShannon(call, sums);
    if (pass == 4) state.Finish(call, row);
  }

  void End(int64_t row, const Row &state, Totals &totals) const {
    call.FillGradient(call.args.grad, row, call.shape.cols, call.args.cols - call.shape.cols, 0.0);
    totals.AddRow(static_cast<double>(state.stored));
  }

 private:
  // Of the place of a largest logit float lanes need no more than its block.
  void FindLargest(int64_t row, const Piece &piece, Part *part) const {
    for (const Side side : {kStudent, kTeacher}) {
      const xent_matrix &matrix = call.MatrixOf(side);
      double max;
      int64_t block;
      call.kernels->divergence->largest(static_cast<Dtype>(matrix.dtype), call.BytesAt(matrix, row, piece.first),
                                        piece.cols, &max, &block);
      part->maxima[side] = {max, max == -kInfinity ? -1 : piece.first + block, max == kInfinity};
    }
  }
  // A frame of its own, so that its scratch is not there beside that of the sums.
  XENT_NOINLINE void FindMaxima(int64_t row, int64_t count, const Piece &piece, Part *parts) const {
    GeneralSums seen[kTile];
    for (const Side side : {kStudent, kTeacher}) {
      const xent_matrix &matrix = call.MatrixOf(side);
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

// The path over rows side by side: the kernel does it all, but for the rows that it leaves.
class DivergenceTiles {
 public:
  explicit DivergenceTiles(const DivergenceCall &call)
      : call_(call), one_g_(call.args.row_weights == nullptr && call.args.upstream.kind != XENT_UPSTREAM_ROWS) {}

  XENT_NOINLINE void Run(int64_t first, int64_t end, Groups &groups) const {
    DivergenceTile tile;
    tile.cols = call_.shape.cols;
    tile.positions = call_.shape.inner > 1;
    tile.kind = call_.Kind();
    tile.beta = call_.options.beta;
    tile.scale = call_.Scale();
    std::fill(tile.weights, tile.weights + kTile, 1.0);
    std::fill(tile.g, tile.g + kTile, one_g_ ? UpstreamOf(0) : 0.0);
    for (const Side side : {kStudent, kTeacher}) tile.dtypes[side] = static_cast<Dtype>(call_.MatrixOf(side).dtype);
    DivergenceTileRows rows;
    for (TilePlace place(call_.shape, first); place.row < end; place.Advance(call_.shape, tile.count)) {
      const int64_t row = place.row;
      tile.count =
          place.Rows(call_.shape, end, call_.plan.stream ? At(place, call_.args.grad).data : nullptr, sizeof(float));
      RunTile(place, &tile, &rows);
      const uint32_t every = (1u << tile.count) - 1;
      const bool all = rows.done == every && (call_.mode == Mode::kForward || rows.written == every);
      double sum;
      if (all && call_.shape.cols == call_.args.cols && SumExactly(rows.loss, tile.count, &sum) &&
          groups.AddExactly(row, row + tile.count - 1, sum)) {
        float *const losses = static_cast<float *>(call_.args.row_losses);
        if (losses != nullptr) std::copy_n(rows.loss, tile.count, losses + row);
        continue;
      }
      for (int64_t i = 0; i < tile.count; ++i) Finish(row + i, rows, i, groups);
    }
  }

 private:
  TileMatrix At(const TilePlace &place, const xent_matrix &matrix) const {
    return place.In(call_.shape, matrix, static_cast<int64_t>(ElementSize(matrix.dtype)));
  }
  double UpstreamOf(int64_t row) const {
    if (call_.mode == Mode::kForward || call_.denominator.mantissa == 0.0) return 0.0;
    const double share = call_.HasSecondSums() ? 1.0 - call_.options.beta : 1.0;
    const double denominator = Scale(call_.denominator.mantissa, call_.denominator.exponent);
    return call_.Upstream(row) * call_.RowWeight(row) / denominator * (share / call_.options.temperature);
  }
  XENT_NOINLINE void RunTile(const TilePlace &place, DivergenceTile *tile, DivergenceTileRows *rows) const {
    tile->live = (1u << tile->count) - 1;
    for (int64_t i = 0; call_.args.row_weights != nullptr && i < tile->count; ++i) {
      if (call_.IsWeightless(place.row + i)) tile->live &= ~(1u << i);
    }
    rows->done = rows->written = 0;
    if (tile->live == 0) return;
    tile->stream = call_.plan.stream && tile->count == kTile;
    for (const Side side : {kStudent, kTeacher}) tile->logits[side] = At(place, call_.MatrixOf(side));
    if (call_.mode != Mode::kForward) tile->gradient = At(place, call_.args.grad);
    for (int64_t i = 0; !one_g_ && i < tile->count; ++i) {
      tile->weights[i] = call_.RowWeight(place.row + i);
      tile->g[i] = UpstreamOf(place.row + i);
    }
    call_.kernels->divergence->tile(*tile, rows);
  }
  // A row that the kernel has left is a tile of its own in double lanes, in every layout. Where its gradient alone
  // needs that, the loss stays the kernel's.
  void Finish(int64_t row, const DivergenceTileRows &rows, int64_t i, Groups &groups) const {
    if (call_.IsWeightless(row)) return call_.WriteZeros(row);
    const bool done = (rows.done >> i & 1) != 0, written = (rows.written >> i & 1) != 0;
    if (!done) return RunTiles<DivergenceJob<float>, 1>({call_}, row, row + 1, groups);
    if (call_.mode != Mode::kForward && !written) RunAlone(row);
    call_.FillGradient(call_.args.grad, row, call_.shape.cols, call_.args.cols - call_.shape.cols, 0.0);
    Call::Write(call_.args.row_losses, row, rows.loss[i]);
    groups.AddRow(row, {{static_cast<double>(rows.loss[i]), 0.0}, {}});
  }
  XENT_NOINLINE void RunAlone(int64_t row) const {
    Totals unused;
    Groups groups(1, &unused, nullptr);
    RunTiles<DivergenceJob<float>, 1>({call_}, row, row + 1, groups);
  }

  const DivergenceCall &call_;
  bool one_g_;
};

// Returns 1/T over kDivergenceShrink, at most the largest number.
Wide InverseTemperature(double temperature) {
  const Factor t = Decompose(temperature);
  const Wide inverse = Scale(Divide({1.0 / kDivergenceShrink, 0.0}, {t.mantissa, 0.0}), -t.exponent);
  return IsFinite(inverse.hi) ? inverse : Wide{std::numeric_limits<double>::max(), 0.0};
}

}  // namespace

void DivergenceCall::WriteZeros(int64_t row) const {
  DispatchDtype(InputOf(args).dtype,
                [&](auto storage) { Call::Write(args.row_losses, row, Arithmetic<decltype(storage)>{}); });
  FillGradient(args.grad, row, 0, args.cols, 0.0);
}

void DivergenceCall::Prepare() {
  kernels = &ActiveKernels();
  shape = RowShape(args.rows, options.valid_cols, args.inner);
  denominator = Denominator(options.reduction, static_cast<double>(args.rows));
  factor = InverseTemperature(options.temperature);
  // Where one share is small the other's logarithm is the difference of two that are close.
  const double share = HasSecondSums() ? std::min(options.beta, 1.0 - options.beta) : 0.5;
  float_lanes = kernels->divergence->tile != nullptr && args.student.dtype != XENT_F64 &&
                args.teacher.dtype != XENT_F64 && Scale() >= 0x1p-20 && Scale() <= 0x1p20 && share >= 0x1p-4;
  plan = MakePlan(*this);
}

bool RunDivergence(DivergenceCall *call) {
  const FpMode mode(Subnormals::kFlush);
  call->Prepare();
  Totals totals;
  bool complete;
  if (call->plan.path == Path::kAcross) {
    const DivergenceTiles tiles(*call);
    const auto run = [&](int64_t first, int64_t end, Groups &groups) { tiles.Run(first, end, groups); };
    complete = RunGroups(*call, run, &totals);
  } else {
    complete =
        call->IsWide() ? RunRows(DivergenceJob<double>{*call}, &totals) : RunRows(DivergenceJob<float>{*call}, &totals);
  }
  if (complete) call->WriteReducedLoss(totals.loss);
  return complete;
}

}  // namespace xent::internal
