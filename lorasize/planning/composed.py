"""A set of modules that was not probed as such, in any layers: what each module was seen to be worth, put together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lorasize.errors import CalibrationError
from lorasize.planning.choice import require_modules
from lorasize.records import Calibration, SiteEfficiency

COMPOSED_SD = 1.0  # of the efficiency, as a share: docs/log/plans.md#sites-put-together

Parameters = Mapping[str, Mapping[int, int]]  # of one rank, by module and layer


def with_site(
    calibration: Calibration, target_modules: Sequence[str], layers: Sequence[int] | None, parameters: Parameters
) -> tuple[Calibration, list[str]]:
    """The calibration with this site alone, probed or put together; and what to say of the latter.

    Args:
        calibration: Of this model.
        target_modules: The modules.
        layers: Decoder layers, all that have one of the modules when empty; None for those that these modules were
            probed in, else all.
        parameters: Adapter parameters of one rank, by module and layer.

    Raises:
        CalibrationError: one of the modules was never probed, or is in none of these layers.
    """
    wanted = set(target_modules)
    probed = [s for s in calibration.sites if set(s.target_modules) == wanted]
    if layers is not None:
        asked = set(layers) or {k for module in wanted for k in parameters.get(module, {})}
        probed = [s for s in probed if set(s.layers_to_transform) == asked]
    if probed:
        return calibration.model_copy(update={"sites": tuple(probed)}), []
    site = composed(calibration, sorted(wanted), layers, parameters)
    n = len(site.layers_to_transform)
    where = f"{'+'.join(site.target_modules)} in {n} layer{'s' if n > 1 else ''}"
    note = (
        f"Not probed: what {where} holds is put together from probes of single modules, an efficiency of "
        f"{site.efficiency:.2f} ± {site.stderr:.2f}; modules that hold little alone may hold more together."
    )
    return calibration.model_copy(update={"sites": (site,)}), [note]


def composed(
    calibration: Calibration, target_modules: Sequence[str], layers: Sequence[int] | None, parameters: Parameters
) -> SiteEfficiency:
    """The site of these modules: the mean of what each is worth, by its parameters, as more layers change it.

    Each module's efficiency is that of its probes in the fewest layers; how more layers change it is taken from the
    modules that were probed in several, in the number of layers that is nearest.

    Raises:
        CalibrationError: one of the modules was never probed, or is in none of these layers.
    """
    single = {m: require_modules(calibration, (m,)) for m in target_modules}
    own = {m: min(sites, key=lambda s: len(s.layers_to_transform)) for m, sites in single.items()}
    found = {m: [k for k in parameters.get(m, {}) if not layers or k in layers] for m in target_modules}
    for module, places in found.items():
        if not places:
            raise CalibrationError(f"{module} is in none of the layers asked for.")
    in_all = {m: sum(parameters[m][k] for k in places) for m, places in found.items()}
    total = sum(in_all.values())
    mean = sum(n * own[m].efficiency for m, n in in_all.items()) / total
    error = math.sqrt(sum((n * own[m].stderr) ** 2 for m, n in in_all.items())) / total
    used = sorted({k for places in found.values() for k in places})
    more = _of_layers(calibration, len(used))
    return SiteEfficiency(
        target_modules=tuple(target_modules),
        layers_to_transform=tuple(used),
        efficiency=mean * more,
        stderr=math.hypot(error * more, COMPOSED_SD * mean * more),
        parameters_per_rank=total,
    )


def _of_layers(calibration: Calibration, n: int) -> float:
    """What a parameter in so many layers is worth, against one in the fewest that the same modules were probed in."""
    reference = calibration.sites[0].target_modules
    sites = [s for s in calibration.sites if s.target_modules == reference]
    nearest = min(sites, key=lambda s: abs(math.log(len(s.layers_to_transform) / n)))
    return nearest.efficiency / sites[0].efficiency
