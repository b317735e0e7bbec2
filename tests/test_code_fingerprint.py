"A run keeps fingerprints of the code that made it: changed code is noticed, changed form is not."
import json
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS, code_behind
from warm import WARM

ROOT = Path(__file__).parents[1]
PRINT = """
import json
import re
import sys
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import code_behind
print(json.dumps(code_behind(configure(sys.argv[1]))))
"""
EVERY = """
import json
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS, code_behind
from mixsupcon.core.models import ENCODERS
kinds = dict(mono="tones", mlp="wine")
data = {arch: next((name for word, name in kinds.items() if word in arch), "digits") for arch in ENCODERS}
runs = [configure(method) for method in METHODS]
runs += [configure("mocon_imix", dataset=data[arch], arch=arch) for arch in ENCODERS]
print(json.dumps([code_behind(cfg) for cfg in runs]))
"""
TRAIN = """
import sys
from pathlib import Path
from mixsupcon.lab.experiment import experiment
sizes = dict(train_images=50, batch_size=25, queue=50, image_size=8)
experiment("moco_imix", Path(sys.argv[1]), epochs=1, probe_epochs=1, **sizes)
"""


@pytest.fixture
def copy(tmp_path):
    "The package in a folder of its own, to be changed."
    copytree(ROOT/"mixsupcon", tmp_path/"mixsupcon", ignore=ignore_patterns("__pycache__"))
    (tmp_path/"settings.ini").write_text((ROOT/"settings.ini").read_text())
    return tmp_path


def run(copy, code, *words):
    "Run code with the package in `copy`: the process that ended."
    path = f"import sys\nsys.path.insert(0, {str(copy)!r})\n"
    done = subprocess.run([*WARM, "-c", path + code, *words], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def change(copy, module, old, new):
    path = copy/"mixsupcon"/module
    text = path.read_text()
    assert text.count(old) >= 1, f"{module} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def fingerprints(copy, method="moco_imix"):
    return json.loads(run(copy, PRINT, method).stdout)


CHANGES = [   # module, old code, new code: each changes numbers of moco_imix
    ("core/goals.py", "logits = q @ k.T/tau", "logits = q @ k.T/tau*1.01"),
    ("core/mixers.py", "eye[p]", "eye[p]*1.01"),
    ("core/strategies.py", "total = total + goal.mixed_term", "total = total + 1.01*goal.mixed_term"),
    ("core/models.py", "slow.lerp_(fast, 1 - momentum)", "slow.lerp_(fast, 1.01 - momentum)"),
    ("core/step.py", "view.x for view", "1.01*view.x for view")]
FORM = [   # the same, otherwise written: pattern and replacement
    ("core/goals.py", r'(def infonce\(.*\n    ").*"', r'\1Another docstring."'),
    ("core/goals.py", r"logits = q @ k\.T/tau\n", "logits = (q @ k.T)/tau   # (N, N)\n\n"),
    ("core/mixers.py", r"    # \(N, N\).*|   # \(N, N\).*", "")]


@pytest.mark.slow
def test_every_method_has_fingerprints():
    for method in METHODS:
        code = code_behind(configure(method))
        assert len(code) > 10 and all(len(digits) == 12 for digits in code.values()), method


@pytest.mark.slow
def test_another_process_has_the_same_fingerprints():
    "Of every method and every encoder, or a run could not be continued tomorrow."
    today, tomorrow = (
        json.loads(subprocess.run([*python, "-c", EVERY], capture_output=True, text=True, check=True).stdout)
        for python in (WARM, [sys.executable]))
    assert len(today) > 50 and today == tomorrow


@pytest.mark.slow
@pytest.mark.parametrize("changed", CHANGES, ids=lambda change: change[0])
def test_changed_code_is_noticed(copy, changed):
    before = fingerprints(copy)
    change(copy, *changed)
    after = fingerprints(copy)
    assert before != after
    assert sum(before.get(name) != digits for name, digits in after.items()) <= 4, "only what was changed"


@pytest.mark.slow
def test_changed_form_is_not(copy):
    "Docstrings, comments, brackets and blank lines."
    before = fingerprints(copy)
    for module, pattern, replacement in FORM:
        path = copy/"mixsupcon"/module
        text, count = re.subn(pattern, replacement, path.read_text())
        assert count, f"{module} has no {pattern}"
        path.write_text(text)
    assert fingerprints(copy) == before


def test_a_change_elsewhere_is_not():
    "Another method's code is no part of a run's."
    assert not any("SwAV" in name or "WMSE" in name for name in code_behind(configure("moco_imix")))


@pytest.mark.slow
@pytest.mark.parametrize("module, old, new", [
    ("core/mixers.py", "eye[p]", "eye[p]*1.01"),
    ("lab/evaluate.py", "return torch.cat(out)\n\nKNN", "return torch.cat(out) + 0\n\nKNN")],
    ids=["mixer", "probe"])
def test_a_finished_run_says_loudly_that_the_code_has_changed(copy, module, old, new):
    run(copy, TRAIN, str(copy/"runs"))
    assert "OTHER CODE" not in run(copy, TRAIN, str(copy/"runs")).stderr
    change(copy, module, old, new)
    assert "OTHER CODE" in run(copy, TRAIN, str(copy/"runs")).stderr
