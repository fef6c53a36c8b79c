"""The plots that papers on sparse activation show, of one profile. Needs matplotlib: pip install 'hotset[plot]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hotset.errors import HostError, UsageError
from hotset.formats.files import storage_error
from hotset.formats.profile import BATCHES, REUSE_WINDOWS, Profile
from hotset.planner.statistics import concentration_curve
from hotset.tools.profile_report import ProfileReport

SUFFIXES = (".svg", ".png", ".pdf")


def check(path: Path) -> None:
    """Raises UsageError or HostError if `plot` could not write this; cheap, so it comes before the work."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"cannot plot to {path}: wanted a name that ends in {', '.join(SUFFIXES)}")
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise HostError("plots need matplotlib, which is not installed: pip install 'hotset[plot]'")


def plot(profile: Profile, found: ProfileReport, path: Path) -> None:
    """Writes four plots in one picture: zeros by layer, concentration, reuse by layer, neurons active by batch size.

    Raises: what `check` raises; StorageError.
    """
    check(path)
    from matplotlib.figure import Figure  # without pyplot: no window system is asked for

    figure = Figure(figsize=(11, 8), layout="constrained")
    (zeros, curves), (reuse, batches) = figure.subplots(2, 2)
    _zeros(zeros, found)
    _concentration(curves, profile, found)
    _reuse(reuse, found)
    _batches(batches, found)
    for axes in (zeros, reuse, batches):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{profile.layers} layers of {profile.ffn} neurons, {profile.tokens} tokens")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise storage_error(path, "cannot be written", error) from None


def _zeros(axes: Any, found: ProfileReport) -> None:
    axes.bar(range(len(found.layers)), [100 * layer.zeros for layer in found.layers], color="tab:blue")
    axes.axhline(100 * found.model.zeros, color="black", linestyle="--", label=f"mean {found.model.zeros:.1%}")
    axes.set(title="Neurons at zero", xlabel="layer", ylabel="% of neurons", ylim=(0, 100))
    axes.legend()


def _concentration(axes: Any, profile: Profile, found: ProfileReport) -> None:
    share = 100 * np.arange(profile.ffn + 1) / profile.ffn
    for counts in profile.counts[0]:
        axes.plot(share, 100 * concentration_curve(counts), color="tab:blue", alpha=0.3, linewidth=0.8)
    whole = concentration_curve(profile.counts[0])
    label = f"all layers together: 80 % from {found.model_wide_concentration:.1%}"
    at = np.linspace(0, whole.size - 1, min(whole.size, 1001)).astype(int)  # an SVG of half a million points is no use
    axes.plot(100 * at / (whole.size - 1), 100 * whole[at], color="black", label=label)
    axes.axhline(80, color="grey", linestyle=":")
    axes.set(title="Concentration, each layer", xlabel="% of neurons, most active first", ylabel="% of activations")
    axes.legend(loc="lower right")


def _reuse(axes: Any, found: ProfileReport) -> None:
    for window in REUSE_WINDOWS:
        label = f"{window} token{'s' * (window > 1)} before"
        axes.plot([100 * layer.reuse[window] for layer in found.layers], marker=".", label=label)
    axes.set(title="Active neurons that were active before", xlabel="layer", ylabel="% of active", ylim=(0, 100))
    axes.legend()


def _batches(axes: Any, found: ProfileReport) -> None:
    for label, shares in (("consecutive", found.model.active), ("independent", found.model.independent)):
        axes.plot(BATCHES, [100 * shares[b] for b in BATCHES], marker=".", label=f"{label} tokens")
    axes.set(title="Neurons that a step makes active", xlabel="tokens in the step", ylabel="% of neurons")
    axes.set_ylim(bottom=0)
    axes.legend()
