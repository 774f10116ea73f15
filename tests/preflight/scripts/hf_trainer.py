"""transformers' Trainer on a tiny Llama: `hf_trainer.py bf16|fp16 [lora]`; `wrong` trains bfloat16 weights,
or with `lora` float16 adapters, without autocast and loss scaling."""

import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


class Words(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = (torch.arange(16) * (index + 1)) % 64
        return {"input_ids": words, "labels": words.clone()}


def main() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))
    if sys.argv[1] == "wrong":
        model = model.to(torch.float16 if "lora" in sys.argv else torch.bfloat16)
    if "lora" in sys.argv:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config, autocast_adapter_dtype=sys.argv[1] != "wrong")
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        max_steps=5,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        bf16=sys.argv[1] == "bf16",
        fp16=sys.argv[1] == "fp16",
    )
    assert arguments.device.type == "cuda"
    Trainer(model, arguments, train_dataset=Words()).train()


main()
