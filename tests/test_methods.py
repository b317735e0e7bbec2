"Every loss against naive loops that somebody wrote from the formulas alone, and against other libraries'."
import math

import numpy as np
import oracle
import oracle_methods as naive
import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.losses import sinkhorn, supcon, whitened
from mixsupcon.core.methods import METHODS, begin_step, input_mixed, loss_of
from mixsupcon.core.mixers import GUIDED, MIXERS, PARTNERS, draw_mixer, mix
from mixsupcon.core.models import SupConLoss, momentum_keys, update_state
from mixsupcon.core.options import refused, stream
from mixsupcon.core.strategies import odds_of
from mixsupcon.lab.evaluate import frechet
from small import build, owned, small
from torch.nn import functional as F

N = 12
y = torch.arange(N) % 3
v1, v2, v3, v4 = torch.randn(4, N, 3, 8, 8, generator=stream(0, "views"), dtype=torch.float64)
ALL_OWN, ONESELF = [1.]*N, list(range(N))


def mixer_of(cfg):
    "The mixing of a step, as the strategy draws it."
    gen = stream(0, "mix")
    mixer, _ = draw_mixer(cfg.mixer, odds_of(cfg.mixer_odds), gen)
    how = mixer, cfg.alpha, cfg.lam_per, cfg.partner, cfg.fold == "yes"
    return lambda own, other: mix(own, other, gen, *how)


def split(w):
    "Every image's own share and its partner, of a mixing matrix."
    rest = w - w.diag().diag()
    partner = torch.where(rest.any(1), rest.argmax(1), torch.arange(len(w)))
    return w.diag().double().tolist(), partner.tolist()


class Case:
    "A method's network, and what it makes of images one view at a time."
    def __init__(self, method, **given):
        mine = owned(method)
        usual = dict(tau=.2, share_bn="none", hidden=0, predictor=0, white_eps=0.)
        self.cfg = small(method, **{k: v for k, v in usual.items() if k in mine} | given)
        self.net = build(self.cfg)
        if hasattr(self.net, "momentum_encoder"):
            with torch.no_grad():
                for p in self.net.momentum_encoder.parameters():
                    p.add_(.1*torch.randn(p.shape, generator=stream(0, "slow"), dtype=torch.float64))

    def step(self, views=(v1, v2)):
        return loss_of(self.cfg, self.net, list(views), y, 3, stream(0, "mix"))

    def ours(self, views=(v1, v2)):
        return self.step(views).loss.item()

    def mixed(self, view=v1):
        "The mixture of a view, its own shares and its partners."
        x, w = mixer_of(self.cfg)(view, view)
        return x, *split(w)

    def z(self, x):
        return self.net(x).detach().numpy()

    def p(self, x):
        return self.net.predictor(self.net(x)).detach().numpy()

    def k(self, x):
        return momentum_keys(self.net, x).numpy()

    def queue(self):
        return self.net.queue.numpy()


def close(a, b):
    return abs(a - b) < 1e-6*max(1, abs(b))   # the mixing matrix is float32


IMIX = dict(mixer="mixup", fold="yes")
READINGS = [IMIX, IMIX | dict(mixer="cutmix", lam_per="batch"), IMIX | dict(fold="no", lam_per="batch")]
UNMIX = dict(mixer="mixup cutmix", lam_per="batch", partner="reverse")


# ---- i-Mix: both readings of lambda, MixUp and CutMix

@pytest.mark.parametrize("how", READINGS)
def test_imix_on_npair(how):
    case = Case("npair_imix", **how)
    x, own, partner = case.mixed()
    assert how["fold"] == "no" or min(own) >= .5
    assert close(case.ours(), naive.npair(case.z(x), case.z(v2), own, partner, .2))


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("method, reference", [("moco_imix", naive.moco), ("mocon_imix", naive.mocon)])
def test_imix_on_moco(method, reference, how):
    "Among 1+K and among N+K keys."
    case = Case(method, **how)
    x, own, partner = case.mixed()
    assert close(case.ours(), reference(case.z(x), case.k(v2), case.queue(), own, partner, .2))


@pytest.mark.parametrize("how", READINGS)
def test_imix_on_byol(how):
    case = Case("byol_imix", **how)
    x, own, partner = case.mixed()
    assert close(case.ours(), naive.byol(case.p(x), case.k(v2), own, partner))


@pytest.mark.parametrize("own_view", ["include", "exclude"])
def test_sup_npair(own_view):
    case = Case("sup_npair", own_view=own_view)
    reference = naive.sup_npair(case.z(v1), case.z(v2), y.tolist(), [1]*N, ONESELF, .2, own_view == "include")
    assert close(case.ours(), reference)


@pytest.mark.parametrize("own_view", ["include", "exclude"])
def test_imix_on_sup_npair(own_view):
    case = Case("sup_npair_imix", own_view=own_view, **IMIX)
    x, own, partner = case.mixed()
    reference = naive.sup_npair(case.z(x), case.z(v2), y.tolist(), own, partner, .2, own_view == "include")
    assert close(case.ours(), reference)


@pytest.mark.parametrize("method, ids", [("simclr_imix", torch.arange(N)), ("supclr_imix", y)])
def test_imix_in_one_contrast_set(method, ids):
    "SimCLR and SupCLR: 2N mixed anchors among 2N clean rows."
    case = Case(method, **IMIX)
    draw = mixer_of(case.cfg)
    (x1, w1), (x2, w2) = draw(v1, v1), draw(v2, v2)
    (own1, partner1), (own2, partner2) = split(w1), split(w2)
    z, q = case.z(torch.cat([v1, v2])), case.z(torch.cat([x1, x2]))
    partner = partner1 + [j + N for j in partner2]
    assert close(case.ours(), naive.imix_pot(q, z, ids.repeat(2).tolist(), own1 + own2, partner, .2))


# ---- Un-Mix

def test_simclr():
    case = Case("simclr")
    assert close(case.ours(), naive.ntxent(case.z(v1), case.z(v2), .2))


def test_unmix_on_simclr():
    case = Case("simclr_unmix", **UNMIX)
    x, own, _ = case.mixed()
    assert close(case.ours(), naive.unmix_ntxent(case.z(v1), case.z(v2), case.z(x), own[0], .2))


KEYS = pytest.mark.parametrize("negatives, reference", [("queue", naive.moco), ("batch and queue", naive.mocon)])


def moco_case(negatives, reference, **given):
    "Un-Mix on MoCo, and the naive loss of queries and keys of a view."
    case = Case("moco_unmix", negatives=negatives, **UNMIX | given)

    def ask(q, view, own=ALL_OWN, partner=ONESELF):
        return reference(q, case.k(view), case.queue(), own, partner, .2)
    return case, ask


@KEYS
def test_unmix_on_moco(negatives, reference):
    "Asymmetric."
    case, ask = moco_case(negatives, reference)
    x, own, partner = case.mixed()
    assert close(case.ours(), ask(case.z(v1), v2) + ask(case.z(x), v2, own, partner))


@KEYS
def test_unmix_on_symmetric_moco(negatives, reference):
    "As released: the mixture of view 1 is compared with the keys of both views."
    case, ask = moco_case(negatives, reference, sides="both", target_view="both")
    x, own, partner = case.mixed()
    clean = ask(case.z(v1), v2) + ask(case.z(v2), v1)
    assert close(case.ours(), clean + ask(case.z(x), v2, own, partner) + ask(case.z(x), v1, own, partner))


@KEYS
def test_unmix_of_each_view(negatives, reference):
    case, ask = moco_case(negatives, reference, sides="both", mixed_views="each")
    draw = mixer_of(case.cfg)
    (a, w1), (b, w2) = draw(v1, v1), draw(v2, v2)
    clean = ask(case.z(v1), v2) + ask(case.z(v2), v1)
    assert close(case.ours(), clean + ask(case.z(a), v2, *split(w1)) + ask(case.z(b), v1, *split(w2)))


def test_unmix_of_both_views_alike():
    "Paradigm (4): one weight, one box, the same partners; the mixed views are a pair like any other."
    case, ask = moco_case("queue", naive.moco, mixed_views="both")
    both = torch.cat([v1, v2], 1)
    x, _ = mixer_of(case.cfg)(both, both)
    assert close(case.ours(), ask(case.z(v1), v2) + ask(case.z(x[:, :3]), x[:, 3:]))


@pytest.mark.parametrize("target_view, target", [("other", v2), ("same", v1)])
def test_unmix_on_byol(target_view, target):
    case = Case("byol_unmix", target_view=target_view, **UNMIX)
    x, own, partner = case.mixed()
    clean = naive.byol(case.p(v1), case.k(v2), ALL_OWN, ONESELF) + naive.byol(case.p(v2), case.k(v1), ALL_OWN, ONESELF)
    assert close(case.ours(), clean + naive.byol(case.p(x), case.k(target), own, partner))


# ---- SimSiam and MixSiam

SIAM = dict(head="simsiam2", hidden=16, out=8)


def test_simsiam():
    case = Case("simsiam", **SIAM)
    assert close(case.ours(), naive.simsiam(case.p(v1), case.p(v2), case.z(v1), case.z(v2)))


@pytest.mark.parametrize("aggregate", ["max", "avg"])
@pytest.mark.parametrize("at, theirs", [("raw", "pre"), ("unit", "post")])
def test_mixsiam(aggregate, at, theirs):
    case = Case("mixsiam", aggregate=aggregate, aggregate_at=at, siam_weight=.3, view_share=.4, **SIAM)
    p1, p2, p3 = (case.p(x) for x in (v1, v2, .4*v1 + .6*v2))
    assert close(case.ours(), naive.mixsiam(p1, p2, p3, case.z(v1), case.z(v2), .3, aggregate, theirs))


# ---- SwAV

def scores(case, x):
    "The similarity of unit rows to the prototypes."
    return (F.normalize(case.net(x), dim=1) @ case.net.prototypes.weight.T).detach()


def test_sinkhorn():
    a = scores(Case("swav"), v1)
    assert np.allclose(sinkhorn(a, .1, 3).numpy(), np.array(naive.sinkhorn(a.numpy(), .1, 3)))


def test_swav():
    case = Case("swav", sinkhorn_eps=.1)
    assert close(case.ours(), naive.swap(scores(case, v1).numpy(), scores(case, v2).numpy(), .2, .1, 3))


def test_swav_with_an_empty_queue():
    case = Case("swav", queue=24, sinkhorn_eps=.1)
    assert close(case.ours(), naive.swap(scores(case, v1).numpy(), scores(case, v2).numpy(), .2, .1, 3))


def test_swav_with_a_full_queue():
    "Assignments of a view are balanced over its own queue's rows and the batch's."
    case = Case("swav", queue=24, sinkhorn_eps=.1)
    noise = torch.randn(2, 24, 4, generator=stream(0, "queue"), dtype=torch.float64)
    case.net.queue = F.normalize(noise, dim=2)
    codes, logs = [], []
    for queue, view in zip(case.net.queue, (v1, v2)):
        now, past = scores(case, view), (queue @ case.net.prototypes.weight.T).detach()
        codes.append(np.array(naive.sinkhorn(torch.cat([past, now]).numpy(), .1, 3))[-N:])
        logs.append(F.log_softmax(now/.2, 1).numpy())
    theirs = -((codes[0]*logs[1]).sum(1).mean() + (codes[1]*logs[0]).sum(1).mean())/2
    step = case.step()
    assert close(step.loss.item(), theirs) and [len(k) for k in step.new_keys] == [N, N]


def test_multi_crop():
    small_views = [v[..., ::2, ::2] for v in (v3, v4)]
    case = Case("swav", sinkhorn_eps=.1, small_crops=2, small_size=8)
    seen = [scores(case, v).numpy() for v in (v1, v2, *small_views)]
    assert close(case.ours([v1, v2, *small_views]), naive.multicrop(seen, .2, .1, 3))


@pytest.mark.parametrize("method, reference", [
    ("swav_unmix", naive.unmix_swap), ("swav_codes_unmix", naive.unmix_swap_released)])
def test_unmix_on_swav(method, reference):
    "By the author's formula assignments and predictions are turned round; in the released code assignments alone."
    case = Case(method, sinkhorn_eps=.1, **UNMIX)
    x, own, _ = case.mixed()
    seen = [scores(case, v).numpy() for v in (v1, v2, x)]
    assert close(case.ours(), reference(*seen, own[0], .2, .1, 3))


# ---- W-MSE

def order_of(case):
    "The random order in which a step's batch is parted."
    step = begin_step(case.cfg, None, [v1, v2], y, 3, stream(0, "mix"))
    return torch.randperm(N, generator=torch.Generator().manual_seed(step.gen.initial_seed())).tolist()


def test_whitening():
    z = Case("wmse2").z(v1)
    assert np.allclose(whitened(torch.tensor(z), torch.arange(N), 12).numpy(), np.array(naive.whiten(z)))


@pytest.mark.parametrize("views", [2, 4])
def test_wmse(views):
    case = Case(f"wmse{views}")
    images = (v1, v2, v3, v4)[:views]
    assert close(case.ours(images), naive.wmse([case.z(v) for v in images], order_of(case), 6))


def test_unmix_on_wmse():
    "The batch is turned round before whitening."
    case = Case("wmse2_unmix", **UNMIX)
    x, own, _ = case.mixed()
    order = order_of(case)
    assert close(case.ours(), naive.unmix_wmse2(case.z(v1), case.z(v2), case.z(x), own[0], order, order, 6))


# ---- MixCo

def mixco_loss(q, k, queue, own, partner, tau):
    "Naive: the mixed queries' loss among keys and queue."
    unit_q, unit_k, total = np.array(oracle.unit_rows(q)), np.array(oracle.unit_rows(k)), 0.
    for i in range(len(q)):
        logits = [*(unit_q[i] @ unit_k.T/tau), *(unit_q[i] @ queue.T/tau)]
        lse = oracle.log_sum_exp(logits)
        total += (own[i]*(lse - logits[i]) + (1 - own[i])*(lse - logits[partner[i]]))/len(q)
    return total


def test_mixco_on_moco():
    "The base loss, and half as many mixtures at their own temperature; clean and mixed queries share batch norm."
    case = Case("moco_mixco", mixer="mixup", partner="halves", mix_weight=.7, mix_tau=.05)
    x, own, partner = case.mixed()
    z, k = case.z(torch.cat([v1, x[:N//2]])), case.k(v2)
    clean = naive.moco(z[:N], k, case.queue(), ALL_OWN, ONESELF, .2)
    assert close(case.ours(), clean + .7*mixco_loss(z[N:], k, case.queue(), own, partner, .05))


def test_mixco_on_simclr():
    "Both views are mixed, with half weight each."
    case = Case("mixco", mixer="mixup", partner="halves", mix_weight=.7, mix_tau=.5)
    draw, none = mixer_of(case.cfg), np.zeros((0, 4))
    (x1, w1), (x2, w2) = draw(v1, v1), draw(v2, v2)
    first = mixco_loss(case.z(x1[:N//2]), case.z(v2), none, *split(w1), .5)
    second = mixco_loss(case.z(x2[:N//2]), case.z(v1), none, *split(w2), .5)
    assert close(case.ours(), naive.ntxent(case.z(v1), case.z(v2), .2) + .7*(first + second)/2)


# ---- what a step leaves behind

def test_queue():
    "First in, first out, whatever the batches' sizes."
    net = build(small("moco")).float()
    rows = net.queue.tolist()
    for i in range(4):
        keys = torch.full((10 + i, 4), float(i))
        rows = naive.fifo(rows, keys.tolist(), 24)
        update_state(net, 1., (keys,))
        assert torch.equal(net.queue, torch.tensor(rows))


def test_momentum_encoder():
    net = build(small("moco"))
    slow, fast = net.momentum_encoder["head"][0].weight.clone(), net.head[0].weight.data.add_(1)
    update_state(net, .9)
    moved = naive.ema(slow.flatten().tolist(), fast.flatten().tolist(), .9)
    assert np.allclose(net.momentum_encoder["head"][0].weight.flatten(), moved, atol=1e-6)


@pytest.mark.parametrize("given, rows", [
    (dict(), N), (dict(sides="both", target_view="both"), 2*N), (dict(mixed_views="both"), N)])
def test_only_clean_keys_enter_the_queue(given, rows):
    "Those of the step's views, never of mixtures; the symmetric form's both."
    case = Case("moco_unmix", **UNMIX | given)
    keys = torch.cat(case.step().new_keys)
    assert len(keys) == rows and np.allclose(keys[:N].numpy(), case.k(v2))


def test_inputmix_comes_first():
    "Both views, before anything else; one's own share is at least a half."
    flat = [torch.full((200, 3, 2, 2), value) for value in (0., 1.)]
    dimmed, lit = input_mixed(flat, stream(0, "mix"))
    assert dimmed.max() <= .5 and lit.min() >= .5 and dimmed.mean() > .1


@pytest.mark.parametrize("method, learns", [
    ("npair", True), ("simclr", True), ("simsiam", False), ("byol", False), ("moco", False)])
def test_which_keys_carry_gradient(method, learns):
    "N-pair learns from both sides; SimSiam's keys and the momentum encoder's are behind a stop-gradient."
    case = Case(method)
    step = begin_step(case.cfg, case.net, [v1, v2], y, 3, stream(0, "mix"))
    assert case.cfg.goal.pair(*step.views)[1].requires_grad == learns


def test_frechet_distance():
    draw = stream(0, "features")
    a, b, turn = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (200, 150, 5))
    b = b @ turn
    theirs = naive.fed(a.numpy(), b.numpy())
    assert np.isclose(frechet(F.normalize(a, dim=1), F.normalize(b, dim=1)), theirs)


# ---- other libraries

@pytest.fixture(scope="module")
def lightly():
    return pytest.importorskip("lightly.loss")


@pytest.mark.slow
def test_simclr_is_lightlys(lightly):
    case = Case("simclr")
    assert close(case.ours(), lightly.NTXentLoss(temperature=.2)(case.net(v1), case.net(v2)).item())


@pytest.mark.slow
def test_simsiam_is_lightlys(lightly):
    case, cosine = Case("simsiam", **SIAM), lightly.NegativeCosineSimilarity()
    p1, p2, z1, z2 = (torch.tensor(f(v)) for f in (case.p, case.z) for v in (v1, v2))
    assert close(case.ours(), (cosine(p1, z2) + cosine(p2, z1)).item()/2)


@pytest.mark.slow
def test_byol_is_lightlys(lightly):
    case = Case("byol", sides="one")
    cosine = lightly.NegativeCosineSimilarity()(torch.tensor(case.p(v1)), torch.tensor(case.k(v2)))
    assert close(case.ours(), 2 + 2*cosine.item())


@pytest.mark.slow
def test_swav_is_lightlys(lightly):
    case = Case("swav")
    theirs = lightly.SwaVLoss(temperature=.2, sinkhorn_iterations=3, sinkhorn_epsilon=.05)
    assert close(case.ours(), theirs([scores(case, v) for v in (v1, v2)], []).item())


@pytest.mark.slow
def test_wmse_is_lightlys(lightly):
    "Where a part is the whole batch."
    case = Case("wmse2", white_size=N)
    theirs = lightly.wmse_loss.WMSELoss(embedding_dim=4, w_size=N, track_running_stats=False)
    assert close(case.ours(), theirs(torch.tensor(np.concatenate([case.z(v1), case.z(v2)]))).item())


@pytest.mark.slow
def test_simclr_is_pytorch_metric_learnings():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    case = Case("simclr")
    z = torch.cat([case.net(v1), case.net(v2)])
    assert close(case.ours(), losses.NTXentLoss(temperature=.2)(z, torch.arange(N).repeat(2)).item())


# ---- SupContrast's arguments, and its formula written as loops

def supcontrast(z, mask, tau, base, one):
    "SupContrast's loss of unit features z[i][view]: anchors are all rows, or with `one` those of view 1."
    rows = [(i, v) for v in range(z.shape[1]) for i in range(len(z))]
    losses = []
    for i, v in rows:
        if one and v:
            continue
        others = [(j, u) for j, u in rows if (j, u) != (i, v)]
        total = sum(math.exp(z[i, v] @ z[j, u]/tau) for j, u in others)
        terms = [mask[i, j]*(z[i, v] @ z[j, u]/tau - math.log(total)) for j, u in others]
        mass = sum(mask[i, j] for j, u in others)
        losses.append(-tau/base*sum(terms)/mass if mass > 1e-6 else torch.zeros(()))
    return float(sum(losses))/len(losses)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("kind", ["labels", "none", "mask", "one way", "soft", "nobody"])
def test_supcon_is_supcontrasts(kind, mode, views):
    gen = stream(0, kind)
    z = F.normalize(torch.randn(7, views, 5, generator=gen, dtype=torch.float64), dim=2)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    same = (labels[:, None] == labels).double()
    mask = dict(none=torch.eye(7).double(), soft=torch.rand(7, 7, generator=gen, dtype=torch.float64),
                nobody=same - torch.eye(7)).get(kind, same.tril() if kind == "one way" else same)
    given = dict(labels=labels) if kind == "labels" else {} if kind == "none" and views > 1 else dict(mask=mask)
    expected = supcontrast(z, mask, .2, .07, mode == "one")
    assert close(SupConLoss(.2, mode, .07)(z, **given).item(), expected)
    if mode == "all" and (views > 1 or kind != "labels"):   # alone, an image of a class of its own is not counted
        assert close(supcon(z, tau=.2, base_tau=.07, **given).item(), expected)
    assert close(SupConLoss(.2, mode, .07)(2*z, **given).item(), expected)   # rows are made unit


def test_supcon_says_what_is_wrong():
    z, y = torch.randn(4, 2, 3), torch.arange(4)
    for call, sentence in (
            (lambda: supcon(z, y, mask=torch.eye(4)), "pass one of them"),
            (lambda: supcon(z, mask=torch.eye(8)), r"mask must be \(4, 4\)"),
            (lambda: supcon(z, mask=-torch.eye(4)), "at least 0"),
            (lambda: SupConLoss()(z[:, 0], y), r"torch.stack\(\[z1, z2\], 1\)"),
            (lambda: SupConLoss()(z, y[:3]), "one for each image")):
        with pytest.raises(ValueError, match=sentence):
            call()
    assert torch.equal(SupConLoss()(z, y[:, None]), SupConLoss()(z, y))   # a column of labels, as SupContrast takes


# ---- mix in anybody's loop

@pytest.mark.parametrize("mixer", MIXERS)
def test_alpha_0_mixes_nothing(mixer):
    "Neither in `mix`, for any partner and λ, nor as an option, which names the one that does it."
    for partner in PARTNERS:
        for lam_per in ("sample", "batch"):
            x, w = mix(v1, v2, stream(0, "mix"), mixer, 0, lam_per, partner)
            assert torch.equal(x, v1) and torch.equal(w, torch.eye(N))
    if mixer in GUIDED:   # which looks at images through a network
        assert f"mixer {mixer} needs the {GUIDED[mixer]} of the images" in refused(mix, v1, v2, stream(0, "mix"), mixer)
    else:
        assert mix(v1, v2, stream(0, "mix"), mixer, 1e-3)[0].isfinite().all()
    assert "for no mixing pass mixer none" in refused(configure, "mixsupcon", mixer=mixer, alpha=0)


@pytest.mark.parametrize("wrong", [
    (v1,), (v1, y), (v1, y, 0), (y, v1, stream(0, "mix")), (v1, stream(0, "mix")), (v1, v2), (v1, v2, 0),
    (v1, v2[:3], stream(0, "mix")), (v1.numpy(), v2, stream(0, "mix")), (v1, v2, stream(0, "mix"), "mixup", -1),
    (v1, v2, stream(0, "mix"), "mixup", math.nan), (v1, v2, stream(0, "mix"), "mixup", math.inf)])
def test_a_wrong_argument_of_mix_is_a_sentence(wrong):
    sentence = refused(mix, *wrong)
    assert "must be" in sentence and "\n" not in sentence
    assert "w @ labels" in refused(mix, v1, v2, stream(0, "mix"), labels=y)


def test_titles():
    "As papers call them: by goal and strategy, and no two alike."
    titles = {name: row.title for name, row in METHODS.items()}
    assert len({*titles.values()}) == len(titles) and all(titles.values())
    expected = dict(moco_imix="MoCo v2 + i-Mix", simclr="SimCLR", supcon="SupCon", mixsupcon="MixSupCon",
                    wmse4_unmix="W-MSE 4 + Un-Mix", simclr_imix="SimCLR + i-Mix", byol_unmix="BYOL + Un-Mix")
    assert {name: titles[name] for name in expected} == expected
    by_paper = dict(automix="AutoMix", amix="AMix", amix_i="AMix-I", amix_c="AMix-C")   # what they add has this name
    assert {name: titles[name] for name in by_paper} == by_paper
    for name, row in METHODS.items():
        if row.base in METHODS and name != row.base and name not in by_paper:
            assert titles[name].startswith(titles[row.base]), name
