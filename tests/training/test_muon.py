"""Muon: updates are orthogonal and of AdamW's size, equal torch.optim.Muon's for matrices, and AdamW's for the rest."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gradina.training import muon
from gradina.training.checkpoint import load_state, save_state
from gradina.training.loop import State, train
from gradina.training.muon import ADAM_RMS, Muon, as_matrix, hidden_matrices, like, orthogonalised
from gradina.training.settings import Settings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 40, 60), (2, 96, 33), (2, 33, 96)])
def test_singular_values_come_near_1(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(muon, "multiplies_bf16", lambda: dtype == torch.bfloat16)
    matrices = orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert matrices.dtype == dtype
    values = torch.linalg.svdvals(matrices.float())
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_singular_vectors_stay() -> None:
    key = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(48, 48, generator=key)).Q for _ in range(2))
    matrix = u @ torch.diag(torch.linspace(0.5, 1, 48)) @ v.T
    cosine = torch.cosine_similarity(orthogonalised(matrix[None])[0].float().flatten(), (u @ v.T).flatten(), dim=0)
    assert cosine > 0.97


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matrices_equal_torchs_muon(monkeypatch: pytest.MonkeyPatch, weight_decay: float) -> None:
    monkeypatch.setattr(muon, "multiplies_bf16", lambda: True)  # as torch's does on every CPU
    key = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=key)) for shape in ((40, 64), (40, 64), (64, 40))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = Muon([{"params": ours, "orthogonal": True}], 1, lr=0.02, weight_decay=weight_decay)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=key)
            other.grad = one.grad.clone()
        optimizer.step()
        torchs.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_updated_as_a_matrix(memory_format: torch.memory_format) -> None:
    key = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, 3, 3, generator=key).contiguous(memory_format=memory_format)
    assert torch.equal(like(as_matrix(weight), weight), weight)
    conv, matrix = nn.Parameter(weight.clone()), nn.Parameter(as_matrix(weight).clone())
    conv.grad = torch.randn(weight.shape, generator=key).contiguous(memory_format=memory_format)
    matrix.grad = as_matrix(conv.grad).clone()
    Muon([{"params": [conv, matrix], "orthogonal": True}], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(as_matrix(conv.detach()), matrix.detach())
    rms = (conv.detach() - weight).square().mean().sqrt().item()
    assert rms == pytest.approx(0.1 * ADAM_RMS, rel=0.2), "that of an update of AdamW"


def test_matrices_are_orthogonalised_in_turns() -> None:
    key, gradient = torch.Generator().manual_seed(0), torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    matrices = [nn.Parameter(torch.randn(40, 64, generator=key)) for _ in range(4)]
    optimizer = Muon([{"params": matrices, "orthogonal": True}], 4, lr=0.02, weight_decay=0.0)
    updates = []
    for step in range(9):
        before = [p.detach().clone() for p in matrices]
        for p in matrices:
            p.grad = gradient if step < 4 else -5 * gradient
        optimizer.step()
        updates.append([p.detach() - b for p, b in zip(matrices, before, strict=True)])
    for one, other in zip(updates[2], updates[3], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-3)
    turned = [sum(float((u[i] * updates[0][i]).sum()) < 0 for u in updates) for i in range(4)]
    assert sorted(turned) == [2, 3, 4, 5], "each turns at its own step"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(64, 48)
        self.conv, self.linear = nn.Conv2d(48, 40, 3, padding=1), nn.Linear(40, 48)
        self.out = nn.Linear(48, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)[:, :, None, None].expand(-1, -1, 2, 2)
        x = self.linear(self.conv(x).mean(dim=(2, 3)).relu())
        out: Tensor = self.out(x)
        return out


def loss(network: nn.Module, k: int) -> Tensor:
    ids = torch.randint(64, (32,), generator=torch.Generator().manual_seed(k))
    target = torch.stack([(ids + i).sin() for i in range(4)], dim=1)
    return ((network(ids) - target) ** 2).mean(1)  # type: ignore[no-any-return]


def begun(optimizer: str | None, steps: int = 60) -> tuple[State, Settings]:
    torch.manual_seed(0)
    settings = Settings(steps=steps, batch=32, lr=0.01, warmup=0, optimizer=optimizer)  # type: ignore[arg-type]
    return State.begin(Small(), settings), settings


def test_embeddings_small_layers_and_vectors_take_adamw() -> None:
    state, settings = begun("muon")
    assert hidden_matrices(state.network) == {"conv.weight", "linear.weight"}
    other = copy.deepcopy(state.network)
    adamw = State.begin(other, settings.__class__(**{**vars(settings), "optimizer": None}))
    for one in (state, adamw):
        next(train(one, loss, settings))
    moved = dict(state.network.named_parameters())
    for name, parameter in adamw.network.named_parameters():
        same = torch.allclose(moved[name], parameter, atol=1e-6)
        assert same != (name in {"conv.weight", "linear.weight"}), name


def test_muon_learns() -> None:
    state, settings = begun("muon", 150)
    losses = [step.loss for step in train(state, loss, settings)]
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])


def test_a_state_with_muon_resumes_bit_identically(tmp_path: Path) -> None:
    (whole, settings), (stopped, _), (resumed, _) = (begun("muon", 6) for _ in range(3))
    list(train(whole, loss, settings))
    for step in train(stopped, loss, settings):
        if step.step == 3:
            break
    save_state(stopped, tmp_path / "state", "mark")
    load_state(resumed, tmp_path / "state", "mark")
    list(train(resumed, loss, settings))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
