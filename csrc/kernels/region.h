// A parallel region of several phases: each hands out its units from its own counter, with barriers between them.
#pragma once

#include "../common/team.h"

namespace moesaic {

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
