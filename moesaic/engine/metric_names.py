"""The names under which figures go to Prometheus: base units, `_total` for counters, `moesaic_` before all.

Labels are bounded: a layer, a reason, a kind; never an expert or a request.
"""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROUTING_SECONDS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 10)

# metric, its help, and the field of EngineStats that it follows
GAUGES = (
    ("num_requests_running", "Sequences in the running batch.", "num_running"),
    ("num_requests_waiting", "Sequences that wait for a place or for blocks.", "num_waiting"),
    ("kv_blocks_used", "KV-cache blocks that sequences hold.", "kv_blocks_used"),
    ("kv_blocks", "KV-cache blocks in all.", "kv_blocks_total"),
    ("state_slots_used", "Slots of recurrent state that sequences hold.", "state_slots_used"),
    ("state_checkpoints", "Slots with recurrent state that a later prompt may start from.", "state_checkpoints"),
    ("state_slots", "Slots of recurrent state in all; 0 for models without any.", "state_slots_total"),
)
COUNTERS = (
    ("preemptions", "Sequences that lost their blocks and were computed again.", "preemptions_total"),
    ("prefix_cache_queries_tokens", "Prompt tokens looked up in the prefix cache.", "prefix_queries_total"),
    ("prefix_cache_hits_tokens", "Prompt tokens found in the prefix cache.", "prefix_hits_total"),
    (
        "computed_tokens",
        "Tokens that went through the model, recomputed ones included.",
        "computed_tokens_total",
    ),
    ("steps", "Engine steps.", "steps_total"),
    ("step_seconds", "Time in engine steps.", "step_seconds_total"),
    ("forward_seconds", "Of this, time inside the model.", "forward_seconds_total"),
)

# metric without its unit, and its help
HISTOGRAMS = (
    ("time_to_first_token", "From arrival to the first token."),
    ("inter_token_latency", "Between two tokens of a completion."),
    ("request_latency", "From arrival to the last token."),
    ("request_queue_time", "From arrival to the first step with tokens of the request."),
    ("request_prefill_time", "From then to the first token."),
    ("request_decode_time", "From the first token to the last."),
)

# metric, its help, and the field of LayerSummary that it follows
LAYER_GAUGES = (
    ("expert_utilization", "Share of a layer's experts that got a token in the last minute.", "utilization"),
    ("token_imbalance", "Tokens of a layer's busiest expert over the mean, in the last minute.", "imbalance"),
    ("routing_entropy", "H / log N of a layer's tokens over its experts, in the last minute; 1 is even.", "entropy"),
    (
        "compute_efficiency",
        "Rows routed to a layer's experts over rows of the blocks they were computed in, in the last minute.",
        "compute_efficiency",
    ),
    ("dead_experts", "Experts of a layer that got no token in the last minute, where others did.", "dead"),
)
