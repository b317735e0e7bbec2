"""Makes finished runs again with today's code; where every number is the same, their code counts as today's.

    python tests/programs/same_numbers.py              # runs of outputs/runs
    python tests/programs/same_numbers.py FOLDER -n 3  # at least three runs of every method and mixer

A rewritten piece of code has another fingerprint, and all runs that used it would count as made by other code. Of each
method and mixer, and for every piece that differs, runs are trained and judged anew in a temporary folder. If their
weights are the same bytes and their numbers the same digits, the earlier fingerprints enter
mixsupcon/lab/same_numbers.json; if one run differs, nothing is written.
"""
import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT/"mixsupcon"/"lab"/"same_numbers.json"


def kind(cfg):
    "What a run is an example of: its method, and the choices that bring code."
    words = (getattr(cfg, option, "") for option in ("mixer", "partner", "head", "arch"))
    return (cfg.method, *words, *(type(part).__name__ for part in cfg.parts))


def differing(folder, now):
    "The pieces in which a finished run's code differs from `now`: (piece, earlier, today)."
    from mixsupcon.lab.runs import read_json
    then = read_json(folder/"config.json")["code"]
    return {(piece, then.get(piece, ""), now.get(piece, "")) for piece in then | now
            if then.get(piece) != now.get(piece)}


def chosen(folders, each):
    "Runs to make again: `each` of every kind, and one for every piece that differs; and these pieces."
    from mixsupcon.lab.experiment import judging_code
    from mixsupcon.lab.runs import read_config
    from mixsupcon.lab.train import training_code
    taken, pieces, left, today = Counter(), set(), [], {}
    for folder in folders:
        cfg = read_config(folder)
        example = kind(cfg)
        if example not in today:
            today[example] = training_code(cfg) | judging_code(cfg)
        new = differing(folder, today[example])
        if new and (taken[example] < each or not new <= pieces):
            taken[example] += 1
            left.append(folder)
        pieces |= new
    return left, pieces


def numbers(folder):
    "The digest of a run's weights, and every number that was measured."
    from mixsupcon.lab.runs import read_json
    metrics, training = read_json(folder/"metrics.json"), read_json(folder/"training.json")
    return training["net"], training["loss"], json.dumps(metrics["rows"], sort_keys=True)


def made_again(folder):
    "The name of a run, and whether the same run made now has the same numbers."
    from mixsupcon.lab.experiment import run_one
    from mixsupcon.lab.runs import read_config
    with tempfile.TemporaryDirectory() as root:
        return folder.name, numbers(run_one(read_config(folder), Path(root))) == numbers(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT/"outputs"/"runs")
    parser.add_argument("-n", type=int, default=1, help="runs of every method and mixer")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    folders = sorted(path.parent for path in asked.folder.glob("*/metrics.json"))
    again, pieces = chosen(folders, asked.n)
    if not again:
        print("no piece of code differs")
        return 0
    print(f"{len(pieces)} pieces differ; {len(again)} of {len(folders)} runs are made again", flush=True)
    same = 0
    with ProcessPoolExecutor(asked.jobs) as pool:
        for name, equal in pool.map(made_again, again):
            same += equal
            print(f"{'same' if equal else 'OTHER NUMBERS'}  {name}", flush=True)
    if same < len(again):
        print(f"{len(again) - same} runs have other numbers: nothing is written")
        return 1
    ledger = json.loads(LEDGER.read_text())
    for piece, then, now in pieces:
        earlier = {mark: now for mark, today in ledger.get(piece, {}).items() if today == then}
        ledger[piece] = ledger.get(piece, {}) | earlier | {then: now}
    LEDGER.write_text(json.dumps(ledger, indent=1, sort_keys=True) + "\n")
    print(f"{len(again)} runs have the same numbers: written to {LEDGER.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
