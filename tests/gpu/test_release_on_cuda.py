"""What a rank lets go of is there for other processes on the GPU."""

import pytest
import torch

from data_engine.job.model_holder import ModelHolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on the machine"),
]


def test_a_model_that_is_let_go_leaves_nothing_that_torch_keeps_for_itself():
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    holder = ModelHolder(None, None)
    holder._model = torch.nn.Linear(4096, 8192, device="cuda")
    assert torch.cuda.memory_reserved() >= before + 4096 * 8192 * 4
    holder.release()
    assert torch.cuda.memory_reserved() <= before
