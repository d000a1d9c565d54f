// How products share their work among threads.
#pragma once

#include "../common/team.h"

namespace moesaic {

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

    // Calls unit(i) for [0, total), on whichever thread comes first; those of neighbouring units mostly on the same.
    template <class Unit>
    static void share(Counter& counter, int64_t total, const Unit& unit) {
        int64_t begin, end;
        while (counter.take_share(total, begin, end))
            for (int64_t i = begin; i < end; ++i) unit(i);
    }

private:
    int threads_;
};

}  // namespace moesaic
