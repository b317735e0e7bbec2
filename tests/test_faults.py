"What a machine, a disk or a hand may do to files: it is noticed, named in one sentence, and nothing else is lost."
import errno
import json
import os
import random
import signal
import threading
import time
import warnings

import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.options import Refusal, refused
from mixsupcon.lab import data, runs
from PIL import Image

CFG = configure()


def paint(path, shade, width=8, height=8):
    "An uncompressed grey image."
    Image.new("RGB", (width, height), (shade,)*3).save(path, compress_level=0)


@pytest.fixture
def images(tmp_path):
    "A folder data set of two classes."
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path/"pets"/part/name).mkdir(parents=True)
            for i in range(2):
                paint(tmp_path/"pets"/part/name/f"{i}.png", 100*label + i)
    return tmp_path/"pets"


def load(images, **given):
    "The data set in `images`, its store beside it."
    return data.image_folder(images, given.get("image_size", 0), "never", images.parent/"cache")


def store_of(images):
    "The only store of decoded images."
    store, = (images.parent/"cache").iterdir()
    return store


@pytest.fixture
def run(tmp_path):
    "A complete run, as training and evaluation leave it."
    return make_run(tmp_path/"runs")


def make_run(root, **given):
    cfg = configure(**given)
    folder = runs.open_run(cfg, "d", root)
    runs.visit(folder)
    runs.log(folder, dict(epoch=1, passes=10, seconds=.5))
    weights = runs.pack(dict(a=torch.ones(3)), {})
    for name in ("net", "encoder"):
        runs.write(folder/f"{name}.safetensors", weights)
    took = dict(epochs=1, images_seen=10, passes=10, seconds=.5, mean=[.5]*3, net=runs.digest(weights))
    runs.write_json(folder/"training.json", took)
    for name in runs.result_names(cfg):
        row = dict(protocol=name, metric="accuracy", value=.9, n=360, selection="last")
        runs.write_json(folder/f"{name}.json", dict(net=took["net"], rows=[row]))
    runs.seal(folder)
    runs.unlock(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    "A folder with a log of three rows and checkpoints of epochs 2 and 3."
    for epoch in (1, 2, 3):
        runs.log(tmp_path, dict(epoch=epoch, passes=10, seconds=.5))
        runs.save_checkpoint(tmp_path, epoch, dict(a=torch.full((50,), float(epoch))), dict(identity="i"))
    return tmp_path


def quietly(function, *args):
    "The value of `function`, and its warnings as text."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = function(*args)
    return value, " ".join(str(warning.message) for warning in caught)


# Stores of decoded images


@pytest.mark.parametrize("position", [0, 40, -1])
def test_a_flipped_byte_of_the_store_changes_no_pixel(images, position):
    before = data.fingerprint(load(images))
    whole = bytearray(store_of(images).read_bytes())
    whole[position] ^= 1
    store_of(images).write_bytes(whole)
    after, said = quietly(load, images)
    assert data.fingerprint(after) == before and "is damaged" in said


@pytest.mark.parametrize("length", [0, 1, 7, 100])
def test_a_truncated_store_is_made_again(images, length):
    load(images)
    whole = store_of(images).read_bytes()
    store_of(images).write_bytes(whole[:length])
    quietly(load, images)
    assert store_of(images).read_bytes() == whole


def test_a_changed_image_replaces_the_store(images):
    load(images)
    old = store_of(images)
    paint(images/"train"/"cat"/"0.png", 9)
    assert load(images).train_x[0, 0, 0, 0] == 9 and store_of(images) != old


def test_an_image_changed_behind_its_time_is_noticed(images):
    load(images)
    path = images/"train"/"cat"/"0.png"
    stat = path.stat()
    other = (images/"train"/"cat"/"1.png").read_bytes()
    assert len(other) == stat.st_size
    path.write_bytes(other)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(images).train_x[0, 0, 0, 0] == 1


def test_stores_of_two_sizes_live_side_by_side(images):
    load(images)
    load(images, image_size=4)
    assert len(list((images.parent/"cache").iterdir())) == 2


def test_a_store_that_cannot_be_written_is_a_sentence(images):
    (images.parent/"cache").write_text("a file in the way")
    assert "cannot write" in refused(load, images)


# Folders of images


@pytest.mark.parametrize("link, target", [("train/loop", ".."), ("train/cat/loop", "../.."), ("train/twin", "cat"),
                                          ("train/cat/same.png", "../../test/cat/0.png"), ("loop", ".")])
def test_a_link_back_into_the_data_set_adds_no_image_and_is_said(images, link, target):
    before = data.fingerprint(load(images))
    (images/link).symlink_to(target)
    after = load(images)
    assert data.fingerprint(after) == before and f"links into the data set: {link}" in " ".join(after.notes)


def test_a_link_to_a_folder_elsewhere_within_a_class_is_refused(images):
    (images.parent/"elsewhere").mkdir()
    (images/"train"/"cat"/"far").symlink_to(images.parent/"elsewhere")
    assert "far is a link to a folder" in refused(load, images)


@pytest.mark.parametrize("link, target", [("test", "train"), ("test/cat", "../train/cat")])
def test_no_link_brings_images_to_learn_from_into_the_test_set(images, link, target):
    (images/link).rename(images.parent/"away")
    (images/link).symlink_to(target)
    try:
        after = load(images)
    except data.DataError:
        return
    assert "links into the data set" in " ".join(after.notes) and not {*after.test_y.tolist()} & {0}


def test_a_class_of_both_parts_that_lies_elsewhere_is_refused(images):
    (images/"train"/"cat").rename(images.parent/"cats")
    for part in ("train", "test"):
        if (images/part/"cat").exists():
            (images/part/"cat").rename(images.parent/"old")
        (images/part/"cat").symlink_to(images.parent/"cats")
    assert "by a link: remove it" in refused(load, images)


def test_a_class_elsewhere_may_be_a_link(images):
    (images/"train"/"cat").rename(images.parent/"cats")
    (images/"train"/"cat").symlink_to(images.parent/"cats")
    assert len(load(images).train_x) == 4


def test_hidden_folders_are_no_classes(images):
    (images/"train"/".ipynb_checkpoints").mkdir()
    (images/"train"/"__MACOSX").mkdir()
    after = load(images)
    assert after.classes == ["cat", "dog"] and "hidden: train/.ipynb_checkpoints, train/__MACOSX" in after.notes[1]


def test_an_empty_class_is_refused(images):
    (images/"train"/"emu").mkdir()
    assert "emu has no images" in refused(load, images)


def test_an_image_that_would_fill_the_memory_is_refused(images):
    paint(images/"train"/"cat"/"0.png", 0, width=30_000, height=1)
    assert "more than 64,000,000 pixels" in refused(load, images, image_size=224)


@pytest.mark.parametrize("image", [b"", b"\x89PNG\r\n\x1a\n", b"not an image"])
def test_a_file_that_is_no_image_is_named(images, image):
    (images/"test"/"dog"/"1.png").write_bytes(image)
    sentence = refused(load, images)
    assert "1.png cannot be decoded" in sentence and "-p bad_images skip" in sentence


# Writing


def test_two_hosts_with_one_process_id_do_not_meet(tmp_path, monkeypatch):
    "Four writers who all believe to be process 7: no error, and every reader sees a whole file."
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path, errors = tmp_path/"shared", []
    contents = [bytes([i])*50_000 for i in range(4)]

    def work(content):
        try:
            for _ in range(20):
                runs.write(path, content)
                assert path.read_bytes() in contents
        except (AssertionError, OSError, Refusal) as error:
            errors.append(error)
    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_and_its_leftover_goes(tmp_path):
    path, whole = tmp_path/"state", [bytes([i])*2_000_000 for i in range(2)]
    runs.write(path, whole[0])
    for _ in range(5):
        child = os.fork()
        if not child:
            while True:
                runs.write(path, random.choice(whole))
        time.sleep(.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.read_bytes() in whole
    data.clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_opening_a_run_removes_leftovers(tmp_path):
    folder = runs.open_run(CFG, "d", tmp_path)
    dead = folder/f".net.{data.HOST}.99999999.0badcafe.part"
    dead.write_bytes(b"half")
    runs.open_run(CFG, "d", tmp_path)
    runs.unlock(folder)
    assert not dead.exists()


def test_a_living_writer_of_another_host_keeps_its_file(tmp_path):
    theirs = tmp_path/".net.elsewhere.99999999.0badcafe.part"
    theirs.write_bytes(b"half")
    data.clear_leftovers(tmp_path)
    assert theirs.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, code):
    runs.write(tmp_path/"state", b"old")

    def fail(handle):
        raise OSError(code, os.strerror(code))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        sentence = refused(runs.write, tmp_path/"state", b"new")
    assert os.strerror(code) in sentence and "what was there before is intact" in sentence
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_without_hard_links_the_first_writer_still_wins(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.EPERM, "no hard links")
    monkeypatch.setattr(os, "link", fail)
    for content in (b"first", b"second"):
        runs.write(tmp_path/"result", content, over=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


# Places that cannot be written


def test_a_run_under_a_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path/"outputs").write_text("")
    assert "cannot write in" in refused(runs.open_run, CFG, "d", tmp_path/"outputs")


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path/"log.jsonl").mkdir()
    assert "cannot write" in refused(runs.log, tmp_path, dict(epoch=1))
    assert "cannot be read" in refused(runs.read_log, tmp_path)


def test_a_complete_run_is_opened_without_writing(run):
    (run/".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in [run, *run.iterdir()]}
    assert runs.open_run(CFG, "d", run.parent) == run and runs.seal(run) == runs.check_seal(run)
    runs.visit(run)
    assert {path: path.stat().st_mtime_ns for path in [run, *run.iterdir()]} == before


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_reported_as_such(tmp_path, monkeypatch, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(runs.fcntl, "flock", fail)
    sentence = refused(runs.lock, tmp_path)
    assert "has no locks" in sentence and "in use" not in sentence


def test_a_forked_child_does_not_inherit_the_lock(tmp_path):
    runs.lock(tmp_path)
    child = os.fork()
    if not child:
        try:
            runs.lock(tmp_path)
        except Refusal as error:
            os._exit(0 if "is in use" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    runs.unlock(tmp_path)


def test_a_negative_wait_is_refused(tmp_path):
    assert "from 0 on" in refused(runs.lock, tmp_path, -1)


def test_a_refused_opening_leaves_no_lock(tmp_path):
    folder = runs.open_run(CFG, "d", tmp_path)
    runs.write_json(folder/"config.json", runs.describe(configure(tau=.2), "d"))
    assert "tau 0.2 in the folder, 0.1 now" in refused(runs.open_run, CFG, "d", tmp_path)
    assert not runs.HELD


# Log


@pytest.mark.parametrize("line", [b"\0\0\0\0", b"", b"{", b"[]", b"\xff", b"NaN"])
def test_a_damaged_line_is_named_with_file_and_number(folder, line):
    lines = (folder/"log.jsonl").read_bytes().split(b"\n")
    (folder/"log.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    assert f"{folder}/log.jsonl, line 2," in refused(runs.read_log, folder)


def test_a_half_written_last_line_does_not_count(folder):
    with open(folder/"log.jsonl", "ab") as file:
        file.write(b'{"epoch": 4, "pas\0\0\0')
    assert len(runs.read_log(folder)) == 3


def test_the_checkpoint_holds_the_totals_and_the_number_of_rows(folder):
    _, state = runs.load_checkpoint(folder)
    assert (state["epoch"], state["log"]["rows"], state["log"]["passes"], state["log"]["seconds"]) == (3, 3, 30, 1.5)


def test_the_log_is_flushed_before_the_checkpoint_is_written(tmp_path, monkeypatch):
    runs.log(tmp_path, dict(epoch=1))
    flushed, fsync = [], os.fsync

    def note(handle):
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)
    monkeypatch.setattr(os, "fsync", note)
    runs.save_checkpoint(tmp_path, 1, dict(a=torch.ones(1)), {})
    assert flushed[0] == "log.jsonl" and "checkpoint" in flushed[1]


def resume(folder):
    "What training does first: the newest whole checkpoint, and the log as it was then."
    _, state = runs.load_checkpoint(folder)
    return runs.rewind(folder, state["epoch"], state["log"])


def test_rows_after_the_checkpoint_are_taken_back(folder):
    runs.log(folder, dict(epoch=4, passes=10, seconds=.5))
    assert [row["epoch"] for row in resume(folder)] == [1, 2, 3] and len(runs.read_log(folder)) == 3


def test_damage_after_the_checkpoint_is_taken_back(folder):
    with open(folder/"log.jsonl", "ab") as file:
        file.write(b"\0\0\n\n")
    assert len(resume(folder)) == 3


def test_a_lost_log_is_refused(folder):
    (folder/"log.jsonl").unlink()
    assert "has 0 of the 3 rows" in refused(resume, folder)


def test_a_cut_log_is_refused(folder):
    path = folder/"log.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert "has 2 of the 3 rows" in refused(resume, folder)


def test_an_edited_log_is_refused(folder):
    path = folder/"log.jsonl"
    path.write_bytes(path.read_bytes().replace(b"10", b"99", 1))
    assert "is not the one that the checkpoint was saved with" in refused(resume, folder)


def test_a_number_that_is_not_finite_is_not_logged(tmp_path):
    assert "not finite" in refused(runs.log, tmp_path, dict(loss=float("nan")))


# Checkpoints


def test_no_mutation_of_a_checkpoint_is_silent(folder):
    "Sixty random changes: each falls back to the checkpoint before it."
    last, rng = runs.checkpoints(folder)[-1], random.Random(0)
    whole = last.read_bytes()
    for _ in range(60):
        harm = bytearray(whole)
        for _ in range(rng.choice([1, 1, 20])):
            harm[rng.randrange(len(harm))] ^= rng.randrange(1, 256)
        last.write_bytes(rng.choice([harm, whole[:rng.randrange(len(whole))], whole + bytes(harm[:9])]))
        (tensors, state), said = quietly(runs.load_checkpoint, folder)
        assert state["epoch"] == 2 and tensors["a"][0] == 2 and "is damaged" in said


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def replace_by_garbage_of_the_right_name(path):
    path.unlink()
    garbage = b"\xff"*100
    (path.parent/f"checkpoint-00000003-{runs.digest(garbage)}.safetensors").write_bytes(garbage)


@pytest.mark.parametrize("harm", [replace_by_folder, replace_by_dangling_link, replace_by_garbage_of_the_right_name])
def test_something_else_in_a_checkpoints_place_is_set_aside(folder, harm):
    harm(runs.checkpoints(folder)[-1])
    (_, state), said = quietly(runs.load_checkpoint, folder)
    assert state["epoch"] == 2 and "is damaged" in said and len(runs.checkpoints(folder)) == 1


def test_nothing_but_damage_does_not_start_over(folder):
    for path in runs.checkpoints(folder):
        path.write_bytes(b"")
    assert "every checkpoint in" in quietly(refused, runs.load_checkpoint, folder)[0]
    assert "every checkpoint in" in refused(runs.load_checkpoint, folder)   # and neither does the second attempt


def test_an_old_checkpoint_that_cannot_be_removed_does_not_stop_training(folder):
    replace_by_folder(runs.checkpoints(folder)[0])
    runs.save_checkpoint(folder, 4, dict(a=torch.ones(1)), {})
    assert runs.load_checkpoint(folder)[1]["epoch"] == 4


# The seal


def append_a_space(path):
    path.write_bytes(path.read_bytes() + b" ")


def flip_the_middle(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole)//2] ^= 1
    path.write_bytes(whole)


SEALED = ["config.json", "env.json", "log.jsonl", "training.json", "encoder.safetensors", "net.safetensors",
          "linear.json", "knn.json"]


@pytest.mark.parametrize("name", SEALED)
@pytest.mark.parametrize("harm", [append_a_space, flip_the_middle, os.unlink])
def test_every_file_of_a_complete_run_is_sealed(run, name, harm):
    harm(run/name)
    assert name.split(".")[0] in refused(runs.check_seal, run)


def test_the_value_in_the_seal_itself_is_checked(run):
    metrics = runs.read_json(run/"metrics.json")
    metrics["rows"][0]["value"] = .99
    runs.write_json(run/"metrics.json", metrics)
    assert "metrics.json" in refused(runs.check_seal, run)


def test_a_value_changed_in_seal_and_result_is_noticed(run):
    for name in ("metrics.json", "linear.json"):
        (run/name).write_text((run/name).read_text().replace("0.9", "0.99"))
    assert "linear.json" in refused(runs.check_seal, run)


def test_a_seal_with_fewer_files_is_refused(run):
    metrics = runs.read_json(run/"metrics.json")
    del metrics["seals"]["env.json"]
    runs.write_json(run/"metrics.json", metrics)
    assert "env.json" in refused(runs.check_seal, run)


def test_a_log_added_later_is_noticed(run):
    "A file that was missing when the run was sealed is sealed as missing."
    for name in ("metrics.json", "log.jsonl"):
        (run/name).unlink()
    runs.seal(run)
    runs.log(run, dict(epoch=1))
    assert "log.jsonl" in refused(runs.check_seal, run)


def test_sealing_twice_changes_nothing(run):
    before = (run/"metrics.json").read_bytes()
    runs.seal(run)
    assert (run/"metrics.json").read_bytes() == before


def test_a_result_of_other_weights_is_refused(tmp_path):
    folder = make_run(tmp_path)
    (folder/"metrics.json").unlink()
    runs.write_json(folder/"knn.json", dict(net="0", rows=[]))
    assert "knn.json was made from other weights" in refused(runs.seal, folder)


@pytest.mark.parametrize("name", ["fidelity", "departures"])
def test_what_can_be_recomputed_is_not_stored(run, name):
    assert name not in runs.read_json(run/"config.json") and name not in runs.read_json(run/"metrics.json")


def test_a_config_of_another_recipe_under_the_same_name_is_refused(run):
    config = runs.read_json(run/"config.json")
    config["config"]["tau"] = .2
    runs.write_json(run/"config.json", config)
    assert "config.json" in refused(runs.check_seal, run)


# Odd folders


ODD = {
    "a list": "[]", "nothing": "null", "a number": "3", "deep": "["*100_000, "cut": '{"config": {', "empty": "",
    "no config": "{}", "config is a list": '{"config": []}', "stranger": '{"config": {"method": "simclr"}}',
    "unknown method": '{"version": 3, "config": {"method": "amix9"}}', "NUL": "\0\0", "NaN": '{"config": NaN}',
    "nested values": '{"config": {"method": {"a": []}}}',
    "old and cut": '{"config": {"method": "supcon", "pot": 1}}'}


@pytest.mark.slow
@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_one_odd_folder_is_named_and_the_others_are_read(run, text, name):
    odd = make_run(run.parent, seed=1)
    (odd/name).write_text(text)
    folders, why = runs.survey(run.parent)
    assert folders == [run] and why[odd.name].startswith("not a run: ")


@pytest.mark.slow
@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("name", ["training.json", "linear.json", "env.json"])
def test_odd_files_of_a_run_stop_nothing(run, text, name):
    odd = make_run(run.parent, seed=1)
    (odd/name).write_text(text)
    assert runs.run_folders(run.parent) == [run]


def test_the_latest_run_is_found_beside_an_odd_one(run):
    odd = run.parent/"odd"
    odd.mkdir()
    for name in ("config.json", "training.json", "metrics.json"):
        (odd/name).write_text(json.dumps(None))
    assert runs.find_run(root=run.parent) == run


def test_folders_and_links_in_a_files_place_are_left_out(run):
    (run.parent/"odd"/"metrics.json").mkdir(parents=True)
    (run.parent/"link").symlink_to("nowhere")
    (run.parent/"a file").write_text("")
    assert runs.survey(run.parent) == ([run], {})
