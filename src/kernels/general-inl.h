// Rows with any options, see general.h. Everything between loading and storing is double: for float32 that leaves 29
// bits beyond what the bounds need; for float64 differences to the maximum and sums carry their rounding errors along.
#if defined(XENT_SRC_KERNELS_GENERAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_GENERAL_INL_H_
#undef XENT_SRC_KERNELS_GENERAL_INL_H_
#else
#define XENT_SRC_KERNELS_GENERAL_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/below-inl.h"
#include "kernels/general.h"
#include "kernels/lanes-inl.h"
#include "kernels/maximum-inl.h"
#include "kernels/stage-inl.h"
#include "kernels/step-inl.h"
#include "numbers/double-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct GeneralLanes {
  LaneSums<T> others, entropy, weight, weighted;

  // Terms of a vector of values z (masked at the maximum's own column) and labels y + y_low (0 there).
  HWY_INLINE void Add(int64_t first, Doubles m, Doubles z, Doubles y, Doubles y_low, Doubles factor, bool with_entropy,
                      bool with_weighted) {
    const DoubleTag d;
    const Doubles zero = hn::Zero(d);
    Doubles lost = zero;
    Doubles difference = DifferenceFor<T>(m, z, &lost);
    const Doubles exponential = ExpOfNegative<T>(difference, lost, factor);
    AddDoubles(exponential, first, others);
    if (with_entropy) {
      AddDoubles(hn::IfThenElseZero(hn::Gt(exponential, zero), hn::Mul(exponential, difference)), first, entropy);
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

// The labels of `count` columns of a chunk (Labels::probs_stride is 1), 0 past them, and their low parts where asked
// for.
template <class T>
HWY_INLINE void StageLabels(const Labels &labels, int64_t col, int64_t count, double *y, double *low) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN double weights[kStep];
  if (labels.probs != nullptr) StageAny(labels.probs_dtype, labels.probs, col, count, kStep, y);
  if (labels.class_weights != nullptr) {
    Stage(static_cast<const T *>(labels.class_weights) + col, count, kStep, 0.0, weights);
  }
  for (int64_t i = 0; i < kStep; i += lanes) {
    const Doubles q = labels.probs != nullptr ? hn::Load(d, y + i) : hn::Zero(d);
    const Doubles weight = labels.class_weights != nullptr ? hn::Load(d, weights + i) : hn::Set(d, 1.0);
    Doubles lost = hn::Zero(d);
    hn::Store(LabelOf<T>(labels, q, weight, &lost), d, y + i);
    if (low != nullptr) hn::Store(lost, d, low + i);
  }
  for (int64_t i = count; i < kStep; ++i) {
    y[i] = 0.0;
    if (low != nullptr) low[i] = 0.0;
  }
}

template <class T>
HWY_NOINLINE void TransformValues(const Transform &transform, double *z, int64_t count) {
  if (transform.cap == 0.0) return;
  const DoubleTag d;
  const SoftCap<T> cap(transform.scale, transform.cap);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; i += lanes) hn::Store(cap.Value(d, hn::Load(d, z + i)), d, z + i);
}

// `count` values in place, of any alignment.
template <class T>
HWY_INLINE void Values(const Transform &transform, double *values, int64_t count) {
  HWY_ALIGN double copy[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t part = HWY_MIN(kLanes, count - i);
    Stage(values + i, part, kLanes, 0.0, copy);
    TransformValues<T>(transform, copy, kLanes);
    std::memcpy(values + i, copy, static_cast<size_t>(part) * sizeof(double));
  }
}

template <class In>
HWY_INLINE int64_t FindFirst(const In *logits, int64_t cols, Arithmetic<In> value) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto wanted = hn::Set(d, value);
  int64_t i = 0;
  for (; i + lanes <= cols; i += lanes) {
    const intptr_t found = hn::FindFirstTrue(d, hn::Eq(LoadAs(d, logits + i), wanted));
    if (found >= 0) return i + found;
  }
  while (i < cols && Widen(logits[i]) != value) ++i;
  return i;
}

// The sums of a chunk whose maximum is known, in column `argmax` of it. A frame of its own: what needs the maximum
// alone needs none of its scratch.
template <class In>
HWY_NOINLINE void SumsBelow(const GeneralTask &task, int64_t argmax, GeneralSums *out) {
  using T = Arithmetic<In>;
  const In *const logits = static_cast<const In *>(task.logits);
  GeneralSums &result = *out;
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const double factor = task.transform.Factor();
  GeneralLanes<T> sums;
  Wide weight_of_max;
  HWY_ALIGN double z[kStep];
  HWY_ALIGN double y[kStep] = {};
  HWY_ALIGN double y_low[kStep] = {};
  for (int64_t col = 0; col < task.cols; col += kStep) {
    const int64_t count = HWY_MIN(kStep, task.cols - col);
    Stage(logits + col, count, kStep, kMasked, z);
    TransformValues<T>(task.transform, z, kStep);
    if (task.weighted) {
      StageLabels<T>(task.labels, col, count, y, kKeepsLow<T> ? y_low : nullptr);
      if (task.target >= col && task.target < col + count) {
        y[task.target - col] = task.target_value.hi;
        y_low[task.target - col] = task.target_value.lo;
      }
    }
    if (argmax >= col && argmax < col + count) {
      z[argmax - col] = kMasked;
      weight_of_max = {y[argmax - col], kKeepsLow<T> ? y_low[argmax - col] : 0.0};
      y[argmax - col] = y_low[argmax - col] = 0.0;
    }
    for (int64_t part = 0; part < kLanes; part += lanes) {
      for (int64_t i = part; i < kStep; i += kLanes) {
        const Doubles label = hn::Load(d, y + i);
        if (task.weighted) {
          AddDoubles(label, part, sums.weight);
          if constexpr (kKeepsLow<T>) AddDoubles(hn::Load(d, y_low + i), part, sums.weight);
        }
        sums.Add(part, hn::Set(d, result.value), hn::Load(d, z + i), label, hn::Load(d, y_low + i), hn::Set(d, factor),
                 task.entropy, task.weighted);
      }
    }
  }
  result.others = sums.others.Total();
  result.entropy = MultiplyAny(sums.entropy.Total(), Wide{factor});
  result.weight = AddOrOverflow(sums.weight.Total(), weight_of_max);
  result.weighted = MultiplyAny(sums.weighted.Total(), Wide{factor});
}

template <class In>
void Sums(const GeneralTask &task, GeneralSums *out) {
  using T = Arithmetic<In>;
  const In *const logits = static_cast<const In *>(task.logits);
  GeneralSums result;
  const Extreme seen = Maximum(logits, task.cols, int64_t{-1});
  result.max = seen.max;
  int64_t argmax = -1;
  if (seen.nan || seen.max == -kMasked) {
    result.special = seen.nan ? Special::kNan : Special::kInfinity;
  } else if (seen.max != kMasked) {
    argmax = FindFirst(logits, task.cols, static_cast<T>(seen.max));
    result.argmax = task.first + argmax;
    result.value = seen.max;
    Values<T>(task.transform, &result.value, 1);
  }
  *out = result;
  if (result.special == Special::kNone && task.sums) SumsBelow<In>(task, argmax, out);
}

// p_factor e^(z' - m') - y y_factor, with a cap times dz. For float64 the low parts of factors and labels, and what the
// product of the latter loses, are added to the difference.
template <class T>
struct GradientOf {
  const Transform transform;
  const SoftCap<T> cap;

  explicit GradientOf(const Transform &t) : transform(t), cap(t.scale, t.cap > 0.0 ? t.cap : 1.0) {}

  // *difference is m' - z', unscaled.
  HWY_INLINE Doubles operator()(Doubles raw, Doubles m, Doubles y, Doubles y_low, Doubles p_factor,
                                Doubles p_factor_low, Doubles y_factor, Doubles y_factor_low,
                                Doubles *difference) const {
    const DoubleTag d;
    const bool capped = transform.cap > 0.0;
    Doubles dz = hn::Zero(d), lost = hn::Zero(d);
    const Doubles z = capped ? cap.Value(d, raw, &dz) : raw;
    *difference = DifferenceFor<T>(m, z, &lost);
    const Doubles exponential = ExpOfNegative<T>(*difference, lost, hn::Set(d, transform.Factor()));
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
  return hn::IfThenElseZero(hn::Ne(coefficient, hn::Zero(d)), hn::Mul(coefficient, gap));
}

// v times two powers of two, which may be infinite: 0 stays 0.
HWY_INLINE Doubles Lifted(Doubles v, Doubles lift, Doubles lift_more) {
  const DoubleTag d;
  return hn::IfThenElseZero(hn::Ne(v, hn::Zero(d)), hn::Mul(hn::Mul(v, lift), lift_more));
}

template <class In>
void GeneralGradientOf(const GeneralGradientTask &task) {
  using T = Arithmetic<In>;
  const In *const logits = static_cast<const In *>(task.logits);
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const GradientOf<T> gradient_of(task.transform);
  const GeneralGradient &row = task.row;
  const Doubles factor = hn::Set(d, task.transform.Factor());
  HWY_ALIGN double z[kStep];
  HWY_ALIGN double y[kStep] = {};
  HWY_ALIGN double y_low[kStep] = {};
  HWY_ALIGN double weights[kStep];
  const bool lifted = row.lift[0] != 1.0 || row.lift[1] != 1.0;
  const Doubles lift = hn::Set(d, row.lift[0]), lift_more = hn::Set(d, row.lift[1]);
  for (int64_t col = 0; col < task.cols; col += kStep) {
    const int64_t count = HWY_MIN(kStep, task.cols - col);
    Stage(logits + col, count, kStep, kMasked, z);
    if (task.weighted) StageLabels<T>(task.labels, col, count, y, kKeepsLow<T> ? y_low : nullptr);
    const bool has_target = task.target >= col && task.target < col + count;
    if (has_target) {
      y[task.target - col] = task.target_value.hi;
      y_low[task.target - col] = task.target_value.lo;
    }
    if (task.label_gradient != nullptr) {
      if (task.labels.class_weights != nullptr) {
        Stage(static_cast<const T *>(task.labels.class_weights) + col, count, kStep, 0.0, weights);
      } else {
        for (int64_t i = 0; i < kStep; i += lanes) hn::Store(hn::Set(d, 1.0), d, weights + i);
      }
    }
    for (int64_t i = 0; i < kStep; i += lanes) {
      Doubles difference = hn::Zero(d);
      const Doubles v = gradient_of(hn::Load(d, z + i), hn::Set(d, row.value), hn::Load(d, y + i),
                                    hn::Load(d, y_low + i), hn::Set(d, row.p_factor.hi), hn::Set(d, row.p_factor.lo),
                                    hn::Set(d, row.y_factor.hi), hn::Set(d, row.y_factor.lo), &difference);
      hn::Store(lifted ? Lifted(v, lift, lift_more) : v, d, z + i);
      if (task.label_gradient != nullptr) {
        const Doubles w = LabelGradient<T>(hn::Load(d, weights + i), difference, factor, hn::Set(d, row.log_total),
                                           hn::Set(d, row.label_factor));
        hn::Store(lifted ? Lifted(w, lift, lift_more) : w, d, weights + i);
      }
    }
    if (task.gradient != nullptr) Unstage(z, count, static_cast<In *>(task.gradient) + col);
    if (task.label_gradient != nullptr) UnstageAny(task.labels.probs_dtype, weights, col, count, task.label_gradient);
    if (has_target) y[task.target - col] = y_low[task.target - col] = 0.0;  // the next step may not fill them anew
  }
}

template <class T>
double ClassWeight(const Labels &labels, int64_t col) {
  return labels.class_weights == nullptr ? 1.0 : WidenSubnormal(static_cast<const T *>(labels.class_weights)[col]);
}

// y of one class at the positions of a tile, and its low parts where asked for.
template <class T>
HWY_NOINLINE void StageTileLabels(const TileTask &task, int64_t col, double *y, double *low) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Labels &labels = task.labels;
  const double weight = ClassWeight<T>(labels, col);
  if (labels.probs != nullptr) {
    StageAny(labels.probs_dtype, labels.probs, col * labels.probs_stride, task.count, kTile, y);
  }
  for (int64_t i = 0; i < kTile; i += lanes) {
    const Doubles q = labels.probs != nullptr ? hn::Load(d, y + i) : hn::Zero(d);
    Doubles lost = hn::Zero(d);
    hn::Store(LabelOf<T>(labels, q, hn::Set(d, weight), &lost), d, y + i);
    if (low != nullptr) hn::Store(lost, d, low + i);
  }
}

template <class In>
void TileSums(const TileTask &task, GeneralSums *out) {
  using T = Arithmetic<In>;
  const In *const logits = static_cast<const In *>(task.logits);
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN double z[kTile];
  HWY_ALIGN double y[kTile] = {};
  HWY_ALIGN double y_low[kTile] = {}, target_low[kTile] = {};
  HWY_ALIGN double max[kTile], argmax[kTile], bad[kTile] = {}, value[kTile], target[kTile] = {},
                                              target_value[kTile] = {};
  for (int64_t i = 0; i < kTile; ++i) {
    max[i] = kMasked;
    argmax[i] = -1.0;
  }
  for (int64_t i = 0; task.sums && i < task.count; ++i) {
    target[i] = static_cast<double>(task.targets[i]);
    target_value[i] = task.target_values[i].hi;
    target_low[i] = task.target_values[i].lo;
  }
  for (int64_t col = 0; col < task.cols; ++col) {
    Stage(logits + col * task.stride, task.count, kTile, 0.0, z);
    for (int64_t i = 0; i < kTile; i += lanes) {
      const Doubles v = hn::Load(d, z + i), m = hn::Load(d, max + i);
      const auto above = hn::Gt(v, m);
      hn::Store(hn::IfThenElse(above, v, m), d, max + i);
      hn::Store(hn::IfThenElse(above, hn::Set(d, static_cast<double>(col)), hn::Load(d, argmax + i)), d, argmax + i);
      hn::Store(hn::IfThenElse(hn::IsNaN(v), hn::Set(d, 1.0), hn::Load(d, bad + i)), d, bad + i);
    }
  }
  for (int64_t i = 0; i < kTile; ++i) value[i] = IsFinite(max[i]) ? max[i] : 0.0;
  TransformValues<T>(task.transform, value, kTile);

  const Doubles factor = hn::Set(d, task.transform.Factor());
  GeneralLanes<T> sums[kTile / kLanes];
  for (int64_t col = 0; task.sums && col < task.cols; ++col) {
    Stage(logits + col * task.stride, task.count, kTile, 0.0, z);
    TransformValues<T>(task.transform, z, kTile);
    if (task.weighted) StageTileLabels<T>(task, col, y, kKeepsLow<T> ? y_low : nullptr);
    const Doubles column = hn::Set(d, static_cast<double>(col));
    for (int64_t i = 0; i < kTile; i += lanes) {
      GeneralLanes<T> &lane_sums = sums[i / kLanes];
      Doubles label = hn::Load(d, y + i), label_low = hn::Load(d, y_low + i);
      if (task.weighted) {
        const auto is_target = hn::Eq(hn::Load(d, target + i), column);
        label = hn::IfThenElse(is_target, hn::Load(d, target_value + i), label);
        label_low = hn::IfThenElse(is_target, hn::Load(d, target_low + i), label_low);
        AddDoubles(label, i % kLanes, lane_sums.weight);
        if constexpr (kKeepsLow<T>) AddDoubles(label_low, i % kLanes, lane_sums.weight);
      }
      const auto is_max = hn::Eq(hn::Load(d, argmax + i), column);
      const Doubles logit = hn::IfThenElse(is_max, hn::Set(d, kMasked), hn::Load(d, z + i));
      lane_sums.Add(i % kLanes, hn::Load(d, value + i), logit, hn::IfThenZeroElse(is_max, label),
                    hn::IfThenZeroElse(is_max, label_low), factor, task.entropy, task.weighted);
    }
  }
  const double scale = task.transform.Factor();
  for (int64_t i = 0; i < task.count; ++i) {
    const GeneralLanes<T> &lane_sums = sums[i / kLanes];
    const int64_t lane = i % kLanes;
    GeneralSums &result = out[i];
    result = {};
    result.max = max[i];
    result.value = value[i];
    result.argmax = static_cast<int64_t>(argmax[i]);
    if (max[i] == -kMasked) result.special = Special::kInfinity;
    if (bad[i] != 0.0) result.special = Special::kNan;
    result.others = lane_sums.others.Lane(lane);
    result.entropy = MultiplyAny(lane_sums.entropy.Lane(lane), Wide{scale});
    result.weight = lane_sums.weight.Lane(lane);
    result.weighted = MultiplyAny(lane_sums.weighted.Lane(lane), Wide{scale});
  }
}

template <class In>
void TileGradient(const TileGradientTask &gradient_task) {
  using T = Arithmetic<In>;
  const TileTask &task = gradient_task.tile;
  const In *const logits = static_cast<const In *>(task.logits);
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const GradientOf<T> gradient_of(task.transform);
  const Doubles factor = hn::Set(d, task.transform.Factor());
  HWY_ALIGN double z[kTile];
  HWY_ALIGN double y[kTile] = {};
  HWY_ALIGN double by_label[kTile];
  HWY_ALIGN double y_low[kTile] = {}, target_low[kTile] = {}, p_low[kTile] = {}, y_factor_low[kTile] = {};
  HWY_ALIGN double value[kTile] = {}, p_factor[kTile] = {}, y_factor[kTile] = {}, log_total[kTile] = {},
                   label_factor[kTile] = {}, target[kTile] = {}, target_value[kTile] = {}, lift[kTile] = {},
                   lift_more[kTile] = {};
  bool lifted = false;
  for (int64_t i = 0; i < task.count; ++i) {
    const GeneralGradient &row = gradient_task.rows[i];
    value[i] = row.value;
    p_factor[i] = row.p_factor.hi;
    p_low[i] = row.p_factor.lo;
    y_factor[i] = row.y_factor.hi;
    y_factor_low[i] = row.y_factor.lo;
    log_total[i] = row.log_total;
    label_factor[i] = row.label_factor;
    lift[i] = row.lift[0];
    lift_more[i] = row.lift[1];
    lifted = lifted || lift[i] != 1.0 || lift_more[i] != 1.0;
    target[i] = static_cast<double>(task.targets[i]);
    target_value[i] = task.target_values[i].hi;
    target_low[i] = task.target_values[i].lo;
  }
  for (int64_t col = 0; col < task.cols; ++col) {
    Stage(logits + col * task.stride, task.count, kTile, 0.0, z);
    if (task.weighted) StageTileLabels<T>(task, col, y, kKeepsLow<T> ? y_low : nullptr);
    const Doubles column = hn::Set(d, static_cast<double>(col));
    const double weight = ClassWeight<T>(task.labels, col);
    for (int64_t i = 0; i < kTile; i += lanes) {
      const auto is_target = hn::Eq(hn::Load(d, target + i), column);
      const Doubles label = hn::IfThenElse(is_target, hn::Load(d, target_value + i), hn::Load(d, y + i));
      const Doubles label_low = hn::IfThenElse(is_target, hn::Load(d, target_low + i), hn::Load(d, y_low + i));
      Doubles difference = hn::Zero(d);
      const Doubles v =
          gradient_of(hn::Load(d, z + i), hn::Load(d, value + i), label, label_low, hn::Load(d, p_factor + i),
                      hn::Load(d, p_low + i), hn::Load(d, y_factor + i), hn::Load(d, y_factor_low + i), &difference);
      hn::Store(lifted ? Lifted(v, hn::Load(d, lift + i), hn::Load(d, lift_more + i)) : v, d, z + i);
      if (gradient_task.label_gradient != nullptr) {
        const Doubles w = LabelGradient<T>(hn::Set(d, weight), difference, factor, hn::Load(d, log_total + i),
                                           hn::Load(d, label_factor + i));
        hn::Store(lifted ? Lifted(w, hn::Load(d, lift + i), hn::Load(d, lift_more + i)) : w, d, by_label + i);
      }
    }
    if (gradient_task.gradient != nullptr) {
      Unstage(z, task.count, static_cast<In *>(gradient_task.gradient) + col * gradient_task.gradient_stride);
    }
    if (gradient_task.label_gradient != nullptr) {
      UnstageAny(task.labels.probs_dtype, by_label, col * gradient_task.label_gradient_stride, task.count,
                 gradient_task.label_gradient);
    }
  }
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
  int64_t i = 0;
  for (; i < cols && *count < k; ++i) insert(i);
  const auto above_last = [&](int64_t j) { return static_cast<double>(Widen(logits[j])) > best[k - 1].logit; };
  for (; i + lanes <= cols; i += lanes) {
    const auto last = hn::Set(d, static_cast<Arithmetic<In>>(best[k - 1].logit));
    if (hn::AllFalse(d, hn::Gt(LoadAs(d, logits + i), last))) continue;
    for (int64_t j = i; j < i + lanes; ++j) {
      if (above_last(j)) insert(j);
    }
  }
  for (; i < cols; ++i) {
    if (above_last(i)) insert(i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
