"""The staged proof: does a checkpoint compute here what its reference computes, and if not, where and why.

`run.verify` is the way through it: `scan` (stage 0: accounting and weights), `compare` (1 to 3: experts alone, fixed
routes, layer by layer), `ends` (4: logits and greedy tokens through the whole engine). References are transformers'
model (`reference_hf`), a file (`recorded`) or our own plain fp32 model (`ours`); all are asked once, leave their
`captured` tensors and go, so that only one model is in memory at a time. Where a stage differs, `search` tries the
`hypotheses`; `report_text` and `report_html` tell.
"""
