"""A QLoRA fine-tune as its tutorials write it: quantise, prepare, add adapters, train."""

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def build(
    path, *, compute=torch.bfloat16, double=True, prepare=True, checkpointing=False, adapters=True, dtype=None, **more
):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=double,
        **more,
    )
    asked = {"dtype": dtype} if dtype else {}
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=quantization, device_map={"": "cpu"}, **asked
    )
    if prepare:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, lora, autocast_adapter_dtype=adapters)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-4)


def paged(parameters):
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(parameters, lr=1e-4, min_8bit_size=0)


def train(model, make=adamw, autocast=False, steps=4):
    torch.manual_seed(0)
    model.train()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    losses = []
    for _ in range(steps):
        ids = torch.randint(4, 250, (2, 16))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, optimizer, losses


def run(path, *, make=adamw, autocast=False, change=None, **how):
    torch.manual_seed(0)
    model = build(path, **how)
    if change is not None:
        change(model)
    return train(model, make, autocast)
