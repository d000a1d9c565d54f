"""What share of memory weights and KV may take where nobody said."""

from moesaic.worker.memory import default_share, size_of


def test_a_large_model_gets_more_of_the_machine():
    assert [default_share("cpu", weights) for weights in (0.01, 0.4, 0.41, 0.7)] == [0.5, 0.5, 0.8, 0.8]
    assert default_share("cuda:0", 0.7) == default_share("cuda:0", 0.1) == 0.9


def test_sizes_as_people_read_them():
    assert [size_of(n) for n in (980, 50_000, 1_342_177_280)] == ["980 B", "48.8 KiB", "1.25 GiB"]
