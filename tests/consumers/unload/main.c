/* Loads the shared library, lets its team work, and unloads it, again and again. The team's threads wait for the next
 * call by then, and notice within milliseconds if the code that they wait in is gone. */
#define _POSIX_C_SOURCE 199309L
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>
#include <xent/xent.h>

enum { kRows = 64, kCols = 5000, kRounds = 20 };

static float logits[kRows * kCols];
static int64_t targets[kRows];

/* The mean loss of rows of equal logits, log of their number; negative where something failed. */
static float Loss(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return -1.0f;
  }
  xent_status (*forward)(const xent_cross_entropy *, const xent_cross_entropy_options *, const xent_exec *,
                         xent_error *) = NULL;
  *(void **)&forward = dlsym(library, "xent_cross_entropy_forward");
  if (forward == NULL) return -1.0f;
  float loss = -1.0f;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = kRows;
  args.cols = kCols;
  args.logits.data = logits;
  args.targets.data = targets;
  args.reduced_loss = &loss;
  xent_exec exec = XENT_EXEC_INIT;
  exec.threads = 4;
  const xent_status status = forward(&args, NULL, &exec, NULL);
  if (dlclose(library) != 0 || status != XENT_OK) return -1.0f;
  return loss;
}

int main(void) {
  for (int round = 0; round < kRounds; ++round) {
    const float loss = Loss(XENT_LIBRARY);
    if (!(loss > 8.51718f && loss < 8.51720f)) { /* log 5000 */
      fprintf(stderr, "round %d: loss %.6f\n", round, (double)loss);
      return 1;
    }
    const struct timespec pause = {0, 20 * 1000 * 1000};
    nanosleep(&pause, NULL);
  }
  return 0;
}
