"The committed reports again from their committed records, by plain loops that share no code with the report."
import csv
import itertools
import json
import lzma
import statistics
import tarfile
from pathlib import Path

import pytest

REPORTS = sorted(path.parent for path in (Path(__file__).parents[1]/"outputs"/"report").glob("*/runs.tar.xz"))
HEADLINE = [pytest.param(report, study, id=f"{report.name}-{study}") for report in REPORTS
            for study in ("linear", "comparison", "mixers", "switches")]


def table(report, name):
    "The rows of a table of a report, as text."
    with open(report/"tables"/f"{name}.csv", newline="") as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def accuracies():
    "By report and run, what the record of its linear probe says of the last epoch, in per cent."
    found = {}
    for report in REPORTS:
        with lzma.open(report/"runs.tar.xz") as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                run, _, name = member.name.rpartition("/")
                if name == "linear.json":
                    rows = json.load(archive.extractfile(member))["rows"]
                    last = [row["value"] for row in rows if (row["metric"], row["selection"]) == ("accuracy", "last")]
                    found[report, run] = 100*last[0]   # of its own data; others are those it was transferred to
    return found


def values_of(report, study, accuracies):
    "By data and row the accuracy of each seed, of those runs that the report counts."
    values = {}
    for row in table(report, "runs"):
        if row["study"] == study and row["state"] == "complete":
            values.setdefault((row["data"], row["row"]), {})[int(row["seed"])] = accuracies[report, row["run"]]
    return values


def sign_flip_p(differences):
    "The share of all sign patterns whose sum is at least as far from zero."
    sums = [abs(sum(sign*d for sign, d in zip(signs, differences)))
            for signs in itertools.product((1, -1), repeat=len(differences))]
    seen = abs(sum(differences))
    return sum(value >= seen - 1e-9 for value in sums)/len(sums)


def adjusted(p):
    "Holm's correction: the k-th smallest times the number of those not smaller, never below one before."
    out, highest = dict.fromkeys(p), 0.
    for k, name in enumerate(sorted(p, key=p.get)):
        highest = out[name] = max(highest, min(1., p[name]*(len(p) - k)))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("report, study", HEADLINE)
def test_tables_follow_from_the_records(report, study, accuracies):
    "Means, deviations, differences by seed, exact p values and their correction."
    values, rows = values_of(report, study, accuracies), table(report, study)
    baseline = {row["data"]: row["row"] for row in rows if row["pairs"] == "0"}
    assert len(rows) == len(values) >= 5 and {*baseline} == {row["data"] for row in rows}
    p = {}
    for row in rows:
        key, base = (row["data"], row["row"]), (row["data"], baseline[row["data"]])
        own = [*values[key].values()]
        assert int(row["runs"]) == len(own) >= 3
        assert float(row["linear mean"]) == pytest.approx(statistics.mean(own), rel=1e-5)
        assert float(row["linear std"]) == pytest.approx(statistics.stdev(own), rel=1e-4, abs=1e-4)
        if key != base:
            seeds = values[key].keys() & values[base].keys()
            differences = [values[key][seed] - values[base][seed] for seed in seeds]
            assert int(row["pairs"]) == len(differences)
            assert float(row["difference"]) == pytest.approx(statistics.mean(differences), rel=1e-4, abs=1e-5)
            assert float(row["low"]) <= statistics.mean(differences) <= float(row["high"])
            p[key] = sign_flip_p(differences)
            assert float(row["p"]) == pytest.approx(p[key], rel=1e-4)
    corrected = adjusted(p)
    for row in rows:
        if row["pairs"] != "0":
            assert float(row["holm"]) == pytest.approx(corrected[row["data"], row["row"]], rel=1e-4)
