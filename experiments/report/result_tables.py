"""The tables of the results, from the rows of csv files: lists of cells, the header first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paper_claims
from support.plots import ROUNDING
from support.time_plots import CSI_NAMES, saved_over_backoff

Rows = list[dict[str, Any]]
Lines = list[list[str]]  # cells
LEAST_LOSS = 3e-7  # of float32 [-]
LACKS = KeyError, IndexError, ValueError, TypeError  # of columns and rows that are not there
QUANTITIES = {"best_efficiency": "spectral efficiency at a price", "priced_cost": "cost at a price",
              "required_ratio": "part that must be sent"}  # fmt: skip


def lacks(error: Exception) -> str:
    """Say that a csv does not hold what is asked of it."""
    return f"the csv lacks it ({type(error).__name__}: {error})"


def markdown(lines: Lines) -> str:
    """Write a table in Markdown."""
    header, *rest = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([header, "|---" * len(lines[0]) + "|", *rest])


def show(lines: Lines) -> None:
    """Print a table in Markdown."""
    print(markdown(lines))


def number(value: float) -> str:
    """Write a number with two digits, or all before the point."""
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def percent(gap: float) -> str:
    """Write a gap in percent, 0 where it is below what float32 tells, 1e-4 %."""
    return number(100 * gap) if 100 * gap > ROUNDING else "0"


def slope(rows: Rows) -> float:
    """Fit ln time over ln K."""
    if len(rows) < 2:
        return float("nan")
    sizes, times = (np.log([r[name] for r in rows]) for name in ("num_devices", "us_per_channel"))
    return float(np.polyfit(sizes, times, 1)[0])


def figure4(rows: Rows) -> Lines:
    """Write the table of Figure 4: means over seeds; a gap is energy / optimum - 1 of a channel."""
    optimum, gap, to_bound, kept, on_time, infeasible = (
        paper_claims.means(rows, "num_devices", column) for column in
        ("cost_mean_j", "gap_to_optimum_mean", "gap_to_bound_mean", "feasible_fraction",
         "deadline_met_fraction", "infeasible_fraction")
    )  # fmt: skip
    lines: dict[str, tuple[Any, str]] = {
        "K": (sorted({row["num_devices"] for row in rows}), "{:g}"),
        "optimum of P1, certified: mean energy [J]": (optimum["optimal"], "{:.4f}"),
        "lower bound of P1: mean gap [%]": (gap["lower_bound"], "{:+.1%}"),
        "optimal PCOS: mean gap [%]": (gap["pcos"], "{:+.1%}"),
        "BCOS, projected: mean gap [%]": (gap["bcos"], "{:+.1%}"),
        "the same to the lower bound [%]": (to_bound["bcos"], "{:+.1%}"),
        "BCOS, improved: mean gap [%]": (gap["bcos_improved"], "{:+.1%}"),
        "MCOS: mean gap [%]": (gap["mcos"], "{:+.0%}"),
        "raw BCOS, all answers: mean gap [%]": (gap["bcos_raw"], "{:+.1%}"),
        "raw BCOS: all of C1-C5 kept [% of channels]": (kept["bcos_raw"], "{:.1%}"),
        "raw BCOS: sum of times within T [% of channels]": (on_time["bcos_raw"], "{:.1%}"),
        "learned PCOS, all answers: mean gap [%]": (gap["pcos_learned"], "{:+.1%}"),
        "learned PCOS: all of C1-C5 kept [% of channels]": (kept["pcos_learned"], "{:.1%}"),
        "learned PCOS: sum of times within T [% of channels]": (on_time["pcos_learned"], "{:.1%}"),
        "infeasible channels, left out [%]": (infeasible["optimal"], "{:.2%}"),
    }
    whole = lambda value: value if abs(100 * value) > ROUNDING else 0.0  # noqa: E731
    return [[title, *(form.format(whole(value)).strip("%") for value in values)]
            for title, (values, form) in lines.items()]  # fmt: skip


def constraints(rows: Rows) -> Lines:
    """Write what the raw networks keep: a line per setting, a column per network and K."""
    devices = list(dict.fromkeys(row["num_devices"] for row in rows))
    names = {"bcos_raw": "BCOS", "pcos_learned": "PCOS"}
    header = ["alpha", "margin"]
    lines = [header + [f"{name}, K = {k:g}" for name in names.values() for k in devices]]
    for alpha, margin in dict.fromkeys((r["multiplier_step"], r["margin"]) for r in rows):
        cells = [f"{alpha:g}", f"{margin:g}"]
        own = [r for r in rows if (r["multiplier_step"], r["margin"]) == (alpha, margin)]
        for place in ((name, k) for name in names for k in devices):
            few = [r for r in own if (r["scheme"], r["num_devices"]) == place]
            mean = {n: 100 * np.mean([r[n] for r in few]) for n in
                    ("kept", "kept_realised", "gap_mean")}  # fmt: skip
            shares = f"{mean['kept']:.1f}, {mean['kept_realised']:.1f}"
            cells.append(f"{shares}, {mean['gap_mean']:+.0f}")
        lines.append(cells)
    return lines


def paper(*tables: Rows) -> Lines:
    """Write the lines of paper_claims.py."""
    lines = [["figure", "the paper says", "checked on", "holds", "measured"]]
    for figure, rows in zip((4, 5, 6), tables):
        judge = {4: paper_claims.figure4, 5: paper_claims.figure5, 6: paper_claims.figure6}[figure]
        for sentence, side, verdict, measured in judge(rows):
            lines.append([str(figure), sentence, side, "yes" if verdict else "no", measured])
    return lines


def frontier(rows: Rows) -> Lines:
    """Write gap against speed: a line per method; "0" is below what float32 tells, 1e-4 %."""
    devices = list(dict.fromkeys(row["num_devices"] for row in rows))
    header = ["method"]
    for k in devices:
        header += [f"K = {k:g}: mean, worst gap [%]", "channels/s", "p50, p99 [us]"]
    lines = [header]
    for method in dict.fromkeys(row["method"] for row in rows):
        kept = [row["feasible_fraction"] for row in rows if row["method"] == method]
        share = ", ".join(f"{100 * one:.0f}" for one in kept)
        cells = [method if min(kept) == 1 else f"{method}: the {share} % that keep C1-C5"]
        for r in (row for row in rows if row["method"] == method):
            cells += [
                ", ".join(percent(r[name]) for name in ("gap_mean", "gap_worst")),
                number(r["channels_per_second"]),
                f"{r['p50_us']:.0f}, {r['p99_us']:.0f}",
            ]
        lines.append(cells)
    return lines


def certify(rows: Rows) -> Lines:
    """Write the rows that one stage does not certify whole."""
    header = ["K", "b", "T [s]", "feasible [%]", "certified by one stage [%]", "by `solve` [%]",
              "equal to the true optimum [%]", "worst gap [%]"]  # fmt: skip
    shares = "certified_one_stage", "certified", "optimal_fraction"
    return [header] + [
        [f"{r['num_devices']:g}", f"{r['log_base']:.3g}", f"{r['slot']:g}",
         f"{100 * r['feasible_fraction']:.1f}", *(f"{100 * r[name]:.2f}" for name in shares),
         number(100 * r["gap_worst"])] for r in rows if r["certified_one_stage"] < 1
    ]  # fmt: skip


def scale(rows: Rows) -> Lines:
    """Write time, memory and gap: a column per K."""
    return [
        ["K", *(f"{r['num_devices']:g}" for r in rows)],
        ["time per channel [ms]", *(number(r["us_per_channel"] / 1e3) for r in rows)],
        ["working memory per channel [kB]", *(f"{r['bytes_per_channel'] / 1e3:.0f}" for r in rows)],
        ["peak of the process [MB]", *(f"{r['process_peak_mb']:.0f}" for r in rows)],
        *([f"proven gap, {name} [%]", *(percent(r[f"gap_{name}"]) for r in rows)]
          for name in ("mean", "worst")),
    ]  # fmt: skip


def droo(rows: Rows) -> Lines:
    """Write mean losses on wireless powered offloading: a row per family and K."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    cells = {(r["family"], r["num_devices"], r["method"]): r for r in rows}
    places = list(dict.fromkeys((r["family"], r["num_devices"]) for r in rows))
    return [["frames", "K", *methods, "proven to 1e-6 [%]"]] + [
        [family, f"{k:g}", *(_loss(cells[family, k, name]["loss_mean"]) for name in methods),
         f"{100 * cells[family, k, 'optimal']['proven_1e6']:.4g}"] for family, k in places
    ]  # fmt: skip


def benchmark(rows: Rows) -> Lines:
    """Write mean and worst gaps on the benchmark's families: a row per family."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    cells = {(r["family"], r["method"]): r for r in rows}
    return [["family", *methods]] + [
        [family, *("" if (family, name) not in cells else " / ".join(
            _loss(cells[family, name][column]) for column in ("gap_mean", "gap_worst"))
            for name in methods)]
        for family in dict.fromkeys(r["family"] for r in rows)
    ]  # fmt: skip


def decisions(rows: Rows) -> Lines:
    """Write what decisions are worth: mean gaps as it is (% feasible), repaired, improved."""
    names = list(dict.fromkeys(r["decision"] for r in rows))
    cells = {(r["family"], r["decision"], r["played"]): r for r in rows}

    def cell(family: str, name: str) -> str:
        given = cells.get((family, name, "as it is"))
        if given is None:
            return ""
        others = (cells.get((family, name, how)) for how in ("repaired", "improved"))
        feasible = f" ({100 * given['feasible_fraction']:.0f} %)"
        parts = [_gap(given) + feasible, *(_gap(row) for row in others if row)]
        return " / ".join(parts)

    families = dict.fromkeys(r["family"] for r in rows)
    return [["family", *names]] + [[f, *(cell(f, name) for name in names)] for f in families]


def _gap(row: Mapping[str, Any]) -> str:
    """Write a mean gap [%], a line where nothing is feasible."""
    gap = 100 * row["gap_mean"]
    return "-" if gap != gap else "0" if gap < 100 * LEAST_LOSS else f"{gap:.2g}"


def _loss(value: float) -> str:
    """Write a part of the best, 0 where it is below what float32 tells."""
    return f"{value:.1e}" if value > LEAST_LOSS else "0"


def policy(rows: Rows) -> Lines:
    """Write the policy's gaps as evaluate_policy.py does: mean, largest row mean, worst."""
    names = [name.removesuffix("_gap_mean") for name in rows[0] if name.endswith("_gap_mean")]
    lines = [["K", *(name.replace("_", " ") for name in names)]]
    for k in dict.fromkeys(row["num_devices"] for row in rows):
        few = [row for row in rows if row["num_devices"] == k]
        cells = [f"{k:g}"]
        for name in names:
            means, worst = ([r[f"{name}_gap_{n}"] for r in few] for n in ("mean", "worst"))
            three = np.nanmean(means), np.nanmax(means), np.nanmax(worst)
            cells.append(", ".join(map(percent, three)))
        lines.append(cells)
    return lines


def learning(rows: Rows) -> Lines:
    """Write what agents earn below the certified optimum: a line per scheme, at its last point."""
    lines = [["agent", "slots learned from", "reward below the optimum's [%]: mean, range over "
              "trainings", "wishes that fit as they are [%]"]]  # fmt: skip
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        own = [row for row in rows if row["scheme"] == scheme]
        slots = max(row["slots"] for row in own)
        last = [row for row in own if row["slots"] == slots]
        losses, fitted = ([100 * row[name] for row in last] for name in ("loss", "fitted"))
        spread = f", {min(losses):.1f} to {max(losses):.1f}" if len(losses) > 1 else ""
        text = f"{np.mean(losses):.1f}{spread}"
        lines.append([scheme, number(slots), text, f"{np.mean(fitted):.0f}"])
    return lines


def gradients(rows: Rows) -> Lines:
    """Write the gradient estimators: means over K and b, and the worst."""
    lines = [["estimator", "mean gap [%]", "worst cell [%]", "worst channel [%]",
              "fits into the slot [%]", "steps to twice the final gap", "rate"]]  # fmt: skip
    for name in dict.fromkeys(row["method"] for row in rows):
        few = [row for row in rows if row["method"] == name]
        mean = {column: 100 * np.mean([r[column] for r in few]) for column in
                ("gap_mean", "gap_ci95", "within_deadline")}  # fmt: skip
        cell, channel = (100 * max(r[name] for r in few) for name in ("gap_mean", "gap_worst"))
        lines.append([
            name, f"{mean['gap_mean']:.2f} ± {mean['gap_ci95']:.2f}", f"{cell:.2f}",
            f"{channel:.0f}", f"{mean['within_deadline']:.1f}", f"{few[0]['steps_to_twice']:.0f}",
            f"{few[0]['learning_rate']:g}",
        ])  # fmt: skip
    return lines


def lanes(rows: Rows) -> Lines:
    """Write speed and memory of many trainings in one call: a column per number of lanes."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    numbers = dict.fromkeys(row["lanes"] for row in rows)
    lines = [["lanes", *(f"{n:g}" for n in numbers)]]
    for title, column in (
        ("lane steps per second", "lane_steps_per_s"),
        ("peak memory [MB]", "peak_mb"),
    ):
        for method in methods:
            own = [row[column] for row in rows if row["method"] == method]
            lines.append([f"{title}, {method}", *(f"{value:.0f}" for value in own)])
    return lines


def ratios(rows: Rows) -> Lines:
    """Write one call against a call for each lane: a column per number of steps."""
    columns = {"one call [s]": "one_call_s", "separate calls [s]": "separate_calls_s",
               "ratio of times": "ratio", "ratio of CPU times": "cpu_ratio"}  # fmt: skip
    return [["steps", *(f"{row['steps']:g}" for row in rows)]] + [
        [title, *(f"{row[column]:.1f}" for row in rows)] for title, column in columns.items()
    ]


def speed(rows: Rows) -> Lines:
    """Write the microseconds per channel of every method: a column per kind of call."""
    values = {row["what"]: row["value"] for row in rows if row["unit"] == "us per channel"}
    kinds = [name.removeprefix("pcos, ") for name in values if name.startswith("pcos, ")]
    methods = dict.fromkeys(name.split(", ")[0] for name in values if name.endswith(kinds[0]))
    return [["us per channel", *kinds]] + [
        [method, *(f"{values[f'{method}, {kind}']:.3g}" for kind in kinds)] for method in methods
    ]


def precision(rows: Rows) -> Lines:
    """Write float32's errors: a line per quantity, the largest over the methods that have it."""
    lines = [["quantity", "median", "99th percentile", "largest", "budget"]]
    columns = "error_median", "error_p99", "error_max", "budget"
    for name in dict.fromkeys(row["quantity"].split(": ")[-1] for row in rows):
        own = [row for row in rows if row["quantity"].split(": ")[-1] == name]
        worst = (max(row[column] for row in own) for column in columns)
        title = QUANTITIES.get(name, name.replace("_", " "))
        lines.append([title, *(f"{value:.0e}" for value in worst)])
    return lines


def soak(rows: Rows) -> Lines:
    """Write the latency of calls under load: a line per method and range of batch sizes."""
    lines = [["method", "channels per call", "batch sizes", "p50 [ms]", "p99 [ms]"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        for low, high in ((1, 1), (2, 15), (16, 127), (128, 2**30)):
            few = [r for r in rows if r["method"] == method and low <= r["channels"] <= high]
            if few:
                sizes = [f"{row['channels']:g}" for row in (few[0], few[-1])]
                p50, p99 = (
                    np.median([row[name] for row in few]) / 1e3 for name in ("p50_us", "p99_us")
                )
                lines.append([method, "-".join(dict.fromkeys(sizes)), f"{len(few)}",
                              f"{p50:.2f}", f"{p99:.1f}"])  # fmt: skip
    return lines


def slopes(rows: Rows) -> Lines:
    """Write what the slope of the binary layer does: energies over the optimum's."""
    names = {"zero": "0, the sign function", "teacher": "1 - m, the teacher's",
             "straight_through": "1, straight-through",
             "share_resources": "1 - m, shared time and power branches"}  # fmt: skip
    titles = {"energy_raw": "raw: mean energy over the optimum's [%]",
              "deadline_met_fraction": "sum of times within T [%]",
              "feasible_fraction": "all of C1-C5 kept [%]",
              "energy_projected": "projected: mean energy over the optimum's [%]",
              }  # fmt: skip
    return [["slope", *titles.values()]] + [
        [names[r["method"]], *(f"{100 * r[n]:.3g}" if r[n] == r[n] else "not recorded"
                               for n in titles)] for r in rows
    ]  # fmt: skip


def methods(rows: Rows) -> Lines:
    """Write gaps and speeds of ``solve`` alone: a line per method."""
    names = {"MCOS": '"mcos"', "solve, effort 0": '"policy", effort 0',
             "solve, effort 4": '"policy", effort 4, the default', "solve, effort 6":
             '"policy", effort 6', "solve, certified": '"optimal"'}  # fmt: skip
    devices = list(dict.fromkeys(row["num_devices"] for row in rows))
    header = ["method"] + [f"K = {k:g}: {what}" for k in devices for what in
                           ("mean gap [%]", "channels per s")]  # fmt: skip
    return [header] + [
        [title] + [cell for r in rows if r["method"] == name
                   for cell in (percent(r["gap_mean"]), number(r["channels_per_second"]))]
        for name, title in names.items()
    ]  # fmt: skip


def realism(rows: Rows) -> Lines:
    """Write what each piece of realism costs: a line per K and piece, means over seeds."""
    columns: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
        ("MCOS [J]", "mcos", "cost_j", "{:.3g}".format),
        ("optimum [J]", "optimal", "cost_j", "{:.3g}".format),
        ("its energy [J]", "optimal", "energy_j", "{:.3g}".format),
        ("certified [%]", "optimal", "certified", lambda x: f"{100 * x:.2f}"),
        ("feasible [%]", "optimal", "feasible", lambda x: f"{100 * x:.1f}"),
        ("shipped policy: mean gap [%]", "bcos", "gap_mean", percent),
        ("plain P1's decision: mean gap [%]", "plain", "gap_mean", percent),
        ("breaks C1 [%]", "plain", "missed_slot", lambda x: f"{100 * x:.0f}"),
        ("breaks C6 [%]", "plain", "missed_edge", lambda x: f"{100 * x:.0f}"),
        ("late as planned [%]", "plain", "late", lambda x: f"{100 * x:.0f}"),
    )
    lines = [["K", "with", *(title for title, *_ in columns)]]
    for size, piece in dict.fromkeys((row["num_devices"], row["piece"]) for row in rows):
        own = [r for r in rows if (r["num_devices"], r["piece"]) == (size, piece)]
        cells = [f"{size:g}", piece if piece == rows[0]["piece"] else f"+ {piece}"]
        for _, scheme, column, write in columns:
            values = [r[column] for r in own if r["scheme"] == scheme and r[column] == r[column]]
            cells.append(write(float(np.mean(values))) if values else "-")
        lines.append(cells)
    return lines


def time_day(rows: Rows) -> Lines:
    """Write what a day costs: a line per scheme, CSI and margin, means over its parts."""
    titles = "scheme", "CSI", "margin for late slots [%]"
    columns = {
        "energy per task [mJ]": ("energy_per_task_j", 1e3),
        "late slots [%]": ("late_slots_fraction", 100),
        "missed tasks [%]": ("missed_fraction", 100),
    }
    lines = [[*titles, *columns]]
    keys = "scheme", "error", "delay", "outage"
    for place in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in keys) == place]
        scheme, error, delay, outage = place
        name = CSI_NAMES[int(error > 0), int(delay > 0)]
        lines.append([
            f'"{scheme}"', name, f"{100 * outage:g}" if outage < 1 else "none",
            *(number(unit * np.mean([row[column] for row in own]))
              for column, unit in columns.values()),
        ])  # fmt: skip
    return lines


def time_outage(rows: Rows) -> Lines:
    """Write the outage asked for and met in every slot: a line per error and outage."""
    lines = [["error", "asked for [%]", "met [%]", "energy saved [%]"]]
    for row in (row for row in rows if row["method"] == "slot"):
        share, half = (100 * row[name] for name in ("late_slots_fraction", "late_slots_ci95"))
        saved = saved_over_backoff(row, rows)
        lines.append([
            f"{row['error']:g}", f"{100 * row['outage']:g}", f"{share:.3g} +- {half:.1g}",
            f"{round(100 * saved)}" if saved == saved else "-",
        ])  # fmt: skip
    return lines


TABLES: dict[str, tuple[tuple[str, ...], Callable[..., Lines]]] = {  # by name: its csv
    "figure4": (("figure4",), figure4),
    "slopes": (("slopes",), slopes),
    "constraints": (("constraints",), constraints),
    "paper": (("figure4", "figure5", "figure6"), paper),
    "methods": (("frontier",), methods),
    "frontier": (("frontier",), frontier),
    "certify": (("certify",), certify),
    "scale": (("scale",), scale),
    "droo": (("droo",), droo),
    "benchmark": (("benchmark",), benchmark),
    "decisions": (("decisions",), decisions),
    "policy": (("policy",), policy),
    "gradients": (("gradients",), gradients),
    "learning": (("learning",), learning),
    "lanes": (("lanes",), lanes),
    "ratios": (("lanes_ratio",), ratios),
    "speed": (("speed",), speed),
    "precision": (("precision",), precision),
    "realism": (("realism",), realism),
    "soak": (("soak",), soak),
    "time_day": (("time_day",), time_day),
    "time_outage": (("time_outage",), time_outage),
}
