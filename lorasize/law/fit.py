"""The Parametric Memory Law: predict, invert, fit, and say how sure.

    ΔL = C · N^α · ℓ^−β + b        nats per target token

N: effective parameters, ℓ: target tokens. ΔL is left unclipped: a value above the base loss is capacity to spare.
Single coefficients are poorly identified (they correlate up to 0.99); predictions with their covariance are not. So
nothing here reports a coefficient without the covariance, and nothing else should read one alone.

Source: arXiv 2605.30260 (the law); 2603.22339 (variable projection for the starts). numpy and scipy only; scipy is
imported by the fit alone, since it takes most of a second and predictions do without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorasize.errors import FitError
from lorasize.law.form import FORM, SATURATED, SOFT_FORM, Array, bend, bend_slope, unbend
from lorasize.records import Law

FEW_POINTS = 8  # below this the priors of field practice enter
EXPONENT_BOUNDS = (0.05, 2.5)
PRIOR_MEAN = (0.7, 0.7, 0.0)  # α, β, b
PRIOR_SD = (0.3, 0.3, 0.5)
EFFICIENCY_PRIOR_SD = 0.3  # of ln efficiency, for a site whose every probe saturated: alike until measured
PRIOR_NOISE = 0.03  # assumed noise of ΔL, as a share of its median, where too few points exist to measure it
_LN_EFFICIENCY_LIMIT = 7.0

# Numerical tolerances and starts: not tuned.
_COLLINEAR = 0.02  # e-folds of independent spread that carry no information at realistic noise
_NULL = 1e-6  # a singular value below is none
_TAKES_PART = 0.05  # a component of a null direction above names its parameter
_GRID = np.linspace(0.1, 2.2, 12)  # of exponents
_STARTS = 3


@dataclass(frozen=True)
class LawPoint:
    """One measured loss reduction (nats per target token) at a site; several corpora share one `reference_loss`.

    A corpus with another base loss enters with n_tokens = nats / reference_loss, and loss_reduction scaled by
    reference_loss / base_loss. A `censored` point only says that capacity was at least that, such as a run that was
    ended because it had succeeded.
    """

    site_index: int
    n_parameters: float
    n_tokens: float
    loss_reduction: float
    censored: bool = False


@dataclass(frozen=True)
class Fit:
    """A fitted law, each site's (efficiency, standard error), and residuals (observed − predicted) in point order.

    The residual of a saturated point is 0 when the law predicts at least what was observed.
    """

    law: Law
    efficiencies: tuple[tuple[float, float], ...]
    residuals: tuple[float, ...]


@dataclass(frozen=True)
class _Data:
    """Points as arrays of length n: centred logarithms, observed ΔL, site index, and which ones are saturated."""

    x: Array
    y: Array
    observed: Array
    site: NDArray[np.int64]
    saturated: NDArray[np.bool_]
    centre: tuple[float, float]
    noise: float  # scale of the prior rows, nats; 0 switches the priors off
    unit: float  # assumed noise of ΔL, nats; scale of the prior on efficiencies that no open point measures
    ceiling: float  # nats per token under which ΔL bends; infinite for the paper's form

    @property
    def n_open(self) -> int:
        """How many points are not saturated."""
        return int((~self.saturated).sum())

    @property
    def n_sites(self) -> int:
        """How many sites the indices span."""
        return int(self.site.max()) + 1

    @property
    def unmeasured(self) -> NDArray[np.bool_]:
        """Which of the sites after the reference have only saturated points, shape (n_sites − 1,)."""
        return ~np.isin(np.arange(1, self.n_sites), self.site[~self.saturated])


def fit_law(points: Sequence[LawPoint], *, reference_loss: float, soft_ceiling: bool = False) -> Fit:
    """The law that fits all sites jointly by least squares in ΔL, site 0 being the reference (efficiency 1).

    A site's parameters count as N = efficiency · n_parameters. Points that say so, and those within 3 % of the ceiling
    `reference_loss` (nats per token), are censored: they pull only when the law predicts less than they reached. With
    fewer than 8 open points (or fewer than 2 to spare) weak priors on α, β and b enter, since so few cannot hold the
    exponents. A site whose every point is censored is taken to be like the reference, ln efficiency 0 ± 0.3, unless it
    reached more.

    Args:
        points: What was measured.
        reference_loss: Base loss of the text they were measured on.
        soft_ceiling: Let ΔL bend under the reference loss, so that points near it inform the law instead of flattening
            its exponents; False fits the paper's form.

    Raises:
        FitError: values that are no measurements, or a design that leaves something open; `unidentified` names it.

    Source: arXiv 2605.30260; priors and censoring as in the literature on fitting from few probes.
    """
    data = _prepare(points, reference_loss, reference_loss if soft_ceiling else math.inf)
    _require_identified(data)
    best = min((_refine(data, start) for start in _starts(data)), key=lambda theta: _rss(data, theta))
    covariance, sigma = _covariance(data, best)
    residuals = -_residuals(data, best)[: len(points)]
    efficiencies = tuple((math.exp(v), math.exp(v) * math.sqrt(covariance[k, k])) for k, v in enumerate(best[4:], 4))
    return Fit(
        law=_law(data, best, covariance, sigma, reference_loss),
        efficiencies=((1.0, 0.0), *efficiencies),
        residuals=tuple(float(r) for r in residuals),
    )


def _prepare(points: Sequence[LawPoint], reference_loss: float, ceiling: float) -> _Data:
    rows = np.array([(p.n_parameters, p.n_tokens, p.loss_reduction) for p in points], dtype=float).reshape(-1, 3)
    if not np.isfinite(rows).all() or (rows[:, :2] <= 0).any() or not reference_loss > 0:
        raise FitError("An observation is not finite, or counts no parameters or no tokens: measure it again.")
    saturated = (rows[:, 2] >= SATURATED * reference_loss) | np.array([p.censored for p in points], dtype=bool)
    n_open = int((~saturated).sum())
    if n_open < 4:
        raise FitError(
            f"{n_open} of {len(points)} observations show a limit; the law needs 4: add larger corpora.",
            unidentified=("parameter_exponent", "length_exponent", "offset"),
        )
    logs = np.log(rows[:, :2])
    centre = logs[~saturated].mean(axis=0)
    site = np.array([p.site_index for p in points], dtype=np.int64)
    few = n_open < max(FEW_POINTS, 4 + int(site.max()) + 2)
    unit = PRIOR_NOISE * max(float(np.median(np.abs(rows[:, 2]))), 1e-3)
    x, y = (logs - centre).T
    middle = (float(centre[0]), float(centre[1]))
    return _Data(x, y, rows[:, 2], site, saturated, middle, unit if few else 0.0, unit, ceiling)


def _require_identified(data: _Data) -> None:
    """Refuse a design that leaves a parameter open, priors or not.

    Near collinearity counts: 2 % of an e-fold of independent spread carries no information at realistic noise.
    """
    names = ["coefficient", "parameter_exponent", "length_exponent"]
    keep = ~data.saturated
    one, x, y = np.ones(data.n_open), data.x[keep], data.y[keep]
    measured = [k for k in range(1, data.n_sites) if (data.site[keep] == k).any() or not (data.site == k).any()]
    dummies = [(data.site[keep] == k).astype(float) for k in measured]
    efficiency = [f"efficiency of site {k}" for k in measured]
    open_names = _null_names(np.stack([one, x, y, *dummies], axis=1), [*names, *efficiency], _COLLINEAR)
    if not open_names and not data.noise:
        power = np.exp(PRIOR_MEAN[0] * (x - y))  # any usual exponent shows whether the offset is told from the slope
        columns = [power, power * x, power * y, one, *(power * d for d in dummies)]
        open_names = _null_names(np.stack(columns, axis=1), [*names, "offset", *efficiency], _NULL)
    if open_names:
        raise FitError(
            f"The observations do not identify {', '.join(open_names)}: vary rank and corpus length independently.",
            unidentified=open_names,
        )


def _null_names(design: Array, names: Sequence[str], tolerance: float) -> tuple[str, ...]:
    """Names of the columns that take part in a near-null direction of the design, without the coefficient."""
    _, singular, directions = np.linalg.svd(design / math.sqrt(len(design)), full_matrices=True)
    padded = np.pad(singular, (0, len(names) - len(singular)))
    loose = np.abs(directions[padded < tolerance])
    return tuple(n for i, n in enumerate(names) if n != "coefficient" and (loose[:, i] > _TAKES_PART).any())


def _starts(data: _Data) -> list[Array]:
    """Starting points: on a grid of exponents the rest is linear (one coefficient a site, and the offset)."""
    keep = ~data.saturated
    alpha, beta = (g.ravel()[:, None] for g in np.meshgrid(_GRID, _GRID))
    power = np.exp(alpha * data.x[keep] - beta * data.y[keep])
    indicator = (data.site[keep][:, None] == np.arange(data.n_sites)).astype(float)
    design = np.concatenate([power[:, :, None] * indicator, np.ones((*power.shape, 1))], axis=2)
    unbent = unbend(data.observed[keep], data.ceiling)
    solution = np.linalg.pinv(design) @ unbent
    rss = ((np.einsum("gnk,gk->gn", design, solution) - unbent) ** 2).sum(axis=1)
    rss[(solution[:, :-1] <= 0).any(axis=1)] += 1e6 * (1.0 + rss.max())
    best = np.argsort(rss, kind="stable")[:_STARTS]
    return [_start(alpha[g, 0], beta[g, 0], solution[g], data.unmeasured) for g in best]


def _start(alpha: float, beta: float, solution: Array, unmeasured: NDArray[np.bool_]) -> Array:
    logs = np.log(np.maximum(solution[:-1], 1e-3 * max(float(solution[:-1].max()), 1e-3)))
    efficiency = np.clip((logs[1:] - logs[0]) / alpha, 0.9 * -_LN_EFFICIENCY_LIMIT, 0.9 * _LN_EFFICIENCY_LIMIT)
    efficiency[unmeasured] = 0.0
    return np.array([logs[0], alpha, beta, solution[-1], *efficiency])


def _refine(data: _Data, start: Array) -> Array:
    from scipy.optimize import least_squares

    n_free = len(start) - 4
    lower = [-np.inf, EXPONENT_BOUNDS[0], EXPONENT_BOUNDS[0], -np.inf, *[-_LN_EFFICIENCY_LIMIT] * n_free]
    upper = [np.inf, EXPONENT_BOUNDS[1], EXPONENT_BOUNDS[1], np.inf, *[_LN_EFFICIENCY_LIMIT] * n_free]
    minimum = least_squares(
        lambda theta: _residuals(data, theta),
        start,
        jac=lambda theta: _jacobian(data, theta),
        bounds=(lower, upper),
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
        max_nfev=500,
    )
    return np.asarray(minimum.x, dtype=float)


def _slope(data: _Data, theta: Array) -> tuple[Array, Array]:
    """C · N^α · ℓ^−β of every point, and the ln N it used; theta = (ln C at the centre, α, β, b, ln efficiencies)."""
    x = data.x + np.concatenate([[0.0], theta[4:]])[data.site]
    return np.exp(np.clip(theta[0] + theta[1] * x - theta[2] * data.y, -60.0, 60.0)), x


def _residuals(data: _Data, theta: Array) -> Array:
    """Predicted − observed (n,), one-sided where saturated, then the prior rows if they are on."""
    residual = bend(_slope(data, theta)[0] + theta[3], data.ceiling) - data.observed
    residual[data.saturated] = np.minimum(residual[data.saturated], 0.0)
    unmeasured = data.unit * theta[4:][data.unmeasured] / EFFICIENCY_PRIOR_SD
    prior = data.noise * (theta[1:4] - PRIOR_MEAN) / PRIOR_SD if data.noise else np.empty(0)
    return np.concatenate([residual, unmeasured, prior])


def _jacobian(data: _Data, theta: Array) -> Array:
    slope, x = _slope(data, theta)
    columns = [slope, slope * x, -slope * data.y, np.ones_like(slope)]
    columns += [theta[1] * slope * (data.site == k) for k in range(1, data.n_sites)]
    reached = slope + theta[3]
    jacobian = np.stack(columns, axis=1) * bend_slope(reached, data.ceiling)[:, None]
    jacobian[data.saturated & (bend(reached, data.ceiling) >= data.observed)] = 0.0
    columns_of = 4 + np.flatnonzero(data.unmeasured)
    unmeasured = np.zeros((len(columns_of), len(theta)))
    unmeasured[np.arange(len(columns_of)), columns_of] = data.unit / EFFICIENCY_PRIOR_SD
    prior = np.zeros((3 if data.noise else 0, len(theta)))
    if data.noise:
        prior[[0, 1, 2], [1, 2, 3]] = data.noise / np.array(PRIOR_SD)
    return np.concatenate([jacobian, unmeasured, prior])


def _rss(data: _Data, theta: Array) -> float:
    return float((_residuals(data, theta) ** 2).sum())


def _covariance(data: _Data, theta: Array) -> tuple[Array, float]:
    """Covariance in the fit's own coordinates, and the residual standard error (nats per token).

    With priors on, the assumed noise is a floor: few points that happen to agree do not prove small noise.
    """
    jacobian = _jacobian(data, theta)
    spare = data.n_open - len(theta) + int(data.unmeasured.sum()) + (len(PRIOR_SD) if data.noise else 0)
    residual = _residuals(data, theta)[: len(data.x)]
    sigma = max(math.sqrt(float((residual**2).sum()) / max(spare, 1)), data.noise)
    inverse = np.asarray(np.linalg.pinv(jacobian.T @ jacobian, hermitian=True), dtype=np.float64)
    return inverse * sigma**2, sigma


def _law(data: _Data, theta: Array, covariance: Array, sigma: float, reference_loss: float) -> Law:
    """The record: coordinates moved from the centre of the data to N = ℓ = 1."""
    alpha, beta, offset = (float(v) for v in theta[1:4])
    coefficient = math.exp(theta[0] - alpha * data.centre[0] + beta * data.centre[1])
    move = np.eye(4)
    move[0] = np.array([1.0, -data.centre[0], data.centre[1], 0.0]) * coefficient
    keep = ~data.saturated
    observed, residual = data.observed[keep], _residuals(data, theta)[: len(keep)][keep]
    total = float(((observed - observed.mean()) ** 2).sum())
    used = np.exp(_slope(data, theta)[1] + data.centre[0])
    tokens = np.exp(data.y + data.centre[1])
    return Law(
        coefficient=coefficient,
        parameter_exponent=alpha,
        length_exponent=beta,
        offset=offset,
        covariance=tuple(tuple(float(v) for v in row) for row in move @ covariance[:4, :4] @ move.T),
        r_squared=1.0 - float((residual**2).sum()) / total if total > 0 else 0.0,
        form=FORM if math.isinf(data.ceiling) else SOFT_FORM,
        reference_loss=reference_loss,
        residual_stderr=sigma,
        n_observations=len(keep),
        parameters_range=(float(used.min()), float(used.max())),
        tokens_range=(float(tokens.min()), float(tokens.max())),
    )
