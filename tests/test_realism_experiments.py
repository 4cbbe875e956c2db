"""The script of real systems as a user runs it, with tiny flags."""

import csv

import numpy as np
from cases import inside, one_line

TINY = (
    "--num_devices=3", "--seeds=0", "--channels=8", "--sweep_channels=8", "--schemes=optimal",
    "--sweeps=delay", "--delay_weights=0.01,1", "--radius=100", "--tolerance=0.1",
    "--edge_share=0.9",
)  # fmt: skip


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_pieces_are_switched_on_and_drawn_again(tmp_path):
    folder = f"--output_dir={tmp_path / 'out'}"
    result = inside(*TINY, folder, script="realism")
    assert result.returncode == 0, result.stderr
    steps, sweep = (table(tmp_path / "out" / f"{name}.csv") for name in
                    ("realism", "realism_sweeps"))  # fmt: skip
    pieces = list(dict.fromkeys(row["piece"] for row in steps))
    assert (pieces[0], pieces[-1], len(pieces)) == ("plain P1", "frequency scaling", 9)
    cost = {(r["scheme"], r["piece"]): float(r["cost_j"] or "nan") for r in steps}
    best = np.array([cost["optimal", piece] for piece in pieces])
    assert np.all(np.diff(best[2:7]) >= -1e-6 * best[2:6])  # these pieces only take
    assert best[8] <= best[7] * (1 + 1e-6)
    plain = {row["piece"]: row for row in steps if row["scheme"] == "plain"}
    for piece in pieces[:2]:  # P1 knows these
        assert abs(float(plain[piece]["gap_mean"])) < 1e-6
        assert float(plain[piece]["missed_slot"]) == float(plain[piece]["late"]) == 0
    assert all(float(r["gap_mean"] or 0) >= -1e-5 for r in steps)
    assert float(sweep[0]["delay_s"]) >= float(sweep[1]["delay_s"])
    assert float(sweep[0]["energy_j"]) <= float(sweep[1]["energy_j"])
    before = (tmp_path / "out" / "realism.png").read_bytes()
    again = inside("--plot_only", folder, script="realism")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "realism.png").read_bytes() == before
    wrong = inside("--schemes=mcos", f"--output_dir={tmp_path / 'x'}", script="realism")
    one_line(wrong, "--schemes must have optimal")
