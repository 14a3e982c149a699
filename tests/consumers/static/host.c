/* Loads the plug-in, calls its function, looks in vain for what the archive in it exports, and unloads it, again and
 * again. The threads of the plug-in's team wait for the next call by then, and notice within milliseconds if the code
 * that they wait in is gone. */
#define _POSIX_C_SOURCE 199309L
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

#include "../team.h"

enum { kRounds = 20 };

static int UsePlugin(const char *path) {
  void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (plugin == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 0;
  }
  float (*plugin_loss)(void) = NULL;
  *(void **)&plugin_loss = dlsym(plugin, "plugin_loss");
  if (plugin_loss == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 0;
  }
  const float loss = plugin_loss();
  if (dlsym(plugin, "xent_version") != NULL || dlsym(plugin, "xent_cross_entropy_forward") != NULL) {
    fprintf(stderr, "the plug-in exports xent's functions\n");
    return 0;
  }
  const int good = IsTeamLoss(loss);
  if (!good) fprintf(stderr, "loss %.6f\n", (double)loss);
  return dlclose(plugin) == 0 && good;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  for (int round = 0; round < kRounds; ++round) {
    if (!UsePlugin(argv[1])) return 1;
    const struct timespec pause = {0, 20 * 1000 * 1000};
    nanosleep(&pause, NULL);
  }
  return 0;
}
