// How products share their work among threads.
#pragma once

#include "../common/team.h"

namespace moesaic {

constexpr int64_t FEW_ROWS = 4;  // on average, up to which products stream weights

// How many units that each stream so many bytes a thread takes at a time: what lies together streams better, but threads
// must be done together.
inline int64_t stream_grain(int64_t units, int64_t unit_bytes) {
    const int64_t together = (96 << 10) / unit_bytes, most = units / (16 * int64_t(omp_get_max_threads()));
    const int64_t grain = together < most ? together : most;
    return grain > 1 ? grain : 1;
}

// A parallel region of several phases: each hands out its units from its own counter, with barriers between them.
class Region {
public:
    explicit Region(int threads) : threads_(threads) {}

    int threads() const { return threads_; }

    // Calls body() on every thread of the team.
    template <class Body>
    void run(const Body& body) const {
        if (threads_ == 1) return body();
#pragma omp parallel num_threads(threads_)
        body();
    }

    // For all threads of the team, between phases.
    void barrier() const {
        if (threads_ > 1) {
#pragma omp barrier
        }
    }

    // Calls unit(i) for [0, total), on whichever thread comes first, `grain` at a time.
    template <class Unit>
    static void share(Counter& counter, int64_t total, int64_t grain, const Unit& unit) {
        int64_t begin, end;
        while (counter.take(total, grain, begin, end))
            for (int64_t i = begin; i < end; ++i) unit(i);
    }

private:
    int threads_;
};

}  // namespace moesaic
