"""The slope of the binary layer: energies and kept constraints of the runs that differ in it.

Reads the finished runs of sweep_k.py in --runs, each with one K and T and a --slope of its own, or
--share_resources. Writes slopes.csv and run.json into --output_dir. Example:

    python experiments/slopes.py --runs=runs/zero,runs/teacher --output_dir=runs/slopes
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import flags
from report import result_tables
from report.result_values import by
from support import common, csv_tables, trainings

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_list("runs", None, "folders of runs of sweep_k.py", required=True)


def main(argv: list[str]) -> None:
    """Write and print a row per run."""
    common.begin(argv)
    rows = [compare(Path(folder)) for folder in FLAGS.runs]
    methods = [row["method"] for row in rows]
    if len(set(methods)) < len(methods):
        common.stop(f"--runs must have settings of their own; got {', '.join(methods)}")
    folder = common.prepare()
    csv_tables.write_csv(folder / "slopes.csv", rows)
    common.write_run(folder / "run.json")
    result_tables.show(result_tables.slopes(rows))


def compare(folder: Path) -> dict[str, Any]:
    """Average one run over its task seeds; energies relative to the optimum's [-]."""
    columns = "cost_mean_j", "deadline_met_fraction", "feasible_fraction"
    rows = trainings.read_results(
        folder, *columns, fixed=("num_devices", "slot"), scheme=("bcos_raw", "bcos", "optimal")
    )
    energy, on_time, kept = (by(rows, column, "scheme") for column in columns)
    return {
        "method": setting(folder / "run.json"),
        "energy_raw": energy["bcos_raw"] / energy["optimal"] - 1,
        "deadline_met_fraction": on_time["bcos_raw"],
        "feasible_fraction": kept["bcos_raw"],
        "energy_projected": energy["bcos"] / energy["optimal"] - 1,
    }


def setting(path: Path) -> str:
    """Name the slope that a run was made with, by its run.json."""
    try:
        used = json.loads(path.read_bytes())["flags"]
        return "share_resources" if used["share_resources"] else str(used["slope"])
    except OSError as error:
        common.stop(f"{path} cannot be read: {error.strerror}")
    except (ValueError, TypeError, KeyError):
        common.stop(f"{path} must be the record of a run of sweep_k.py")


if __name__ == "__main__":
    common.launch(main)
