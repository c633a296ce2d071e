"""Looks at real models of every family: positions, a model against itself, a planted neuron, the alarm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lmm_forget.errors import LmmForgetError
from lmm_forget.models.loading import LMM
from lmm_forget.probes.decoder_blocks import find_decoder_blocks, record_activations
from lmm_forget.probes.forward_passes import run_forced_pass
from lmm_forget.probes.output_shift import compute_logits
from lmm_forget.probes.probe_callback import ProbeCallback
from lmm_forget.probes.prober import Prober, ProbeResult, select_evenly_spaced
from lmm_forget.probes.token_sets import find_token_sets
from lmm_forget.progress import NullProgress
from lmm_forget.recipes.lwf import LwF
from lmm_forget.recipes.method import Method
from lmm_forget.recipes.wise_ft import WiseFT
from lmm_forget.store import CorruptEntryError
from tests.models.tiny import FAMILIES, tiny_lmm
from tests.probes.small_prober import ANSWERS, alarm, prober, prompts, weights
from tests.recipes.stage_calls import end_stage, start_stage
from tests.training.lesson import teach

IMAGE = {"llava_onevision": "<image>", "llava_next": "<image>", "qwen2_5_vl": "<|image_pad|>"}


def look(one: Prober) -> ProbeResult:
    return one.probe_model(weights(one.lmm), NullProgress(), "probe")


def reading(found: ProbeResult, probe: str, mode: str = "forced") -> dict[str, Any]:
    return next(r for r in found.readings if (r["probe"], r["mode"]) == (probe, mode))


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_that_predict_the_answer_behind_the_image(family: str) -> None:
    lmm, exam = tiny_lmm(family), prompts()
    batch = [(i, exam.samples[i]) for i in (5, 0, 3)]
    rows = run_forced_pass(
        lmm, find_decoder_blocks(lmm), exam, batch, [ANSWERS[i] for i, _ in batch], record_blocks=True
    )
    head = lmm.model.get_output_embeddings().weight
    image = lmm.processor.tokenizer.convert_tokens_to_ids(IMAGE[family])
    for number, sample in batch:
        mine = rows.sample_indices == number
        prompt = lmm.family.render_prompt(lmm.processor, exam.task.format_question(sample, for_training=False), 1)
        end = lmm.family.get_end_of_answer_token(lmm.processor)
        alone = lmm.processor(images=[list(sample.images)], text=[prompt + ANSWERS[number] + end], return_tensors="pt")
        ids = alone["input_ids"][0]
        answer = lmm.processor.tokenizer(ANSWERS[number] + end, add_special_tokens=False)["input_ids"]
        assert (ids == image).sum() > 3, "the sequence holds the image's tokens"
        assert ids[-len(answer) :].tolist() == answer == rows.target_tokens[mine].tolist()
        with torch.no_grad():
            whole = lmm.model(**alone).logits[0]
        expected = whole[len(ids) - len(answer) - 1 : -1]
        torch.testing.assert_close(
            compute_logits(rows.activations.final_hidden[mine], head), expected, atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_blocks_write_adds_up_to_the_stream(family: str) -> None:
    lmm, exam = tiny_lmm(family), prompts()
    blocks = find_decoder_blocks(lmm)
    batch = [(i, exam.samples[i]) for i in (1, 2)]
    run_forced_pass(
        lmm, blocks, exam, batch, ["abc", "d"], record_blocks=False
    )  # Transformers hangs up hooks of its own once
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lmm.model.modules()]
    written = run_forced_pass(lmm, blocks, exam, batch, ["abc", "d"], record_blocks=True).activations
    stream = written.embedding + written.attention.sum(dim=0) + written.mlp.sum(dim=0)
    final = stream.double() * written.norm_scale[:, None] * blocks.final_norm.weight.double()
    torch.testing.assert_close(final.float(), written.final_hidden, atol=1e-5, rtol=1e-4)
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lmm.model.modules()]


def test_a_sequence_of_another_length_is_refused() -> None:
    lmm = tiny_lmm("llava_onevision")
    inner = lmm.components.text_model
    shorten = inner.norm.register_forward_hook(lambda _m, _i, out: out[:, 1:])
    batch = lmm.family.encode_batch(lmm.processor, ["hi"], [[]]).tensors
    with pytest.raises(LmmForgetError, match="positions"):
        record_activations(
            lmm, find_decoder_blocks(lmm), batch, (torch.tensor([0]), torch.tensor([0])), record_blocks=False
        )
    shorten.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_not_moved_from_itself(family: str, tmp_path: Path) -> None:
    one = prober(tiny_lmm(family), tmp_path)
    found = look(one)
    shift = reading(found, "output_shift")
    assert (shift["kl"], shift["js"], shift["agreement"]) == (0.0, 0.0, 1.0)
    assert shift["positions"] == sum(len(answer) + 1 for answer in ANSWERS)
    written = reading(found, "residual_to_logit")
    assert written["n"] == 5
    assert written["norm"] == {"attention": [0.0, 0.0], "mlp": [0.0, 0.0]} == written["folded"]
    free = reading(found, "output_shift", "free")
    assert free["kl"] is None and 0 < free["mass"]["number"]["mean"] < free["mass"]["number"]["max"] < 1
    assert found.table.num_rows == 2 * len(ANSWERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_figures_are_those_of_the_full_softmax(dtype: torch.dtype, tmp_path: Path) -> None:
    lmm = tiny_lmm("llava_onevision", dtype=dtype)
    one = prober(lmm, tmp_path)
    base = look(one)
    other = tiny_lmm("llava_onevision", dtype=dtype, seed=5)
    lmm.model.load_state_dict(other.model.state_dict())
    found = reading(look(one), "output_shift")
    exam, ids = one.prompt_sets[0], list(one.token_sets["number"].ids)
    masses, kls = [], []
    for number, sample in enumerate(exam.samples):
        encoded = lmm.family.encode_batch(
            lmm.processor,
            [exam.task.format_question(sample, for_training=False)],
            [list(sample.images)],
            [ANSWERS[number]],
        )
        batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in encoded.tensors.items()}
        at = (encoded.labels[0, 1:] != -100).nonzero().squeeze(1)
        with torch.no_grad():
            states = [m.model(**batch).last_hidden_state[0, at].double() for m in (lmm.model, BASE(dtype))]
        heads = [m.lm_head.weight.double() for m in (lmm.model, BASE(dtype))]
        p, q = (F.log_softmax(h @ w.T, dim=-1) for h, w in zip(states, heads, strict=True))
        masses.append(p.exp()[:, ids].sum(dim=1).mean().item())
        kls.append((p.exp() * (p - q)).sum(dim=1).mean().item())
    assert found["mass"]["number"]["mean"] == pytest.approx(sum(masses) / 8, rel=2e-3)
    assert found["kl"] == pytest.approx(sum(kls) / 8, rel=2e-2 if dtype is torch.bfloat16 else 1e-3)
    assert found["mass"]["number"]["mean"] != reading(base, "output_shift")["mass"]["number"]["mean"]


def BASE(dtype: torch.dtype) -> Any:
    return tiny_lmm("llava_onevision", dtype=dtype).model


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_neuron_that_writes_digits_is_pointed_at(family: str, sign: float, tmp_path: Path) -> None:
    lmm = tiny_lmm(family, num_hidden_layers=4)
    one = prober(lmm, tmp_path, recipe="mlp")
    look(one)
    plant(lmm, one, layer=2, sign=sign)
    found = look(one)
    written = reading(found, "residual_to_logit")
    assert written["norm"]["mlp"][:2] == [0.0, 0.0] and written["norm"]["attention"][:3] == [0.0] * 3
    toward = written["toward"]["number"]
    strongest = max(
        ((kind, layer) for kind in ("attention", "mlp") for layer in range(4)),
        key=lambda place: abs(toward[place[0]][place[1]]),
    )
    assert strongest == ("mlp", 2)
    assert toward["mlp"][2] * sign > 0.1
    others = [abs(v) for kind in toward for layer, v in enumerate(toward[kind]) if (kind, layer) != strongest]
    assert max(others) < abs(toward["mlp"][2]) / 3
    assert written["direct"]["mlp"][2] > 0.5
    shift = reading(found, "output_shift")["mass"]["number"]["mean"]
    base = one.probe_model(one.base_weights_hash, NullProgress(), "")
    assert (shift - reading(base, "output_shift")["mass"]["number"]["mean"]) * sign > 0


def plant(lmm: LMM, one: Prober, layer: int, sign: float) -> None:
    """One neuron of one MLP block writes the digits' direction of the unembedding; silu(z) z is never negative."""
    mlp: Any = one.blocks.mlp[layer]
    head = lmm.model.get_output_embeddings().weight
    with torch.no_grad():
        direction = head[list(one.token_sets["number"].ids)].mean(dim=0) - head.mean(dim=0)
        mlp.up_proj.weight[7] = mlp.gate_proj.weight[7] * 20
        mlp.gate_proj.weight[7] *= 20
        mlp.down_proj.weight[:, 7] = sign * 40 * direction / direction.norm()


def test_results_are_saved_and_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prober(tiny_lmm("llava_onevision"), tmp_path)
    first = look(one)
    again = prober(tiny_lmm("llava_onevision"), tmp_path)
    monkeypatch.setattr("lmm_forget.probes.prober.run_forced_pass", lambda *_, **__: pytest.fail("computed again"))
    second = look(again)
    assert second.readings == first.readings and second.table.equals(first.table)
    monkeypatch.undo()
    states = next(tmp_path.glob("probes/*.safetensors"))
    states.write_bytes(states.read_bytes()[:-20])
    with pytest.raises(CorruptEntryError, match="is damaged"):
        look(prober(tiny_lmm("llava_onevision"), tmp_path))


def test_the_base_s_own_answer_can_be_the_one_to_follow(tmp_path: Path) -> None:
    found = look(prober(tiny_lmm("llava_onevision"), tmp_path, forced_on="base"))
    rows = found.table.to_pylist()
    said = [row["text"] for row in rows if row["mode"] == "free"]
    assert said == [row["text"] for row in rows if row["mode"] == "forced"] != list(ANSWERS)


@pytest.mark.parametrize(
    ("family", "recipe"), [*((family, "full") for family in FAMILIES), ("llava_onevision", "sa_proj")]
)
def test_a_watched_stage_gives_the_same_weights(family: str, recipe: str, tmp_path: Path) -> None:
    """Milestones, answers and an alarm that never rings, in bf16 compute: not one bit of the weights notices."""
    alone = teach(recipe, family=family)[0]
    one = prober(tiny_lmm(family), tmp_path, recipe, at_steps=(1, 2), alarm=alarm(kl=1e9, number_mass=1e9))
    look(one)
    seen: list[Any] = []

    class Late(ProbeCallback):
        """A watch over a model that is only made inside `teach`."""

        def __call__(self, step: int) -> bool:
            torch.rand(3)
            seen.append(step)
            return super().__call__(step)

    watch = Late(one, "key", "lesson", lambda: {}, "")
    watched = follow(one, watch, recipe, family)
    assert seen == [1, 2, 3]
    assert weights(watched) == weights(alone)
    found = watch.collect_results(look(one), 3)
    assert sorted(found.milestones) == [1, 2] and found.missing_steps == () and found.alarm is None
    kls = [reading(found.milestones[step], "output_shift")["kl"] for step in (1, 2)]
    assert 0 < kls[0] < kls[1]


def follow(
    one: Prober, watch: ProbeCallback, recipe: str, family: str, method: Method | None = None, **more: Any
) -> LMM:
    """Teach the prober's own model, watched."""
    from lmm_forget.recipes.method import get_parameter_dtypes
    from lmm_forget.recipes.plain import Plain
    from lmm_forget.training.stage_config import TrainStageConfig
    from lmm_forget.training.train_stage import train_stage
    from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples

    lmm, method = one.lmm, method or Plain()
    plan, dtypes = plan_for(lmm, recipe), get_parameter_dtypes(lmm.model)
    start_stage(method, lmm, plan)
    training = {**TRAINING, **more}
    result = train_stage(
        lmm,
        plan,
        method,
        samples(),
        TrainStageConfig(training_config=training, hardware_config=HARDWARE, seed=0, task="lesson", step_probe=watch),
    )
    watch.save_alarm()
    end_stage(method, lmm, plan, dtypes)
    follow.result = result  # type: ignore[attr-defined]
    return lmm


def test_milestones_of_a_half_precision_base_are_those_of_its_stage_model(tmp_path: Path) -> None:
    """The last step's milestone and the stage model are one model: masters are shown rounded to the checkpoint."""
    one = prober(tiny_lmm("llava_onevision", dtype=torch.bfloat16), tmp_path, "llm", at_steps=(3,))
    look(one)
    watch = ProbeCallback(one, "key", "lesson", lambda: {}, "")
    follow(one, watch, "llm", "llava_onevision")
    found = watch.collect_results(look(one), 3)
    assert found.milestones[3].readings == found.stage_result.readings


@pytest.mark.parametrize("method", [WiseFT(alpha=0.5), LwF(weight=2.0)])
def test_milestones_of_another_method_are_those_of_its_stage_model(method: Method, tmp_path: Path) -> None:
    """What WiSE-FT leaves is an average; milestones show it, not the tuned weights. LwF's teacher is not disturbed."""
    one = prober(tiny_lmm("llava_onevision"), tmp_path, "mlp", at_steps=(2, 3))
    look(one)
    watch = ProbeCallback(one, "key", "lesson", lambda: {}, "")
    follow(one, watch, "mlp", "llava_onevision", method=method, learning_rate=1e-2)
    found = watch.collect_results(look(one), 3)
    assert found.milestones[3].readings == found.stage_result.readings
    assert found.milestones[2].readings != found.stage_result.readings


def test_the_alarm_ends_the_stage_and_says_where(tmp_path: Path) -> None:
    one = prober(tiny_lmm("llava_onevision"), tmp_path, "llm", alarm=alarm(kl=0.05))
    look(one)
    watch = ProbeCallback(one, "key", "lesson", lambda: {}, "")
    follow(one, watch, "llm", "llava_onevision", learning_rate=1e-2, max_steps=30)
    result = follow.result  # type: ignore[attr-defined]
    assert result.stopped_after_step == result.num_steps == len(result.step_losses) < 30
    assert result.num_samples == 4 * result.num_steps
    found = watch.collect_results(look(one), result.num_steps)
    assert found.alarm == watch.alarm
    assert found.alarm["step"] == result.num_steps and found.alarm["figure"] == "kl"
    assert found.alarm["value"] > 0.05
    assert reading(found.stage_result, "output_shift")["kl"] == pytest.approx(found.alarm["value"], rel=1e-3)


def test_a_warning_is_recorded_and_the_stage_goes_on(tmp_path: Path) -> None:
    from dataclasses import replace

    rule = replace(alarm(kl=0.05), action="warn")
    one = prober(tiny_lmm("llava_onevision"), tmp_path, "llm", alarm=rule)
    look(one)
    watch = ProbeCallback(one, "key", "lesson", lambda: {}, "")
    follow(one, watch, "llm", "llava_onevision", learning_rate=1e-2, max_steps=12)
    assert follow.result.num_steps == 12 and follow.result.stopped_after_step is None  # type: ignore[attr-defined]
    assert watch.alarm is not None and watch.alarm["step"] < 12
    other = ProbeCallback(one, "another stage", "lesson", lambda: {}, "")
    assert other.collect_results(look(one), 12).is_alarm_unknown


def test_spaced_numbers_reach_from_end_to_end() -> None:
    assert select_evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert select_evenly_spaced(3, 9) == [0, 1, 2]


def test_learned_sets_need_answers() -> None:
    tokenizer = tiny_lmm("llava_onevision").processor.tokenizer
    found = find_token_sets(tokenizer, ("trained",), {"t": ["42", "40"]}, ["a cat", "a hat"])
    assert found["trained:t"].tokens == ("0", "2", "4")
