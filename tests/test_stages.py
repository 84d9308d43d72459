"""Stages of a run: done once, refused when they were made with other settings, set aside and never deleted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from distillase.ase_calcs.errors import InputError
from distillase.ase_calcs.progress import SilentProgress
from distillase.launch.progress import PlainProgress, clock, make_progress
from distillase.launch.stages import Stage, check_inputs, read_record, run_stage, set_aside, write_text
from distillase.launch.summary import count_reasons, tree

FIRST = Stage("first", "First", ("a.txt",), ("cache",))
SECOND = Stage("second", "Second", ("b.txt",))


class Work:
    """Writes an output and counts how often it was called."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, 0

    def __call__(self) -> dict:
        self.calls += 1
        write_text(self.path, f"made {self.calls}")
        return {"calls": self.calls, "sizes": (1, 2)}


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    work = Work(tmp_path / "a.txt")
    results = [run_stage(tmp_path, FIRST, {"x": (1, 2)}, work, SilentProgress()) for _ in range(3)]
    assert work.calls == 1
    assert results == [{"calls": 1, "sizes": [1, 2]}] * 3


def test_a_stage_whose_output_is_gone_is_done_again(tmp_path: Path) -> None:
    work = Work(tmp_path / "a.txt")
    run_stage(tmp_path, FIRST, {}, work, SilentProgress())
    (tmp_path / "a.txt").unlink()
    run_stage(tmp_path, FIRST, {}, work, SilentProgress())
    assert work.calls == 2


def test_an_interrupted_stage_is_gone_on_with(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, FIRST, {"x": 1}, interrupted, SilentProgress())
    assert read_record(tmp_path, FIRST)["finished"] is False
    work = Work(tmp_path / "a.txt")
    run_stage(tmp_path, FIRST, {"x": 1}, work, SilentProgress())
    assert work.calls == 1


def test_other_settings_are_refused_with_what_differs_and_the_way_out(tmp_path: Path) -> None:
    work = Work(tmp_path / "a.txt")
    run_stage(tmp_path, FIRST, {"training.lr": 1e-3, "seed": 0}, work, SilentProgress())
    with pytest.raises(InputError) as error:
        run_stage(tmp_path, FIRST, {"training.lr": 5e-4, "seed": 0}, work, SilentProgress())
    message = str(error.value)
    assert "training.lr: 0.001 there, 0.0005 now" in message
    assert "seed" not in message
    assert "--restart-from first" in message
    assert work.calls == 1
    assert (tmp_path / "a.txt").read_text() == "made 1"


def test_a_first_try_that_failed_may_be_mended(tmp_path: Path) -> None:
    def failing() -> None:
        raise InputError("no such molecule")

    with pytest.raises(InputError, match="molecule"):
        run_stage(tmp_path, FIRST, {"x": 1}, failing, SilentProgress())
    check_inputs(tmp_path, FIRST, {"x": 2})
    write_text(tmp_path / "cache" / "file", "half done")
    with pytest.raises(InputError, match="x: 1 there, 2 now"):
        check_inputs(tmp_path, FIRST, {"x": 2})


def test_the_early_check_leaves_out_files_that_are_not_made_yet(tmp_path: Path) -> None:
    run_stage(tmp_path, FIRST, {"seed": 0, "source.dataset": "abc"}, Work(tmp_path / "a.txt"), SilentProgress())
    check_inputs(tmp_path, FIRST, {"seed": 0}, partial=True)
    with pytest.raises(InputError, match=r"source\.dataset: abc there, xyz now"):
        check_inputs(tmp_path, FIRST, {"seed": 0, "source.dataset": "xyz"})


def test_nothing_is_deleted_when_a_stage_begins_again(tmp_path: Path) -> None:
    run_stage(tmp_path, FIRST, {}, Work(tmp_path / "a.txt"), SilentProgress())
    write_text(tmp_path / "cache" / "file", "dear")
    for number in (1, 2):
        run_stage(tmp_path, SECOND, {}, Work(tmp_path / "b.txt"), SilentProgress())
        assert set_aside(tmp_path, [SECOND]) == tmp_path / f"old-{number}"
        assert (tmp_path / f"old-{number}" / "b.txt").read_text() == "made 1"
        assert read_record(tmp_path, SECOND) is None
    assert set_aside(tmp_path, [SECOND]) is None
    set_aside(tmp_path, [FIRST], keep=FIRST.leftovers)
    assert (tmp_path / "cache" / "file").read_text() == "dear"


def test_a_damaged_record_means_the_stage_is_done_again(tmp_path: Path) -> None:
    work = Work(tmp_path / "a.txt")
    run_stage(tmp_path, FIRST, {}, work, SilentProgress())
    (tmp_path / ".stages" / "first.json").write_text('{"inputs": ')
    run_stage(tmp_path, FIRST, {}, work, SilentProgress())
    assert work.calls == 2


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", json.dumps([1]))
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x.json", "half \udc80")
    assert json.loads((tmp_path / "x.json").read_text()) == [1]


def test_the_tree_names_what_is_there_and_says_what_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "report.html", "x" * 1500)
    write_text(tmp_path / "labels" / "part", "y")
    lines = tree(tmp_path).splitlines()
    assert lines[0] == f"{tmp_path}/"
    assert lines[1].startswith("├── report.html")
    assert "1.5 kB" in lines[1]
    assert lines[2].startswith("└── labels/")
    assert len(lines) == 3


def test_reasons_are_counted_the_commonest_first() -> None:
    assert list(count_reasons(["b", "a", "b"]).items()) == [("b", 2), ("a", 1)]


def test_without_a_terminal_there_is_one_plain_line_at_most_every_few_seconds() -> None:
    stream = io.StringIO()
    with PlainProgress(stream, every=3600.0).task("Labelling", 1000) as task:
        for _ in range(1000):
            task.advance()
    assert stream.getvalue() == "Labelling: 1000 of 1000 (100 %), done after 0:00\n"
    stream = io.StringIO()
    with PlainProgress(stream, every=0.0).task("Training", 4) as task:
        task.advance(2, note="loss 0.1")
    first = stream.getvalue().splitlines()[0]
    assert first.startswith("Training: 2 of 4 (50 %)")
    assert "ETA" in first
    assert first.endswith("loss 0.1")


def test_bars_are_for_terminals_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    stream = Terminal()
    bars = make_progress(stream)
    with bars.task("Outer [x]", 2) as outer, bars.task("Inner", None) as inner:
        outer.advance(1, note="[a] b")
        inner.advance(3)
    bars.say("C[C@H](O)N [bold]")
    assert "C[C@H](O)N [bold]" in stream.getvalue()
    assert "Outer [x]" in stream.getvalue()


def test_clock() -> None:
    assert (clock(5), clock(65), clock(3725)) == ("0:05", "1:05", "1:02:05")
