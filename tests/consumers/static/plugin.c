/* A plug-in that holds the archive: its one function is the loss of one row, negative where the call failed. */
#include <xent/xent.h>

__attribute__((visibility("default"))) float plugin_loss(void) {
  float logits[5] = {2.0f, 1.2f, 0.3f, -0.8f, -2.0f};
  const int64_t target = 0;
  float loss = -1.0f;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = 1;
  args.cols = 5;
  args.logits.data = logits;
  args.targets.data = &target;
  args.reduced_loss = &loss;
  return xent_cross_entropy_forward(&args, NULL, NULL, NULL) == XENT_OK ? loss : -1.0f;
}
