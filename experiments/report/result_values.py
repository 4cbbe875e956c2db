"""What the results say that is no cell, mean or extreme of a csv: derived numbers, and claims.

Each function reads one csv of experiments/figures, and names what it finds for
``{{ value:CSV.NAME }}``, a number, or ``{{ claim:CSV.NAME }}``, which must be True.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paper_claims
from support.plots import LIMIT
from support.time_plots import saved_over_backoff

from report.result_tables import Rows, slope

Values = dict[str, float | bool]


def by(rows: Rows, column: str, name: str = "method") -> dict[str, float]:
    """Average a column by name, empty cells left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row[column] == row[column]:
            found.setdefault(row[name], []).append(row[column])
    return {name: float(np.mean(values)) for name, values in found.items()}


def figure4(rows: Rows) -> Values:
    """Compare the schemes at the largest K, and MCOS with the optimum along K."""
    gap = paper_claims.means(rows, "num_devices", "gap_to_optimum_mean")
    energy = paper_claims.means(rows, "num_devices", "cost_mean_j")
    return {
        "mcos_least": 1 + gap["mcos"].min(),
        "mcos_most": 1 + gap["mcos"].max(),
        "pcos_energy": energy["pcos"][-1] / energy["optimal"][-1] - 1,
        "learned_pcos_is_below": bool(gap["pcos_learned"][-1] < 0),
    }


def slopes(rows: Rows) -> Values:
    """Compare slope 0 and shared branches with the others."""
    raw, projected = by(rows, "energy_raw"), by(rows, "energy_projected")
    return {
        "zero_saves": raw["zero"] < 0,
        "zero_is_best_projected": projected["zero"] == min(projected.values()),
        "shared_spends_most": raw["share_resources"] == max(raw.values()),
    }


def constraints(rows: Rows) -> Values:
    """Tell whether the largest alpha and margin keep C1-C5 most often at K = 20."""
    few = [row for row in rows if row["num_devices"] == 20]
    largest = tuple(max(row[name] for row in few) for name in ("multiplier_step", "margin"))
    most = (max((row for row in few if row["scheme"] == scheme), key=lambda row: row["kept"])
            for scheme in ("bcos_raw", "pcos_learned"))  # fmt: skip
    found = {(row["multiplier_step"], row["margin"]) for row in most}
    return {"the_largest_keep_most": found == {largest}}


def figure5(rows: Rows) -> Values:
    """Compare the networks' mean energies with the optimum's from T = 0.9 s on."""
    energy = paper_claims.means(rows, "slot", "cost_mean_j")
    loose = np.array(sorted({row["slot"] for row in rows})) >= 0.9
    over = [energy[name][loose] / energy["optimal"][loose] - 1
            for name in ("bcos_raw", "pcos_learned")]  # fmt: skip
    return {"loose_energy_least": np.min(over), "loose_energy_most": np.max(over)}


def figure6(rows: Rows) -> Values:
    """Tell whether MCOS sends nothing at T = 1 s."""
    sent = by(rows, "offload_fraction", "scheme")
    return {"mcos_sends_nothing": sent["mcos"] == sent["mcos_partial"] == 0}


def figure6_cdf(rows: Rows) -> Values:
    """Tell whether the optimum fills the slot of 1 s, in the median channel."""
    median = by([row for row in rows if row["probability"] == 0.5], "sending_time_s", "scheme")
    return {"optima_fill_the_slot": min(median["optimal"], median["pcos"]) > 0.999}


def plane(rows: Rows) -> Values:
    """Compare BCOS with MCOS in every cell that has feasible channels."""
    energies = (
        by([r for r in rows if (r["num_devices"], r["slot"]) == cell], "cost_mean_j", "scheme")
        for cell in dict.fromkeys((row["num_devices"], row["slot"]) for row in rows)
    )
    saved = [1 - energy["bcos_improved"] / energy["mcos"] for energy in energies if energy]
    return {"saved_least": min(saved), "saved_in_nine_of_ten": float(np.quantile(saved, 0.1))}


def frontier(rows: Rows) -> Values:
    """Compare the certified optimum's speed and gap with those of other methods."""
    values: Values = {}
    times = []
    for k in (14, 20):
        own = [row for row in rows if row["num_devices"] == k]
        rate = by(own, "channels_per_second")
        over = {name: rate["solve, certified"] / value for name, value in rate.items()}
        times += [1 / over["solve, effort 4"], 1 / over["solve, effort 6"]]
        values |= {f"over_host_{k}": over["search on the host"],
                   f"over_clarabel_{k}": over["Clarabel, branch and bound"],
                   f"over_scip_{k}": over["SCIP, tangents"]}  # fmt: skip
    gap, worst = by(own, "gap_mean"), by(rows, "gap_worst")
    return values | {
        "times_of_policy_least": min(times),
        "times_of_policy_most": max(times),
        "certified_costs_little": max(times) < 1.5,
        "certified_has_no_gap": worst["solve, certified"] < 1e-6,
        "search_needs_no_network": gap["improved from all-local"] < 1.5 * gap["BCOS, improved"],
    }


def decisions(rows: Rows) -> Values:
    """Tell which families a projected rule solves, and that nothing repaired is never near."""
    own = [row for row in rows if row["family"].startswith("p1")]
    gaps = {(r["decision"], r["played"], r["family"]): r["gap_mean"] for r in own}
    repaired = {place: gap for place, gap in gaps.items() if place[1] == "repaired"}

    def of(name: str, how: str) -> list[float]:
        return [
            gap for (decision, played, _), gap in gaps.items() if (decision, played) == (name, how)
        ]

    by_rule = {
        family: min(repaired[rule, "repaired", family] for rule in ("all", "best channel"))
        for family in dict.fromkeys(row["family"] for row in own)
    }
    solved = {family for family, gap in by_rule.items() if gap < 1e-3}
    return {
        "nothing_least": min(of("nothing", "repaired")),
        "random_least": min(of("random", "repaired")),
        "improved_nothing_most": max(of("nothing", "improved")),
        "two_are_solved_by_rule": solved == {"p1-k10-v1", "p1-k14-v1"},
        "rules_least_elsewhere": min(gap for f, gap in by_rule.items() if f not in solved),
    }


def certify(rows: Rows) -> Values:
    """Count what was proven, and tell whether all of it is true."""
    some = [row for row in rows if row["feasible_fraction"] > 0]
    number = [round(row["channels"] * row["feasible_fraction"]) for row in some]
    return {
        "channels": sum(row["channels"] for row in rows),
        "feasible": sum(number),
        "certified": float(np.average([row["certified"] for row in some], weights=number)),
        "all_are_optimal": min(row["optimal_fraction"] for row in some) == 1,
        "no_bound_is_false": max(row["false_bounds"] for row in rows) == 0,
    }


def scale(rows: Rows) -> Values:
    """Read how time grows with K, and where the proven gap is largest."""
    most = max(rows, key=lambda row: row["gap_mean"])
    return {
        "slope": slope(rows),
        "milliseconds": rows[-1]["us_per_channel"] / 1e3,
        "gap_most_at": most["num_devices"],
        "many_have_less": rows[-1]["gap_mean"] < most["gap_mean"] / 5,
    }


def speed(rows: Rows) -> Values:
    """Read the optimum's first stage, and the part of it that its exponentials alone take."""
    values = {row["what"]: row["value"] for row in rows}
    stage = speed_before(rows)["stage"]
    limit = next(x for name, x in values.items() if name.startswith(f"{LIMIT}whole stage"))
    return {"stage": stage, "limit": limit / stage}


def speed_before(rows: Rows) -> Values:
    """Read the optimum's first stage of an older version."""
    return {"stage": next(r["value"] for r in rows if r["what"].startswith("whole stage"))}


def gradients(rows: Rows) -> Values:
    """Order the estimators by their mean gaps."""
    gap, fits = by(rows, "gap_mean"), by(rows, "within_deadline")
    relaxations = [gap[n] for n in ("clipped", "gumbel", "reinforce", "relaxed", "sampled")]
    names = "listwise", "second_look", "pairs", "optimum"
    lessons, steps = [gap[n] for n in names], by(rows, "steps_to_twice")
    return {
        "lessons_least": min(lessons),
        "lessons_most": max(lessons),
        "flips_take_longest": steps["best_flips"] > max(steps[n] for n in names),
        "relaxations_least": min(relaxations),
        "relaxations_most": max(relaxations),
        "the_teacher_is_as_good": gap["teacher"] <= max(relaxations),
        "flips_are_best": gap["best_flips"] == min(gap.values()),
        "exact_is_next": max(gap["exact"], gap["exact_best"]) < min(*relaxations, gap["teacher"]),
        "sign_is_worst": gap["sign"] == max(gap.values()),
        "straight_through_fits_least": fits["straight_through"] == min(fits.values()),
    }


def learning(rows: Rows) -> Values:
    """Tell whether every training ends above the rules, and none at the optimum."""
    slots = max(row["slots"] for row in rows)
    learned = [r["loss"] for r in rows if r["scheme"] == "reinforce" and r["slots"] == slots]
    rules = [r["loss"] for r in rows if r["scheme"] != "reinforce"]
    return {"beats_rules": min(learned) > 0 and 2 * max(learned) < min(rules)}


def lanes(rows: Rows) -> Values:
    """Read what a lane adds to the memory, and which of both is quicker with all lanes."""
    first, last = (next(r for r in order if r["method"] == "lax.map")
                   for order in (rows, rows[::-1]))  # fmt: skip
    grown = (last["peak_mb"] - first["peak_mb"]) / (last["lanes"] - first["lanes"])
    rate = by([r for r in rows if r["lanes"] == last["lanes"]], "lane_steps_per_s")
    return {"mb_per_lane": grown, "map_is_quicker": rate["lax.map"] > rate["vmap"]}


def precision(rows: Rows) -> Values:
    """Tell whether every error is within its budget."""
    return {"within_budget": all(row["error_max"] <= row["budget"] for row in rows)}


def crash_recovery(rows: Rows) -> Values:
    """Count kills and runs, read what they cost, and tell whether they changed nothing."""
    lost = [row["seconds_lost"] for row in rows if not row["method"].startswith("start")]
    return {
        "kills": len(rows),
        "runs": len({(row["script"], row["run"]) for row in rows}),
        "before_training": len(rows) - len(lost),
        "seconds_lost": max(lost),
        "nothing_differs": all(row["identical"] == 1 and row["damaged"] == 0 for row in rows),
    }


def soak_memory(rows: Rows) -> Values:
    """Read the load's end, and what the second half added to the memory [MB]."""
    half, last = rows[len(rows) // 2], rows[-1]
    return {name: last[name] for name in ("calls", "programs", "memory_mb")} | {
        "minutes": last["seconds"] / 60,
        "grown": last["memory_mb"] - half["memory_mb"],
        "per_program": last["memory_mb"] / last["programs"],
    }


def droo(rows: Rows) -> Values:
    """Tell whether every optimum is proven, and the range of what others lose."""
    proven = [row["proven_1e6"] for row in rows if row["method"] == "optimal"]
    return {"all_are_proven": min(proven) == 1}


def realism(rows: Rows) -> Values:
    """Say what pieces do to the optimum's cost, and how plain P1's decisions fare."""
    values: Values = {}
    for k in dict.fromkeys(int(row["num_devices"]) for row in rows):
        own = [row for row in rows if row["num_devices"] == k]
        cost = by([row for row in own if row["scheme"] == "optimal"], "cost_j", "piece")
        edge, before = cost["finite edge"], cost["delay"]
        values |= {f"radios_{k}": cost["radios"] / cost["places in a cell"],
                   f"edge_{k}": edge / before,
                   f"scaling_{k}": 1 - cost["frequency scaling"] / cost["antennas"]}  # fmt: skip
    plain = [row for row in rows if row["scheme"] == "plain"]
    beyond = by(plain, "missed_edge", "piece")
    late = by(plain, "late", "piece")
    return values | {
        "all_beyond_the_edge": min(beyond[p] for p in ("finite edge", "frequency scaling")) > 0.99,
        "what_fits_is_optimal": max(by(plain, "gap_mean", "piece").values()) < 1e-4,
        "radios_make_late": late["radios"] > 0.95 and late["places in a cell"] < 0.01,
    }


def realism_sweeps(rows: Rows) -> Values:
    """Compare accesses and numbers of antennas, and read the ends of the trade-off curve.

    Points at which a seed has no feasible channel do not count.
    """
    values: Values = {}

    def mean(column: str, **where: object) -> float:
        where |= {"scheme": "optimal"}
        return float(np.mean([r[column] for r in rows if where.items() <= r.items()]))

    weights = [row["value"] for row in rows if row["sweep"] == "delay"]
    for k in dict.fromkeys(int(row["num_devices"]) for row in rows):
        one, two = (mean("cost_j", sweep="antennas", num_devices=k, value=m) for m in (1, 2))
        first, last = (
            {
                c: mean(c, sweep="delay", num_devices=k, value=weight)
                for c in ("delay_s", "energy_j")
            }
            for weight in (min(weights), max(weights))
        )
        values |= {
            f"second_antenna_{k}": 1 - two / one,
            f"delay_saved_{k}": 1 - last["delay_s"] / first["delay_s"],
            f"energy_added_{k}": last["energy_j"] / first["energy_j"],
        }
    slots = {(r["num_devices"], r["value"]) for r in rows if r["sweep"] == "access"}
    tdma, fdma = (
        np.array([mean("cost_j", sweep="access", num_devices=k, value=slot, access=access)
                  for k, slot in slots]) for access in ("tdma", "fdma")
    )  # fmt: skip
    return values | {"fdma_least": float(np.nanmin(fdma / tdma)),
                     "fdma_most": float(np.nanmax(fdma / tdma))}  # fmt: skip


def time_day(rows: Rows) -> Values:
    """Compare the optimum's energy with the margin to that with perfect CSI, and outages."""

    def mean(column: str, **where: float) -> float:
        where |= {"scheme": "optimal"}  # type: ignore[dict-item]
        return float(np.mean([r[column] for r in rows if where.items() <= r.items()]))

    safe = min(row["outage"] for row in rows)
    error = max(row["error"] for row in rows)
    energy, late = "energy_per_task_j", "late_slots_fraction"
    perfect = mean(energy, error=0, delay=0)
    return {
        "late_by_errors": mean(late, error=error, outage=1),
        "late_by_age": mean(late, delay=1, outage=1),
        "margin_for_errors": mean(energy, error=error, outage=safe) / perfect,
        "margin_for_age": mean(energy, delay=1, outage=safe) / perfect,
        "margins_keep_the_outage": max(mean(late, error=error, outage=safe),
                                       mean(late, delay=1, outage=safe)) < 1.1 * safe,
    }  # fmt: skip


def time_speed(rows: Rows) -> Values:
    """Compare the optimum's energy, on estimates one slot old, with that on those of the slot."""
    energy = {(row["delay"], row["speed"]): row["energy_per_task_j"] for row in rows
              if row["scheme"] == "optimal" and row["outage"] < 1}  # fmt: skip
    speeds = sorted({speed for _, speed in energy})
    over = [energy[1, speed] / energy[0, speed] for speed in speeds]
    return {"slowest": speeds[0], "at_the_slowest": over[0], "fastest": speeds[-1],
            "at_the_fastest": over[-1]}  # fmt: skip


def time_queues(rows: Rows) -> Values:
    """Compare backlogs of the optimum with one service per slot, to a load that queues hold."""
    own = [row for row in rows if row["scheme"] == "optimal" and row["load"] <= 0.8]
    found = {(row["error"] > 0, row["outage"] < 1, row["load"]): row["backlog"] for row in own}
    exact = {load: load + load**2 / (2 * (1 - load)) for *_, load in found}
    perfect = [found[False, False, load] / exact[load] for load in exact]
    most = max(exact)
    return {
        "perfect_most": max(abs(1 - ratio) for ratio in perfect),
        "load": most,
        "exact": exact[most],
        "with_margin": found[True, True, most],
        "without": found[True, False, most],
    }


def time_outage(rows: Rows) -> Values:
    """Count the outages asked for that are within the interval of those met, and read savings.

    What is met may be less: a device that a plan lets send, and that stays, leaves its part.
    """
    own = [row for row in rows if row["method"] == "slot"]
    off = [(row["late_slots_fraction"] - row["outage"]) / row["late_slots_ci95"] for row in own]
    saved = [saved_over_backoff(row, rows) for row in own]
    return {
        "rows": len(off),
        "within": sum(abs(x) <= 1 for x in off),
        "none_is_above": max(off) <= 1,
        "least_of_asked": min(row["late_slots_fraction"] / row["outage"] for row in own),
        "saves_least": float(np.nanmin(saved)),
        "saves_most": float(np.nanmax(saved)),
    }


def cells(rows: Rows) -> Values:
    """Tell from which distance on all iterations converge, and what the nearest cells cost."""
    own = sorted((r for r in rows if r["scheme"] == "optimal"), key=lambda row: row["distance"])
    circling = [row["distance"] for row in own if row["converged_fraction"] < 1]
    return {
        "nearest": own[0]["distance"],
        "circling_to": max(circling, default=0.0),
        "near_costs": own[0]["energy_per_task_j"] / own[-1]["energy_per_task_j"],
        "near_converge": own[0]["converged_fraction"],
    }


VALUES: dict[str, Callable[[Rows], Values]] = {
    function.__name__: function for function in
    (figure4, slopes, constraints, figure5, figure6, figure6_cdf, plane, frontier, decisions,
     certify, scale, speed, speed_before, droo, realism, realism_sweeps, gradients, learning, lanes,
     precision, crash_recovery, soak_memory, time_day, time_speed, time_queues, time_outage, cells)
}  # fmt: skip
