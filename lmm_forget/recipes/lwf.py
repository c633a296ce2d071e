"""Learning without Forgetting: while a stage learns, it is held to what the model before the stage would have said.

Li and Hoiem, "Learning without Forgetting", arXiv 1606.09282, with the distillation of Hinton et al., arXiv 1503.02531:
cross-entropy + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)), on the new skill's own samples. The
teacher is the model at the beginning of the stage; nothing of an older skill is seen again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmm_forget.config.instantiation import is_number
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.recipes.method import cast_where_used
from lmm_forget.recipes.plain import Plain, answer_losses, logits_at, sample_means, taught

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.selection import TunePlan

POSITIONS = ("sequence", "answer")
"""Where the student is held: at positions spread over picture, prompt and answer, or where tokens are taught."""
MOST_POSITIONS = 1000
SHARE = 0.2


class LwF(Plain):
    """Plain tuning with a second loss: the teacher's distribution over the vocabulary at some positions.

    `positions="sequence"` is what the paper's public code computes (`spread`), `"answer"` what it asks its model for
    and never gets.

    The teacher is no second model. The planned tensors of the stage's beginning are kept in their dtype and put in
    place of the masters for a pass without gradients, before the student's own; so the teacher computes exactly as the
    student did before its first step. Its pass draws no random numbers.
    """

    only_selects = False

    def __init__(self, weight: float = 1.0, temperature: float = 2.0, positions: str = "sequence") -> None:
        """Raises ConfigError for settings that cannot be used."""
        if not is_number(weight) or not 0 <= weight < float("inf"):
            raise ConfigError(f"recipe.method.weight={weight}: must be 0 or above (0 is plain tuning)")
        if not is_number(temperature) or not 0 < temperature < float("inf"):
            raise ConfigError(f"recipe.method.temperature={temperature}: must be above 0")
        self.weight, self.temperature = float(weight), float(temperature)
        if positions not in POSITIONS:
            raise ConfigError(
                f"recipe.method.positions={positions} is not known; choose one of: {', '.join(POSITIONS)}"
            )
        self.positions = positions
        self._before: dict[str, Tensor] = {}
        self._teacher: Any = None
        self._cast: frozenset[str] = frozenset()

    def planned(self, model: nn.Module, plan: TunePlan) -> TunePlan:
        """The rules' plan, with the memory that the teacher's tensors take."""
        return replace(plan, held_bytes=plan.delta_bytes)

    def prepare(self, lmm: LMM, plan: TunePlan, seed: int = 0) -> None:
        """Keep the planned tensors as they are, in their dtype, then make them masters."""
        parameters = dict(lmm.model.named_parameters())
        if all(name in parameters for name in plan.trainable):
            self._before = {name: parameters[name].detach().clone() for name in plan.trainable}
        super().prepare(lmm, plan, seed)
        # The model itself, also where a sharded copy of it is trained: that one exists in parts.
        self._teacher, self._cast = lmm.model, cast_where_used(lmm.model)

    def loss(self, lmm: LMM, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean over each sample's taught tokens, plus that of the second loss over its positions, [B]."""
        if not self.weight:
            return super().loss(lmm, batch, labels)
        if self._teacher is None:
            raise PlanError("LwF: loss() without prepare()")
        learnt = taught(labels)
        held = learnt if self.positions == "answer" else spread(batch["attention_mask"])
        wanted = self._said_before(batch, held)
        either = learnt | held
        logits = logits_at(lmm.model, batch, either).float()
        drift = divergence(wanted.float(), logits[held[either]], self.temperature)
        new = sample_means(answer_losses(logits[learnt[either]], labels), labels)
        return new + self.weight * _row_means(drift, held)

    def finish(
        self, lmm: LMM, plan: TunePlan, base_dtypes: Mapping[str, torch.dtype], keep: bool = True
    ) -> dict[str, Tensor]:
        """Let the teacher go; then as in plain tuning."""
        self._before, self._teacher = {}, None
        return super().finish(lmm, plan, base_dtypes, keep)

    def held(self) -> Iterable[Tensor]:
        """The teacher's tensors."""
        return self._before.values()

    def _said_before(self, batch: dict[str, Tensor], where: Tensor) -> Tensor:
        """The teacher's logits at the chosen positions."""
        kind = where.device.type
        # Autocast would keep the teacher's weights under the names of the student's, and give them to the student.
        casts = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        with torch.no_grad(), casts, self._as_before():
            return logits_at(self._teacher, batch, where)

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """The model as it was before the stage, without dropout, for the block."""
        model = cast(nn.Module, self._teacher)
        parameters = dict(model.named_parameters())
        masters = {name: parameters[name].data for name in self._before}
        learning = [module for module in model.modules() if module.training]
        try:
            for name, before in self._before.items():
                p = parameters[name]
                self._before[name] = before = before.to(p.device)
                as_kept = name in self._cast and torch.is_autocast_enabled(p.device.type)
                p.data = before if as_kept else before.to(p.dtype)
            model.eval()
            yield
        finally:
            for name, master in masters.items():
                parameters[name].data = master
            for module in learning:
                module.training = True


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) in nats, of each row of two [n, V]; T^2 keeps the size
    of its gradient where T changes.
    """
    before, now = ((logits / temperature).log_softmax(dim=-1) for logits in (teacher, student))
    return F.kl_div(now, before, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def spread(attention_mask: Tensor) -> Tensor:
    """Positions as the paper's public code takes them, for each sample: a fifth of the sequence, 1000 at most; two
    fifths of them at its beginning, two fifths at its end, the rest at equal distances between. [B, T], True where.

    That code halves them once more where its memory is short, and counts the padding of a batch (it trains on
    batches of one sample, which have none).
    """
    where = torch.zeros_like(attention_mask, dtype=torch.bool)
    for row, real in enumerate(attention_mask.bool()):
        places = real.nonzero().flatten()
        n = len(places)
        k = max(1, min(int(SHARE * n), MOST_POSITIONS)) if n else 0
        ends = int(0.4 * k)
        rest = torch.arange(k - 2 * ends, device=places.device)
        between = ends + rest * (n - 2 * ends) // max(1, len(rest))
        chosen = torch.cat([places[:ends], places[between], places[n - ends :]])
        where[row, chosen] = True
    return where


def _row_means(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values`, one for each True of `where` [B, T], over each row: [B]; 0 for a row without any."""
    sums = values.new_zeros(where.shape).masked_scatter(where, values).sum(dim=1)
    return sums / where.sum(dim=1).clamp(min=1)
