"""The share of a package's model classes that the probe can build, run and measure.

    python benchmarks/build_share.py FOLDER [--csv out.csv]

Every concrete ``nn.Module`` class (its own or an inherited ``forward``) of the folder is handed to the probe as
gradlint would do it: sliced, built, fed, traced. A class counts only if its own ``forward`` ran on its own
parameters and each of them received a gradient or is listed as unused. Nothing is replaced by a stand-in.
"""

from __future__ import annotations

import argparse
import collections
import csv
import sys
import time
from pathlib import Path

from gradlint.facts.index import ProjectIndex
from gradlint.facts.models import concrete_classes
from gradlint.facts.project import Project
from gradlint.probe.client import ProbeClient, Request
from gradlint.probe.requests import Prepared, prepare
from gradlint.rule import Candidate, Location, Measurement, ModelExperiment


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--csv")
    parser.add_argument("--timeout", type=float, default=5.0)
    options = parser.parse_args()
    index = ProjectIndex([options.folder])
    project = Project(index)
    rows: list[tuple[str, str, str, str]] = []
    requests: dict[str, tuple[str, str, Prepared]] = {}
    for path in sorted(Path(options.folder).rglob("*.py")):
        file = index.parse(str(path))
        if file is None or "torch" not in file.text:
            continue
        for name in concrete_classes(project.module(file)):
            experiment = ModelExperiment(str(path), "class", name, None, (), 1)
            candidate = Candidate("GL201", str(path), Location(1, 1, 1, 1), name, "", experiment)
            prepared = prepare(index, candidate, ())
            if isinstance(prepared, Prepared):
                requests[f"{path}:{name}"] = (str(path), name, prepared)
            else:
                rows.append(
                    (str(path), name, prepared.reason if prepared else "none", prepared.detail if prepared else "")
                )
    started = time.monotonic()
    with ProbeClient(sys.executable, options.timeout, 3600.0, 2) as client:
        assert client.start().available

        def done(key: str, measurement: Measurement) -> None:
            path, name, _ = requests[key]
            data = measurement.data
            if data is None:
                rows.append((path, name, measurement.reason or "", measurement.detail))
            elif data["with_gradient"] or not data["parameters"]:
                rows.append((path, name, "ok", str(data["trace"])))
            else:
                rows.append((path, name, "no-gradient", ""))

        client.run_all([Request(k, "model", p.body) for k, (_, _, p) in requests.items()], done)
    seconds = time.monotonic() - started
    counts = collections.Counter(r[2] for r in rows)
    traces = collections.Counter(r[3] for r in rows if r[2] == "ok")
    total = len(rows)
    share = counts["ok"] / max(total, 1)
    print(f"{counts['ok']} of {total} classes ({share:.1%}) in {seconds:.0f} s; {dict(counts)}; {dict(traces)}")
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(sorted(rows))


if __name__ == "__main__":
    main()
