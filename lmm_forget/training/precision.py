"""The number formats of a stage: fp32 masters, frozen weights as they came, compute in bf16 or fp32.

Under `bf16` (autocast) the residual streams would follow the dtype of whichever embeddings are trained, and
recipes would start from different logits. So embeddings are cast to the compute dtype for every recipe:
before the first step all recipes give, bit for bit, what the untouched checkpoint gives. Autocast casts the matrices
of linear layers and convolutions; other trained tensors of a bf16 checkpoint (norms, layer scales, class tokens) enter
the forward pass in bf16 too, since their fp32 masters would widen whatever they touch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lmm_forget.errors import ConfigError
from lmm_forget.recipes.method import cast_where_used, to_base, to_masters

__all__ = ["PRECISIONS", "Compute", "cast_embeddings", "refuse_pure_bf16", "to_base", "to_masters"]

StageTensor = Callable[[str, Tensor, torch.dtype], Tensor]
"""See `Method.stage_tensor`."""
PRECISIONS = ("bf16", "fp32", "bf16-true")
"""Values of `hardware.precision`: bf16 autocast over fp32 masters, everything fp32, everything bf16."""

SMALLEST_PURE_BF16_RATE = 1e-4

# Autocast casts the weights of these; of embeddings the output is cast (the table of a decoder is large).
_CAST_ELSEWHERE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def refuse_pure_bf16(training: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    """Raise ConfigError for `bf16-true` with a learning rate whose steps bf16 weights cannot represent.

    bf16 keeps 8 significant bits, so a weight w ignores changes below about w/512; AdamW moves by about the
    learning rate a step, and language model weights are around 0.02 (w/512 = 4e-5). Also raised for an
    unknown precision.
    """
    precision = hardware.get("precision", "bf16")
    if precision not in PRECISIONS:
        raise ConfigError(f"hardware.precision={precision}: unknown; use one of {', '.join(PRECISIONS)}")
    rates = [training.get("learning_rate"), training.get("vision_learning_rate")]
    smallest = min((float(rate) for rate in rates if rate), default=0.0)
    if precision == "bf16-true" and smallest < SMALLEST_PURE_BF16_RATE:
        raise ConfigError(
            f"hardware.precision=bf16-true with learning rate {smallest:g}: AdamW's steps are below bf16's "
            f"resolution of typical weights (about w/512, 4e-5 for w=0.02) and would be rounded away; use "
            f"hardware.precision=bf16 (fp32 masters) or a rate of at least {SMALLEST_PURE_BF16_RATE:g}"
        )


def cast_embeddings(model: nn.Module, dtype: torch.dtype) -> list[RemovableHandle]:
    """Cast what embeddings hand on to `dtype`, by forward hooks; remove the handles to undo it.

    Covers every `nn.Embedding` (tokens of the decoder, positions of a tower) and every composite module that
    owns a bare parameter and returns one tensor (CLIP's embeddings with their class token): the places where
    a trained fp32 tensor enters a residual stream other than through an autocast operation or a norm in front
    of one.
    """

    def cast(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output

    return [module.register_forward_hook(cast) for module in model.modules() if _enters_stream(module)]


def cast_masters(
    model: nn.Module, checkpoint: Mapping[str, torch.dtype], dtype: torch.dtype
) -> list[RemovableHandle]:
    """Show modules their trained fp32 tensors in `dtype`, where the checkpoint has them in it and autocast does not
    cast them; by hooks around each forward pass (recomputed ones too). Remove the handles to undo it.
    """
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        if isinstance(module, _CAST_ELSEWHERE):
            continue
        masters = [
            name
            for name, p in module.named_parameters(recurse=False)
            if p.requires_grad
            and p.dtype == torch.float32
            and checkpoint.get(f"{path}.{name}" if path else name) == dtype
        ]
        if masters:
            handles += _shadow(module, masters, dtype)
    return handles


def _shadow(module: nn.Module, masters: Sequence[str], dtype: torch.dtype) -> Iterator[RemovableHandle]:
    """An attribute of the instance hides the parameter of its name, which stays where optimizers find it.

    The parameter is looked up anew every time, in the module that runs: copies of a module share its hooks, and a
    sharded module holds another tensor under the name while it runs.
    """

    def show(running: nn.Module, _inputs: Any) -> None:
        for name in masters:
            running.__dict__[name] = running._parameters[name].to(dtype)  # type: ignore[union-attr]

    def hide(running: nn.Module, _inputs: Any, _output: Any) -> None:
        for name in masters:
            running.__dict__.pop(name, None)

    yield module.register_forward_pre_hook(show)
    yield module.register_forward_hook(hide)


def _enters_stream(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return True
    composite = next(module.children(), None) is not None
    return composite and next(module.parameters(recurse=False), None) is not None


class Compute:
    """The compute precision of one stage, in force between `__enter__` and `__exit__`.

    - `bf16`: forward passes run under bf16 autocast; trainable tensors are the fp32 masters they are. Frozen fp16
      tensors that autocast does not cast itself (norms, convolutions: a thousandth of a model) are widened to fp32 for
      the stage (exactly), because the two half formats cannot be mixed.
    - `fp32`: no autocast; frozen tensors of a bf16 or fp16 checkpoint are widened to fp32 for the stage
      (exactly) and narrowed again afterwards, so they come back bit for bit.
    - `bf16-true`: no masters; allowed for bf16 checkpoints only, because other frozen tensors would lose
      bits.
    """

    def __init__(
        self, model: nn.Module, precision: str, device_type: str, checkpoint: Mapping[str, torch.dtype]
    ) -> None:
        """`checkpoint` gives the dtype of each parameter in the checkpoint, by name. Raises ConfigError."""
        foreign = sorted({str(d).removeprefix("torch.") for d in checkpoint.values()} - {"bfloat16"})
        if precision == "bf16-true" and foreign:
            raise ConfigError(
                f"hardware.precision=bf16-true: the checkpoint holds {', '.join(foreign)} tensors, which "
                "bf16 would round; use hardware.precision=bf16"
            )
        self._model, self._precision, self._device_type = model, precision, device_type
        self._checkpoint = dict(checkpoint)
        self._undo: dict[str, torch.dtype] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Compute:
        if self._precision == "bf16":
            self._convert(torch.float16, torch.float32, cast_where_used(self._model))
            self._hooks = self._casts()
        else:
            self._convert(None, torch.float32 if self._precision == "fp32" else torch.bfloat16)
        return self

    def _casts(self) -> list[RemovableHandle]:
        model, dtype = self._model, torch.bfloat16
        return [*cast_embeddings(model, dtype), *cast_masters(model, self._checkpoint, dtype)]

    def _lift(self) -> None:
        """Take the casts away, with what a forward pass that failed half-way left in front of its parameters."""
        for hook in self._hooks:
            hook.remove()
        for module in self._model.modules():
            for name in module._parameters:
                module.__dict__.pop(name, None)

    def _convert(
        self, only: torch.dtype | None, wanted: torch.dtype, but: frozenset[str] = frozenset()
    ) -> None:
        for name, p in self._model.named_parameters():
            if name not in but and p.dtype != wanted and (only is None or p.dtype == only):
                self._undo[name] = p.dtype
                p.grad, p.data = None, p.data.to(wanted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lift()
        parameters = dict(self._model.named_parameters())
        for name, dtype in self._undo.items():
            parameters[name].grad = None
            parameters[name].data = parameters[name].data.to(dtype)
        self._hooks, self._undo = [], {}

    @contextmanager
    def paused(self, stage_tensor: StageTensor | None = None) -> Iterator[None]:
        """Every parameter in the checkpoint's dtype and no casts, for the block: the stage model as it would be now.

        `stage_tensor(name, master, dtype)` is what the method makes of a master (None: the trainable tensors of the
        model are those of the stage model already). Masters stay aside, not moved: afterwards the parameters hold the
        same tensors as before.
        """
        stage_tensor = stage_tensor or _rounded
        kept: list[tuple[nn.Parameter, Tensor]] = []
        casting = bool(self._hooks)
        self._lift()
        try:
            for name, p in self._model.named_parameters():
                wanted = self._undo.get(name, self._checkpoint.get(name, p.dtype))
                data = p.data
                shown = (stage_tensor if p.requires_grad else _rounded)(name, data, wanted)
                if shown is not data:
                    kept.append((p, data))
                    p.data = shown
            with torch.autocast(self._device_type, enabled=False):
                yield
        finally:
            for p, data in kept:
                p.data = data
            if casting:
                self._hooks = self._casts()

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of one forward pass (not of its backward pass)."""
        if self._precision == "bf16":
            return torch.autocast(self._device_type, dtype=torch.bfloat16)
        return nullcontext()


def _rounded(_name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype)
