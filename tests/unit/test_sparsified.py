"""Training of Sparsifiner: its stages, what learns in each, and a kill in the middle."""

from __future__ import annotations

import pytest
import torch

from foveate.models.vision.sparsifiner import Sparsifiner
from foveate.tasks.classify_images.task import ClassifyImagesTask
from foveate.tasks.sparsified import Sparsified
from foveate.tasks.trainer import train

OPTIONS = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "stem_width": 4, "coef_topk": 4}


@pytest.fixture(scope="module")
def task():
    return ClassifyImagesTask.prepare(image_size=8)


def built(task) -> Sparsifiner:
    torch.manual_seed(0)
    return Sparsifiner.for_task(task.info, **OPTIONS, reduce_n_factor=1, token_prune_layers=(0,), token_keep_rate=0.8)


def run(task, folder, model, **options):
    arguments = {"lr": 1e-3, "seed": 0, "steps": 20, "batch_size": 16, "validate_every": 5, "checkpoint_every": 0}
    return train(model, Sparsified(task), task, folder=folder, **{**arguments, **options})


def test_each_stage_trains_its_own(task):
    model, recipe = built(task), Sparsified(task)
    batch = task.batch("train", torch.arange(8))
    wanted = {"dense": {"loss"}, "reconstruct": {"reconstruction"}, "sparse": {"loss", "logits", "tokens"}}
    for stage in recipe.stages():
        model.train()
        stage.prepare(model)
        optimizer = recipe.optimizers(model, 0.1)[0]
        before = {name: p.clone() for name, p in model.named_parameters()}
        losses = recipe.losses(model, batch, torch.Generator(), None)
        assert {name for name in losses if name != "connectivity"} == wanted[stage.name]
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        predicts = {name for name in before if "mask_predictor" in name}
        assert moved
        assert moved <= (predicts if stage.name == "reconstruct" else set(before) - predicts)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 8 / 30)


def test_the_teacher_is_the_dense_network(task):
    model, recipe = built(task), Sparsified(task)
    for stage in recipe.stages():
        stage.prepare(model)
    teacher = recipe.teacher
    assert teacher is not None
    x = task.batch("train", torch.arange(4))["x"]
    model.set_phase("dense")
    torch.testing.assert_close(teacher(x), model.eval()(x))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_killed_run_goes_on_with_the_same_bits(task, tmp_path):
    whole = built(task)
    run(task, tmp_path / "whole", whole)

    class Killed(RuntimeError):
        pass

    def kill(event):
        if event["type"] == "checkpoint" and event["step"] == 14:  # in the last stage, which has a teacher
            raise Killed

    again = built(task)
    with pytest.raises(Killed):
        run(task, tmp_path / "killed", again, on_event=kill)
    again = built(task)
    run(task, tmp_path / "killed", again)
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
