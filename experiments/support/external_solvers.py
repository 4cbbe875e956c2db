"""P1 by external solvers, in float64: what the certified optimum is compared with.

Three routes that share nothing with ``meco_jax``: branch and bound over the convex
relaxation in CVXPY with Clarabel; the same relaxation as tangents, a mixed-integer linear
program for SCIP; and SCIP on the nonlinear model itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np

from meco_jax.system import leaves

TANGENTS = 200  # per device, in geometric steps of its slot time


def instance(system: Any, h: np.ndarray) -> SimpleNamespace:
    """Write one channel ``[K]`` of a system as the coefficients of P1, ``[K]`` each.

    Sending device k's task in t seconds costs ``beta / gain t (e^(load / t) - 1)`` [J].
    """
    value = {name: np.asarray(leaf, np.float64) for name, leaf in leaves(system).items()}
    gain = np.maximum(np.asarray(h, np.float64) ** 2 / value["noise_power"], 1e-30)
    load = value["task_bits"] * np.log(value["log_base"]) / value["bandwidth"]
    max_efficiency = np.log1p(value["max_power"] * gain)
    cycles = value["cycles_per_bit"] * value["task_bits"]
    return SimpleNamespace(
        slot=float(value["slot"]),  # T [s]
        gain=gain,  # [1/W]
        load=load,  # seconds at one nat per symbol [s]
        beta=np.broadcast_to(value["weight"], load.shape),  # [-]
        max_efficiency=max_efficiency,  # at full power [-]
        min_time=load / max_efficiency,  # [s]
        local=value["weight"] * value["chip"] * cycles * value["cpu_hz"] ** 2,  # [J]
        forced=cycles / value["cpu_hz"] > value["slot"],
    )


class Clarabel:
    """Branch and bound, depth first on the most fractional device, for one number of devices.

    The problem is compiled once; a node only sets parameters.
    """

    def __init__(self, num_devices: int) -> None:
        cp: Any = importlib.import_module("cvxpy")

        names = ("load", "max_efficiency", "local", "unit", "low", "high")
        self.given = {name: cp.Parameter(num_devices, nonneg=True) for name in names}
        given = SimpleNamespace(**self.given)
        self.offload = cp.Variable(num_devices)
        time = cp.Variable(num_devices)  # in slots
        epigraph = cp.Variable(num_devices)  # t e^(a load / t): a perspective, convex
        sent = cp.multiply(given.load, self.offload)
        constraints = [
            self.offload >= given.low,
            self.offload <= given.high,
            time >= 0,
            cp.sum(time) <= 1,
            cp.ExpCone(sent, time, epigraph),
            sent <= cp.multiply(given.max_efficiency, time),
        ]
        energy = given.unit @ (epigraph - time) + given.local @ (1 - self.offload)
        self.problem = cp.Problem(cp.Minimize(energy), constraints)
        self.attempts: tuple[dict[str, Any], ...] = ({}, {"linesearch_backtrack_step": 0.5})
        self.solver, self.failed = cp.CLARABEL, cp.error.SolverError

    def solve(
        self, p: SimpleNamespace, tolerance: float, most_nodes: int = 100_000
    ) -> tuple[float, np.ndarray | None]:
        """Return the optimum [J], infinite if infeasible, and its decision ``[K]``.

        Raises:
            ArithmeticError: if Clarabel fails on a node, or there are more than ``most_nodes``.
        """
        reach = p.min_time <= p.slot
        if np.any(p.forced & ~reach):
            return np.inf, None
        unit = float(p.local.max())
        values = {
            "load": p.load / p.slot,
            "max_efficiency": np.where(reach, p.max_efficiency, 1.0),
            "local": p.local / unit,
            "unit": np.where(reach, p.beta / p.gain, 1.0) * p.slot / unit,
        }
        for name, value in values.items():
            self.given[name].value = value
        best, decision = np.inf, None
        stack = [(p.forced.astype(float), reach.astype(float))]
        for _ in range(most_nodes):
            if not stack:
                return best * unit, decision
            low, high = stack.pop()
            if low @ p.min_time > p.slot:
                continue  # Clarabel may fail where there is nothing to find
            bound, offload = self._relax(low, high)
            if not bound < best * (1 - tolerance):
                continue
            fractional = np.abs(offload - np.round(offload))
            k = int(np.argmax(fractional))
            if fractional[k] < 1e-5:
                best, decision = bound, np.round(offload)
                continue
            for side in (1 - round(offload[k]), round(offload[k])):  # the nearer is tried first
                down, up = low.copy(), high.copy()
                down[k] = up[k] = side
                stack.append((down, up))
        raise ArithmeticError(f"more than {most_nodes} nodes")

    def _relax(self, low: np.ndarray, high: np.ndarray) -> tuple[float, np.ndarray]:
        self.given["low"].value, self.given["high"].value = low, high
        for options in self.attempts:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of inaccuracy: see the status
                    self.problem.solve(solver=self.solver, **options)
                break
            except self.failed:
                continue
        else:
            raise ArithmeticError("Clarabel failed on a node")
        if self.problem.status not in ("optimal", "optimal_inaccurate"):
            return np.inf, low
        return float(self.problem.value), np.asarray(self.offload.value)


def has_scip() -> bool:
    """Tell whether pyscipopt, of the extra "bench", is installed."""
    return importlib.util.find_spec("pyscipopt") is not None


def scip(
    p: SimpleNamespace, tolerance: float, seconds: float, nonlinear: bool
) -> tuple[float, np.ndarray | None]:
    """Solve P1 with SCIP: seconds in SCIP itself, without building the model, and the decision.

    The semicontinuous slot time t, 0 where a task stays, makes tangents perspective cuts
    ``c >= a (E(s) - s E'(s)) + E'(s) t``: as tight as the convex relaxation. The nonlinear
    model bounds the nats per symbol x, with t = load / x where a task is sent.
    """
    from pyscipopt import Model

    model = Model()
    model.hideOutput()
    model.setParam("limits/time", seconds)
    model.setParam("limits/gap", tolerance)
    unit = float(p.local.max()) * 1e-3
    energy: Any = 0.0
    used: Any = 0.0
    chosen = {}
    for k in range(len(p.load)):
        if p.min_time[k] <= p.slot:
            chosen[k] = model.addVar(vtype="B", lb=float(p.forced[k]))
            add = _nonlinear_device if nonlinear else _tangent_device
            cost, time_used = add(model, p, k, chosen[k], unit)
            energy, used = energy + cost, used + time_used
        elif p.forced[k]:
            return 0.0, None
        else:
            energy += p.local[k] / unit
    if chosen:
        model.addCons(used <= 1)
    model.setObjective(energy, "minimize")
    began = time.perf_counter()
    model.optimize()
    spent = time.perf_counter() - began
    if not model.getNSols():
        return spent, None
    decision = np.zeros(len(p.load))
    for k, a in chosen.items():
        decision[k] = round(model.getVal(a))
    return spent, decision


def _tangent_device(model: Any, p: SimpleNamespace, k: int, a: Any, unit: float) -> tuple[Any, Any]:
    """Add a device by tangents of its energy: energy [unit] and slot time used [slots]."""
    factor = p.beta[k] / p.gain[k] / unit
    t, cost = model.addVar(lb=0, ub=1), model.addVar(lb=0)
    model.addCons(t >= p.min_time[k] / p.slot * a)
    model.addCons(t <= a)
    at = np.geomspace(p.min_time[k], p.slot, TANGENTS)
    x = p.load[k] / at
    slope = factor * (np.expm1(x) - x * np.exp(x))
    level = factor * at * np.expm1(x) - slope * at
    for constant, rise in zip(level, slope * p.slot):
        model.addCons(cost >= constant * a + rise * t)
    return cost + p.local[k] / unit * (1 - a), t


def _nonlinear_device(
    model: Any, p: SimpleNamespace, k: int, a: Any, unit: float
) -> tuple[Any, Any]:
    """Add a device by its rate, the slowest where it stays: energy [unit] and time [slots]."""
    from pyscipopt import exp

    factor = p.beta[k] / p.gain[k] / unit
    slowest, fastest = p.load[k] / p.slot, p.max_efficiency[k]
    x = model.addVar(lb=slowest, ub=fastest)
    t, cost = model.addVar(lb=p.min_time[k] / p.slot, ub=1), model.addVar(lb=0)
    model.addCons(t >= slowest / x)
    model.addCons(factor * p.load[k] * (exp(x) - 1) / x <= cost)
    model.addCons(x <= slowest + (fastest - slowest) * a)
    least = factor * p.slot * np.expm1(slowest)
    return cost + (p.local[k] / unit - least) * (1 - a), t - (1 - a)
