// oneDNN's softmax, where it is installed.
#ifdef XENT_BENCH_ONEDNN
#ifdef _OPENMP
#include <omp.h>
#endif

#include <array>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "bench/peers.h"
#include "oneapi/dnnl/dnnl.hpp"

namespace xent_bench {
namespace {

// oneDNN takes as many threads as OpenMP would now.
class OneThread {
 public:
#ifdef _OPENMP
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
#else
  OneThread() {}
  ~OneThread() {}
#endif
};

// No wider vectors than xent has. oneDNN listens before its first use only.
dnnl::engine CappedEngine() {
  const std::string_view target = xent_active_target();
  if (target == "AVX2") dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
  if (target.substr(0, 3) == "SSE" || target == "SSSE3") dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
  return dnnl::engine(dnnl::engine::kind::cpu, 0);
}

std::array<void *, 4> BuffersOf(const Problem &problem) {
  return {problem.logits.data(), problem.slot(0), problem.aux.data(), problem.upstream.data()};
}

// A primitive bound to the problem's buffers.
struct Bound {
  Bound(Op op, const Problem &problem) : op(op), shape(problem.shape), buffers(BuffersOf(problem)) {
    static const dnnl::engine engine = CappedEngine();
    stream = dnnl::stream(engine);
    const dnnl::memory::desc matrix({shape.rows, shape.cols}, dnnl::memory::data_type::f32,
                                    dnnl::memory::format_tag::ab);
    constexpr int kAxis = 1;
    const auto on = [&](const Buffer &buffer) { return dnnl::memory(matrix, engine, buffer.data()); };
    const dnnl::memory result(matrix, engine, problem.slot(0));
    if (op == Op::kSoftmax) {
      const dnnl::softmax_forward::desc forward(dnnl::prop_kind::forward_inference, matrix, kAxis);
      primitive = dnnl::softmax_forward({forward, engine});
      arguments = {{DNNL_ARG_SRC, on(problem.logits)}, {DNNL_ARG_DST, result}};
      return;
    }
    const bool trains = op == Op::kLogSoftmaxBackward;
    const dnnl::logsoftmax_forward::desc forward(
        trains ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference, matrix, kAxis);
    const dnnl::logsoftmax_forward::primitive_desc forward_pd(forward, engine);
    if (trains) {
      const dnnl::logsoftmax_backward::desc backward(matrix, matrix, kAxis);
      primitive = dnnl::logsoftmax_backward({backward, engine, forward_pd});
      arguments = {
          {DNNL_ARG_DST, on(problem.aux)}, {DNNL_ARG_DIFF_DST, on(problem.upstream)}, {DNNL_ARG_DIFF_SRC, result}};
    } else {
      primitive = dnnl::logsoftmax_forward(forward_pd);
      arguments = {{DNNL_ARG_SRC, on(problem.logits)}, {DNNL_ARG_DST, result}};
    }
  }

  const Op op;
  const Shape shape;
  const std::array<void *, 4> buffers;
  dnnl::stream stream;
  dnnl::primitive primitive;
  std::unordered_map<int, dnnl::memory> arguments;
};

}  // namespace

bool HasOneDnn(Op op) { return op == Op::kSoftmax || op == Op::kLogSoftmax || op == Op::kLogSoftmaxBackward; }

void RunOneDnn(Op op, const Problem &problem) {
  static std::unique_ptr<Bound> bound;
  const OneThread one_thread;
  if (bound == nullptr || bound->op != op || bound->shape != problem.shape || bound->buffers != BuffersOf(problem)) {
    bound = std::make_unique<Bound>(op, problem);
  }
  bound->primitive.execute(bound->stream, bound->arguments);
  bound->stream.wait();
}

}  // namespace xent_bench
#else
#include "bench/peers.h"

namespace xent_bench {
bool HasOneDnn(Op) { return false; }
void RunOneDnn(Op, const Problem &) {}
}  // namespace xent_bench
#endif
