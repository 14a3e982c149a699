/* A plug-in that holds the archive: its one function is the loss that a team of threads computes. */
#include "../team.h"

__attribute__((visibility("default"))) float plugin_loss(void) { return TeamLoss(xent_cross_entropy_forward); }
