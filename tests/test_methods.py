"Every loss against naive loops that somebody wrote from the formulas alone, and against other libraries' where they have it."
from functools import partial

import numpy as np
import oracle
import oracle_methods as naive
import pytest
import torch
from mixsupcon.config import configure, stream
from mixsupcon.evaluate import frechet
from mixsupcon.losses import sinkhorn, whitened
from mixsupcon.methods import GOALS, Sight, among_both, asked, by_class, by_instance, imix, imix_pot, mixco, mixing, mixsiam, overlaid, plain, unmix
from mixsupcon.models import answers, make_net, settle
from torch.nn import functional as F

N = 12
y = torch.arange(N) % 3
v1, v2, v3, v4 = torch.randn(4, N, 3, 8, 8, generator=stream(0, "views"), dtype=torch.float64)


class Case:
    "A network, a step's mixing drawn twice alike, and what the network makes of images one view at a time."
    def __init__(self, goal, **given):
        self.cfg = configure(**dict(arch="resnet8", together="apart", queue=24, out=4, white_size=6, prototypes=7, tau=.2) | given)
        self.net = make_net(self.cfg, 8, [part for part in GOALS[goal].parts if part != "queue" or self.cfg.queue]).double()
        if hasattr(self.net, "slow"):
            with torch.no_grad():
                for p in self.net.slow.parameters():
                    p.add_(.1*torch.randn(p.shape, generator=stream(0, "slow"), dtype=torch.float64))
        self.goal = goal

    def ours(self, strategy, labels=by_instance, views=(v1, v2)):
        loss = strategy(self.goal, self.net, list(views), labels(y, 3), mixing(self.cfg, stream(0, "mix")), self.cfg)
        return loss.item()

    def mixed(self, view=v1):
        "The mixture of a view, its own shares and its partners."
        x, w = mixing(self.cfg, stream(0, "mix"))(view, view)
        own = w.diag().double()
        rest = w - w.diag().diag()
        partner = torch.where(rest.any(1), rest.argmax(1), torch.arange(N))
        return x, own.tolist(), partner.tolist()

    def z(self, x): return self.net(x).detach().numpy()
    def p(self, x): return self.net.predictor(self.net(x)).detach().numpy()
    def k(self, x): return answers(self.net, x).numpy()


def close(a, b):
    return abs(a - b) < 1e-6*max(1, abs(b))   # the mixing matrix is float32


IMIX = dict(mixer="mixup", fold="yes")
UNMIX = dict(mixer="mixup cutmix", lam_per="batch", partner="reverse")


@pytest.mark.parametrize("how", [IMIX, IMIX | dict(mixer="cutmix", lam_per="batch"), IMIX | dict(fold="no", lam_per="batch")])
def test_imix(how):
    "Both readings of lambda, MixUp and CutMix; N-pair, MoCo with 1+K and N+K answers, BYOL."
    case = Case("npair", **how)
    x, own, partner = case.mixed()
    assert how["fold"] == "no" or min(own) >= .5
    assert close(case.ours(imix), naive.npair(case.z(x), case.z(v2), own, partner, .2))
    for goal, reference in (("moco", naive.moco), ("mocon", naive.mocon)):
        case = Case(goal, **how)
        assert close(case.ours(imix), reference(case.z(x), case.k(v2), case.net.queue.numpy(), own, partner, .2))
    case = Case("byol", **how)
    assert close(case.ours(imix), naive.byol(case.p(x), case.k(v2), own, partner))


@pytest.mark.parametrize("own_view", ["include", "exclude"])
def test_sup_npair(own_view):
    case = Case("npair", own_view=own_view, **IMIX)
    x, own, partner = case.mixed()
    theirs = naive.sup_npair(case.z(x), case.z(v2), y.tolist(), own, partner, .2, own_view == "include")
    assert close(case.ours(imix, by_class), theirs)
    theirs = naive.sup_npair(case.z(v1), case.z(v2), y.tolist(), [1]*N, list(range(N)), .2, own_view == "include")
    assert close(Case("npair", own_view=own_view).ours(plain, by_class), theirs)


@pytest.mark.parametrize("labels", [by_instance, by_class])
def test_imix_in_one_pot(labels):
    "SimCLR and SupCLR: 2N mixed anchors among 2N clean rows."
    case = Case("simclr", **IMIX)
    step = mixing(case.cfg, stream(0, "mix"))
    (x1, w1), (x2, w2) = step(v1, v1), step(v2, v2)
    ours = imix_pot(case.net, [v1, v2], labels(y, 3), mixing(case.cfg, stream(0, "mix")), case.cfg).item()
    own, partner = [], []
    for half, w in enumerate((w1, w2)):
        rest = w - w.diag().diag()
        own += w.diag().double().tolist()
        partner += (torch.where(rest.any(1), rest.argmax(1), torch.arange(N)) + half*N).tolist()
    ids = (torch.arange(N) if labels is by_instance else y).repeat(2).tolist()
    z, q = case.z(torch.cat([v1, v2])), case.z(torch.cat([x1, x2]))
    assert close(ours, naive.imix_pot(q, z, ids, own, partner, .2))


def test_simclr_and_unmix():
    case = Case("simclr", **UNMIX)
    x, own, _ = case.mixed()
    assert close(Case("simclr").ours(plain), naive.ntxent(case.z(v1), case.z(v2), .2))
    assert close(case.ours(unmix), naive.unmix_ntxent(case.z(v1), case.z(v2), case.z(x), own[0], .2))


@pytest.mark.parametrize("goal", ["moco", "mocon"])
def test_unmix_moco(goal):
    "Asymmetric, and symmetric as released: the mixture of view 1 asks both keys."
    reference, all_own, oneself = getattr(naive, goal), [1.]*N, list(range(N))
    case = Case(goal, **UNMIX)
    x, own, partner = case.mixed()
    queue = case.net.queue.numpy()
    ask = lambda q, k, own=own, partner=partner: reference(q, case.k(k), queue, own, partner, .2)
    assert close(case.ours(unmix), ask(case.z(v1), v2, all_own, oneself) + ask(case.z(x), v2))
    case = Case(goal, sides="both", target_view="both", **UNMIX)
    clean = ask(case.z(v1), v2, all_own, oneself) + ask(case.z(v2), v1, all_own, oneself)
    assert close(case.ours(unmix), clean + ask(case.z(x), v2) + ask(case.z(x), v1))
    step = mixing(case.cfg, stream(0, "mix"))
    each = Case(goal, sides="both", mixed_views="each", **UNMIX)
    (a, _), (b, w) = step(v1, v1), step(v2, v2)
    lam = w.diag().double().tolist()
    assert close(each.ours(unmix), clean + ask(case.z(a), v2) + ask(case.z(b), v1, lam))


def test_unmix_byol_and_both_mixed():
    all_own, oneself = [1.]*N, list(range(N))
    case = Case("byol", sides="both", **UNMIX)
    x, own, partner = case.mixed()
    clean = naive.byol(case.p(v1), case.k(v2), all_own, oneself) + naive.byol(case.p(v2), case.k(v1), all_own, oneself)
    assert close(case.ours(unmix), clean + naive.byol(case.p(x), case.k(v2), own, partner))
    same = Case("byol", sides="both", target_view="same", **UNMIX)
    assert close(same.ours(unmix), clean + naive.byol(case.p(x), case.k(v1), own, partner))
    case = Case("moco", mixed_views="both", **UNMIX)   # paradigm (4): one weight, one box, the same partners
    x, _ = mixing(case.cfg, stream(0, "mix"))(torch.cat([v1, v2], 1), torch.cat([v1, v2], 1))
    queue = case.net.queue.numpy()
    pair = [naive.moco(case.z(q), case.k(k), queue, all_own, oneself, .2) for q, k in ((v1, v2), (x[:, :3], x[:, 3:]))]
    assert close(case.ours(unmix), sum(pair))


def test_siamese():
    case = Case("simsiam", sides="both", head="simsiam2", hidden=16, out=8)
    p1, p2, z1, z2 = case.p(v1), case.p(v2), case.z(v1), case.z(v2)
    assert close(case.ours(plain), naive.simsiam(p1, p2, z1, z2))
    for aggregate in ("max", "avg"):
        for at, theirs in (("raw", "pre"), ("unit", "post")):
            given = dict(aggregate=aggregate, aggregate_at=at, siam_weight=.3, view_share=.4)
            siam = Case("simsiam", sides="both", head="simsiam2", hidden=16, out=8, **given)
            ours = mixsiam(siam.net, [v1, v2], by_instance(y, 3), mixing(siam.cfg, stream(0, "mix")), siam.cfg).item()
            assert close(ours, naive.mixsiam(p1, p2, case.p(.4*v1 + .6*v2), z1, z2, .3, aggregate, theirs))


@pytest.mark.parametrize("queue", [0, 24])
def test_swav(queue):
    "Two views, small crops, and Un-Mix by the author's formula: codes and predictions both turned round."
    case = Case("swav", queue=queue, sinkhorn_eps=.1)
    scores = lambda x: (F.normalize(case.net(x), dim=1) @ case.net.prototypes.weight.T).detach()
    a, b = scores(v1), scores(v2)
    if queue:   # codes come from the queue's rows and the batch's, once it is full
        assert close(case.ours(plain), naive.swap(a.numpy(), b.numpy(), .2, .1, 3)) and not case.net.queue.any()
        case.net.queue, case.net.fresh = F.normalize(torch.randn(queue, 4, generator=stream(0, "queue"), dtype=torch.float64), dim=1), ()
        past = (case.net.queue @ case.net.prototypes.weight.T).detach()
        codes = [np.array(naive.sinkhorn(torch.cat([past, s]).numpy(), .1, 3))[-N:] for s in (a, b)]
        guess = lambda q, s: -(q*F.log_softmax(s/.2, 1).numpy()).sum(1).mean()
        assert close(case.ours(plain), (guess(codes[0], b) + guess(codes[1], a))/2)
        assert [len(k) for k in case.net.fresh] == [N, N]
        return
    assert np.allclose(sinkhorn(a, .1, 3).numpy(), np.array(naive.sinkhorn(a.numpy(), .1, 3)))
    assert close(case.ours(plain), naive.swap(a.numpy(), b.numpy(), .2, .1, 3))
    small = [v[..., ::2, ::2] for v in (v3, v4)]
    many = Case("swav", queue=0, sinkhorn_eps=.1, small_crops=2, small_size=8)
    assert close(many.ours(plain, views=[v1, v2, *small]), naive.multicrop([scores(v).numpy() for v in (v1, v2, *small)], .2, .1, 3))
    mix = Case("swav", queue=0, sinkhorn_eps=.1, **UNMIX)
    x, own, _ = mix.mixed()
    seen = a.numpy(), b.numpy(), scores(x).numpy(), own[0]
    assert close(mix.ours(unmix), naive.unmix_swap(*seen, .2, .1, 3))
    mix.goal = "swav_released"
    assert close(mix.ours(unmix), naive.unmix_swap_released(*seen, .2, .1, 3)) and close(mix.ours(plain), naive.swap(*seen[:2], .2, .1, 3))


def test_wmse():
    "Two and four views, several ways to part the batch, and Un-Mix: turned round before whitening."
    case = Case("wmse")
    order = torch.randperm(N, generator=mixing(case.cfg, stream(0, "mix")).gen).tolist()
    z = [case.z(v) for v in (v1, v2, v3, v4)]
    assert np.allclose(whitened(torch.tensor(z[0]), torch.arange(N), 12).numpy(), np.array(naive.whiten(z[0])))
    for views in (2, 4):
        assert close(case.ours(plain, views=(v1, v2, v3, v4)[:views]), naive.wmse(z[:views], order, 6))
    mix = Case("wmse", **UNMIX)
    x, own, _ = mix.mixed()
    assert close(mix.ours(unmix), naive.unmix_wmse2(z[0], z[1], case.z(x), own[0], order, order, 6))


def test_mixco_on_moco():
    "The base, and half as many mixtures among keys and queue at their own temperature."
    case = Case("moco", mixer="mixup", partner="halves", mix_weight=.7, mix_tau=.05)
    x, own, partner = case.mixed()
    q, k, queue = case.z(x[:N//2]), case.k(v2), case.net.queue.numpy()
    unit_q, unit_k = np.array(oracle.unit_rows(q)), np.array(oracle.unit_rows(k))
    sought = 0.
    for i in range(N//2):
        logits = [*(unit_q[i] @ unit_k.T/.05), *(unit_q[i] @ queue.T/.05)]
        lse = oracle.log_sum_exp(logits)
        sought += (own[i]*(lse - logits[i]) + (1 - own[i])*(lse - logits[partner[i]]))/(N//2)
    ours = case.ours(partial(mixco, sought=among_both))
    assert close(ours, naive.moco(case.z(v1), k, queue, [1.]*N, list(range(N)), .2) + .7*sought)


def test_queue_and_slow_copy():
    net = make_net(configure(method="moco", queue=24, out=4), 8, ("slow", "queue"))
    rows = net.queue.tolist()
    for i in range(4):
        keys = torch.full((10 + i, 4), float(i))
        net.fresh, rows = (keys,), naive.fifo(rows, keys.tolist(), 24)
        settle(net, 1.)
        assert torch.equal(net.queue, torch.tensor(rows))
    slow, fast = net.slow["head"][0].weight.clone(), net.head[0].weight.data.add_(1)
    settle(net, .9)
    assert np.allclose(net.slow["head"][0].weight.flatten(), naive.ema(slow.flatten().tolist(), fast.flatten().tolist(), .9), atol=1e-6)


def test_only_clean_keys_enter_the_queue():
    "Of the step's views, never of mixtures; the symmetric form keeps both."
    for given, rows in ((dict(), N), (dict(sides="both", target_view="both"), 2*N), (dict(mixed_views="both"), N)):
        case = Case("moco", **UNMIX | given)
        case.ours(unmix)
        keys = torch.cat(case.net.fresh)
        assert len(keys) == rows and np.allclose(keys[:N].numpy(), case.k(v2))


def test_inputmix_comes_first():
    "Both views, before anything else; own share at least a half."
    flat = [torch.full((200, 3, 2, 2), value) for value in (0., 1.)]
    dimmed, lit = overlaid(flat, stream(0, "mix"))
    assert dimmed.max() <= .5 and lit.min() >= .5 and dimmed.mean() > .1


def test_frechet_distance():
    a, b = torch.randn(200, 5, dtype=torch.float64), torch.randn(150, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    theirs = naive.fed(a.numpy(), b.numpy())
    assert np.isclose(frechet(F.normalize(a, dim=1), F.normalize(b, dim=1)), theirs)


def test_against_lightly():
    "NT-Xent, BYOL's and SimSiam's cosine, SwAV, and W-MSE where a part is the whole batch."
    loss = pytest.importorskip("lightly.loss")
    case = Case("simclr")
    z1, z2 = case.net(v1), case.net(v2)
    assert close(case.ours(plain), loss.NTXentLoss(temperature=.2)(z1, z2).item())
    case = Case("simsiam", sides="both", head="simsiam2", hidden=16, out=8)
    p1, p2, z1, z2 = (torch.tensor(f(v)) for f in (case.p, case.z) for v in (v1, v2))
    cosine = loss.NegativeCosineSimilarity()
    assert close(case.ours(plain), (cosine(p1, z2) + cosine(p2, z1)).item()/2)
    case = Case("byol")
    p, k = torch.tensor(case.p(v1)), torch.tensor(case.k(v2))
    assert close(case.ours(plain), 2 + 2*cosine(p, k).item())
    case = Case("swav", queue=0)
    scores = [F.normalize(case.net(v), dim=1) @ case.net.prototypes.weight.T for v in (v1, v2)]
    assert close(case.ours(plain), loss.SwaVLoss(temperature=.2, sinkhorn_iterations=3, sinkhorn_epsilon=.05)(scores, []).item())
    case = Case("wmse", white_size=N)
    theirs = loss.wmse_loss.WMSELoss(embedding_dim=4, w_size=N, track_running_stats=False)
    assert close(case.ours(plain), theirs(torch.tensor(np.concatenate([case.z(v1), case.z(v2)]))).item())


def test_against_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    case = Case("simclr")
    z = torch.cat([case.net(v1), case.net(v2)])
    assert close(case.ours(plain), losses.NTXentLoss(temperature=.2)(z, torch.arange(N).repeat(2)).item())


def test_own_keys_carry_gradient_and_others_do_not():
    "N-pair learns from both sides; SimSiam's and the slow copy's answers are given."
    for goal, learns in (("npair", True), ("simclr", True), ("simsiam", False), ("byol", False), ("moco", False)):
        case = Case(goal)
        sight = Sight(case.net, [v1, v2], case.cfg, stream(0, "mix"))
        assert asked(GOALS[goal], sight, 0, 1)[1].requires_grad == learns
