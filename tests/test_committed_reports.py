"The committed reports again from their committed records, by plain loops that share no code with the report."
import csv
import itertools
import json
import lzma
import statistics
import tarfile
from pathlib import Path

import pytest

from mixsupcon.report.compare import compare

REPORTS = sorted(path.parent for path in (Path(__file__).parents[1]/"outputs"/"report").glob("*/runs.tar.xz"))
LINEAR = "linear", "linear.json", "accuracy"
MEASURES = dict(   # study → column, record, metric
    linear=LINEAR, comparison=LINEAR, mixers=LINEAR, switches=LINEAR, supclr=LINEAR, mixing=LINEAR,
    imix=LINEAR, unmix=LINEAR,
    quality=("calibration error", "quality.json", "calibration_error"),
    corrupted=("corrupted", "quality.json", "corrupted_accuracy"),
    labels=("noisy labels", "quality.json", "accuracy_wrong_0.4"))


def table(report, name):
    "The rows of a table of a report, as text."
    with open(report/"tables"/f"{name}.csv", newline="") as file:
        return [*csv.DictReader(file)]


def whole(report):
    "The studies of a report whose planned runs are all there."
    runs = table(report, "runs")
    return [study for study in MEASURES if {row["state"] for row in runs if row["study"] == study} == {"complete"}]


ROWS = dict.fromkeys(MEASURES, 5) | dict(supclr=3)   # how many a table has at least
BASES = dict(   # where there are several
    mixing={"supcon + mixup": "supcon", "mixsupcon": "mixsupcon, unmixed"},
    imix={f"{base}_imix": base for base in ("npair", "moco", "mocon", "byol")},
    unmix={f"{base}_unmix": base for base in ("simclr", "moco", "moco_sym", "byol", "wmse2", "wmse4")})
WHOLE = [pytest.param(report, study, id=f"{report.name}-{study}") for report in REPORTS for study in whole(report)]


def test_headline_studies_are_whole():
    "Linear evaluation in every report, all four phases of MixSupCon in that of the digits."
    found = {report.name: {*whole(report)} for report in REPORTS}
    assert found["small"] >= {"linear", "comparison", "mixers", "switches"}
    assert all("linear" in studies for studies in found.values())


@pytest.fixture(scope="module")
def recorded():
    "By report, run, record and metric, what the record says of the probe, in per cent."
    records, found = {record for _, record, _ in MEASURES.values()}, {}
    for report in REPORTS:
        with lzma.open(report/"runs.tar.xz") as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                run, _, record = member.name.rpartition("/")
                for row in json.load(archive.extractfile(member))["rows"] if record in records else ():
                    if row["selection"] == "last":   # the first of each metric is of the run's own data and probe
                        found.setdefault((report, run, record, row["metric"]), 100*row["value"])
    return found


def values_of(report, study, recorded):
    "By data and row the value of each seed, of those runs that the report counts."
    _, *kind = MEASURES[study]
    found = {}
    for row in table(report, "runs"):
        if row["study"] == study:
            found.setdefault((row["data"], row["row"]), {})[int(row["seed"])] = recorded[report, row["run"], *kind]
    return found


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
@pytest.mark.parametrize("report, study", WHOLE)
def test_tables_follow_from_the_records(report, study, recorded):
    "Means, deviations, differences by seed, exact p values and their correction."
    values, rows, column = values_of(report, study, recorded), table(report, study), MEASURES[study][0]
    baseline = {row["data"]: row["row"] for row in rows if row["pairs"] == "0"}
    bases = BASES.get(study)
    assert len(rows) == len(values) >= ROWS[study] and {*baseline} == {row["data"] for row in rows}
    p = {}
    for row in rows:
        key = row["data"], row["row"]
        base = row["data"], bases.get(row["row"], row["row"]) if bases else baseline[row["data"]]
        own = [*values[key].values()]
        assert int(row["runs"]) == len(own) >= 3
        assert float(row[f"{column} mean"]) == pytest.approx(statistics.mean(own), rel=1e-5)
        assert float(row[f"{column} std"]) == pytest.approx(statistics.stdev(own), rel=1e-4, abs=1e-4)
        if key == base:
            assert row["pairs"] == "0"
        else:
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


OTHER = {   # study and measure → the row that each is compared with
    ("mixing", "knn20"): BASES["mixing"],
    ("comparison", "linear"): dict(genscl="mixsupcon", supclr_imix="mixsupcon", ce="ce + mixup"),
    ("quality", "Brier"): dict.fromkeys(("simclr", "mixsupcon", "ce"), "supcon")}


@pytest.mark.slow
@pytest.mark.parametrize("study, measure", OTHER)
def test_rows_that_no_table_compares(study, measure):
    "Other pairs and other measures: differences and both p values, from the table of runs."
    photos, = [report for report in REPORTS if report.name == "photos"]
    values, of_row = {}, OTHER[study, measure]
    for run in table(photos, "runs"):
        if run["study"] == study and run[measure]:
            values.setdefault((run["data"], run["row"]), {})[run["seed"]] = float(run[measure])
    differences = {(data, row): [value - values[data, of_row[row]][seed] for seed, value in part.items()]
                   for (data, row), part in values.items() if row in of_row}
    p = {key: sign_flip_p(d) for key, d in differences.items()}
    answers = compare("photos", study, of_row, measure).set_index(["data", "row"])
    assert {*answers.index} == {*p} and len(p) == 2*len(of_row)
    factor, digits = (1, 3) if measure == "Brier" else (100, 1)
    for key, said in answers.iterrows():
        assert said["seeds"] == 9 and said["compared with"] == of_row[key[1]]
        assert float(said["difference [95 %]"].split()[0]) == pytest.approx(
            factor*statistics.mean(differences[key]), abs=.51*10**-digits)
        assert float(said["p"]) == pytest.approx(p[key], abs=.00051)
        assert float(said["p (Holm)"]) == pytest.approx(adjusted(p)[key], abs=.00051)


ENCODERS = sorted((Path(__file__).parents[1]/"outputs"/"pretrained").glob("*/README.md"))


@pytest.mark.slow
@pytest.mark.parametrize("card", ENCODERS, ids=lambda card: card.parent.name)
def test_cards_of_encoders_say_what_the_report_says(card, recorded):
    "The accuracy of the run that the encoder was taken from."
    run = json.loads((card.parent/"config.json").read_text())["run"]
    report, = [report for report in REPORTS if report.name == "photos"]
    said, = [line.split("|")[4] for line in card.read_text().splitlines()
             if line.startswith("| lin\\_supcontrast | accuracy | last |")]
    assert 100*float(said) == pytest.approx(recorded[report, run, "linear.json", "accuracy"], abs=.005)
