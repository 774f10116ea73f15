import torch


def no_scaler(model, loader, opt, loss_fn):
    for x, y in loader:
        with torch.autocast(device_type="cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        loss.backward()  # expect: PA201
        opt.step()


def half_model(loader, loss_fn):
    model = torch.nn.Linear(4, 4).half()
    for x, y in loader:
        loss = loss_fn(model(x.half()).float(), y)
        loss.backward()  # expect: PA201


def scaled_by_hand(model, loader, opt, loss_fn, scale=1024.0):
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        (loss * scale).backward()
        for p in model.parameters():
            p.grad.div_(scale)
        opt.step()


def evaluation(model, loader, loss_fn):
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16):
        return sum(loss_fn(model(x), y) for x, y in loader)
