import torch
from torch import nn
from torch.amp import GradScaler, autocast


def clip_before_unscale(model, loader, opt, loss_fn):
    scaler = GradScaler()
    for x, y in loader:
        with autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)  # expect: PA202
        scaler.step(opt)
        scaler.update()


def unscale_after_clip(model, loader, opt, loss_fn, scaler):
    for x, y in loader:
        with autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # expect: PA202
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()


def forgotten_update(model, loader, opt, loss_fn):
    scaler = GradScaler()
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(opt)  # expect: PA204
        opt.zero_grad()


def optimizer_stepped_directly(model, loader, loss_fn):
    scaler = GradScaler()
    opt = torch.optim.Adam(model.parameters())
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        opt.step()  # expect: PA203
        scaler.update()  # expect: PA205


def bfloat16_needs_none(model, loader, opt, loss_fn):
    scaler = torch.amp.GradScaler("cuda")  # expect: PA206
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()


def unscaled_twice(model, loader, opt, loss_fn):
    scaler = GradScaler()
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        scaler.unscale_(opt)  # expect: PA205
        scaler.step(opt)
        scaler.update()
