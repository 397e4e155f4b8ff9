"""Record ``maxvit.safetensors``: timm's MaxViT, the authors' and its own forms, with tiny random weights.

    python -m tests.peers.record_maxvit

timm (1.0.31) must be installed. Keys of the file: ``CASE/param/*`` (timm's names), ``CASE/x``, ``CASE/y`` and the maps
of all stages, ``CASE/map0`` and so on; ``CASE/other/*``: bias tables of the parameters as timm fits them to windows of
:data:`OTHER` places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("maxvit.safetensors")
OTHER = (4, 3)
SMALL: dict[str, Any] = {"depths": (1, 1), "embed_dims": (4, 8), "stem_width": (3, 4), "head_dim": 4}
#: Our options of each case, and the size of its image: odd and non-square ones, as far as windows divide the maps.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "tf": ({**SMALL, "window_size": (2, 3), "grid_size": (4, 2), "head_hidden": 6}, (31, 48)),
    "tf-odd": ({**SMALL, "window_size": (1, 3), "head_hidden": 6}, (27, 46)),
    "rw": ({**SMALL, "window_size": (2, 3), "release": "rw"}, (32, 48)),
    "rw-mlp": (
        {**SMALL, "window_size": (2, 3), "release": "rw", "position": "mlp", "layer_scale": 0.1, "head_hidden": 12},
        (32, 48),
    ),
}


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights and statistics away from their starts."""
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model.eval()


def timm_model(options: dict[str, Any]) -> nn.Module:
    """timm's model of our options."""
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, _rw_max_cfg, _tf_cfg

    tf = options.get("release", "tf") == "tf"
    more = _tf_cfg() if tf else _rw_max_cfg(rel_pos_type="mlp" if options.get("position") == "mlp" else "bias")
    config = MaxxVitCfg(
        embed_dim=options["embed_dims"],
        depths=options["depths"],
        block_type=("M",) * len(options["depths"]),
        stem_width=options["stem_width"],
        stem_bias=tf,
        head_hidden_size=options.get("head_hidden"),
        **more,
    )
    return MaxxVit(
        config,
        num_classes=5,
        transformer_window_size=options["window_size"],
        transformer_grid_size=options.get("grid_size", options["window_size"]),
        transformer_dim_head=options["head_dim"],
        transformer_init_values=options.get("layer_scale"),
    )


def of_timm(options: dict[str, Any], size: tuple[int, int]) -> dict[str, Tensor]:
    """timm's answer and maps, and tables for other windows."""
    from timm.models.maxxvit import checkpoint_filter_fn

    model = shaken(timm_model(options))
    x = torch.randn(1, 3, *size)
    maps = model.forward_intermediates(x, intermediates_only=True)[1:]
    answers = {"x": x, "y": model(x), **{f"map{i}": m for i, m in enumerate(maps)}}
    answers |= {f"param/{name}": value for name, value in model.state_dict().items()}
    if options.get("grid_size"):
        other = timm_model({**options, "window_size": OTHER, "grid_size": OTHER})
        fitted = checkpoint_filter_fn(model.state_dict(), other)
        answers |= {f"other/{name}": value for name, value in fitted.items() if name.endswith("bias_table")}
    return answers


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        cases = {name: of_timm(*case) for name, case in CASES.items()}
    save_file({f"{case}/{name}": v.clone().contiguous() for case, t in cases.items() for name, v in t.items()}, FILE)


if __name__ == "__main__":
    main()
