/* Loads the plug-in, calls its function, and looks in vain for what the archive in it exports. */
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (plugin == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  float (*plugin_loss)(void) = NULL;
  *(void **)&plugin_loss = dlsym(plugin, "plugin_loss");
  if (plugin_loss == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const float loss = plugin_loss();
  if (dlsym(plugin, "xent_version") != NULL || dlsym(plugin, "xent_cross_entropy_forward") != NULL) {
    fprintf(stderr, "the plug-in exports xent's functions\n");
    return 1;
  }
  printf("loss %.4f\n", loss);
  return loss > 0.53715f && loss < 0.53725f ? 0 : 1; /* 0.5372 to four decimals */
}
