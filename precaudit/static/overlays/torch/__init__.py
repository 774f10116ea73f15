"""What PyTorch gives back: tensors and their dtypes, modules, optimizers, regions, loss scaling."""
