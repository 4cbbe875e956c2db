"""P1 by an independent route: branch and bound over convex programs in CVXPY with Clarabel."""

import cvxpy as cp
import numpy as np


def relaxed(p, low, high):
    """Energy and ratios with a in [low, high]: a perspective of the exponential, exactly convex."""
    k, scale = len(p.load), p.slot
    a, t = cp.Variable(k), cp.Variable(k)  # t in slots
    load, unit = p.load / scale, p.beta / p.gain * scale
    epigraph = cp.Variable(k)  # t e^(a load / t)
    constraints = [a >= low, a <= high, t >= 0, cp.sum(t) <= 1,
                   cp.ExpCone(cp.multiply(a, load), t, epigraph),
                   cp.multiply(a, load) <= cp.multiply(t, p.max_nats)]  # fmt: skip
    local = p.local / p.local.max()
    sent = cp.multiply(unit / p.local.max(), epigraph - t)
    problem = cp.Problem(cp.Minimize(cp.sum(sent) + local @ (1 - a)), constraints)
    problem.solve(solver=cp.CLARABEL)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        return np.inf, None
    return problem.value * p.local.max(), a.value


def optimum(p, tolerance=1e-6):
    """Optimum of P1, infinite if infeasible: depth first, the most fractional device branches."""
    best, stack = np.inf, [(p.forced.astype(float), np.ones(len(p.load)))]
    while stack:
        low, high = stack.pop()
        bound, a = relaxed(p, low, high)
        if not bound < best * (1 - tolerance):
            continue
        fractional = np.abs(a - np.round(a))
        k = int(np.argmax(fractional))
        if fractional[k] < 1e-5:
            best = bound
            continue
        for value in (1 - round(a[k]), round(a[k])):  # the nearer side is tried first
            down, up = low.copy(), high.copy()
            down[k] = up[k] = value
            stack.append((down, up))
    return best
