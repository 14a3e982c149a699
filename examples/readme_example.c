/* The same from C: loss, lse of each row, and the gradient over the logits. */
#include <math.h>
#include <stdio.h>
#include <xent/xent.h>

int main(void) {
  float logits[2][3] = {{2.0f, 1.0f, 0.1f}, {0.5f, 2.5f, 0.3f}};
  const int32_t targets[2] = {0, 1};
  float loss = 0.0f, lse[2];

  xent_statistics statistics = XENT_STATISTICS_INIT;
  statistics.lse = lse;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = 2;
  args.cols = 3;
  args.logits.data = logits;
  args.logits.dtype = XENT_F32;
  args.targets.data = targets;
  args.targets.type = XENT_I32;
  args.reduced_loss = &loss;
  args.statistics = &statistics;
  args.grad = args.logits; /* over the logits */
  xent_error error = XENT_ERROR_INIT;
  if (xent_cross_entropy_forward_backward(&args, NULL, NULL, &error) != XENT_OK) {
    fprintf(stderr, "%s\n", error.message);
    return 1;
  }

  printf("loss %.5f, lse %.5f %.5f\n", loss, lse[0], lse[1]); /* 0.31854, 2.41703 2.72005 */
  for (int i = 0; i < 2; ++i) printf("grad %8.5f %8.5f %8.5f\n", logits[i][0], logits[i][1], logits[i][2]);
  return fabsf(loss - 0.31854f) < 1e-5f && fabsf(logits[0][0] + 0.17050f) < 1e-5f ? 0 : 1;
}
