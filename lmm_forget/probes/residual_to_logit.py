"""How much each block of the decoder contributes to the change in logits, without computing the logits.

With h the output of a block at a position, W the unembedding, b the base and t the tuned model, and D = W_t - W_b:

    || W_t h_t - W_b h_b ||^2 = d' G d + 2 d' C h_b + h_b' E h_b,     d = h_t - h_b,
    G = W_t' W_t,  C = W_t' D,  E = D' D                              (hidden x hidden, in fp64)

Computing it as ||W_t h_t||^2 - 2 <W_t h_t, W_b h_b> + ||W_b h_b||^2 would cancel: at relative changes below 1e-3 all
digits are lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmm_forget.probes.decoder_blocks import Activations

VOCABULARY_CHUNK = 8192
BLOCK_KINDS = ("attention", "mlp")


@dataclass(frozen=True)
class OutputHead:
    """What turns the residual stream into logits: the head's `weight` [V, d] and the final norm's `norm_gain` [d]."""

    weight: Tensor
    norm_gain: Tensor


@dataclass(frozen=True)
class GramMatrices:
    """G, C and E of the formula above, [d, d] in fp64; C and E are None if both models share one head."""

    tuned_gram: Tensor
    cross_gram: Tensor | None
    difference_gram: Tensor | None

    @classmethod
    def from_weights(cls, tuned_weight: Tensor, base_weight: Tensor, *, is_centred: bool = False) -> GramMatrices:
        """From the heads' weights [V, d]; `is_centred` subtracts each column's mean over the vocabulary.

        A change that is equal for all logits changes no probability; centred matrices ignore it.
        """
        shared = tuned_weight is base_weight
        width = tuned_weight.shape[1]
        mean_t = tuned_weight.double().mean(dim=0) if is_centred else 0.0
        mean_b = mean_t if shared or not is_centred else base_weight.double().mean(dim=0)
        g, c, e = (torch.zeros(width, width, dtype=torch.float64, device=tuned_weight.device) for _ in range(3))
        for rows_t, rows_b in zip(
            tuned_weight.split(VOCABULARY_CHUNK), base_weight.split(VOCABULARY_CHUNK), strict=True
        ):
            w = rows_t.double() - mean_t
            g += w.T @ w
            if not shared:
                d = w - (rows_b.double() - mean_b)
                c += w.T @ d
                e += d.T @ d
        return cls(g, None if shared else c, None if shared else e)

    def compute_inner_product(self, change: Tensor, base: Tensor, other_change: Tensor, other_base: Tensor) -> Tensor:
        """<W_t d + D b, W_t d2 + D b2> for each row of [..., d] tensors in fp64."""
        value = ((change @ self.tuned_gram) * other_change).sum(dim=-1)
        if self.cross_gram is not None and self.difference_gram is not None:
            value = (
                value
                + ((change @ self.cross_gram) * other_base).sum(dim=-1)
                + ((other_change @ self.cross_gram) * base).sum(dim=-1)
            )
            value = value + ((base @ self.difference_gram) * other_base).sum(dim=-1)
        return value

    def compute_change_norm(self, tuned_output: Tensor, base_output: Tensor) -> Tensor:
        """|| W_t h_t - W_b h_b || for each row of two [..., d] tensors, in fp64."""
        b = base_output.double()
        d = tuned_output.double() - b
        return self.compute_inner_product(d, b, d, b).clamp_min(0.0).sqrt()


@dataclass
class BlockContributions:
    """Sums over positions of what each block contributes; samples weigh the same, positions within a sample too.

    Norms and signed values are means over samples of means over positions; the direct share is a ratio of sums.
    """

    num_layers: int
    num_samples: int = 0
    num_tokens: int = 0
    metric_sums: dict[str, Tensor] = field(default_factory=dict)
    """By metric, [L, 2] (attention, MLP): sums of the samples' means."""
    projection_sums: Tensor | None = None
    """[2 L + 1]: projections of each block's (last: the embedding's) change onto the whole change."""
    squared_change_sum: float = 0.0

    def add_positions(
        self,
        metrics: Mapping[str, Tensor],
        sample_indices: Tensor,
        projections: Tensor,
        squared_changes: Tensor,
    ) -> None:
        """Add n positions, position k of sample `sample_indices[k]` (any integers).

        `metrics` are [L, 2, n], `projections` [2 L + 1, n], `squared_changes` [n].
        """
        _, group_indices, counts = sample_indices.unique(return_inverse=True, return_counts=True)
        weights = 1.0 / counts[group_indices].double()
        for name, values in metrics.items():
            summed = (values * weights).sum(dim=-1).cpu()
            self.metric_sums[name] = self.metric_sums.get(name, torch.zeros_like(summed)) + summed
        self.num_samples += len(counts)
        self.num_tokens += len(sample_indices)
        summed_projections = projections.sum(dim=-1).cpu()
        self.projection_sums = (
            summed_projections if self.projection_sums is None else self.projection_sums + summed_projections
        )
        self.squared_change_sum += float(squared_changes.sum())

    def to_json(self) -> dict[str, object]:
        """The content of a reading (docs/probes.md): by variant, one value per layer for attention and for MLP."""
        mean = {name: values / self.num_samples for name, values in self.metric_sums.items()}
        reading: dict[str, object] = {"n": self.num_samples, "tokens": self.num_tokens}
        reading.update({name: _split_by_block_kind(v) for name, v in mean.items() if not name.startswith("toward:")})
        shares = [None] * (2 * self.num_layers + 1)
        if self.projection_sums is not None and self.squared_change_sum > 0:
            shares = (self.projection_sums / self.squared_change_sum).tolist()
        reading["direct"] = {
            "attention": shares[: self.num_layers],
            "mlp": shares[self.num_layers : -1],
            "embedding": shares[-1],
        }
        reading["toward"] = {
            name.removeprefix("toward:"): _split_by_block_kind(values)
            for name, values in mean.items()
            if name.startswith("toward:")
        }
        return reading


class ResidualToLogitProbe:
    """Compares one model with the base; its Gram matrices are computed once and serve for all positions."""

    def __init__(self, tuned_head: OutputHead, base_head: OutputHead, token_sets: Mapping[str, Tensor]) -> None:
        """`token_sets` maps names to token ids. A head that is the same tensor as the base's counts as unchanged."""
        self._tuned_head, self._base_head = tuned_head, base_head
        self._grams = GramMatrices.from_weights(tuned_head.weight, base_head.weight)
        self._base_grams = (
            self._grams
            if tuned_head.weight is base_head.weight
            else GramMatrices.from_weights(base_head.weight, base_head.weight)
        )
        self._centred_grams = GramMatrices.from_weights(tuned_head.weight, base_head.weight, is_centred=True)
        self._set_directions = {
            name: (_compute_set_direction(tuned_head.weight, i), _compute_set_direction(base_head.weight, i))
            for name, i in token_sets.items()
        }

    def add_activations(
        self,
        tuned_activations: Activations,
        base_activations: Activations,
        sample_indices: Tensor,
        contributions: BlockContributions,
    ) -> None:
        """Add the blocks' contributions at n positions (k-th: of sample `sample_indices[k]`) to `contributions`."""
        num_layers = contributions.num_layers
        names = ("norm", "shared", "folded", *(f"toward:{name}" for name in self._set_directions))
        metrics = {
            name: torch.zeros(num_layers, 2, len(sample_indices), dtype=torch.float64, device=sample_indices.device)
            for name in names
        }
        stream_change, stream_base = self._compute_stream_change(tuned_activations, base_activations)
        squared_changes = self._centred_grams.compute_inner_product(
            stream_change, stream_base, stream_change, stream_base
        )
        projections = torch.zeros(
            2 * num_layers + 1, len(sample_indices), dtype=torch.float64, device=sample_indices.device
        )
        for k, kind in enumerate(BLOCK_KINDS):
            for layer in range(num_layers):
                h_t, h_b = getattr(tuned_activations, kind)[layer], getattr(base_activations, kind)[layer]
                metrics["norm"][layer, k] = self._grams.compute_change_norm(h_t, h_b)
                metrics["shared"][layer, k] = self._base_grams.compute_change_norm(h_t, h_b)
                y_t, y_b = (
                    self._apply_final_norm(h_t, tuned_activations, self._tuned_head),
                    self._apply_final_norm(h_b, base_activations, self._base_head),
                )
                metrics["folded"][layer, k] = self._grams.compute_change_norm(y_t, y_b)
                projections[k * num_layers + layer] = self._centred_grams.compute_inner_product(
                    y_t - y_b, y_b, stream_change, stream_base
                )
                for name, (u_t, u_b) in self._set_directions.items():
                    metrics[f"toward:{name}"][layer, k] = (y_t - y_b) @ u_t + y_b @ (u_t - u_b)
        assert tuned_activations.embedding is not None and base_activations.embedding is not None
        e_t = self._apply_final_norm(tuned_activations.embedding, tuned_activations, self._tuned_head)
        e_b = self._apply_final_norm(base_activations.embedding, base_activations, self._base_head)
        projections[-1] = self._centred_grams.compute_inner_product(e_t - e_b, e_b, stream_change, stream_base)
        contributions.add_positions(metrics, sample_indices, projections, squared_changes)

    def _compute_stream_change(
        self, tuned_activations: Activations, base_activations: Activations
    ) -> tuple[Tensor, Tensor]:
        """(y_t - y_b, y_b), [n, d]: change and base value of the whole residual stream after the final norm."""
        y_t, y_b = (
            self._apply_final_norm(_sum_stream(activations), activations, head)
            for activations, head in ((tuned_activations, self._tuned_head), (base_activations, self._base_head))
        )
        return y_t - y_b, y_b

    @staticmethod
    def _apply_final_norm(hidden: Tensor, activations: Activations, head: OutputHead) -> Tensor:
        """The final norm with the scale of the whole stream: y = gain * h / rms(stream), in fp64."""
        assert activations.norm_scale is not None
        return hidden.double() * activations.norm_scale[:, None] * head.norm_gain.double()


def _sum_stream(activations: Activations) -> Tensor:
    """The residual stream [n, d]: embedding and all blocks' outputs, summed in fp64."""
    assert activations.embedding is not None and activations.attention is not None and activations.mlp is not None
    return (
        activations.embedding.double() + activations.attention.double().sum(dim=0) + activations.mlp.double().sum(dim=0)
    )


def _compute_set_direction(weight: Tensor, token_ids: Tensor) -> Tensor:
    """Mean row of a token set minus the mean row of the vocabulary, [d] in fp64."""
    return weight[token_ids].double().mean(dim=0) - weight.double().mean(dim=0)


def _split_by_block_kind(values: Tensor) -> dict[str, list[float]]:
    return {kind: values[:, k].tolist() for k, kind in enumerate(BLOCK_KINDS)}
