"""llm-foundry, which builds algorithms and models by name from its registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from sam_algos import METHODS
from tests.integrations.page import METHOD, run

pytest.importorskip("llmfoundry", reason="needs llm-foundry: pip install llm-foundry")

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own


def test_the_snippet_builds_a_method() -> None:
    assert run("llm-foundry")["algorithm"] == METHOD


def test_its_registry_has_every_method() -> None:
    from llmfoundry import registry

    assert set(METHODS) <= set(registry.algorithms.get_all())


def test_its_own_model_trains() -> None:
    from composer import Trainer
    from llmfoundry.models.mpt import ComposerMPTCausalLM

    sizes: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 8, "vocab_size": 32}
    model = ComposerMPTCausalLM(
        tokenizer=None, loss_fn="torch_crossentropy", attn_config={"attn_impl": "torch"}, **sizes
    )
    ids = torch.randint(32, (12, 8))
    data = [{"input_ids": i, "labels": i, "attention_mask": torch.ones(8, dtype=torch.bool)} for i in ids]
    algorithm = run("llm-foundry")["algorithm"]
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-3),
        train_dataloader=DataLoader(data, batch_size=4),  # pyright: ignore[reportArgumentType]
        max_duration="1ep",
        algorithms=[algorithm],
        progress_bar=False,
    )
    trainer.fit()
    optimizer: Any = trainer.state.optimizers[0]
    assert optimizer.method_state_dict()["step"] == 3
    assert optimizer.metrics["sam/gradients"] in (1.0, 2.0)
