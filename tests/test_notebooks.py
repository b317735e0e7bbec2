"The library's notebooks run, show what is stored in them, and are small."
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from notebooks import ROOT, SHOWN, nbformat, texts
from warm import WARM

PROGRAM = Path(__file__).parent/"programs"/"nbdev_outputs.py"
STORED_BY = "AVX512"                          # the CPU that ran the committed notebooks
TRAINED = re.compile(r"\d+\.\d+(e-?\d+)?")   # a number that training may have made

stored = pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.stem)


def outputs(path):
    cells = json.loads(path.read_text())["cells"]
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def alike(now, then):
    "Whether two texts are the same but for numbers that another CPU, training anew, has within a tenth."
    pairs = zip(*([float(number[0]) for number in TRAINED.finditer(text)] for text in (now, then)))
    near = all(abs(a - b) <= .1*max(1, abs(b)) for a, b in pairs)
    return near and TRAINED.sub("#", now).split() == TRAINED.sub("#", then).split()


def test_numbers_of_another_cpu_are_near():
    "Words and counts are the same."
    then = "linear   0.439 after 10 epochs, loss 6.2694"
    assert alike("linear   0.522 after 10 epochs, loss 6.2727", then) and alike(then.replace("   ", "  "), then)
    for now in ("linear 0.55 after 10 epochs, loss 6.2", "linear 0.439 after 9 epochs, loss 6.2", "linear 0.439"):
        assert not alike(now, then)


@pytest.mark.slow
@stored
def test_running_shows_what_is_stored(path, tmp_path):
    "`nbdev_test` passes, and the text of every cell is the committed one, as `alike` on another CPU."
    done = subprocess.run([*WARM, PROGRAM, path, tmp_path/path.name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    now, then = texts(nbformat.read(tmp_path/path.name, 4)), texts(nbformat.read(path, 4))
    same = str.__eq__ if torch.backends.cpu.get_cpu_capability() == STORED_BY else alike
    changed = [i for i in sorted({*now, *then}) if not same(now.get(i, ""), then.get(i, ""))]
    assert not changed, "\n".join(f"cell {i}: stored {then.get(i)!r}, now {now.get(i)!r}" for i in changed)


@stored
def test_pictures_are_small(path):
    "A picture has at most 40 kB, a notebook 300 kB."
    sizes = [len(output["data"]["image/png"])*3//4 for output in outputs(path) if "image/png" in output.get("data", {})]
    assert all(size <= 40_000 for size in sizes), sizes
    assert path.stat().st_size <= 300_000


@stored
def test_outputs_hold_no_machine(path):
    "No path, no address of an object, no timing, no warning and no error."
    for output in outputs(path):
        assert output["output_type"] != "error" and output.get("name") != "stderr"
        text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
        machine = re.search(r"/(home|root|tmp|work|Users)/|\bat 0x[0-9a-f]{6}|\b\d+(\.\d+)? ?(ms|µs)\b|Warning:", text)
        assert not machine, text[max(0, machine.start() - 100):machine.end() + 100]


def test_every_library_notebook_shows_something():
    "A reader on GitHub sees results, not only code."
    bare = [path.name for path in SHOWN if not outputs(path)]
    assert not bare, bare


def test_every_notebook_that_nbdev_tests_is_among_them():
    "All but those that say `skip_exec`."
    every = [path for path in (ROOT/"nbs").rglob("*.ipynb") if "checkpoints" not in str(path)]
    assert {*SHOWN} == {path for path in every if "- skip_exec: true" not in path.read_text()} and len(SHOWN) > 20
