"""Stores what the first version (0.1.0) computes: three steps of every method and of every switch.

    PYTHONPATH=first_version python tests/programs/store_equality.py tests/data/equality.json

`first_version` is a checkout of 0.1.0, with the modules `mixsupcon.config` and `mixsupcon.methods`. Weights do not
come from an initialisation but from `fill`, which both versions repeat; images and labels come from `draws`. All is
float64 on one thread. tests/test_equality.py computes the same with the package as it is now.
"""
import json
import sys
from contextlib import contextmanager

import torch

N, SIDE, CLASSES, STEPS = 12, 16, 4, 3
WORDS = dict(together=dict(apart="none"), mixture={"none": "one view"})   # values that have another name now
NAMES = dict(together="share_bn", pot="contrast_set", mixture="mixture_of")


def fill(net, stream):
    "Every parameter of the network from a stream of its part and position; unit rows where rows are directions."
    names = [name for name in ("encoder", "head", "predictor", "prototypes") if hasattr(net, name)]
    parts = {name: getattr(net, name) for name in names}
    follower = getattr(net, "momentum_encoder", getattr(net, "slow", None))
    if follower is not None:
        parts |= {"momentum encoder": follower["encoder"], "momentum head": follower["head"]}
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        for name, part in parts.items():
            for i, p in enumerate(part.parameters()):
                noise = torch.randn(p.shape, generator=stream(0, f"{name} {i}"), dtype=torch.float64)
                p.copy_(noise*(2/p[0].numel())**.5 if p.ndim > 1 else .5 + .1*noise)
        if hasattr(net, "prototypes"):
            net.prototypes.weight.copy_(unit(net.prototypes.weight, dim=1))
        elif hasattr(net, "queue"):
            noise = torch.randn(net.queue.shape, generator=stream(0, "queue"), dtype=torch.float64)
            net.queue = unit(noise, dim=1)
    return net


def draws(stream, seed, step, n, large, small):
    "The views and labels of a step."
    gen = stream(seed, "views", step)
    x = [torch.randn(n, 3, SIDE, SIDE, generator=gen).double() for _ in range(large)]
    x += [torch.randn(n, 3, 8, 8, generator=gen).double() for _ in range(small)]
    return x, torch.randint(CLASSES, (n,), generator=gen)


def digest(name, tensors, stream):
    "Two numbers for a list of tensors: their norm, and their product with a fixed random direction."
    square = along = 0.
    for i, v in enumerate(tensors):
        v = v.detach().double().flatten()
        square += v.square().sum().item()
        along += (v @ torch.randn(len(v), generator=stream(0, f"digest {name} {i}"), dtype=torch.float64)).item()
    return [square**.5, along]


def parts_of(net):
    "The parts of a network that have tensors: name -> module."
    parts = dict(net.named_children())
    if "slow" in parts:
        parts["momentum_encoder"] = parts.pop("slow")
    return parts


def gradients(net, stream):
    "A digest of the gradients of each part that has any."
    lists = {name: [p.grad for p in part.parameters() if p.grad is not None] for name, part in parts_of(net).items()}
    return {name: digest(name, grads, stream) for name, grads in lists.items() if grads}


def state(net, stream):
    "A digest of weights and buffers of each part, and of the queue."
    digests = {name: digest(name, part.state_dict().values(), stream) for name, part in parts_of(net).items()}
    return digests | (dict(queue=digest("queue", [net.queue], stream)) if hasattr(net, "queue") else {})


def trained(net, loss_of, keys_of, update, stream, seed, n, large, small):
    "The numbers of three steps; `loss_of(x, y, gen)`, `keys_of()` after it, and `update()` after the step of SGD."
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], .05, momentum=.9)
    net.train()
    losses, passes = [], []
    for step in range(STEPS):
        x, y = draws(stream, seed, step, n, large, small)
        net.passes = 0
        loss = loss_of(x, y, stream(seed, "mix", step))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        passes.append(net.passes/n)
        if not step:
            first = gradients(net, stream)
        keys = keys_of()
        optimizer.step()
        update()
    numbers = dict(loss=losses, passes=passes[-1], gradients=first, state=state(net, stream))
    numbers |= dict(keys=[len(k) for k in keys])
    return numbers | (dict(key=digest("keys", keys, stream)) if len(keys) else {})


# ---- what is computed: (method, options in the first version's names), with seed and n where they are not 0 and 12

def cases(METHODS):
    "Every method, and every switch where it acts."
    table = [(m, {}) for m in METHODS]
    add = lambda methods, **given: table.extend((m, given) for m in methods.split())
    no_ce = " ".join(m for m in METHODS if m != "ce")
    for how in ("apart", "head", "all"):   # batch-norm statistics
        add("simclr npair simsiam swav simclr_unmix moco_sym_unmix byol_unmix mixsiam", together=how, head="mlpbn")
        add("wmse2 wmse2_unmix mixco swav_unmix npair_imix", together=how, head="mlpbn")
    add("npair moco mocon moco_unmix npair_imix moco_imix byol_imix moco_mixco sup_npair_imix", sides="both")
    add("byol simsiam byol_unmix mixsiam moco_sym_unmix", sides="one")
    add("sup_npair sup_npair_imix", own_view="exclude")
    add("supcon mixsupcon genscl sup_npair_imix supclr_imix", label_sim="instance")
    for views in ("one", "each", "both"):   # Un-Mix; where both views are mixed they are compared with each other
        for target in ("other", "same", "both") if views != "both" else ("other",):
            more = " swav_unmix wmse2_unmix" if target == "other" else ""
            add("simclr_unmix moco_unmix byol_unmix" + more, mixed_views=views, target_view=target)
    add("moco_unmix", sides="both", mixed_views="both")
    add("simclr_unmix", anchors="mixed")
    add("simclr_unmix", mixed_views="both", together="head", head="mlpbn_bn")
    for mixer in ("none", "mixup", "cutmix", "resizemix", "fmix", "inputmix", "mixup cutmix"):
        add("mixsupcon ce moco_imix" + (" simclr_unmix" if mixer == "none" else " supclr_imix"), mixer=mixer)
    for partner in ("perm", "cross_view", "reverse", "halves", "derange", "cross_derange"):
        add("mixsupcon npair_imix" if not partner.startswith("cross") else "mixsupcon", partner=partner)
    add("mixsupcon npair_imix moco_unmix", lam_per="batch", fold="yes")
    add("mixsupcon npair_imix moco_unmix", lam_per="sample", fold="no", alpha=.3)
    add("mixsupcon moco_unmix", mixer="mixup cutmix", mixer_odds=".2 .8")
    add("simclr mixsupcon npair_imix moco_unmix swav wmse4 byol", inputmix="yes")
    for seed in range(3):   # the depths 0, 1 and 2 of ManifoldMix
        inside = dict(mixer="manifoldmix", seed=seed)
        add("mixsupcon ce npair_imix byol_imix simclr_unmix moco_unmix moco_mixco swav_unmix", **inside)
    add("npair_imix simclr_unmix", mixer="manifoldmix", together="apart", seed=1)
    add("mixsupcon", mixer="manifoldmix", pot="clean", seed=1)
    add(no_ce, bn_splits=3, last_batch="drop")
    add("swav swav_unmix", sinkhorn_eps=.1, sinkhorn_steps=5)
    add("swav swav_unmix swav_released_unmix", queue=24)
    add("swav swav_unmix", small_crops=2, small_size=8)
    add("wmse2 wmse4 wmse2_unmix wmse4_unmix", white_times=3)
    add("wmse2 wmse2_unmix", white_eps=.01, white_size=12)
    weights = dict(siam_weight=1.), dict(siam_weight=0.), dict(view_share=.3)
    aggregates = dict(aggregate="avg"), dict(aggregate="none"), dict(aggregate_at="unit")
    images = dict(mixture="images", mixer="mixup"), dict(mixture="images", mixer="cutmix", lam_per="batch")
    for given in (*weights, *aggregates, dict(mixture="none"), *images):
        add("mixsiam", **given)
    readings = dict(denominator="global"), dict(normalizer="anchor"), dict(normalizer="pairs")
    for given in (*readings, dict(label_sim="cosine"), dict(label_sim="hard"), dict(include_self="yes")):
        add("supcon mixsupcon", **given)
    add("supcon", empty="zero")
    add("mixsupcon genscl", pot="n")
    add("mixsupcon genscl", pot="clean")
    add("simclr simclr_unmix", denominator="global")
    add("simclr npair moco_imix supclr_imix mixsupcon swav moco_mixco", base_tau=.07)
    add("simclr moco_imix swav_unmix mixsupcon", tau=.3)
    add("mixco moco_mixco", mix_tau=.2, mix_weight=.5)
    add("npair mixsupcon simclr_unmix moco_imix ce byol_unmix", n=11, queue=44)   # an odd batch
    return table


def few(method, row, given):
    "Small sizes, of the options that the method owns."
    sizes = dict(batch_size=given.get("n", N), lr=.05) | (dict(out=4) if method != "ce" else {})
    if method != "ce" and given.get("head", "") != "linear" and not method.startswith("moco_v1"):
        sizes |= dict(hidden=16)
    owned = {name: name in row.parts for name in ("queue", "prototypes", "predictor")}
    owned |= dict(white_size=row.goal == "wmse")
    values = dict(queue=0 if "prototypes" in row.parts else 24, prototypes=7, predictor=9, white_size=6)
    return sizes | {name: values[name] for name, mine in owned.items() if mine}


def renamed(method, given):
    "Options of the first version in the names they have now."
    new = {NAMES.get(k, k): WORDS.get(k, {}).get(v, v) for k, v in given.items()}
    if new.get("mixture_of") == "images":
        del new["mixture_of"]   # a mixer is given, and that says it
    if "npair" in method or "supclr" in method:
        new = {"positives_by" if k == "label_sim" else k: v for k, v in new.items()}
    return new


ACTS = """arch bn_splits head hidden out together tau base_tau denominator normalizer label_sim empty include_self pot
sides own_view queue momentum predictor prototypes sinkhorn_eps sinkhorn_steps small_crops small_size white_size
white_eps white_times mixer mixer_odds alpha lam_per fold partner inputmix mixed_views target_view anchors mix_weight
mix_tau siam_weight view_share aggregate aggregate_at mixture""".split()   # options that act in the loss


@contextmanager
def float64(wanted):
    "SupCLR with i-Mix divides shares by counts, in the first version in float32 (an error of 2.8e-8): here in float64."
    from mixsupcon import methods, mixers
    blend, labels_of = mixers.blend, methods.labels_of
    if wanted:
        mixers.blend = lambda share, p: blend(share.double(), p)
        methods.labels_of = lambda cfg: lambda y, classes: labels_of(cfg)(y, classes).double()
    try:
        yield
    finally:
        mixers.blend, methods.labels_of = blend, labels_of


def main(path):
    from dataclasses import replace

    from mixsupcon.config import configure, stream
    from mixsupcon.methods import METHODS, checked_names, loss_of, net_parts
    from mixsupcon.models import make_net, settle
    torch.set_num_threads(1)
    stored = []
    for method, given in cases(METHODS):
        row, options = METHODS[method], dict(given)
        seed, n = options.pop("seed", 0), options.pop("n", N)
        if "queue" in options and "queue" not in row.parts:
            del options["queue"]
        options = few(method, row, given) | options
        cfg = configure(method=method, **options)
        if n == N:
            checked_names(cfg)
        shaped = replace(cfg, head="linear", out=CLASSES) if row.head else cfg
        net = fill(make_net(shaped, SIDE, net_parts(cfg)).double(), stream)

        def loss(x, y, gen, cfg=cfg, net=net):
            with float64(method == "supclr_imix"):
                return loss_of(cfg, net, x, y, CLASSES, gen)

        keys, update = (lambda net=net: list(net.fresh)), (lambda net=net: settle(net, .9))
        numbers = trained(net, loss, keys, update, stream, seed, n, row.views, cfg.small_crops)
        acts = renamed("", {name: getattr(cfg, name) for name in ACTS})
        settings = renamed(method, options)
        stored.append(dict(method=method, settings=settings, seed=seed, n=n, numbers=numbers, values=acts))
    usual = {case["method"]: case["values"] for case in stored[len(METHODS) - 1::-1]}   # of the method as it is
    for case in stored:
        case["values"] = {k: v for k, v in case["values"].items() if usual[case["method"]].get(k) != v}
    about = __doc__.splitlines()[0]
    write(path, dict(about=about, version="0.1.0", torch=torch.__version__, methods=usual, cases=stored))


def rounded(value):
    "Numbers with 13 significant digits."
    if isinstance(value, float):
        return float(f"{value:.13g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def write(path, stored):
    "JSON with one case a line."
    lines = [json.dumps(rounded(case), separators=(",", ":")) for case in stored.pop("cases")]
    head = json.dumps(stored, indent=0)[:-2]
    with open(path, "w") as file:
        file.write(head + ',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main(sys.argv[1])
