"""The delta form against the full unembedding in fp64, and the shares that add up."""

from __future__ import annotations

import pytest
import torch

from lmm_forget.probes.decoder_blocks import Activations
from lmm_forget.probes.residual_to_logit import (
    BlockContributions,
    GramMatrices,
    OutputHead,
    ResidualToLogitProbe,
)

V, D, L, N = 700, 24, 3, 11


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(base: torch.Tensor, relative: float, seed: int) -> torch.Tensor:
    step = noise(*base.shape, seed=seed)
    return base + relative * base.norm() / step.norm() * step


def direct(w_t: torch.Tensor, h_t: torch.Tensor, w_b: torch.Tensor, h_b: torch.Tensor) -> torch.Tensor:
    return (h_t.double() @ w_t.double().T - h_b.double() @ w_b.double().T).norm(dim=-1)


@pytest.mark.parametrize("relative", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("moves", ["states", "head", "both"])
def test_norms_are_those_of_the_whole_vocabulary(relative: float, moves: str) -> None:
    w_b, h_b = noise(V, D, seed=0), noise(N, D, seed=1)
    w_t = w_b if moves == "states" else moved(w_b, relative, 2)
    h_t = h_b if moves == "head" else moved(h_b, relative, 3)
    found = GramMatrices.from_weights(w_t, w_b).compute_change_norm(h_t, h_b)
    torch.testing.assert_close(found, direct(w_t, h_t, w_b, h_b), rtol=1e-4, atol=0)
    centred = GramMatrices.from_weights(w_t, w_b, is_centred=True).compute_change_norm(h_t, h_b)
    middle = [w.double() - w.double().mean(dim=0) for w in (w_t, w_b)]
    torch.testing.assert_close(centred, direct(middle[0], h_t, middle[1], h_b), rtol=1e-4, atol=0)


def test_the_three_term_form_would_have_failed_here() -> None:
    """The test above can fail: in fp32 the expanded form loses a change of 1e-4 altogether."""
    w, h_b = noise(V, D, seed=0), noise(N, D, seed=1)
    h_t = moved(h_b, 1e-4, 3)
    g = w.T @ w
    expanded = ((h_t @ g) * h_t).sum(-1) + ((h_b @ g) * h_b).sum(-1) - 2 * ((h_t @ g) * h_b).sum(-1)
    exact = direct(w, h_t, w, h_b)
    assert ((expanded.clamp_min(0).sqrt() - exact).abs() / exact).max() > 0.1


def written(seed: int, relative: float = 0.0) -> Activations:
    def one(k: int, *shape: int) -> torch.Tensor:
        base = noise(*shape, seed=k)
        return moved(base, relative, seed + k) if relative else base

    return Activations(
        final_hidden=noise(N, D, seed=9),
        embedding=one(10, N, D),
        attention=one(11, L, N, D),
        mlp=one(12, L, N, D),
        norm_scale=noise(N, seed=13).abs().double() + 0.5 + relative,
    )


@pytest.mark.parametrize("same_head", [True, False])
def test_every_variant_is_what_it_says(same_head: bool) -> None:
    w_b, gain_b = noise(V, D, seed=0), noise(D, seed=4)
    w_t, gain_t = (w_b, gain_b) if same_head else (moved(w_b, 0.03, 5), moved(gain_b, 0.1, 6))
    tuned, base = written(100, 0.05), written(0)
    sample = torch.tensor([0] * 3 + [4] * 8)
    ids = torch.tensor([3, 50, 51])
    into = BlockContributions(L)
    ResidualToLogitProbe(OutputHead(w_t, gain_t), OutputHead(w_b, gain_b), {"number": ids}).add_activations(
        tuned, base, sample, into
    )
    reading = into.to_json()

    def folded(h: torch.Tensor, one: Activations, gain: torch.Tensor) -> torch.Tensor:
        return h.double() * one.norm_scale[:, None] * gain.double()

    def mean(values: torch.Tensor) -> float:
        return float((values[:3].mean() + values[3:].mean()) / 2)

    total = torch.zeros(N, V, dtype=torch.float64)
    changes = {}
    for kind in ("embedding", "attention", "mlp"):
        for layer in range(1 if kind == "embedding" else L):
            h_t, h_b = (getattr(o, kind) if kind == "embedding" else getattr(o, kind)[layer] for o in (tuned, base))
            change = folded(h_t, tuned, gain_t) @ w_t.double().T - folded(h_b, base, gain_b) @ w_b.double().T
            total += change
            changes[kind, layer] = change
            if kind == "embedding":
                continue
            assert reading["norm"][kind][layer] == pytest.approx(mean(direct(w_t, h_t, w_b, h_b)))
            assert reading["shared"][kind][layer] == pytest.approx(mean(direct(w_b, h_t, w_b, h_b)))
            assert reading["folded"][kind][layer] == pytest.approx(mean(change.norm(dim=-1)))
            signed = change[:, ids].mean(dim=1) - change.mean(dim=1)
            assert reading["toward"]["number"][kind][layer] == pytest.approx(mean(signed), rel=1e-6)
    total -= total.mean(dim=1, keepdim=True)
    for (kind, layer), change in changes.items():
        share = float(((change - change.mean(dim=1, keepdim=True)) * total).sum() / total.pow(2).sum())
        found = reading["direct"][kind]
        assert (found if kind == "embedding" else found[layer]) == pytest.approx(share, rel=1e-6)
    parts = reading["direct"]
    assert sum(parts["attention"]) + sum(parts["mlp"]) + parts["embedding"] == pytest.approx(1.0)


def test_nothing_moved_is_exactly_nothing_even_with_a_copied_head() -> None:
    w, gain = noise(V, D, seed=0), noise(D, seed=4)
    into = BlockContributions(L)
    probe = ResidualToLogitProbe(
        OutputHead(w.clone(), gain.clone()), OutputHead(w, gain), {"number": torch.tensor([1])}
    )
    probe.add_activations(written(0), written(0), torch.zeros(N, dtype=torch.long), into)
    reading = into.to_json()
    for name in ("norm", "shared", "folded"):
        assert reading[name] == {"attention": [0.0] * L, "mlp": [0.0] * L}
    assert reading["toward"]["number"] == {"attention": [0.0] * L, "mlp": [0.0] * L}
    assert reading["direct"]["embedding"] is None
