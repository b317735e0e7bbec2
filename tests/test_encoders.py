"An exported encoder gives the features of its run, also where this package cannot be imported."
import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import random_images
from mixsupcon.core.configure import configure
from mixsupcon.core.options import Refusal
from mixsupcon.lab import encoders
from mixsupcon.lab.command import main
from mixsupcon.lab.data import fingerprint
from mixsupcon.lab.evaluate import Trained, record
from mixsupcon.lab.experiment import run_to_probe
from mixsupcon.lab.runs import open_run, seal, unlock, visit, write_json
from mixsupcon.lab.train import finish, net_for
from safetensors.torch import load_file, save_file
from warm import WARM

ARCHS = [("resnet8", 8), ("resnet18", 32), ("resnet18_pool", 48), ("resnet18", 72)]
if find_spec("timm"):
    ARCHS.append(("timm:vit_tiny_patch16_224", 32))

ALONE = """
import importlib.util, json, re, sys
from pathlib import Path
sys.modules["mixsupcon"] = None   # importing it fails from here on
import torch
from safetensors.torch import load_file, save_file
def load(path):
    spec = importlib.util.spec_from_file_location("load", path)
    sys.modules["load"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
import os
for folder in map(Path, sys.argv[1:]):
    os.chdir(folder)
    images = load_file(folder.parent/f"{folder.name}.images")["images"]
    blocks = re.findall("```python\\n(.*?)\\n```", Path("README.md").read_text(), re.S)
    module, made = load(folder/"load.py"), {}
    with torch.no_grad():
        for i, code in enumerate(blocks):
            if "mixsupcon" not in code:
                scope = dict(images=images)
                exec(code, scope)
                made[f"block {i}"] = scope["net"](module.prepare(images)).contiguous()
    save_file(made, folder.parent/f"{folder.name}.features")
"""


def finished(root, data, arch):
    "A complete run on a data set, its network not trained but with statistics of its own, and features of some images."
    side = data.train_x.shape[-1]
    cfg = configure("supcon", arch=arch, image_size=side, epochs=0, device="cpu", precision="float32")
    folder, net = open_run(cfg, fingerprint(data), root), net_for(cfg, 2, side)
    visit(folder)
    gen = torch.Generator().manual_seed(2)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, .1, generator=gen)
            part.running_var.uniform_(.5, 2, generator=gen)
    finish(cfg, SimpleNamespace(net=net), folder, data, dict(passes=0, seconds=0.), None)
    trained = Trained(folder, data)
    for name, protocols in dict(linear=[cfg.probe], knn=["knn5", "knn20"]).items():
        rows = [record(protocol, "accuracy", .1 + i/3, 20) for i, protocol in enumerate(protocols)]
        rows.append(rows[0] | dict(selection="best_test"))
        write_json(folder/f"{name}.json", dict(net=trained.weights, rows=rows))
    seal(folder, ["linear", "knn"])
    unlock(folder)
    images = torch.randint(256, (3, 3, side, side), dtype=torch.uint8, generator=gen)
    return folder, images, trained.features(images)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A complete run of the smallest network, in a folder with a telling name."
    return finished(tmp_path_factory.mktemp("home-of-somebody"), random_images(20, 8), "resnet8")


@pytest.mark.slow
def test_it_is_loaded_where_this_package_is_not(tmp_path):
    "By load.py and by the lines of the model card, with the same features: ResNets of both stems, our own, timm's."
    folders, expected = [], []
    for i, (arch, side) in enumerate(ARCHS):
        run, images, h = finished(tmp_path/"runs", random_images(20, side), arch)
        folders.append(encoders.export_run(run, tmp_path/f"out{i}"))
        save_file(dict(images=images), tmp_path/f"out{i}.images")
        expected.append(h)
    subprocess.run([*WARM, "-c", ALONE, *folders], check=True)
    for folder, h, (arch, _) in zip(folders, expected, ARCHS):
        made = load_file(f"{folder}.features")
        assert len(made) == (1 if arch == "resnet8" else 2)   # which has no lines of its own in the card
        for name, features in made.items():
            assert h.std() > 1e-3 and torch.allclose(features, h, rtol=1e-4, atol=1e-5), (arch, name)


def test_it_is_loaded_by_this_package(small, tmp_path):
    run, images, h = small
    net, prepare = encoders.load_encoder(encoders.export_run(run, tmp_path/"out"))
    with torch.no_grad():
        assert torch.allclose(net(prepare(images)), h, atol=1e-6)
        net.layer1[0].conv1.weight.mul_(1.5)
        assert not torch.allclose(net(prepare(images)), h, atol=1e-6), "the comparison compares nothing"


def test_it_is_probed_as_an_encoder_from_elsewhere(small, tmp_path):
    "linear_eval's `-p weights`: the features are the run's."
    run, images, h = small
    out = encoders.export_run(run, tmp_path/"out")
    given = dict(dataset="digits", arch="resnet8", image_size=8)
    adopted = run_to_probe(weights=str(out/"model.safetensors"), root=tmp_path/"adopted", **given)
    assert load_file(adopted/"encoder.safetensors").keys() == load_file(run/"encoder.safetensors").keys()
    for name, v in load_file(adopted/"encoder.safetensors").items():
        assert torch.equal(v, load_file(run/"encoder.safetensors")[name])


def test_the_card_is_what_was_measured(small, tmp_path):
    "Its head is YAML; every number is the run's; run, data and licence are named."
    run = small[0]
    card = (encoders.export_run(run, tmp_path/"out", "cc-by-4.0")/"README.md").read_text()
    head, metrics = yaml.safe_load(card.split("---\n")[1]), json.loads((run/"metrics.json").read_text())
    index, = head["model-index"]
    assert head["license"] == "cc-by-4.0" and head["library_name"] == "pytorch" and index["name"] == run.name
    shown = {metric["name"].split(",")[0]: metric["value"] for metric in index["results"][0]["metrics"]}
    last = [row for row in metrics["rows"] if row["metric"] == "accuracy" and row["selection"] == "last"]
    assert shown == {row["protocol"]: round(row["value"], 6) for row in last} and len(last) > 1
    for row in metrics["rows"]:
        assert f"| {row['selection']} | {row['value']:.4f} | {row['n']} |".replace("_", r"\_") in card
    for text in (metrics["identity"], metrics["data"], "Khosla", "Apache-2.0", f"hf upload YOUR-NAME/{run.name} ."):
        assert text in card, text


def test_nothing_of_the_machine_is_in_it(small, tmp_path):
    "No path, no user, no host."
    run = small[0]
    out = encoders.export_run(run, tmp_path/"out")
    for path in out.iterdir():
        text = path.read_bytes()
        for word in (str(run.parent), str(tmp_path), str(Path.home())*(len(str(Path.home())) > 5), "data_dir"):
            assert not word or word.encode() not in text, (path.name, word)


HOSTILE = ["<script>alert(1)</script>", "a\n---\nlicense: mit", "$x$ | `b` [c](d)", "猫と犬", "{{ 7*7 }}"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_harmless_in_the_card(name):
    "In the head they are values, in the text they are no markup."
    config = dict(dataset=name, run=name, method="simclr", image_size=8)
    row = dict(protocol=name, metric="accuracy", value=.5, selection="last", n=1)
    head = yaml.safe_load(encoders.card_head(config, configure("simclr"), [row], "mit").removeprefix("---\n")[:-4])
    assert head["license"] == "mit" and head["model-index"][0]["results"][0]["dataset"]["name"] == name
    table = encoders.markdown_table([row], row)
    assert len(table.splitlines()) == 3 and not re.search(r"(?<!\\)[<>$`\[\]{}]", table.splitlines()[2])
    assert len(re.findall(r"(?<!\\)\|", table.splitlines()[2])) == len(row) + 1


# ---- refusals

def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def test_other_files_are_never_touched(small, tmp_path):
    "A folder with anything else in it, a file, another run's export: refused. The same export: the same bytes."
    run = small[0]
    out = encoders.export_run(run, tmp_path/"out")
    before = files(out)
    assert encoders.export_run(run, out) == out and files(out) == before
    (tmp_path/"thesis").mkdir()
    (tmp_path/"thesis"/"README.md").write_text("my own")
    (tmp_path/"file").write_text("my own")
    other = json.loads((out/"config.json").read_text()) | dict(identity="another")
    (out/"config.json").write_text(json.dumps(other))
    before = {name: files(tmp_path/name) for name in ("out", "thesis")}
    for name in ("out", "thesis", "file"):
        with pytest.raises(Refusal, match="name (an empty|a) folder|cannot be read"):
            encoders.export_run(run, tmp_path/name)
    (out/"notes.txt").write_text("my own")
    with pytest.raises(Refusal, match="holds other files"):
        encoders.export_run(run, out)
    (out/"notes.txt").unlink()
    assert before == {name: files(tmp_path/name) for name in ("out", "thesis")}
    assert (tmp_path/"file").read_text() == "my own"


def test_only_a_complete_run_as_it_was_sealed(fake_run, tmp_path):
    "Neither one that stopped nor one with a changed byte; nothing is written then."
    run = fake_run(method="supcon")
    (run/"encoder.safetensors").write_bytes((run/"encoder.safetensors").read_bytes() + b" ")
    with pytest.raises(Refusal, match="encoder.safetensors .* has been changed"):
        encoders.export_run(run, tmp_path/"out")
    (run/"metrics.json").unlink()
    with pytest.raises(Refusal, match="is not complete"):
        encoders.export_run(run, tmp_path/"out")
    assert not (tmp_path/"out").exists()


def test_the_command_writes_the_folder_and_says_how_to_share_it(small, tmp_path, capsys):
    run = small[0]
    words = ["export", run.name[-12:], "--root", str(run.parent), "--to", str(tmp_path/"out")]
    assert main([*words, "--license", "mit"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path/'out'}\n" and f"hf upload YOUR-NAME/{run.name} {tmp_path/'out'}" in said.err
    assert {path.name for path in (tmp_path/"out").iterdir()} == {*encoders.EXPORTED}
    assert main(words) == 0 and 'license: "mit"' in (tmp_path/"out"/"README.md").read_text()   # once stated, it stays
    assert main([*words, "--license", "mine, all mine"]) == 1
