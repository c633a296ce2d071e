from __future__ import annotations

import torch

from lmm_forget.models.weights import model_hashes, tensor_hash, weights_hash
from tests.models.tiny import tiny_lmm


def test_a_tensor_hash_sees_bits_shape_and_dtype() -> None:
    t = torch.arange(6, dtype=torch.float32)
    assert tensor_hash(t) == tensor_hash(t.clone())
    assert tensor_hash(t.view(2, 3).t().contiguous().t()) == tensor_hash(t.view(2, 3)), "strides do not count"
    changed = t.clone()
    changed[0] = -0.0
    others = [t.view(2, 3), t.to(torch.float64), t.view(torch.int32), changed, t[:5]]
    assert len({tensor_hash(x) for x in [t, *others]}) == 6
    assert tensor_hash(torch.tensor(1.5)) != tensor_hash(torch.tensor([1.5]))
    assert tensor_hash(torch.zeros(0)) != tensor_hash(torch.zeros(0, 2))
    assert tensor_hash(torch.ones(2, dtype=torch.bfloat16)) != tensor_hash(torch.ones(2, dtype=torch.float16))


def test_the_weights_hash_depends_on_names_and_content_but_not_on_order() -> None:
    a, b = tensor_hash(torch.zeros(1)), tensor_hash(torch.ones(1))
    assert weights_hash({"x": a, "y": b}) == weights_hash({"y": b, "x": a})
    assert len({weights_hash(h) for h in ({"x": a, "y": b}, {"x": b, "y": a}, {"x": a}, {"xy": a})}) == 4


def test_model_hashes_follow_a_single_changed_bit() -> None:
    lmm = tiny_lmm("llava_onevision", tie_word_embeddings=True)
    before = model_hashes(lmm.model)
    assert "lm_head.weight" not in before and list(before) == [i.name for i in lmm.components]
    assert model_hashes(tiny_lmm("llava_onevision", tie_word_embeddings=True).model) == before
    with torch.no_grad():
        lmm.model.lm_head.weight[0, 0] += 1e-3
    after = model_hashes(lmm.model)
    assert [n for n in before if before[n] != after[n]] == ["model.language_model.embed_tokens.weight"]
