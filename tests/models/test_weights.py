from __future__ import annotations

import torch

from lmm_forget.models.weight_hashes import hash_parameters, hash_tensor, hash_weights
from tests.models.tiny import tiny_lmm


def test_a_tensor_hash_sees_bits_shape_and_dtype() -> None:
    t = torch.arange(6, dtype=torch.float32)
    assert hash_tensor(t) == hash_tensor(t.clone())
    assert hash_tensor(t.view(2, 3).t().contiguous().t()) == hash_tensor(t.view(2, 3)), "strides do not count"
    changed = t.clone()
    changed[0] = -0.0
    others = [t.view(2, 3), t.to(torch.float64), t.view(torch.int32), changed, t[:5]]
    assert len({hash_tensor(x) for x in [t, *others]}) == 6
    assert hash_tensor(torch.tensor(1.5)) != hash_tensor(torch.tensor([1.5]))
    assert hash_tensor(torch.zeros(0)) != hash_tensor(torch.zeros(0, 2))
    assert hash_tensor(torch.ones(2, dtype=torch.bfloat16)) != hash_tensor(torch.ones(2, dtype=torch.float16))


def test_the_weights_hash_depends_on_names_and_content_but_not_on_order() -> None:
    a, b = hash_tensor(torch.zeros(1)), hash_tensor(torch.ones(1))
    assert hash_weights({"x": a, "y": b}) == hash_weights({"y": b, "x": a})
    assert len({hash_weights(h) for h in ({"x": a, "y": b}, {"x": b, "y": a}, {"x": a}, {"xy": a})}) == 4


def test_model_hashes_follow_a_single_changed_bit() -> None:
    lmm = tiny_lmm("llava_onevision", tie_word_embeddings=True)
    before = hash_parameters(lmm.model)
    assert "lm_head.weight" not in before and list(before) == [i.name for i in lmm.components]
    assert hash_parameters(tiny_lmm("llava_onevision", tie_word_embeddings=True).model) == before
    with torch.no_grad():
        lmm.model.lm_head.weight[0, 0] += 1e-3
    after = hash_parameters(lmm.model)
    assert [n for n in before if before[n] != after[n]] == ["model.language_model.embed_tokens.weight"]
