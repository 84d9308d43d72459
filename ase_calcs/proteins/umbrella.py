"""Umbrella sampling of beads: one window per replica, all windows in one batch, and their free-energy profile by MBAR.

Window k adds ½ κ_k (ξ(x) − ξ_k)² to the energy, with a collective variable ξ that torch can differentiate. What the
windows sample is put together by the multistate Bennett acceptance ratio (Shirts and Chodera, 10.1063/1.2978177).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, InputError, check_positive, require
from ..units import KB
from .chains import Chains
from .geometry import CONTACT, CONTACT_APART, CONTACT_SHARPNESS, CONTACT_STRETCH
from .model import BeadOutput, CoarseGrainedModel, Part
from .recording import FrameRecorder
from .simulate import ReplicaLangevin, SimulationConfig, SimulationResult

Variable = Callable[[Tensor], Tensor]  # (R, N, 3) Å → (R,)
_LEAST_OVERLAP = 1e-3
_FEWEST = 10
_WALL = 1e4  # kT; infinity would make NaN


def end_to_end(positions: Tensor) -> Tensor:
    """(R,) Å, the distance between the first bead and the last."""
    return (positions[:, -1] - positions[:, 0]).norm(dim=-1)


class NativeContacts:
    """Q, the share of the contacts of a structure that are there, smoothly counted, between 0 and 1.

    Parameters
    ----------
    native
        (N, 3) Å. Beads three or more residues apart and closer than 8 Å are in contact; 10.1073/pnas.1311599110.
    """

    def __init__(self, native: np.ndarray) -> None:
        native = np.asarray(native, dtype=float)
        i, j = np.triu_indices(len(native), CONTACT_APART)
        there = np.linalg.norm(native[i] - native[j], axis=-1)
        near = there < CONTACT
        if not near.any():
            raise InputError(
                f"The native structure has no two beads three or more residues apart and closer than {CONTACT:g} Å: "
                "there are no contacts to count. Give a folded structure."
            )
        self.pairs = torch.as_tensor(np.stack([i[near], j[near]]))
        self.lengths = torch.as_tensor(there[near])

    def __call__(self, positions: Tensor) -> Tensor:
        """(R,) of positions (R, N, 3)."""
        i, j = self.pairs.to(positions.device)
        distance = (positions[:, i] - positions[:, j]).norm(dim=-1)
        stretched = distance - CONTACT_STRETCH * self.lengths.to(positions.device)
        return torch.sigmoid(-CONTACT_SHARPNESS * stretched).mean(-1)


class UmbrellaSampling(ReplicaLangevin):
    """Langevin dynamics of windows, each held near a value of its own of a collective variable.

    >>> windows = np.linspace(5, 30, 26)
    >>> start = np.repeat(atoms.positions[None], len(windows), 0)
    >>> umbrella = UmbrellaSampling(model, Chains.from_atoms(atoms), start, end_to_end, windows, 0.05)
    >>> profile = umbrella.run_windows().profile()

    Parameters
    ----------
    model, chains, config, seed, part
        As `ReplicaLangevin` takes them.
    positions
        (W, N, 3) Å, one start for every window. A start far from its window is pulled there, which takes a while:
        leave out more of the beginning in `UmbrellaResult.profile`.
    variable
        ξ: a function of positions (R, N, 3) → (R,) that torch can differentiate, each value of its own configuration
        alone: `end_to_end`, `NativeContacts`, or any other.
    centres
        (W,) ξ_k, in the unit of the variable; the same one may come several times.
    stiffness
        κ, eV per unit of the variable squared; a number, or one for each window. Neighbours overlap where
        the distance between them is about √(kT/κ) (0.025 eV at 300 K).
    """

    def __init__(
        self,
        model: CoarseGrainedModel,
        chains: Chains,
        positions: np.ndarray,
        variable: Variable,
        centres: Sequence[float] | np.ndarray,
        stiffness: float | Sequence[float] | np.ndarray,
        config: SimulationConfig | None = None,
        *,
        seed: int = 0,
        part: Part = "hybrid",
    ) -> None:
        middle = np.array(centres, dtype=float)
        if middle.ndim != 1 or len(middle) != len(positions):
            raise InputError(
                f"There are {middle.size} centres and {len(positions)} starting configurations; every window needs one."
            )
        springs = np.array(stiffness, dtype=float)
        if springs.shape not in ((), middle.shape) or not (np.isfinite(springs) & (springs > 0)).all():
            raise InputError(f"`stiffness` is {stiffness!r}; needed is a number above 0, or one for every window.")
        self.variable = variable
        self.centres = torch.as_tensor(middle, device=model.device)
        self.stiffness = torch.as_tensor(springs, device=model.device).expand(len(middle))
        super().__init__(model, chains, positions, config, seed=seed, part=part)

    def evaluate(self, positions: Tensor) -> BeadOutput:
        """The force field and the springs, which are the component ``umbrella``."""
        free = super().evaluate(positions)
        with torch.enable_grad():
            x = positions.detach().requires_grad_()
            value = self.variable(x)
            if value.shape != (len(x),) or not value.requires_grad:
                raise InputError(
                    f"The collective variable gave a tensor of shape {tuple(value.shape)} for {len(x)} configurations; "
                    f"needed is ({len(x)},), computed from the positions by functions that torch can differentiate."
                )
            spring = 0.5 * self.stiffness * (value.double() - self.centres) ** 2
            (gradient,) = torch.autograd.grad(spring.sum(), x)
        self.value = value.detach()
        return BeadOutput({**free.energies, "umbrella": spring.detach()}, free.forces - gradient)

    def observables(self) -> dict[str, np.ndarray]:
        """The collective variable."""
        return {"variable": self.value.double().cpu().numpy()}

    def run_windows(
        self, advance: Callable[[float], None] | None = None, *, recorder: FrameRecorder | None = None
    ) -> UmbrellaResult:
        """The whole simulation, as `run`, with what its analysis needs."""
        result = self.run(advance, recorder=recorder)
        if "variable" not in result.observables:
            reasons = "; ".join(f"window {t.replica}: {t.reason}" for t in result.troubles[:3])
            raise DataError(
                f"No window lived until its first frame ({reasons}). Start windows nearer to their centres, or take "
                "softer springs."
            )
        return UmbrellaResult(
            result, result.observables["variable"], self.centres.cpu().numpy(), self.stiffness.cpu().numpy(),
            self.config.temperature_K,
        )  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """A free-energy profile.

    Attributes
    ----------
    values
        (B,) of the collective variable, the middles of the bins.
    free_energy
        (B,) eV above the lowest bin; NaN where nothing was sampled. −kT ln p(ξ), Jacobians and all.
    error
        (B,) eV, one standard deviation of the difference from the lowest bin.
    overlap
        Of the windows: 1 is that of windows which are all the same, 0 is that of windows which fall into two sets with
        nothing in common.
    samples
        (W,) of each window that are independent of each other.
    """

    values: np.ndarray
    free_energy: np.ndarray
    error: np.ndarray
    overlap: float
    samples: np.ndarray


@dataclass(frozen=True)
class UmbrellaResult:
    """What became of W windows.

    Attributes
    ----------
    simulation
        Of the windows; its energies have the springs in them.
    variable
        (T, W) of every frame.
    centres, stiffness
        (W,).
    temperature_K
        K.
    """

    simulation: SimulationResult
    variable: np.ndarray
    centres: np.ndarray
    stiffness: np.ndarray
    temperature_K: float

    def profile(self, *, bins: int | np.ndarray = 50, discard: float = 0.2) -> Profile:
        """The free energy along the variable, by MBAR (`pymbar`).

        Parameters
        ----------
        bins
            How many, over what was sampled; or their edges.
        discard
            Share of every window that is left out at its beginning.

        Raises
        ------
        DataError
            A window ended early, is too short, or the windows do not overlap.
        """
        return free_energy_profile(self._samples(discard), self.centres, self.stiffness, self.temperature_K, bins=bins)

    def _samples(self, discard: float) -> list[np.ndarray]:
        if not 0 <= discard < 1:
            raise InputError(f"`discard` is {discard!r}; it is a share, from 0 to below 1.")
        if self.simulation.troubles:
            trouble = self.simulation.troubles[0]
            raise DataError(
                f"{len(self.simulation.troubles)} windows ended early, the one at {self.centres[trouble.replica]:g} "
                f"after {trouble.picoseconds:.1f} ps: {trouble.reason}. Start nearer to the window, with a weaker "
                "spring or a shorter time step."
            )
        return list(self.variable[int(discard * len(self.variable)) :].T)


def free_energy_profile(
    samples: Sequence[np.ndarray],
    centres: np.ndarray,
    stiffness: np.ndarray,
    temperature_K: float,
    *,
    bins: int | np.ndarray = 50,
) -> Profile:
    """The profile of samples from windows with harmonic springs, whoever made them (ASE, PLUMED, …).

    Parameters
    ----------
    samples
        Of each window, (T,) values of the variable in the order of time. They are thinned to independent ones.
    centres, stiffness
        (W,), the springs being ½ κ (ξ − ξ_k)² in eV.
    temperature_K
        K.
    bins
        How many, over what was sampled; or their edges.

    Raises
    ------
    DataError
        Fewer than ten samples in a window, values that are not finite, or windows that do not overlap.
    """
    pymbar = _pymbar()
    check_positive("temperature_K", temperature_K)
    independent = [_independent(values, centre) for values, centre in zip(samples, centres, strict=True)]
    counts = np.array([len(values) for values in independent])
    values = np.concatenate(independent)
    edges = np.linspace(values.min(), values.max() + 1e-9, bins + 1) if isinstance(bins, int) else np.asarray(bins)
    inside = (values >= edges[0]) & (values < edges[-1])
    if not inside.any():
        raise DataError(f"No sample lies between {edges[0]:g} and {edges[-1]:g}: these bins are elsewhere.")
    kt = KB * temperature_K
    reduced = 0.5 * np.asarray(stiffness)[:, None] * (values - np.asarray(centres)[:, None]) ** 2 / kt  # (W, samples)
    mbar = pymbar.MBAR(reduced, counts)
    # One eigenvalue is 1; a second one as large means that the windows fall into two sets.
    matrix = mbar.compute_overlap()["matrix"]
    overlap = 1.0 - float(np.sort(np.linalg.eigvals(matrix).real)[-2]) if len(counts) > 1 else 1.0
    if overlap < _LEAST_OVERLAP:
        raise DataError(
            f"The windows do not overlap (overlap {overlap:.1e}): the free energy between them is unknown. Put windows "
            "in between, make the springs weaker, or sample for longer."
        )
    which = np.digitize(values, edges) - 1
    middles = 0.5 * (edges[1:] + edges[:-1])
    sampled = np.unique(which[inside])
    # One state for every bin that was seen: without springs, and with a wall around the bin.
    walls = np.where(which == sampled[:, None], 0.0, _WALL)
    free, error = _perturbed(mbar, walls, np.diff(edges)[sampled])
    profile, errors = np.full((2, len(middles)), np.nan)
    profile[sampled], errors[sampled] = kt * free, kt * error
    return Profile(middles, profile, errors, overlap, counts)


def _pymbar():  # type: ignore[no-untyped-def]
    """The package, without what it says of JAX when it is imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return require("pymbar", extra="umbrella", purpose="put umbrella windows together")
    finally:
        logging.disable(before)


def _independent(values: np.ndarray, centre: float) -> np.ndarray:
    """Every g-th value, g being the statistical inefficiency of the series."""
    from pymbar import timeseries

    values = np.asarray(values, dtype=float)
    if len(values) < _FEWEST or not np.isfinite(values).all():
        raise DataError(
            f"The window at {centre:g} has {np.isfinite(values).sum()} samples that are numbers; needed are {_FEWEST} "
            "or more, and no others. Sample for longer, or keep frames more often."
        )
    if np.ptp(values) == 0:
        raise DataError(
            f"The variable has one value only in the window at {centre:g}: it does not depend on positions."
        )
    g = timeseries.statistical_inefficiency(values)
    return values[timeseries.subsample_correlated_data(values, g=g)]


def _perturbed(mbar, walls: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    """−ln of the density of every bin (B,) above the lowest, and the standard deviation of that difference."""
    found = mbar.compute_perturbed_free_energies(walls, warning_cutoff=0.0)
    density = found["Delta_f"][0] + np.log(widths)
    lowest = int(np.argmin(density))
    return density - density[lowest], found["dDelta_f"][lowest]
