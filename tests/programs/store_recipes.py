"""Stores the complete configuration of every preset and method of the first version (0.1.0), as differences.

    PYTHONPATH=first_version python tests/programs/store_recipes.py tests/data/first_version_recipes.json
"""
import json
import sys
from collections import Counter
from dataclasses import asdict


def usual(records):
    "The most frequent value of each field."
    return {name: Counter(record[name] for record in records).most_common(1)[0][0] for name in records[0]}


def main(path):
    from mixsupcon.config import PRESETS, configure
    from mixsupcon.methods import METHODS
    records = {}
    for preset, table in PRESETS.items():
        dataset = table.get("also", {}).get("dataset", [table["every"].get("dataset", "digits")])[0]
        given = dict(preset=preset, dataset=dataset)
        records[preset] = {method: asdict(configure(method=method, **given)) for method in METHODS}
    base = usual([record for rows in records.values() for record in rows.values()])
    lines = []
    for preset, rows in records.items():
        every = usual([*rows.values()])
        beside = {k: v for k, v in every.items() if v != base[k]}
        lines.append(f'"{preset}": {{"every": {json.dumps(beside)}')
        methods = {m: {k: v for k, v in row.items() if v != every[k] and k != "method"} for m, row in rows.items()}
        lines[-1] += ",\n" + ",\n".join(f' "{m}": {json.dumps(row)}' for m, row in methods.items()) + "}"
    with open(path, "w") as file:
        file.write('{"base": ' + json.dumps(base) + ',\n"presets": {\n' + ",\n".join(lines) + "\n}}\n")


main(sys.argv[1])
