/* Loads the shared library, lets its team work, and unloads it, again and again. The team's threads wait for the next
 * call by then, and notice within milliseconds if the code that they wait in is gone. */
#define _POSIX_C_SOURCE 199309L
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

#include "../team.h"

enum { kRounds = 20 };

/* Negative where something failed. */
static float Loss(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return -1.0f;
  }
  forward_function forward = NULL;
  *(void **)&forward = dlsym(library, "xent_cross_entropy_forward");
  if (forward == NULL) return -1.0f;
  const float loss = TeamLoss(forward);
  return dlclose(library) == 0 ? loss : -1.0f;
}

int main(void) {
  for (int round = 0; round < kRounds; ++round) {
    const float loss = Loss(XENT_LIBRARY);
    if (!IsTeamLoss(loss)) {
      fprintf(stderr, "round %d: loss %.6f\n", round, (double)loss);
      return 1;
    }
    const struct timespec pause = {0, 20 * 1000 * 1000};
    nanosleep(&pause, NULL);
  }
  return 0;
}
