"""Peak memory on a CPU: the exact bytes of tensors in addition to those allocated before."""

from __future__ import annotations

import torch

from benchmarks.memory import peak_bytes

CPU = torch.device("cpu")


def test_a_temporary_counts_while_it_lives() -> None:
    x = torch.ones(1 << 16)
    assert peak_bytes(lambda: x.exp().sqrt(), CPU) == 2 * x.nbytes
    assert peak_bytes(lambda: x.exp().sqrt_(), CPU) == x.nbytes


def test_temporaries_one_after_the_other_do_not_add_up() -> None:
    x = torch.ones(1 << 16)

    def run() -> None:
        for _ in range(5):
            x.exp()

    assert peak_bytes(run, CPU) == x.nbytes


def test_gradients_and_saved_tensors_count() -> None:
    x = torch.ones(1 << 16, requires_grad=True)

    def run() -> object:
        # exp saves its output; the gradient is a second tensor.
        y = x.exp()
        return y, torch.autograd.grad(y, x, x.detach())

    assert peak_bytes(run, CPU) == 2 * x.nbytes
