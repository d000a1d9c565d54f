"""`serve --diagnose`: a request that fails is told where its numbers went wrong, others go on, the log has it once."""

import json
import shutil
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import EMBEDDED
from tests.server.real_server import RealServer


def complete(url, prompt):
    """The status, and the answer's JSON."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    try:
        with urlopen(
            Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        ) as a:
            return a.status, json.load(a)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A model in which one expert is damaged."""
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(EMBEDDED, folder)
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.4.mlp.experts.3.down_proj.weight"][77, 3] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with RealServer("--model", str(folder), "--served-model-name", "m", "--diagnose") as running:
        yield running


def test_the_place_is_named_and_others_go_on(server):
    answers = [complete(server.url, [token]) for token in range(300, 340)]
    assert {status for status, _ in answers} == {200, 500}
    for status, answer in answers:
        assert status == 200 or "first NaN in layer 4, expert 3, down (layers.4.mlp)" in answer["error"]["message"]
    log = "".join(server.err)
    assert log.count("first NaN in") == 1 and "the first at [77, 3]" in log and "Traceback" not in log
