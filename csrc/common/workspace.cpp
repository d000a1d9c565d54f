#include <cstdlib>

#include "team.h"

namespace moesaic {
namespace {

constexpr int SLOTS = 17;

struct Block {
    void* data = nullptr;
    size_t bytes = 0;
    ~Block() { std::free(data); }
};

}  // namespace

void* workspace(int slot, size_t bytes) {
    static thread_local Block blocks[SLOTS];
    Block& block = blocks[slot];
    if (block.bytes < bytes) {
        std::free(block.data);
        block.bytes = (bytes + 4095) / 4096 * 4096;
        block.data = std::aligned_alloc(4096, block.bytes);
        if (block.data == nullptr) std::abort();  // the machine is out of memory: there is nobody to tell
    }
    return block.data;
}

}  // namespace moesaic
