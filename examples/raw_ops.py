"""The raw operations on plain tensors: route, sort into blocks, multiply by 4-bit experts. Works offline."""

import torch

from moesaic import ops

tokens, hidden, experts, top_k, block = 6, 64, 8, 2, 4
torch.manual_seed(0)
x = torch.randn(tokens, hidden)

# 1. Choose experts: 2 of 4 groups of experts, then 2 experts; the bias chooses but does not weigh.
scores = torch.randn(tokens, experts).sigmoid()
bias = torch.randn(experts) * 0.1
weights, ids = ops.grouped_topk(scores, scores + bias, 4, 2, top_k, True, 1.0)
print("experts of each token:", ids.tolist())

# 2. Sort the choices into blocks of one expert each.
most = ids.numel() + experts * (block - 1)
sorted_ids = torch.empty(most, dtype=torch.int32)
expert_ids = torch.empty(-(-most // block), dtype=torch.int32)
padded = torch.empty(1, dtype=torch.int32)
ops.moe_align_block_size(ids, experts, block, sorted_ids, expert_ids, padded)
print("blocks:", padded.item() // block, "of experts", expert_ids[: padded.item() // block].tolist())

# 3. Multiply by experts [48 outputs, 64 inputs] in 4 bits, a scale for each 32 inputs.
codes = torch.randint(256, (experts, 48, hidden // 2), dtype=torch.uint8)
scales = torch.rand(experts, 48, hidden // 32) * 0.02
out = torch.empty(tokens, top_k, 48)
ops.moe_wna16_gemm(x, out, codes, scales, None, weights, sorted_ids, expert_ids, padded, top_k, block, 32, 32, 4)
print("each token's experts, summed:", list(out.sum(1).shape))
