# SPDX-License-Identifier: Apache-2.0
"""What the command reads: `.onnx` files without torch, calibration samples from files and from loaders."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fedmote.cli import main
from fedmote.errors import ConfigError
from fedmote.package.partition import Partition
from fedmote.tensors import dump_safetensors, load_safetensors
from fedmote_convert.sources import load_calibration_loader, load_model, load_samples

from .onnx_models import classifier, saved

WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from fedmote.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def files(tmp_path):
    """A model and calibration samples with labels."""
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "x.npz", x=rng.random((16, 2, 4, 4), dtype=np.float32), y=rng.integers(0, 3, 16))
    saved(classifier(), tmp_path / "model.onnx")
    return tmp_path


def convert_without(blocked, files, model, *more):
    arguments = ["convert", model, "--calibration", files / "x.npz", "--boards", "posix,stm32f405", "-o", files / "out", *more]
    code = WITHOUT_TORCH.format(blocked=blocked)
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=False, capture_output=True, text=True)


def test_an_onnx_file_is_converted_where_torch_is_not_installed(files):
    ended = convert_without(("torch",), files, files / "model.onnx", "--json")

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["model"] == "model"
    assert sorted(Partition.load(files / "out").packages) == ["posix", "stm32f405"]


def test_missing_packages_are_named_with_what_installs_them(files):
    onnx = convert_without(("onnx",), files, files / "model.onnx")
    torch = convert_without(("torch",), files, "fedmote.lab.models:digits_cnn")

    assert (onnx.returncode, torch.returncode) == (2, 2)
    assert onnx.stderr == "fedmote: convert needs onnx for .onnx files: install fedmote[onnx]\n"
    assert torch.stderr == "fedmote: convert needs torch for torch modules: install fedmote[torch]\n"


def test_a_checkpoint_of_a_conversion_can_be_given_as_weights_of_the_file(files):
    weights = {"head.weight": np.arange(9, dtype=np.float32).reshape(3, 3)}
    (files / "w.safetensors").write_bytes(dump_safetensors(weights))

    first = convert_without((), files, files / "model.onnx", "--weights", files / "w.safetensors")
    checkpoint = load_safetensors(files / "out" / "checkpoint.safetensors")
    package = (files / "out" / "model-posix.fmp").read_bytes()
    (files / "all.safetensors").write_bytes(dump_safetensors(checkpoint))
    second = convert_without((), files, files / "model.onnx", "--weights", files / "all.safetensors")

    assert (first.returncode, second.returncode) == (0, 0)
    np.testing.assert_array_equal(checkpoint["head.weight"], weights["head.weight"])
    assert (files / "out" / "model-posix.fmp").read_bytes() == package


def test_a_model_is_named_after_its_file(tmp_path):
    for name, model_id in (("Key Words (v2).onnx", "key-words-v2"), ("ds_cnn.ONNX", "ds_cnn"), ("___.onnx", "model")):
        assert load_model(str(saved(classifier(), tmp_path / name)))[1] == model_id


LOADERS = """
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset
x = torch.arange(40, dtype=torch.float32).reshape(10, 4) / 40
y = torch.arange(10) % 3
def pairs(): return DataLoader(TensorDataset(x, y), batch_size=4)
def samples(): return DataLoader(x, batch_size=3)
def arrays(): return [x.numpy().astype(float), x.numpy()]
def integers(): return [torch.zeros(2, 4, dtype=torch.uint8)]
def broken():
    yield x
    raise RuntimeError("the disk of the data is gone")
def words(): return [["a", "b"]]
def ragged(): return [x, x[:, :2]]
def nothing(): return []
def number(): return 3
def half_labelled(): return [(x, y), x]
"""


@pytest.fixture
def loaders(tmp_path, monkeypatch):
    (tmp_path / "loaders_of_test.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda name: f"loaders_of_test:{name}"
    sys.modules.pop("loaders_of_test", None)


def test_batches_of_a_torch_loader_become_calibration_samples(loaders):
    x = np.arange(40, dtype=np.float32).reshape(10, 4) / np.float32(40)

    pairs, samples, arrays = (load_samples(loaders(name)) for name in ("pairs", "samples", "arrays"))

    np.testing.assert_array_equal(pairs.x, x)
    np.testing.assert_array_equal(pairs.y, np.arange(10) % 3)
    np.testing.assert_array_equal(samples.x, x)
    assert samples.y is None
    assert (arrays.x.dtype, arrays.x.shape) == (np.float32, (20, 4))


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing", "expected a function of that name"),
        ("x", "x is Tensor, expected a function"),
        ("integers", r"x is uint8 \(2, 4\); expected floats .* x / 255"),
        ("broken", "RuntimeError: the disk of the data is gone; expected a function"),
        ("words", "expected a function that returns an iterable of batches"),
        ("ragged", "expected a function that returns an iterable of batches"),
        ("nothing", "expected a function that returns an iterable of batches"),
        ("number", "'int' object is not iterable"),
        ("half_labelled", r"y is int64 \(10,\); expected integers \(20,\)"),
    ],
)
def test_a_loader_that_does_not_give_samples_is_refused_by_name(loaders, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_calibration_loader(loaders(name))

    assert loaders(name) in str(caught.value)


def test_a_loader_calibrates_as_the_file_with_its_samples_does(files, monkeypatch):
    (files / "same_samples.py").write_text(
        "import numpy as np, torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "file = np.load('x.npz')\n"
        "def loader(): return DataLoader(TensorDataset(torch.tensor(file['x']), torch.tensor(file['y'])), batch_size=5)\n"
    )
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "path", list(sys.path))
    outputs = []
    for calibration in ("x.npz", "same_samples:loader"):
        assert main(["convert", "model.onnx", "--calibration", calibration, "--boards", "posix", "-o", "out"]) == 0
        outputs.append({path.name: path.read_bytes() for path in (files / "out").iterdir()})

    assert outputs[0] == outputs[1]
