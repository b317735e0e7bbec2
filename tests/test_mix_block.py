"The Mix Block: laws of its masks over all of its options, and what must hold for runs that are continued."
from copy import deepcopy
from itertools import product

import pytest
import torch
from mixsupcon.core.mix_block import (
    ATTENTIONS, CONTENTS, LAM_ENCODINGS, MASKS, UPSAMPLINGS, MixBlock, adjusted, by_mask, constant_near_ends, drop,
    flatten_lam, mask_loss, stage, stage_width)
from mixsupcon.core.mixers import mixup
from mixsupcon.core.models import BACKBONES
from mixsupcon.core.options import ConfigError, seeded, stream
from torch import nn

OPTIONS = [*product(LAM_ENCODINGS, CONTENTS, ATTENTIONS, UPSAMPLINGS, MASKS)]
EVERY = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options).replace(" ", "_"))


def draw(n=5, channels=6, side=4, step=0):
    "Features of images and partners, and λ, in float64."
    gen = stream(0, "test", step)
    return *torch.randn(2, n, channels, side, side, generator=gen).double(), torch.rand(n, generator=gen).double()


def build(options=("learned", "two layers", "self", "bilinear", "after"), channels=6, std=.5, **more):
    "A block in float64 whose weights are not small, and whose γ, if it is learned, is .6."
    lam, content, attention, upsampling, sigmoid = options
    with seeded(0, "test"):
        block = MixBlock(channels, lam, content, attention, upsampling, sigmoid, **more).double()
        for name, value in block.named_parameters():
            nn.init.constant_(value, .6) if name.endswith("gamma") else nn.init.normal_(value, std=std)
    return block


# ---- masks

@EVERY
def test_a_mask_is_a_share(options):
    "Between 0 and 1, of the size asked for; one λ for all is the same as λ for each; the result depends on λ."
    ha, hb, lam = draw()
    block = build(options).eval()
    mask = block(ha, hb, lam, (12, 20))
    assert mask.shape == (5, 1, 12, 20) and (mask >= 0).all() and (mask <= 1).all()
    for i, share in enumerate(lam):
        assert torch.allclose(block(ha, hb, share[None], (12, 20))[i], mask[i], atol=1e-12)   # images do not mix either
    assert not torch.allclose(block(ha, hb, 1 - lam, (12, 20)), mask, atol=1e-6)


@EVERY
def test_every_weight_learns(options):
    "The losses of masks reach each weight, with finite slopes; biases that a softmax or batch norm removes excepted."
    ha, hb, lam = draw()
    block = build(options, dropout=0.).train()
    mask = block(ha, hb, lam, (8, 8))
    (mask_loss(mask, lam, slack=0.) + (mask*torch.linspace(0, 1, 8).double()).mean()).backward()
    silent = {"attention.key.bias"} | ({"content.0.bias"} if options[1] == "two layers" else set())
    for name, value in block.named_parameters():
        assert value.grad.isfinite().all(), name
        assert name in silent or value.grad.abs().max() > 1e-9, name


def test_fresh_weights():
    "Convolutions: standard deviation .01 and biases zero; γ is 0, so that λ changes nothing."
    block = MixBlock(256)
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            assert abs(part.weight.std() - .01) < .002 and not part.bias.any()
    ha, hb, lam = draw(channels=256)
    block = block.double().eval()
    assert block.encoding.gamma == 0 and torch.equal(block(ha, hb, lam, (8, 8)), block(ha, hb, 1 - lam, (8, 8)))


def test_gamma_stays_between_zero_and_one():
    "Whatever a step does to it, and other weights are left alone."
    block = MixBlock(6)
    for grad, after in ((-50., 1.), (50., 0.), (-.3, .3)):
        block.encoding.gamma.grad = torch.tensor(grad)
        before = block.content[0].weight.clone()
        torch.optim.SGD([block.encoding.gamma], 1.).step()
        block.clamp_()
        assert torch.isclose(block.encoding.gamma.detach(), torch.tensor(after))
        assert torch.equal(block.content[0].weight, before)
        nn.init.zeros_(block.encoding.gamma)


@pytest.mark.parametrize("k", [0., .25, 1.])
def test_fixed_scale_is_learned_scale_at_one(k):
    "With γ = 1 and f_k(λ) for λ the learned block is the fixed one."
    ha, hb, lam = draw()
    learned, fixed = build().eval(), build(("fixed", "two layers", "self", "bilinear", "after"), lam_curve=k).eval()
    fixed.load_state_dict({name: v for name, v in learned.state_dict().items() if not name.endswith("gamma")})
    nn.init.ones_(learned.encoding.gamma)
    curved = flatten_lam(lam, k) if k else lam
    assert torch.allclose(learned(ha, hb, curved, (8, 8)), fixed(ha, hb, lam, (8, 8)))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_both_images_are_scaled(attention):
    "By 1 + γλ the first and by 1 + γ(1 - λ) its partner: the same as features that were so scaled, with γ = 0."
    ha, hb, lam = draw()
    block = build(("learned", "two layers", attention, "bilinear", "after")).eval()
    mask = block(ha, hb, lam, (8, 8))
    own, other = (1 + .6*share.view(5, 1, 1, 1) for share in (lam, 1 - lam))
    nn.init.zeros_(block.encoding.gamma)
    assert torch.allclose(block(own*ha, other*hb, lam, (8, 8)), mask)
    assert not torch.allclose(block(own*ha, own*hb, lam, (8, 8)), mask, atol=1e-6)


def test_swapping_images():
    "With uniform attention a mask depends on its own image and λ alone: swapped images have swapped contents."
    ha, hb, lam = draw()
    block = build().eval()
    nn.init.zeros_(block.attention.query.weight)
    nn.init.zeros_(block.attention.query.bias)
    for own, other, share in ((ha, hb, lam), (hb, ha, 1 - lam)):
        mask = block(own, other, share, (8, 8))
        content = block.content(block.encoding(own, share)).mean((2, 3), keepdim=True).sigmoid()
        assert torch.allclose(mask, content.expand(5, 1, 8, 8))


def test_cross_attention_of_swapped_images_is_transposed():
    "One projection for both: who attends to whom swaps."
    ha, hb, _ = draw()
    cross = build(("concat", "linear", "cross", "nearest", "before")).attention.projection
    there, back = ATTENTIONS["cross"](7, 3).double(), ATTENTIONS["cross"](7, 3).double()
    there.projection, back.projection = cross, cross
    ha, hb = (torch.cat([h, h[:, :1]], 1) for h in (ha, hb))
    scores = [(q.flatten(2).mT @ k.flatten(2)) for q, k in (there(ha, hb), back(hb, ha))]
    assert torch.allclose(scores[0], scores[1].mT)


# ---- precision

def test_bfloat16():
    "Masks and slopes are finite and in float32, close to those of full precision, however large the features."
    ha, hb, lam = (v.float() for v in draw())
    block = build().float().eval()
    full = block(ha, hb, lam, (8, 8))
    for scale in (1., 1e4, 1e15):
        with torch.autocast("cpu", torch.bfloat16):
            mask = block((scale*ha).bfloat16(), (scale*hb).bfloat16(), lam, (8, 8))
            loss = mask_loss(mask, lam)
        assert mask.dtype == loss.dtype == torch.float32 and mask.isfinite().all()
        assert scale > 1 or (mask - full).abs().max() < .1
        block.zero_grad()
        loss.backward()
        assert all(value.grad.isfinite().all() for value in block.parameters())


# ---- dropout and continued runs

def test_dropout_is_drawn_by_the_generator():
    "Torch's own generator is not touched, the same generator gives the same mask; in evaluation nothing is drawn."
    ha, hb, lam = draw()
    block, before = build(dropout=.5).train(), torch.get_rng_state()
    first, same, other = (block(ha, hb, lam, (8, 8), stream(seed, "test")) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    gen = stream(0, "test")
    block.eval()
    assert torch.equal(block(ha, hb, lam, (8, 8), gen), block(ha, hb, lam, (8, 8)))
    assert torch.equal(gen.get_state(), stream(0, "test").get_state())
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_keeps_the_mean():
    x = torch.ones(200, 200)
    for share in (.1, .5):
        dropped = drop(x, share, stream(0, "test"))
        assert abs(dropped.mean() - 1) < .02 and abs((dropped == 0).float().mean() - share) < .01


def train(block, optimizer, steps):
    "Some steps towards masks of the mean λ."
    for step in steps:
        ha, hb, lam = draw(step=step)
        optimizer.zero_grad()
        mask_loss(block(ha, hb, lam, (8, 8), stream(step, "dropout")), lam, slack=0.).backward()
        optimizer.step()
        block.clamp_()


def test_continued_training_is_the_same():
    "A block whose state is saved and loaded half-way ends with the same bits, running statistics included."
    optimizer_of = lambda block: torch.optim.SGD(block.parameters(), .1, .9)   # noqa: E731
    whole = build()
    train(whole, optimizer_of(whole), range(6))
    half = build()
    optimizer = optimizer_of(half)
    train(half, optimizer, range(3))
    again = build(std=.1)
    again.load_state_dict(deepcopy(half.state_dict()))
    resumed = optimizer_of(again)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    train(again, resumed, range(3, 6))
    assert all(torch.equal(v, again.state_dict()[name]) for name, v in whole.state_dict().items())
    assert not torch.equal(whole.content[0].weight, build().content[0].weight)


# ---- what is done with masks

def test_constant_masks_near_the_ends():
    "The margin itself belongs to them, on both sides."
    lam = torch.tensor([.08, .081, .5, .919, .92])
    constant = constant_near_ends(torch.full((5, 1, 2, 2), .3), lam, .08)[:, 0, 0, 0] == lam
    assert constant.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_mask_is_mixup(dtype):
    "Also when it comes from `constant_near_ends`."
    xa, xb = torch.rand(2, 5, 3, 8, 8, generator=stream(0, "test"), dtype=dtype)
    lam = torch.tensor([0, .05, .5, .93, 1], dtype=dtype)
    mask = constant_near_ends(torch.rand(5, 1, 8, 8, dtype=dtype), lam, .5)
    mixed, share = by_mask(xa, xb, lam, None, mask)
    assert torch.equal(mixed, mixup(xa, xb, lam, None)[0]) and share is lam
    assert torch.allclose(by_mask(xb, xa, 1 - lam, None, 1 - mask)[0], mixed)


def test_adjusted_masks_have_the_mean_lam():
    "On both sides, within rounding; inside the margin they stay; scaling never changes the order of pixels."
    gen = stream(0, "test")
    s = torch.rand(200, 1, 6, 6, generator=gen).double()**(8*torch.rand(200, 1, 1, 1, generator=gen).double())
    lam = torch.rand(200, generator=gen).double()
    over = s.mean((1, 2, 3)) > lam
    assert over.any() and not over.all()
    now = adjusted(s, lam)
    assert torch.allclose(now.mean((1, 2, 3)), lam, atol=1e-14) and (now >= 0).all() and (now <= 1).all()
    ordered = now.flatten(1).gather(1, s.flatten(1).argsort(1))
    assert (ordered.diff() >= -1e-15).all()
    assert (now <= s)[over].all() and (now >= s)[~over].all()
    inside = (s.mean((1, 2, 3)) - lam).abs() <= .2
    assert torch.equal(adjusted(s, lam, .2), torch.where(inside.view(-1, 1, 1, 1), s, now))


def test_adjusting_has_finite_slopes():
    "For masks of zeros and of ones as well."
    s = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4), torch.rand(1, 4, 4)]).requires_grad_()
    for lam in (0., .4, 1.):
        s.grad = None
        adjusted(s, torch.tensor([lam])).square().sum().backward()
        assert s.grad.isfinite().all()


@pytest.mark.slow
def test_mask_loss_pulls_the_mean_and_spreads_pixels():
    "Descent on a mask: with the variance it ends in zeros and ones, without it only its mean comes within the slack."
    start = .5 + .1*torch.rand(1, 1, 8, 8, generator=stream(0, "test"))
    ends = {}
    for variance in (0., 2.):
        score = start.logit().requires_grad_()
        optimizer = torch.optim.Adam([score], .05)
        for _ in range(600):
            optimizer.zero_grad()
            mask_loss(score.sigmoid(), torch.tensor([.25]), variance=variance).backward()
            optimizer.step()
        ends[variance] = score.detach().sigmoid()
    assert all(abs(s.mean() - .25) < .13 for s in ends.values())
    assert ends[0.].std() < .1 and (ends[2.]*(1 - ends[2.])).mean() < .01


def test_mask_loss_of_a_batch():
    "Means of images may differ if that of the batch is right; one λ or the same for each image is the same loss."
    s = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]).double()
    lam = torch.tensor([.5]).double()
    assert torch.isclose(mask_loss(s, lam, mean_of="batch"), torch.tensor(-.5).double())   # variance 1/4, twice
    assert torch.isclose(mask_loss(s, lam), torch.tensor(.4).double())                     # each is .5 away, .1 allowed
    for mean_of in ("image", "batch"):
        assert torch.equal(mask_loss(s, lam.expand(2), mean_of=mean_of), mask_loss(s, lam, mean_of=mean_of))
    with pytest.raises(ConfigError, match="mean_of"):
        mask_loss(s, lam, mean_of="pixel")


# ---- the encoder

@pytest.mark.parametrize("arch, side, factor", [
    ("resnet8", 32, 4), ("resnet8", 16, 4), ("resnet18", 32, 4), ("resnet18", 224, 16)])
def test_what_the_block_sees(arch, side, factor):
    "The features' scale; `stage_width` is their number of channels and touches no statistics, in either mode."
    encoder = BACKBONES[arch](side)
    state = deepcopy(encoder.state_dict())
    width = stage_width(encoder, 3)
    assert encoder.training and all(torch.equal(v, state[name]) for name, v in encoder.state_dict().items())
    with torch.no_grad():
        h = stage(encoder.eval(), torch.zeros(1, 3, side, side))
    assert h.shape == (1, width, side//factor, side//factor) and stage_width(encoder, 3) == width
    assert not encoder.training


def test_width_of_an_encoder_that_fails():
    "Its parts are in the mode in which they were."
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")
    encoder = nn.Sequential()
    for name, part in dict(layer1=nn.Conv2d(3, 4, 1), layer2=nn.BatchNorm2d(4).eval(), layer3=Fails()).items():
        encoder.add_module(name, part)
    with pytest.raises(RuntimeError, match="no"):
        stage_width(encoder, 3)
    assert encoder.training and encoder.layer1.training and not encoder.layer2.training
    assert stage_width(encoder, 2) == 4


@pytest.mark.parametrize("call, words", [
    (lambda: stage(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 8, 8)), "layer3"),
    (lambda: build()(*draw(channels=8), (8, 8)), "features .N, 6, h, w."),
    (lambda: build()(draw()[0], draw()[1][:3], draw()[2], (8, 8)), "partners"),
    (lambda: build()(*draw()[:2], torch.rand(3), (8, 8)), "λ of shape"),
    (lambda: MixBlock(6, attention="both"), "unknown attention"), (lambda: MixBlock(6, dropout=1.), "dropout"),
    (lambda: MixBlock(6, lam_curve=.25), "lam fixed")])
def test_sentences(call, words):
    "What does not fit is refused in one sentence that names it."
    with pytest.raises(ConfigError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
