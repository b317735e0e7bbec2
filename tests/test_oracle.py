"Vectorised code against naive double loops in float64, written from the formulas by somebody who had not seen it."
from itertools import product

import numpy as np
import oracle
import oracle_mixers
import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.losses import SIMILARITIES, contrastive, supcon
from mixsupcon.core.methods import loss_of
from mixsupcon.core.mixers import box_edges, cutmix, draw_lam, draw_mixer, fmix, inputmix, mix, resizemix
from mixsupcon.core.options import stream
from mixsupcon.core.recipe import step_decay
from mixsupcon.core.strategies import odds_of
from mixsupcon.core.views import hue, resize_matrix
from mixsupcon.lab.evaluate import knn


def batch(seed, m, d, c, hard=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(m, d))
    t = np.eye(c)[rng.integers(c, size=m)] if hard else rng.dirichlet(np.full(c, .3), size=m)
    return z, t


@pytest.mark.parametrize("m,d,c", [(2, 3, 2), (5, 4, 3), (12, 8, 4), (17, 2, 17)])
def test_contrastive(m, d, c):
    "Every combination of the switches, on soft and on hard labels, at temperatures from sharp to flat."
    yes_no = False, True
    switches = product((.05, .5), ("row", "global"), ("pairs", "anchor"), SIMILARITIES, ("skip", "zero"),
                       yes_no, yes_no)
    for seed, (*how, hard) in enumerate(switches):
        z, t = batch(seed, m, d, c, hard)
        ours = contrastive(torch.tensor(z), torch.tensor(t), *how)
        assert abs(ours.item() - oracle.contrastive(z, t, *how)) < 1e-10, (how, hard)


BALANCED, LOPSIDED = np.arange(12) % 3, np.array([0]*7 + [1]*3 + [2]*2)


def supcon_of(z, y, **how):
    return supcon(torch.tensor(z), torch.tensor(y), .1, **how).item()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("y", [BALANCED, LOPSIDED], ids=["balanced", "lopsided"])
def test_anchors_alike_are_supcon(seed, y):
    z, _ = batch(seed, 12, 6, 3)
    assert abs(supcon_of(z, y) - oracle.supcon(z, y, .1)) < 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_pairs_alike_are_supcon_only_when_balanced(seed):
    z, _ = batch(seed, 12, 6, 3)
    assert abs(supcon_of(z, BALANCED, normalizer="pairs") - oracle.supcon(z, BALANCED, .1)) < 1e-10
    assert abs(supcon_of(z, LOPSIDED, normalizer="pairs") - oracle.supcon(z, LOPSIDED, .1)) > 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_a_lonely_anchor_counts_as_zero_in_supcontrast(seed):
    "And all is scaled by tau/base_tau."
    z, lonely = batch(seed, 12, 6, 3)[0], np.array([0]*5 + [1]*6 + [2])
    assert abs(supcon_of(z, lonely, base_tau=.07, empty="zero") - oracle.supcon(z, lonely, .1)/.7) < 1e-10


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("normalizer", ["pairs", "anchor"])
def test_identities_are_ntxent(seed, normalizer):
    z, _ = batch(seed, 12, 6, 3)
    assert abs(supcon_of(z, np.tile(np.arange(6), 2), normalizer=normalizer) - oracle.ntxent(z[:6], z[6:], .1)) < 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_of_the_global_denominator(seed):
    z, _ = batch(seed, 12, 6, 3)
    phi = np.array(oracle.label_similarity(np.eye(3)[LOPSIDED]))
    np.fill_diagonal(phi, 0)
    pairs = dict(normalizer="pairs")
    gap = supcon_of(z, LOPSIDED, denominator="global", **pairs) - supcon_of(z, LOPSIDED, **pairs)
    assert abs(gap - oracle.gap(z, phi, .1)) < 1e-10


def test_printed_equations_are_constant():
    for m in (4, 32):
        assert abs(oracle.as_printed(*batch(m, m, 5, 3), .07) - np.log(m*(m - 1))) < 1e-10


def test_cutmix():
    "The realised weight is one minus the share of changed pixels, counted."
    rng = torch.Generator().manual_seed(0)
    xa, xb = torch.rand(2, 200, 3, 11, 16, generator=rng)
    mixed, share = cutmix(xa, xb, torch.rand(200, generator=rng), rng)
    for i in range(200):
        assert abs(share[i].item() - oracle.share(xa[i].numpy(), xb[i].numpy(), mixed[i].numpy())) < 1e-6


def test_boxes():
    "Their edges, from the same centres."
    lam, size = torch.linspace(0, 1, 40), (11, 16)
    drawn = torch.stack(box_edges((1 - lam.double()).sqrt(), size, torch.Generator().manual_seed(1)), 1)
    again = torch.Generator().manual_seed(1)
    centres = [torch.randint(side, lam.shape, generator=again) for side in size]
    for i in range(40):
        box = oracle.cutmix_box(*size, lam[i].double().item(), *(centre[i].item() for centre in centres))
        assert drawn[i].tolist() == [*box]


def points(seed):
    "Forty training points with labels, and 25 test points."
    rng = np.random.default_rng(seed)
    return rng.normal(size=(40, 3)), rng.integers(4, size=40), rng.normal(size=(25, 3))


@pytest.mark.parametrize("seed", range(4))
def test_five_neighbours(seed):
    train, y, test = points(seed)
    assert knn(*map(torch.tensor, (train, y, test)), 4, 5).tolist() == list(oracle.knn5(train, y, test))


@pytest.mark.parametrize("seed", range(4))
def test_five_neighbours_of_half_collapsed_features(seed):
    "In single precision, all near to one point."
    train, y, test = points(seed)
    near, ask = (torch.tensor(5 + .01*v, dtype=torch.float32) for v in (train, test))
    theirs = oracle.knn5(near.double().numpy(), y, ask.double().numpy())
    assert knn(near, torch.tensor(y), ask, 4, 5).tolist() == list(theirs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k, tau", [(20, .07), (200, .1)])
def test_weighted_neighbours(seed, k, tau):
    train, y, test = points(seed)
    theirs = oracle.knn_weighted(train, y, test, min(k, 40), tau, 4)
    assert knn(*map(torch.tensor, (train, y, test)), 4, k, tau).tolist() == list(theirs)


def test_knn_ties_go_to_the_smallest_label():
    train, y = np.array([[0.], [1], [2], [3], [4]]), np.array([3, 1, 3, 1, 2])
    asked = torch.tensor([[2.]]).double()
    assert oracle.knn5(train, y, asked.numpy())[0] == 1 == knn(torch.tensor(train), torch.tensor(y), asked, 4, 5).item()


@pytest.mark.parametrize("epochs, milestones, rate, words", [
    (1000, (700, 800, 900), .1, ".7 .8 .9"), (100, (60, 75, 90), .2, ".6 .75 .9"),
    (500, (350, 400, 450), .1, ".7 .8 .9")])
def test_schedule(epochs, milestones, rate, words):
    "At every epoch."
    for epoch in range(1, epochs + 1):
        ours = step_decay(.05, words, rate, epoch, epochs)
        assert abs(ours - oracle.step_lr(epoch, .05, milestones, rate)) < 1e-15, epoch


def test_resampling():
    for start, length, out, size in ((0, 32, 32, 32), (5, 20, 32, 32), (3, 61, 24, 64), (10, 1, 8, 16)):
        ours = resize_matrix(torch.tensor([start]), torch.tensor([length]), out, size)[0]
        assert np.abs(ours.numpy() - np.array(oracle.crop_weights(start, length, out, size))).max() < 1e-5


def test_hue():
    rng = np.random.default_rng(0)
    for rgb, shift in zip(rng.random((50, 3)), rng.uniform(-.5, .5, 50)):
        ours = hue(torch.tensor(rgb)[None, :, None, None], torch.tensor(shift)).flatten()
        assert np.abs(ours.numpy() - np.array(oracle.hsv_hue_shift(rgb, shift))).max() < 1e-6


def drawn(key, n=6, c=3, side=16):
    x = torch.rand(2, n, c, side, side, generator=stream(0, "oracle images"), dtype=torch.float64)
    return x[0], x[1], draw_lam(n, 1., stream(key, "lam")), stream(key, "draws"), stream(key, "draws")


@pytest.mark.parametrize("key", range(4))
def test_resizemix(key):
    "Boxes, squeezed partners and shares, image by image."
    xa, xb, lam, gen, same = drawn(key)
    mixed, share = resizemix(xa, xb, lam, gen)
    centres = [torch.randint(16, lam.shape, generator=same).tolist() for _ in range(2)]
    for i, (cy, cx) in enumerate(zip(*centres)):
        box = oracle_mixers.resize_box(16, 16, .1 + .7*(1 - lam[i].item()), cy, cx)
        assert np.array_equal(mixed[i].numpy(), oracle_mixers.resizemix(xa[i].numpy(), xb[i].numpy(), box))
        assert np.isclose(share[i].item(), 1 - (box[1] - box[0])*(box[3] - box[2])/256)


@pytest.mark.parametrize("key", range(4))
def test_fmix(key):
    "The mask from the same white noise, by loops."
    xa, xb, lam, gen, same = drawn(key)
    mixed, share = fmix(xa, xb, lam, gen)
    noise = torch.view_as_complex(torch.randn(6, 16, 9, 2, generator=same)).numpy()
    up = torch.rand(6, 1, generator=same).numpy() < .5
    for i in range(6):
        mask = oracle_mixers.fmix_mask(noise[i], 16, 16, lam[i].item(), bool(up[i]))
        assert np.array_equal(mixed[i].numpy(), oracle_mixers.fmix(xa[i].numpy(), xb[i].numpy(), mask))
        assert np.isclose(share[i].item(), mask.mean())


def test_inputmix():
    "Shares from Dirichlet(1, 1, 1), at least half one's own, and two images of the pool."
    xa, xb, lam, gen, same = drawn(0)
    mixed, share = inputmix(xa, xb, lam, gen)
    drawn_ = -np.log(1 - torch.rand(3, 6, generator=same).double().numpy())
    d = drawn_/drawn_.sum(0)
    a, b = (torch.cat([xa, xb])[torch.randperm(12, generator=same)[:6]].numpy() for _ in range(2))
    for i in range(6):
        assert np.allclose(mixed[i].numpy(), oracle_mixers.inputmix(xa[i].numpy(), a[i], b[i], d[:, i]), atol=1e-6)
    assert share.eq(1).all()


class Linear:
    "A network of two linear parts, to be entered and left between them; it remembers what it gave."
    head = staticmethod(lambda h: h)

    def __init__(self):
        self.seen = []

    def run_part(self, part, x):
        return part(x)

    def __call__(self, x, start=0, stop=None):
        return self.encode(x, start, stop)

    def encode(self, x, start=0, stop=None):
        self.seen.append(linear_net(x, start, stop))
        return self.seen[-1]


def linear_net(x, start=0, stop=None):
    "What such a network makes of images."
    first, second = (torch.randn(27, n, generator=stream(0, f"net {n}"), dtype=torch.float64) for n in (27, 5))
    h = x if start else (x.flatten(1) @ first).tanh().view(-1, 3, 3, 3)
    return h if stop else h.flatten(1) @ second


def z(x):
    return linear_net(x.double()).numpy()


V1, V2 = torch.randn(2, 6, 3, 3, 3, generator=stream(1, "views"), dtype=torch.float64)
Y = torch.arange(6) % 3


def drawn_by(cfg, gen):
    "A mixer drawn, and the mixing with it."
    name, _ = draw_mixer(cfg.mixer, odds_of(cfg.mixer_odds), gen)
    return lambda own, other: mix(own, other, gen, name, cfg.alpha, cfg.lam_per, cfg.partner, cfg.fold == "yes")


def test_mixco():
    "With one mixed view, against loops over the same mixtures."
    cfg = configure("mixco", tau=.2, mix_weight=.7, mix_tau=.05, mixed_views="one")
    ours = loss_of(cfg, Linear(), [V1, V2], Y, 3, stream(0, "mix")).loss.item()
    x, w = drawn_by(cfg, stream(0, "mix"))(V1, V1)
    assert torch.equal(w[:3].gt(0).nonzero()[:, 1], torch.tensor([0, 3, 1, 4, 2, 5]))
    theirs = oracle_mixers.mixco(z(V1), z(V2), z(x[:3]), w.diag()[:3].double().numpy(), .2, .05, .7)
    assert abs(ours - theirs) < 1e-5*abs(theirs)   # the mixing matrix is float32


@pytest.mark.parametrize("seed", range(3))
def test_genscl(seed):
    "One weight a batch; each view draws a mixer and a weight of its own."
    cfg, gen = configure("genscl", tau=.2), stream(seed, "mix")
    ours = loss_of(cfg, Linear(), [V1, V2], Y, 3, stream(seed, "mix")).loss.item()
    (xa, wa), (xb, wb) = drawn_by(cfg, gen)(V1, V2), drawn_by(cfg, gen)(V2, V1)
    assert len(wa.diag().unique()) <= 2 and not torch.equal(wa, wb)
    onehot = torch.eye(3)[Y]
    theirs = oracle_mixers.genscl(z(xa), z(xb), (wa @ onehot).numpy(), (wb @ onehot).numpy(), .2)
    assert abs(ours - theirs) < 1e-5*abs(theirs)


def test_manifoldmix():
    "Both views go through the first part, are mixed there, and go on."
    cfg = configure(mixer="manifoldmix", seed=0)
    seed = next(i for i in range(50) if draw_mixer(cfg.mixer, [], stream(i, "mix"))[1])
    v1, v2 = torch.randn(2, 4, 3, 3, 3, generator=stream(1, "views"), dtype=torch.float64)
    net = Linear()
    loss_of(cfg, net, [v1, v2], torch.arange(4) % 2, 2, stream(seed, "mix"))
    draw_mixer(cfg.mixer, [], gen := stream(seed, "mix"))   # what is drawn before
    (lam_a, p), (lam_b, q) = ((draw_lam(4, 1., gen), torch.randperm(4, generator=gen)) for _ in range(2))

    def f1(x):
        return linear_net(torch.as_tensor(x)[None], stop=1)[0].numpy()

    def f2(h):
        return linear_net(torch.as_tensor(h)[None], start=1)[0].numpy()

    theirs = oracle_mixers.manifold(f1, f2, v1.numpy(), v2.numpy(), p, q, lam_a.numpy(), lam_b.numpy())
    assert np.allclose(net.seen[-1].numpy(), np.array(theirs), atol=1e-6)
