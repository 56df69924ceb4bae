# SPDX-License-Identifier: Apache-2.0
"""Who takes part: the cells of the configuration, the registry, and what a revocation leaves of both."""

from __future__ import annotations

import pytest

from fedmote.cli.serve import plain_text, with_population
from fedmote.config import CellConfig, CoordinatorConfig, RunConfig, SecurityConfig
from fedmote.errors import ConfigError
from fedmote.fleet import Registry
from fedmote.wire.schema import Role

CELLS = (CellConfig("desk", ("board-1", "board-2"), "phone-1"), CellConfig("shelf", ("board-3",)))


@pytest.fixture
def registry(tmp_path):
    with Registry.open(tmp_path / "fleet", is_made=True) as opened:
        for cell in CELLS:
            for member in cell.participants:
                opened.add(member, Role.PARTNER if member == cell.partner else Role.DEVICE, cell.name)
        yield opened


def config(tmp_path, cells=CELLS, listen="tcp://127.0.0.1:0", **security) -> CoordinatorConfig:
    run = RunConfig("lab", "first", tmp_path / "state", tmp_path / "model")
    return CoordinatorConfig(run, cells, listen=listen, security=SecurityConfig(tmp_path / "fleet", **security))


def test_the_registry_is_the_population_where_no_cells_are_named(registry, tmp_path):
    assert with_population(config(tmp_path, ()), tmp_path).cells == CELLS
    registry.revoke("board-3")
    assert with_population(config(tmp_path, ()), tmp_path).cells == CELLS[:1]


def test_cells_that_are_named_are_a_part_of_the_registry_without_who_was_revoked(registry, tmp_path, capsys):
    assert with_population(config(tmp_path, CELLS[:1]), tmp_path).cells == CELLS[:1]
    registry.revoke("board-1")
    registry.revoke("phone-1")
    registry.revoke("board-3")
    assert with_population(config(tmp_path), tmp_path).cells == (CellConfig("desk", ("board-2",)),)
    assert "left out, revoked: board-1, phone-1, board-3" in capsys.readouterr().err
    registry.revoke("board-2")
    with pytest.raises(ConfigError, match="nobody is enrolled"):
        with_population(config(tmp_path), tmp_path)


def test_somebody_who_was_never_enrolled_is_refused_by_name(registry, tmp_path):
    with pytest.raises(ConfigError, match="cells: board-9: not enrolled"):
        with_population(config(tmp_path, (CellConfig("desk", ("board-1", "board-9")),)), tmp_path)


def test_plain_text_beyond_loopback_is_said_at_every_start(registry, tmp_path):
    assert list(plain_text(config(tmp_path))) == []
    for _ in range(2):
        (words,) = plain_text(config(tmp_path, listen="tcp://0.0.0.0:7310", is_insecure=True))
        assert "tcp://0.0.0.0:7310 is plain text" in words
