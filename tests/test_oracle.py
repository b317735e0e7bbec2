"Vectorised code against naive double loops in float64, written from the formulas by somebody who had not seen it."
from itertools import product

import numpy as np
import oracle
import oracle_mixers
import pytest
import torch
from mixsupcon.augment import hue, resampler
from mixsupcon.config import configure, stream
from mixsupcon.evaluate import knn
from mixsupcon.losses import SIMILARITIES, contrastive, supcon
from mixsupcon.methods import loss_of, mixing
from mixsupcon.mixers import cutmix, draw_lam, fmix, inputmix, resizemix
from mixsupcon.train import learning_rate


def batch(seed, m, d, c, hard=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(m, d))
    t = np.eye(c)[rng.integers(c, size=m)] if hard else rng.dirichlet(np.full(c, .3), size=m)
    return z, t


@pytest.mark.parametrize("m,d,c", [(2, 3, 2), (5, 4, 3), (12, 8, 4), (17, 2, 17)])
def test_contrastive(m, d, c):
    "Every combination of the switches, on soft and on hard labels, at temperatures from sharp to flat."
    switches = product(("row", "global"), ("pairs", "anchor"), SIMILARITIES, ("skip", "zero"), (False, True), (.05, .5), (False, True))
    for seed, (denominator, normalizer, label_sim, empty, include_self, tau, hard) in enumerate(switches):
        z, t = batch(seed, m, d, c, hard)
        ours = contrastive(torch.tensor(z), torch.tensor(t), tau, denominator, normalizer, label_sim, empty, include_self)
        theirs = oracle.contrastive(z, t, tau, denominator, normalizer, label_sim, empty, include_self)
        assert abs(ours.item() - theirs) < 1e-10, (denominator, normalizer, label_sim, empty, include_self, tau, hard)


@pytest.mark.parametrize("seed", range(5))
def test_special_cases(seed):
    "SupCon for any batch by anchors; by pairs when balanced and only then; NT-Xent for identities; the gap of the global denominator."
    z, _ = batch(seed, 12, 6, 3)
    balanced, lopsided = np.arange(12) % 3, np.array([0]*7 + [1]*3 + [2]*2)
    value = lambda y, **how: supcon(torch.tensor(z), torch.tensor(y), .1, **how).item()
    for y in (balanced, lopsided):
        assert abs(value(y) - oracle.supcon(z, y, .1)) < 1e-10
    lonely = np.array([0]*5 + [1]*6 + [2])   # SupContrast: an anchor without positives counts as zero, and all is scaled
    assert abs(value(lonely, base_tau=.07, empty="zero") - oracle.supcon(z, lonely, .1)/.7) < 1e-10
    assert abs(value(balanced, normalizer="pairs") - oracle.supcon(z, balanced, .1)) < 1e-10
    assert abs(value(lopsided, normalizer="pairs") - oracle.supcon(z, lopsided, .1)) > 1e-4
    for normalizer in ("pairs", "anchor"):
        assert abs(value(np.tile(np.arange(6), 2), normalizer=normalizer) - oracle.ntxent(z[:6], z[6:], .1)) < 1e-10
    phi = np.array(oracle.label_similarity(np.eye(3)[lopsided]))
    np.fill_diagonal(phi, 0)
    gap = value(lopsided, normalizer="pairs", denominator="global") - value(lopsided, normalizer="pairs")
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
    lam, size = torch.linspace(0, 1, 40), (11, 16)
    from mixsupcon.mixers import boxes
    drawn = torch.stack(boxes((1 - lam.double()).sqrt(), size, torch.Generator().manual_seed(1)), 1)
    again = torch.Generator().manual_seed(1)
    centres = [torch.randint(side, lam.shape, generator=again) for side in size]
    for i in range(40):
        top, bottom, left, right = oracle.cutmix_box(*size, lam[i].double().item(), centres[0][i].item(), centres[1][i].item())
        assert drawn[i].tolist() == [top, bottom, left, right]


@pytest.mark.parametrize("seed", range(4))
def test_knn(seed):
    rng = np.random.default_rng(seed)
    train, test, y = rng.normal(size=(40, 3)), rng.normal(size=(25, 3)), rng.integers(4, size=40)
    as_torch = [torch.tensor(v) for v in (train, y, test)]
    assert knn(*as_torch, 4, 5).tolist() == list(oracle.knn5(train, y, test))
    near = [torch.tensor(v, dtype=torch.float32) for v in (5 + .01*train, 5 + .01*test)]   # half collapsed, in single precision
    assert knn(near[0], as_torch[1], near[1], 4, 5).tolist() == list(oracle.knn5(near[0].double().numpy(), y, near[1].double().numpy()))
    for k, tau in ((20, .07), (200, .1)):
        assert knn(*as_torch, 4, k, tau).tolist() == list(oracle.knn_weighted(train, y, test, min(k, 40), tau, 4))


def test_knn_ties_go_to_the_smallest_label():
    train, y = np.array([[0.], [1], [2], [3], [4]]), np.array([3, 1, 3, 1, 2])
    assert oracle.knn5(train, y, np.array([[2.]]))[0] == 1 == knn(torch.tensor(train), torch.tensor(y), torch.tensor([[2.]]).double(), 4, 5).item()


def test_schedule():
    for epochs, milestones, rate, words in ((1000, (700, 800, 900), .1, ".7 .8 .9"), (100, (60, 75, 90), .2, ".6 .75 .9"), (500, (350, 400, 450), .1, ".7 .8 .9")):
        for epoch in range(1, epochs + 1):
            ours = learning_rate(epoch, 0, epochs, .05, "step", words, rate)
            assert abs(ours - oracle.step_lr(epoch, .05, milestones, rate)) < 1e-15, epoch


def test_resampling():
    for start, length, out, size in ((0, 32, 32, 32), (5, 20, 32, 32), (3, 61, 24, 64), (10, 1, 8, 16)):
        ours = resampler(torch.tensor([start]), torch.tensor([length]), out, size)[0]
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
        assert np.array_equal(mixed[i].numpy(), oracle_mixers.fmix(xa[i].numpy(), xb[i].numpy(), mask)) and np.isclose(share[i].item(), mask.mean())


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

    def __init__(self): self.seen = []
    def of(self, part, x): return part(x)
    def __call__(self, x, since=0, until=None): return self.encode(x, since, until)
    def encode(self, x, since=0, until=None):
        self.seen.append(linear_net(x, since, until))
        return self.seen[-1]


def linear_net(x, since=0, until=None):
    "A network of two linear parts, to be entered and left between them."
    first, second = torch.randn(27, 27, generator=stream(0, "net 1"), dtype=torch.float64), torch.randn(27, 5, generator=stream(0, "net 2"), dtype=torch.float64)
    h = x if since else (x.flatten(1) @ first).tanh().view(-1, 3, 3, 3)
    return h if until else h.flatten(1) @ second


@pytest.mark.parametrize("method", ["mixco", "genscl"])
def test_related_losses(method):
    "MixCo and GenSCL as rows of METHODS, against loops over the same mixtures."
    v1, v2 = torch.randn(2, 6, 3, 3, 3, generator=stream(1, "views"), dtype=torch.float64)
    y, cfg = torch.arange(6) % 3, configure(method=method, tau=.2, **(dict(mix_weight=.7, mix_tau=.05) if method == "mixco" else {}))
    ours = loss_of(cfg, Linear(), [v1, v2], y, 3, stream(0, "mix")).item()
    mixed = mixing(cfg, stream(0, "mix"))
    z = lambda x: linear_net(x.double()).numpy()
    if method == "mixco":
        x, w = mixed(v1, v1)
        assert torch.equal(w[:3].gt(0).nonzero()[:, 1], torch.tensor([0, 3, 1, 4, 2, 5]))
        theirs = oracle_mixers.mixco(z(v1), z(v2), z(x[:3]), w.diag()[:3].double().numpy(), .2, .05, .7)
    else:
        (xa, wa), (xb, wb) = mixed(v1, v2), mixed(v2, v1)
        assert len(wa.diag().unique()) <= 2 and not torch.equal(wa, wb), "one weight a batch, and each view its own"
        onehot = torch.eye(3)[y]
        theirs = oracle_mixers.genscl(z(xa), z(xb), (wa @ onehot).numpy(), (wb @ onehot).numpy(), .2)
    assert abs(ours - theirs) < 1e-5*abs(theirs)   # the mixing matrix is float32


def test_manifoldmix():
    "Both views go through the first part, are mixed there, and go on."
    cfg = configure(mixer="manifoldmix", seed=0)
    step = next(i for i in range(50) if mixing(cfg, stream(i, "mix")).place)
    v1, v2 = torch.randn(2, 4, 3, 3, 3, generator=stream(1, "views"), dtype=torch.float64)
    net = Linear()
    loss_of(cfg, net, [v1, v2], torch.arange(4) % 2, 2, stream(step, "mix"))
    mixing(cfg, gen := stream(step, "mix"))   # what is drawn before
    (lam_a, p), (lam_b, q) = ((draw_lam(4, 1., gen), torch.randperm(4, generator=gen)) for _ in range(2))
    f1, f2 = (lambda x: linear_net(torch.as_tensor(x)[None], until=1)[0].numpy()), (lambda h: linear_net(torch.as_tensor(h)[None], since=1)[0].numpy())
    theirs = oracle_mixers.manifold(f1, f2, v1.numpy(), v2.numpy(), p, q, lam_a.numpy(), lam_b.numpy())
    assert np.allclose(net.seen[-1].numpy(), np.array(theirs), atol=1e-6)
