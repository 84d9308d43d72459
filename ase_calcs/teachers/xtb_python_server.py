"""The library behind xtb-python in a process of its own; `xtb_python` starts this file and asks it over two pipes.

The library cannot be trusted with the process of a user (xtb 6.5.1, in the wheels of 22.1): an element beyond radon
ends it with ``error stop``, 600 atoms overflow the 8 MB stack of an ordinary thread, GFN-FF prints, writes
``gfnff_topo`` and ``gfnff_adjacency`` into the working directory, reads ``.CHRG`` and ``charges`` there if it finds
them, and takes parameters from ``XTBPATH``. It also brings an OpenMP and an OpenBLAS of its own beside those of tblite
and torch. Here it has an empty folder, a large stack and one thread, and what it ends is this process.

Started by its path with ``python -P``: the package would import ASE, and the folder of this file holds an ``xtb.py``.
"""

from __future__ import annotations

import os
import pickle
import queue
import shutil
import signal
import sys
import threading
from typing import Any, BinaryIO

import numpy as np

_STACK = 1 << 30  # bytes; address space only, pages are used as they are touched


def main() -> None:
    """Answer requests until the other end is closed, then leave at once, also out of the middle of a calculation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever started us decides
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # GFN-FF prints whatever its verbosity is
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.stack_size(_STACK)
    threading.Thread(target=_serve, args=(waiting, replies), daemon=True).start()
    while True:
        try:
            waiting.put(pickle.load(requests))
        except EOFError:
            shutil.rmtree(os.getcwd(), ignore_errors=True)
            os._exit(0)


def _serve(waiting: queue.SimpleQueue[dict[str, Any]], replies: BinaryIO) -> None:
    while True:
        request = waiting.get()
        try:
            reply: tuple[str, Any] = ("done", single_point(**request))
        except ImportError as error:
            reply = ("missing", str(error))
        except Exception as error:  # whatever it is, the other end turns it into a TeacherError
            reply = ("failed", str(error) or type(error).__name__)
        pickle.dump(reply, replies)
        replies.flush()


def single_point(
    *,
    method: str,
    numbers: np.ndarray,
    positions: np.ndarray,
    reference: np.ndarray | None,
    charge: int,
    unpaired: int,
    accuracy: float,
    electronic_temperature: float,
    max_iterations: int,
    solvent: str | None,
) -> dict[str, Any]:
    """A new calculator, and one calculation with it, in the library's units (Hartree, Bohr, e).

    Parameters
    ----------
    method
        ``"GFN2xTB"``, ``"GFN1xTB"`` or ``"GFNFF"``: a name of ``xtb.interface.Param``.
    numbers
        (N,) atomic numbers.
    positions
        (N, 3), Bohr.
    reference
        (N, 3), Bohr; where given, the geometry that the calculator is made with. GFN-FF finds its bonds in it.
    charge, unpaired
        Total charge and number of unpaired electrons.
    accuracy, electronic_temperature, max_iterations
        As xtb takes them; the temperature in K.
    solvent
        A name of ``xtb.interface.Solvent``, or None.
    """
    from xtb.interface import Calculator, Param, Solvent

    class Muted(Calculator):
        def _load(self, param: Any) -> None:
            self.set_verbosity("muted")
            super()._load(param)

    calculator = Muted(
        getattr(Param, method), numbers, positions if reference is None else reference, float(charge), unpaired
    )
    calculator.set_accuracy(accuracy)
    calculator.set_electronic_temperature(electronic_temperature)
    calculator.set_max_iterations(max_iterations)
    if solvent is not None:
        calculator.set_solvent(getattr(Solvent, solvent))
    if reference is not None:
        calculator.update(positions)
    result = calculator.singlepoint()
    found = {"energy": result.get_energy(), "gradient": result.get_gradient(), "dipole": result.get_dipole()}
    if method != "GFNFF":
        found["charges"] = result.get_charges()
    return found


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
    main()
