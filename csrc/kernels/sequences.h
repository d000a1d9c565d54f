// The sequences of a step whose layers keep a state, as units of work.
#pragma once

#include "../abi/recurrent.h"

#include "../common/team.h"

namespace moesaic {

// A sequence's rows in the step, and its slot.
struct Sequence {
    int64_t first, count, slot;
    bool fresh;  // its state is zero, whatever the slot holds
};

inline Sequence sequence_of(const moesaic_stateful& batch, int64_t s) {
    const int64_t first = batch.query_start[s], count = batch.query_start[s + 1] - first;
    return {first, count, batch.slots[s], count > 0 && batch.positions[first] == 0};
}

// Calls body(sequence, part) for every sequence with rows and each of its `parts`, from all threads; a part's token takes
// about `work` operations.
template <class Body>
void each_part(int64_t rows, int64_t sequences, const moesaic_stateful& batch, int64_t parts, int64_t work,
               const Body& body) {
    constexpr int64_t WORTH = 16384;  // operations that are worth a thread
    if (sequences == 0) return;
    const int64_t grain = WORTH / (work * (rows / sequences + 1)) + 1;
    parallel_for(sequences * parts, grain, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
            const Sequence sequence = sequence_of(batch, unit / parts);
            if (sequence.count > 0) body(sequence, unit % parts);
        }
    });
}

}  // namespace moesaic
