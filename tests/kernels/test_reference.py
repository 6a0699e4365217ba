"""The eager formulas against log_softmax."""

import pytest
import torch

from data_engine.kernels import reference


@pytest.mark.parametrize("rows", [0, 1, 5, 2500])
def test_token_logps_are_log_softmax_at_the_target(rows):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = torch.randn(rows, 16, generator=generator), torch.randn(97, 16, generator=generator)
    targets = torch.randint(0, 97, (rows,), generator=generator)
    expected = (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, targets[:, None])[:, 0].float()
    torch.testing.assert_close(reference.token_logps(hidden, weight, targets), expected, rtol=0, atol=1e-5)


def test_huge_logits_stay_finite():
    hidden, weight = torch.full((2, 4), 100.0), torch.eye(4) * 100
    assert reference.token_logps(hidden, weight, torch.tensor([0, 3])).tolist() == pytest.approx([-1.3862944] * 2)


@pytest.mark.parametrize("target", [-1, 97])
def test_a_target_outside_the_vocabulary_is_refused(target):
    with pytest.raises(ValueError, match=r"\[0, 97\)"):
        reference.token_logps(torch.zeros(1, 4), torch.zeros(97, 4), torch.tensor([target]))
