"""`distillase dataset`: look into dataset files, check, convert, merge and split them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..ase_calcs.errors import InputError
from ..ase_calcs.progress import SilentProgress
from .progress import make_progress
from .summary import ROWS_SHOWN, plain_table, render

dataset_app = typer.Typer(
    name="dataset",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Look into dataset files, check, convert, merge and split them.

A dataset file (.h5) holds geometries with or without labels, in eV, Å, fs and e. Other formats come in and go out
through `convert`: extended XYZ (.xyz, .extxyz), NPZ of one molecule (.npz) or folders of them, ASE databases (.db).
""",
)
app = dataset_app

File = Annotated[Path, typer.Argument(help="A dataset file (.h5).", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Text = Optional[str]  # noqa: UP045 (typer reads the annotation at run time)
Number = Optional[int]  # noqa: UP045

VALIDATION_FAILED = 2


def _rows(title: str, rows: list[tuple[str, str]]) -> str:
    table = plain_table({"": "left", " ": "left"}, title)
    table.show_header = False
    for row in rows:
        table.add_row(*row)
    return render(table)


def _counts(counts: dict[Any, int], limit: int = 12) -> str:
    shown = list(counts.items())[:limit]
    return ", ".join(f"{key} ({n})" for key, n in shown) + (", …" if len(counts) > limit else "")


@dataset_app.command()
def info(file: File, as_json: Json = False) -> None:
    """What is in a dataset file: counts, fields and units, elements, charges, groups, provenance.

    Example:

        distillase dataset info runs/ethanol/dataset.h5
    """
    from ..datasets.inspect import dataset_info

    found = dataset_info(file)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, default=str, ensure_ascii=False))
        return
    low, middle, high = found.atoms_per_frame
    rows = [
        ("file", f"{found.path} ({found.bytes / 1e6:.2f} MB, content {found.content_hash})"),
        ("frames", f"{found.n_frames} in {found.n_groups} group(s), {found.n_trajectories} trajectory(ies)"),
        ("atoms", f"{found.n_atoms} in all; a frame has {low} to {high}, median {middle}"),
        ("elements", f"{_counts(found.elements)}; {100 * found.hydrogen_fraction:.1f} % hydrogen"),
        ("charge", _counts(found.charges)),
        ("multiplicity", _counts(found.multiplicities)),
        ("periodic frames", str(found.periodic)),
    ]
    labels = [f"{name} in {found.units.get(name, 'eV/Å^2')} ({n} frames)" for name, n in found.labelled.items()]
    rows.append(("labels", ", ".join(labels) or "none"))
    if found.unknown_arrays:
        rows.append(("not read", ", ".join(found.unknown_arrays)))
    typer.echo(_rows("", rows))
    groups = plain_table({"largest groups": "left", "frames": "right"})
    for name, size in found.largest_groups:
        groups.add_row(name or "(no name)", str(size))
    typer.echo("\n" + render(groups))
    if found.provenance:
        said = [(key, _short(value)) for key, value in found.provenance.items()]
        typer.echo("\n" + _rows("provenance", said))


def _short(value: Any, limit: int = 90) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataset_app.command()
def validate(file: File, as_json: Json = False) -> None:
    """Check a dataset file: damage, non-finite values, forces, energies, electrons, clashes, duplicates, leaks.

    The last line is the verdict: ok, warn (look before training) or fail (do not train on it; exit code 2).

    Example:

        distillase dataset validate runs/ethanol/dataset.h5
    """
    from ..datasets.validate import validate_dataset

    found = validate_dataset(file, progress=SilentProgress() if as_json else make_progress())
    if as_json:
        typer.echo(json.dumps({"verdict": found.verdict, **asdict(found)}, indent=2, ensure_ascii=False))
    else:
        if found.statistics:
            typer.echo(_rows("statistics", [(name, f"{value:.4g}") for name, value in found.statistics.items()]))
        if found.compositions:
            columns = {"composition": "left", "frames": "right", "mean energy, eV": "right", "std, eV": "right"}
            table = plain_table(columns)  # type: ignore[arg-type]
            for name, n, mean, std in found.compositions[:ROWS_SHOWN]:
                table.add_row(name, str(n), "" if mean is None else f"{mean:.4f}", "" if std is None else f"{std:.4f}")
            if len(found.compositions) > ROWS_SHOWN:
                table.add_row(f"… and {len(found.compositions) - ROWS_SHOWN} more", "", "", "")
            typer.echo("\n" + render(table))
        typer.echo("")
        for finding in found.findings:
            typer.echo(f"{finding.verdict:4}  {finding.check}: {finding.message}")
        typer.echo(f"Verdict: {found.verdict}")
    if found.verdict == "fail":
        raise typer.Exit(VALIDATION_FAILED)


@dataset_app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="File to read (.h5 .xyz .extxyz .npz .db), or a folder of .npz.", show_default=False)
    ],
    target: Annotated[
        Path, typer.Argument(help="File to write (same suffixes), or a folder for .npz.", show_default=False)
    ],
    need: Annotated[
        str, typer.Option(help="What at least one frame must have: `forces` (and energy), `energy` or `nothing`.")
    ] = "forces",
    energy_key: Annotated[Text, typer.Option(help="Name of the energy in the file, e.g. `energy_xtb`.")] = None,
    forces_key: Annotated[Text, typer.Option(help="Name of the forces in the file, e.g. `forces_xtb`.")] = None,
    stress_key: Annotated[Text, typer.Option(help="Name of the stress in the file.")] = None,
    group_key: Annotated[Text, typer.Option(help="Entry of a frame that names its molecule.")] = None,
    origin_key: Annotated[Text, typer.Option(help="Entry of a frame that names its trajectory.")] = None,
    group: Annotated[Text, typer.Option(help="Molecule of all frames that name none.")] = None,
    charge: Annotated[Number, typer.Option(help="Total charge of frames that do not say, e.")] = None,
    multiplicity: Annotated[Number, typer.Option(help="2S+1 of frames that do not say.")] = None,
    length_unit: Annotated[Text, typer.Option(help="Å, nm or bohr; needed for foreign NPZ files.")] = None,
    energy_unit: Annotated[Text, typer.Option(help="eV, kcal/mol, kJ/mol or hartree; likewise.")] = None,
    interval: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="fs between two frames of a trajectory in NPZ files that do not say."),
    ] = None,
    teacher: Annotated[Text, typer.Option(help="Who made the labels, e.g. `PBE/def2-SVP`.")] = None,
) -> None:
    """Convert between dataset files, extended XYZ, NPZ and ASE databases, by suffix.

    Examples:

        distillase dataset convert runs/ethanol/dataset.h5 ethanol.xyz

        distillase dataset convert labels.xyz labels.h5 --energy-key energy_xtb --forces-key forces_xtb

        distillase dataset convert rmd17_ethanol.npz ethanol.h5 --length-unit Å --energy-unit kcal/mol

        distillase dataset convert runs/traj/trajectories.h5 npz/
    """
    from ..datasets.convert import convert_file
    from ..datasets.foreign import ImportOptions

    if need not in ("forces", "energy", "nothing"):
        raise InputError(f"--need takes `forces`, `energy` or `nothing`; got `{need}`.")
    options = ImportOptions(
        energy_key=energy_key,
        forces_key=forces_key,
        stress_key=stress_key,
        group_key=group_key,
        origin_key=origin_key,
        group=group,
        charge=charge,
        multiplicity=multiplicity,
        length_unit=length_unit,
        energy_unit=energy_unit,
        interval=interval,
    )
    result = convert_file(
        source,
        target,
        options=options,
        need=need,  # type: ignore[arg-type]
        teacher=teacher,
        progress=make_progress(),
    )
    counts = f"{result.n_frames} frames, {result.n_energy} with energy, {result.n_forces} with forces"
    typer.echo(f"{result.path}: {counts}.")
    for note in result.notes:
        typer.echo(f"Note: {note}.")


@dataset_app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Dataset files, at least two.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The merged file.", show_default=False)],
    teachers: Annotated[
        str, typer.Option(help="`same` refuses labels of different teachers; `any` takes the first of each geometry.")
    ] = "same",
) -> None:
    """Put several dataset files into one; a geometry that comes twice is kept once.

    Example:

        distillase dataset merge runs/a/dataset.h5 runs/b/dataset.h5 --out both.h5
    """
    from ..datasets.convert import merge_datasets

    if teachers not in ("same", "any"):
        raise InputError(f"--teachers takes `same` or `any`; got `{teachers}`.")
    result = merge_datasets(files, out, teachers=teachers, progress=make_progress())  # type: ignore[arg-type]
    typer.echo(f"{result.path}: {result.n_frames} frames; {result.n_duplicates} duplicates dropped.")
    if result.n_conflicts:
        typer.echo(f"Note: {result.n_conflicts} of the duplicates had other energies; the first was kept.")


@dataset_app.command()
def split(
    file: File,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Folder of the parts; default that of the file.", show_default=False),
    ] = None,
    by: Annotated[
        str, typer.Option(help="What stays together: `group` (a molecule), `trajectory`, or `frame` (nothing).")
    ] = "group",
    fractions: Annotated[
        str, typer.Option(help="Share of the frames for each part; they sum to 1.")
    ] = "train=0.8,validation=0.1,test=0.1",
    seed: Annotated[int, typer.Option(help="The same seed gives the same parts.")] = 0,
) -> None:
    """Write the parts of a dataset as files of their own, `NAME-train.h5` and so on.

    Example:

        distillase dataset split runs/ethanol/dataset.h5 --by trajectory --fractions train=0.9,test=0.1
    """
    from ..datasets.convert import split_dataset
    from ..datasets.store import Dataset

    shares = _fractions(fractions)
    written = split_dataset(file, out, by=by, fractions=shares, seed=seed)  # type: ignore[arg-type]
    lengths = {part: len(Dataset(path)) for part, path in written.items()}
    table = plain_table({"part": "left", "asked": "right", "got": "right", "frames": "right", "file": "left"})
    for part, path in written.items():
        got = lengths[part] / sum(lengths.values())
        table.add_row(part, f"{100 * shares[part]:.1f} %", f"{100 * got:.1f} %", str(lengths[part]), str(path))
    typer.echo(render(table))


def _fractions(text: str) -> dict[str, float]:
    """`train=0.8,test=0.2` as a dictionary."""
    shares = {}
    for item in text.split(","):
        name, sign, value = item.partition("=")
        try:
            shares[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name.strip().replace("_", "").replace("-", "").isalnum():
            raise InputError(f"--fractions takes NAME=SHARE,NAME=SHARE, as in train=0.8,test=0.2; got `{text}`.")
    return shares
