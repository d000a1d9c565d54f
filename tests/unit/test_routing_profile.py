"""Routing profiles: what their files may say, what a request gets of them, and files that change while running."""

import json
import os
from itertools import count

import pytest

from moesaic.core.errors import ConfigError, RequestError
from moesaic.core.routing import LayerShape, MoeShape
from moesaic.core.routing_options import RoutingOptions, RoutingRule
from moesaic.core.routing_profile import MOST_BYTES, make_profile, read_profile, to_toml
from moesaic.engine.routing_profiles import RoutingProfiles

SHAPE = MoeShape([LayerShape(index, 4, 2) for index in (0, 1, 3)])
TEXT = """
name = "frugal"
description = "less of everything"

[[rules]]
layers = [1, 0]
top_k = 1

[[rules]]
tags = ["sums", "json"]
ban = [3]
bias = {2 = 1.5}

[[rules]]
tags = ["sums"]
temperature = 2
allow = [0, 1]
bias = [0, 0, 1, -1.0]
"""
EVERY = RoutingRule(layers=[0, 1], top_k=1)
BOTH = RoutingRule(ban=[3], bias={2: 1.5})
SUMS = RoutingRule(temperature=2, allow=[0, 1], bias=[0, 0, 1, -1])
ticks = count(1)


def write(path, text):
    """A file that is newer than all before."""
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    os.utime(path, ns=(0, next(ticks) * 10**9))
    return path


def served(*sources, active=None):
    profiles = RoutingProfiles(sources, active)
    profiles.fit(SHAPE)
    return profiles


def test_rules_by_tag_in_the_order_of_the_file(tmp_path):
    profile = read_profile(write(tmp_path / "any.toml", TEXT))
    assert (profile.name, profile.description, profile.tags) == ("frugal", "less of everything", ["sums", "json"])
    assert profile.rules_for([]) == profile.rules_for(["other"]) == [EVERY]
    assert profile.rules_for(["json"]) == profile.rules_for(["x", "json"]) == [EVERY, BOTH]
    assert profile.rules_for(["sums"]) == profile.rules_for(["json", "sums"]) == [EVERY, BOTH, SUMS]


def test_json_and_toml_are_one(tmp_path):
    toml = read_profile(write(tmp_path / "a.toml", TEXT))
    assert read_profile(write(tmp_path / "a.json", toml.plain())) == toml


def test_what_is_written_reads_the_same(tmp_path):
    profile = make_profile(
        {
            "name": "x.y-z_1",
            "description": 'a "quote", a \\, a tab\t, a DEL \x7f, a bell \x07, a line\nand ü, 😀',
            "rules": [
                {"tags": ["*", "größe"], "bias": {"3": 1e-5, "0": -3}, "layers": [3]},
                {"bias": [0.1, 2, 3, 4], "temperature": 0.5},
            ],
        }
    )
    assert read_profile(write(tmp_path / "a.toml", to_toml(profile))) == profile


def test_the_version_is_of_the_rules_alone(tmp_path):
    first = make_profile({"name": "a", "rules": [{"ban": [1, 2]}]})
    assert make_profile({"name": "b", "description": "x", "rules": [{"ban": [2, 1]}]}).version == first.version
    assert make_profile({"name": "a", "rules": [{"ban": [1, 3]}]}).version != first.version
    assert make_profile({"name": "a", "rules": [{"ban": [1, 2], "tags": ["t"]}]}).version != first.version


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a routing profile must be a table of name, description, rules, got list"),
        ({"nmae": "a"}, "unknown key 'nmae': did you mean 'name'"),
        ({}, "name must be 1 to 64 letters"),
        ({"name": "../a"}, "name must be 1 to 64 letters"),
        ({"name": "a" * 65}, "name must be 1 to 64 letters"),
        ({"name": "a", "description": 3}, "description must be a text"),
        ({"name": "a", "rules": {}}, "rules must be a list"),
        ({"name": "a", "rules": [{"ban": [1]}] * 1025}, "rules must be a list of at most 1024"),
        ({"name": "a", "rules": ["ban"]}, "rule 1 must be a table"),
        ({"name": "a", "rules": [{"ban": [1]}, {"bann": [1]}]}, "rule 2: unknown key 'bann': did you mean 'ban'"),
        ({"name": "a", "rules": [{"profile": "b"}]}, "rule 1: unknown key 'profile'"),
        ({"name": "a", "rules": [{"layers": [0]}]}, "rule 1 does nothing"),
        ({"name": "a", "rules": [{"tags": [], "ban": [1]}]}, "rule 1: tags must be 1 to 32 texts"),
        ({"name": "a", "rules": [{"tags": "sums", "ban": [1]}]}, "rule 1: tags must be 1 to 32 texts"),
        ({"name": "a", "rules": [{"top_k": 0}]}, "rule 1: top_k must be a whole number of at least 1"),
        ({"name": "a", "rules": [{"top_k": True}]}, "rule 1: top_k must be"),
        ({"name": "a", "rules": [{"ban": [-1]}]}, "rule 1: ban must be a list of whole numbers"),
        ({"name": "a", "rules": [{"bias": {"x": 1}}]}, "rule 1: bias must have experts' numbers for keys"),
        ({"name": "a", "rules": [{"bias": [float("nan")]}]}, "rule 1: bias must be finite"),
        ({"name": "a", "rules": [{"bias": [10**400]}]}, "rule 1: bias must be finite"),
        ({"name": "a", "rules": [{"temperature": 0}]}, "rule 1: temperature must be"),
    ],
)
def test_what_no_profile_may_say(value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make_profile(value)
    path = write(tmp_path / "a.json", value)
    with pytest.raises(ConfigError, match=rf"^{path}: .*{message}"):
        read_profile(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.yaml", b"name: a", r"called \*.toml or \*.json"),
        ("a.toml", b"name = ", "is no TOML: Invalid value"),
        ("a.toml", b"name = 'a'\nname = 'b'", "is no TOML"),
        ("a.toml", b"\xff\xfe", "is no TOML"),
        ("a.toml", b"x=" + b"[" * 100_000, "is no TOML: it is nested without end"),
        ("a.json", b"{'name'", "is no JSON"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        ("a.json", b"{}" + b" " * MOST_BYTES, "cannot be read: it has"),
        ("gone.toml", None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_no_profiles(name, data, message, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_profile(tmp_path / name)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="no regular file"):
        read_profile(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"ban": [1]}, {"layers": [2], "ban": [1]}], "rule 2: layers names layer 2, and the layers with experts are"),
        ([{"ban": [4]}], "rule 1: ban names expert 4, and layer 0 has experts 0 to 3"),
        ([{"layers": [3], "bias": {4: 1}}], "rule 1: bias names expert 4, and layer 3"),
        ([{"bias": [1, 2, 3]}], "rule 1: bias has 3 numbers, and layer 0 has 4 experts"),
        ([{"top_k": 5}], "rule 1: top_k is 5"),
        ([{"ban": [0, 1]}, {"layers": [3], "ban": [2, 3]}], "leaves every request none of the 4 experts of layer 3"),
        ([{"ban": [0, 1]}, {"tags": ["t"], "allow": [1]}], "leaves requests with the tag 't' none of the 4"),
    ],
)
def test_a_profile_for_another_model(rules, message, tmp_path):
    profile = make_profile({"name": "a", "rules": rules})
    with pytest.raises(ConfigError, match=message):
        profile.check(SHAPE)
    path = write(tmp_path / "a.json", profile.plain())
    with pytest.raises(ConfigError, match=f"^{path}: .*{message}"):
        served(path)
    with pytest.raises(ConfigError, match=message):
        served().add(profile.plain())


def test_models_that_cannot_be_routed_otherwise(tmp_path):
    path = write(tmp_path / "a.toml", TEXT)
    with pytest.raises(ConfigError, match="this one has none"):
        RoutingProfiles([path]).fit(None)
    with pytest.raises(ConfigError, match="its own code routes"):
        RoutingProfiles([path]).fit(MoeShape(SHAPE.layers, "its own code routes"))


# ---------------------------------------------------------------- which one a request uses


def test_what_requests_use(tmp_path):
    write(tmp_path / "a.toml", TEXT)
    write(tmp_path / "b.json", {"name": "other", "rules": [{"tags": ["t"], "ban": [0]}]})
    profiles = served(tmp_path)
    version = {profile["name"]: profile["version"] for profile in profiles.listing()["profiles"]}
    assert profiles.active is None and profiles.resolve(None) is None
    profiles.activate("frugal")
    used = profiles.resolve(None)
    assert (used.rules, used.profile, used.version) == ([EVERY], "frugal", version["frugal"])
    used = profiles.resolve(RoutingOptions(tags=["sums"], ban=[0]))
    assert used.rules == [EVERY, BOTH, SUMS, RoutingRule(ban=[0])] and used.tags == ["sums"]
    used = profiles.resolve(RoutingOptions(tags=["t"], profile="other"))
    assert (used.rules, used.profile, used.version) == ([RoutingRule(ban=[0])], "other", version["other"])
    assert profiles.resolve(RoutingOptions(profile="other")) is None  # no rule of it is for such requests
    assert profiles.resolve(RoutingOptions(profile="", ban=[1])).rules == [RoutingRule(ban=[1])]
    profiles.activate(None)
    assert profiles.resolve(RoutingOptions(tags=["sums"])).rules == []


def test_unknown_profiles(tmp_path):
    profiles = served(write(tmp_path / "a.toml", TEXT))
    with pytest.raises(RequestError, match="unknown routing profile 'frugel': did you mean 'frugal'") as caught:
        profiles.resolve(RoutingOptions(profile="frugel"))
    assert caught.value.param == "routing.profile"
    with pytest.raises(RequestError, match="there is frugal"):
        profiles.activate("x")
    assert profiles.active == "frugal"
    with pytest.raises(ConfigError, match="unknown routing profile 'x'; there is none"):
        RoutingProfiles([], "x")


def test_the_only_file_is_active_unless_told_otherwise(tmp_path):
    a = write(tmp_path / "a.toml", TEXT)
    b = write(tmp_path / "b.json", {"name": "b"})
    assert served(a).active == "frugal"
    assert served(a, active="").active is None
    assert served(a, b).active is None and served(tmp_path).active is None
    assert served(tmp_path, active="b").active == "b"


def test_profiles_that_leave_none_with_the_requests_own_options(tmp_path):
    profiles = served(write(tmp_path / "a.json", {"name": "a", "rules": [{"ban": [0, 1]}]}))
    with pytest.raises(RequestError, match="leaves none of the 4 experts") as caught:
        profiles.resolve(RoutingOptions(ban=[2, 3]))
    assert caught.value.param == "routing.ban"


def test_two_profiles_with_one_name(tmp_path):
    a = write(tmp_path / "a.json", {"name": "x"})
    b = write(tmp_path / "b.json", {"name": "x"})
    with pytest.raises(ConfigError, match="two routing profiles are called 'x': .*a.json and .*b.json"):
        RoutingProfiles([a, b])
    with pytest.raises(ConfigError, match="two routing profiles"):
        served(a).add({"name": "x"})
    assert len(served(a, a).listing()["profiles"]) == 1


def test_the_program_may_give_one_anew():
    profiles = served()
    assert profiles.add({"name": "x", "rules": [{"ban": [1]}]}) == "x"
    assert profiles.add({"name": "x", "rules": [{"ban": [2]}]}) == "x"
    profiles.activate("x")
    assert profiles.resolve(None).rules == [RoutingRule(ban=[2])]


# ---------------------------------------------------------------- files that change


def state(profiles):
    """The only profile, as it is listed."""
    [listed] = profiles.listing()["profiles"]
    return listed


def test_a_changed_file_is_read_again_and_old_requests_keep_theirs(tmp_path):
    path = write(tmp_path / "a.json", {"name": "a", "rules": [{"ban": [1]}]})
    profiles = served(path)
    before, version = profiles.resolve(None), state(profiles)["version"]
    profiles.refresh()
    assert state(profiles)["version"] == version
    write(path, {"name": "a", "rules": [{"ban": [2]}]})
    profiles.refresh()
    after = profiles.resolve(None)
    assert before.rules == [RoutingRule(ban=[1])] and after.rules == [RoutingRule(ban=[2])]
    assert before.version == version != after.version and before.key != after.key


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "is no JSON"),
        ({"name": "a", "rules": [{"bann": [1]}]}, "did you mean 'ban'"),
        ({"name": "a", "rules": [{"ban": [9]}]}, "names expert 9"),
        ({"name": "b"}, "is called 'b' now"),
        (None, "is gone"),
    ],
)
def test_a_file_broken_while_running_keeps_the_old_profile_and_says_so(broken, message, tmp_path, log):
    path = write(tmp_path / "a.json", {"name": "a", "rules": [{"ban": [1]}]})
    profiles = served(path)
    before = profiles.resolve(None)
    path.unlink() if broken is None else write(path, broken)
    for _ in range(3):
        profiles.refresh()
    assert profiles.resolve(None) == before and message in state(profiles)["error"]
    [told] = [record for record in log.records if record.levelname == "WARNING"]
    assert message in told.getMessage() and "stays as it was" in told.getMessage()
    write(path, {"name": "a", "rules": [{"ban": [2]}]})
    profiles.refresh()
    assert profiles.resolve(None).rules == [RoutingRule(ban=[2])] and state(profiles)["error"] is None


def test_new_files_of_a_folder(tmp_path, log):
    write(tmp_path / "a.json", {"name": "a"})
    write(tmp_path / "readme.md", "not one")
    profiles = served(tmp_path)
    write(tmp_path / "b.json", {"name": "b"})
    write(tmp_path / "c.json", {"name": "a"})
    write(tmp_path / "d.toml", "name =")
    for _ in range(2):
        profiles.refresh()
    listing = profiles.listing()
    assert [profile["name"] for profile in listing["profiles"]] == ["a", "b"]
    refused = {entry["file"]: entry["error"] for entry in listing["refused"]}
    assert "two routing profiles are called 'a'" in refused.pop("c.json") and "no TOML" in refused.pop("d.toml")
    assert not refused and sum(record.levelname == "WARNING" for record in log.records) == 2
    write(tmp_path / "d.toml", "name = 'd'")
    (tmp_path / "c.json").unlink()
    profiles.refresh()
    listing = profiles.listing()
    assert [profile["name"] for profile in listing["profiles"]] == ["a", "b", "d"] and not listing["refused"]


def test_a_folder_that_goes(tmp_path):
    folder = tmp_path / "profiles"
    folder.mkdir()
    write(folder / "a.json", {"name": "a", "rules": [{"ban": [1]}]})
    profiles = served(folder, active="a")
    (folder / "a.json").unlink()
    folder.rmdir()
    profiles.refresh()
    assert profiles.resolve(None).rules == [RoutingRule(ban=[1])] and "is gone" in state(profiles)["error"]
