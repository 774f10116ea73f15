import torch
from torch import nn
from torch.amp import GradScaler


def accumulate(model, loader, opt, loss_fn, steps=4):
    scaler = GradScaler("cuda")
    for i, (x, y) in enumerate(loader):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y) / steps
        scaler.scale(loss).backward()
        if (i + 1) % steps == 0:
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()


def optional_clip(model, loader, opt, loss_fn, clip):
    scaler = GradScaler("cuda")
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(opt)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(opt)
        scaler.update()


def with_or_without(model, loader, opt, loss_fn, amp):
    scaler = GradScaler("cuda") if amp else None
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16, enabled=amp):
            loss = loss_fn(model(x), y)
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
        else:
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if scaler is not None:
            scaler.step(opt)
            scaler.update()
        else:
            opt.step()


def maybe_bfloat16(model, loader, opt, loss_fn, dtype):
    scaler = GradScaler("cuda", enabled=dtype == torch.float16)
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()


def gan(G, D, opt_g, opt_d, loader):
    scaler = GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss_d = D(x).mean() - D(G(x).detach()).mean()
        scaler.scale(loss_d).backward()
        scaler.unscale_(opt_d)
        nn.utils.clip_grad_norm_(D.parameters(), 1.0)
        scaler.step(opt_d)
        with torch.autocast("cuda", dtype=torch.float16):
            loss_g = -D(G(x)).mean()
        scaler.scale(loss_g).backward()
        scaler.step(opt_g)
        scaler.update()
