"""A fine-tune with the Hugging Face Trainer."""

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Corpus(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = torch.randint(4, 250, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


class Losses(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append({key: value for key, value in logs.items() if key in ("loss", "grad_norm")})


def run(path, folder, *, dtype=None, wrap=None, **settings):
    asked = {"dtype": dtype} if dtype else {}
    model = AutoModelForCausalLM.from_pretrained(path, **asked)
    if wrap is not None:
        model = wrap(model)
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=2,
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    losses = Losses()
    trainer = Trainer(model=model, args=arguments, train_dataset=Corpus(), callbacks=[losses])
    trainer.train()
    return model, trainer.optimizer, losses.seen
