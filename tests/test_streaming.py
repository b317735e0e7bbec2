"Images that are read from the disk at each step: the same numbers as from memory, and memory that does not grow."
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.options import identity, refused, stream
from mixsupcon.core.views import crop_boxes
from mixsupcon.lab import data, streaming, train
from mixsupcon.lab.data import fingerprint, load_data
from mixsupcon.lab.evaluate import Trained, features_of, knn_of, linear_of
from mixsupcon.lab.runs import checkpoints, read_log
from mixsupcon.lab.streaming import Images
from mixsupcon.lab.train import batches_of, first_step, pretrain, resolve_device, step_views, view_kinds
from PIL import Image
from torchvision.transforms.v2 import functional as tv
from warm import WARM

SMALL = dict(dataset="folder", preset="digits", image_size=16, epochs=2, batch_size=8, probe_epochs=2, device="cpu")
DISK, PACKED = dict(memory_gb=1e-6), dict(memory_gb=1e-6, pack="on")


def paint(path, seed, high=40, wide=56):
    "A photograph: soft shapes and noise, as a JPEG."
    gen = stream(seed, "photograph")
    soft = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5, generator=gen), (high, wide), mode="bicubic")[0]
    x = (255*soft + 8*torch.randn(3, high, wide, generator=gen)).clamp(0, 255).byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(path, quality=90)


@pytest.fixture
def zoo(tmp_path):
    "Two classes of photographs of different sizes."
    for i in range(30):
        paint(tmp_path/"zoo"/("ant" if i % 2 else "bee")/f"{i:02d}.jpg", i, 40 + i, 60 - i)
    return tmp_path/"zoo"


@pytest.fixture
def pile(tmp_path):
    "Photographs without classes."
    for i in range(24):
        paint(tmp_path/"pile"/f"{i:02d}.jpg", i, 40 + i, 60 - i)
    return tmp_path/"pile"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "What is known of images is kept beside the test's folder, in blocks of five."
    monkeypatch.setattr(data, "project", lambda: tmp_path)
    monkeypatch.setattr(streaming, "BLOCK", 5*3*16*16)


def run(root, method="simclr", **given):
    return configure(method, **SMALL | dict(data_dir=str(root)) | given)


def trained(cfg, place):
    "The trained run and the bytes of its weights."
    images = load_data(cfg)
    folder = pretrain(cfg, images, place)
    return Trained(folder, images), (folder/"net.safetensors").read_bytes()


# The same numbers


@pytest.mark.slow
@pytest.mark.parametrize("how", [DISK, PACKED], ids=["decoded", "packed"])
@pytest.mark.parametrize("given", [dict(), dict(method="mixsupcon", train_images=17)], ids=["all", "some"])
def test_streamed_training_has_the_same_bits(zoo, tmp_path, how, given):
    (one, weights), (other, streamed) = (
        trained(run(zoo, **given | more), tmp_path/place) for place, more in (("memory", {}), ("disk", how)))
    assert torch.is_tensor(one.data.train_x) and isinstance(other.data.train_x, Images)
    assert weights == streamed and one.folder.name == other.folder.name   # also the same identity
    assert torch.equal(one.train_h, other.train_h)
    for measure in (linear_of, knn_of):
        assert measure(one)["rows"] == measure(other)["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [DISK, PACKED], ids=["decoded", "packed"])
def test_images_without_classes_and_those_beside_classes(pile, zoo, tmp_path, how):
    for i in range(5):
        paint(zoo/"unlabelled"/f"{i}.jpg", 100 + i)
    for root in (pile, zoo):
        (one, weights), (other, streamed) = (
            trained(run(root, epochs=1, **more), tmp_path/place) for place, more in (("memory", {}), ("disk", how)))
        assert weights == streamed and features_of(one)["rows"] == features_of(other)["rows"]
        rows = [first_step(run(root, **more), part.data) for part, more in ((one, {}), (other, how))]
        assert all(torch.equal(rows[0][0][name], rows[1][0][name]) for name in rows[0][0])
    assert len(other.data.every_x) == len(other.data.train_x) + 5


def test_the_order_is_one_of_seed_and_epoch(zoo):
    memory, disk = (load_data(run(zoo, **how)).train_x for how in ({}, DISK))
    for seed, epoch in ((0, 1), (0, 2), (1, 1)):
        batches = batches_of(run(zoo, seed=seed), len(memory), epoch)
        both = [streaming.ahead(x, batches) for x in (memory, disk)]
        assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_a_large_set_has_one_fingerprint_wherever_it_is(zoo, monkeypatch):
    small = fingerprint(load_data(run(zoo)))
    monkeypatch.setattr(data, "LARGE", 100)
    prints = {fingerprint(load_data(run(zoo, **how))) for how in ({}, DISK, PACKED)}
    assert len(prints) == 1 and small not in prints
    subsets = {fingerprint(load_data(run(zoo, train_images=12, **how))) for how in ({}, DISK)}
    assert len(subsets) == 1 and subsets != prints
    paint(zoo/"bee"/"00.jpg", 99)
    assert fingerprint(load_data(run(zoo, **DISK))) not in prints


# Damage


def test_a_file_that_changes_during_training_is_refused_by_name(zoo):
    images, path = load_data(run(zoo, **DISK)).train_x, None
    for harm in (lambda whole: whole[:-40], lambda whole: whole[:-9] + b"other end", lambda whole: b""):
        path = Path(images.store.files.paths[int(images.rows[3])])
        whole = path.read_bytes()
        path.write_bytes(harm(whole))
        assert str(path) in refused(images.__getitem__, slice(0, 8))
        path.write_bytes(whole)
    path.unlink()
    assert f"{path} cannot be read: No such file" in refused(images.__getitem__, slice(0, 8))


def test_a_truncated_file_is_refused_before_training_or_left_out(zoo):
    bad = zoo/"bee"/"04.jpg"
    bad.write_bytes(bad.read_bytes()[:600])
    for _ in range(2):   # read, and from what is known of it
        sentence = refused(load_data, run(zoo, **DISK))
        assert str(bad) in sentence and "cannot be decoded" in sentence and "-p bad_images skip" in sentence
    memory, disk = (load_data(run(zoo, bad_images="skip", **how)) for how in ({}, DISK))
    assert fingerprint(memory) == fingerprint(disk) and [*disk.reading["left_out"]] == ["bee/04.jpg"]
    paint(bad, 4)
    mended = load_data(run(zoo, **DISK))
    assert len(disk.train_x) + len(disk.test_x) == 29 and len(mended.train_x) + len(mended.test_x) == 30


def test_one_changed_file_costs_one_block(zoo, monkeypatch):
    load_data(run(zoo, **PACKED))
    read, look = [], streaming.look_at
    monkeypatch.setattr(streaming, "look_at", lambda path, *more: read.append(path) or look(path, *more))
    load_data(run(zoo, **PACKED))
    assert read == []
    paint(zoo/"bee"/"00.jpg", 99)
    load_data(run(zoo, **PACKED))
    assert str(zoo/"bee"/"00.jpg") in read and len(read) <= 5
    folder, = (data.project()/"outputs"/"cache").iterdir()
    assert len([*folder.glob("*.pixels")]) == len([*folder.glob("*.safetensors")])   # the old block is gone


def test_a_damaged_block_is_read_again(zoo):
    whole = load_data(run(zoo))
    load_data(run(zoo, **PACKED))
    cache = data.project()/"outputs"/"cache"
    for path in cache.glob("*/*.pixels"):
        path.write_bytes(path.read_bytes()[:-700] + bytes(700))   # a square of zeros, or less of it
    for path in cache.glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
        break
    with pytest.warns(UserWarning, match="is damaged"):
        disk = load_data(run(zoo, **PACKED))
        assert torch.equal(disk.train_x[:], whole.train_x) and torch.equal(disk.test_x[:], whole.test_x)


KILLED = """
import sys, time
from pathlib import Path
from mixsupcon.core.configure import configure
from mixsupcon.lab import data, streaming
root = Path(sys.argv[1])
data.project, streaming.BLOCK = (lambda: root), 5*3*16*16
look = streaming.look_at
streaming.look_at = lambda *given: time.sleep(.03) or look(*given)
data.load_data(configure("simclr", dataset="folder", preset="digits", image_size=16, data_dir=str(root/"zoo"),
                         memory_gb=1e-6, pack="on"))
"""


@pytest.mark.slow
def test_killed_while_it_packs_and_goes_on(zoo, tmp_path, monkeypatch):
    cache = tmp_path/"outputs"/"cache"
    child = subprocess.Popen([*WARM, "-c", KILLED, tmp_path])
    while child.poll() is None and len([*cache.glob("*/*.safetensors")]) < 2:
        time.sleep(.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    time.sleep(.5)   # the program dies with its command
    done = {path: path.stat().st_mtime_ns for path in cache.glob("*/*.safetensors")}
    assert 2 <= len(done) < 6
    read, look = [], streaming.look_at
    monkeypatch.setattr(streaming, "look_at", lambda path, *more: read.append(path) or look(path, *more))
    disk = load_data(run(zoo, **PACKED))
    assert len(read) <= 30 - 5*len(done) + 5 and done.items() <= {
        path: path.stat().st_mtime_ns for path in cache.glob("*/*.safetensors")}.items()
    assert fingerprint(disk) == fingerprint(load_data(run(zoo))) and not [*cache.glob("*/.*.part")]


# Memory


def test_the_budget_is_half_of_what_is_free_or_the_option(zoo, monkeypatch):
    size = 30*3*16*16
    for free, given, streamed in ((4.1*size, {}, False), (3.9*size, {}, True), (1, dict(memory_gb=2.1*size/1e9), False),
                                  (10**12, dict(memory_gb=1.9*size/1e9), True)):
        monkeypatch.setattr(streaming, "free_memory", lambda free=free: free)
        assert isinstance(load_data(run(zoo, **given)).train_x, Images) == streamed, (free, given)


def test_memory_and_pack_are_no_part_of_a_runs_identity(zoo):
    assert len({identity(run(zoo, **how), "data") for how in ({}, DISK, PACKED, dict(memory_gb=7))}) == 1


PEAK = """
import ctypes, json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mixsupcon.core.configure import configure
from mixsupcon.lab import data, streaming
ctypes.CDLL(None).mallopt(-3, 2**17)   # large blocks go back at once: what malloc keeps is not what is measured
root, streaming.BLOCK, peaks = Path(sys.argv[1]), 8*3*224*224, []
data.project = lambda: root
given = dict(dataset="folder", preset="digits", image_size=224, memory_gb=1e-3)
for name in ("few", "many"):
    for pack in ("off", "on"):
        x = data.load_data(configure("simclr", data_dir=str(root/name), pack=pack, **given)).train_x
        for batch in x.split(16):
            pass
    peaks.append((len(x), x.numel(), 1024*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    for name, n in (("few", 300), ("many", 700)):
        for i in range(n):
            path = tmp_path/name/("ant" if i % 2 else "bee")/f"{i}.jpg"
            if i < 4:
                paint(path, i, 240, 320)
            else:
                os.link(path.with_name(f"{i % 4}.jpg"), path)
    done = subprocess.run([*WARM, "-c", PEAK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (few, small, low), (many, large, high) = json.loads(done.stdout.splitlines()[-1])
    assert (few, many) == (240, 560) and large - small > 40e6
    assert high - low < (large - small)/4, f"{(high - low)/1e6:.0f} MB more for {(large - small)/1e6:.0f} MB of images"


def test_what_a_training_takes_is_said_where_it_is_much(zoo, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("mixsupcon.lab.train.report", lines.append)
    trained(run(zoo, epochs=0), tmp_path/"memory")
    assert not [line for line in lines if line.startswith("memory")]
    trained(run(zoo, epochs=0, **DISK), tmp_path/"disk")
    said, = [line for line in lines if line.startswith("memory")]
    assert "24 images (0.018 MB) are read at each step" in said and "not counted: activations" in said


# Crops from the photograph


def test_full_crops_are_torchvisions(zoo):
    cfg = run(zoo, crop="full", jitter=0., gray=0., flip=.5)
    images = load_data(cfg)
    x, rows = images.train_x, torch.tensor([5, 0, 9])
    assert isinstance(x, Images)   # whatever the memory
    crops = next(streaming.step_images(cfg, x, [rows], view_kinds(cfg), 3))
    for i, view in enumerate(step_views(cfg, crops, (0.,)*3, (1.,)*3, 3)):
        draw = crops.draws[f"view {i + 1}"]
        sizes = x.store.sizes[x.rows[rows]]
        gen = stream(cfg.seed, f"view {i + 1}", 3)
        assert torch.equal(draw.boxes, crop_boxes(3, sizes.unbind(1), (cfg.crop_min, 1.), gen))
        for k, row in enumerate(rows.tolist()):
            picture = data.decode(x.store.files.paths[int(x.rows[row])])
            assert picture.shape[1:] == tuple(sizes[k])
            theirs = tv.resized_crop(picture, *draw.boxes[k].tolist(), [16, 16], antialias=True)
            theirs = tv.horizontal_flip(theirs) if draw.flip[k] else theirs
            assert torch.equal((view[k]*255).round().byte(), theirs)


@pytest.mark.slow
def test_full_crops_train_and_are_another_run(zoo, tmp_path):
    one, weights = trained(run(zoo, crop="full"), tmp_path/"full")
    again, same = trained(run(zoo, crop="full", **PACKED), tmp_path/"again")
    other, squares = trained(run(zoo, **DISK), tmp_path/"squares")
    assert weights == same != squares and one.folder.name == again.folder.name != other.folder.name
    rows, _ = first_step(run(zoo, crop="full"), one.data)
    assert rows["view 1"].shape == (8, 3, 16, 16)


@pytest.mark.slow
def test_full_crops_of_several_sizes_and_of_data_without_files(zoo, tmp_path):
    cfg = run(zoo, method="swav", crop="full", small_crops=2, small_size=8, epochs=1, queue=0)
    assert trained(cfg, tmp_path/"swav")[1]
    digits = configure("simclr", crop="full", epochs=1, batch_size=8, device="cpu")
    assert "crop full cuts photographs in files, which digits has not" in refused(
        pretrain, digits, load_data(digits), tmp_path/"digits")


# Within an epoch


@pytest.mark.slow
@pytest.mark.parametrize("method, given", [
    ("simclr", DISK), ("moco", dict(crop="full")), ("swav_unmix", {}), ("amix", dict(block_layer=2)), ("ce", PACKED)])
def test_stopped_within_an_epoch_and_continued(zoo, tmp_path, monkeypatch, method, given):
    "The same bits after a stop in the middle of the second epoch, which is saved after each of its steps."
    cfg = run(zoo, method, save_seconds=1e-9, **given)
    one, weights = trained(cfg, tmp_path/"straight")
    compute, steps = train.compute_loss, []

    def stopped(*args, **kwargs):
        steps.append(args[5])
        if len(steps) == 6:   # of three an epoch
            raise KeyboardInterrupt
        return compute(*args, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(train, "compute_loss", stopped)
        patch.setattr(train, "training_code", lambda cfg, code=train.training_code(resolve_device(cfg)): code)
        with pytest.raises(KeyboardInterrupt):
            trained(cfg, tmp_path/"stopped")
        names = [path.name[11:28] for path in checkpoints(tmp_path/"stopped"/one.folder.name)]
        assert names == ["00000001.00000001", "00000001.00000002"] and steps == [0, 1, 2, 3, 4, 5]
        steps.clear()
        again, same = trained(cfg, tmp_path/"stopped")
    assert steps == [5] and same == weights
    straight, continued = (read_log(part.folder) for part in (one, again))
    assert [{**row, "seconds": 0} for row in straight] == [{**row, "seconds": 0} for row in continued]
    assert not checkpoints(again.folder)


@pytest.mark.slow
def test_an_epoch_shorter_than_save_seconds_is_saved_at_its_end_only(zoo, tmp_path, monkeypatch):
    saved, save = [], train.save_checkpoint
    monkeypatch.setattr(train, "save_checkpoint", lambda folder, epoch, tensors, state: saved.append(state) or save(
        folder, epoch, tensors, state))
    trained(run(zoo, save_seconds=0.), tmp_path/"often")
    assert [sorted(state) for state in saved] == [["identity"]]
    trained(run(zoo, seed=1, save_seconds=600.), tmp_path/"seldom")
    assert len(saved) == 1
