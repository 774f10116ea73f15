"""Runs a script or module to its end, without precaudit, and prints what its AdamW held, as one line of JSON.

python inspect_run.py SCRIPT|-m MODULE [ARGS]...
"""

import collections
import gc
import json
import runpy
import sys

import torch


def counted(tensors):
    return dict(collections.Counter(str(t.dtype)[6:] for t in tensors))


kept = []
build = torch.optim.Optimizer.__init__


def remember(optimizer, *args, **kwargs):
    build(optimizer, *args, **kwargs)
    kept.append(optimizer)


torch.optim.Optimizer.__init__ = remember
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")

optimizer = kept[-1]
params = [p for group in optimizer.param_groups for p in group["params"]]
moments = [t for state in optimizer.state.values() for key, t in state.items() if key.startswith("exp_avg")]
quantised = [o for o in gc.get_objects() if isinstance(o, torch.nn.Parameter) and getattr(o, "quant_state", None)]
print(json.dumps({"trained": counted(params), "state": counted(moments), "quantised": len(quantised)}))
