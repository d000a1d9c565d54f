"""What a user gets of the adapter's tools where an output cannot be written, and how their JSON is written."""

import json
import shutil
from pathlib import Path

import pytest

from moesaic.adapt.conversion.folder import begin
from moesaic.adapt.proof.recorded import save_recorded
from moesaic.core.errors import ConfigError
from moesaic.entrypoints.cli.main import main
from moesaic.entrypoints.cli.strict_json import strict_json


def refused(capsys, *words):
    with pytest.raises(SystemExit) as status:
        main(list(words))
    out, err = capsys.readouterr()
    assert status.value.code == 1 and not out and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("flag", ["--record", "--report"])
def test_a_folder_that_is_not_there_is_told_before_anything_is_computed(flag, capsys, tmp_path):
    said = refused(capsys, "verify", str(tmp_path), flag, str(tmp_path / "none" / "file"))
    assert f"{flag} " in said and "no such folder" in said


def test_a_recorded_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        save_recorded(str(tmp_path / "none" / "file"), [], "a test")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        begin(str(tmp_path / "file" / "dst"), {}, False, str(tmp_path))


def test_shards_hold_something(capsys, tmp_path):
    said = refused(capsys, "convert", str(tmp_path), str(tmp_path / "dst"), "--max-shard-size", "0")
    assert "--max-shard-size" in said and not (tmp_path / "dst").exists()


@pytest.mark.parametrize("verb", ["inspect", "plan", "adapt", "convert"])
def test_a_model_of_the_hub_by_its_id(verb, capsys, tmp_path, monkeypatch, embedded_path):
    """Each tool takes an id; here, where the hub is out of reach, the copy of an earlier download, which is links."""
    import huggingface_hub.constants

    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123")
    (repo / "blobs").mkdir()
    (repo / "snapshots" / "0123").mkdir(parents=True)
    for number, file in enumerate(sorted(Path(embedded_path).iterdir())):
        shutil.copy(file, repo / "blobs" / str(number))
        (repo / "snapshots" / "0123" / file.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    more = {"adapt": ["-o", str(tmp_path / "out.py")], "convert": [str(tmp_path / "out")], "plan": ["--json"]}
    with pytest.raises(SystemExit) as status:
        main([verb, "owner/name", *more.get(verb, [])])
    out, err = capsys.readouterr()
    assert status.value.code in (0, None), (out, err)
    said = refused(capsys, verb, "owner/another", *more.get(verb, []), *(["--force"] if verb == "adapt" else []))
    assert "the Hugging Face hub did not give it" in said


def test_json_holds_no_literals_that_json_does_not_know():
    values = {"a": [float("nan"), 1.5], "b": {"c": (float("inf"), -float("inf"))}, "d": None}
    assert json.loads(strict_json(values)) == {"a": ["nan", 1.5], "b": {"c": ["inf", "-inf"]}, "d": None}
