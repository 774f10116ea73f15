"""precaudit inside of what starts a training: pytest, transformers' Trainer, Lightning, accelerate."""
