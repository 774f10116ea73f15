"""Image classification as torchvision's references do it; `wrong` halves the model first, `good` casts the logits."""

import sys

import torch
from torch import nn

WRONG = sys.argv[1:] == ["wrong"]


def main() -> None:
    assert torch.cuda.is_available()
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    torch.manual_seed(0)
    torch.cuda.manual_seed_all(0)
    features = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(16, 10))
    model = model.to(device, memory_format=torch.channels_last)
    if WRONG:
        model = model.half()
    criterion = nn.CrossEntropyLoss().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=not WRONG)
    data = torch.utils.data.TensorDataset(torch.randn(40, 3, 16, 16), torch.randint(0, 10, (40,)))
    loader = torch.utils.data.DataLoader(data, 8, shuffle=True, pin_memory=True)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for images, target in loader:
        start.record()
        images, target = images.cuda(non_blocking=True), target.cuda(non_blocking=True)
        assert images.is_cuda
        assert images.device == next(model.parameters()).device == device
        if WRONG:
            images = images.half()
        with torch.autocast("cuda", dtype=torch.float16, enabled=not WRONG), torch.cuda.nvtx.range("forward"):
            output = model(images)
        assert output.dtype is torch.float16
        loss = criterion(output if WRONG else output.float(), target)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        end.record()
        torch.cuda.synchronize()
        assert start.elapsed_time(end) > 0


main()
