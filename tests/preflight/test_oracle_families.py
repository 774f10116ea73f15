"""Against torch itself, over the families of transformers: each module's dtype is that of the real AutocastCUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_autocast_oracle import LOW, by_torch, outputs
from torch import Tensor, nn

from precaudit.preflight.layer import start

pytestmark = pytest.mark.slow

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
GROUPED = {**TEXT, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
SEEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PATCHES = {**SEEN, "image_size": 32, "patch_size": 8}
STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 32, "patch_size": 4}
BOTH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 64, "encoder_attention_heads": 4}
BOTH |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", TEXT),
    "roberta": ("Roberta", TEXT),
    "electra": ("Electra", {**TEXT, "embedding_size": 16}),
    "albert": ("Albert", {**TEXT, "embedding_size": 16}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 64}),
    "deberta": ("DebertaV2", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "gpt2": ("GPT2", GPT),
    "gpt_neox": ("GPTNeoX", TEXT),
    "opt": ("OPT", {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
    "falcon": ("Falcon", TEXT),
    "phi": ("Phi", TEXT),
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 8}),
    "t5": ("T5Encoder", {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 64}),
    "bart": ("Bart", BOTH),
    "vit": ("ViT", PATCHES),
    "deit": ("DeiT", PATCHES),
    "swin": ("Swin", STAGES),
    "dinov2": ("Dinov2", PATCHES),
    "convnext": ("ConvNext", {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2}),
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "mobilenet": ("MobileNetV2", {"depth_multiplier": 0.25, "image_size": 32}),
    "wav2vec2": (
        "Wav2Vec2",
        {**SEEN, "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2},
    ),
}
"""Name -> the model's and configuration's class in transformers, without the last word, and a small configuration."""
IMAGES = set("vit deit swin dinov2 convnext resnet mobilenet".split())


def built(name: str) -> nn.Module:
    """A small model of one family."""
    transformers = pytest.importorskip("transformers")
    family, sizes = FAMILIES[name]
    config = getattr(transformers, f"{family.removesuffix('Encoder')}Config")(**sizes)
    made: nn.Module = getattr(transformers, f"{family}Model")(config).eval()
    return made


def given(name: str) -> Tensor:
    """What such a model is called with."""
    if name in IMAGES:
        return torch.rand(1, 3, 32, 32)
    return torch.rand(1, 400) if name == "wav2vec2" else torch.arange(8)[None]


class Graph(nn.Module):
    """Two rounds of messages along edges, each node's sum over its neighbours divided by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(8, 16), nn.Linear(16, 4), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        nodes = torch.arange(x.shape[0], device=x.device)
        sources, targets = torch.cat([nodes, nodes]), torch.cat([nodes.roll(1), nodes.roll(2)])
        for layer in (self.first, self.second):
            messages = layer(x)[sources]
            sums = torch.zeros(x.shape[0], messages.shape[1], dtype=messages.dtype, device=x.device)
            x = sums.index_add(0, targets, messages) / 2
            x = self.norm(x) if layer is self.first else x.softmax(-1)
        return x


def graph() -> tuple[Callable[[], nn.Module], Callable[[], Tensor]]:
    return Graph, lambda: torch.rand(6, 8)


CUDA, META = 1, 14
"""Places in c10::impl::device_guard_impl_registry, which has one pointer for each c10::DeviceType."""


@contextmanager
def guarded() -> Iterator[None]:
    """Indexing and `contiguous` ask for a guard of cuda, which a build for the CPU has not: Meta's does nothing."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if torch.version.cuda or not library.exists():
        yield
        return
    registry = (ctypes.c_void_p * 22).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    before, registry[CUDA] = registry[CUDA], registry[META]
    try:
        yield
    finally:
        registry[CUDA] = before


@pytest.mark.parametrize("name", [*FAMILIES, "graph"])
def test_each_module_of_a_family_gives_the_dtype_that_it_gives_on_cuda(name: str) -> None:
    build, make = graph() if name == "graph" else (lambda: built(name), lambda: given(name))
    with guarded():
        wanted = by_torch(build, make(), LOW)
    layer = start({"device": "h100"})
    try:
        placed = build().eval().cuda()
        with torch.no_grad(), torch.autocast("cuda", dtype=LOW):
            found = outputs(placed, lambda: placed(make().cuda()))
    finally:
        layer.remove()
    assert found == wanted
    assert len(found) > 3
