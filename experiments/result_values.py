"""The numbers and claims in the sentences of the results, by csv and name.

Each function reads one csv of experiments/figures. A number stands for ``{{ value:CSV.NAME }}`` in
a template; True or False is a claim, ``{{ claim:CSV.NAME }}``, and must be True. Shares and gaps
are fractions, which the template's format writes in percent.
"""

from __future__ import annotations

from collections.abc import Callable

import claims
import numpy as np
from result_tables import Rows, slope

Values = dict[str, float | bool]
FITS = 0.6  # from here on the tasks fit at K = 14 [s]
LOOSE = 0.9  # deadlines that hardly bind at K = 14 [s]
RAW = {"raw": "bcos_raw", "learned": "pcos_learned"}  # the networks' own answers


def mean(rows: Rows, column: str, **where: str | float) -> float:
    """Average a column over the rows that have the given values, the empty cells left out."""
    found = [row[column] for row in rows if all(row[n] == value for n, value in where.items())]
    return float(np.nanmean(found))


def figure4(rows: Rows) -> Values:
    """Read what happens along K."""
    gap, kept, on_time, energy = (
        claims.means(rows, "num_devices", column) for column in
        ("gap_to_optimum_mean", "feasible_fraction", "deadline_met_fraction", "energy_mean_j")
    )  # fmt: skip
    devices = np.array(sorted({row["num_devices"] for row in rows}))
    return {
        "mcos_least": 1 + gap["mcos"].min(),
        "mcos_most": 1 + gap["mcos"].max(),
        "made_feasible_to_14": gap["bcos"][devices <= 14].max(),
        "made_feasible_last": gap["bcos"][-1],
        "pcos_gap_last": gap["pcos"][-1],
        "pcos_energy_last": energy["pcos"][-1] / energy["optimal"][-1] - 1,
        "raw_gap_last": gap["bcos_raw"][-1],
        "learned_below_the_optimum": bool(gap["pcos_learned"][-1] < 0),
        "gaps_grow": bool(gap["bcos"][-1] > gap["bcos"][0] and np.argmax(gap["bcos_raw"]) > 6),
    } | {
        f"{name}_{what}_{end}": shares[scheme][place]
        for name, scheme in RAW.items()
        for what, shares in (("kept", kept), ("on_time", on_time))
        for end, place in (("first", 0), ("last", -1))
    }  # fmt: skip


def slopes(rows: Rows) -> Values:
    """Read what slope 0 and shared branches do, against the others."""
    raw, fixed = ({r["method"]: r[n] for r in rows} for n in ("energy_raw", "energy_made_feasible"))
    return {
        "zero_saves": raw["zero"] < 0,
        "zero_on_time": mean(rows, "deadline_met_fraction", method="zero"),
        "zero_is_best_made_feasible": fixed["zero"] == min(fixed.values()),
        "shared_spends_most": raw["share_resources"] == max(raw.values()),
    }


def figure5(rows: Rows) -> Values:
    """Read what happens along T: the gaps where slots are short, the networks where long."""
    gap, kept, energy = (
        claims.means(rows, "slot", column)
        for column in ("gap_to_optimum_mean", "feasible_fraction", "energy_mean_j")
    )
    slots = np.array(sorted({row["slot"] for row in rows}))
    loose = slots >= LOOSE
    values: Values = {
        "pcos_gap_lowest": gap["pcos"].min(),
        "made_feasible_most": gap["bcos"].max(),
        "pcos_gap_from_06": np.abs(gap["pcos"][slots >= FITS]).max(),
    }
    over = [energy[name][loose] / energy["optimal"][loose] - 1 for name in RAW.values()]
    values |= {"loose_energy_least": np.min(over), "loose_energy_most": np.max(over)}
    for name, scheme in RAW.items():
        values[f"{name}_kept_least"] = kept[scheme].min()
        for what, shares in (("gap", gap), ("kept", kept)):
            values[f"{name}_loose_{what}_least"] = shares[scheme][loose].min()
            values[f"{name}_loose_{what}_most"] = shares[scheme][loose].max()
    return values


def figure6(rows: Rows) -> Values:
    """Read the shares of channels on time, and that MCOS sends nothing."""
    sent = [mean(rows, "offload_fraction", scheme=name) for name in ("mcos", "mcos_partial")]
    return {"mcos_sends_nothing": max(sent) == 0} | {
        f"{name}_{what}": mean(rows, column, scheme=scheme)
        for name, scheme in RAW.items()
        for what, column in (("kept", "feasible_fraction"), ("on_time", "deadline_met_fraction"))
    }


def figure6_cdf(rows: Rows) -> Values:
    """Read the medians of the offloading times at T = 1 s, and that the optimum fills the slot."""
    middle = {
        name: mean(rows, "sending_time_s", scheme=name, probability=0.5)
        for name in (*RAW.values(), "optimal", "pcos")
    }
    fills = min(middle["optimal"], middle["pcos"]) > 0.999
    return {"optima_fill_the_slot": fills} | {n: middle[scheme] for n, scheme in RAW.items()}


def plane(rows: Rows) -> Values:
    """Read the plane's size, the gaps of BCOS made feasible, and how often it saves much."""
    values: Values = {
        name: len({row[name] for row in rows}) for name in ("num_devices", "slot", "seed")
    }
    places = dict.fromkeys((row["num_devices"], row["slot"]) for row in rows)
    gaps, saved = {}, []
    for k, slot in places:
        at = {"num_devices": k, "slot": slot}
        gaps[k, slot] = mean(rows, "gap_to_optimum_mean", scheme="bcos", **at)
        ours, local = (mean(rows, "energy_mean_j", scheme=s, **at) for s in ("bcos", "mcos"))
        saved.append(1 - ours / local)
    values["gap_where_tasks_fit"] = max(gap for (_, slot), gap in gaps.items() if slot >= FITS)
    values["gap_most"] = max(gaps.values())
    values |= {"saved_least": min(saved), "saved_in_nine_of_ten": float(np.quantile(saved, 0.1))}
    return values


def constraints(rows: Rows) -> Values:
    """Read the setting that keeps C1-C5 on most channels at K = 20, and what it costs."""
    values: Values = {}
    for name, scheme in RAW.items():
        few = [r for r in rows if r["scheme"] == scheme and r["num_devices"] == 20]
        best = max(few, key=lambda row: row["kept"])
        values |= {f"{name}_kept": best["kept"], f"{name}_gap": best["gap_mean"]}
        largest = [max(r[n] for r in few) for n in ("multiplier_step", "margin")]
        values[f"{name}_best_is_largest"] = [best["multiplier_step"], best["margin"]] == largest
    return values


def frontier(rows: Rows) -> Values:
    """Read speeds and gaps of the methods."""
    values: Values = {}
    solvers = {"host": "search on the host", "clarabel": "Clarabel, branch and bound",
               "scip": "SCIP, tangents"}  # fmt: skip
    rate = {(r["num_devices"], r["method"]): r["channels_per_second"] for r in rows}
    for k in (14, 20):
        at, certified = {"num_devices": k}, rate[k, "solve, certified"]
        for name, method in solvers.items():
            values[f"over_{name}_{k}"] = certified / rate[k, method]
        values[f"trained_gap_{k}"] = mean(rows, "gap_mean", method="BCOS, made feasible", **at)
        for effort in (0, 4, 6):
            method = f"solve, effort {effort}"
            values[f"effort_{effort}_gap_{k}"] = mean(rows, "gap_mean", method=method, **at)
    times = [rate[k, f"solve, effort {n}"] / rate[k, "solve, certified"]
             for k in (14, 20) for n in (4, 6)]  # fmt: skip
    first = [row["first_call_s"] for row in rows if row["first_call_s"] == row["first_call_s"]]
    gaps = [r["gap_worst"] for r in rows if r["method"] == "solve, certified"]
    nothing, trained = (
        mean(rows, "gap_mean", method=name, num_devices=20)
        for name in ("repair of nothing", "BCOS, made feasible")
    )
    return values | {
        "single_us": mean(rows, "p50_us", method="solve, certified", num_devices=20),
        "times_of_policy_least": min(times),
        "times_of_policy_most": max(times),
        "first_call_least": min(first),
        "first_call_most": max(first),
        "certified_has_no_gap": max(gaps) < 1e-6,
        "repair_of_nothing_is_closer": nothing < trained,
    }


def certify(rows: Rows) -> Values:
    """Read how many channels were proven, and that each proof is true."""
    some = [row for row in rows if row["feasible_fraction"] > 0]
    number = [round(row["channels"] * row["feasible_fraction"]) for row in some]
    return {
        "channels": sum(row["channels"] for row in rows),
        "feasible": sum(number),
        "certified": float(np.average([row["certified"] for row in some], weights=number)),
        "least_certified": min(row["certified"] for row in some),
        "one_stage_least": min(row["certified_one_stage"] for row in some),
        "worst_gap": max(row["gap_worst"] for row in some),
        "all_are_optimal": min(row["optimal_fraction"] for row in some) == 1,
        "no_bound_is_false": max(row["false_bounds"] for row in rows) == 0,
    }


def scale(rows: Rows) -> Values:
    """Read how time grows with K, and where the proven gap is largest."""
    worst = max(rows, key=lambda row: row["gap_mean"])
    return {
        "slope": slope(rows),
        "gap_most": worst["gap_mean"],
        "gap_most_at": worst["num_devices"],
        "largest": rows[-1]["num_devices"],
        "largest_ms": rows[-1]["us_per_channel"] / 1e3,
        "large_k_has_less": rows[-1]["gap_mean"] < worst["gap_mean"] / 5,
    }


def gradients(rows: Rows) -> Values:
    """Read the mean gaps of the gradient estimators, and their order."""
    gap = {n: mean(rows, "gap_mean", method=n) for n in dict.fromkeys(r["method"] for r in rows)}
    relaxations = [gap[n] for n in ("clipped", "gumbel", "reinforce", "relaxed", "sampled")]
    ours, fits = gap["best_flips"], "within_deadline"
    return {
        "relaxations_least": min(relaxations),
        "relaxations_most": max(relaxations),
        "flips_is_best": ours == min(gap.values()),
        "exact_is_next": max(gap["exact"], gap["exact_best"]) < min(*relaxations, gap["teacher"]),
        "sign_is_worst": gap["sign"] == max(gap.values()),
        "straight_through_fits": mean(rows, fits, method="straight_through"),
        "straight_through_fits_least": mean(rows, fits, method="straight_through")
        == min(mean(rows, fits, method=name) for name in gap),
    } | {name: gap[name] for name in ("teacher", "exact", "exact_best", "best_flips")}


def lanes(rows: Rows) -> Values:
    """Read what a lane adds to the memory, and which way is quicker with all lanes."""
    own = {n: [r for r in rows if r["method"] == n] for n in ("lax.map", "vmap")}
    first, last = own["lax.map"][0], own["lax.map"][-1]
    grown = (last["peak_mb"] - first["peak_mb"]) / (last["lanes"] - first["lanes"])
    quicker = last["lane_steps_per_s"] > own["vmap"][-1]["lane_steps_per_s"]
    return {"mb_per_lane": grown, "map_is_quicker": quicker}


def precision(rows: Rows) -> Values:
    """Read that every error is within its budget."""
    return {"within_budget": all(row["error_max"] <= row["budget"] for row in rows)}


def kills(rows: Rows) -> Values:
    """Read how many runs were killed, what it cost, and that it changed nothing."""
    lost = [row["seconds_lost"] for row in rows if not row["method"].startswith("start")]
    return {
        "kills": len(rows),
        "runs": len({(row["script"], row["run"]) for row in rows}),
        "before_training": len(rows) - len(lost),
        "seconds_lost": max(lost),
        "nothing_differs": all(row["identical"] == 1 and row["damaged"] == 0 for row in rows),
    }


def soak_memory(rows: Rows) -> Values:
    """Read the load's calls and programs, and the memory [MB]."""
    half, last = rows[len(rows) // 2], rows[-1]
    return {
        "minutes": last["seconds"] / 60,
        "calls": last["calls"],
        "programs": last["programs"],
        "memory": last["memory_mb"],
        "grown": last["memory_mb"] - half["memory_mb"],
        "per_program": last["memory_mb"] / last["programs"],
    }


def csi(rows: Rows) -> Values:
    """Read the estimation errors, and how many channels are late without a back-off."""
    errors = [row["error"] for row in rows]
    late = [row["late_fraction"] for row in rows if row["backoff_db"] == 0]
    return {"error_least": min(errors), "error_most": max(errors),
            "late_least": min(late), "late_most": max(late)}  # fmt: skip


VALUES: dict[str, Callable[[Rows], Values]] = {
    function.__name__: function for function in
    (figure4, slopes, figure5, figure6, figure6_cdf, plane, constraints, frontier, certify, scale,
     gradients, lanes, precision, kills, soak_memory, csi)
}  # fmt: skip
