"Small networks and steps for the tests: what several of them build."
from types import SimpleNamespace

import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import loss_of, parts_of_net
from mixsupcon.core.models import make_net
from mixsupcon.core.options import idle, options, stream, values

CLASSES, CLUSTERS = 4, 5
SIZES = dict(   # that fit twelve images
    batch_size=12, out=4, hidden=16, queue=24, prototypes=7, predictor=9, white_size=6)


def owned(method, **given):
    "The options of a method as it is usually configured, but for what is given: name -> type."
    return {name: kind for part in configure(method, **given).parts for name, kind in options(part).items()}


def small(method, **given):
    "A config whose sizes fit twelve images, as far as its method has them."
    mine = owned(method)
    sizes = {name: size for name, size in SIZES.items() if name in mine}
    if "prototypes" in mine:
        sizes["queue"] = 0
    if given.get("head", getattr(configure(method), "head", "")) == "linear":
        del sizes["hidden"]
    cfg = configure(method, **sizes | given)
    if "clusters" in values(cfg).keys() - idle(cfg).keys() - given.keys():
        cfg = configure(method, **sizes | dict(clusters=CLUSTERS) | given)
    return cfg


def build(cfg, side=8):
    "The network of a config, in float64; a classifier's head has a row for each class."
    shape = dict(values(cfg), goal=cfg.goal)
    if cfg.goal.classifier:
        shape |= dict(head="linear", hidden=0, out=CLASSES)
    return make_net(SimpleNamespace(**shape), side, parts_of_net(cfg)).double()


def draw(cfg, n=12, side=8, seed=0):
    "Views of random images, and their labels."
    gen = stream(seed, "images")
    views = list(torch.randn(cfg.goal.views, n, 3, side, side, generator=gen, dtype=torch.float64))
    crops = getattr(cfg, "small_crops", 0)
    if crops:
        views += list(torch.randn(crops, n, 3, cfg.small_size, cfg.small_size, generator=gen, dtype=torch.float64))
    return views, torch.arange(n).sqrt().long() % CLASSES   # classes of different sizes, one of a single image


def fill_clusters(net, n=12):
    "Random features of all images into the bank of a network that clusters them."
    if hasattr(net, "clusters") and not len(net.clusters.bank):
        width = net.clusters.bank.shape[1]
        net.clusters.fill(torch.randn(n, width, generator=stream(0, "bank"), dtype=torch.float64))
    return net


def loss(cfg, net=None, n=12, side=8, seed=0, epoch=None):
    "The step of a config on random images."
    views, y = draw(cfg, n, side, seed)
    net = fill_clusters(net or build(cfg, side), n)
    return loss_of(cfg, net, views, y, CLASSES, stream(seed, "mix"), epoch, torch.arange(n))
