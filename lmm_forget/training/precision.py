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
from lmm_forget.recipes.method import find_autocast_parameters

StageTensorFunction = Callable[[str, Tensor, torch.dtype], Tensor]
"""See `Method.compute_stage_tensor`."""
PRECISIONS = ("bf16", "fp32", "bf16-true")
"""Values of `hardware.precision`: bf16 autocast over fp32 masters, everything fp32, everything bf16."""

MIN_PURE_BF16_LEARNING_RATE = 1e-4

# Autocast casts the weights of these; of embeddings the output is cast (the table of a decoder is large).
_AUTOCAST_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def refuse_pure_bf16(training_config: Mapping[str, Any], hardware_config: Mapping[str, Any]) -> None:
    """Raise ConfigError for `bf16-true` with a learning rate whose steps bf16 weights cannot represent.

    bf16 keeps 8 significant bits, so a weight w ignores changes below about w/512; AdamW moves by about the
    learning rate a step, and language model weights are around 0.02 (w/512 = 4e-5). Also raised for an
    unknown precision.
    """
    precision = hardware_config.get("precision", "bf16")
    if precision not in PRECISIONS:
        raise ConfigError(f"hardware.precision={precision}: unknown; use one of {', '.join(PRECISIONS)}")
    rates = [training_config.get("learning_rate"), training_config.get("vision_learning_rate")]
    smallest = min((float(rate) for rate in rates if rate), default=0.0)
    if precision == "bf16-true" and smallest < MIN_PURE_BF16_LEARNING_RATE:
        raise ConfigError(
            f"hardware.precision=bf16-true with learning rate {smallest:g}: AdamW's steps are below bf16's "
            f"resolution of typical weights (about w/512, 4e-5 for w=0.02) and would be rounded away; use "
            f"hardware.precision=bf16 (fp32 masters) or a rate of at least {MIN_PURE_BF16_LEARNING_RATE:g}"
        )


def add_embedding_cast_hooks(model: nn.Module, dtype: torch.dtype) -> list[RemovableHandle]:
    """Cast what embeddings hand on to `dtype`, by forward hooks; remove the handles to undo it.

    Covers every `nn.Embedding` (tokens of the decoder, positions of a tower) and every composite module that
    owns a bare parameter and returns one tensor (CLIP's embeddings with their class token): the places where
    a trained fp32 tensor enters a residual stream other than through an autocast operation or a norm in front
    of one.
    """

    def cast_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output

    return [module.register_forward_hook(cast_output) for module in model.modules() if _is_embedding_module(module)]


def add_master_cast_hooks(
    model: nn.Module, checkpoint_dtypes: Mapping[str, torch.dtype], dtype: torch.dtype
) -> list[RemovableHandle]:
    """Show modules their trained fp32 tensors in `dtype`, where the checkpoint has them in it and autocast does not
    cast them; by hooks around each forward pass (recomputed ones too). Remove the handles to undo it.
    """
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        if isinstance(module, _AUTOCAST_MODULES):
            continue
        master_names = [
            name
            for name, p in module.named_parameters(recurse=False)
            if p.requires_grad
            and p.dtype == torch.float32
            and checkpoint_dtypes.get(f"{path}.{name}" if path else name) == dtype
        ]
        if master_names:
            handles += _add_parameter_cast_hooks(module, master_names, dtype)
    return handles


def _add_parameter_cast_hooks(
    module: nn.Module, master_names: Sequence[str], dtype: torch.dtype
) -> Iterator[RemovableHandle]:
    """An attribute of the instance hides the parameter of its name, which stays where optimizers find it.

    The parameter is looked up anew every time, in the module that runs: copies of a module share its hooks, and a
    sharded module holds another tensor under the name while it runs.
    """

    def set_cast_parameters(running: nn.Module, _inputs: Any) -> None:
        for name in master_names:
            running.__dict__[name] = running._parameters[name].to(dtype)  # type: ignore[union-attr]

    def remove_cast_parameters(running: nn.Module, _inputs: Any, _output: Any) -> None:
        for name in master_names:
            running.__dict__.pop(name, None)

    yield module.register_forward_pre_hook(set_cast_parameters)
    yield module.register_forward_hook(remove_cast_parameters)


def _is_embedding_module(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return True
    has_children = next(module.children(), None) is not None
    return has_children and next(module.parameters(recurse=False), None) is not None


class PrecisionContext:
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
        self, model: nn.Module, precision: str, device_type: str, checkpoint_dtypes: Mapping[str, torch.dtype]
    ) -> None:
        """`checkpoint` gives the dtype of each parameter in the checkpoint, by name. Raises ConfigError."""
        other_dtypes = sorted({str(d).removeprefix("torch.") for d in checkpoint_dtypes.values()} - {"bfloat16"})
        if precision == "bf16-true" and other_dtypes:
            raise ConfigError(
                f"hardware.precision=bf16-true: the checkpoint holds {', '.join(other_dtypes)} tensors, which "
                "bf16 would round; use hardware.precision=bf16"
            )
        self._model, self._precision, self._device_type = model, precision, device_type
        self._checkpoint_dtypes = dict(checkpoint_dtypes)
        self._converted_dtypes: dict[str, torch.dtype] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> PrecisionContext:
        if self._precision == "bf16":
            self._convert_parameters(torch.float16, torch.float32, find_autocast_parameters(self._model))
            self._hooks = self._add_cast_hooks()
        else:
            self._convert_parameters(None, torch.float32 if self._precision == "fp32" else torch.bfloat16)
        return self

    def _add_cast_hooks(self) -> list[RemovableHandle]:
        model, dtype = self._model, torch.bfloat16
        return [
            *add_embedding_cast_hooks(model, dtype),
            *add_master_cast_hooks(model, self._checkpoint_dtypes, dtype),
        ]

    def _remove_cast_hooks(self) -> None:
        """Take the casts away, with what a forward pass that failed half-way left in front of its parameters."""
        for hook in self._hooks:
            hook.remove()
        for module in self._model.modules():
            for name in module._parameters:
                module.__dict__.pop(name, None)

    def _convert_parameters(
        self,
        source_dtype: torch.dtype | None,
        target_dtype: torch.dtype,
        excluded_names: frozenset[str] = frozenset(),
    ) -> None:
        for name, p in self._model.named_parameters():
            if (
                name not in excluded_names
                and p.dtype != target_dtype
                and (source_dtype is None or p.dtype == source_dtype)
            ):
                self._converted_dtypes[name] = p.dtype
                p.grad, p.data = None, p.data.to(target_dtype)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_cast_hooks()
        parameters = dict(self._model.named_parameters())
        for name, dtype in self._converted_dtypes.items():
            parameters[name].grad = None
            parameters[name].data = parameters[name].data.to(dtype)
        self._hooks, self._converted_dtypes = [], {}

    @contextmanager
    def restore_checkpoint_dtypes(self, compute_stage_tensor: StageTensorFunction | None = None) -> Iterator[None]:
        """Every parameter in the checkpoint's dtype and no casts, for the block: the stage model as it would be now.

        `compute_stage_tensor(name, master, dtype)` is what the method makes of a master (None: the trainable tensors
        of the
        model are those of the stage model already). Masters stay aside, not moved: afterwards the parameters hold the
        same tensors as before.
        """
        compute_stage_tensor = compute_stage_tensor or _cast_tensor
        replaced_tensors: list[tuple[nn.Parameter, Tensor]] = []
        has_cast_hooks = bool(self._hooks)
        self._remove_cast_hooks()
        try:
            for name, p in self._model.named_parameters():
                target_dtype = self._converted_dtypes.get(name, self._checkpoint_dtypes.get(name, p.dtype))
                master = p.data
                stage_data = (compute_stage_tensor if p.requires_grad else _cast_tensor)(name, master, target_dtype)
                if stage_data is not master:
                    replaced_tensors.append((p, master))
                    p.data = stage_data
            with torch.autocast(self._device_type, enabled=False):
                yield
        finally:
            for p, master in replaced_tensors:
                p.data = master
            if has_cast_hooks:
                self._hooks = self._add_cast_hooks()

    def make_autocast_context(self) -> AbstractContextManager[Any]:
        """Context of one forward pass (not of its backward pass)."""
        if self._precision == "bf16":
            return torch.autocast(self._device_type, dtype=torch.bfloat16)
        return nullcontext()


def _cast_tensor(_name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype)
