"""One of two processes that share their batches, for tests/test_distributed.py: python shared.py PLACE RANK

Takes steps of every method and mixer beside the other process, and of every second case by itself. PLACE/RANK.json then
says how far loss, gradients and state of both ways are apart, and how far those of the two processes are.
"""
import json
import sys
from functools import partial
from pathlib import Path

import torch
from mixsupcon.core.methods import METHODS, loss_of
from mixsupcon.core.mixers import MIXERS
from mixsupcon.core.models import update_state
from mixsupcon.core.options import stream
from mixsupcon.lab.distributed import Averaged, divide, enter, gather, leave, rank, world
from small import CLASSES, build, draw, fill_clusters, small

SPLIT = dict(last_batch="drop")


def cases():
    "Name → method, options and number of images."
    every = {method: (method, {}, 12) for method in METHODS}
    every |= {f"{method}, uneven": (method, {}, 11) for method in ("simclr", "moco", "byol_imix", "swav", "amix")}
    every |= {f"mixsupcon, {mixer}": ("mixsupcon", dict(mixer=mixer), 12) for mixer in MIXERS}
    every |= {f"{method}, {mixer}": (method, dict(mixer=mixer), 12)
              for method in ("ce", "moco_imix", "byol_unmix", "mixco", "moco_mix")
              for mixer in ("manifoldmix", "puzzlemix", "inputmix")}
    every |= {f"{method}, bn_splits {splits}": (method, SPLIT | dict(bn_splits=splits), 12) for splits in (2, 3, 4, 6)
              for method in ("moco", "moco_unmix")}
    every |= {f"simclr_unmix, bn_splits {splits}, puzzlemix": (
        "simclr_unmix", SPLIT | dict(bn_splits=splits, mixer="puzzlemix"), 12) for splits in (2, 3)}
    every |= {f"simclr, share_bn {how}": ("simclr", dict(share_bn=how), 11) for how in ("none", "head", "all")}
    every |= {"one image a process": ("supcon", {}, 2), "fewer images than processes": ("byol", {}, 1)}
    every["swav, small crops and a queue"] = ("swav", dict(small_crops=2, small_size=8, queue=12, queue_start=0), 12)
    every["simclr, inputmix"] = ("simclr", dict(inputmix="yes"), 12)
    every["block of labels"] = ("amix_i", dict(block_loss="infonce_labels pbce ce"), 12)
    return every


def take_steps(method, given, n, shared):
    "Losses, gradients of the last step, and all tensors after it."
    cfg = small(method, **given)
    net = fill_clusters(build(cfg), n)
    if n == 1:
        net.head = net.momentum_encoder["head"] = net.predictor = torch.nn.Identity()   # no batch norm of one row
    if shared:
        divide(cfg, net, "cpu")
    learns = [p for p in net.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.SGD(learns, .05, momentum=.9), []
    averaged = Averaged(cfg, net) if shared else lambda make: make()
    for number in range(1 if given else 2):
        views, y = draw(cfg, n, seed=number)
        make = partial(loss_of, cfg, net, views, y, CLASSES, stream(number, "mix"), 20, torch.arange(n))
        step = averaged(make)
        optimizer.zero_grad()
        step.loss.backward()
        losses.append(step.loss.detach())
        grads = {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
        with torch.no_grad():
            update_state(net, .9, step.new_keys)
    if shared:
        net.processes.settle()
    state = {name: v.double() for name, v in net.state_dict().items()}
    return dict(losses=torch.stack(losses)) | {name: g.clone() for name, g in grads.items()} | state


def distance(ours, theirs):
    "How far two sets of tensors are apart, as a share of the largest number of a tensor, and the name of the worst."
    if ours.keys() != theirs.keys():
        return float("inf"), f"only one has {sorted(ours.keys() ^ theirs.keys())[:3]}"
    gaps = {name: ((v - theirs[name]).abs().max()/v.abs().max().clamp(min=1e-3)).item() for name, v in ours.items()
            if v.numel()}
    return max((gap, name) for name, gap in gaps.items())


def both(tensors):
    "The tensors of the first and of the second process."
    flat = torch.cat([v.double().flatten() for v in tensors.values()])
    return gather(flat[None], world())


def main(place, number):
    torch.manual_seed(number)   # what is drawn from PyTorch's own generator differs
    enter("cpu", init_method=f"file://{place}/store", rank=number, world_size=2)
    found = {}
    for turn, (name, case) in enumerate(cases().items()):
        shared = take_steps(*case, True)
        first, second = both(shared)
        if turn % 2 == rank():
            gap, worst = distance(take_steps(*case, False), shared)
            found[name] = dict(gap=gap, worst=worst, between=(first - second).abs().max().item(), tensors=len(shared))
    (Path(place)/f"{rank()}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]))
