"""Runs a module to its end, several times, without precaudit; prints what its optimizer held, a line of JSON each.

python inspect_run.py MODULE [ARGS]... -- [ARGS]...
"""

import collections
import contextlib
import gc
import io
import json
import runpy
import sys

import torch
from accelerate.state import AcceleratorState, GradientState

kept = []
build = torch.optim.Optimizer.__init__


def remember(optimizer, *args, **kwargs):
    build(optimizer, *args, **kwargs)
    kept.append(optimizer)


def counted(tensors):
    return dict(collections.Counter(str(t.dtype)[6:] for t in tensors))


def run(module, arguments):
    kept.clear()
    gc.collect()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    sys.argv = [module, *arguments]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        left = runpy.run_module(module, run_name="__main__", alter_sys=True)
    optimizer = kept[-1]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key.startswith("exp_avg")]
    quantised = [o for o in gc.get_objects() if isinstance(o, torch.nn.Parameter) and getattr(o, "quant_state", None)]
    found = {"trained": counted(params), "state": counted(moments), "quantised": len(quantised)}
    left.clear()
    return found | {"stdout": said.getvalue()}


torch.optim.Optimizer.__init__ = remember
module, *rest = sys.argv[1:]
runs = [[]]
for word in rest:
    runs.append([]) if word == "--" else runs[-1].append(word)
results = [run(module, arguments) for arguments in runs]
for result in results:
    print(json.dumps(result))
