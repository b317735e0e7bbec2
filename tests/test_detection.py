"Boxes in VOC's and COCO's form, average precision, and detectors fine-tuned from encoders."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mixsupcon.core.options import refused
from mixsupcon.lab.boxes import (
    OVERLAPS, Scenes, average_precision, coco, coco_precisions, draw_scenes, example, voc, voc_precisions, write_voc)
from mixsupcon.lab.detection import (
    check_encoder, encoder_from, fine_tune, make_detector, read_encoder, stages_of, tuning)
from mixsupcon.lab.experiment import experiment
from mixsupcon.lab.runs import check_seal, read_log

ONLY_07 = (("2007", "trainval"),)
TINY = dict(preset="scenes", steps=3, batch_size=4, sides="64", proposals=16, norm_batches=1, judge_every=2)


# average precision

def iou(a, b):
    "The overlap of two boxes, by their corners."
    wide = max(0., min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0., min(a[3], b[3]) - max(a[1], b[1]))
    return wide*high/((a[2] - a[0])*(a[3] - a[1]) + (b[2] - b[0])*(b[3] - b[1]) - wide*high)


def naive_ap(examples, detections, label, overlap):
    "VOC's average precision of a class, object by object, as its development kit describes it."
    taken, hits, objects = set(), [], sum(((one.labels == label) & ~one.ignored).sum() for one in examples)
    ranked = sorted(((-score, i, box) for i, one in enumerate(detections)
                     for box, own, score in zip(one["boxes"], one["labels"], one["scores"]) if own == label),
                    key=lambda row: row[:2])
    for _, i, box in ranked:
        own = [k for k, kind in enumerate(examples[i].labels) if kind == label]
        best = max(own, key=lambda k: iou(box, examples[i].boxes[k]), default=None)
        if best is None or iou(box, examples[i].boxes[best]) <= overlap:
            hits.append(0)
        elif not examples[i].ignored[best]:
            hits.append(0 if (i, best) in taken else 1)
            taken.add((i, best))
    total = 0.
    for tenth in range(11):
        reached = [sum(hits[:n])/n for n in range(1, len(hits) + 1) if 10*sum(hits[:n]) >= tenth*objects]
        total += max(reached, default=0)/11
    return total


def crowd_of(rng, ignored=.2, apart=False):
    "Random images with objects, and detections near them, some of other classes and some of nothing."
    examples, detections = [], []
    for i in range(12):
        rows, seen = [], []
        for k in range(rng.integers(0, 5)):
            x, y = (100*k, 0) if apart else rng.uniform(0, 60, 2)
            w, h = rng.uniform(10, 40, 2)
            box, label = np.array([x, y, x + w, y + h], np.float32), int(rng.integers(1, 4))
            rows.append((box, label, bool(rng.random() < ignored), float(w*h)))
            for _ in range(rng.integers(0, 3)):
                near = box + rng.normal(0, 3, 4)
                seen.append((near, label if rng.random() < .8 else int(rng.integers(1, 4)), rng.random()))
        seen.append((np.array([500, 500, 520, 520.]), 1, rng.random()))
        examples.append(example(f"{i}.jpg", (600, 600), rows))
        boxes, labels, scores = zip(*seen)
        detections.append(dict(boxes=np.array(boxes), labels=np.array(labels), scores=np.array(scores)))
    return examples, detections


@pytest.mark.parametrize("seed", range(3))
def test_vocs_precision_is_the_naive_loops(seed):
    "Overlapping objects, repeated detections, difficult ones."
    examples, detections = crowd_of(np.random.default_rng(seed))
    table = voc_precisions(examples, detections, ["a", "b", "c"])
    for i in (0, 3, 5):
        expected = [naive_ap(examples, detections, label, OVERLAPS[i]) for label in (1, 2, 3)]
        np.testing.assert_allclose(table[i], expected, atol=1e-12)


def test_both_rules_agree_where_they_say_the_same(monkeypatch):
    "Objects far apart, none difficult, and as many recalls: then VOC's rule is COCO's."
    from functools import partial

    import mixsupcon.lab.boxes as boxes
    monkeypatch.setattr(boxes, "interpolated", partial(boxes.interpolated, points=101))
    examples, detections = crowd_of(np.random.default_rng(7), ignored=0, apart=True)
    np.testing.assert_allclose(voc_precisions(examples, detections, ["a", "b", "c"]),
                               coco_precisions(examples, detections, ["a", "b", "c"]), atol=1e-9)


def test_nothing_detected():
    "No box at all, in any image, is an average precision of 0, not an error."
    examples, detections = crowd_of(np.random.default_rng(0))
    empty = [{name: v[:0] for name, v in one.items()} for one in detections]
    for rule in ("voc07", "coco"):
        scenes = Scenes([], examples, ["a", "b", "c"], rule)
        assert [average_precision(scenes, empty)[name] for name in ("AP", "AP50", "AP75")] == [0, 0, 0]


# files

@pytest.fixture()
def devkit(tmp_path):
    "Two images in VOC's form, of a year each, and one to be judged on."
    picture = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    cat, dog = ("cat", (0, 0, 20, 10), False), ("dog", (5, 8, 40, 30), True)
    write_voc(tmp_path, "trainval", [(picture, [cat, dog])])
    write_voc(tmp_path, "test", [(picture, [dog]), (picture, [])])
    base = tmp_path/"VOCdevkit"
    for path in list((base/"VOC2007").rglob("*")):
        if path.is_file() and "test" not in path.name:
            copy = base/"VOC2012"/path.relative_to(base/"VOC2007")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


def test_vocs_files(devkit):
    "Both years are learned, pixels count from 0 here, difficult objects are learned and not judged."
    scenes = voc(devkit)
    assert len(scenes.train) == 2 and len(scenes.test) == 2 and scenes.classes == ["cat", "dog"]
    assert scenes.train[0].boxes.tolist() == [[0, 0, 20, 10], [5, 8, 40, 30]]
    assert scenes.train[1].ignored.tolist() == [False, True] and scenes.test[1].boxes.shape == (0, 4)


@pytest.mark.parametrize("old, new, sentence", [
    ("<xmax>20", "<xmax>50", "does not lie in 40 × 30 pixels"), ("<ymin>1<", "<ymin>x<", "could not convert"),
    ("<name>cat</name>", "", "it lacks 'name'"), ("</annotation>", "", "is damaged"),
    ("<xmin>1</xmin>", "<xmin>30</xmin>", "does not lie in"), ("<width>40", "<width>", "is damaged")])
def test_an_altered_annotation_is_refused(devkit, old, new, sentence):
    "And named."
    path = devkit/"VOCdevkit/VOC2012/Annotations/trainval000001.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refusal = refused(voc, devkit)
    assert sentence in refusal and str(path) in refusal


@pytest.mark.parametrize("name", ["JPEGImages/test000001.jpg", "Annotations/test000001.xml", "ImageSets/Main/test.txt"])
def test_a_missing_file_of_voc_is_named(devkit, name):
    "Images, annotations, lists."
    (devkit/"VOCdevkit/VOC2007"/name).unlink()
    assert name in refused(voc, devkit)


def test_truncated_and_wrong_images(devkit):
    "Seen when the image is decoded: the sentence names the file."
    from mixsupcon.lab.detection import load_image
    one = voc(devkit).train[0]
    with open(one.path, "rb") as file:
        data = file.read()
    with open(one.path, "wb") as file:
        file.write(data[:len(data)//2])
    assert one.path in refused(load_image, one)
    Image.new("RGB", (41, 30)).save(one.path)
    assert "41 × 30 pixels" in refused(load_image, one)


def write_coco(root, part, **changed):
    "A part of COCO with one image."
    (root/part).mkdir(parents=True, exist_ok=True)
    (root/"annotations").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(root/part/"9.jpg")
    dog = dict(id=7, image_id=9, category_id=18, bbox=[5, 5, 20, 10], area=150., iscrowd=0)
    known = dict(images=[dict(id=9, file_name="9.jpg", width=40, height=30)], annotations=[dog],
                 categories=[dict(id=1, name="person"), dict(id=18, name="dog")]) | changed
    path = root/f"annotations/instances_{part}.json"
    path.write_text(json.dumps(known))
    return path


@pytest.mark.parametrize("changed, sentence", [
    (dict(images=[]), "an object of image 9"), (dict(categories=[]), "no images"),
    (dict(annotations=[dict(id=1, image_id=9, category_id=5, bbox=[0, 0, 1, 1], area=1.)]), "it lacks 5"),
    (dict(annotations=[dict(id=1, image_id=9, category_id=18, bbox=[0, 0], area=1.)]), "not in COCO's form"),
    (dict(categories=[dict(id=18, name="dog")]), "differ"),
    (dict(images=[dict(id=9, file_name="8.jpg", width=40, height=30)]), "8.jpg is missing")])
def test_an_altered_file_of_coco_is_refused(tmp_path, changed, sentence):
    "Whatever does not fit together."
    write_coco(tmp_path, "train2017")
    path = write_coco(tmp_path, "val2017")
    assert len(coco(tmp_path).test) == 1
    write_coco(tmp_path, "val2017", **changed)
    assert sentence in refused(coco, tmp_path)
    path.unlink()
    assert str(path) in refused(coco, tmp_path)


# encoders

def test_what_cannot_be_used():
    "A transformer has no maps; an encoder of small images is not shown photographs."
    class Vector(torch.nn.Module):
        pass
    some = read_encoder(encoder_folder_of("resnet18", 32))
    check_encoder(some, tuning("scenes"))
    assert "take 16 times" in refused(check_encoder, some, tuning("moco_voc"))
    pooled = read_encoder(encoder_folder_of("resnet18_pool", 64))
    assert "take 4 times" in refused(check_encoder, pooled, tuning("moco_voc"))
    assert "no stages layer1" in refused(check_encoder, some._replace(net=Vector(), arch="timm:vit"), tuning("scenes"))
    assert stages_of(torch.nn.Sequential(torch.nn.Flatten())) == []


FOLDERS = {}


def encoder_folder_of(arch, side):
    "An encoder with fresh weights, written once."
    import tempfile
    from pathlib import Path
    if (arch, side) not in FOLDERS:
        FOLDERS[arch, side] = encoder_from("random", arch, side, root=Path(tempfile.mkdtemp()))
    return FOLDERS[arch, side]


@pytest.mark.parametrize("arch, side, neck", [
    ("resnet8", 16, "fpn"), pytest.param("resnet18", 224, "c4", marks=pytest.mark.slow)])
def test_both_necks_learn_and_detect(arch, side, neck):
    "Every parameter of encoder and detector gets a gradient, and images give boxes inside them."
    cfg = tuning("scenes", neck=neck, sides="64", proposals=8)
    encoder = read_encoder(encoder_folder_of(arch, side))
    net = make_detector(encoder, 3, cfg).train()
    target = dict(boxes=torch.tensor([[5., 5, 50, 50]]), labels=torch.tensor([1]))
    sum(net([torch.rand(3, 64, 80)]*2, [target]*2).values()).backward()
    assert all(p.grad is not None for p in encoder.net.parameters() if p.requires_grad)
    with torch.no_grad():
        seen, = net.eval()([torch.rand(3, 64, 80)])
    assert (seen["boxes"] >= 0).all() and (seen["boxes"][:, 2] <= 80).all() and seen["labels"].le(3).all()


# fine-tuning beside a run

@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory):
    "Drawn scenes, a few."
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 24, 6, side=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run, as short as a run can be."
    root = tmp_path_factory.mktemp("runs")
    return experiment("supcon", root, train_images=20, image_size=8, epochs=1, probe_epochs=1, device="cpu").folder


@pytest.mark.slow
def test_a_record_lies_beside_a_sealed_run(run, scenes_folder):
    "The run stays sealed, the encoder is its own, a second call reads, another seed is another record."
    given = TINY | dict(data="voc07", data_dir=scenes_folder, device="cpu")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    result = fine_tune(run, **given)
    assert check_seal(run) and before.items() <= {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}.items()
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert fine_tune(run, **given) == result and times == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert [row["protocol"] for row in result["rows"]] == ["voc07"]*3 and result["rows"][0]["n"] == 6
    assert sorted(path.name for path in (run/result["name"]).glob("*.*ors")) == ["detector.safetensors"]
    assert fine_tune(run, **given | dict(seed=1))["name"] != result["name"]
    encoder = read_encoder(run)
    weights = encoder.net.state_dict()
    from safetensors.torch import load_file
    assert all(torch.equal(v, weights[name]) for name, v in load_file(run/"encoder.safetensors").items())


@pytest.mark.slow
def test_a_stopped_fine_tuning_goes_on(run, scenes_folder, monkeypatch):
    "Ctrl-C after the second step: what follows is the record of an undisturbed one."
    import mixsupcon.lab.detection as detection
    given = TINY | dict(data="voc07", data_dir=scenes_folder, device="cpu", seed=2)
    take = detection.take

    def interrupted(course, batch):
        if course.step == 1:
            course.stop(2, None)
        take(course, batch)

    monkeypatch.setattr(detection, "take", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after step 2 of 3; run it again to go on"):
        fine_tune(run, **given)
    work, = (path.parent for path in run.glob("detection-*-s2-*/log.jsonl"))
    assert [row["step"] for row in read_log(work)] == [0, 1, 2] and list(work.glob("checkpoint-*"))
    monkeypatch.setattr(detection, "take", take)
    result = fine_tune(run, **given)
    (run/f"{result['name']}.json").unlink()
    (work/"log.jsonl").unlink()   # all again
    again = fine_tune(run, **given)
    assert all(again[name] == result[name] for name in ("rows", "classes", "curve", "detections"))


def test_settings_are_checked():
    "Names, words, ranges."
    for given, sentence in [(dict(stepz=1), "did you mean 'steps'"), (dict(neck="c5"), "neck"), (dict(lr=0.), "lr"),
                            (dict(at_once=3), "not a multiple"), (dict(milestones="2"), "shares"),
                            (dict(steps=1.5), "steps")]:
        assert sentence in refused(tuning, "moco_voc", **given)
    assert replace(tuning("moco_voc"), steps=1) == tuning("moco_voc", steps=1)


@pytest.mark.slow
def test_average_precision_rises_on_drawn_scenes(tmp_path):
    "Sixty steps are enough to see it."
    draw_scenes(tmp_path/"scenes", 40, 20, side=64)
    own = encoder_from("random", "resnet8", 16, root=tmp_path)
    result = fine_tune(own, data="voc07", data_dir=tmp_path/"scenes", preset="scenes", sides="64", steps=60,
                       batch_size=4, norm_batches=5, judge_every=60, device="cpu")
    first, last = (row["AP50"] for row in result["curve"] if "AP50" in row)
    assert first < .01 and last > first + .03, (first, last)
