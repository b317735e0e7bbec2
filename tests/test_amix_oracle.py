"AMix's code against loops in float64, written from the formulas by somebody who had not seen it: values and gradients."
from itertools import product

import amix_oracle
import numpy as np
import pytest
import torch
from mixsupcon.core import learned_mixers
from mixsupcon.core.mix_block import (ATTENTIONS, CONTENTS, LAM_ENCODINGS, MASKS, UPSAMPLINGS, MixBlock, adjusted,
                                      by_mask, constant_near_ends, mask_loss)


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
    assert_same(ours, theirs, arrays, seed=case, directions=2)


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


def test_two_of_one_class_teach_nothing_between_them():
    "Their two-way softmax has no slope."
    arrays, y, p, _ = pairs(0, classes=1)
    x = {name: double(value) for name, value in arrays.items()}
    slope, = torch.autograd.grad(learned_mixers.pbce(mixed(x, y*0, p)), x["logits"])
    assert slope.abs().max() < 1e-12


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
