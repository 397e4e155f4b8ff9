"""``foveate export`` as a user meets it: a file that gives the numbers of ``predict`` where there is no foveate."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from test_cli import compared, foveate_command, refused  # noqa: F401 (a fixture)

#: A program of somebody who has torch or onnxruntime, and no foveate.
STRANGER = """
import sys

class NoFoveate:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "foveate":
            raise ImportError("there is no foveate here")

sys.meta_path.insert(0, NoFoveate())
import numpy as np

file, window, answer = sys.argv[1:]
x = np.load(window)
if file.endswith(".pt2"):
    import torch
    with torch.no_grad():
        y = torch.export.load(file).module()(torch.from_numpy(x)).numpy()
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    (y,) = session.run(None, {"x": x})
assert "foveate" not in sys.modules
np.save(answer, y)
"""


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_the_file_gives_the_numbers_of_predict(compared, tmp_path, format):  # noqa: F811
    folder, _ = compared
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"mine.{format}"
    made = foveate_command("export", folder / "run" / "best", "--format", format, "--out", file)
    assert made.returncode == 0, made.stderr
    assert f"wrote {file}" in made.stdout
    assert "reads x (batch, 24, 2) float64" in made.stdout
    assert made.stderr == "", made.stderr
    table = pd.read_csv(folder / "mine.csv")
    np.save(tmp_path / "x.npy", table[["c0", "c1"]].to_numpy(float)[-24:][None])
    command = [sys.executable, "-I", "-W", "ignore", "-c", STRANGER, file, tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run(list(map(str, command)), check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    told = foveate_command("predict", folder / "run" / "best", folder / "mine.csv")
    expected = pd.read_csv(io.StringIO(told.stdout))[["c0", "c1"]].to_numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy")[0], expected, rtol=2e-6)


def test_json_says_what_stands_in_the_file(compared, tmp_path):  # noqa: F811
    folder, _ = compared
    made = foveate_command("export", folder / "run" / "best", "--out", tmp_path / "m.pt2", "--json", "--batch-size", 2)
    facts = json.loads(made.stdout)
    assert facts["inputs"][0]["shape"] == [2, 24, 2]
    assert facts["package"]["columns"] == ["c0", "c1"]
    assert facts["task"] == "forecast"


def test_what_is_wrong_ends_in_one_sentence(compared, tmp_path):  # noqa: F811
    folder, _ = compared
    best = folder / "run" / "best"
    refused(foveate_command("export", best, "--format", "h5"), "--format h5", "pt2 or onnx")
    refused(foveate_command("export", tmp_path / "no"), "no folder")
    refused(foveate_command("export", tmp_path), "is not a trained model")
    refused(foveate_command("export", best, "--out", tmp_path / "no" / "m.pt2"), "does not exist")
    refused(foveate_command("export", best, "--length", 5, "--out", tmp_path / "m.pt2"), "length=5", "fixed at 24")
    if json.loads((best / "config.json").read_text())["system"] != "timesnet":
        calibrated = foveate_command("export", best, "--calibration", folder / "mine.csv", "--out", tmp_path / "m.pt2")
        refused(calibrated, "calibration is not for")
    (tmp_path / "there.pt2").write_text("mine")
    refused(foveate_command("export", best, "--out", tmp_path / "there.pt2"), "exists", "--force")
    assert {p.name for p in tmp_path.iterdir()} == {"there.pt2"}
