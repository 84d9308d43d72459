"""A training step as one compiled function.

`torch.compile` of a force loss as it stands fails in torch 2.13 (double backward through an AOTAutograd graph). So the
whole step, from batch to gradients of all parameters, is first traced with `make_fx` into a graph without any
autograd left in it, with symbolic sizes, and that graph is compiled. An `autograd.Function` hands the gradients to
whoever calls ``loss.backward()``, so that an engine need not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ase_calcs.compiled import ATOMS, EDGES, STRUCTURES, let_torch_link
from .metrics import SUMS


class CompiledStep(nn.Module):
    """Stands in for a task: same forward, but loss and gradients come from one compiled graph.

    Parameters
    ----------
    task
        In training mode. Its buffers are read at every call, its parameters' gradients are what `backward` fills.
    example
        Fields of a batch, for names and dtypes.

    Batches of one structure, or without edges, go through the task itself: sizes 0 and 1 broadcast differently from
    what was traced.
    """

    def __init__(self, task: nn.Module, example: dict[str, Tensor]) -> None:
        super().__init__()
        self.task = task
        self._batch_names = list(example)
        self._names = [name for name, p in task.named_parameters() if p.requires_grad]
        self._step = self._compile(example)

    def forward(self, tensors: dict[str, Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
        """See `PotentialTask.forward`."""
        if tensors["charge"].shape[0] < 2 or tensors["vectors"].shape[0] < 2:
            return self.task(tensors, counts)
        parameters = [p for p in self.task.parameters() if p.requires_grad]
        if list(tensors) != self._batch_names:
            raise ValueError(f"compiled for a batch of {self._batch_names}, got {list(tensors)}")
        return _WithGradients.apply(self._run, [*tensors.values(), counts], *parameters)

    def _run(self, parameters: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self._step(*(p.detach() for p in parameters), *self._live_buffers(), *inputs)

    def _live_buffers(self) -> list[Tensor]:
        return list(self.task.buffers())

    def _compile(self, example: dict[str, Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        from torch.fx.experimental.proxy_tensor import make_fx

        let_torch_link()
        parameters = [p.detach().clone().requires_grad_() for p in self.task.parameters() if p.requires_grad]
        buffers = [b.detach().clone() for b in self.task.buffers()]
        counts = torch.full((len(SUMS),), 2.0, dtype=torch.float64, device=parameters[0].device)
        batch = _fake_batch(example)
        inputs = (*parameters, *buffers, *batch.values(), counts)
        graph = make_fx(self._functional_step, tracing_mode="symbolic")(*inputs)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        # Only the sizes of the batch are dynamic: widths known at compile time give faster kernels. The mark is on the
        # tensor object, not on its values, and a detached tensor is another object.
        given = [t.detach() for t in inputs]
        for name, tensor in zip(batch, given[-1 - len(batch) : -1], strict=True):
            torch._dynamo.mark_dynamic(tensor, 1 if name == "edges" else 0)
        compiled = torch.compile(graph)
        with torch.no_grad():
            compiled(*given)  # compiles now, not in the first step
        return compiled

    def _functional_step(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(parameters, buffers, batch, counts) → (loss, sums, gradients…), free of side effects."""
        n_parameters = len(self._names)
        buffer_names = [name for name, _ in self.task.named_buffers()]
        parameters = inputs[:n_parameters]
        buffers = inputs[n_parameters : n_parameters + len(buffer_names)]
        state = dict(zip(self._names, parameters, strict=True)) | dict(zip(buffer_names, buffers, strict=True))
        batch = dict(zip(self._batch_names, inputs[n_parameters + len(buffer_names) : -1], strict=True))
        loss, sums = torch.func.functional_call(self.task, state, (batch, inputs[-1]))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
        return (loss.detach(), sums, *(g.detach() for g in filled))


class _WithGradients(torch.autograd.Function):
    """Gradients that were computed in forward, handed out in backward."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, sums, *gradients = run(parameters, inputs)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return (None, None, *torch._foreach_mul(ctx.gradients, grad_loss.to(ctx.gradients[0].dtype)))


def _fake_batch(example: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of the right fields and dtypes with the sizes for tracing, and values that are nowhere singular."""
    generator = torch.Generator().manual_seed(0)
    rows = {"numbers": ATOMS, "system": ATOMS, "positions": ATOMS, "forces": ATOMS, "charges": ATOMS, "vectors": EDGES}
    fake = {}
    for name, tensor in example.items():
        if name == "edges":
            value = torch.randint(ATOMS, (2, EDGES), generator=generator)
        elif name == "numbers":
            value = tensor[torch.arange(ATOMS) % len(tensor)]
        elif name == "system":
            value = torch.arange(ATOMS) % STRUCTURES
        else:
            shape = (rows.get(name, STRUCTURES), *tensor.shape[1:])
            value = torch.rand(shape, generator=generator, dtype=torch.float64) + 1.0
        fake[name] = value.to(dtype=tensor.dtype, device=tensor.device)
    return fake
