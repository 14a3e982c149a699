/* A plug-in that holds the archive: its one function is the mean loss of rows of equal logits, computed by a team of
 * threads; negative where the call failed. */
#include <xent/xent.h>

enum { kRows = 64, kCols = 5000 };

static float logits[kRows * kCols];
static int64_t targets[kRows];

__attribute__((visibility("default"))) float plugin_loss(void) {
  float loss = -1.0f;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = kRows;
  args.cols = kCols;
  args.logits.data = logits;
  args.targets.data = targets;
  args.reduced_loss = &loss;
  xent_exec exec = XENT_EXEC_INIT;
  exec.threads = 4;
  return xent_cross_entropy_forward(&args, NULL, &exec, NULL) == XENT_OK ? loss : -1.0f;
}
