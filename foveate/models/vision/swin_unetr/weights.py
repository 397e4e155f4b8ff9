"""monai's names of Swin UNETR's tensors, and those of checkpoints of its pretraining, to ours."""

from __future__ import annotations

STAGES = 4

#: Of a transformer block.
BLOCK = {
    r"attn\.relative_position_index": "",
    r"(norm[12]\.\w+|attn\.(?:qkv|proj)\.\w+|attn\.relative_position_bias_table)": r"\1",
    r"mlp\.(?:linear|fc)([12])\.(\w+)": r"mlp.fc\1.\2",
}
#: Of a block of convolutions.
_RESIDUAL = {r"(conv\d)\.conv\.(\w+)": r"\1.\2", r"(norm\d)\.(\w+)": r"\1.\2"}


def _within(their_prefix: str, our_prefix: str, table: dict[str, str]) -> dict[str, str]:
    """A table of names with prefixes; theirs may have no groups."""
    return {their_prefix + theirs: ours and our_prefix + ours for theirs, ours in table.items()}


def _later(ours: str) -> str:
    """A replacement behind one more group."""
    return ours.replace(r"\2", r"\3").replace(r"\1", r"\2")


def encoder_keys(theirs: str, ours: str = "") -> dict[str, str]:
    """Of the encoder.

    Args:
        theirs: a pattern in front of their names.
        ours: what stands in front of ours.
    """
    found = {rf"{theirs}patch_embed\.(proj|norm)\.(\w+)": rf"{ours}patch_embed.\1.\2"}
    for i in range(STAGES):
        stage, own = rf"{theirs}layers{i + 1}\.0\.(?:0\.)?", f"{ours}stages.{i}."
        for their_name, our_name in BLOCK.items():
            found[rf"{stage}blocks\.(\d+)\.{their_name}"] = our_name and rf"{own}blocks.\1.{_later(our_name)}"
        found[rf"{stage}downsample\.(\w+)\.(\w+)"] = rf"{own}merge.\1.\2"
        found |= _within(rf"{theirs}layers{i + 1}c\.0\.layer\.", f"{own}conv.", _RESIDUAL)
    return found


def network_keys() -> dict[str, str]:
    """Of the whole network."""
    found = encoder_keys(r"swinViT\.", "encoder.")
    for theirs, ours in {**{str(i + 1): f"skips.{i}" for i in range(STAGES)}, "10": "bottom"}.items():
        found |= _within(rf"encoder{theirs}\.layer\.", f"{ours}.", _RESIDUAL)
    for i in range(STAGES + 1):
        decoder = rf"decoder{STAGES + 1 - i}\."
        found[rf"{decoder}transp_conv\.conv\.(\w+)"] = rf"decoders.{i}.up.\1"
        found |= _within(rf"{decoder}conv_block\.", f"decoders.{i}.block.", _RESIDUAL)
    found[r"out\.conv\.conv\.(\w+)"] = r"out.\1"
    return found
