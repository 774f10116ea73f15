"""The models by name."""

from torch import nn

REGISTRY = {}


def register(build):
    REGISTRY[build.__name__] = build
    return build


@register
def mlp(inside=10, width=40, out=4):
    return nn.Sequential(nn.Linear(inside, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, out))
