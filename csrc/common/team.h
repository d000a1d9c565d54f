// Work for a team of threads: taken in small units from a counter rather than in fixed halves, so that a thread which
// loses its core for a while holds back one unit and not half the work. The threads are torch's own OpenMP pool (its
// libgomp; we never start a second one), as many as torch.set_num_threads said on the calling thread.
//
// Which thread computes a unit never shows in the result: kernels give each unit its own outputs.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "simd.h"

namespace moesaic {

// Units [0, total) handed out among threads; one counter for each phase of a parallel region.
class Counter {
public:
    // The next `grain` units [begin, end) for the calling thread; false when none is left.
    bool take(int64_t total, int64_t grain, int64_t& begin, int64_t& end) {
        begin = next_.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= total) return false;
        end = begin + grain < total ? begin + grain : total;
        return true;
    }

    // The next units, fewer the fewer are left (guided self-scheduling, Polychronopoulos and Kuck 1987): what a thread
    // streams and prefetches lies together and is its own, and yet threads are done together.
    bool take_share(int64_t total, int64_t& begin, int64_t& end) {
        const int64_t threads = omp_get_num_threads();
        begin = next_.load(std::memory_order_relaxed);
        do {
            if (begin >= total) return false;
            const int64_t most = total / (2 * SHARES * threads), share = (total - begin) / (SHARES * threads);
            end = begin + std::max<int64_t>(1, std::min(most, share));
        } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
        return true;
    }

private:
    static constexpr int64_t SHARES = 2;  // that a thread's even part of what is left is cut into


    alignas(64) std::atomic<int64_t> next_{0};
};

// How many threads a region should use: no more than it has units.
inline int team_size(int64_t units) {
    const int64_t most = omp_in_parallel() ? 1 : omp_get_max_threads();
    return int(units < most ? (units > 0 ? units : 1) : most);
}

// Calls body(begin, end) over [0, total) from all threads of a team, in ranges of at most `grain`.
template <class Body>
void parallel_for(int64_t total, int64_t grain, const Body& body) {
    if (total <= 0) return;
    const int threads = team_size((total + grain - 1) / grain);
    if (threads == 1) {
        body(int64_t(0), total);
        return;
    }
    Counter counter;
#pragma omp parallel num_threads(threads)
    {
        int64_t begin, end;
        while (counter.take(total, grain, begin, end)) body(begin, end);
    }
}

// Memory that outlives a call, one block for each thread that calls kernels: grown when more is asked for, never shrunk,
// aligned to 64 bytes. The pointer is good until the next `workspace` of the same thread and `slot`.
void* workspace(int slot, size_t bytes);

}  // namespace moesaic
