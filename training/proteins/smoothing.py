"""Mean forces from noisy ones: a smooth energy of one protein, fitted in closed form.

Forces on beads are nearly all thermal noise, and a network that is trained on them by gradient descent has to average
it away while it learns. What is linear in its parameters need not: an energy that is a sum of many fixed functions of
the beads (distances of pairs, angles, dihedrals, bonds, and products of neighbours) has the least-squares forces after
one solution of the normal equations, with a ridge that is chosen on forces it has not seen. Its forces at the frames
stand in for those of the frames, and the network learns from a teacher without noise. The functions belong to places in
one chain, so that the teacher is good for nothing else; the network is what is transferable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...ase_calcs.errors import DataError
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.prior import Prior
from ...ase_calcs.units import KCAL_PER_MOL
from ...datasets.proteins.beads import TOLERANCE, BeadFrames
from .config import BeadLossConfig
from .task import leftover, mean_force_weights

_BUMPS = 13  # of a distance
# Centres and width of bumps in products, over the range of distances.
_COARSE, _COARSE_WIDTH = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64), 0.2
_FAR = 4  # along the chain, pairs whose distance is multiplied with dihedrals at its ends
_MOST_OF_THEM = 0.99  # distances that bumps are spread over
_CHECKED = 0.15  # share of each run, its end, on which the ridge is chosen
# eV/Å, root mean square force that a single function is expected to make.
_RIDGES = tuple(x * KCAL_PER_MOL for x in (0.02, 0.04, 0.08, 0.16, 0.32, 0.64))
_STRAIGHT = 1e-4  # sine of an angle
_BYTES = 2**26  # of derivatives at once


@dataclass(frozen=True)
class SmoothForces:
    """An energy of one protein beyond its prior.

    Attributes
    ----------
    functions
        (N, 3) Å → (Q,), without a unit.
    weights
        (Q,) eV.
    explained
        Of the squared forces that the prior leaves, on the end of each run, before these were learned from too.
    ridge
        eV/Å, the expected force of a single function that did best there.
    """

    functions: SmoothFunctions
    weights: np.ndarray
    explained: float
    ridge: float

    def forces(self, positions: np.ndarray) -> np.ndarray:
        """(T, N, 3) eV/Å at (T, N, 3) Å."""
        size = _chunk(len(self.weights), positions.shape[1])
        found = [
            np.einsum("q,tqc->tc", self.weights, derivatives(self.functions, positions[first : first + size]))
            for first in range(0, len(positions), size)
        ]
        return -np.concatenate([np.zeros((0, 3 * positions.shape[1])), *found]).reshape(positions.shape)


def smooth_functions(chains: Chains, positions: np.ndarray, most: int) -> SmoothFunctions | None:
    """Functions of the beads of some chains, as many kinds of them as there is room for.

    Parameters
    ----------
    chains
        Of N beads.
    positions
        (T, N, 3) Å, over whose distances bumps are spread.
    most
        How many functions there may be. Those of angles and dihedrals come first, then distances of pairs, products of
        distances and dihedrals, products of two distances; a kind that does not fit is left out.

    Returns
    -------
    None where not even the first kind fits, or there is nothing.
    """
    made = SmoothFunctions(chains, positions)
    one = torch.as_tensor(positions[0], dtype=torch.float64)
    for kind in ("local", "pairs", "pairs and dihedrals", "pairs and pairs"):
        made.kinds.append(kind)
        if len(made(one)) > most:
            made.kinds.pop()
            if not made.kinds:
                return None
    return made if len(made(one)) else None


class SmoothFunctions:
    """Functions of the beads of one set of chains, (N, 3) Å → (Q,), without a unit."""

    def __init__(self, chains: Chains, positions: np.ndarray) -> None:
        self.kinds: list[str] = []
        bond = {tuple(b): k for k, b in enumerate(chains.bonds.tolist())}
        angle = {tuple(a): k for k, a in enumerate(chains.angles.tolist())}
        dihedral = {tuple(d): k for k, d in enumerate(chains.dihedrals.tolist())}
        self.bonds = _index(chains.bonds, 2)
        self.angles, self.dihedrals = _index(chains.angles, 3), _index(chains.dihedrals, 4)
        self.angle_bonds = _index([[bond[a, b], bond[b, c]] for a, b, c in angle], 2)
        self.dihedral_bonds = _index([[bond[a, b], bond[b, c], bond[c, d]] for a, b, c, d in dihedral], 3)
        self.dihedral_angles = _index([[angle[a, b, c], angle[b, c, d]] for a, b, c, d in dihedral], 2)
        following = {d[:3]: k for d, k in dihedral.items()}
        after = [following.get(d[1:]) for d in dihedral]
        self.two = _index([[k, n] for k, n in enumerate(after) if n is not None], 2)
        self.three = _index([[k, n, after[n]] for k, n in self.two.T.tolist() if after[n] is not None], 3)
        i, j = np.triu_indices(len(chains), 2)
        self.pairs = _index(np.stack([i, j], axis=1), 2)
        far = [(k, (int(a), int(b))) for k, (a, b) in enumerate(zip(i, j, strict=True)) if b - a >= _FAR]
        self.ends = _index([[k, n] for k, pair in far for d, n in dihedral.items() if set(pair) & set(d)], 2)
        apart = {(int(a), int(b)): k for k, (a, b) in enumerate(zip(i, j, strict=True)) if b - a >= _FAR - 1}
        self.beside = _index(
            [
                [k, apart[a + p, b + q]]
                for (a, b), k in apart.items()
                for p in (-1, 0, 1)
                for q in (-1, 0, 1)
                if apart.get((a + p, b + q), -1) > k
            ],
            2,
        )
        some = torch.as_tensor(positions[:: max(1, len(positions) // 500)], dtype=torch.float64)
        lengths = (some[:, self.bonds[1]] - some[:, self.bonds[0]]).norm(dim=-1)
        self.length, self.spread = lengths.mean(0), lengths.std(0, correction=0).clamp(min=1e-3)
        if self.pairs.shape[1]:
            distances = (some[:, self.pairs[1]] - some[:, self.pairs[0]]).norm(dim=-1)
            self.least = float(distances.min())
            self.range = max(float(np.quantile(distances.numpy(), _MOST_OF_THEM)) - self.least, 1e-3)

    def __call__(self, x: Tensor) -> Tensor:
        """(Q,) at (N, 3) Å."""
        parts = self._parts(x)
        return torch.cat([part.reshape(-1) for part in parts]) if parts else x.new_zeros(0)

    def families(self, x: Tensor) -> np.ndarray:
        """(Q,) which functions are of the same form, at other places of the chain or of other distances."""
        return np.repeat(np.arange(len(parts := self._parts(x))), [part.numel() for part in parts])

    def _parts(self, x: Tensor) -> list[Tensor]:
        vector = x[self.bonds[1]] - x[self.bonds[0]]
        length = vector.norm(dim=-1)
        unit = vector / length[:, None]
        stretch = (length - self.length) / self.spread
        first, second = self.angle_bonds
        cosine = -(unit[first] * unit[second]).sum(-1)
        bends = torch.stack([cosine**n for n in range(1, 5)], dim=1)
        waves = self._waves(vector, unit)
        found: list[Tensor] = []
        if "local" in self.kinds:
            left, right = (bends[k, :3] for k in self.dihedral_angles)
            one, two = self.two
            a, b, c = (waves[k, :2] for k in self.three)
            found += [
                stretch, stretch**2, bends, waves,
                stretch[first, None] * bends, stretch[second, None] * bends,
                *(stretch[k, None] * waves[:, :4] for k in self.dihedral_bonds),
                _outer(left, right), _outer(left, waves[:, :4]), _outer(right, waves[:, :4]),
                _outer(_outer(left[:, :2], right[:, :2]), waves[:, :4]),
                _outer(waves[one, :4], waves[two, :4]), _outer(_outer(a, b), c),
            ]  # fmt: skip
        if self.pairs.shape[1]:
            distance = (x[self.pairs[1]] - x[self.pairs[0]]).norm(dim=-1)
            place = ((distance - self.least) / self.range)[:, None]
            if "pairs" in self.kinds:
                centres = torch.linspace(0, 1, _BUMPS, dtype=x.dtype)
                found.append(torch.exp(-0.5 * ((place - centres) * (_BUMPS - 1) / 1.2) ** 2))
            coarse = torch.exp(-0.5 * ((place - _COARSE) / _COARSE_WIDTH) ** 2)
            if "pairs and dihedrals" in self.kinds:
                pair, turn = self.ends
                found.append(_outer(coarse[pair], waves[turn, :2]))
            if "pairs and pairs" in self.kinds:
                pair, other = self.beside
                found.append(_outer(coarse[pair], coarse[other]))
        return found

    def _waves(self, vector: Tensor, unit: Tensor) -> Tensor:
        """(D, 6) cosines and sines of a dihedral and its multiples: cos φ, sin φ, cos 2φ, …"""
        a, b, c = self.dihedral_bonds
        left, right = torch.linalg.cross(vector[a], vector[b]), torch.linalg.cross(vector[b], vector[c])
        left, right = (n / n.norm(dim=-1, keepdim=True) for n in (left, right))
        cos, sin = (left * right).sum(-1), (torch.linalg.cross(left, right) * unit[b]).sum(-1)
        cos2, sin2 = cos * cos - sin * sin, 2 * sin * cos
        return torch.stack([cos, sin, cos2, sin2, cos2 * cos - sin2 * sin, sin2 * cos + cos2 * sin], dim=1)


def _index(rows: object, width: int) -> Tensor:
    """(width, n) int64, of n rows."""
    return torch.as_tensor(np.array(rows, dtype=np.int64).reshape(-1, width).T.copy())


def _outer(one: Tensor, other: Tensor) -> Tensor:
    """(n, a·b) products of (n, a) and (n, b)."""
    return (one[:, :, None] * other[:, None, :]).flatten(1)


def derivatives(functions: SmoothFunctions, positions: np.ndarray) -> np.ndarray:
    """(T, Q, 3N) 1/Å, float32: of the functions at (T, N, 3)."""
    x = torch.as_tensor(positions, dtype=torch.float64)
    found = torch.func.vmap(torch.func.jacfwd(functions))(x)
    return np.asarray(found.reshape(len(x), found.shape[1], -1).to(torch.float32).numpy())


def _chunk(n_functions: int, n_beads: int) -> int:
    return max(1, _BYTES // (8 * n_functions * 3 * n_beads))


def fit_smooth_forces(
    prior: Prior,
    frames: BeadFrames,
    means: Sequence[BeadFrames],
    loss: BeadLossConfig,
    *,
    progress: Progress | None = None,
) -> SmoothForces | None:
    """The smooth energy whose forces are nearest to what the prior leaves.

    Parameters
    ----------
    prior
        Whose forces are taken off.
    frames
        Of one protein at one temperature.
    means
        Mean forces of the same protein; they count as in the loss.
    loss
        Has the noise of a frame's forces, how much mean forces count, and how many functions there may be.

    Returns
    -------
    None where there is no room for any.

    Raises
    ------
    DataError
        Three beads that lie on a line.
    """
    chains = Chains.from_sequence(frames.sequence)
    functions = smooth_functions(chains, frames.positions, loss.smooth_functions)
    if functions is None:
        return None
    for part in (frames, *means):
        a, b, c = (part.positions[:, chains.angles[:, k]] for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - b), axis=-1)
        if (area < _STRAIGHT * np.linalg.norm(b - a, axis=-1) * np.linalg.norm(c - b, axis=-1)).any():
            raise DataError(
                f"In some frames of {part.name} three beads lie on a line, where dihedrals have no slope. Leave these "
                "frames out, or learn from forces as they are (`loss.smooth_functions=0`)."
            )
    checked = _ends(frames)
    parts = frames.select(~checked), frames.select(checked)
    families = functions.families(torch.as_tensor(frames.positions[0], dtype=torch.float64))
    sums: list[tuple[np.ndarray, np.ndarray, float]] = []
    progress = progress or SilentProgress()
    with progress.task(f"smooth forces of {frames.name}, frames", len(frames.positions)) as task:
        for part in parts:
            ones = np.ones(len(part.positions))
            sums.append(_normal(functions, len(families), part.positions, leftover(prior, part), ones, task.advance))
    noise2 = loss.frame_noise**2
    (gram, mixed, _), (gram_checked, mixed_checked, square_checked) = sums
    # The mean square of the force that a function makes per component, on average over all of its form: what few frames
    # have visited must not be free to say anything there.
    scale2 = np.diag(gram + gram_checked) / frames.positions.size
    scale2 = (np.bincount(families, scale2) / np.bincount(families))[families]
    scale2 = np.maximum(scale2, 1e-9 * scale2.max())
    for known in means:
        if known.errors is not None and len(known.positions):
            weights = mean_force_weights(known.errors, loss)
            more = _normal(functions, len(families), known.positions, leftover(prior, known), weights, None)
            gram, mixed = gram + more[0], mixed + more[1]
    tried = []
    for ridge in _RIDGES:
        w = np.linalg.solve(gram + np.diag(noise2 * scale2 / ridge**2), mixed)
        left = w @ gram_checked @ w - 2 * w @ mixed_checked
        tried.append((-left / max(square_checked, 1e-300), ridge))
    explained, ridge = max(tried)
    if explained <= 0:  # nothing that can be told from noise
        return SmoothForces(functions, np.zeros(len(mixed)), 0.0, ridge)
    w = np.linalg.solve(gram + gram_checked + np.diag(noise2 * scale2 / ridge**2), mixed + mixed_checked)
    return SmoothForces(functions, w, float(explained), ridge)


def _ends(frames: BeadFrames) -> np.ndarray:
    """(T,) the end of each run; of runs too short to have one, every few frames."""
    last = np.zeros(len(frames.positions), dtype=bool)
    for run in np.unique(frames.origins):
        rows = np.flatnonzero(frames.origins == run)
        last[rows[len(rows) - max(1, round(_CHECKED * len(rows))) :]] = True
    if last.mean() > 2 * _CHECKED:
        last = np.arange(len(last)) % round(1 / _CHECKED) == 0
    return last


def _normal(
    functions: SmoothFunctions,
    count: int,
    positions: np.ndarray,
    forces: np.ndarray,
    weights: np.ndarray,
    advance: Callable[[float], None] | None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """(Q, Q) and (Q,) of the normal equations, and the weighted sum of squared forces."""
    gram, mixed, square = np.zeros((count, count)), np.zeros(count), 0.0
    size = _chunk(count, positions.shape[1])
    for first in range(0, len(positions), size):
        part = slice(first, first + size)
        root = np.sqrt(weights[part]).astype(np.float32)
        made = -derivatives(functions, positions[part]) * root[:, None, None]
        made = np.ascontiguousarray(made.transpose(1, 0, 2)).reshape(count, -1)
        wanted = (forces[part] * root[:, None, None]).reshape(-1)
        gram += made @ made.T
        mixed += made @ wanted.astype(np.float32)
        square += float(wanted @ wanted)
        if advance is not None:
            advance(len(root))
    return gram, mixed, square


def smoothed(
    prior: Prior,
    proteins: Sequence[BeadFrames],
    means: Sequence[BeadFrames],
    loss: BeadLossConfig,
    *,
    temperature: float,
    progress: Progress | None = None,
) -> tuple[list[BeadFrames], dict[str, float]]:
    """Proteins whose forces are those of the prior and a smooth energy, fitted for each of them and each temperature.

    Mean forces are taken up by the fit, and become frames like the others; where none is made they stay what they are.
    Frames whose temperature is not known are taken to be of `temperature`, K.

    Returns
    -------
    Frames to learn from, and for each fit the share of squared forces it explains of frames it has not seen, by the
    name of the protein and its temperature.
    """
    progress = progress or SilentProgress()
    found: list[BeadFrames] = []
    shares: dict[str, float] = {}
    for protein in proteins:
        mine = [known for known in means if known.name == protein.name]
        parts, missing = [], False
        rungs = np.round(np.where(np.isnan(protein.temperatures), temperature, protein.temperatures), 1)
        for kelvin in np.unique(rungs):
            frames = protein.select(rungs == kelvin)
            here = [m for m in mine if abs(kelvin - temperature) < TOLERANCE]
            fit = fit_smooth_forces(prior, frames, here, loss, progress=progress)
            if fit is None:
                missing = True
                break
            for part in (frames, *here):
                forces = part.forces - leftover(prior, part) + fit.forces(part.positions)
                parts.append(dataclasses.replace(part, forces=forces, errors=None))
            name = f"{protein.name}, {kelvin:g} K"
            shares[name] = fit.explained
            progress.say(
                f"smooth forces of {name}: {len(fit.weights)} functions explain {100 * fit.explained:.2f} % of what "
                "the prior leaves on frames they have not seen"
                + ("" if fit.explained else ": there is nothing to tell from noise, the network learns no forces")
            )
        if missing:
            progress.say(
                f"{protein.name} needs more functions than `loss.smooth_functions` for smooth forces: its own are "
                "learned from"
            )
            found += [protein, *mine]
        else:
            found += parts
    return found, shares
