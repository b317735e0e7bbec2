"Mixers that learn or look: laws of whole steps, what is refused, and that training can go on where it stopped."
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS, loss_of, parts_of_net
from mixsupcon.core.models import make_net
from mixsupcon.core.options import Config, Refusal, stream
from mixsupcon.core.recipe import Head
from mixsupcon.lab import mixtures
from mixsupcon.lab.train import Learner, pretrain, resolve_device, train_epoch
from small import CLASSES, build, draw, fill_clusters, small
from torch import nn

SMALL = dict(dataset="digits", arch="resnet8", image_size=8, batch_size=20, device="cpu", epochs=4)
QUICK = dict(arch="resnet8", device="cpu", epochs=4)
USUAL = dict(mask_weight=1., mask_slack=0.)   # masks that are pulled to λ from the start
LEARNED = dict(
    automix={}, amix={}, amix_i=dict(queue=80), amix_c=dict(queue=80, clusters=5), mixsupcon=dict(mixer="amix"),
    npair_imix=dict(mixer="amix"), moco_unmix=dict(mixer="automix", queue=80))


def net_of(cfg, classes=3, side=16):
    own = (*cfg.parts, Head(head="linear", out=classes)) if cfg.goal.classifier else cfg.parts
    return make_net(Config(cfg.method, cfg.preset, own), side, parts_of_net(cfg)).double()


def step_of(cfg, net, mixing="mix", n=6):
    "A whole step on random images in float64."
    images = [torch.randn(n, 3, 16, 16, generator=stream(i, "x"), dtype=torch.float64) for i in range(cfg.goal.views)]
    y, rows = torch.arange(n) % 3, torch.arange(n)
    return loss_of(cfg, net, images, y, 3, stream(0, mixing), 1, rows)


class Constant(nn.Module):
    "A block that makes every mask λ."
    def forward(self, ha, hb, lam, size, gen=None):
        return lam.to(ha).view(-1, 1, 1, 1).expand(len(ha), 1, *size)


@pytest.mark.parametrize("method", [
    "ce", "mixsupcon", "npair_imix", "supclr_imix", "moco_unmix", "moco_mix", "byol_unmix"])
def test_a_constant_mask_is_mixup(method, monkeypatch):
    "With the mask λ everywhere a learned mixer makes MixUp's loss, λ and partners drawn alike."
    sizes = dict(SMALL, **(dict(queue=40) if "moco" in method else {}))
    learned, plain = (configure(method, mixer=mixer, **sizes) for mixer in ("amix", "mixup"))
    monkeypatch.setattr(type(learned.parts[2]), "own_loss", lambda self, cfg, step: 0.)
    nets = [net_of(cfg) for cfg in (learned, plain)]
    nets[0].mix_block = Constant()
    nets[1].load_state_dict({k: v for k, v in nets[0].state_dict().items() if k in nets[1].state_dict()})
    losses = [step_of(cfg, net).loss for cfg, net in zip((learned, plain), nets)]
    assert torch.isclose(*losses, rtol=1e-10), losses


@pytest.mark.slow
@pytest.mark.parametrize("method", LEARNED)
def test_who_learns_from_what(method):
    "The encoder's loss does not reach the block; the block's reaches nothing else but the head for its classes."
    cfg = configure(method, **SMALL, **LEARNED[method])
    net = net_of(cfg)
    if hasattr(net, "clusters"):
        net.clusters.fill(torch.nn.functional.normalize(torch.randn(20, cfg.out, generator=stream(0, "f")).double()))
    block = next(part for part in cfg.parts if hasattr(part, "own_loss"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(block), "own_loss", lambda self, cfg, step: 0.)
        alone = gradients(net, step_of(cfg, net).loss)
    both = gradients(net, step_of(cfg, net).loss)
    own = {"mix_block", "cluster_head"}
    assert not own & alone.keys() and {"encoder"} <= alone.keys() and own & both.keys() >= {"mix_block"}
    assert "momentum_encoder" not in both
    for part, grads in alone.items():   # adding the block's loss changes no gradient of the rest
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(grads, both[part])), part


def gradients(net, loss):
    "Part of a network → the gradients that are not zero throughout."
    net.zero_grad()
    loss.backward()
    reached = {}
    for name, p in net.named_parameters():
        if p.grad is not None and p.grad.any():
            reached.setdefault(name.partition(".")[0], []).append(p.grad.clone())
    return reached


@pytest.mark.slow
@pytest.mark.parametrize("method", [
    "ce", "mixsupcon", "simclr_imix", "moco_mix", "byol_unmix", "swav_unmix", "mixsiam"])
@pytest.mark.parametrize("mixer", ["saliencymix", "puzzlemix", "comixup"])
def test_salient_mixers_serve_every_goal(method, mixer):
    "A finite loss that reaches the encoder, the same again from the same draws; the pass for saliency leaves no trace."
    cfg = configure(method, mixer=mixer, **SMALL, **(dict(queue=40) if "moco" in method else {}))
    net = net_of(cfg)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first = step_of(cfg, net).loss
    first.backward()
    assert first.isfinite() and any(p.grad is not None and p.grad.any() for p in net.encoder.parameters())
    net.load_state_dict(before)
    assert torch.equal(step_of(cfg, net).loss, first)


def test_what_is_refused():
    "One sentence each, before anything is trained."
    for words, method, options in [
            ("must be the only one", "mixsupcon", dict(mixer="amix mixup")),
            ("block_loss own alone", "mixsupcon", dict(mixer="amix", block_loss="infonce")),
            ("block_loss", "amix_i", dict(block_loss="infonce bse")),
            ("has no block_lr", "mixsupcon", dict(block_lr=.1)),
            ("there are no clusters", "amix_i", dict(clusters=5)),
            ("has a momentum encoder", "amix_i", dict(block_momentum=.9)),
            ("no guide", "moco_unmix", dict(mixer="puzzlemix", mixed_views="both")),
            ("inside_mixer is one mixer", "moco_mix", dict(inside_mixer="amix")),
            ("inside_mixer is one mixer", "moco_mix", dict(inside_mixer="manifoldmix")),
            ("no inside_mixer that draws", "moco_mix", dict(inside_mixer="inputmix", inside_alpha=2.)),
            ("partner cross_derange", "moco_mix", dict(partner="perm")),
            ("with_base is no", "moco_mix", dict(with_base="no", sides="both", share_bn="all")),
            ("block_loss own alone", "moco_unmix", dict(mixer="amix", block_loss="bce")),
            ("block_loss own alone", "moco_mixco", dict(mixer="amix", block_loss="own bce")),
            ("block_upsampling is nearest", "automix", dict(block_sigmoid="after")),
            ("mask_weight is 0", "amix", dict(mask_weight=0, mask_slack=.2)),
            ("nothing to weigh", "amix", dict(mask_weight=0, mask_schedule="cosine")),
            ("has no block_loss", "amix", dict(mixer="mixup", block_loss="bce"))]:
        with pytest.raises(Refusal, match=words):
            configure(method, **options)


def test_more_clusters_than_images(tiny, tmp_path):
    with pytest.raises(Refusal, match="do not make 500 clusters"):
        pretrain(configure("amix_c", **SMALL | dict(image_size=0), queue=20, clusters=500), tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", LEARNED)
def test_the_block_goes_on_where_it_stopped(method, tiny):
    "After two epochs all tensors into a fresh learner, two more: the same bits as four at a stretch."
    half = len(tiny.train_x)//2
    more = LEARNED[method] | (dict(queue=2*half) if "queue" in LEARNED[method] else {})
    cfg = resolve_device(configure(method, batch_size=half, last_batch="drop", **QUICK, **more))
    straight, halved = (Learner(cfg, tiny, torch.device("cpu")) for _ in range(2))
    for learner in (straight, halved):
        if hasattr(learner.net, "clusters"):
            learner.net.clusters.fill(torch.nn.functional.normalize(torch.randn(len(tiny.train_x), cfg.out,
                                                                               generator=stream(0, "f"))))
    run(cfg, straight, tiny, range(1, 5))
    run(cfg, halved, tiny, range(1, 3))
    again = Learner(cfg, tiny, torch.device("cpu"))
    again.load(halved.tensors())
    run(cfg, again, tiny, range(3, 5))
    ours, theirs = again.tensors(), straight.tensors()
    assert ours.keys() == theirs.keys() and any("mix_block" in name for name in ours)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def trained(tiny, **given):
    "AutoMix after two of four epochs: name → tensor."
    cfg = resolve_device(configure("automix", batch_size=len(tiny.train_x)//2, last_batch="drop", **QUICK, **given))
    learner = Learner(cfg, tiny, torch.device("cpu"))
    start = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    run(cfg, learner, tiny, range(1, 3))
    return start, learner.tensors()


@pytest.mark.slow
@pytest.mark.parametrize("name, value, of", [
    ("block_lr", 5., "mix_block"), ("block_lr_end", .5, "mix_block"), ("mask_schedule", "cosine", "mix_block"),
    ("block_momentum", .5, "momentum_encoder"), ("block_momentum_schedule", "constant", "momentum_encoder")])
def test_what_acts_after_the_first_step(name, value, of, tiny):
    "Rates of the block, how fast the momentum encoder follows, and weights that fall with the epochs."
    (_, plain), (_, other) = trained(tiny, **USUAL), trained(tiny, **USUAL | {name: value})
    changed = {tensor for tensor in plain if not torch.equal(plain[tensor], other[tensor])}
    assert any(of in tensor for tensor in changed), f"{name} changes {sorted(changed) or 'nothing'}"


@pytest.mark.slow
@pytest.mark.parametrize("method, mixer", [
    ("amix_c", "amix"), ("moco_mix", "puzzlemix"), ("mixsupcon", "comixup"), ("mixsupcon", "amix")])
def test_a_step_leaves_no_images_behind(method, mixer):
    "Without waiting for the garbage collector: what guides a mixer goes with its step."
    cfg = small(method, mixer=mixer)
    net, (images, y) = fill_clusters(build(cfg)), draw(cfg)
    gc.collect()
    gc.disable()
    try:
        loss_of(cfg, net, images, y, CLASSES, stream(0, "mix"), 1, torch.arange(len(y))).loss.backward()
        alive = [weakref.ref(x) for x in images]
        del images
        assert not [x for x in alive if x() is not None]
    finally:
        gc.enable()


def test_with_rate_0_the_block_stays(tiny):
    start, end = trained(tiny, block_lr=0.)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved and not {name for name in moved if "mix_block" in name and "weight" in name}


def run(cfg, learner, data, epochs):
    for epoch in epochs:
        train_epoch(cfg, learner, data.train_x, data.train_y, data, epoch)


def test_methods_of_the_fifth_paper_are_rows():
    assert {"automix", "amix", "moco_mix", "amix_i", "amix_c"} <= {*METHODS}
    assert METHODS["amix_i"].title == "AMix-I"


def test_pairs_of_test_images_are_of_all_classes():
    "A folder's test images lie in order of their classes: pairs are not all from the first."
    y = torch.arange(10).repeat_interleave(500)
    rows, partner = mixtures.test_pairs(SimpleNamespace(test_y=y, data=SimpleNamespace(test_y=y), device="cpu"))
    assert y[rows].bincount().tolist() == [mixtures.PAIRS//10]*10
    assert (y[rows][partner] != y[rows]).all()
