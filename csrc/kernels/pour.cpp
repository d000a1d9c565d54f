// From files to packed matrices: a piece is read into memory of the thread's own, where scan and packing find it in the
// cache.
#include "../abi/pour.h"

#include <unistd.h>

#include <cerrno>

#include "../common/team.h"

namespace moesaic {
namespace {

constexpr int WORKSPACE = 16;

int32_t read_all(int file, int64_t offset, uint8_t* out, int64_t bytes) {
    while (bytes > 0) {
        const ssize_t count = pread(file, out, size_t(bytes), offset);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno;
        if (count == 0) return MOESAIC_POUR_SHORT;
        out += count, offset += count, bytes -= count;
    }
    return 0;
}

void pour(moesaic_pour_piece& piece) {
    const int64_t bytes = piece.scan.count * (piece.scan.dtype == MOESAIC_F32 ? 4 : 2);
    void* data = piece.out != nullptr ? piece.out : workspace(WORKSPACE, size_t(bytes));
    piece.error = read_all(piece.file, piece.offset, static_cast<uint8_t*>(data), bytes);
    if (piece.error != 0) return;
    piece.scan.data = data;
    moesaic_scan(&piece.scan);
    if (piece.out != nullptr) return;
    moesaic_pack_args args = piece.pack;
    args.source = data;
    args.stride = args.matrix.cols;
    args.dtype = piece.scan.dtype;
    args.alone = 1;
    moesaic_pack(&args);
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_pour(const moesaic_pour_args* args) {
    using namespace moesaic;
    parallel_for(args->count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) pour(args->pieces[i]);
    });
}
