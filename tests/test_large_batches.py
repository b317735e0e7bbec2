"The loss of large batches: by sums as by pairs and by loops, values and gradients, in a fraction of the memory."
from itertools import product
from weakref import WeakSet

import numpy as np
import oracle
import pytest
import torch
from mixsupcon.core import losses
from mixsupcon.core.losses import (LARGE, SIMILARITIES, Ids, Mask, Rows, by_pairs, by_sums, contrastive, masked,
                                   strips, supcon)
from mixsupcon.core.options import Refusal
from pytorch_metric_learning.losses import SupConLoss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SWITCHES = [*product(("row", "global"), ("pairs", "anchor"), ("skip", "zero"), (False, True))]


def batch(seed, m, d=6, c=4, dtype=torch.float64):
    "Embeddings, mixed label rows and class ids; row 1 of embeddings is zero, and nobody shares the label of row 2."
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(m, d)), rng.integers(c - 1, size=m)
    z[1 % m], y[2 % m] = 0, c - 1
    lam, partner = rng.random((m, 1)), rng.permutation(m)
    partner[partner == 2 % m] = 0
    t = lam*np.eye(c)[y] + (1 - lam)*np.eye(c)[y[partner]]
    t[2 % m] = np.eye(c)[-1]
    return torch.tensor(z, dtype=dtype), torch.tensor(t, dtype=dtype), torch.tensor(y)


def value_and_slope(function, z, *args, **kwargs):
    z = z.clone().requires_grad_()
    loss = function(z, *args, **kwargs)
    loss.backward()
    return loss.detach(), z.grad


def assert_same(ours, theirs, rtol=1e-10):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*max(1e-3, b.abs().max().item()))


@pytest.fixture(params=[1, 32])
def strips_of(request, monkeypatch):
    "Strips of so many rows: one by one, or with a rest."
    def strips(m, device):
        return [slice(i, min(i + request.param, m)) for i in range(0, m, request.param)]
    monkeypatch.setattr(losses, "strips", strips)


@pytest.mark.parametrize("strips_of", [5], indirect=True)
@pytest.mark.parametrize("m", [2, 17, 34])
def test_by_loops(m, strips_of):
    "Every combination of the switches, at a sharp and a flat temperature."
    z, t, _ = batch(m, m)
    for (label_sim, rows), tau, (denominator, *how) in product(SIMILARITIES.items(), (.01, .5), SWITCHES):
        ours = by_sums(z, Rows(rows(t)), tau, denominator, *how).item()
        theirs = oracle.contrastive(z, t, tau, denominator, how[0], label_sim, *how[1:])
        assert abs(ours - theirs) < 1e-9*max(1, abs(theirs)), (label_sim, tau, denominator, how)


@pytest.mark.parametrize("m", [2, 35])
def test_by_pairs(m, strips_of):
    "Losses and gradients, of label rows and of class ids, of all anchors and of some."
    z, t, y = batch(m, m)
    for (tau, anchors), switches in product(((.01, None), (.5, m//2)), SWITCHES):
        how = tau, *switches, anchors
        assert_same(value_and_slope(by_sums, z, Rows(t), *how), value_and_slope(by_pairs, z, t @ t.T, *how))
        same = y[:, None] == y
        assert_same(value_and_slope(by_sums, z, Ids.of(y), *how), value_and_slope(by_pairs, z, same, *how))


@pytest.mark.parametrize("views", [1, 3])
def test_by_masks(views, strips_of):
    "A mask need not be symmetric, and an image may have several views; it may attract its own views or not."
    z, rng = batch(0, 12*views)[0], np.random.default_rng(views)
    for mask in (torch.tensor(rng.random((12, 12)) < .3), torch.tensor(rng.random((12, 12))), torch.eye(12)):
        for *switches, anchors in product(("row", "global"), ("pairs", "anchor"), ("skip", "zero"), (None, 12)):
            how = .2, *switches[:3], False, anchors
            theirs = value_and_slope(by_pairs, z, mask.repeat(views, views), *how)
            assert_same(value_and_slope(by_sums, z, Mask(mask), *how), theirs)


def test_form_is_chosen_by_size():
    "Below the limit, or where labels learn, by pairs; from it on by sums; to the last bit."
    z, t, y = batch(2, LARGE)
    for rows, form, phi in ((LARGE - 1, by_pairs, lambda t: t @ t.T), (LARGE, by_sums, Rows)):
        assert contrastive(z[:rows], t[:rows], .1) == form(z[:rows], phi(t[:rows]), .1)
    same = y[:, None] == y
    how = dict(normalizer="anchor", empty="zero")
    assert contrastive(z, y, .1, **how) == supcon(z, y, .1, empty="zero") == by_sums(z, Ids.of(y), .1, **how)
    assert masked(z, same, .1) == by_sums(z, Mask(same), .1, **how)
    images = Ids(torch.arange(LARGE//2).repeat(2))
    assert supcon(z.view(2, -1, 6).transpose(0, 1), tau=.1) == by_sums(z, images, .1, normalizer="anchor")
    learned = t.clone().requires_grad_()
    contrastive(z, learned, .1).backward()
    assert contrastive(z, learned, .1) == by_pairs(z, t @ t.T, .1) and learned.grad.any()


def supcontrast(z, y, tau):
    "SupContrast's loss as its paper has it: a mean over anchors of the mean log-probability of their positives."
    u = torch.nn.functional.normalize(z, dim=1)
    own = torch.eye(len(z), dtype=torch.bool)
    positive = (y[:, None] == y) & ~own
    logits = u @ u.T/tau
    logits = logits - logits.amax(1, keepdim=True).detach()
    log_prob = logits - logits.exp().masked_fill(own, 0).sum(1, keepdim=True).log()
    return -((positive*log_prob).sum(1)/positive.sum(1)).mean()


def test_others_code():
    "SupContrast's formula and pytorch-metric-learning, at a size that is taken by sums."
    z, _, y = batch(3, LARGE + 7)
    z[1], y[2] = z[0].flip(0), 0   # both divide by zero where a row has no direction or no positive
    ours = value_and_slope(supcon, z, y, .1)
    assert_same(ours, value_and_slope(supcontrast, z, y, .1))
    assert_same(ours, value_and_slope(SupConLoss(temperature=.1), z, y))


class Alive(TorchDispatchMode):
    "The most bytes that tensors made meanwhile hold at once, and the names of the operations."

    def __init__(self):
        super().__init__()
        self.held, self.most, self.operations = WeakSet(), 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.held.update(v.untyped_storage() for v in tree_leaves(made) if isinstance(v, torch.Tensor))
        self.most = max(self.most, sum(storage.nbytes() for storage in self.held))
        self.operations.add(function._schema.name)
        return made


def memory(function, z, *args, **kwargs):
    "The most bytes that a loss and its gradient hold, and their operations."
    with Alive() as alive:
        function(z.clone().requires_grad_(), *args, **kwargs).backward()
    return alive


def test_memory_is_counted():
    with Alive() as alive:
        a = torch.zeros(1000)
        b = a[3:] + 1   # noqa: F841
        del a
        torch.zeros(500)
    assert alive.most == 4*1997


@pytest.mark.slow
def test_memory():
    "Strips of a 128th of the rows, as 32,768 rows have: under an eighth of one matrix, of rows, ids and masks."
    for device in ("cpu", "cuda"):
        assert max(rows.stop - rows.start for rows in strips(2**15, torch.device(device))) == 2**15//128
    m = 4096
    z, t, y = batch(0, m, 8, 10, dtype=torch.float32)
    mask = y[:m//2, None] == y[:m//2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "strips", lambda m, device: [slice(i, i + m//128) for i in range(0, m, m//128)])
        for function, labels in ((contrastive, t), (contrastive, y), (masked, mask)):
            assert memory(function, z, labels).most < 4*m**2/8
    z, t = z[:500], t[:500]
    assert memory(by_pairs, z, t @ t.T, .07).most > 5*4*500**2   # what the count says of the plain form


def test_nothing_waits_for_the_device():
    "No number is brought to the host, and no shape depends on numbers."
    z, t, _ = batch(4, LARGE, dtype=torch.float32)
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::masked_select", "aten::equal"}
    for label_sim, switches in zip([*SIMILARITIES]*2, SWITCHES[::3]):
        denominator, normalizer, *how = switches
        alive = memory(contrastive, z, t, .1, denominator, normalizer, label_sim, *how)
        assert "aten::mm" in alive.operations and not alive.operations & waits


def error(function, z, labels, double):
    "How far loss and gradient in float32 are from those in float64, the latter as a share of the largest entry."
    (loss, slope), (true, right) = value_and_slope(function, z.float(), labels), double
    return abs(loss/true - 1).item(), ((slope - right).abs().max()/right.abs().max()).item()


@pytest.mark.slow
def test_single_precision():
    "At 4,096 rows of 128, with hard, mixed and nearly unshared labels: as exact as by pairs."
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(4096, 128, generator=gen)
    y = torch.randint(100, (4096,), generator=gen)
    hard = torch.eye(4096)[:, :100][y]
    mixed = .7*hard + .3*hard.flip(0)
    own = torch.cat([torch.eye(4096), hard*1e-3], 1)   # a class of its own, and a thousandth of a shared one
    for t in (hard, mixed, own):
        double = value_and_slope(lambda z, t: contrastive(z, t.double(), normalizer="anchor"), z.double(), t)
        loss, slope = error(lambda z, t: contrastive(z, t, normalizer="anchor"), z, t, double)
        assert loss < 1e-6 and slope < 5e-6, (loss, slope)


def test_half_precision_around():
    "Autocast changes neither loss nor gradient, also if backward is within."
    z, t, _ = batch(5, LARGE, dtype=torch.float32)
    plain = value_and_slope(contrastive, z, t)
    with torch.autocast("cpu", torch.bfloat16):
        within = value_and_slope(contrastive, z, t)
    assert all(map(torch.equal, plain, within))
    assert value_and_slope(contrastive, z.bfloat16(), t)[0].dtype == torch.float32


@pytest.mark.slow
def test_compiled():
    "As one graph."
    z, t, _ = batch(6, LARGE + 1, dtype=torch.float32)
    compiled = torch.compile(contrastive, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, value_and_slope(contrastive, z, t), value_and_slope(compiled, z, t)))


def test_second_derivatives_are_refused():
    z, t, _ = batch(7, LARGE)
    z.requires_grad_()
    with pytest.raises(Refusal, match="no second derivative: leave out create_graph, or call by_pairs"):
        torch.autograd.grad(contrastive(z, t), z, create_graph=True)
    slope, = torch.autograd.grad(by_pairs(z, t @ t.T, .1), z, create_graph=True)
    assert torch.autograd.grad((slope*slope).sum(), z)[0].any()
    with torch.no_grad():
        assert not contrastive(z, t).requires_grad
