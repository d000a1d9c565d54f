"""`moesaic bench kernels`, on kernels small enough for a test: what it reports, not how fast."""

import pytest

from moesaic.entrypoints.bench import kernels, latent, states
from moesaic.kernels.cpu import limits
from moesaic.kernels.cpu.library import Unavailable, supported_isas


def test_each_kernel_and_format_has_a_time_and_a_share(monkeypatch):
    try:
        supported_isas()
    except Unavailable as reason:
        pytest.skip(str(reason))
    for name, value in {"HIDDEN": 64, "INTERMEDIATE": 32, "EXPERTS": 8, "TOP_K": 2, "COLD_BYTES": 1 << 16}.items():
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(kernels, "SAMPLE_SECONDS", 0)
    monkeypatch.setattr(kernels, "WARM_SECONDS", 0)
    monkeypatch.setattr(kernels, "TOKENS", (1, 64))
    monkeypatch.setattr(states, "SEQUENCES", (2,))
    monkeypatch.setattr(states, "SLOTS_BYTES", 1 << 16)
    monkeypatch.setattr(kernels, "Stream", lambda: limits.Stream(1 << 20))
    figures = kernels.figures(threads=1, runs=2)
    cases = {figure.case for figure in figures}
    assert len(cases) == 2 * 2 * len(kernels.FORMATS) + len(states.KINDS) and len(figures) == 3 * len(cases)
    assert all(len(figure.samples) == 2 and figure.value > 0 for figure in figures)
    assert {figure.metric for figure in figures if "T=1" in figure.case} == {"call", "rate", "share"}


def test_latent_attention_has_times_and_shares(monkeypatch):
    try:
        supported_isas()
    except Unavailable as reason:
        pytest.skip(str(reason))
    for name, value in {"LATENT": 32, "ROTARY": 4, "INDEX_HEADS": 3, "INDEX_DIM": 8, "TOP_K": 20}.items():
        monkeypatch.setattr(latent, name, value)
    monkeypatch.setattr(latent, "CONTEXTS", (16, 48))
    monkeypatch.setattr(latent, "LEAST_BYTES", 1 << 12)
    figures = latent.figures(threads=1, runs=2, stream=limits.Stream(1 << 20))
    assert len(figures) == 2 * 2 * len(latent.CASES)
    assert all(len(figure.samples) == 2 and figure.value > 0 for figure in figures)
