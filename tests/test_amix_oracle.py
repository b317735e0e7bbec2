"AMix's code against loops in float64, written from the formulas by somebody who had not seen it: values and gradients."
from copy import deepcopy
from functools import cached_property
from itertools import product

import amix_oracle
import numpy as np
import oracle
import pytest
import torch
from mixsupcon.core import learned_mixers, saliency
from mixsupcon.core.clusters import Clusters
from mixsupcon.core.learned_mixers import saliency_of_views
from mixsupcon.core.methods import begin_step, loss_of
from mixsupcon.core.mix_block import (ATTENTIONS, CONTENTS, LAM_ENCODINGS, MASKS, UPSAMPLINGS, MixBlock, adjusted,
                                      by_mask, constant_near_ends, mask_loss, stage)
from mixsupcon.core.mixers import mix
from mixsupcon.core.models import update_state
from mixsupcon.core.options import stream
from small import build, small


def double(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)


def assert_same(ours, theirs, arrays, seed=0, directions=4):
    "Two scalar functions of named arrays have the same value, and the same slope along random directions."
    tensors = {name: double(x) for name, x in arrays.items()}
    value = ours(tensors)
    assert abs(value.item() - theirs(arrays)) < 1e-10
    slopes = torch.autograd.grad(value, tuple(tensors.values()), allow_unused=True)
    rng = np.random.default_rng(seed)
    for _ in range(directions):
        along = {name: rng.normal(size=np.shape(x)) for name, x in arrays.items()}
        length = np.sqrt(sum((d**2).sum() for d in along.values()))
        along = {name: d/length for name, d in along.items()}

        def moved(t, along=along):
            return theirs({name: x + t[0]*along[name] for name, x in arrays.items()})
        by_autograd = sum((g*double(d)).sum().item() for g, d in zip(slopes, along.values(), strict=True)
                          if g is not None)
        by_differences = amix_oracle.gradient(moved, [0.], 1e-5)[0]   # so short a step seldom crosses a kink of ReLU
        assert abs(by_autograd - by_differences) < 1e-8*max(1, abs(by_differences))


# ---------------------------------------------------------------- the block

NAMES = {"attention.query": "query", "attention.key": "key", "content.0": "content", "content.3": "out"}


def named_weights(state):
    "The oracle's names of a block's weights; one projection is both query and key."
    weights = {}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        suffix = "" if kind == "weight" else "_bias"
        value = np.asarray(value)
        if kind == "gamma":
            weights["gamma"] = value
        elif part == "content.1":
            weights[f"norm_{kind.removeprefix('running_')}"] = value
        elif part == "attention.projection":
            weights["query" + suffix] = weights["key" + suffix] = value.reshape(value.shape[:2])
        else:
            weights[NAMES[part] + suffix] = value.reshape(value.shape[:2])
    return weights


def filled_block(rng, **how):
    "A block without dropout whose weights, γ and running statistics are random."
    block = MixBlock(4, dropout=0., **how).double()
    state = {}
    for name, value in block.state_dict().items():
        positive = name.endswith(("var", "gamma", "content.1.weight"))
        drawn = rng.uniform(.3, .9, value.shape) if positive else rng.normal(size=value.shape)
        state[name] = torch.tensor(drawn) if value.is_floating_point() else value
    block.load_state_dict(state)
    return block


BLOCKS = [dict(lam=lam, lam_curve=curve, content=content, attention=attention, upsampling=upsampling, sigmoid=sigmoid)
          for lam, curve, content, attention, upsampling, sigmoid in product(
              LAM_ENCODINGS, (0., .25), CONTENTS, ATTENTIONS, UPSAMPLINGS, MASKS) if lam == "fixed" or not curve]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", range(len(BLOCKS)))
def test_mix_block(case, training):
    "Every combination of the options; slopes in features, λ and all weights."
    how, rng = BLOCKS[case], np.random.default_rng(case)
    block = filled_block(rng, **how).train(training)
    n, size = 3, [(5, 6), (4, 6), (2, 3)][case % 3]
    coefficients = rng.normal(size=(n, 1, *size))
    learned = dict(block.named_parameters())
    constant = {name: x for name, x in block.state_dict().items() if name not in learned}
    arrays = dict(ha=rng.normal(size=(n, 4, 2, 3)), hb=rng.normal(size=(n, 4, 2, 3)),
                  lam=rng.uniform(size=n if case % 2 else 1)) | {k: v.detach().numpy() for k, v in learned.items()}

    def ours(x):
        inputs = [x[name] for name in ("ha", "hb", "lam")]
        state = {name: x[name] for name in learned} | {name: value.clone() for name, value in constant.items()}
        return (torch.func.functional_call(block, state, (*inputs, size))*torch.tensor(coefficients)).sum()

    def theirs(x):
        weights = named_weights({name: x[name] for name in learned} | constant)
        mask = amix_oracle.mix_block(x["ha"], x["hb"], x["lam"], size, weights, how["lam"], how["lam_curve"],
                                     how["content"], how["attention"], how["upsampling"], how["sigmoid"], training)
        return (mask*coefficients).sum()
    assert_same(ours, theirs, arrays, seed=case, directions=1)


def test_running_statistics():
    "Batch norm inside the block sees the first images' features alone."
    rng = np.random.default_rng(0)
    block = filled_block(rng, lam="fixed").train()
    ha, hb, lam = rng.normal(size=(3, 4, 2, 3)), rng.normal(size=(3, 4, 2, 3)), rng.uniform(size=3)
    before = named_weights(block.state_dict())
    before = {name: value.copy() for name, value in before.items()}
    block(double(ha), double(hb), double(lam), (4, 6))
    scaled = [amix_oracle.with_lam(h, share, "fixed", 1.) for h, share in zip(ha, lam, strict=True)]
    hidden = amix_oracle.conv1x1(scaled, before["content"], before["content_bias"])
    norm = [before[f"norm_{name}"] for name in ("weight", "bias", "mean", "var")]
    _, centre, variance = amix_oracle.batch_norm(hidden, *norm, training=True)
    assert np.allclose(block.content[1].running_mean.numpy(), centre, atol=1e-12)
    assert np.allclose(block.content[1].running_var.numpy(), variance, atol=1e-12)


def test_automix_block_shares_its_projection():
    "Query and key of AutoMix are one layer, those of AMix two."
    assert [name for name, _ in ATTENTIONS["cross"](4, 2).named_children()] == ["projection"]
    assert sorted(name for name, _ in ATTENTIONS["self"](4, 2).named_children()) == ["key", "query"]


# ---------------------------------------------------------------- laws of the mask

SHARES = dict(image=np.array([.1, .45, .8, .95]), batch=np.array([.3]))


def masks(seed, n=4):
    return np.random.default_rng(seed).uniform(size=(n, 1, 3, 4))**(seed % 3 + 1)


@pytest.mark.parametrize("shares, mean_of", [("image", "image"), ("batch", "image"), ("batch", "batch")])
@pytest.mark.parametrize("slack, variance", [*product((0., .1, .3), (0., 2.))])
def test_mask_loss(slack, variance, shares, mean_of):
    "The mean over a batch goes with one λ for all."
    how = slack, variance, mean_of
    for seed in range(3):
        assert_same(lambda x: mask_loss(x["mask"], x["lam"], *how),
                    lambda x: amix_oracle.mask_loss(x["mask"], x["lam"], *how),
                    dict(mask=masks(seed), lam=SHARES[shares]), directions=2)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("margin", [0., .1, .5])
def test_adjusted(margin, shares):
    "Above, below and within the margin."
    for seed in range(3):
        coefficients = np.random.default_rng(9).normal(size=(4, 1, 3, 4))
        arrays = dict(mask=masks(seed), lam=SHARES[shares])
        assert_same(lambda x: (adjusted(x["mask"], x["lam"], margin)*torch.tensor(coefficients)).sum(),   # noqa: B023
                    lambda x: (amix_oracle.adjusted(x["mask"], x["lam"], margin)*coefficients).sum(),   # noqa: B023
                    arrays, directions=2)
        ours = adjusted(*map(double, arrays.values()), margin).detach().numpy()
        assert np.allclose(ours, amix_oracle.adjusted(*arrays.values(), margin), atol=1e-12)
        if margin == 0:
            assert np.allclose(ours.mean((1, 2, 3)), arrays["lam"], atol=1e-12)


@pytest.mark.parametrize("lam", [[.08], [.0801], [.5], [.92], [.9199], [0.], [1.], [.02, .5, .97, .08]])
def test_constant_near_ends(lam):
    ours = constant_near_ends(double(masks(1)), double(lam), .08)
    assert np.allclose(ours.detach().numpy(), amix_oracle.constant_near_ends(masks(1), lam), atol=1e-12)


def test_by_mask():
    rng = np.random.default_rng(0)
    xa, xb, lam = rng.normal(size=(4, 3, 3, 4)), rng.normal(size=(4, 3, 3, 4)), double([.3, .4, .5, .6])
    mixed, share = by_mask(double(xa), double(xb), lam, None, double(masks(0)))
    assert np.allclose(mixed.detach().numpy(), amix_oracle.blend(xa, xb, masks(0)), atol=1e-12)
    assert torch.equal(share, lam)


# ---------------------------------------------------------------- losses of a mixture

N, D, C, M, TAU = 6, 3, 4, 9, .3


def unit(x):
    return torch.nn.functional.normalize(x, dim=1)


def pairs(seed, classes=C):
    "Labels of images, partners and a queue; partners are of another class where there is more than one."
    rng = np.random.default_rng(seed)
    y, p = np.arange(N) % classes, (np.arange(N) + 1) % N
    y[-1] = 1   # not the class of its partner, image 0
    arrays = dict(q=rng.normal(size=(N, D)), ki=rng.normal(size=(N, D)), kj=rng.normal(size=(N, D)),
                  logits=rng.normal(size=(N, C)), queue=rng.normal(size=(M, D)), lam=rng.uniform(size=N))
    return arrays, y, p, rng.integers(classes, size=M)


def mixed(x, y, p):
    y = torch.tensor(y)
    return learned_mixers.Mixed(q=unit(x["q"]), ki=unit(x["ki"]), kj=unit(x["kj"]), lam=x["lam"], yi=y, yj=y[p],
                                logits=x["logits"], tau=TAU)


def alike(y, other):
    "Which rows of the queue have the class of each image."
    return torch.tensor(np.asarray(y)[:, None] == np.asarray(other)[None])


@pytest.mark.parametrize("seed", range(3))
def test_losses_by_class(seed):
    arrays, y, p, _ = pairs(seed)
    weights = np.random.default_rng(seed + 9).uniform(size=C)
    assert_same(lambda x: learned_mixers.ce(mixed(x, y, p)),
                lambda x: amix_oracle.ce(x["logits"], y, y[p], x["lam"]), arrays)
    assert_same(lambda x: learned_mixers.ce(mixed(x, y, p), torch.tensor(weights)),
                lambda x: amix_oracle.ce(x["logits"], y, y[p], x["lam"], weights), arrays)
    assert_same(lambda x: learned_mixers.pbce(mixed(x, y, p)),
                lambda x: amix_oracle.pbce(x["logits"], y, y[p], x["lam"]), arrays)


def test_between_two_of_one_class():
    "There is one class to choose from: no loss and no slope."
    arrays, y, p, _ = pairs(0)
    for one_class in (y*0, y % 2):
        assert_same(lambda x: learned_mixers.pbce(mixed(x, one_class, p)),   # noqa: B023
                    lambda x: amix_oracle.pbce(x["logits"], one_class, one_class[p], x["lam"]), arrays)   # noqa: B023


@pytest.mark.parametrize("seed", range(3))
def test_losses_by_key(seed):
    "Either key alone against the other, against a queue, and against the part of the queue of other classes."
    arrays, y, p, y_queue = pairs(seed)
    none = torch.zeros(N, M, dtype=torch.bool)

    def names(x):
        return x["q"], x["ki"], x["kj"], x["lam"], TAU
    assert_same(lambda x: learned_mixers.bce(mixed(x, y, p)), lambda x: amix_oracle.bce(*names(x)), arrays)
    assert_same(lambda x: learned_mixers.infonce_pair(mixed(x, y, p), unit(x["queue"]), (none, none)),
                lambda x: amix_oracle.infonce(*names(x), x["queue"]), arrays)
    left_out = alike(y, y_queue), alike(y[p], y_queue)
    assert_same(lambda x: learned_mixers.infonce_pair(mixed(x, y, p), unit(x["queue"]), left_out),
                lambda x: amix_oracle.infonce_labels(*names(x), x["queue"], y, y[p], y_queue), arrays)


# ---------------------------------------------------------------- clusters

@pytest.mark.parametrize("seed, n, k, smallest, every, drift", [
    (0, 200, 4, 5, 10, 0.), (1, 200, 4, 20, 10, .2), (2, 200, 8, 10, 10, .5), (3, 120, 6, 8, 3, .1)])
def test_clusters(seed, n, k, smallest, every, drift):
    "Step by step: features that drift apart dissolve clusters and split others, which any way of halving may do."
    gen, width = torch.Generator().manual_seed(seed), 3
    clusters = Clusters(k, width, every=every, smallest=smallest, seed=seed).double()
    clusters.fill(torch.randn(n, width, generator=gen, dtype=torch.float64))
    splits = 0
    for step in range(1, 41):
        rows = torch.randperm(n, generator=gen)[:16]
        features = torch.randn(16, width, generator=gen, dtype=torch.float64)
        features[:, 0] += drift*step
        before = [x.clone().numpy() for x in (clusters.bank, clusters.labels, clusters.centroids)]
        clusters.update(rows, features)
        bank, labels, centroids, empty = amix_oracle.odc_step(*before, rows.tolist(), features.numpy(), step,
                                                              every=every, smallest=smallest)
        assert np.allclose(clusters.bank.numpy(), bank, atol=1e-12)
        ours = clusters.labels.tolist()
        assert not amix_oracle.odc_split_faults(labels, ours, empty, k)
        assert empty or ours == labels
        means = amix_oracle.cluster_means(bank, ours, centroids)
        for c in range(k):
            moved = c in empty or [label == c for label in ours] != [label == c for label in labels]
            assert np.allclose(clusters.centroids[c].numpy(), means[c] if moved else centroids[c], atol=1e-12)
        splits += len(empty)
    assert bool(splits) == bool(drift)
    assert np.allclose(clusters.weights().numpy(), amix_oracle.odc_weights(ours, k), atol=1e-6)


# ---------------------------------------------------------------- PuzzleMix

def puzzles(seed, side=16, n=3):
    "Images and partners whose channels go from 0 to 1, their saliency, and λ."
    rng = np.random.default_rng(seed)
    x = rng.random((2, n, 3, side, side))
    x[0, 0, :, 0, 0], x[1, 1, :, 1, 1] = 0, 1
    return *x, *rng.random((2, n, side, side))**2, rng.uniform(size=n)


def tensors(*arrays):
    return [torch.tensor(x) for x in arrays]


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("b", [2, 4, 8])
def test_puzzle_costs(b, levels):
    "Saliency, prior and smoothness of each block and border, in whole numbers; edges count squares of whole steps."
    xa, xb, sa, sb, lam = puzzles(b)
    unary, weight = saliency.puzzle_costs(*tensors(xa, xb, lam, sa, sb), b, levels)
    for i in range(3):
        costs, down, right = amix_oracle.puzzle_terms(xa[i], xb[i], sa[i], sb[i], lam[i], b, levels)
        scale = 1000*b**2
        assert np.abs(unary[i].T.reshape(b, b, levels) - (levels - 1)**2*scale*costs).max() <= 1
        assert np.abs(weight[i] - scale*np.concatenate([down.ravel(), right.ravel()])).max() <= 1


def test_the_split_of_smoothness_is_exact():
    "Of two labels: all labellings cost what the images' differences say, up to one constant."
    (xa, *_), (xb, *_), (sa, *_), (sb, *_), (lam, *_) = puzzles(0)
    terms = amix_oracle.puzzle_terms(xa, xb, sa, sb, lam, 2, 2)
    gaps = []
    for labels in product(product(range(2), repeat=2), repeat=2):
        direct = amix_oracle.puzzle_direct_energy(labels, xa, xb, sa, sb, lam, 2)
        gaps.append(amix_oracle.puzzle_energy(labels, *terms) - direct)
    assert np.ptp(gaps) < 1e-12 < abs(gaps[0])


@pytest.mark.parametrize("size, levels", [((2, 2), 2), ((2, 2), 3), ((2, 3), 3), ((3, 3), 2), ((3, 4), 2)])
def test_cuts(size, levels):
    "The least of all labellings: squared steps by one cut, Potts by swaps, which never are above one label everywhere."
    (high, wide), rng = size, np.random.default_rng(sum(size))
    ends, steps = saliency.grid_ends(high, wide), np.arange(levels)
    squares, potts = (steps[:, None] - steps)**2, 1 - np.eye(levels, dtype=int)
    for _ in range(3):
        costs = rng.integers(100, size=(high, wide, levels))
        down, right = rng.integers(60, size=(high - 1, wide)), rng.integers(60, size=(high, wide - 1))
        unary = costs.reshape(1, -1, levels).transpose(0, 2, 1)
        weight = np.concatenate([down.ravel(), right.ravel()])[None]
        cut = saliency.level_cut(unary, weight, ends)
        least = amix_oracle.lowest_grid_energy(costs, down*(levels - 1)**2, right*(levels - 1)**2)
        assert saliency.energy(cut, unary, weight, ends, squares)[0] == least
        swapped = saliency.swap(rng.integers(levels, size=(1, high*wide)), unary, weight, ends, potts)
        reached = saliency.energy(swapped, unary, weight, ends, potts)[0]
        least = amix_oracle.lowest_grid_energy(costs, down, right, potts=True)
        assert least <= reached <= costs.sum((0, 1)).min()
        assert levels > 2 or reached == least


@pytest.mark.parametrize("seed", range(8))
def test_transport(seed):
    "The cheapest permutation on two patches a side; on four never dearer than to stay, or than the released rounds."
    rng = np.random.default_rng(seed)
    for across in (2, 4):
        worth = amix_oracle.unit_sum(rng.random((across, across))**3)
        seen = rng.choice([0., .5, 1.], size=(across, across))
        plan = saliency.transport_plan(*tensors(worth.reshape(1, -1), seen.reshape(1, -1)))[0].tolist()
        costs = amix_oracle.transport_costs(worth, seen)
        assert sorted(plan) == list(range(across**2))
        ours = sum(costs[i, j] for j, i in enumerate(plan)) - 1e-12
        assert across == 4 or ours <= amix_oracle.cheapest_transport(costs)
        released = amix_oracle.transport_rounds(costs, 16)
        assert ours <= costs.trace() and sorted(released) == list(range(across**2))
        assert ours <= sum(costs[i, j] for i, j in enumerate(released))


@pytest.mark.parametrize("side", [4, 8, 16])
def test_puzzlemix(side):
    "The cheapest mask of two blocks a side; then the patches of both images, moved, where it shows them."
    xa, xb, sa, sb, lam = puzzles(side, side)
    masks = {b: np.asarray(saliency.puzzle_mask(*tensors(xa, xb, lam, sa, sb), b=b))
             for b in saliency.block_counts((side, side))}
    for i in range(3):
        terms = amix_oracle.puzzle_terms(xa[i], xb[i], sa[i], sb[i], lam[i], 2)
        ours = amix_oracle.puzzle_energy((2 - 2*masks[2][i]).astype(int), *terms)
        assert abs(ours - amix_oracle.lowest_energy(*terms)[1]) < 5/4000   # of five or so whole numbers

    for seed in range(3):   # the number of blocks is drawn
        mixed, share = saliency.puzzlemix(*tensors(xa, xb, lam), torch.Generator().manual_seed(seed), *tensors(sa, sb))
        gaps = []
        for b, mask in masks.items():
            theirs = [puzzle(b, side, mask[i], (xa[i], sa[i]), (xb[i], sb[i])) for i in range(3)]
            gaps.append(max(np.abs(mixed.numpy() - theirs).max(), np.abs(share.numpy() - mask.mean((1, 2))).max()))
        assert min(gaps) < 1e-6


def puzzle(b, side, mask, *images):
    "A mixture, from its mask (b, b) and the plans of transport."
    across = b*saliency.patches_per_block((side, side), b)
    total = 0
    for shown, (x, s) in zip((mask, 1 - mask), images, strict=True):
        worth = amix_oracle.puzzle_unary(s, across)
        seen = amix_oracle.nearest(shown, (across, across))
        plan = saliency.transport_plan(*tensors(worth.reshape(1, -1), seen.reshape(1, -1)))[0].tolist()
        places = [plan.index(i) for i in range(across**2)]
        total = total + amix_oracle.nearest(shown, (side, side))*amix_oracle.move_patches(x, places, side//across)
    return total


# ---------------------------------------------------------------- Co-Mixup

def sets(seed, m=5):
    "The saliency of a set of images, their conflicts, and their costs by block, with and without the prior."
    s = np.random.default_rng(seed).random((m, 16, 16))**2
    conflicts = np.asarray(saliency.conflicts(torch.tensor(s)))
    costs = np.asarray(saliency.set_costs(torch.tensor(s), torch.Generator().manual_seed(seed)))
    return s, conflicts, costs, amix_oracle.comixup_unary(s)


@pytest.mark.parametrize("seed", range(3))
def test_comixup_costs(seed):
    "Distances between peaks on an 8×8 grid; minus saliency, and one prior for all blocks of an image."
    s, conflicts, costs, unary = sets(seed)
    distances = np.array(amix_oracle.peak_distances([amix_oracle.block_means(one, 2) for one in s]))
    assert np.allclose(conflicts, amix_oracle.comixup_affinity(distances*len(s)/distances.sum()), atol=1e-12)
    prior = costs - np.reshape(unary, costs.shape)
    assert np.ptp(prior, axis=1).max() < 1e-6
    shares = np.exp(-prior[:, 0]/(.05/16))
    assert np.isclose(shares.sum(), 1, atol=1e-4) and np.allclose(prior[:, 0], amix_oracle.comixup_prior(shares))
    counts = np.random.default_rng(seed).integers(30, size=len(s))
    for threshold in (0., .83*16):
        assert np.allclose(saliency.crowding(counts, conflicts, threshold),
                           amix_oracle.comixup_penalty(conflicts, counts, threshold=threshold), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_sweeps_never_raise_the_objective(seed):
    "Without the threshold, which the objective does not have."
    _, conflicts, costs, unary = sets(seed)
    m, prior = len(costs), (costs - np.reshape(unary, costs.shape))[:, 0]
    labels = np.random.default_rng(seed).integers(m, size=(m, 16))
    for _ in range(3):
        before = amix_oracle.comixup_objective(labels.reshape(m, 4, 4), unary, prior, conflicts)
        pairs, = saliency.sweep([np.stack([labels, labels], -1)], [np.stack([costs]*m)], [conflicts], 0., False)
        labels = pairs[..., 0]
        assert (pairs[..., 1] == labels).all()
        assert amix_oracle.comixup_objective(labels.reshape(m, 4, 4), unary, prior, conflicts) < before + 1e-9


@pytest.mark.slow
def test_an_output_of_two_images_is_the_cheapest():
    "Of all 2^16."
    costs = .1*np.random.default_rng(0).random((2, 16))
    pairs, = saliency.relabelled([np.zeros((16, 2), dtype=int)], [costs], False)
    table, edges = costs.T.reshape(4, 4, 2), np.full((4, 4), .32/16)
    least = amix_oracle.lowest_grid_energy(table, edges, edges, potts=True)
    assert abs(amix_oracle.potts_energy(pairs[:, 0].reshape(4, 4), table) - least) < 1e-6


@pytest.mark.parametrize("seed", range(2))
def test_comixup(seed):
    "Images of one colour each show which two every block is the mean of: so are other images and their labels mixed."
    n, rng = 9, np.random.default_rng(seed)
    s, x = torch.tensor(rng.random((n, 16, 16))**3), torch.tensor(rng.normal(size=(n, 3, 16, 16)))
    colours = (2.**torch.arange(n).double()).view(-1, 1, 1, 1).expand(n, 1, 16, 16)
    (coloured, _), (mixed, w) = (
        saliency.comixup(own, own, torch.tensor([.5]), torch.Generator().manual_seed(seed), s, s)
        for own in (colours, x))
    first, second = np.zeros((2, n, 4, 4), dtype=int)
    for place in np.ndindex(first.shape):
        i, r, c = place
        value = round(2*coloured[i, 0, 4*r + 2, 4*c + 2].item())
        bits = [k for k in range(n + 1) if value >> k & 1]   # 2^k is twice 2^(k-1)
        first[place], second[place] = bits if len(bits) == 2 else 2*[bits[0] - 1]
    images = amix_oracle.comixup_images(x, first) + amix_oracle.comixup_images(x, second)
    shares = np.add(amix_oracle.comixup_shares(first, n), amix_oracle.comixup_shares(second, n))
    assert np.allclose(mixed.numpy(), images/2, atol=1e-6) and np.allclose(w.numpy(), shares/2, atol=1e-6)


# ---------------------------------------------------------------- SaliencyMix

def test_fine_grained_saliency():
    "Centre less surround, at all radii, of the mean of the channels after two smoothings."
    x = np.random.default_rng(0).normal(size=(2, 3, 12, 15))
    ours = saliency.fine_grained(torch.tensor(x)).numpy()
    for i in range(2):
        grey = torch.tensor(amix_oracle.grey(x[i], [1/3]*3))[None]
        smooth = saliency.smoothed(saliency.smoothed(grey))[0].numpy()
        assert np.allclose(ours[i], amix_oracle.fine_grained(smooth, saliency.SURROUNDS), atol=1e-12)
        around = [[amix_oracle.surround(smooth, r, s, 12) for s in range(15)] for r in range(12)]
        assert np.allclose(saliency.surround(torch.tensor(smooth)[None], 12)[0].numpy(), around, atol=1e-12)


@pytest.mark.parametrize("lam", [[.3], [0., .1, .5, .95]], ids=["batch", "image"])
def test_saliencymix(lam):
    "One λ: one box for all, from the first partner; a λ for each image: a box for each."
    xa, xb = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed, share = saliency.saliencymix(xa, xb, torch.tensor(lam, dtype=torch.float64), None)
    maps = saliency.fine_grained(xb).numpy()
    for i in range(4):
        k = i if len(lam) > 1 else 0
        box = amix_oracle.saliency_box(maps[k], lam[k])
        expected = xa[i].numpy().copy()
        expected[:, box[0]:box[1], box[2]:box[3]] = xb[i].numpy()[:, box[0]:box[1], box[2]:box[3]]
        assert np.array_equal(mixed[i].numpy(), expected)
        assert np.isclose(share[k].item(), amix_oracle.box_share(box, 16, 16))


# ---------------------------------------------------------------- whole steps

SIX = 6
V1, V2 = torch.randn(2, SIX, 3, 8, 8, generator=stream(0, "views"), dtype=torch.float64)
Y, ROWS = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 1, 7, 9, 11, 15])


class Recorded:
    "A method's network, and what its block was given and made of it."
    def __init__(self, method, **given):
        self.cfg = small(method, batch_size=SIX, **given)
        self.net = build(self.cfg)
        gen = stream(0, "weights")
        for name, p in self.net.named_parameters():
            if name.startswith(("momentum_encoder", "slow_mix_head", "mix_block")):
                p.data += .05*torch.rand(p.shape, generator=gen, dtype=torch.float64)
        self.calls = []
        if "mix_block" in self.net.parts:
            self.net.mix_block.register_forward_hook(lambda block, given, mask: self.calls.append(given))

    def __call__(self, *views):
        "A step's loss."
        return loss_of(self.cfg, self.net, list(views), Y, 4, stream(0, "mix"), epoch=1, rows=ROWS).loss

    def pairs(self, call, source):
        "λ and the partners, found by their features, of the mixtures for the encoder (0) or for the block (1)."
        _, hb, lam, *_ = self.calls[call]
        far = torch.cdist(stage(self.net.momentum_encoder["encoder"], source).flatten(1), hb.flatten(1))
        assert far.min(0).values.max() < 1e-9
        return lam.tolist(), far.argmin(0).tolist()

    def mask(self, call, net):
        "The mask of the block of a network."
        ha, hb, lam, size, *_ = self.calls[call]
        c, weights = self.cfg, named_weights(net.mix_block.state_dict())
        how = c.block_lam, c.block_lam_curve, c.block_content, c.block_attention, c.block_upsampling, c.block_sigmoid
        return amix_oracle.mix_block(ha.numpy(), hb.numpy(), lam.numpy(), tuple(size), weights, *how, training=True)

    @cached_property
    def finished_mask(self):
        "The mask of the encoder's mixtures, of which the block learns nothing."
        c, mask, lam = self.cfg, self.mask(0, self.net), self.calls[0][2].tolist()
        if c.adjust == "yes":
            mask = amix_oracle.adjusted(mask, lam, c.adjust_margin)
        return amix_oracle.constant_near_ends(mask, lam, c.lam_margin)

    def mask_loss(self, mask):
        c, lam = self.cfg, self.calls[1][2].tolist()
        return c.mask_weight*amix_oracle.mask_loss(mask, lam, c.mask_slack, c.mask_variance, c.mask_mean)


def plain(x):
    return torch.tensor(np.asarray(x))


def assert_same_step(run, views, theirs):
    """A step's loss, and its slope along a random direction of all weights that learn.

    `theirs(moved)` is the loss where `moved` is a network whose weights differ: it is asked only for what may learn
    from that part of the loss, and the run's own network for the rest.
    """
    loss = run(*views)
    with torch.no_grad():
        assert abs(loss.item() - theirs(run.net)) < 1e-6*loss.item()   # the mixing matrix is float32
    learning = {name: p for name, p in run.net.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(loss, tuple(learning.values()), allow_unused=True)
    moved, rng = deepcopy(run.net), np.random.default_rng(0)
    weights, along = dict(moved.named_parameters()), {}
    for part in ("encoder", "head", *run.net.parts):   # each as far as the others
        drawn = {name: plain(rng.normal(size=p.shape)) for name, p in learning.items() if name.startswith(part + ".")}
        length = sum(d.square().sum() for d in drawn.values())**.5
        along |= {name: d/length for name, d in drawn.items()}
    assert along.keys() == learning.keys()

    @torch.no_grad()
    def at(t):
        for name, d in along.items():
            weights[name].copy_(learning[name] + t*d)
        return theirs(moved)
    pairs = zip(learning, slopes, strict=True)
    by_autograd = sum((g*along[name]).sum().item() for name, g in pairs if g is not None)
    by_differences = (at(1e-7) - at(-1e-7))/2e-7   # so short a step seldom crosses a kink of ReLU
    assert abs(by_autograd - by_differences) < 1e-6*max(1, abs(by_differences))


@pytest.mark.slow
@pytest.mark.parametrize("method, heads, words", [
    ("automix", "one", "own"), ("automix", "two", "ce bce"), ("amix", "two", "own"), ("amix", "one", "pbce"),
    ("amix", "two", "infonce"), ("amix", "two", "infonce_labels bce")])
def test_supervised_step(method, heads, words):
    "Clean and mixed cross-entropy for the encoder, the block's own mixtures through the momentum encoder, the mask's."
    run = Recorded(method, heads=heads, block_loss=words, block_dropout=0.)
    slow = run.net.momentum_encoder
    slow_head = run.net.slow_mix_head if heads == "two" else slow["head"]

    def theirs(moved):
        lam, p = run.pairs(0, V1)
        lam_block, p_block = run.pairs(1, V1)
        mask = run.mask(1, moved)
        mixed = plain(amix_oracle.blend(V1, V1[p], run.finished_mask))
        own = plain(amix_oracle.blend(V1, V1[p_block], mask))
        head = moved.mix_head if heads == "two" else moved.head
        h, keys = slow["encoder"](own), slow["encoder"](V1)
        logits = moved.head(moved.encoder(V1)), head(moved.encoder(mixed)), slow_head(h)
        c = run.cfg
        loss_q, loss_k, loss_mask, _ = amix_oracle.supervised_step(
            *logits, Y, p, p_block, lam, lam_block, mask, c.mask_weight, c.mask_slack, c.mask_variance, c.mask_mean)
        partners, total = Y[p_block], loss_q + loss_mask
        for word in words.split():
            total += dict(
                own=lambda: loss_k, ce=lambda: amix_oracle.ce(logits[2], Y, partners, lam_block),
                pbce=lambda: amix_oracle.pbce(logits[2], Y, partners, lam_block),
                bce=lambda: amix_oracle.bce(h, keys, keys[p_block], lam_block, .2),
                infonce=lambda: amix_oracle.infonce_batch(h, keys, p_block, lam_block, .2),
                infonce_labels=lambda: amix_oracle.infonce_batch(h, keys, p_block, lam_block, .2, y=Y))[word]()
        return total
    assert_same_step(run, [V1], theirs)


CONTRASTIVE = [
    ("amix_i", dict()), ("amix_i", dict(block_loss="bce")), ("amix_i", dict(block_loss="own")),
    ("amix_i", dict(pipeline="same-view", adjust="no")),
    ("amix_i", dict(with_base="no", bce_weight=.5, mask_weight=.7, mask_mean="batch", lam_per="batch",
                    adjust_margin=0.)),
    ("amix_i", dict(block_loss="ce")), ("amix_i", dict(block_loss="pbce bce")),
    ("amix_i", dict(block_loss="infonce_labels")), ("amix_i", dict(block_loss="infonce_clusters bce", clusters=3)),
    ("amix_i", dict(block_loss="pbce_clusters bce", clusters=3)), ("amix_c", dict(clusters=3))]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CONTRASTIVE)))
def test_contrastive_step(case):
    "MoCo's loss, the cross-view mixed term, the block's losses by keys, classes and clusters, its classifier's own."
    method, given = CONTRASTIVE[case]
    run = Recorded(method, tau=.2, block_dropout=0., **given)
    c, net = run.cfg, run.net
    crosses, slow = c.pipeline == "cross-view", net.momentum_encoder
    source, queue = V2 if crosses else V1, net.queue.numpy()
    labels, weights = Y.tolist(), None
    if "clusters" in net.parts:
        net.clusters.fill(unit(torch.randn(40, c.out, generator=stream(0, "bank"), dtype=torch.float64)))
        bank = [x.clone().numpy() for x in (net.clusters.bank, net.clusters.labels, net.clusters.centroids)]
        with torch.no_grad():
            bank = amix_oracle.odc_step(*bank, ROWS.tolist(), net(V1), step=1, smallest=1)
        labels = [bank[1][row] for row in ROWS]
        weights = amix_oracle.odc_weights(bank[1], 3)
    queue_labels = None
    if "queue_labels" in net.parts:
        queue_labels = net.queue_labels.copy_(torch.arange(len(queue)) % 4 - 1).tolist()

    def theirs(moved):
        lam, p = run.pairs(0, source)
        lam_block, p_block = run.pairs(1, source)
        mask = run.mask(1, moved)
        mixed = plain(amix_oracle.mixed_views(V1, V2, p, run.finished_mask, crosses))
        h = slow["encoder"](plain(amix_oracle.mixed_views(V1, V2, p_block, mask, crosses)))
        k1, k2 = (slow["head"](slow["encoder"](v)) for v in (V1, V2))
        base = amix_oracle.moco(moved(V1), k2, queue, .2) if c.with_base == "yes" else 0.
        mixed_term = amix_oracle.moco_mixed(moved(mixed), k1, k2, p, lam, queue, .2, crosses)
        keys = amix_oracle.moco_positives(k1, k2, p_block, crosses)
        z, partners = slow["head"](h), [labels[j] for j in p_block]
        block = run.mask_loss(mask)
        for word in c.block_loss.split():
            if word in ("own", "infonce"):
                block += amix_oracle.infonce(z, *keys, lam_block, .2, queue)
            elif word == "bce":
                block += c.bce_weight*amix_oracle.bce(z, *keys, lam_block, .2)
            elif word.startswith("infonce"):
                block += amix_oracle.infonce_labels(z, *keys, lam_block, .2, queue, labels, partners, queue_labels)
            elif word.startswith("pbce"):
                block += amix_oracle.pbce(net.cluster_head(h), labels, partners, lam_block)
            else:
                block += amix_oracle.ce(net.cluster_head(h), labels, partners, lam_block, weights)
        if "cluster_head" in net.parts:   # learns from features that do not: clean images, and the encoder's mixtures
            logits = [moved.cluster_head(net.encoder(x)) for x in (V1, mixed)]
            ones = [1.]*SIX
            block += amix_oracle.ce(logits[0], labels, labels, ones, weights)
            block += amix_oracle.ce(logits[1], labels, [labels[j] for j in p], lam, weights)
        return amix_oracle.amix_step(base, mixed_term, block, 0.)
    assert_same_step(run, [V1, V2], theirs)


@pytest.mark.slow
def test_block_trained_by_mixsupcon():
    "The loss of all mixtures of both views, of the encoder and again of the block, whose masks' losses are averaged."
    run = Recorded("mixsupcon", mixer="amix", tau=.2, block_dropout=0.)
    c, slow, onehot = run.cfg, run.net.momentum_encoder, torch.eye(4).double()[Y]

    def mixtures(call, other, mask):
        "One view's mixtures with the other, and their labels."
        lam, p = run.pairs(call, other)
        lam = plain(lam)[:, None]
        own = V1 if other is V2 else V2
        return plain(amix_oracle.blend(own, other[p], mask)), lam*onehot + (1 - lam)*onehot[p]

    def contrast(embed, masks, first):
        pairs = [mixtures(first + k, other, masks[k]) for k, other in enumerate((V2, V1))]
        x, t = (torch.cat(part).numpy() for part in zip(*pairs, strict=True))
        return oracle.contrastive(embed(plain(x)).numpy(), t, .2, "row", c.normalizer, c.label_sim)

    def theirs(moved):
        lam = [call[2].tolist() for call in run.calls]
        for_encoder = [amix_oracle.constant_near_ends(run.mask(k, run.net), lam[k], c.lam_margin) for k in (0, 1)]
        masks = [run.mask(k, moved) for k in (2, 3)]
        own = contrast(lambda x: slow["head"](slow["encoder"](x)), masks, 2)
        off = [c.mask_weight*amix_oracle.mask_loss(mask, lam[k]) for k, mask in zip((2, 3), masks, strict=True)]
        return contrast(moved, for_encoder, 0) + own + amix_oracle.mean(off)
    assert_same_step(run, [V1, V2], theirs)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["cross-view", "same-view"])
@pytest.mark.parametrize("with_base", ["yes", "no"])
@pytest.mark.parametrize("mixer", ["mixup", "cutmix", "resizemix", "fmix"])
def test_cross_view_pipeline(mixer, with_base, pipeline):
    "MoCo with a mixer made by hand; its mask is what it makes of white and black images."
    run = Recorded("moco_mix", tau=.2, mixer=mixer, lam_per="batch", with_base=with_base, pipeline=pipeline)
    c, net, crosses = run.cfg, run.net, pipeline == "cross-view"
    white = torch.ones_like(V1)
    mask, w = mix(white, 0*white, stream(0, "mix"), mixer, c.alpha, "batch", "cross_derange")
    own, p = w.diag().double().tolist(), (w - w.diag().diag()).argmax(1).tolist()
    if mixer == "resizemix":   # black stays black when it shrinks
        assert np.allclose(own, mask[:, 0].mean((1, 2)), atol=1e-6)

    def theirs(moved):
        def slow(x):
            return net.momentum_encoder["head"](net.momentum_encoder["encoder"](x))
        if mixer == "resizemix":
            x, _ = mix(V1, V2 if crosses else V1, stream(0, "mix"), mixer, c.alpha, "batch", "cross_derange")
            base = amix_oracle.moco(moved(V1), slow(V2), net.queue, .2) if with_base == "yes" else 0.
            return base + amix_oracle.moco_mixed(moved(x), slow(V1), slow(V2), p, own, net.queue, .2, crosses)
        return amix_oracle.moco_mix_step(lambda x: moved(plain(x)), lambda x: slow(plain(x)), V1, V2, p, mask[:, :1],
                                         own, net.queue, .2, crosses, with_base == "yes")
    assert_same_step(run, [V1, V2], theirs)


@pytest.mark.parametrize("method, views", [("ce", [V1]), ("mixsupcon", [V1, V2])])
def test_saliency_of_the_loss(method, views):
    "The root of the channels' mean squared slope of the base loss, in eval mode, up to a factor for all pixels."
    cfg = small(method, batch_size=SIX, mixer="puzzlemix")
    net = build(cfg)

    def step(images):
        return begin_step(cfg, net, images, Y, 4, stream(0, "mix"))
    maps = saliency_of_views(cfg, step(views))
    assert net.training   # as before
    net.eval()
    ratios = []
    for k, i, r, s in [(0, 0, 0, 0), (0, 3, 4, 5), (len(views) - 1, 5, 7, 2)]:

        @torch.no_grad()
        def loss(pixel, k=k, i=i, r=r, s=s):
            images = [v.clone() for v in views]
            images[k][i, :, r, s] = plain(pixel)
            return cfg.goal.base_loss(step(images))
        slopes = amix_oracle.gradient(loss, views[k][i, :, r, s], 1e-5)
        ratios.append(maps[k][i, r, s].item()/np.sqrt(np.mean(slopes**2)))
    assert np.allclose(ratios, ratios[0], rtol=1e-5)


def test_other_mixer_inside_classes():
    "Two images of one class are mixed by `inside_mixer`, two of different classes by `mixer`."
    cfg = small("moco_mix", mixer="mixup", inside_mixer="cutmix", inside_alpha=.5)
    white, y = torch.ones(12, 3, 8, 8, dtype=torch.float64), torch.arange(12) % 2
    step = begin_step(cfg, build(cfg), [white, 0*white], y, 2, stream(0, "mix"))
    mask, w = cfg.strategy.mix(step, white, 0*white)
    p = (w - w.diag().diag()).argmax(1)
    assert 0 < (y == y[p]).sum() < 12
    for i in range(12):
        values = amix_oracle.pixels(mask[i])
        assert len(set(values)) == (2 if y[i] == y[p[i]] else 1)
        assert abs(amix_oracle.mean(values) - w[i, i].item()) < 1e-6


def test_labels_go_through_the_queue_with_their_keys():
    "In front the keys of view k and the labels of their images; the oldest leave."
    run = Recorded("amix_i", block_loss="infonce_labels")
    net = run.net
    net.queue_labels.copy_(torch.arange(len(net.queue)) % 4 - 1)
    keys, labels = net.queue.tolist(), net.queue_labels.tolist()
    step = loss_of(run.cfg, net, [V1, V2], Y, 4, stream(0, "mix"), epoch=1, rows=ROWS)
    slow = net.momentum_encoder
    new = amix_oracle.unit_rows(slow["head"](slow["encoder"](V2)))
    update_state(net, .9, step.new_keys)
    assert np.allclose(net.queue.numpy(), new + keys[:-SIX], atol=1e-12)
    assert net.queue_labels.tolist() == Y.tolist() + labels[:-SIX]
