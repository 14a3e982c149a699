/* What the programs that unload xent have in common: a call that a team of threads computes, and its result. */
#ifndef XENT_TESTS_CONSUMERS_TEAM_H_
#define XENT_TESTS_CONSUMERS_TEAM_H_

#include <xent/xent.h>

typedef xent_status (*forward_function)(const xent_cross_entropy *, const xent_cross_entropy_options *,
                                        const xent_exec *, xent_error *);

/* The mean loss of rows of 5000 equal logits; negative where the call failed. */
static inline float TeamLoss(forward_function forward) {
  enum { kRows = 64, kCols = 5000 };
  static float logits[kRows * kCols];
  static int64_t targets[kRows];
  float loss = -1.0f;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = kRows;
  args.cols = kCols;
  args.logits.data = logits;
  args.targets.data = targets;
  args.reduced_loss = &loss;
  xent_exec exec = XENT_EXEC_INIT;
  exec.threads = 4;
  return forward(&args, NULL, &exec, NULL) == XENT_OK ? loss : -1.0f;
}

/* log 5000 */
static inline int IsTeamLoss(float loss) { return loss > 8.51718f && loss < 8.51720f; }

#endif
