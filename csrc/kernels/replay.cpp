// Replaying a recorded step: nothing but the calls, so that the recorded and the plain way compute the same bits.
#include "../abi/replay.h"

void moesaic_replay(const moesaic_replay_args* args) {
    for (int64_t i = args->first; i < args->last; ++i) args->calls[i].function(args->calls[i].arguments);
}
