/* A C11 program that uses the installed package: the loss of one row, against the number that it must be. */
#include <stdio.h>
#include <xent/xent.h>

int main(void) {
  float logits[5] = {2.0f, 1.2f, 0.3f, -0.8f, -2.0f};
  const int64_t target = 0;
  float loss = -1.0f;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = 1;
  args.cols = 5;
  args.logits.data = logits;
  args.targets.data = &target;
  args.reduced_loss = &loss;
  xent_error error = XENT_ERROR_INIT;
  if (xent_cross_entropy_forward(&args, NULL, NULL, &error) != XENT_OK) {
    fprintf(stderr, "%s\n", error.message);
    return 1;
  }
  printf("xent %s on %s: loss %.4f\n", xent_version(), xent_active_target(), loss);
  return loss > 0.53715f && loss < 0.53725f ? 0 : 1; /* 0.5372 to four decimals */
}
