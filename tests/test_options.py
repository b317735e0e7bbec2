"""An option belongs to the part that reads it: for every option of every part and every method.

The first version accepted settings that a method does not have: of 491 pairs tried, 252 silently made another run with
the same training.
"""
from functools import cache, lru_cache
from typing import Literal, get_args, get_origin

import pytest
import torch
from mixsupcon.core.configure import configure, options as listed
from mixsupcon.core.goals import MoCo
from mixsupcon.core.learned_mixers import CleanAndMixed, CrossView
from mixsupcon.core.methods import METHODS, all_owners
from mixsupcon.core.mixers import MIXER_OPTIONS
from mixsupcon.core.options import Refusal, gathered, identity, idle, options, refused, values
from mixsupcon.core.recipe import PROBES
from mixsupcon.core.strategies import uses_momentum_encoder
from small import build, draw, loss, owned, small

owned, small = (lru_cache(None, typed=True)(function) for function in (owned, small))   # the same configs come often

OWNERS = {}   # option -> names of the classes that have it
for owner in all_owners():
    for name in options(owner):
        OWNERS.setdefault(name, set()).add(owner.__name__)
KINDS = {name: kind for owner in all_owners() for name, kind in options(owner).items()}

CONTEXT = dict(   # what else must be set for an option to act
    own_view=dict(positives_by="class"), queue_start=dict(queue=24), bn_splits=dict(last_batch="drop"),
    empty=dict(normalizer="anchor", contrast_set="n", label_sim="instance"),
    small_size=dict(small_crops=2, small_size=8), small_scale=dict(small_crops=2, small_size=8),
    jitter_prob=dict(jitter=.4), hue_share=dict(jitter=.4), gray_first=dict(jitter=.4, gray=.2),
    colour_first=dict(jitter=.4), mixer_odds=dict(mixer="mixup cutmix"), mixer_per=dict(mixer="mixup cutmix"),
    alpha=dict(mixer="mixup"),
    lam_per=dict(mixer="mixup"), fold=dict(mixer="cutmix"), partner=dict(mixer="mixup"), hidden=dict(head="mlp"),
    lars_trust=dict(optimizer="lars"), milestones=dict(schedule="step"), decay=dict(schedule="step"),
    cosine_end=dict(schedule="cosine"), cosine_clock=dict(schedule="cosine"), warmup_lr=dict(warmup_epochs=2),
    warmup_ends=dict(warmup_epochs=2), inside_alpha=dict(inside_mixer="cutmix"),
    block_lam_curve=dict(block_lam="fixed"), block_sigmoid=dict(block_upsampling="bilinear"),
    adjust_margin=dict(adjust="yes"), bce_weight=dict(block_loss="own bce"), clusters=dict(block_loss="ce_clusters"))
ALONG = dict(small_crops=dict(small_size=8))   # what must be changed along with an option
OTHER = dict(   # values to change to, where another of its type would not do
    dataset=["digits_low"], data_dir=["elsewhere"], transfer=["digits_low"], normalise=["cifar10"], image_size=[8],
    epochs=[7], batch_size=[24, 6], tau=[.3], base_tau=[.5], queue=[48], predictor=[5], out=[5], hidden=[8],
    prototypes=[5], white_size=[12], white_eps=[.01], views=[3], alpha=[.3], mixer_odds=["0 1", "1 0"],
    mixer=["mixup", "cutmix"], small_scale=[".1 .2"], small_size=[9], small_crops=[2], bn_splits=[3], milestones=[".5"],
    warmup_epochs=[3], warmup_steps=[5], warmup_lr=[.02], decay=[.3], cosine_end=[.5], probe_milestones=[".5"],
    probe_lrs=[".1 1"], lars_trust=[.01], momentum=[.5], seed=[3], arch=["resnet18"], siam_weight=[.3],
    view_share=[.3], jitter=[.3], hue_share=[.2], jitter_prob=[.5], crop_min=[.9], mix_weight=[.5], mix_tau=[.2],
    gray=[.3], probe_decay=[.5], track=["tensorboard"], inside_mixer=["cutmix"], block_layer=[2], block_loss=["bce"],
    adjust_margin=[1.], lam_margin=[.5], clusters=[6])
FOLLOWED = {"block_momentum", "block_momentum_schedule"}   # refused where the goal has a momentum encoder of its own
WHITENED_AND_MIXED = {"wmse2_unmix", "wmse4_unmix"}
FIXED = dict(   # options for which a method has one value only
    share_bn={"moco_imix", "mocon_imix", "byol_imix"},   # their encoder sees mixtures alone
    **dict.fromkeys(sorted(FOLLOWED), {"amix_i", "amix_c"}), partner=WHITENED_AND_MIXED,
    last_batch={"wmse2", "wmse4"} | WHITENED_AND_MIXED,   # whole batches are whitened
    mixed_views={"wmse4_unmix"}, target_view={"wmse4_unmix"})
LATER = {   # options that act after the first step: its encoders, rates and weights are as they start
    "momentum", "momentum_schedule", "predictor_lr", "frozen_steps", "queue_start", "small_scale",
    "block_momentum", "block_momentum_schedule", "block_lr", "block_lr_end", "mask_schedule"}
INERT = {("supcon", "empty")}   # with both views of every image, no row is without positives


def others(name, value):
    "Values of an option besides `value`."
    if name in OTHER:
        return [other for other in OTHER[name] if other != value]
    kind = KINDS[name]
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if word != value]
    base, *limits = get_args(kind) or [kind]
    if base is str:
        return [word for word in limits[0].known if word != value] if limits else ["other"]
    return [base(value + 1) if base is int else value/2 + .1]


def context(method, name, **given):
    "What must be set for the option to act in that method."
    mine = owned(method, **given)
    more = {k: v for k, v in CONTEXT.get(name, {}).items() if k in mine or k in ("optimizer", "schedule")}
    if name == "share_bn" and METHODS[method].goal is MoCo and "imix" not in method:
        more |= dict(sides="both")
    if METHODS[method].strategy in (CleanAndMixed, CrossView) and "mixer_odds" != name:   # they mix as they are
        more.pop("mixer", None)
    return more


def changes(method, name, **given):
    "Config with the option as it is, and those with it changed; nothing that is refused."
    more = context(method, name, **given) | given
    plain, changed = small(method, **more), []
    for value in others(name, getattr(plain, name)):
        try:
            changed.append(small(method, **more | {name: value} | ALONG.get(name, {})))
        except Refusal:
            pass
    return plain, changed


def mine(method):
    "The options of a method, those of other schedules and optimisers included."
    of_choices = "lars_trust", "milestones", "decay", "cosine_end", "cosine_clock"
    return {**owned(method), **dict.fromkeys(of_choices)}


@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_another_method_is_refused_with_its_owner(method):
    "Whatever its value, the usual one included."
    of_probes = {option for probe in PROBES.values() for option in options(probe)}
    for name in OWNERS.keys() - mine(method).keys() - of_probes:
        owner = next(owner for owner in all_owners() if name in options(owner))
        for value in (getattr(owner, name), others(name, getattr(owner, name))[0]):
            sentence = refused(configure, method=method, **{name: value})
            assert f"{method} has no {name}" in sentence, sentence
            assert any(owner in sentence for owner in OWNERS[name]) and "\n" not in sentence, sentence


@pytest.mark.parametrize("probe", PROBES)
def test_an_option_of_another_probe_is_refused(probe):
    for name in {option for other in PROBES.values() for option in options(other)} - options(PROBES[probe]).keys():
        value = OTHER.get(name, [1])[0]
        assert f"has no {name}" in refused(configure, probe=probe, **{name: value})


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_option_that_is_owned_makes_another_run(method):
    "Unless it is one of those that change no number."
    for name in mine(method):
        if method in FIXED.get(name, ()):
            continue
        plain, changed = changes(method, name)
        assert changed, f"{method}: no other value of {name} is accepted"
        free = name in gathered(plain, "free")
        assert (identity(plain, "data") == identity(changed[0], "data")) == free, f"{method}: {name}"


@pytest.mark.parametrize("method", METHODS)
def test_an_idle_option_is_refused_with_the_reason(method):
    "What would change nothing as things stand."
    cfg = small(method)
    for name, reason in idle(cfg).items():
        for value in others(name, getattr(cfg, name)):
            sentence = refused(small, method, **{name: value})
            assert f"{name} changes nothing, for {reason}" in sentence or name in sentence, sentence


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_option_is_refused_in_a_sentence(name):
    for method in FIXED[name]:
        usual = getattr(configure(method), name)
        for value in others(name, usual):
            assert len(refused(small, method, **{name: value})) > 20


def learned_mixers(cfg):
    "The part that a mixer which learns brings."
    return [part for part in cfg.parts if type(part) in MIXER_OPTIONS.values()]


def acts_in_the_loss(cfg):
    "The options of goal, strategy, learned mixer, InputMix and head that act in the first step's loss."
    parts = [cfg.goal, cfg.strategy, *(part for part in cfg.parts if type(part).__name__ in ("Head", "InputMix"))]
    parts += learned_mixers(cfg)
    return {name for part in parts for name in options(part)} - LATER | {"bn_splits", "zero_init"}


@cache
def value(cfg, seed):
    "The first step's loss; a learned mixer's masks are not as good as constant, as they are at the start."
    net = build(cfg)
    for p in net.mix_block.parameters() if hasattr(net, "mix_block") else ():
        p.data *= 50
    return loss(cfg, net, seed=seed).loss.item()


def differ(a, b):
    "Whether the losses of two configs differ in one of three draws."
    torch.set_num_threads(1)
    return any(abs(value(a, seed) - value(b, seed)) > 1e-9 for seed in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_option_that_is_owned_acts_in_the_loss(method):
    "At one of its other values, in one of three draws: what can be set changes what is computed."
    inert = []
    for name in sorted(acts_in_the_loss(small(method))):
        if method in FIXED.get(name, ()) or (name == "queue" and "swav" in method):   # SwAV's is empty at first
            continue
        plain, changed = changes(method, name)
        if (method, name) not in INERT and not any(differ(plain, cfg) for cfg in changed):
            inert.append(name)
    assert not inert, f"{method}: {inert} can be set and change nothing"


OWN_ALONE = {"block_loss", "bce_weight", "clusters"}   # refused where the block learns from the method's own loss


@pytest.mark.slow
@pytest.mark.parametrize("method, mixer", [
    ("ce", "amix"), ("mixsupcon", "amix"), ("npair_imix", "automix"), ("moco_unmix", "amix"), ("mixco", "automix")])
def test_an_option_of_a_learned_mixer_acts_in_any_method(method, mixer):
    "It makes another run, and another loss if it acts in the first step; what belongs to other losses is refused."
    part, = learned_mixers(small(method, mixer=mixer))
    away = OWN_ALONE | (FOLLOWED if uses_momentum_encoder(METHODS[method].goal) else set())
    inert = []
    for name in sorted(options(part).keys() - away):
        plain, changed = changes(method, name, mixer=mixer)
        assert changed and identity(plain, "data") != identity(changed[0], "data"), name
        if name not in LATER and not any(differ(plain, cfg) for cfg in changed):
            inert.append(name)
    assert not inert, f"{method} with mixer {mixer}: {inert} can be set and change nothing"
    for name in away:
        assert name in refused(small, method, mixer=mixer, **{name: others(name, getattr(part, name))[0]})


def test_names_are_unique_within_a_method():
    for method in METHODS:
        names = [name for part in configure(method).parts for name in options(part)]
        assert len(names) == len({*names}) == len(values(configure(method))), method


def test_at_least_as_many_pairs_as_before():
    pairs = sum(len(OWNERS.keys() - owned(method).keys()) for method in METHODS)
    assert pairs > 491 and draw(small("wmse4"))[0][3].shape == (12, 3, 8, 8)


@pytest.mark.parametrize("method", METHODS)
def test_options_are_listed_with_all_that_is_to_know(method):
    "A row for each, whose default can be set, with its value in this run, its range and its meaning."
    table = listed(method)
    assert [*table.columns] == ["owner", "value", "default", "allowed", "meaning"]
    assert {*table.index} == {*values(configure(method))} and table.index.is_unique
    assert table.allowed.ne("").all() and table.meaning.ne("").all()
    assert table.value.to_dict() == values(configure(method))
    assert {*table.index[table.meaning.str.contains("now without effect")]} == {*idle(configure(method))}


def test_help_lists_the_options_of_every_method():
    shared = set.intersection(*({*values(configure(method))} for method in METHODS))
    text = configure.__doc__
    assert not [name for name in shared if f" {name} = " not in text]
    assert 'options("moco_imix")' in text and "epochs = 1000" in text and "0 to 1,000,000" in text
    assert "LARS (with optimizer=lars)" in text and "lars_trust = 0.001" in text
