"""The branches of the tree, as docs/operate/tuning.md tells them.

The thresholds are no laws: they are where looking closer begins to pay.
"""

from moesaic.advice.branches.compute import COMPUTE
from moesaic.advice.branches.imbalance import IMBALANCE
from moesaic.advice.branches.latency import LATENCY
from moesaic.advice.branches.memory import MEMORY

BRANCHES = (IMBALANCE, COMPUTE, MEMORY, LATENCY)
