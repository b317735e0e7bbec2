"Own parts: what each lacks is one sentence before training; what has nothing to lack is trained, named and noticed."
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from mixsupcon.core.configure import configure, options, read, table_of
from mixsupcon.core.goals import Goal, SimCLR, infonce
from mixsupcon.core.methods import METHODS, code_behind, of
from mixsupcon.core.mixers import MIXERS, cutmix
from mixsupcon.core.models import BACKBONES, ENCODERS
from mixsupcon.core.options import PLUGINS, Positive, Refusal, Share, identity, record, refused
from mixsupcon.core.parts import check_own_parts
from mixsupcon.core.strategies import Mixing, Plain, UnMix
from mixsupcon.lab.data import DATASETS, make_dataset
from mixsupcon.lab.experiment import experiment
from mixsupcon.lab.extend import load_plugin, register
from mixsupcon.lab.runs import read_config
from torch import nn
from warm import WARM

ROOT = Path(__file__).parents[1]
QUICK = dict(epochs=1, train_images=50, batch_size=25, image_size=8, probe_epochs=1, arch="resnet8")


@pytest.fixture(autouse=True)
def tables_as_before():
    "What a test registers is gone after it."
    kept = [(table, dict(table)) for table in (METHODS, MIXERS, BACKBONES, DATASETS, PLUGINS)]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


@dataclass(frozen=True)
class Margin(Goal):
    "InfoNCE whose positive has to win by a margin."
    tau: Positive = .1   # temperature
    margin: Share = .2   # taken from the similarity of the positive

    def loss(self, step, q, k):
        loss, gap = infonce(q, k, self.tau), self.margin/self.tau
        p = torch.exp(-loss)   # of the positive; with its logit lowered by the gap, it is p e⁻ᵍ / (p e⁻ᵍ + 1 - p)
        return loss + gap + torch.log1p(p*math.expm1(-gap))


class Undecorated(SimCLR):
    margin: Share = .2


@dataclass(frozen=True)
class Summed(Goal):
    def loss(self, step, q, k):
        return infonce(q, k, .1).sum(1)


@dataclass(frozen=True)
class Pictures(Goal):
    def pair(self, a, b):
        return a.x, b.x

    def loss(self, step, q, k):
        return infonce(q, k, .1)


@dataclass(frozen=True)
class Stranger:
    lr: Share = .1


@dataclass(frozen=True)
class TwoRates(SimCLR):
    lr: Positive = .1


@dataclass(frozen=True)
class Silent(Plain):
    def loss(self, goal, step):
        return goal.base_loss(step).detach()


@dataclass(frozen=True)
class Restless(Mixing):
    def loss(self, goal, step):
        return goal.base_loss(step)*torch.rand(())


def net(*layers, width=None):
    made = nn.Sequential(*layers)
    if width:
        made.width = width
    return made


def no_width(image_size):
    return net(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def wrong_width(image_size):
    return net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), width=5)


def maps(image_size):
    return net(nn.Conv2d(3, 4, 3), width=4)


def gray_only(image_size):
    return net(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), width=4)


def tiny(image_size):
    return net(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), width=4)


def large(image_size):
    if image_size < 100:
        raise ValueError("too small")
    return tiny(image_size)


def images_alone(xa, xb, lam, gen):
    return xa


def pooled(xa, xb, lam, gen):
    return xa.mean((2, 3)), lam


def matrix(xa, xb, lam, gen):
    return xa, torch.eye(len(xa))


def beyond(xa, xb, lam, gen):
    return xa, lam - 1


def unseeded(xa, xb, lam, gen):
    return xa + torch.rand(()), lam


def in_place(xa, xb, lam, gen):
    return xa.add_(xb), lam


def per_image_only(xa, xb, lam, gen):
    return xa*lam.view(6, 1, 1, 1), lam


def no_generator(xa, xb, lam):
    return xa, lam


def no_download(data_dir, image_size):
    return None


def numbers(data_dir, image_size, download):
    return 3


def pairs(data_dir, image_size, download):
    x, y = torch.zeros(20, 3, 8, 8), torch.arange(20) % 2
    return make_dataset(x, y, x, y, ["a", "b"])


@pytest.mark.parametrize("given, sentence", [
    (dict(goal=Undecorated), "write @dataclass(frozen=True) above class Undecorated, else margin has no effect"),
    (dict(goal=Stranger), "a goal is a class derived from Goal"),
    (dict(goal=TwoRates), "option lr of TwoRates is one of Training already"),
    (dict(goal=Summed), "Summed.loss must be (N, N), of query i if key j is its own"),
    (dict(goal=Pictures), "Pictures.pair must return queries and keys, (N, D) each"),
    (dict(goal=SimCLR, strategy=Margin), "a strategy is a class derived from Plain or Mixing"),
    (dict(goal=SimCLR, strategy=Silent), "has no gradient"),
    (dict(goal=SimCLR, strategy=Restless), "draws random numbers of its own: draw them with generator=step.gen"),
    (dict(goal=SimCLR, tua=.2), "unknown option 'tua': did you mean 'tau'?"),
    (dict(goal=SimCLR, tau=20), "tau must lie between 0.001 and 10"),
    (dict(strategy=UnMix), "needs a goal besides its strategy"),
    (dict(encoder=no_width), "has no width: set net.width"),
    (dict(encoder=wrong_width), "has width 5 and must make features (2, 5) of two images, not (2, 3)"),
    (dict(encoder=maps), "has width 4 and must make features (2, 4) of two images"),
    (dict(encoder=gray_only), "cannot take images (2, 3, "),
    (dict(encoder=nn.Linear), "must be a function of (image_size)"),
    (dict(encoder=lambda image_size: tiny(8)), "must be a function that was written with def, or a class"),
    (dict(mixer=images_alone), "must return two tensors"),
    (dict(mixer=pooled), "must return mixed images of shape (6, 3, 8, 8)"),
    (dict(mixer=matrix), "must return the share of the first image as (N,) or (1,), not (6, 6)"),
    (dict(mixer=beyond), "the rows of the mixing matrix do not sum to one"),
    (dict(mixer=unseeded), "draws random numbers of its own: draw them with generator=gen"),
    (dict(mixer=in_place), "changes the images that it is given"),
    (dict(mixer=per_image_only), "with lam (1,): RuntimeError"),
    (dict(mixer=no_generator), "must be a function of (xa, xb, lam, gen)"),
    (dict(dataset=no_download), "must be a function of (data_dir, image_size, download)"),
    (dict(mixer=cutmix, encoder=tiny), "register each under a name of its own"),
    (dict(mixer=cutmix, alpha=2.), "alpha are settings of a method"),
    ({}, "nothing to register")])
def test_what_a_part_lacks_is_said_at_once(given, sentence):
    "And nothing of it stays in a table."
    before = [dict(table_of(option)) for option in ("mixer", "arch", "dataset")] + [dict(METHODS)]
    said = refused(register, "mine", **given)
    assert sentence in said and "\n" not in said, said
    assert before == [dict(table_of(option)) for option in ("mixer", "arch", "dataset")] + [dict(METHODS)]


@pytest.mark.parametrize("name", ["Mine", "my method", "1st", "", "naïve", 3])
def test_names_are_words_of_the_command_line(name):
    assert "small letters, digits and _" in refused(register, name, mixer=cutmix)


def test_the_packages_names_stay_and_own_names_may_be_registered_again():
    for name, given in dict(simclr=dict(goal=Margin), mixup=dict(mixer=cutmix), resnet18=dict(encoder=tiny),
                            digits=dict(dataset=pairs)).items():
        assert f"{name} is a" in refused(register, name, **given)
    for goal in (SimCLR, Margin):
        register("mine", goal=goal)
    assert METHODS["mine"].goal is Margin and "no name" in refused(register, "Mine", goal=Margin)


def test_what_a_data_set_returns_is_looked_at_before_training(tmp_path):
    for function, sentence in ((numbers, "must return make_dataset(train_x, train_y, test_x, test_y, classes)"),
                               (pairs, "training images must be uint8"), (partial(numbers, 1), "TypeError")):
        DATASETS.pop("mine", None)
        try:
            register("mine", dataset=function)
            said = refused(experiment, "simclr", tmp_path, dataset="mine", **QUICK)
        except Refusal as error:
            said = str(error)
        assert sentence in said or "must be a function of" in said, said
    assert not [*tmp_path.iterdir()]


def test_data_of_ones_own_have_the_preset_of_a_folder():
    register("mine", dataset=pairs)
    assert configure("supcon", dataset="mine").preset == configure("supcon", dataset="folder").preset == "own_images"


def test_an_encoder_for_large_images_may_refuse_small_ones(tmp_path):
    register("large", encoder=large)
    said = refused(experiment, "simclr", tmp_path, **QUICK | dict(arch="large"))
    assert "cannot be made for images of 8 pixels: ValueError: too small (line" in said and not [*tmp_path.iterdir()]


def test_tables_may_be_written_directly_and_are_looked_at_before_training(tmp_path):
    "By name: a row of METHODS, a mixer, an encoder."
    METHODS["mine"], MIXERS["beyond"], ENCODERS["no_width"] = of(Summed), beyond, no_width
    assert BACKBONES is ENCODERS
    for given, sentence in ((dict(method="mine"), "Summed.loss must be (N, N)"),
                            (dict(method="mixsupcon", mixer="beyond"), "do not sum to one"),
                            (dict(method="simclr", arch="no_width"), "has no width")):
        assert sentence in refused(experiment, root=tmp_path, **QUICK | given)
    METHODS["mine"] = of(Undecorated)
    assert "write @dataclass" in refused(configure, "mine") and configure("simclr").method == "simclr"
    assert not [*tmp_path.iterdir()]


def test_options_of_own_classes_are_listed_checked_and_named():
    register("margin_unmix", goal=Margin, strategy=UnMix, margin=.3, title="Margin + Un-Mix")
    table = options("margin_unmix")
    assert table.loc["margin"].tolist() == ["Margin", .3, .2, "0 to 1", "taken from the similarity of the positive"]
    assert "margin must lie between 0 and 1" in refused(configure, "margin_unmix", margin=2)
    assert "it is an option of Margin" in refused(configure, "simclr", margin=.1)
    assert METHODS["margin_unmix"].title == "Margin + Un-Mix" and of(Margin, UnMix).title == "Margin + Un-Mix"
    cfg = configure("margin_unmix", margin=.1)
    assert read(json.loads(json.dumps(record(cfg)))) == cfg


def test_the_margin_of_the_tutorial_is_one():
    "The positive's logit is lowered in numerator and denominator; without margin it is InfoNCE; the gradient changes."
    q, k = nn.functional.normalize(torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), dim=2).double()
    gradients = []
    for margin in (0., .2, .5):
        q.requires_grad_()
        table = Margin(margin=margin).loss(None, q, k)
        logits = q @ k.T/.1
        lowered = [logits - margin/.1*nn.functional.one_hot(torch.tensor(j), 6) for j in range(6)]
        by_hand = torch.stack([-own.log_softmax(1)[:, j] for j, own in enumerate(lowered)], 1)
        assert torch.allclose(table, by_hand, atol=1e-10)
        gradients += torch.autograd.grad(table.diag().mean(), q)
        assert margin or torch.equal(table, infonce(q, k, .1))
    assert not any(torch.allclose(gradients[0], other) for other in gradients[1:])


def test_code_of_a_method_that_was_not_registered_counts_too():
    "Whatever module of the user's it is in."
    METHODS["mine"] = of(Margin, UnMix)
    cfg = configure("mine")
    assert any(name.endswith("Margin") for name in code_behind(cfg))
    METHODS["plain"] = of(SimCLR)
    assert identity(cfg, "d") != identity(configure("plain"), "d")


# ---- timm

@pytest.mark.slow
@pytest.mark.parametrize("arch, given, sentence", [
    ("timm:resnet26", {}, ""), ("timm:resnet26", dict(mixer="manifoldmix"), ""),
    ("timm:resnet26", dict(bn_splits=2, last_batch="drop"), ""),
    ("timm:vit_tiny_patch16_224", dict(mixer="cutmix"), ""),
    ("timm:vit_tiny_patch16_224", dict(mixer="manifoldmix"), "has no place where manifoldmix can mix"),
    ("timm:vit_tiny_patch16_224", dict(bn_splits=2, last_batch="drop"), "has no torch.nn.BatchNorm2d"),
    ("timm:vit_tiny_patch16_224", dict(zero_init="yes"), "has no residual blocks"),
    ("timm:efficientnet_b0", dict(bn_splits=2, last_batch="drop"), "has other batch norms than")])
def test_what_a_timm_model_lacks_is_said(arch, given, sentence):
    pytest.importorskip("timm")
    cfg = configure("mixsupcon", arch=arch, **given)
    if sentence:
        assert sentence in refused(check_own_parts, cfg, 32)
    else:
        check_own_parts(cfg, 32)
    assert any(name.startswith("timm_encoder(") for name in code_behind(cfg))


@pytest.mark.slow
def test_timm_names():
    pytest.importorskip("timm")
    assert "did you mean 'resnet26'?" in refused(configure, arch="timm:resnet27")
    assert "unknown arch 'tim:resnet26'" in refused(configure, arch="tim:resnet26")
    assert "cannot be made for images of 8 pixels" in refused(
        check_own_parts, configure("simclr", arch="timm:vit_tiny_patch16_224"), 8)


def test_without_timm_the_pip_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refused(configure, arch="timm:resnet26") == "arch timm:resnet26 needs timm: pip install 'mixsupcon[timm]'"


# ---- files

MINE = '''
from dataclasses import dataclass
from mixsupcon import register
from mixsupcon.core.goals import SimCLR
from mixsupcon.core.mixers import cutmix
from mixsupcon.core.options import Positive
from mixsupcon.core.strategies import UnMix
from my_lib import HALF

@dataclass(frozen=True)
class Scaled(SimCLR):
    "SimCLR times a number."
    weight: Positive = 1.   # of the loss

    def loss(self, step, q, k):
        return self.weight*super(Scaled, self).loss(step, q, k)

def cut_half(xa, xb, lam, gen):
    return cutmix(xa, xb, 0*lam + HALF, gen)

register("cut_half", mixer=cut_half)
register("scaled", goal=Scaled, strategy=UnMix, mixer="cut_half")
register("halved", goal=SimCLR, strategy=UnMix, mixer="cut_half")
'''


@pytest.fixture
def plugin(tmp_path):
    "A file of own parts, and one beside it that it imports."
    (tmp_path/"my_lib.py").write_text("HALF = .5\n")
    (tmp_path/"my_methods.py").write_text(MINE)
    return tmp_path/"my_methods.py"


@pytest.mark.parametrize("text, sentence", [
    ("x = 1\nprint(1/0)\n", "my.py: ZeroDivisionError: division by zero (line 2 of my.py: print(1/0))"),
    ("def f(:\n", "SyntaxError: invalid syntax (line 1 of my.py: def f(:)"),
    ("import nothing_there\n", "ModuleNotFoundError: No module named 'nothing_there' (line 1 of my.py"),
    ("import sys\nsys.exit(3)\n", "SystemExit: 3 (line 2 of my.py: sys.exit(3))"),
    ("from mixsupcon import register\nfrom mixsupcon.core.mixers import cutmix\n"
     "register('first', mixer=cutmix)\nregister('second', mixer=3)\n",
     "(line 4 of my.py: register('second', mixer=3))"),
    ("x = 1\n", "adds nothing: call register(...) in it")])
def test_a_file_that_cannot_be_loaded_leaves_nothing(tmp_path, text, sentence):
    (tmp_path/"my.py").write_text(text)
    before = dict(MIXERS), dict(METHODS)
    assert sentence in refused(load_plugin, str(tmp_path/"my.py"))
    assert (dict(MIXERS), dict(METHODS)) == before and not PLUGINS and configure("simclr").preset == "digits"


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(load_plugin, "my.py")
    assert said.startswith("plugin my.py is not in ") and str(tmp_path) in said
    (tmp_path/"my.txt").write_text("")
    assert "must be a Python file" in refused(load_plugin, "my.txt")
    assert load_plugin(None) is load_plugin("") is None


def test_a_file_is_named_in_the_record_of_runs_that_use_it(plugin):
    loaded = load_plugin(str(plugin))
    assert load_plugin(str(plugin)) is loaded and loaded.names == dict(
        method=["halved", "scaled"], mixer=["cut_half"])
    own = [dict(file="my_methods.py", digest=loaded.digest)]
    for given in (dict(method="scaled"), dict(method="mixsupcon", mixer="cut_half")):
        cfg = configure(**given)
        saved = record(cfg)
        assert saved["plugins"] == own and read(saved) == cfg
        assert "plugins" not in record(configure("mixsupcon"))
        kept = dict(METHODS), dict(MIXERS)
        del METHODS["scaled"], MIXERS["cut_half"]
        sentence = "pass -p plugin my_methods.py to the notebook, --plugin my_methods.py to a command"
        assert f"but of my_methods.py: {sentence}" in refused(read, saved)
        METHODS.update(kept[0])
        MIXERS.update(kept[1])
    assert options("scaled").meaning["weight"] == "of the loss"


@pytest.mark.slow
def test_a_changed_file_is_loaded_again(plugin):
    first = load_plugin(str(plugin))
    plugin.write_text(MINE.replace('register("halved"', 'register("third"'))
    again = load_plugin(str(plugin))
    assert again.digest != first.digest and "third" in again.names["method"] and len(PLUGINS) == 1


TRAIN = """
from pathlib import Path
from mixsupcon import experiment, load_plugin
load_plugin("my_methods.py")
sizes = dict(train_images=50, batch_size=25, image_size=8, epochs=1, probe_epochs=1, arch="resnet8")
for method in ("halved", "scaled"):
    print(experiment(method, Path("runs"), **sizes).folder.name)
"""


@pytest.mark.slow
def test_changed_code_of_a_users_file_is_noticed(plugin):
    "Of a mixer, and of what its file imports: OTHER CODE. Of a goal, which is part of the identity: another run."
    def train():
        (plugin.parent/"train.py").write_text(TRAIN)
        done = subprocess.run([*WARM, "train.py"], cwd=plugin.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        folders = [word for word in done.stdout.split() if word.startswith(("halved-", "scaled-"))]
        return folders, (done.stdout + done.stderr).count("OTHER CODE")
    first, changed = train()
    assert not changed and len(first) == 2
    (plugin.parent/"my_lib.py").write_text("HALF = .4\n")
    assert train() == (first, 2)
    (plugin.parent/"my_lib.py").write_text("HALF = .5\n")
    other = MINE.replace("0*lam + HALF", "0*lam + .9*HALF")
    plugin.write_text(other.replace("self.weight*super", "2*self.weight*super"))
    again, changed = train()
    assert changed == 1 and again[0] == first[0] and again[1] != first[1]


@pytest.mark.slow
def test_papermill_loads_a_users_file(plugin, project_copy):
    (project_copy/"my_lib.py").write_text("HALF = .5\n")
    (project_copy/"my_methods.py").write_text(MINE)
    words = "nbs/run_experiment.ipynb -p plugin my_methods.py -p method scaled -p weight 2.0".split()
    words += [word for name, value in QUICK.items() for word in ("-p", name, str(value))]
    papermill = Path(sys.executable).with_name("papermill")
    done = subprocess.run([*WARM, papermill, *words], cwd=project_copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    folder, = (project_copy/"outputs"/"runs").glob("scaled-*")
    saved = json.loads((folder/"config.json").read_text())
    assert saved["config"]["weight"] == 2 and saved["config"]["plugins"][0]["file"] == "my_methods.py"
    assert "are not of this package, but of my_methods.py: pass -p plugin my_methods.py" in refused(read_config, folder)


@pytest.mark.slow
def test_a_function_without_a_source_is_refused():
    code = ("from mixsupcon import register\ndef mine(xa, xb, lam, gen): return xa, 0*lam + 1\n"
            "register('mine', mixer=mine)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the source of mixer mine cannot be read" in done.stderr, done.stderr
