"Saliency and the mixers guided by it, against naive loops and against every labelling of small grids."
import time
from itertools import product

import numpy as np
import pytest
import torch
from mixsupcon.core import saliency
from mixsupcon.core.mixers import GUIDED, MIXERS
from mixsupcon.core.models import BACKBONES

GRIDS = [(2, 2), (3, 3), (3, 4)]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images(seed, n, side, channels=3):
    "Images (N, C, H, W) with large and small detail."
    gen = generator(seed)
    coarse = torch.randn(n, channels, max(2, side//4), max(2, side//4), generator=gen)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return smooth + .2*torch.randn(n, channels, side, side, generator=gen)


def blobs(seed, n, side):
    "Uneven saliency (N, H, W)."
    return images(seed, n, side, 1)[:, 0].abs()**3


# ---- static saliency

def naive_saliency(image):
    "Sum of |centre - surround| over six radii of one image (C, H, W), a pixel at a time."
    grey = image.mean(0)
    high, wide = grey.shape
    for _ in range(2):
        padded = np.pad(grey, 1, mode="edge")
        weights = np.outer([1, 2, 1], [1, 2, 1])/16
        grey = np.array([[(padded[r:r + 3, c:c + 3]*weights).sum() for c in range(wide)] for r in range(high)])
    total = np.zeros_like(grey)
    for radius, r, c in product((12, 24, 28, 48, 56, 112), range(high), range(wide)):
        near = [grey[i, j] for i in range(max(0, r - radius), min(high, r + radius + 1))
                for j in range(max(0, c - radius), min(wide, c + radius + 1)) if (i, j) != (r, c)]
        total[r, c] += abs(grey[r, c] - np.mean(near))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 17, 30)], ids=str)
def test_fine_grained_is_the_naive_loop(shape):
    x = torch.randn(1, *shape, generator=generator(0), dtype=torch.float64)
    assert np.allclose(saliency.fine_grained(x)[0], naive_saliency(x[0].numpy()), atol=1e-12)


@pytest.mark.parametrize("side", [8, 32, 50])
@pytest.mark.parametrize("per_batch", [False, True])
def test_saliencymix_counts_what_it_takes(side, per_batch):
    "The share is that of the pixels that stay; the box is around the partner's most salient pixel."
    xa, xb = images(0, 20, side), images(1, 20, side) + 100
    lam = torch.rand(1 if per_batch else 20, generator=generator(2))
    mixed, share = saliency.saliencymix(xa, xb, lam, generator(3))
    taken = (mixed == xb).all(1)
    assert torch.equal((mixed == xa).all(1), ~taken)
    assert torch.allclose(share.expand(20), 1 - taken.float().mean((1, 2)))
    peaks = saliency.fine_grained(xb).flatten(1).argmax(1)
    for i, (one, peak) in enumerate(zip(taken, peaks[:1].expand(20) if per_batch else peaks)):
        half = int(side*(1 - lam[0 if per_batch else i].double()).sqrt())//2
        row, column = divmod(int(peak), side)
        expected = torch.zeros(side, side, dtype=torch.bool)
        expected[max(0, row - half):row + half, max(0, column - half):column + half] = True
        assert torch.equal(one, expected)


# ---- cuts

def naive_energy(label, unary, weight, ends, distance):
    "The energy of one labelling (V,), node by node and edge by edge."
    cost = sum(unary[label[v]][v] for v in range(len(label)))
    return cost + sum(w*distance[label[i]][label[j]] for w, i, j in zip(weight, *ends))


def least(unary, weight, ends, distance):
    "The energy of the cheapest of all labellings of one grid."
    labels, nodes = np.array([*product(range(len(unary)), repeat=unary.shape[1])]), np.arange(unary.shape[1])
    costs = unary[labels, nodes].sum(1) + (weight*distance[labels[:, ends[0]], labels[:, ends[1]]]).sum(1)
    return costs.min()


def problem(seed, n, labels, high, wide, strength):
    "Random whole costs of `n` grids."
    draw, ends = np.random.default_rng(seed), saliency.grid_ends(high, wide)
    unary = draw.integers(0, 40, (n, labels, high*wide))
    return unary, draw.integers(0, strength + 1, (n, ends.shape[1])), ends


def squares(levels):
    return (np.arange(levels)[:, None] - np.arange(levels))**2


def energies(label, *costs):
    return saliency.energy(label, *costs)


def test_energy_is_the_naive_sum():
    unary, weight, ends = problem(0, 6, 3, 3, 4, 9)
    label = np.random.default_rng(1).integers(0, 3, (6, 12))
    naive = [naive_energy(*each, ends, squares(3)) for each in zip(label, unary, weight)]
    assert energies(label, unary, weight, ends, squares(3)).tolist() == naive


@pytest.mark.parametrize("strength", [0, 4, 30])
@pytest.mark.parametrize("high, wide", GRIDS)
def test_binary_cut_is_brute_force(high, wide, strength):
    "Grids cut together are each cut as cheaply as the best of all labellings."
    unary, weight, ends = problem(strength, 30, 2, high, wide, strength)
    label = saliency.minimum_cut(unary[:, 1] - unary[:, 0], ends, weight, weight)
    best = [least(*each, ends, squares(2)) for each in zip(unary, weight)]
    assert energies(label, unary, weight, ends, squares(2)).tolist() == best
    assert (label == saliency.level_cut(unary, weight, ends)).all()


@pytest.mark.parametrize("strength", [0, 3, 12])
@pytest.mark.parametrize("levels, high, wide", [(3, 2, 2), (3, 2, 4), (3, 3, 3), (4, 2, 3)])
def test_level_cut_is_brute_force(levels, high, wide, strength):
    unary, weight, ends = problem(strength, 10, levels, high, wide, strength)
    label = saliency.level_cut(unary, weight, ends)
    best = [least(*each, ends, squares(levels)) for each in zip(unary, weight)]
    assert energies(label, unary, weight, ends, squares(levels)).tolist() == best


@pytest.mark.parametrize("distance", [squares(3), 1 - np.eye(4, dtype=int)], ids=["squares", "unordered"])
@pytest.mark.parametrize("strength", [0, 5, 15, 60])
def test_swaps(distance, strength):
    "Never dearer than the start or one label everywhere, never below the minimum, at it where labels do not interact."
    unary, weight, ends = problem(strength, 25, len(distance), 2, 3, strength)
    costs = unary, weight, ends, distance
    start = np.random.default_rng(strength).integers(0, len(distance), (25, 6))
    before, after = energies(start, *costs), energies(saliency.swap(start.copy(), *costs), *costs)
    best = np.array([least(*each, ends, distance) for each in zip(unary, weight)])
    assert (after <= before).all() and (after < before).any()
    assert (after <= unary.sum(2).min(1)).all() and (best <= after).all()
    assert (after == best).mean() > .8 and (strength or (after == best).all())


def test_each_swap_is_exact_and_none_rises():
    "One exchange of two labels never raises an energy; after `swap` no exchange lowers one."
    unary, weight, ends = problem(3, 10, 3, 3, 4, 15)
    start = np.random.default_rng(4).integers(0, 3, (10, 12))
    for label, lower in ((start, True), (saliency.swap(start, unary, weight, ends, squares(3)), False)):
        grid, a, b = saliency.pairs_in_use(label, 3)
        costs = unary[grid], weight[grid], ends, squares(3)
        after = energies(saliency.swapped(label[grid], a, b, *costs), *costs)
        before = energies(label[grid], *costs)
        assert (after <= before).all() and (after < before).any() == lower


@pytest.mark.parametrize("labels", [2, 3])
def test_one_swap_decides_two_labels(labels):
    "With two labels, a swap is the minimum on every grid."
    unary, weight, ends = problem(labels, 20, 2, 3, 4, 20)
    label = saliency.swap(np.zeros((20, 12), int), unary, weight, ends, squares(2)*labels)
    best = [least(*each, ends, squares(2)*labels) for each in zip(unary, weight)]
    assert energies(label, unary, weight, ends, squares(2)*labels).tolist() == best


# ---- PuzzleMix

def puzzle(seed, n=10, side=16):
    "Arguments of `puzzle_costs`, λ from small to large."
    return images(seed, n, side), images(seed + 1, n, side), torch.linspace(.1, .9, n), *(
        blobs(seed + i, n, side) for i in (2, 3))


def test_puzzle_labels_are_the_cheapest():
    "On 2x2 blocks of all 81; on more blocks below swaps and below one level everywhere."
    unary, weight = saliency.puzzle_costs(*puzzle(0), 2)
    ends = saliency.grid_ends(2, 2)
    label = saliency.level_cut(unary, weight, ends)
    best = [least(*each, ends, squares(3)) for each in zip(unary, weight)]
    assert energies(label, unary, weight, ends, squares(3)).tolist() == best
    unary, weight = saliency.puzzle_costs(*puzzle(10), 8)
    costs = unary, weight, saliency.grid_ends(8, 8), squares(3)
    exact = energies(saliency.level_cut(*costs[:3]), *costs)
    by_swaps = energies(saliency.swap(np.zeros((10, 64), int), *costs), *costs)
    assert (exact <= by_swaps).all() and (by_swaps <= unary.sum(2).min(1)).all() and (by_swaps < 1.05*exact).all()


def naive_puzzle_costs(xa, xb, lam, sa, sb, b):
    "The costs of one pair by loops over blocks, levels and borders; images already between 0 and 1."
    side, k = xa.shape[-1]//b, xa.shape[-1]//b//2
    beta, eta = 1.2/(16*b), .2
    shares = [np.array([[s[r*side:(r + 1)*side, c*side:(c + 1)*side].mean() for c in range(b)] for r in range(b)])
              for s in (sa, sb)]
    shares = [s/s.sum() for s in shares]
    pools = [x.reshape(3, b*k, 2, b*k, 2).mean((2, 4)) for x in (xa, xb)]
    cost, edges = np.zeros((2, b, b)), []
    for (down, right), r, c in product(((1, 0), (0, 1)), range(b), range(b)):
        if r + down == b or c + right == b:
            continue
        phi = np.zeros((2, 2))
        for i, j in product(range(2), repeat=2):
            if down:
                one, two = (pools[i][:, (r + 1)*k - 1, c*k:(c + 1)*k], pools[j][:, (r + 1)*k, c*k:(c + 1)*k])
            else:
                one, two = (pools[i][:, r*k:(r + 1)*k, (c + 1)*k - 1], pools[j][:, r*k:(r + 1)*k, (c + 1)*k])
            phi[i, j] = .5*beta*abs(one - two).mean()
        cost[:, r, c] += (phi[:, 0] + phi[:, 1])/2
        cost[:, r + down, c + right] += (phi[0] + phi[1])/2
        edges.append(beta + (phi[0, 1] + phi[1, 0] - phi[0, 0] - phi[1, 1])/2)
    prior = -np.log(np.array([lam**2, 2*lam*(1 - lam), (1 - lam)**2]) + 1e-8)
    unary = [(1 - t)*(cost[0] + shares[1]) + t*(cost[1] + shares[0]) + eta/b**2*p for t, p in zip((0, .5, 1), prior)]
    return np.array(unary).reshape(3, -1), np.array(edges)


@pytest.mark.parametrize("b", [2, 4])
def test_puzzle_costs_are_the_naive_loops(b):
    xa, xb, lam, sa, sb = (each.double() for each in puzzle(5, 4))
    unary, weight = saliency.puzzle_costs(xa, xb, lam, sa, sb, b)
    both = torch.cat([xa, xb])
    low, high = both.amin((0, 2, 3))[:, None, None], both.amax((0, 2, 3))[:, None, None]
    for i in range(4):
        pair = [((x[i] - low)/(high - low)).numpy() for x in (xa, xb)]
        naive = naive_puzzle_costs(*pair, lam[i].item(), sa[i].numpy(), sb[i].numpy(), b)
        assert abs(unary[i] - 4000*b**2*naive[0]).max() < .51 and abs(weight[i] - 1000*b**2*naive[1]).max() < .51
        assert (naive[1] > 0).all()


def test_puzzle_costs_are_symmetric():
    "Own and partner exchanged, λ with 1-λ: the levels in reverse order."
    xa, xb, lam, sa, sb = puzzle(6)
    unary, weight = saliency.puzzle_costs(xa, xb, lam.double(), sa, sb, 4)
    other, same = saliency.puzzle_costs(xb, xa, 1 - lam.double(), sb, sa, 4)
    assert abs(unary - other[:, ::-1]).max() <= 1 and abs(weight - same).max() <= 1


@pytest.mark.parametrize("side", [8, 16, 28, 32])
@pytest.mark.parametrize("saliency_of", [blobs, lambda seed, n, side: torch.zeros(n, side, side)], ids=["some", "none"])
def test_puzzlemix_counts_what_it_takes(side, saliency_of):
    "The share of the own image is the mean of the mask, for every number of blocks."
    sa, sb, lam = saliency_of(0, 12, side), saliency_of(1, 12, side), torch.linspace(0, 1, 12)
    zeros, ones = torch.zeros(12, 3, side, side), torch.ones(12, 3, side, side)
    for seed in range(6):
        mixed, share = saliency.puzzlemix(ones, zeros, lam, generator(seed), sa, sb)
        assert torch.allclose(mixed.mean((1, 2, 3)), share) and set(mixed.unique().tolist()) <= {0., .5, 1.}
        assert share[-1] > .8 and share[0] < .2 and share.shape == (12,)
        mixed, share = saliency.puzzlemix(images(2, 12, side), ones, lam[:1] + .5, generator(seed), sa, sb)
        assert mixed.isfinite().all() and share.shape == (12,)


def test_puzzlemix_shows_what_is_salient():
    "Own images are salient above, partners below: at λ = .5 each is seen there."
    above, own, other = torch.zeros(4, 16, 16), torch.ones(4, 1, 16, 16), torch.zeros(4, 1, 16, 16)
    above[:, :8] = 1
    for seed in range(4):
        mixed, share = saliency.puzzlemix(own, other, torch.full((1,), .5), generator(seed), above, above.flip(1))
        assert torch.equal(mixed[:, 0], above) and (share == .5).all()


def test_transport_moves_what_is_salient_into_sight():
    "Patches are permuted; a salient one that the mask would hide is moved beside itself, into the mask."
    s, seen = torch.full((1, 16), .01).double(), torch.zeros(1, 16, dtype=torch.bool)
    s[0, 1], seen[0, [0, 4, 8, 12]] = .85, True   # the first column is seen, the salient patch is in the second
    plan = saliency.transport_plan(s, seen)
    assert plan[0, 0] == 1 and torch.equal(plan.sort()[0][0], torch.arange(16))
    assert torch.equal(saliency.transport_plan(s/100, seen)[0], torch.arange(16))   # not worth the way
    x = images(0, 3, 16)
    order = torch.stack([torch.randperm(16, generator=generator(i)) for i in range(3)])
    moved = saliency.transported(x, order)
    assert torch.equal(moved.flatten(2).sort()[0], x.flatten(2).sort()[0])
    assert torch.equal(moved[1, :, 4:8, 8:12], x[1].unfold(1, 4, 4).unfold(2, 4, 4).flatten(1, 2)[:, order[1, 6]])


# ---- Co-Mixup

def outputs(seed, m):
    "Random labels (m, 16, 2) of `m` outputs."
    return np.repeat(np.random.default_rng(seed).integers(0, m, (m, 16, 1)), 2, 2)


def naive_own_cost(pairs, cost, beta=.32/16):
    "What one output (16, 2) pays by itself, from the shares (16, m) that its blocks mix."
    share = (np.eye(len(cost))[pairs[:, 0]] + np.eye(len(cost))[pairs[:, 1]])/2
    edges = sum(((share[i] - share[j])**2).sum()/2 for i, j in saliency.grid_ends(4, 4).T)
    return (share*cost.T).sum() - 5e-4*(pairs[:, 0] != pairs[:, 1]).sum() + beta*edges


def naive_objective(pairs, cost, a, gamma=1/16):
    blocks = [saliency.blocks_of(each, len(cost)) for each in pairs]
    between = sum(one @ a @ two for i, one in enumerate(blocks) for j, two in enumerate(blocks) if i != j)
    return sum(naive_own_cost(each, cost) for each in pairs) + gamma*between


@pytest.mark.parametrize("m", [2, 5, 9])
def test_objective_never_rises(m):
    "Without threshold the objective falls with each output of each sweep, and strictly from a random start."
    s = blobs(m, m, 16)
    a, cost, pairs = saliency.conflicts(s), saliency.set_costs(s, generator(m)), outputs(m, m)
    values = [naive_objective(pairs, cost, a)]
    for means in (False, True, True):
        blocks = np.stack([saliency.blocks_of(each, m) for each in pairs])
        once, = saliency.sweep([pairs], [np.stack([cost]*m)], [a], 0., means)
        for j in range(m):   # the same sweep, output by output
            crowd = saliency.crowding(blocks.sum(0) - blocks[j], a, 0.)
            pairs[j], = saliency.relabelled([pairs[j]], [cost + crowd[:, None]], means)
            blocks[j] = saliency.blocks_of(pairs[j], m)
            values.append(naive_objective(pairs, cost, a))
        assert (once == pairs).all()
    assert all(later <= earlier + 2e-5 for earlier, later in zip(values, values[1:])) and values[-1] < values[0] - .1


def test_each_output_is_no_dearer_given_the_others():
    "With the threshold, what an output pays for its blocks never rises when it is labelled anew."
    s, m = blobs(3, 8, 16), 8
    a, cost, pairs = saliency.conflicts(s), saliency.set_costs(s, generator(3)), outputs(3, 8)
    for means, j in product((False, True), range(m)):
        others = sum(saliency.blocks_of(pairs[i], m) for i in range(m) if i != j)
        pays = cost + saliency.crowding(others, a, .83*16)[:, None]
        before = naive_own_cost(pairs[j], pays)
        pairs[j], = saliency.relabelled([pairs[j]], [pays], means)
        assert naive_own_cost(pairs[j], pays) <= before + 2e-5


def test_two_images_are_labelled_as_brute_force():
    "One output of two images without means: the cheapest of 65,536 masks."
    cost = np.random.default_rng(0).normal(0, .05, (2, 16)).round(6)
    pairs, = saliency.relabelled([np.zeros((16, 2), int)], [cost], False)
    whole = np.rint(1e6*cost).astype(int)
    best = least(whole, np.full(24, round(1e6*.32/16/4)), saliency.grid_ends(4, 4), 4*(1 - np.eye(2, dtype=int)))
    assert abs(1e6*naive_own_cost(pairs, cost) - best) < 1 and 0 < pairs.sum() < 32


@pytest.mark.slow
@pytest.mark.parametrize("n, side", [(1, 8), (2, 8), (20, 32), (23, 16), (6, 18)])
def test_comixup_mixes_pixels_and_labels_alike(n, side):
    "W is the share of blocks: exact for images of one colour; masks sum to one in every pixel."
    x = torch.eye(n)[:, :, None, None].expand(n, n, side, side)   # image i has channel i
    mixed, w = saliency.comixup(x, None, None, generator(n), blobs(n, n, side), None)
    assert torch.equal(mixed.sum(1), torch.ones(n, side, side)) and torch.allclose(w.sum(1), torch.ones(n))
    assert torch.allclose(mixed.mean((2, 3)), w, atol=1e-6) and set(mixed.unique().tolist()) <= {0., .5, 1.}
    if side % 4 == 0:
        assert torch.allclose(32*w, (32*w).round(), atol=1e-4)   # whole and half blocks of 16
        assert all(len(tile.unique()) == 1 for tile in mixed.unfold(2, side//4, side//4).unfold(
            3, side//4, side//4).flatten(0, 3))
    assert not saliency.comixup(x, None, None, generator(n), torch.zeros(n, side, side), None)[1].isnan().any()


def test_sets_do_not_touch():
    "Sets labelled side by side, of different sizes, are labelled as each by itself."
    sets = [blobs(seed, m, 16) for seed, m in ((0, 9), (1, 10), (2, 1))]
    a, costs = [saliency.conflicts(s) for s in sets], [saliency.set_costs(s, generator(1)) for s in sets]
    pays, starts = [np.stack([cost]*len(cost)) for cost in costs], [outputs(i, len(s)) for i, s in enumerate(sets)]
    together = saliency.sweep(starts, pays, a, .83*16, True)
    for each, *alone in zip(together, starts, pays, a):
        assert (saliency.sweep(*[[part] for part in alone], .83*16, True)[0] == each).all()


def test_comixup_mixes():
    "Uneven saliency: outputs hold several images, and no two outputs mix the same ones."
    w = saliency.comixup(images(0, 20, 32), None, None, generator(0), blobs(1, 20, 32), None)[1]
    sets = [tuple(row.nonzero().flatten().tolist()) for row in w]
    assert (w > 0).sum(1).float().mean() > 1.3 and len({*sets}) >= 19


# ---- all

@pytest.mark.parametrize("name", ["saliencymix", "puzzlemix", "comixup"])
@pytest.mark.parametrize("side", [8, 16])
def test_a_mixer_is_a_function_of_its_generator(name, side):
    "The same generator gives the same mixture; inputs stay as they are; nothing else draws; no gradient is needed."
    x, s = images(0, 9, side), blobs(1, 9, side)
    given = [x, x.flip(0), torch.full((9,), .4), *([s, s.flip(0)] if name in GUIDED else [])]
    before, state = [each.clone() for each in given], torch.get_rng_state()
    with torch.no_grad():
        one, two = (MIXERS[name](*given[:3], generator(5), *given[3:]) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and one[0].dtype == x.dtype
    assert all(map(torch.equal, before, given)) and torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_the_cuts_of_a_batch_take_less_than_three_steps():
    "A hundred grids of 16x16 blocks beside a step of ResNet-18 on a hundred images of 32 pixels, on one core."
    arguments, threads = puzzle(0, 100, 32), torch.get_num_threads()
    costs = saliency.puzzle_costs(*arguments, 16)
    net = BACKBONES["resnet18"](32)
    try:
        torch.set_num_threads(1)
        seconds = []
        for work in (lambda: saliency.level_cut(*costs, saliency.grid_ends(16, 16)),
                     lambda: net(arguments[0]).square().mean().backward()):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert seconds[0] < 3*seconds[1], seconds
