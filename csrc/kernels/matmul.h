// Products of rows of activations with one panel of a packed matrix: what linear.cpp and moe.cpp are built on.
//
// A matrix says in which `Form` it wants its activations; `prepare_row` brings a row into it; `multiply` takes prepared
// rows by their addresses, so that an expert's rows may lie anywhere, and gives fp32 [count][32].
//
// Determinism: element (row, column) is the same chain of operations whatever `count` is and wherever the row stands
// among the others. Each engine's file says which chain.
#pragma once

#include "../common/formats.h"

namespace moesaic {

enum class Engine { FP32, BF16, INT16, INT8 };

// How a matrix wants a row of activations: `padded` elements, zeros after `cols`, and for integers a `ChunkScale` for
// every `chunk` of them.
struct Form {
    Engine engine;
    bool whole_row;      // one scale for all chunks
    int32_t chunk;       // inputs that share a scale, integer engines
    float levels;        // the largest integer, to which a chunk's largest element is mapped
    int64_t cols;
    int64_t padded;
    int64_t scales_at;   // bytes from a row's beginning to its ChunkScales
    int64_t row_bytes;   // from one prepared row to the next

    bool operator==(const Form& other) const {
        return engine == other.engine && whole_row == other.whole_row && chunk == other.chunk &&
               levels == other.levels && cols == other.cols && padded == other.padded;
    }
};

// Of a chunk of integers q that stand for scale * q.
struct ChunkScale {
    float scale;
    float sum;         // scale * sum of q: what an offset of the weights is multiplied with
    int32_t code_sum;  // sum of q
};

Form form_of(const moesaic_matrix& matrix);

// Whether a prepared row begins with the row as it is, and has nothing else that is read.
inline bool is_plain(const Form& form) { return form.engine == Engine::FP32 && form.padded == form.cols; }

// x has form.cols elements. NaN and infinities make a chunk's products NaN.
void prepare_row(const Form& form, const float* x, void* row);

constexpr int64_t BLOCK_ROWS = 128;  // most rows of one `multiply`: with their sums they fit the second-level cache

// out[i][0..31] = row i times panel `panel` of the matrix, 0 < count <= BLOCK_ROWS. `form` is form_of(matrix).
void multiply(const Form& form, const moesaic_matrix& matrix, int64_t panel, const char* const* rows, int64_t count,
              float* out);

}  // namespace moesaic
