"""docs/finds.md: public mistakes, a small program of ours with the same one, and what is said of it.

`python tests/finds.py` writes the page; `tests/test_finds.py` compares it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import harness
import messages

from precaudit import rulebook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "trace"))
import test_fixtures  # noqa: E402

PAGE = ROOT / "docs" / "finds.md"
TABLES = re.compile(r"(<!-- finds -->\n)(.*?)(<!-- /finds -->)", re.DOTALL)


class Find(NamedTuple):
    """A mistake that somebody made in public."""

    rule: str
    script: str
    """Below fixtures/: ours, which makes the same mistake."""
    what: str
    where: str
    """`owner/repository#number`, several set apart by spaces."""
    witnesses: str = "check trace"


FINDS = {
    "Weights that stand still": [
        Find("PA101", "PA101/bad.py", "weights are bfloat16 and most updates are too small for them",
             "meta-pytorch/torchtune#2254 pytorch/ao#1124"),
        Find("PA102", "PA102/bad.py",
             "the live model is cast in the middle of training, as `model.half()` does to save it",
             "ultralytics/yolov5#1141 NVIDIA/apex#1494"),
        Find("PA103", "PA103/bad.py", "the average of the weights is bfloat16 and never follows them",
             "d8ahazard/sd_dreambooth_extension#1415 lucidrains/ema-pytorch#32"),
        Find("PA105", "PA105/bad_resumed.py", "float32 weights come back from a checkpoint with the digits of a half",
             "facebookresearch/metaseq#254", "trace"),
        Find("PA304", "PA304/bad_unmerged_adapter.py", "an adapter is merged into a bfloat16 base and taken out again",
             "huggingface/trl#6688 huggingface/peft#3166"),
        Find("PA812", "PA812/bad.py", "the output layer shared the embedding's weight, and one of the two was replaced",
             "huggingface/peft#816"),
    ],
    "Optimizers": [
        Find("PA301", "PA301/bad.py", "a home-made Adam keeps its moments in bfloat16",
             "Nerogar/OneTrainer#1005 NVIDIA-NeMo/Automodel#2248"),
        Find("PA302", "PA302/bad.py", "Adam's eps of 1e-8 is 0 in float16, and 0/0 is written into the weights",
             "pytorch/pytorch#8860 openai/CLIP#57"),
        Find("PA303", "PA303/bad.py", "the optimizer counts its steps in bfloat16, up to 256",
             "pytorch/ao#4915 deepspeedai/DeepSpeed#8496"),
        Find("PA303", "PA303/bad_betas.py", "decays are bfloat16 tensors, and are other numbers there",
             "tenstorrent/tt-metal#55935"),
    ],
    "Loss scaling": [
        Find("PA201", "PA201/bad.py", "float16 autocast without a GradScaler: small gradients are 0",
             "verl-project/verl#6150 engichang1467/Open-Rig3R#35"),
        Find("PA202", "PA202/bad.py", "gradients are clipped while they still carry the loss scale",
             "pytorch/examples#1196 milesial/Pytorch-UNet#470"),
        Find("PA203", "PA203/bad.py", "the loss is scaled, and `optimizer.step()` is called without the scaler",
             "nerfstudio-project/nerfacc#307 IAHispano/Applio#860"),
        Find("PA205", "PA205/bad.py", "`scaler.update()` is called once for each optimizer",
             "huggingface/accelerate#439"),
        Find("PA205", "PA205/bad_unscaled_each_micro_batch.py", "unscaled, clipped and updated at each micro-batch",
             "microsoft/Swin-Transformer#311", "trace"),
        Find("PA206", "PA206/bad.py", "a GradScaler scales the loss of a bfloat16 run",
             "huggingface/accelerate#1036 decoderesearch/SAELens#723"),
        Find("PA210", "PA210/bad.py", "nearly all steps of a short run are skipped, and nobody says so",
             "pytorch/pytorch#67590 Lightning-AI/pytorch-lightning#18828", "trace"),
        Find("PA601", "PA601/bad.py", "the checkpoint has everything but the GradScaler",
             "huggingface/transformers#11663 pytorch/torchtitan#146", "check"),
        Find("PA811", "PA811/bad.py", "adapters are float16 like their base, and nothing scales the loss",
             "huggingface/peft#1249 huggingface/diffusers#6442"),
    ],
    "Sums": [
        Find("PA208", "PA208/bad.py", "gradients of many micro-batches are summed in bfloat16",
             "deepspeedai/DeepSpeed#2352 deepspeedai/DeepSpeed#2768"),
        Find("PA209", "PA209/bad.py",
             "the norm of the gradients is summed in float16, becomes inf, and all are clipped to 0",
             "facebookresearch/fairscale#263 NVIDIA-NeMo/Automodel#825"),
        Find("PA304", "PA304/bad.py", "the running loss of an epoch stops growing", "huggingface/transformers#8561"),
        Find("PA304", "PA304/bad_token_counter.py", "a counter of tokens stops counting", "pytorch/torchtitan#2336"),
        Find("PA402", "PA402/bad.py", "`model.half()` takes BatchNorm's statistics along",
             "NVIDIA/apex#144 fastai/fastai#507"),
    ],
    "Forward": [
        Find("PA403", "PA403/bad.py", "a hand-written RMSNorm squares and averages without upcasting",
             "pytorch/pytorch#133085 young-geng/EasyLM#50"),
        Find("PA401", "PA401/bad_cross_entropy.py", "the loss of a language model is computed on bfloat16 logits",
             "pytorch/torchtitan#551 Modalities/modalities#464"),
        Find("PA406", "PA406/bad.py", "an attention mask of -1e9 is -inf in float16",
             "huggingface/transformers#17306 NVIDIA/apex#93"),
        Find("PA407", "PA407/bad_floor_of_features.py",
             "the floor under a logarithm is 0 in float16, and silence is -inf",
             "qiuqiangkong/audioset_tagging_cnn#17"),
        Find("PA408", "PA408/bad_cached_rotary.py", "angles of rotary positions are computed in bfloat16",
             "huggingface/transformers#29496 huggingface/transformers#25681 EleutherAI/gpt-neox#1003"),
        Find("PA408", "PA408/bad_cumulative_mask.py", "positions are a running sum of a bfloat16 mask, exact up to 256",
             "facebookresearch/fairseq2#65"),
        Find("PA409", "PA409/bad.py", "a sigmoid rounds to 1 before the loss takes its logarithm",
             "Megvii-BaseDetection/YOLOX#336 pytorch/pytorch#61098", "check"),
        Find("PA412", "PA412/bad.py", "Gumbel noise is drawn in bfloat16, where there are 256 numbers",
             "pytorch/pytorch#41663"),
        Find("PA414", "PA414/bad.py", "a router's logits are computed in bfloat16, and other experts are chosen",
             "databricks/megablocks#91 NVIDIA/Megatron-LM#2741", "trace"),
    ],
    "Regions and settings": [
        Find("PA701", "PA701/bad.py", "backward and the step run inside the autocast region", "pytorch/pytorch#120376"),
        Find("PA703", "PA703/bad.py", "autocast is switched off around values that are low already",
             "pytorch/pytorch#43556 speechbrain/speechbrain#1803"),
        Find("PA706", "PA706/bad.py", "an autograd.Function whose backward knows nothing of autocast",
             "pytorch/pytorch#47906 pytorch/pytorch#87979", "check"),
        Find("PA805", "PA805/bad_file.py", "TrainingArguments say bf16 and the DeepSpeed file says fp16",
             "huggingface/transformers#39849", "check"),
    ],
}  # fmt: skip


def link(where: str) -> str:
    """GitHub leads from an issue's address to the pull request of that number."""
    name, _, number = where.partition("#")
    return f"[{where}](https://github.com/{name}/issues/{number})"


def by_check(find: Find) -> str:
    """What `precaudit check` says of the program, with its line."""
    found = [one for one in messages.by_check()[f"fixtures/{find.script}"] if one["rule"] == find.rule]
    return f"line {found[0]['line']}: {plain(found[0]['message'])}"


def by_trace(find: Find) -> str:
    """What a trace says of it, with what it measured."""
    from precaudit.report import words

    path = ROOT / "fixtures" / find.script
    found = [one for one in harness.traced(path, test_fixtures.argv(path)).report.findings if one.rule == find.rule]
    return "; ".join([f"line {found[0].line}: {plain(found[0].message)}", *map(plain, words.evidence(found[0])[:2])])


def plain(text: str) -> str:
    return " ".join(text.split()).replace("*", "\\*").replace("<", "&lt;")


def head(find: Find) -> str:
    """What went wrong, where, and in which program of ours."""
    rule = rulebook.load().rules[find.rule]
    anchor = f"{rule.id}-{rule.name}".lower()
    return (
        f"- **{find.what}** ({', '.join(map(link, find.where.split()))})\n"
        f"    - [{rule.id}](rules.md#{anchor}), `fixtures/{find.script}`\n"
    )


def entry(find: Find) -> str:
    """One mistake, as the page has it."""
    told = {"check": by_check, "trace": by_trace}
    return head(find) + "".join(f"    - *{witness}*: {told[witness](find)}\n" for witness in find.witnesses.split())


def written() -> str:
    return "\n" + "\n".join(f"### {title}\n\n{''.join(map(entry, finds))}" for title, finds in FINDS.items()) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLES.sub(lambda match: match[1] + written() + match[3], text), encoding="utf-8")
    sys.exit(0)
