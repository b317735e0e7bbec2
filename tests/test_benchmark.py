"The benchmark's notebook runs, and what it writes of each row is complete. No timing is judged."
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from mixsupcon.lab.benchmark import CURVES, GPU_ROWS, MEASURES, ROWS, TOY
from mixsupcon.lab.benchmark import gpu_epoch, gpu_flops, gpu_idle, gpu_views
from mixsupcon.lab.timing import markdown_table, read_records, table_of
from warm import WARM

PAPERMILL = Path(sys.executable).with_name("papermill")
ENOUGH = {"cpu", "cores", "threads", "memory_gb", "gpu", "instructions", "system"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "Where the notebook has written its records, at toy size, in a project of its own."
    root, ours = tmp_path_factory.mktemp("project"), Path(__file__).parents[1]
    (root/"nbs").mkdir()
    for name in ("nbs/benchmark.ipynb", "nbs/run_experiment.ipynb", "settings.ini"):
        (root/name).write_bytes((ours/name).read_bytes())
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    command = [*WARM, PAPERMILL, "nbs/benchmark.ipynb", "-p", "size", "toy"]
    done = subprocess.run(command, cwd=root, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root/"outputs"/"benchmark"/"toy"


def surroundings_are_complete(record):
    assert ENOUGH <= record["machine"].keys() and record["machine"]["cores"] >= 1
    for peer in ("torch", "torchvision", "kornia", "pytorch-metric-learning", "pillow", "python"):
        assert record["versions"][peer], peer
    assert record["date"][:2] == "20" and record["command"] == "papermill nbs/benchmark.ipynb -p size toy"
    assert "commit" in record and record["size"] == "toy"


@pytest.mark.slow
def test_every_row_is_complete(toy):
    "Both sides with all measurements, their ratio, the target, machine and versions."
    records = read_records(toy, ROWS)
    for name, row in ROWS.items():
        record = records[name]
        assert record, f"{name} was not written"
        assert record["target"] == row.target and record["peer"] == row.peer and record["unit"] == row.unit
        for side in ("ours", "theirs") if row.peer else ("ours",):
            assert record[side]["all"] and record[side]["median"] == median(record[side]["all"]) > 0, (name, side)
        assert record["value"] == median(record["ratios"]) > 0 and isinstance(record["met"], bool)
        if row.peer:
            ours, theirs = record["ours"]["all"][0], record["theirs"]["all"][0]
            assert record["ratios"][0] == (theirs/ours if row.sense == "at least" else ours/theirs)
        surroundings_are_complete(record)


@pytest.mark.slow
def test_every_curve_is_complete(toy):
    for name, record in read_records(toy, CURVES).items():
        assert record, f"{name} was not written"
        for points in record["points"].values():
            assert [point["size"] for point in points] == [*CURVES[name][0].toy]
            assert all(point["seconds"] > 0 and point["bytes"] > 0 for point in points)
        surroundings_are_complete(record)
    assert all((toy/picture).stat().st_size > 10_000 for picture in ("curves.png", "targets.png"))


@pytest.mark.slow
def test_what_was_not_measured_is_called_so(toy):
    "The rows of a GPU without one; and nothing of toy size counts as measured."
    rows, records = ROWS | GPU_ROWS, read_records(toy, ROWS | GPU_ROWS)
    table = table_of(rows, records).set_index("row")
    for name, row in rows.items():
        expected = "only tried, at toy size" if records[name] else "not measured"
        assert table.result[row.title] == expected
    if not any(record and record["machine"]["gpu"] for record in records.values()):
        assert not any(records[name] for name in GPU_ROWS)
    notebook, = toy.parents[1].glob("notebooks/benchmark*.ipynb")
    assert json.dumps(markdown_table(rows, records).splitlines()[3], ensure_ascii=False)[1:-1] in notebook.read_text()


def test_every_row_has_a_way_to_measure_it():
    assert {*MEASURES} == {*ROWS, *GPU_ROWS} and len({row.title for row in (ROWS | GPU_ROWS).values()}) == len(MEASURES)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [gpu_epoch, gpu_idle, gpu_views, lambda *given: gpu_flops(*given, 64, 2)],
                         ids=["epoch", "idle", "views", "flops"])
def test_the_rows_of_a_gpu_run_on_a_cpu(measure):
    "The same functions on the other device."
    sides = measure(TOY, None, "cpu") if measure is gpu_epoch else measure(TOY, "cpu")
    assert len(sides.ours) == len(sides.theirs) == TOY.repeats and min(sides.ours) >= 0 < min(sides.theirs)
