// Rows with any options, see general.h. Everything between loading and storing is double: for float32 that leaves 29
// bits beyond what the bounds need; for float64 differences to the maximum and sums carry their rounding errors along.
#if defined(XENT_SRC_KERNELS_GENERAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_GENERAL_INL_H_
#undef XENT_SRC_KERNELS_GENERAL_INL_H_
#else
#define XENT_SRC_KERNELS_GENERAL_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/along-inl.h"
#include "kernels/double_lanes-inl.h"
#include "kernels/general.h"
#include "kernels/lanes-inl.h"
#include "kernels/step-inl.h"
#include "numbers/double-inl.h"
#include "numbers/softcap-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

template <class T>
struct GeneralLanes {
  LaneSums<T> others, entropy, weight, weighted;

  // Terms of a vector of values z (masked at the maximum's own column) and labels y + y_low (0 there).
  HWY_INLINE void Add(int64_t first, Doubles m, Doubles z, Doubles y, Doubles y_low, Doubles factor, bool with_entropy,
                      bool with_weighted) {
    const DoubleTag d;
    const Doubles zero = hn::Zero(d), bias = hn::Set(d, static_cast<double>(kOthersBias));
    Doubles lost = zero;
    Doubles difference = DifferenceFor<T>(m, z, &lost);
    const Doubles exponential = ExpOfNegative<T>(difference, lost, factor, bias);
    AddDoubles(exponential, first, others);
    if (with_entropy) {
      const Doubles term = hn::Mul(exponential, hn::Mul(difference, factor));
      AddDoubles(hn::IfThenElseZero(hn::Gt(exponential, zero), term), first, entropy);
    }
    if (with_weighted) {
      if constexpr (Format<T>::kSpreadScale != 1.0) {
        const Doubles scale = hn::Set(d, Format<T>::kSpreadScale);
        difference = hn::Sub(hn::Mul(m, scale), hn::Mul(z, scale));
      }
      AddDoubles(hn::IfThenElseZero(hn::Ne(y, zero), hn::Mul(y, difference)), first, weighted);
      if constexpr (kKeepsLow<T>) {
        const auto finite = hn::Lt(difference, hn::Set(d, -kMasked));
        AddDoubles(hn::IfThenElseZero(finite, hn::Mul(y_low, difference)), first, weighted);
      }
    }
  }
};

// w (probs_factor q + share), and for float64 what its roundings lose.
template <class T>
HWY_INLINE Doubles LabelOf(const Labels &labels, Doubles q, Doubles weight, Doubles *low) {
  const DoubleTag d;
  const Doubles factor = hn::Set(d, labels.probs_factor.hi), share = hn::Set(d, labels.share.hi);
  *low = hn::Zero(d);
  if constexpr (!kKeepsLow<T>) {
    return hn::Mul(hn::MulAdd(q, factor, share), weight);
  } else {
    const Doubles product = hn::Mul(q, factor);
    Doubles lost = hn::Zero(d);
    const Doubles sum = DifferenceFor<T>(product, hn::Neg(share), &lost);
    const Doubles more = hn::MulAdd(q, hn::Set(d, labels.probs_factor.lo), hn::Set(d, labels.share.lo));
    const Doubles sum_low = hn::Add(hn::Add(lost, ProductError(d, q, factor, product)), more);
    const Doubles value = hn::Mul(sum, weight);
    *low = hn::MulAdd(sum_low, weight, ProductError(d, sum, weight, value));
    return value;
  }
}

// z' of a cap, and its derivative on request. Rows in float lanes have the values that along-inl.h and across-inl.h
// sum, so that a logit has one value wherever a row needs it.
template <class T>
class CapOf {
 public:
  explicit CapOf(const Transform &transform)
      : float_lanes_(transform.float_lanes),
        cap_(transform.scale, CapOrOne(transform), transform.Slope().mantissa),
        float_cap_(transform.scale, CapOrOne(transform)) {}

  HWY_INLINE Doubles operator()(Doubles z, Doubles *derivative = nullptr) const {
    const DoubleTag d;
    const hn::Rebind<float, DoubleTag> df;
    const bool rounds = !kKeepsLow<T> && float_lanes_;
    if (HWY_NATIVE_FMA && rounds) {
      if (derivative != nullptr) cap_.Value(d, z, derivative);
      return hn::PromoteTo(d, float_cap_.Value(df, hn::DemoteTo(df, z)));
    }
    const Doubles value = cap_.Value(d, z, derivative);
    return rounds ? hn::PromoteTo(d, hn::DemoteTo(df, value)) : value;
  }

 private:
  static double CapOrOne(const Transform &transform) { return transform.cap > 0.0 ? transform.cap : 1.0; }

  bool float_lanes_;
  SoftCap<T> cap_;
  FloatSoftCap float_cap_;
};

// Transforms logits to their values, `count` of them, a multiple of kLanes and aligned, in place.
template <class T>
class TransformOf {
 public:
  explicit TransformOf(const Transform &transform) : capped_(transform.cap > 0.0), cap_(transform) {}

  HWY_INLINE void operator()(double *z, int64_t count) const {
    if (capped_) Cap(z, count);
  }

 private:
  HWY_NOINLINE void Cap(double *z, int64_t count) const {
    const DoubleTag d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t i = 0; i < count; i += lanes) hn::Store(cap_(hn::Load(d, z + i)), d, z + i);
  }

  bool capped_;
  CapOf<T> cap_;
};

// `count` values in place, of any alignment.
template <class T>
HWY_INLINE void Values(const Transform &transform, double *values, int64_t count) {
  if (!(transform.cap > 0.0)) return;
  const TransformOf<T> transform_of(transform);
  HWY_ALIGN double copy[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t part = HWY_MIN(kLanes, count - i);
    Stage(values + i, part, kLanes, 0.0, copy);
    transform_of(copy, kLanes);
    std::memcpy(values + i, copy, static_cast<size_t>(part) * sizeof(double));
  }
}

// A task cut into strips: kWidth columns of one row, or kLanes positions of one column. Element i of a strip belongs to
// lane i % kLanes.
template <bool kOverColumns, int64_t kWidth>
class Strips {
 public:
  explicit Strips(const GeneralTask &task) : task_(task) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t k = Row(i);
      target[i] = task.targets == nullptr ? -1.0 : static_cast<double>(task.targets[k]);
      target_value[i] = task.targets == nullptr ? 0.0 : task.target_values[k].hi;
      target_low[i] = task.targets == nullptr ? 0.0 : task.target_values[k].lo;
    }
  }
  // The row of a lane; a lane beyond the positions does as the first.
  int64_t Row(int64_t lane) const { return lane < task_.count ? lane : 0; }

  // Goes to the next strip: false, there is none.
  bool Next() {
    first_ = first_ < 0 ? 0 : first_ + (kOverColumns ? kWidth : 1);
    if (first_ >= task_.cols) return false;
    used_ = kOverColumns ? HWY_MIN(kWidth, task_.cols - first_) : task_.count;
    return true;
  }
  int64_t used() const { return used_; }
  // The place of a column in a strip over columns, or -1.
  int64_t PlaceOf(double col) const {
    const double place = col - static_cast<double>(task_.first + first_);
    return place >= 0.0 && place < static_cast<double>(used_) ? static_cast<int64_t>(place) : -1;
  }
  // Where the strip begins in a matrix whose columns lie `stride` apart.
  int64_t Offset(int64_t stride) const { return first_ * stride; }

  template <class In>
  HWY_INLINE void Load(double *z) const {
    Stage(static_cast<const In *>(task_.logits) + Offset(task_.stride), used_, kWidth, kMasked, z);
  }
  // Class weights, labels and their low parts; 0 in lanes that are not used.
  template <class T>
  HWY_NOINLINE void LoadLabels(double *weight, double *y, double *low) const {
    const DoubleTag d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    const Labels &labels = task_.labels;
    const T *const weights = static_cast<const T *>(labels.class_weights);
    if (weights != nullptr && kOverColumns) {
      Stage(weights + first_, used_, kWidth, 0.0, weight);
    } else {
      const double one = weights == nullptr ? 1.0 : WidenSubnormal(weights[first_]);
      for (int64_t i = 0; i < kWidth; ++i) weight[i] = one;
    }
    if (labels.probs != nullptr) {
      StageAny(labels.probs_dtype, labels.probs, Offset(labels.probs_stride), used_, kWidth, 0.0, y);
    }
    for (int64_t i = 0; i < kWidth; i += lanes) {
      const Doubles q = labels.probs != nullptr ? hn::Load(d, y + i) : hn::Zero(d);
      Doubles lost = hn::Zero(d);
      hn::Store(LabelOf<T>(labels, q, hn::Load(d, weight + i), &lost), d, y + i);
      hn::Store(lost, d, low + i);
    }
    for (int64_t i = used_; i < kWidth; ++i) y[i] = low[i] = 0.0;
  }
  // Puts the values of targets in place of their labels; false: none is here.
  HWY_INLINE bool SetTargets(double *y, double *low) const {
    if constexpr (kOverColumns) {
      const int64_t place = PlaceOf(target[0]);
      if (place >= 0) y[place] = target_value[0];
      if (place >= 0) low[place] = target_low[0];
      return place >= 0;
    }
    const DoubleTag d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t i = 0; i < kLanes; i += lanes) {
      const auto here = hn::Eq(hn::Load(d, target + i), Column());
      hn::Store(hn::IfThenElse(here, hn::Load(d, target_value + i), hn::Load(d, y + i)), d, y + i);
      hn::Store(hn::IfThenElse(here, hn::Load(d, target_low + i), hn::Load(d, low + i)), d, low + i);
    }
    return true;
  }

  // The column of a strip of positions.
  HWY_INLINE Doubles Column() const { return hn::Set(DoubleTag(), static_cast<double>(task_.first + first_)); }

 private:
  HWY_ALIGN double target[kLanes], target_value[kLanes], target_low[kLanes];
  const GeneralTask &task_;
  int64_t first_ = -1, used_ = 0;
};

// Calls run(kOverColumns, kWidth) with the strips that suit a task: wide ones where there are columns to fill them, as
// wide as the stack allows.
template <class T, class Run>
HWY_INLINE void InStrips(const GeneralTask &task, const Run &run) {
  using Narrow = std::integral_constant<int64_t, kLanes>;
  if (task.count > 0) return run(std::false_type(), Narrow());
  if (task.cols <= 2 * kLanes) return run(std::true_type(), Narrow());
  run(std::true_type(), std::integral_constant<int64_t, (kKeepsLow<T> ? 3 : 4) * kLanes>());
}

// Differences to a maximum of this size on may exceed the largest double: such a row's values are halved and its factor
// is doubled. Values of ordinary rows are not, for subnormal ones would lose their last bit.
inline constexpr double kHuge = 0x1p969;

// The maxima m' of the lanes' rows, and the factors of differences to them.
struct Maxima {
  HWY_ALIGN double value[kLanes], factor[kLanes];
  double scale;
  bool shrinks = false;

  // value_of(i) is that of lane i.
  template <class ValueOf>
  Maxima(double factor_of_all, const ValueOf &value_of) : scale(factor_of_all) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const double m = value_of(i);
      const bool huge = m > kHuge && scale < 0x1p1023;
      value[i] = huge ? 0.5 * m : m;
      factor[i] = huge ? 2.0 * scale : scale;
      shrinks = shrinks || huge;
    }
  }
  // Values of the lanes from `lane` on, to be subtracted from their maxima.
  HWY_INLINE Doubles Fit(Doubles z, int64_t lane) const {
    const DoubleTag d;
    if (HWY_LIKELY(!shrinks)) return z;
    return hn::IfThenElse(hn::Gt(hn::Load(d, factor + lane), hn::Set(d, scale)), hn::Mul(z, hn::Set(d, 0.5)), z);
  }
};

// The sums of a task whose maxima are known. A frame of its own: what needs the maximum alone needs none of its
// scratch.
template <class In, bool kOverColumns, int64_t kWidth>
HWY_NOINLINE void SumsBelow(const GeneralTask &task, const TransformOf<Arithmetic<In>> &transform_of,
                            GeneralSums *out) {
  using T = Arithmetic<In>;
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t rows = HWY_MAX(task.count, int64_t{1});
  const Maxima maxima(task.transform.Factor(), [&](int64_t i) { return out[i < rows ? i : 0].value; });
  GeneralLanes<T> sums;
  Wide weight_of_max;  // lanes over columns: kept apart
  HWY_ALIGN double argmax[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) argmax[i] = static_cast<double>(out[i < rows ? i : 0].argmax);
  HWY_ALIGN double z[kWidth], weight[kWidth], y[kWidth] = {}, y_low[kWidth] = {};
  Strips<kOverColumns, kWidth> strips(task);
  while (strips.Next()) {
    strips.template Load<In>(z);
    transform_of(z, kWidth);
    if (task.weighted) {
      strips.template LoadLabels<T>(weight, y, y_low);
      strips.SetTargets(y, y_low);
    }
    const int64_t place = kOverColumns ? strips.PlaceOf(argmax[0]) : -1;
    if (place >= 0) {
      weight_of_max = {y[place], kKeepsLow<T> ? y_low[place] : 0.0};
      y[place] = y_low[place] = 0.0;
      z[place] = kMasked;
    }
    for (int64_t i = 0; i < kWidth; i += lanes) {
      const int64_t lane = i % kLanes;
      const Doubles label = hn::Load(d, y + i), low = hn::Load(d, y_low + i);
      const Doubles value = hn::Load(d, maxima.value + lane), factor = hn::Load(d, maxima.factor + lane);
      if (task.weighted) {
        AddDoubles(label, lane, sums.weight);
        if constexpr (kKeepsLow<T>) AddDoubles(low, lane, sums.weight);
      }
      if constexpr (kOverColumns) {
        sums.Add(lane, value, maxima.Fit(hn::Load(d, z + i), lane), label, low, factor, task.entropy, task.weighted);
      } else {
        const auto is_max = hn::Eq(hn::Load(d, argmax + lane), strips.Column());
        const Doubles logit = hn::IfThenElse(is_max, hn::Set(d, kMasked), maxima.Fit(hn::Load(d, z + i), lane));
        sums.Add(lane, value, logit, hn::IfThenZeroElse(is_max, label), hn::IfThenZeroElse(is_max, low), factor,
                 task.entropy, task.weighted);
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    const auto total = [&](const LaneSums<T> &sum) { return TotalOf(sum, task.count, i); };
    out[i].others = total(sums.others);
    out[i].entropy = total(sums.entropy);
    out[i].weight = total(sums.weight);
    if (task.count == 0) out[i].weight = AddOrOverflow(out[i].weight, weight_of_max);
    out[i].weighted = MultiplyAny(total(sums.weighted), Wide{maxima.factor[i]});
  }
}

// The largest logits of adjacent positions, their lowest columns (-1: all are masked), and whether there is a NaN.
template <class In>
HWY_NOINLINE void MaximaOfPositions(const GeneralTask &task, GeneralSums *out) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN double z[kLanes], max[kLanes], argmax[kLanes], bad[kLanes] = {};
  for (int64_t i = 0; i < kLanes; ++i) {
    max[i] = kMasked;
    argmax[i] = -1.0;
  }
  Strips<false, kLanes> strips(task);
  while (strips.Next()) {
    strips.Load<In>(z);
    for (int64_t i = 0; i < kLanes; i += lanes) {
      const Doubles v = hn::Load(d, z + i), m = hn::Load(d, max + i);
      const auto above = hn::Gt(v, m);
      hn::Store(hn::IfThenElse(above, v, m), d, max + i);
      hn::Store(hn::IfThenElse(above, strips.Column(), hn::Load(d, argmax + i)), d, argmax + i);
      hn::Store(hn::IfThenElse(hn::IsNaN(v), hn::Set(d, 1.0), hn::Load(d, bad + i)), d, bad + i);
    }
  }
  for (int64_t i = 0; i < task.count; ++i) {
    out[i].max = max[i];
    out[i].argmax = static_cast<int64_t>(argmax[i]);
    if (max[i] == -kMasked) out[i].special = Special::kInfinity;
    if (bad[i] != 0.0) out[i].special = Special::kNan;
  }
}

// The values of maxima.
template <class T>
HWY_NOINLINE void SetValues(const TransformOf<T> &transform_of, int64_t rows, GeneralSums *out) {
  HWY_ALIGN double value[kLanes] = {};
  for (int64_t i = 0; i < rows; ++i) value[i] = IsFinite(out[i].max) ? out[i].max : 0.0;
  transform_of(value, kLanes);
  for (int64_t i = 0; i < rows; ++i) out[i].value = value[i];
}

template <class In>
void Sums(const GeneralTask &task, GeneralSums *out) {
  using T = Arithmetic<In>;
#if HWY_NATIVE_FMA
  if constexpr (!kKeepsLow<T>) {
    if (SumAlong<In>(task, out)) return;
  }
#endif
  const int64_t rows = HWY_MAX(task.count, int64_t{1});
  for (int64_t i = 0; i < rows; ++i) out[i] = {};
  if (task.count > 0) {
    MaximaOfPositions<In>(task, out);
  } else {
    const In *const logits = static_cast<const In *>(task.logits);
    const Extreme seen = Maximum<In>(logits, task.cols, int64_t{-1});
    out->max = seen.max;
    if (seen.nan || seen.max == -kMasked) {
      out->special = seen.nan ? Special::kNan : Special::kInfinity;
    } else if (seen.max != kMasked) {
      out->argmax = task.first + FindFirst(logits, task.cols, static_cast<T>(seen.max));
    }
  }
  const TransformOf<T> transform_of(task.transform);
  SetValues(transform_of, rows, out);
  if (!task.sums || (task.count == 0 && out->special != Special::kNone)) return;
  InStrips<T>(task,
              [&](auto over_columns, auto width) { SumsBelow<In, over_columns, width>(task, transform_of, out); });
}

// p_factor e^(z' - m') - y y_factor, with a cap times dz. For float64 the low parts of factors and labels, and what the
// product of the latter loses, are added to the difference.
template <class T>
struct GradientOf {
  const Transform transform;
  const CapOf<T> cap;

  explicit GradientOf(const Transform &t) : transform(t), cap(t) {}

  // *difference is m' - z', unscaled. More than 8 parameters: sizeless vectors (SVE) cannot stand in a struct.
  HWY_INLINE Doubles operator()(Doubles raw, const Maxima &maxima, int64_t lane, Doubles bias, Doubles y, Doubles y_low,
                                Doubles p_factor, Doubles p_factor_low, Doubles y_factor, Doubles y_factor_low,
                                Doubles *difference) const {
    const DoubleTag d;
    const bool capped = transform.cap > 0.0;
    Doubles dz = hn::Zero(d), lost = hn::Zero(d);
    const Doubles z = maxima.Fit(capped ? cap(raw, &dz) : raw, lane);
    *difference = DifferenceFor<T>(hn::Load(d, maxima.value + lane), z, &lost);
    const Doubles exponential = ExpOfNegative<T>(*difference, lost, hn::Load(d, maxima.factor + lane), bias);
    const Doubles label = hn::Mul(y, y_factor);
    Doubles v = hn::MulSub(exponential, p_factor, label);
    if constexpr (kKeepsLow<T>) {
      const Doubles label_low =
          hn::MulAdd(y_low, y_factor, hn::MulAdd(y, y_factor_low, ProductError(d, y, y_factor, label)));
      v = hn::Add(v, hn::MulSub(exponential, p_factor_low, label_low));
    }
    return capped ? hn::Mul(v, dz) : v;
  }
};

// factor w (m' - z' + L); 0 where the coefficient is.
template <class T>
HWY_INLINE Doubles LabelGradient(Doubles weight, Doubles difference, Doubles factor, Doubles log_total,
                                 Doubles label_factor) {
  const DoubleTag d;
  const Doubles coefficient = hn::Mul(weight, label_factor);
  const Doubles gap = hn::MulAdd(difference, factor, log_total);
  const auto finite = hn::Lt(gap, hn::Set(d, -kMasked));
  Doubles gradient = hn::Mul(coefficient, gap);
  if (HWY_UNLIKELY(!hn::AllTrue(d, finite))) {  // of a masked column too, but not by the product alone
    gradient = hn::IfThenElse(finite, gradient, hn::Mul(hn::Mul(coefficient, factor), difference));
  }
  return hn::IfThenElseZero(hn::Ne(coefficient, hn::Zero(d)), gradient);
}

// v times two powers of two, which may be infinite: 0 stays 0.
HWY_INLINE Doubles Lifted(Doubles v, Doubles lift, Doubles lift_more) {
  const DoubleTag d;
  return hn::IfThenElseZero(hn::Ne(v, hn::Zero(d)), hn::Mul(hn::Mul(v, lift), lift_more));
}

template <class In, bool kOverColumns, int64_t kWidth>
HWY_NOINLINE void GradientInStrips(const GeneralTask &task) {
  using T = Arithmetic<In>;
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const GradientOf<T> gradient_of(task.transform);
  HWY_ALIGN double z[kWidth], weight[kWidth], y[kWidth] = {}, y_low[kWidth] = {};
  HWY_ALIGN double p_factor[kLanes], p_low[kLanes], y_factor[kLanes], y_factor_low[kLanes], log_total[kLanes],
      label_factor[kLanes], bias[kLanes], lift[kLanes], lift_more[kLanes];
  Strips<kOverColumns, kWidth> strips(task);
  const auto row_of = [&](int64_t i) -> const GeneralGradient & {
    return *EveryBytes(task.rows, task.row_bytes, strips.Row(i));
  };
  const Maxima maxima(task.transform.Factor(), [&](int64_t i) { return row_of(i).value; });
  bool lifted = false;
  for (int64_t i = 0; i < kLanes; ++i) {
    const GeneralGradient &row = row_of(i);
    // The exponentials take what there is of the lift, which the other terms get too, and then of their factor, all of
    // it: below 1 the factor brings no exponential back.
    const int64_t exponent = ExponentOf(row.p_factor.hi);
    const int64_t of_lift = std::clamp<int64_t>(HWY_MIN(row.lift, 1000 - exponent), 0, kOthersBias);
    const int64_t of_factor = std::clamp<int64_t>(exponent + 1, 0, kOthersBias - of_lift);
    const double up = PowerOfTwo(of_lift), down = PowerOfTwo(-of_factor);
    bias[i] = static_cast<double>(of_lift + of_factor);
    p_factor[i] = row.p_factor.hi * down;
    p_low[i] = row.p_factor.lo * down;
    y_factor[i] = row.y_factor.hi * up;
    y_factor_low[i] = row.y_factor.lo * up;
    log_total[i] = row.log_total;
    label_factor[i] = row.label_factor * up;
    const int64_t rest = row.lift - of_lift;
    lift[i] = PowerOfTwo(rest / 2);
    lift_more[i] = PowerOfTwo(rest - rest / 2);
    lifted = lifted || rest != 0;
  }
  while (strips.Next()) {
    strips.template Load<In>(z);
    if (task.weighted) strips.template LoadLabels<T>(weight, y, y_low);
    const bool has_targets = strips.SetTargets(y, y_low);
    for (int64_t i = 0; i < kWidth; i += lanes) {
      const int64_t lane = i % kLanes;
      Doubles difference = hn::Zero(d);
      const Doubles v = gradient_of(hn::Load(d, z + i), maxima, lane, hn::Load(d, bias + lane), hn::Load(d, y + i),
                                    hn::Load(d, y_low + i), hn::Load(d, p_factor + lane), hn::Load(d, p_low + lane),
                                    hn::Load(d, y_factor + lane), hn::Load(d, y_factor_low + lane), &difference);
      hn::Store(lifted ? Lifted(v, hn::Load(d, lift + lane), hn::Load(d, lift_more + lane)) : v, d, z + i);
      if (task.label_gradient != nullptr) {
        const Doubles w = LabelGradient<T>(hn::Load(d, weight + i), difference, hn::Load(d, maxima.factor + lane),
                                           hn::Load(d, log_total + lane), hn::Load(d, label_factor + lane));
        hn::Store(lifted ? Lifted(w, hn::Load(d, lift + lane), hn::Load(d, lift_more + lane)) : w, d, weight + i);
      }
    }
    if (has_targets && !task.weighted) {  // nothing fills the next strip's anew
      std::memset(y, 0, sizeof(y));
      std::memset(y_low, 0, sizeof(y_low));
    }
    const int64_t offset = strips.Offset(task.stride);
    if (task.gradient != nullptr) Unstage(z, strips.used(), static_cast<In *>(task.gradient) + offset);
    if (task.label_gradient != nullptr) {
      UnstageAny(task.labels.probs_dtype, weight, offset, strips.used(), task.label_gradient);
    }
  }
}

// Writes the gradient of the target's column alone, of the logit that stood there.
template <class In>
HWY_NOINLINE void GradientOfTarget(const GeneralTask &task, int64_t place, In logit) {
  GeneralTask target = task;
  target.logits = &logit;
  target.cols = 1;
  target.first = task.first + place;
  target.weighted = false;
  target.gradient = static_cast<In *>(task.gradient) + place;
  target.label_gradient = nullptr;
  GradientInStrips<In, true, kLanes>(target);
}

template <class In>
void GeneralGradientOf(const GeneralTask &task) {
#if HWY_NATIVE_FMA
  if constexpr (!kKeepsLow<Arithmetic<In>>) {
    const int64_t place =
        task.count > 0 || task.targets == nullptr || task.targets[0] < 0 ? -1 : task.targets[0] - task.first;
    const bool has_target = place >= 0 && place < task.cols && task.gradient != nullptr;
    const In logit = has_target ? static_cast<const In *>(task.logits)[place] : In{};
    if (GradientAlong<In>(task)) {
      if (has_target) GradientOfTarget(task, place, logit);
      return;
    }
  }
#endif
  InStrips<Arithmetic<In>>(task,
                           [&](auto over_columns, auto width) { GradientInStrips<In, over_columns, width>(task); });
}

template <class In>
int64_t Rank(const void *data, int64_t cols, double logit, int64_t before) {
  const In *const logits = static_cast<const In *>(data);
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Arithmetic<In> value = static_cast<Arithmetic<In>>(logit);
  const auto own = hn::Set(d, value);
  int64_t rank = 0, i = 0;
  before = HWY_MAX(before, int64_t{0});
  for (; i + lanes <= HWY_MIN(cols, before); i += lanes) {
    rank += static_cast<int64_t>(hn::CountTrue(d, hn::Ge(LoadAs(d, logits + i), own)));
  }
  for (; i < HWY_MIN(cols, before); ++i) rank += Widen(logits[i]) >= value;
  for (; i + lanes <= cols; i += lanes) {
    rank += static_cast<int64_t>(hn::CountTrue(d, hn::Gt(LoadAs(d, logits + i), own)));
  }
  for (; i < cols; ++i) rank += Widen(logits[i]) > value;
  return rank;
}

template <class In>
void TopK(const void *data, int64_t cols, int64_t first, int64_t k, RankedLogit *best, int64_t *count) {
  const In *const logits = static_cast<const In *>(data);
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  // Behind every entry that is at least as large: the lower column stays first.
  const auto insert = [&](int64_t i) {
    const double logit = static_cast<double>(Widen(logits[i]));
    int64_t place = *count < k ? (*count)++ : k - 1;
    for (; place > 0 && best[place - 1].logit < logit; --place) best[place] = best[place - 1];
    best[place] = {logit, first + i};
  };
  for (int64_t i = 0; i < cols; i += lanes) {
    if (*count == k && i + lanes <= cols) {
      const auto last = hn::Set(d, static_cast<Arithmetic<In>>(best[k - 1].logit));
      if (hn::AllFalse(d, hn::Gt(LoadAs(d, logits + i), last))) continue;
    }
    for (int64_t j = i; j < HWY_MIN(i + lanes, cols); ++j) {
      if (*count < k || static_cast<double>(Widen(logits[j])) > best[k - 1].logit) insert(j);
    }
  }
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
