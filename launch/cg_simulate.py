"""What `distillase cg simulate` and `distillase cg lammps` do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ase_calcs.errors import DataError
from ..ase_calcs.progress import Progress
from ..datasets.proteins.beads import TOLERANCE
from .proteins import is_file, stability_table
from .stages import write_text
from .summary import plain_table, render

if TYPE_CHECKING:
    from ase import Atoms

    from ..ase_calcs.proteins.model import Part
    from ..ase_calcs.proteins.recording import FrameRecorder
    from ..ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig, SimulationResult


def beads_to_begin_with(start: str) -> Atoms:
    """The beads of a PDB file, or of a sequence as an extended chain."""
    from ..ase_calcs.proteins.chains import coarse_grained_atoms, extended_chain, read_beads_pdb

    if is_file(start):
        return read_beads_pdb(start)
    return coarse_grained_atoms(start, extended_chain(start))


def write_for_lammps(
    model_file: Path,
    start: str,
    out: Path,
    *,
    temperature: float,
    timestep: float | None,
    friction: float,
    seed: int,
    pair_allegro: bool,
    progress: Progress,
) -> None:
    """`distillase cg lammps`."""
    from ..ase_calcs.modelfile import load_coarse_grained
    from ..ase_calcs.proteins.lammps import write_lammps

    atoms, model = beads_to_begin_with(start), load_coarse_grained(model_file)
    write_lammps(
        model, atoms, out, temperature_K=temperature or None, friction=friction, timestep=timestep, seed=seed,
        pair_allegro=pair_allegro,
    )  # fmt: skip
    progress.say(f"{len(atoms)} beads for LAMMPS. In {out}: python run.py 10000")


def simulate(
    model_file: Path,
    start: str,
    out: Path,
    config: SimulationConfig,
    *,
    replicas: int,
    seed: int,
    part: Part,
    exchange: ExchangeSettings | None = None,
    progress: Progress,
) -> None:
    """`distillase cg simulate`."""
    from ..ase_calcs.modelfile import load_coarse_grained
    from ..ase_calcs.proteins.chains import Chains
    from ..ase_calcs.proteins.exchange import ReplicaExchange, temperature_ladder
    from ..ase_calcs.proteins.recording import FrameRecorder
    from ..ase_calcs.proteins.simulate import ReplicaLangevin

    atoms = beads_to_begin_with(start)
    model = load_coarse_grained(model_file)
    chains, begin = Chains.from_atoms(atoms), np.repeat(atoms.positions[None], replicas, 0)
    if not model.knows_temperature and abs(model.temperature - config.temperature_K) > TOLERANCE:
        progress.say(
            f"Note: the forces of this model are mean forces at {model.temperature:g} K; at {config.temperature_K:g} K "
            "they are an approximation."
        )
    dynamics: ReplicaLangevin
    if exchange is None:
        ladder = np.array([config.temperature_K])
        dynamics = ReplicaLangevin(model, chains, begin, config, seed=seed, part=part)
    else:
        ladder = np.array(exchange.temperatures)
        if exchange.hottest is not None:
            ladder = temperature_ladder(
                model, chains, begin, config.temperature_K, exchange.hottest, config=config, seed=seed, part=part
            )
        progress.say("temperatures, K: " + ", ".join(f"{kelvin:.1f}" for kelvin in ladder))
        dynamics = ReplicaExchange(
            model, chains, begin, ladder.tolist(), config, every=exchange.every, seed=seed, part=part
        )
    count = len(ladder) * replicas
    progress.say(f"{len(chains)} beads, {count} replicas, a time step of {dynamics.timestep:g} fs")
    recorder = FrameRecorder(out / "frames")
    try:
        with progress.task("simulation, ps", config.picoseconds * count) as task:
            result = dynamics.run(task.advance, recorder=recorder)
    finally:
        kept = _write_trajectory(out, recorder, dynamics, ladder)
        if kept:
            progress.say(f"{kept} frames are in {out / 'trajectory.npz'}")
    progress.say(_simulation_table(Path(start).stem, result, ladder, dynamics))
    if result.troubles:
        lines = "; ".join(
            f"replica {t.replica} ({ladder[t.replica // replicas]:.0f} K) after {t.picoseconds:.1f} ps: {t.reason}"
            for t in result.troubles[:5]
        )
        raise DataError(
            f"{len(result.troubles)} of {count} replicas ended early: {lines}. Frames up to there are in {out}."
        )


@dataclasses.dataclass(frozen=True)
class ExchangeSettings:
    """Rungs of a replica exchange, K, or a ladder that is made up to `hottest`; and ps between attempts."""

    temperatures: tuple[float, ...] = ()
    hottest: float | None = None
    every: float = 0.5


def _write_trajectory(out: Path, recorder: FrameRecorder, dynamics: ReplicaLangevin, ladder: np.ndarray) -> int:
    """Make one file of the pieces; returns how many frames there are, none of them counted twice."""
    from ..ase_calcs.proteins.chains import write_pdb
    from ..ase_calcs.proteins.exchange import ReplicaExchange
    from ..ase_calcs.proteins.recording import read_frames

    if not any(recorder.folder.glob("*.npz")):
        recorder.clear()
        return 0
    arrays: dict[str, Any] = read_frames(recorder.folder)
    if isinstance(dynamics, ReplicaExchange):
        arrays = {k: v.reshape(len(v), len(ladder), -1, *v.shape[2:]) for k, v in arrays.items()}
        arrays |= {"tried": dynamics.tried, "accepted": dynamics.accepted}
    sequence = dynamics.chains.sequence
    part = out / "trajectory.part.npz"
    arrays |= {"temperatures": ladder, "sequence": sequence, "interval_ps": dynamics.frame_interval}
    np.savez_compressed(part, **arrays)
    part.replace(out / "trajectory.npz")
    recorder.clear()
    frames = arrays["positions"].reshape(len(arrays["positions"]), -1, len(dynamics.chains), 3)[:, 0]
    frames = frames[np.isfinite(frames).all((1, 2))]
    write_text(out / "replica-0.pdb", write_pdb(sequence, list(frames[:: max(1, len(frames) // 200)])))
    return len(arrays["positions"])


def _simulation_table(name: str, result: SimulationResult, ladder: np.ndarray, dynamics: ReplicaLangevin) -> str:
    """How it went, for every temperature of an exchange."""
    from ..ase_calcs.proteins.exchange import ReplicaExchange
    from ..training.proteins.stability import Stability

    if not isinstance(dynamics, ReplicaExchange):
        return stability_table([Stability(name, result, not result.troubles)])
    columns = {"rung, K": "right", "survived": "right", "K": "right", "shortest, Å": "right", "energy, eV": "right"}
    table = plain_table(columns | {"swaps with the next": "right"})
    by_rung = [a.reshape(len(ladder), -1) for a in (result.temperatures, result.shortest)]
    energy = result.energies.reshape(len(result.energies), len(ladder), -1)
    dead = np.bincount([t.replica // dynamics.copies for t in result.troubles], minlength=len(ladder))
    for k, kelvin in enumerate(ladder):
        swaps = f"{dynamics.accepted[k] / max(1, dynamics.tried[k]):.0%}" if k + 1 < len(ladder) else ""
        known = energy[:, k][np.isfinite(energy[:, k])]
        table.add_row(
            f"{kelvin:.1f}", f"{1 - dead[k] / dynamics.copies:.0%}", f"{by_rung[0][k].mean():.1f}",
            f"{by_rung[1][k].min():.2f}", f"{known.mean():.3f}" if len(known) else "", swaps,
        )  # fmt: skip
    return render(table)
