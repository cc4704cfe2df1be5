import json
import subprocess
import sys

import numpy as np
import pytest

from vpexp.deploy.package import write_mlflow_model
from vpexp.runtime import quiet_libraries

# Runs where a server would: in a process without the checkout, and without what training needs.
SERVE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "omegaconf", "hydra", "rich", "datumaro", "pytorch_lightning", "nncf"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
import pandas
from mlflow.pyfunc import load_model
folder = sys.argv[1]
example = json.load(open(f"{folder}/serving_input_example.json"))["dataframe_split"]
model, table = load_model(folder), pandas.DataFrame(**example)
replies = model.predict(table)
if len(sys.argv) > 2:
    replies += model.predict(table[["image"]])
import vpexp
print(json.dumps({"replies": replies, "code": vpexp.__file__}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["debug_ir", "debug_onnx", "instance_ir"])
def test_write_mlflow_model__is_served_without_torch_and_without_the_checkout(model, tmp_path, request, capfd):
    quiet_libraries()
    exported = request.getfixturevalue(model)
    folder = tmp_path / "mlflow_model"
    folder.mkdir()
    (folder / "of an earlier start").touch()

    assert write_mlflow_model(exported, folder) == folder

    assert capfd.readouterr().err == ""
    assert not (folder / "of an earlier start").exists()
    served = subprocess.run(
        [sys.executable, "-c", SERVE, str(folder), *(["alone"] * (model == "instance_ir"))],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        timeout=120,
    )
    assert served.returncode == 0, served.stderr
    said = json.loads(served.stdout.splitlines()[-1])
    assert said["code"] == str(folder / "code" / "vpexp" / "__init__.py")
    reply, *alone = said["replies"]
    assert len(alone) == (model == "instance_ir")
    for found in alone:
        assert len(found["labels"]) == len(found["scores"]) == len(found["masks"]) > 0
    assert [rle["size"] for rle in reply["masks"]] == [[64, 96]]
    assert np.isfinite(reply["iou"]).all()
    needed = (folder / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in needed[:-1]] == ["mlflow", "numpy", "pillow", "pycocotools"]
    assert needed[-1].startswith("onnxruntime==" if model == "debug_onnx" else "openvino==")
    assert {path.name for path in (folder / "artifacts").iterdir()} == {file.name for file in exported.files}
