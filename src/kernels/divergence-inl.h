// Sums and gradients of divergences, see divergence.h. Both layouts go through the same code, strip after strip of
// kLanes lanes: the next kLanes columns of a row, or one column at kLanes positions.
#if defined(XENT_SRC_KERNELS_DIVERGENCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_DIVERGENCE_INL_H_
#undef XENT_SRC_KERNELS_DIVERGENCE_INL_H_
#else
#define XENT_SRC_KERNELS_DIVERGENCE_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "kernels/divergence.h"
#include "kernels/double_lanes-inl.h"
#include "numbers/double-inl.h"
#include "numbers/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// A task's rows, one to a lane or one for all lanes, and the strip that is being worked on.
struct DivergenceLanes {
  // Where lanes run over columns, argmax counts from the lane's first: the strip's first column is compared with it.
  HWY_ALIGN double max[2][kLanes], argmax[2][kLanes], log_ratio[kLanes], scale[2][kLanes];
  HWY_ALIGN double factor[2][kLanes], factor_low[2][kLanes], mean[kLanes], mean_low[kLanes];
  HWY_ALIGN double bias[kLanes];  // of the exponentials, which the scales or logarithms lack
  HWY_ALIGN double logits[2][kLanes];
  const DivergenceTask &task;
  double inverse_low;             // what 1/T's high part lacks, relative to it
  double gap_factor, gap_shrink;  // what makes differences gaps: 1/T and 2^-kDivergenceGap in one or the other
  int64_t first = -1, used = 0;   // the strip's first column, and its lanes in use

  DivergenceLanes(const DivergenceTask &t, bool sums) : task(t), inverse_low(task.factor.lo / task.factor.hi) {
    const double shrink = task.kind == DivergenceKind::kJensenShannon ? 1.0 : PowerOfTwo(-kDivergenceGap);
    const bool has_room = task.factor.hi >= 1.0;
    gap_factor = task.factor.hi * (has_room ? shrink : 1.0);
    gap_shrink = has_room ? 1.0 : shrink;
    for (int64_t i = 0; i < kLanes; ++i) {
      const DivergenceRow &row =
          *EveryBytes(task.rows, task.row_bytes, task.count > 0 ? HWY_MIN(i, task.count - 1) : 0);
      for (int side = 0; side < 2; ++side) {
        max[side][i] = row.max[side] * kDivergenceShrink;
        argmax[side][i] = row.argmax[side] - (task.count > 0 ? 0.0 : static_cast<double>(i));
        factor[side][i] = row.factor[side].hi;
        factor_low[side][i] = row.factor[side].lo;
      }
      const int64_t exponent = sums ? 0 : ExponentOf(row.scale[0]) + ExponentOf(row.scale[1]);
      // Of the forward forms the scales take the bias away, after the difference of the two terms.
      const int64_t binades = std::clamp<int64_t>(exponent, 0, kDivergenceReach);
      const bool reverse = task.kind == DivergenceKind::kReverseKl;
      const int64_t rest = exponent - binades - (HasLogs() ? 0 : kDivergenceBias);
      bias[i] = static_cast<double>(binades + (reverse && !sums ? kDivergenceGap : kDivergenceBias));
      const bool ends = row.scale[0] == 0.0 || !IsFinite(row.scale[0]);
      scale[0][i] = ends ? row.scale[0] : PowerOfTwo(rest / 2);
      scale[1][i] = ends ? row.scale[1] : PowerOfTwo(rest - rest / 2);
      log_ratio[i] = row.log_ratio;
      const Wide of_row = reverse ? Scale(row.mean, -kDivergenceGap) : row.mean;
      mean[i] = of_row.hi;
      mean_low[i] = of_row.lo;
    }
  }

  // Whether exponentials are multiplied by logarithms, which then take the bias away: so no product overflows early.
  bool HasLogs() const {
    return task.kind == DivergenceKind::kReverseKl || task.kind == DivergenceKind::kJensenShannon;
  }
  // Goes to the next strip and loads it: false, there is none. Not inline: the compiler would keep so many vectors from
  // strip to strip that they take kilobytes of stack.
  HWY_NOINLINE bool Next() {
    first = first < 0 ? 0 : first + (task.count > 0 ? 1 : kLanes);
    if (first >= task.cols) return false;
    used = task.count > 0 ? task.count : HWY_MIN(kLanes, task.cols - first);
    for (int side = 0; side < 2; ++side) {
      StageAny(task.dtypes[side], task.logits[side], first * task.stride, used, kLanes, kMasked, logits[side]);
    }
    return true;
  }
  // Returns the exponential, 0 in the column of the row's maximum.
  HWY_INLINE Doubles WithoutMaximum(Side side, int64_t i, Doubles exponential) const {
    const DoubleTag d;
    const Doubles column = hn::Set(d, static_cast<double>(task.first + first));
    return hn::IfThenZeroElse(hn::Eq(column, hn::Load(d, argmax[side] + i)), exponential);
  }
  // Whether a logit is masked.
  HWY_INLINE hn::Mask<DoubleTag> IsMasked(int side, int64_t i) const {
    const DoubleTag d;
    return hn::Eq(hn::Load(d, logits[side] + i), hn::Set(d, kMasked));
  }
};

// Calls function(i, e^-b, e^-a, gap, gap_low), exponentials biased, for each vector of the strip, lanes from i on. The
// gap is b - a, for cross-entropy b alone (kDivergenceGap); it is infinite where one of the logits is masked, NaN where
// both are. gap_low is, for float64 and a finite gap, what its roundings lost.
template <class T, class Function>
HWY_INLINE void ForEachVector(const DivergenceLanes &lanes, const Function &function) {
  const DoubleTag d;
  const Doubles factor = hn::Set(d, lanes.task.factor.hi), inverse_low = hn::Set(d, lanes.inverse_low);
  const auto below_maximum = [&](Side side, int64_t i, Doubles *lost) HWY_ATTR {
    const Doubles logit = hn::Mul(hn::Load(d, lanes.logits[side] + i), hn::Set(d, kDivergenceShrink));
    return DifferenceFor<T>(hn::Load(d, lanes.max[side] + i), logit, lost);
  };
  const auto exponential = [&](Doubles difference, Doubles low, int64_t i) HWY_ATTR {
    if constexpr (kKeepsLow<T>) low = hn::MulAdd(difference, inverse_low, low);
    return ExpOfNegative<T>(difference, low, factor, hn::Load(d, lanes.bias + i));
  };
  for (int64_t i = 0; i < kLanes; i += static_cast<int64_t>(hn::Lanes(d))) {
    Doubles student_lost, teacher_lost, lost;
    const Doubles student = below_maximum(kStudent, i, &student_lost);
    Doubles teacher = below_maximum(kTeacher, i, &teacher_lost);
    const Doubles exp_student = exponential(student, student_lost, i);
    const Doubles exp_teacher = exponential(teacher, teacher_lost, i);
    if (lanes.task.kind == DivergenceKind::kCrossEntropy) teacher = teacher_lost = hn::Zero(d);
    const Doubles shrink = hn::Set(d, lanes.gap_shrink), gap_factor = hn::Set(d, lanes.gap_factor);
    const Doubles difference = hn::Mul(DifferenceFor<T>(student, teacher, &lost), shrink);
    Doubles gap = hn::Mul(difference, gap_factor), gap_low = hn::Zero(d);
    if constexpr (kKeepsLow<T>) {
      const auto finite = hn::Lt(hn::Abs(difference), hn::Set(d, -kMasked));
      const Doubles more = hn::Mul(hn::Add(lost, hn::Sub(student_lost, teacher_lost)), shrink);
      const Doubles sum = hn::Add(difference, more);
      const Doubles rest = hn::MulAdd(sum, inverse_low, hn::Sub(more, hn::Sub(sum, difference)));
      gap = hn::IfThenElse(finite, hn::Mul(sum, gap_factor), gap);
      gap_low = hn::MulAdd(rest, gap_factor, ProductError(d, sum, gap_factor, gap));
    }
    function(i, exp_student, exp_teacher, gap, gap_low);
  }
}

// Returns -log(rest + c e^x), rest = 1 - c: log(q/m) with c = beta, x = log p - log q; log(p/m) with c = 1 - beta and
// -x.
HWY_INLINE Doubles LogOverMixture(double c, double rest, Doubles x) {
  const DoubleTag d;
  const Doubles limit = hn::Set(d, 709.0);  // beyond it log(c e^x) = log(c e^709) + (x - 709)
  const Doubles inside = hn::Min(hn::Max(x, hn::Neg(limit)), limit);
  const Doubles beyond = hn::Max(hn::Sub(x, limit), hn::Zero(d));
  const Doubles change = hn::Mul(hn::Set(d, c), Expm1<double>(d, inside, hn::Zero(d)));
  Doubles log = Log1pDouble(d, change);
  // Where 1 + change would cancel the two terms are added; never so with c <= 1/2.
  const auto keeps = hn::Ge(change, hn::Set(d, -0.5));
  if (HWY_UNLIKELY(!hn::AllTrue(d, keeps))) {
    const Doubles sum = hn::MulAdd(ExpFor<double>(d, inside, hn::Zero(d)), hn::Set(d, c), hn::Set(d, rest));
    log = hn::IfThenElse(keeps, log, LogDouble(d, sum));
  }
  return hn::Neg(hn::Add(log, beyond));
}

template <class T, bool kSecondLook>
void SumDivergence(const DivergenceTask &task, DivergenceSums *out, int64_t bytes) {
  const DoubleTag d;
  const bool reverse = task.kind == DivergenceKind::kReverseKl;
  const bool crosses = task.kind != DivergenceKind::kJensenShannon;
  const int weight_side = reverse ? kStudent : kTeacher;
  DivergenceLanes lanes(task, true);
  LaneSums<T> student_sums, teacher_sums, cross;
  const auto add = [&](int64_t i, Doubles exp_student, Doubles exp_teacher, Doubles gap, Doubles) XENT_INLINE_LAMBDA {
    const Doubles zero = hn::Zero(d);
    if constexpr (kSecondLook) {
      const Doubles x = hn::Sub(gap, hn::Load(d, lanes.log_ratio + i));  // log p - log q
      const Doubles student = hn::Mul(exp_student, LogOverMixture(task.beta, 1.0 - task.beta, x));
      const Doubles teacher = hn::Mul(exp_teacher, LogOverMixture(1.0 - task.beta, task.beta, hn::Neg(x)));
      AddDoubles(hn::IfThenElseZero(hn::Gt(exp_student, zero), student), i, student_sums);
      AddDoubles(hn::IfThenElseZero(hn::Gt(exp_teacher, zero), teacher), i, teacher_sums);
      return;
    }
    AddDoubles(lanes.WithoutMaximum(kStudent, i, exp_student), i, student_sums);
    AddDoubles(lanes.WithoutMaximum(kTeacher, i, exp_teacher), i, teacher_sums);
    if (!crosses) return;
    const Doubles weight = reverse ? exp_student : exp_teacher;
    const Doubles term = hn::IfThenElseZero(hn::Gt(weight, zero), hn::Mul(weight, reverse ? hn::Neg(gap) : gap));
    // Whether a probability is 0 is for its logit to say, not for an exponential that counts as 0.
    const auto infinite = hn::AndNot(lanes.IsMasked(weight_side, i), lanes.IsMasked(1 - weight_side, i));
    AddDoubles(hn::IfThenElse(infinite, hn::Neg(hn::Set(d, kMasked)), term), i, cross);
  };
  while (lanes.Next()) ForEachVector<T>(lanes, add);
  for (int64_t i = 0; i < HWY_MAX(task.count, int64_t{1}); ++i) {
    const auto total = [&](const LaneSums<T> &sum) { return TotalOf(sum, task.count, i); };
    *EveryBytes(out, bytes, i) = {{total(student_sums), total(teacher_sums)}, total(cross)};
  }
}

// Returns factor e, *low being for float64 what its rounding and the factor's lose.
template <class T>
HWY_INLINE Doubles TimesFactor(Doubles e, const DivergenceLanes &lanes, int side, int64_t i, Doubles *low) {
  const DoubleTag d;
  const Doubles factor = hn::Load(d, lanes.factor[side] + i);
  const Doubles product = hn::Mul(e, factor);
  *low = hn::Zero(d);
  if constexpr (kKeepsLow<T>) {
    *low = hn::MulAdd(e, hn::Load(d, lanes.factor_low[side] + i), ProductError(d, e, factor, product));
  }
  return product;
}

template <class T>
void DivergenceGradient(const DivergenceTask &task) {
  const DoubleTag d;
  DivergenceLanes lanes(task, false);
  HWY_ALIGN double gradient[kLanes];
  const auto store = [&](int64_t i, Doubles exp_student, Doubles exp_teacher, Doubles gap,
                         Doubles gap_low) XENT_INLINE_LAMBDA {
    const Doubles zero = hn::Zero(d), unbiased = hn::Set(d, PowerOfTwo(-kDivergenceBias));
    // Products and differences apart, not fused: where p = q the gradient of the forward forms is 0.
    Doubles student_low, teacher_low, v;
    const Doubles student = TimesFactor<T>(exp_student, lanes, kStudent, i, &student_low);
    if (task.kind == DivergenceKind::kReverseKl) {
      Doubles lost;
      const Doubles minus = DifferenceFor<T>(hn::Neg(gap), hn::Load(d, lanes.mean + i), &lost);
      v = hn::Mul(student, minus);
      if constexpr (kKeepsLow<T>) {
        const Doubles low = hn::Sub(lost, hn::Add(gap_low, hn::Load(d, lanes.mean_low + i)));
        v = hn::MulAdd(student, minus, hn::MulAdd(student, low, hn::Mul(student_low, minus)));
      }
    } else if (task.kind == DivergenceKind::kJensenShannon) {
      const Doubles x = hn::Sub(gap, hn::Load(d, lanes.log_ratio + i));
      const Doubles log = LogOverMixture(task.beta, 1.0 - task.beta, x);
      const Doubles minus = hn::Mul(hn::Sub(log, hn::Load(d, lanes.mean + i)), unbiased);
      v = hn::Mul(student, minus);
      if constexpr (kKeepsLow<T>) v = hn::MulAdd(student, minus, hn::Mul(student_low, minus));
    } else {
      v = hn::Sub(student, TimesFactor<T>(exp_teacher, lanes, kTeacher, i, &teacher_low));
      if constexpr (kKeepsLow<T>) v = hn::Add(v, hn::Sub(student_low, teacher_low));
    }
    if (task.kind == DivergenceKind::kReverseKl || task.kind == DivergenceKind::kJensenShannon) {
      v = hn::IfThenElseZero(hn::Gt(exp_student, zero), v);
    }
    const Doubles scaled = hn::Mul(hn::Mul(v, hn::Load(d, lanes.scale[0] + i)), hn::Load(d, lanes.scale[1] + i));
    hn::Store(hn::IfThenElseZero(hn::Ne(v, zero), scaled), d, gradient + i);
  };
  while (lanes.Next()) {
    ForEachVector<T>(lanes, store);
    UnstageAny(task.dtypes[kStudent], gradient, lanes.first * task.stride, lanes.used, task.gradient);
  }
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
