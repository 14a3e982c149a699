// A tile of rows or positions in memory and in registers: across.h's matrices to a block of floats and back, and the
// exponentials of a lane's own range. A tile's elements lie in a block column by column, kTile rows each, so that one
// column is one to four vectors.
#if defined(XENT_SRC_KERNELS_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_TILE_INL_H_
#undef XENT_SRC_KERNELS_TILE_INL_H_
#else
#define XENT_SRC_KERNELS_TILE_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "hwy/base.h"
#include "hwy/highway.h"
#include "kernels/across.h"
#include "numbers/compiler.h"
#include "numbers/double-inl.h"
#include "numbers/elements-inl.h"
#include "numbers/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

using TileTag = hn::CappedTag<float, kTile>;
using Floats = hn::Vec<TileTag>;
using TileInts = hn::RebindToSigned<TileTag>;
using HalfTag = hn::RepartitionToWide<TileTag>;  // doubles in half as many lanes
using Halves = hn::Vec<HalfTag>;

inline constexpr int64_t kBlockCols = 64;
inline constexpr int64_t kPartCols = 4;              // of labels, slopes and their gradients
inline constexpr int64_t kPositionBytesAhead = 128;  // two tiles: what is asked for while a tile is staged
inline constexpr uint32_t kAllRows = (uint32_t{1} << kTile) - 1;
inline constexpr float kNone = -std::numeric_limits<float>::infinity();

HWY_INLINE int64_t TileLanes() { return static_cast<int64_t>(hn::Lanes(TileTag())); }
// Where a loop over the vectors of `count` rows ends: a compiler that knows of one turn prepares for no other.
HWY_INLINE int64_t EndOf(int64_t count) { return TileLanes() == kTile ? 1 : count; }
HWY_INLINE int64_t HalfLanes() { return static_cast<int64_t>(hn::Lanes(HalfTag())); }

// Returns Lanes(HalfTag) floats as doubles.
HWY_INLINE Halves LoadHalf(const float *p) {
  return hn::PromoteTo(HalfTag(), hn::LoadU(hn::Rebind<float, HalfTag>(), p));
}
// Stores an output: rounded once, 0 where the magnitude is at most the smallest normal number, the canonical NaN.
HWY_INLINE void StoreOutput(Halves v, float *p) {
  const hn::Rebind<float, HalfTag> d;
  hn::StoreU(FinishWithNan(d, hn::DemoteTo(d, v)), d, p);
}
// The rows of a vector, and those of its two halves that are in a mask, the vector's first row being bit 0.
HWY_INLINE uint32_t AllOfVector() { return (uint32_t{1} << TileLanes()) - 1; }
HWY_INLINE uint32_t BitsOfHalves(hn::Mask<HalfTag> lower, hn::Mask<HalfTag> upper) {
  return BitsOf(HalfTag(), lower) | BitsOf(HalfTag(), upper) << HalfLanes();
}
HWY_INLINE uint32_t ZerosOf(Halves lower, Halves upper) {
  const Halves zero = hn::Zero(HalfTag());
  return BitsOfHalves(hn::Eq(lower, zero), hn::Eq(upper, zero));
}
// Doubles as floats and what these lack.
HWY_INLINE void SplitDoubles(Halves lower, Halves upper, Floats *high, Floats *low) {
  const TileTag d;
  const HalfTag dd;
  const Floats v = RoundDoubles(d, lower, upper);
  *high = v;
  *low = RoundDoubles(d, hn::Sub(lower, hn::PromoteLowerTo(dd, v)), hn::Sub(upper, hn::PromoteUpperTo(dd, v)));
}
// The reverse, of the lower or the upper half.
HWY_INLINE Halves JoinLower(Floats high, Floats low) {
  const HalfTag d;
  return hn::Add(hn::PromoteLowerTo(d, high), hn::PromoteLowerTo(d, low));
}
HWY_INLINE Halves JoinUpper(Floats high, Floats low) {
  const HalfTag d;
  return hn::Add(hn::PromoteUpperTo(d, high), hn::PromoteUpperTo(d, low));
}
// Adds a vector of floats to kTile doubles.
HWY_INLINE void AddFloats(Floats v, double *to) {
  const HalfTag d;
  hn::Store(hn::Add(hn::Load(d, to), hn::PromoteLowerTo(d, v)), d, to);
  double *const upper = to + HalfLanes();
  hn::Store(hn::Add(hn::Load(d, upper), hn::PromoteUpperTo(d, v)), d, upper);
}

// v factor, 0 where the factor is.
HWY_INLINE Halves TimesUnlessZero(Halves v, Halves factor) {
  return hn::IfThenZeroElse(hn::Eq(factor, hn::Zero(HalfTag())), hn::Mul(v, factor));
}
// Returns the largest of a block's columns, or of these and `max`. A NaN may be passed over: its exponential is none.
HWY_INLINE Floats MaxOfLanes(const float *z, int64_t cols, Floats max) {
  const TileTag d;
  Floats other = max;
  int64_t j = 0;
  for (; j + 4 <= cols; j += 4, z += 4 * kTile) {
    max = hn::Max(max, hn::Max(hn::Load(d, z), hn::Load(d, z + kTile)));
    other = hn::Max(other, hn::Max(hn::Load(d, z + 2 * kTile), hn::Load(d, z + 3 * kTile)));
  }
  for (; j < cols; ++j, z += kTile) max = hn::Max(max, hn::Load(d, z));
  return hn::Max(max, other);
}

// ---- from memory to a block and back ----

// The rows of a row-major matrix. Lanes that are not live, whose rows may lie anywhere, have a live one's.
template <class In, bool kAllLive>
struct RowsAt;
template <class In>
struct RowsAt<In, true> {
  In *data;
  int64_t stride;

  RowsAt(In *first, int64_t row_stride, uint32_t /*live*/) : data(first), stride(row_stride) {}
  HWY_INLINE In *operator()(int64_t i) const { return data + i * stride; }
};
template <class In>
struct RowsAt<In, false> {
  In *rows[kTile];

  RowsAt(In *first, int64_t stride, uint32_t live) {
    In *const some = first + static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero32(live)) * stride;
    for (int64_t i = 0; i < kTile; ++i) rows[i] = (live >> i & 1) != 0 ? first + i * stride : some;
  }
  HWY_INLINE In *operator()(int64_t i) const { return rows[i]; }
};

#if !HWY_HAVE_SCALABLE
// A vector of four adjacent elements of every fourth row from row i on.
template <class D, class Rows>
HWY_INLINE hn::Vec<D> LoadPieces(D d, const Rows &rows, int64_t i, int64_t col) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    return LoadAs(d, rows(i) + col);
  } else {
    const hn::Half<D> half;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(half));
    return hn::Combine(d, LoadPieces(half, rows, i + lanes, col), LoadPieces(half, rows, i, col));
  }
}
template <class D, class Rows>
HWY_INLINE void StorePieces(D d, hn::Vec<D> v, const Rows &rows, int64_t i, int64_t col) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    StoreAs(d, v, rows(i) + col);
  } else {
    const hn::Half<D> half;
    StorePieces(half, hn::LowerHalf(half, v), rows, i, col);
    StorePieces(half, hn::UpperHalf(half, v), rows, i + static_cast<int64_t>(hn::Lanes(half)), col);
  }
}
// Transposes the 4x4 squares of four vectors: columns of rows, rows of columns.
HWY_INLINE void TransposeSquares(Floats &v0, Floats &v1, Floats &v2, Floats &v3) {
  const TileTag d;
  const Floats a = hn::InterleaveLower(d, v0, v2), b = hn::InterleaveLower(d, v1, v3);
  const Floats c = hn::InterleaveUpper(d, v0, v2), e = hn::InterleaveUpper(d, v1, v3);
  v0 = hn::InterleaveLower(d, a, b);
  v1 = hn::InterleaveUpper(d, a, b);
  v2 = hn::InterleaveLower(d, c, e);
  v3 = hn::InterleaveUpper(d, c, e);
}
#endif

// Asks for the lines that lie `bytes` past p, of which it is not known whether they are anybody's.
template <int kForWriting>
HWY_INLINE void PrefetchPast(const void *p, uint64_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) + bytes;
  __builtin_prefetch(reinterpret_cast<const void *>(address), kForWriting);
}
// The same for rows of `cols` columns, long enough for the processor not to see what comes.
template <int kForWriting, class In>
HWY_INLINE void PrefetchRows(const In *data, int64_t stride, int64_t cols, int64_t rows_past) {
  constexpr int64_t kSize = static_cast<int64_t>(sizeof(In));
  if (cols * kSize < 128) return;
  // Without a sign: of a row alone the stride may be so large that there is no next one.
  const uint64_t row_bytes = static_cast<uint64_t>(stride) * sizeof(In);
  for (int64_t i = 0; i < kTile; ++i) {
    for (int64_t byte = 0; byte < cols * kSize; byte += 64) {
      PrefetchPast<kForWriting>(data, static_cast<uint64_t>(i + rows_past) * row_bytes + static_cast<uint64_t>(byte));
    }
  }
}

// Whether rows of two or three columns follow each other without a gap: shorter than a square, they are interleaved.
HWY_INLINE bool IsDense(const TileMatrix &matrix, int64_t cols) {
  return matrix.row == cols && (cols == 2 || cols == 3);
}

// Copies columns [first, first + cols) of a tile's rows to `block`; lanes that are not live repeat another.
template <class In, bool kAllLive>
HWY_INLINE void StageRows(const TileMatrix &matrix, uint32_t live, int64_t first, int64_t cols, float *block) {
  const int64_t end = kAllLive ? kTile : 32 - static_cast<int64_t>(hwy::Num0BitsAboveMS1Bit_Nonzero32(live));
  const In *const data = static_cast<const In *>(matrix.data) + first;
  const RowsAt<const In, kAllLive> rows(data, matrix.row, live);
  const TileTag d;
  if constexpr (kAllLive && sizeof(In) == sizeof(float)) {
    for (int64_t i = 0; IsDense(matrix, cols) && i < kTile; i += TileLanes()) {
      Floats v0 = hn::Zero(d), v1 = v0, v2 = v0;
      cols == 2 ? hn::LoadInterleaved2(d, data + i * 2, v0, v1) : hn::LoadInterleaved3(d, data + i * 3, v0, v1, v2);
      hn::Store(v0, d, block + i);
      hn::Store(v1, d, block + kTile + i);
      hn::Store(v2, d, block + 2 * kTile + i);
    }
    if (IsDense(matrix, cols)) return;
  }
  int64_t j = 0;
#if !HWY_HAVE_SCALABLE
  PrefetchRows<0>(data, matrix.row, cols, kTile);
  while (cols >= 4) {
    for (int64_t i = 0; i < end; i += TileLanes()) {
      Floats v0 = LoadPieces(d, rows, i, j), v1 = LoadPieces(d, rows, i + 1, j);
      Floats v2 = LoadPieces(d, rows, i + 2, j), v3 = LoadPieces(d, rows, i + 3, j);
      TransposeSquares(v0, v1, v2, v3);
      float *const to = block + j * kTile + i;
      hn::Store(v0, d, to);
      hn::Store(v1, d, to + kTile);
      hn::Store(v2, d, to + 2 * kTile);
      hn::Store(v3, d, to + 3 * kTile);
    }
    if (j + 4 >= cols) return;
    j = HWY_MIN(j + 4, cols - 4);
  }
#endif
  for (; j < cols; ++j) {
    for (int64_t i = 0; i < end; ++i) block[j * kTile + i] = Widen(rows(i)[j]);
  }
}

// The same of positions. Those between two live ones are read with these.
template <class In>
HWY_INLINE void StagePositions(const TileMatrix &matrix, uint32_t live, int64_t first, int64_t cols, float *block) {
  const TileTag d;
  const In *column = static_cast<const In *>(matrix.data) + first * matrix.col;
  constexpr uint32_t kEnds = 1u | 1u << (kTile - 1);
  for (int64_t j = 0; j < cols; ++j, column += matrix.col) {
    if (HWY_UNLIKELY((live & kEnds) != kEnds)) {
      for (int64_t i = 0; i < kTile; ++i) block[j * kTile + i] = (live >> i & 1) != 0 ? Widen(column[i]) : 0.0f;
      continue;
    }
    PrefetchPast<0>(column, kPositionBytesAhead);
    for (int64_t i = 0; i < kTile; i += TileLanes()) hn::Store(LoadAs(d, column + i), d, block + j * kTile + i);
  }
}

// Copies columns [first, first + cols) of a tile to `block`. Lanes of rows that are not live get zeros, those past the
// last row anything that is a number where the others are.
template <class In>
HWY_INLINE void StageTile(const TileMatrix &matrix, const TileShape &task, int64_t first, int64_t cols, float *block) {
  if (task.positions) {
    StagePositions<In>(matrix, task.live, first, cols, block);
  } else if (HWY_LIKELY(task.live == kAllRows)) {
    StageRows<In, true>(matrix, task.live, first, cols, block);
  } else if (task.live == 0) {
    std::memset(block, 0, static_cast<size_t>(cols * kTile) * sizeof(float));
  } else if (task.count == 1) {
    const TileTag d;
    const In *const row = static_cast<const In *>(matrix.data) + first;
    for (int64_t j = 0; j < cols; ++j) hn::Store(hn::Set(d, Widen(row[j])), d, block + j * kTile);
    return;
  } else {
    StageRows<In, false>(matrix, task.live, first, cols, block);
  }
  if (HWY_LIKELY(task.live == kAllRows)) return;
  for (int64_t i = 0; i < task.count; ++i) {
    if ((task.live >> i & 1) != 0) continue;
    for (int64_t j = 0; j < cols; ++j) block[j * kTile + i] = 0.0f;
  }
}

// The reverse. Rows whose bit is not set in `wanted` keep what they have.
template <class Out>
HWY_INLINE void UnstageTile(const TileMatrix &matrix, const TileShape &task, uint32_t wanted, int64_t first,
                            int64_t cols, const float *block) {
  const TileTag d;
  Out *const data = static_cast<Out *>(matrix.data) + first * matrix.col;
  int64_t j = 0;
  if (HWY_UNLIKELY(wanted != kAllRows)) {
    for (; wanted != 0; wanted &= wanted - 1) {
      const int64_t i = static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero32(wanted));
      for (j = 0; j < cols; ++j) data[i * matrix.row + j * matrix.col] = Narrow<Out>(block[j * kTile + i]);
    }
    return;
  }
  if (task.positions) {
    for (; j < cols; ++j) {
      Out *const column = data + j * matrix.col;
      const float *const values = block + j * kTile;
      for (int64_t i = 0; i < kTile; i += TileLanes()) {
        task.stream ? StoreOrStream<true>(d, hn::Load(d, values + i), column + i)
                    : StoreAs(d, hn::Load(d, values + i), column + i);
      }
      if (!task.stream) PrefetchPast<1>(column, kPositionBytesAhead);
    }
    return;
  }
  if constexpr (sizeof(Out) == sizeof(float)) {
    for (int64_t i = 0; IsDense(matrix, cols) && i < kTile; i += TileLanes()) {
      const Floats v0 = hn::Load(d, block + i), v1 = hn::Load(d, block + kTile + i);
      if (cols == 2) hn::StoreInterleaved2(v0, v1, d, data + i * 2);
      if (cols == 3) hn::StoreInterleaved3(v0, v1, hn::Load(d, block + 2 * kTile + i), d, data + i * 3);
    }
    if (IsDense(matrix, cols)) return;
  }
  const RowsAt<Out, true> rows(data, matrix.row, kAllRows);
#if !HWY_HAVE_SCALABLE
  while (cols >= 4) {
    for (int64_t i = 0; i < kTile; i += TileLanes()) {
      const float *const from = block + j * kTile + i;
      Floats v0 = hn::Load(d, from), v1 = hn::Load(d, from + kTile);
      Floats v2 = hn::Load(d, from + 2 * kTile), v3 = hn::Load(d, from + 3 * kTile);
      TransposeSquares(v0, v1, v2, v3);
      StorePieces(d, v0, rows, i, j);
      StorePieces(d, v1, rows, i + 1, j);
      StorePieces(d, v2, rows, i + 2, j);
      StorePieces(d, v3, rows, i + 3, j);
    }
    if (j + 4 >= cols) return;
    j = HWY_MIN(j + 4, cols - 4);
  }
#endif
  for (; j < cols; ++j) {
    for (int64_t i = 0; i < kTile; ++i) rows(i)[j] = Narrow<Out>(block[j * kTile + i]);
  }
}

// The same of a matrix of any type but float64.
inline HWY_NOINLINE void StageAnyTile(Dtype dtype, const TileMatrix &matrix, const TileShape &task, int64_t first,
                                      int64_t cols, float *block) {
  DispatchElements(dtype, [&](auto in) XENT_INLINE_LAMBDA {
    using In = decltype(in);
    if constexpr (!std::is_same_v<In, double>) StageTile<In>(matrix, task, first, cols, block);
  });
}
inline HWY_NOINLINE void UnstageAnyTile(Dtype dtype, const TileMatrix &matrix, const TileShape &task, uint32_t wanted,
                                        int64_t first, int64_t cols, const float *block) {
  DispatchElements(dtype, [&](auto type) XENT_INLINE_LAMBDA {
    using Out = decltype(type);
    if constexpr (!std::is_same_v<Out, double>) UnstageTile<Out>(matrix, task, wanted, first, cols, block);
  });
}

// ---- exponentials ----

// Each lane's largest value, its reference exponent, and e^m' relative to that in two parts.
struct TileMaxima {
  HWY_ALIGN float max[kTile], reference[kTile], exp_max[kTile], exp_max_low[kTile];

  HWY_INLINE Halves ExpOfMaximum(int64_t i) const { return hn::Add(LoadHalf(exp_max + i), LoadHalf(exp_max_low + i)); }
};
// With the ExpRange, and where the targets' values are.
struct TileRanges : TileMaxima, TileScale {
  int64_t count;  // rows; vectors without one are not computed
  HWY_ALIGN float lo[kTile], hi[kTile], origin[kTile];
  float *target = nullptr;  // kTile

  explicit TileRanges(const TileScale &scale, int64_t rows) : TileScale(scale), count(rows) {}
};

// e^m' of the reduction that ExpFour makes, with what its roundings lose: off by 2^-25.2, most of it the polynomial's.
HWY_INLINE void ExpOfMaximum(const TileScale &scale, Floats max, Floats reference, Floats *high, Floats *low) {
#if HWY_NATIVE_FMA
  const TileTag d;
  const Floats one = hn::Set(d, 1.0f), log2e = hn::Set(d, scale.log2e_hi);
  const Floats product = hn::Mul(max, log2e);
  const Floats f_hi = hn::Sub(product, reference);  // exact
  const Floats f_lo = hn::MulAdd(max, hn::Set(d, scale.log2e_lo), hn::MulSub(max, log2e, product));
  const Floats f = hn::Add(f_hi, f_lo), lost = hn::Sub(f_lo, hn::Sub(f, f_hi));
  Floats q = hn::Set(d, kExp2F32[6]);
  HWY_UNROLL(8)
  for (int k = 5; k >= 1; --k) q = hn::MulAdd(q, f, hn::Set(d, kExp2F32[k]));
  const Floats e = hn::MulAdd(f, q, one);
  const Floats lost_of_e = hn::MulAdd(f, q, hn::Sub(one, e));
  *high = e;
  *low = hn::MulAdd(hn::Mul(lost, hn::Set(d, kLn2_F32_Hi)), e, lost_of_e);
#else
  const HalfTag dd;
  const auto exp = [&](Halves z, Halves n)
                       HWY_ATTR { return Exp2ForFloat(dd, hn::Sub(hn::Mul(z, hn::Set(dd, scale.log2e)), n)); };
  SplitDoubles(exp(hn::PromoteLowerTo(dd, max), hn::PromoteLowerTo(dd, reference)),
               exp(hn::PromoteUpperTo(dd, max), hn::PromoteUpperTo(dd, reference)), high, low);
#endif
}

// Makes the ranges of lanes [i, i + lanes) from their maxima.
HWY_INLINE void SetRange(Floats max, int64_t i, TileRanges *ranges) {
  using F = ExpFormat<float>;
  const TileTag d;
  const Floats round = hn::Set(d, static_cast<float>(F::kRound));
  const Floats reference = hn::Sub(hn::MulAdd(max, hn::Set(d, ranges->log2e_hi), round), round);
  const Floats ln2 = hn::Set(d, ranges->ln2);
  const Floats field = hn::Sub(reference, hn::Set(d, static_cast<float>(Format<float>::kBias + F::kExponentBias)));
  const Floats none = hn::Sub(reference, hn::Set(d, static_cast<float>(Format<float>::kBias)));
  constexpr bool kScalef = ExpRange<float>::kScalef;
  hn::Store(max, d, ranges->max + i);
  hn::Store(reference, d, ranges->reference + i);
  hn::Store(hn::Mul(kScalef ? hn::Set(d, -0x1.8p21f) : field, ln2), d, ranges->lo + i);
  const Floats top = hn::Add(field, hn::Set(d, static_cast<float>(2 * F::kExponentBias + 1)));
  if (!kScalef) hn::Store(hn::Mul(top, ln2), d, ranges->hi + i);
  // With the instruction that scales one more than without, which FinishExponential takes back: m has the same parity
  // either way, so that a product half way between two integers is rounded to the same one.
  hn::Store(kScalef ? hn::Sub(hn::Add(round, hn::Set(d, 1.0f)), none) : hn::Sub(round, field), d, ranges->origin + i);
  Floats high = max, low = max;
  ExpOfMaximum(*ranges, max, reference, &high, &low);
  hn::Store(high, d, ranges->exp_max + i);
  hn::Store(low, d, ranges->exp_max_low + i);
}

// Lanes [i, i + lanes) of the ranges, as an ExpRange.
struct TileRange {
  static constexpr bool kScalef = ExpRange<float>::kScalef;
  const TileRanges &ranges;
  int64_t i;

  template <class D>
  HWY_INLINE hn::Vec<D> Lo(D d) const {
    return hn::Load(d, ranges.lo + i);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Hi(D d) const {
    return hn::Load(d, ranges.hi + i);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Origin(D d) const {
    return hn::Load(d, ranges.origin + i);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Log2EHi(D d) const {
    return hn::Set(d, ranges.log2e_hi);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Log2ELo(D d) const {
    return hn::Set(d, ranges.log2e_lo);
  }
  double Log2E() const { return ranges.log2e; }
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE V FinishExponential(D d, const TileRange & /*range*/, V p, V m) {
#if XENT_SCALEF
  return V{_mm512_scalef_ps(p.raw, hn::Sub(m, hn::Set(d, static_cast<float>(ExpFormat<float>::kRound + 1.0))).raw)};
#else
  return ScaleByExponent(d, p, m);
#endif
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
