# SPDX-License-Identifier: Apache-2.0
"""Configurations: what is accepted, what is refused and how the message helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmote.config import (
    BadValueError,
    BrokerConfig,
    CellConfig,
    CoordinatorConfig,
    Credentials,
    PartnerConfig,
    PartnerCredentials,
    RunConfig,
    SecureSumConfig,
    StrategyConfig,
    WindowsConfig,
    load,
    load_with_origins,
)
from fedmote.config.broker import is_plain_text
from fedmote.config.table import MAX_IDENTIFIER_BYTES, Bounds, rules_of
from fedmote.errors import ConfigError
from fedmote.private_files import write_private
from fedmote.wire.schema import FIELDS, LIMIT_IDENTIFIER

COORDINATOR = """
listen = "tcp://127.0.0.1:7310"

[run]
site = "lab"
name = "first"
state_directory = "state"
partition_directory = "/models/kws"

[strategy]
form = "simultaneous"
alpha = 4

[[cells]]
name = "one"
devices = ["board-1", "board-2"]
partner = "phone-1"

[[cells]]
name = "two"
devices = ["board-3"]
"""
PARTNER = """
id = "phone-1"
site = "lab"
model = "package.module:build"
state_directory = "state"

[broker]
url = "mqtt://127.0.0.1:1883"
username = "phone-1"
password_file = "phone-1.password"

[[devices]]
id = "board-1"

[[devices]]
id = "board-2"
link = "serial"
port = "/dev/serial/by-id/x"
credentials_file = "board-2.toml"
"""


@pytest.fixture
def written(tmp_path):
    """Writes a file, loads it."""

    def write(kind, text: str, *overrides: str, environment=None):
        path = tmp_path / "file.toml"
        write_private(path, text)
        return load(kind, path, overrides, environment)

    return write


def refusal(written, kind, text: str, *overrides: str, environment=None) -> str:
    with pytest.raises(ConfigError) as caught:
        written(kind, text, *overrides, environment=environment)
    return str(caught.value)


def test_a_coordinator_file_gives_the_frozen_tables(written, tmp_path):
    config = written(CoordinatorConfig, COORDINATOR)
    assert (config.run.site, config.run.rounds, config.strategy.form, config.strategy.alpha) == ("lab", 10, "simultaneous", 4.0)
    assert config.run.state_directory == tmp_path / "state"
    assert config.run.partition_directory == Path("/models/kws")
    assert config.cells == (CellConfig("one", ("board-1", "board-2"), "phone-1"), CellConfig("two", ("board-3",)))
    assert set(config.devices) == {"board-1", "board-2", "board-3"}
    assert config.partners == {"phone-1": config.cells[0]}
    with pytest.raises(AttributeError):
        config.run.rounds = 3


def test_a_partner_file_gives_the_frozen_tables(written, tmp_path):
    config = written(PartnerConfig, PARTNER)
    assert [device.link for device in config.devices] == ["mqtt", "serial"]
    assert config.devices[1].credentials_file == tmp_path / "board-2.toml"
    write_private(tmp_path / "phone-1.password", "canary\n")
    assert config.broker.password() == "canary"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("rounds = 3", "ronds = 3"), ("run", "'ronds'", "rounds")),
        (("site", "rounds = 0\nsite"), ("run.rounds", "found 0", "from 1 to 1000000")),
        (("site", "rounds = 1.5\nsite"), ("run.rounds", "found 1.5", "an integer")),
        (("site", "rounds = true\nsite"), ("run.rounds", "found True", "an integer")),
        (('"lab"', '"Lab"'), ("run.site", "'Lab'", "a-z")),
        (('name = "first"', ""), ("run.name", "nothing", "required")),
        (('"simultaneous"', '"both"'), ("strategy.form", "'both'", "'alternating', 'simultaneous'")),
        (("alpha = 4", "momentum = 1"), ("strategy.momentum", "1.0", "less than 1")),
        (("alpha = 4", "alpha = nan"), ("strategy.alpha", "nan")),
        (("alpha = 4", "learning_rate = 'fast'"), ("strategy.learning_rate", "'fast'", "a number")),
        (('"board-3"', '"board 3"'), ("cells.1.devices", "'board 3'")),
        (('["board-3"]', '"board-3"'), ("cells.1.devices", "a list of a text")),
        (('["board-3"]', "[3]"), ("cells.1.devices.0", "found 3", "a text")),
        (('"board-3"', '"board-1"'), ("cells", "board-1", "more than once")),
        (('["board-3"]', "[]"), ("cell two", "neither")),
        (('"tcp://127.0.0.1:7310"', '"127.0.0.1"'), ("listen", "tcp://host:port")),
        (("listen", "# listen"), ("is needed", "broker", "listen")),
        (("[strategy]", "[strategy"), ("not TOML", "line")),
        (("[strategy]", "[stratagem]"), ("top level", "'stratagem'", "strategy")),
        (("[run]", "[[run]]"), ("run", "a table")),
    ],
)
def test_a_mistake_is_named_with_file_key_value_and_expectation(written, change, parts):
    text = COORDINATOR.replace('name = "first"', 'name = "first"\nrounds = 3') if change[0] == "rounds = 3" else COORDINATOR
    assert change[0] in text
    message = refusal(written, CoordinatorConfig, text.replace(*change, 1))
    assert "file.toml" in message
    for part in parts:
        assert part in message


def test_errors_carry_their_data(written):
    with pytest.raises(BadValueError) as caught:
        written(CoordinatorConfig, COORDINATOR, "windows.report_s=-1")
    error = caught.value
    assert (error.source, error.key, error.found) == ("--set", "windows.report_s", -1.0)
    assert error.exit_code == 2


def test_environment_and_set_override_the_file_in_this_order(written):
    environment = {"FEDMOTE_CONFIG__RUN__ROUNDS": "5", "FEDMOTE_CONFIG__RUN__SEED": "8", "HOME": "/"}
    config = written(CoordinatorConfig, COORDINATOR, "run.rounds=7", "cells.0.partner=phone-9", environment=environment)
    assert (config.run.rounds, config.run.seed, config.cells[0].partner) == (7, 8, "phone-9")


def test_an_overriding_list_replaces_the_file_s_list(written):
    config = written(CoordinatorConfig, COORDINATOR, 'cells.0.devices=["board-8", "board-9"]', "run.state_directory=elsewhere")
    assert config.cells[0].devices == ("board-8", "board-9")
    assert config.run.state_directory == Path("elsewhere")


@pytest.mark.parametrize("override", ["run.rounds", "=3", "run.rounds.deep=3", "cells.7.name=x", "run=3", "strategy.alpha="])
def test_an_override_that_fits_nowhere_is_refused(written, override):
    assert refusal(written, CoordinatorConfig, COORDINATOR, override)


def test_every_value_has_an_origin(tmp_path):
    path = tmp_path / "coordinator.toml"
    path.write_text(COORDINATOR, encoding="utf-8")
    loaded = load_with_origins(CoordinatorConfig, path, ["run.rounds=3"], {"FEDMOTE_CONFIG__RUN__SEED": "8"})
    shown = {line.key: (line.value, line.origin) for line in loaded.effective()}
    assert shown["run.rounds"] == ("3", "--set")
    assert shown["run.seed"] == ("8", "environment")
    assert shown["strategy.form"] == ('"simultaneous"', "file")
    assert shown["strategy.beta"] == ("3.0", "default")
    assert shown["cells.1.devices"] == ('["board-3"]', "file")
    assert shown["broker"] == ("none", "default")


KEY = "c0ffee" * 10 + "0123"  # a canary of the right form
CREDENTIALS = f"""
id = "board-1"
site = "lab"
username = "board-1"
password = "canary"
key = "{KEY}"
cell_key = "{KEY[::-1]}"
psk = "{KEY.upper()}"
"""
PARTNER_CREDENTIALS = f"""
id = "phone-1"
site = "lab"
key = "{KEY}"

[[cell_keys]]
id = "board-1"
key = "{KEY[::-1]}"
"""


def is_shown(text: str) -> bool:
    """Whether a part of a secret stands in a text."""
    return any(part in text.lower() for part in ("canary", "c0ffee", "eeff0c"))


@pytest.mark.parametrize(("kind", "text"), [(Credentials, CREDENTIALS), (PartnerCredentials, PARTNER_CREDENTIALS)])
def test_a_secret_is_in_no_listing_no_repr_and_no_error(tmp_path, written, kind, text):
    path = tmp_path / "credentials.toml"
    write_private(path, text)
    loaded = load_with_origins(kind, path)
    shown = repr(loaded.config) + "".join(line.value for line in loaded.effective())
    assert not is_shown(shown)
    wrongs = [
        text.replace("password", "passwrod"),
        text.replace('"canary"', '["canary"]'),
        text.replace("c0ffee", "g0ffee"),
        text.replace("c0ffee", "c0ffeee"),
        text.replace('key = "', 'key = ["').replace("0123", '0123"]#'),
        text.replace("[[cell_keys]]", "[cell_keys]"),
        text.replace("[[cell_keys]]", f'cell_keys = "{KEY}"\n[x]'),
        text.replace("id =", "id = {name = 'canary'} #"),
        text + '[[cell_keys]]\nid = "board-1"\nkey = "' + KEY + '"\n',
    ]
    for wrong in wrongs:
        if wrong != text:
            assert not is_shown(refusal(written, kind, wrong).replace("'canary'", "")), wrong


def test_keys_are_32_bytes_and_a_partner_finds_the_cell_key_of_a_device(written):
    device = written(Credentials, CREDENTIALS)
    partner = written(PartnerCredentials, PARTNER_CREDENTIALS)
    assert device.key_bytes == partner.key_bytes == bytes.fromhex(KEY)
    assert device.cell_key_bytes == partner.cell_key("board-1") == bytes.fromhex(KEY[::-1])
    assert partner.cell_key("board-2") is None
    old = written(Credentials, "\n".join(CREDENTIALS.splitlines()[:5]))
    assert (old.key_bytes, old.cell_key_bytes, old.psk) == (None, None, None)
    message = refusal(written, Credentials, CREDENTIALS.replace("c0ffee", "g0ffee"))
    assert "file.toml: key: found '(hidden)', expected 64 hexadecimal digits" in message


def test_a_file_with_secrets_that_others_may_read_is_refused_with_path_and_mode(tmp_path):
    path = tmp_path / "credentials.toml"
    for kind, text in ((Credentials, CREDENTIALS), (PartnerCredentials, PARTNER_CREDENTIALS)):
        for mode in (0o640, 0o604, 0o610, 0o666):
            write_private(path, text)
            path.chmod(mode)
            with pytest.raises(ConfigError, match=rf"credentials.toml: holds secrets and has mode {mode:04o}") as caught:
                load(kind, path)
            assert caught.value.exit_code == 2
            assert not is_shown(str(caught.value))
    broker = BrokerConfig("mqtts://host", "me", path)
    with pytest.raises(ConfigError, match="mode 0666"):
        broker.password()
    path.chmod(0o400)
    assert load(PartnerCredentials, path).id == "phone-1"


@pytest.mark.parametrize("host", ["broker.lan", "192.168.1.2", "0.0.0.0", "127.evil.example", "localhost.example"])
def test_plain_text_beyond_loopback_is_refused_unless_it_is_spelled_out(tmp_path, written, host):
    url = f"mqtt://{host}:1883"
    with pytest.raises(ConfigError, match="plain text beyond loopback; expected mqtts://, or is_insecure = true"):
        BrokerConfig(url, "me", tmp_path)
    assert is_plain_text(BrokerConfig(url, "me", tmp_path, is_insecure=True).url)
    listening = COORDINATOR.replace("127.0.0.1", host)
    message = refusal(written, CoordinatorConfig, listening)
    assert f"file.toml: listen tcp://{host}:7310: plain text beyond loopback; expected security.is_insecure = true" in message
    assert written(CoordinatorConfig, listening + "[security]\nis_insecure = true\n").listen == f"tcp://{host}:7310"
    partner = PARTNER[: PARTNER.index("[broker]")] + f'coordinator = "tcp://{host}:1"\n'
    assert "is_insecure = true" in refusal(written, PartnerConfig, partner)
    assert written(PartnerConfig, partner + "is_insecure = true\n").coordinator == f"tcp://{host}:1"


@pytest.mark.parametrize("url", ["mqtt://127.0.0.1:1883", "mqtt://127.9.9.9", "mqtt://localhost:1", "mqtts://broker.lan:8883"])
def test_loopback_and_tls_need_no_such_word(tmp_path, url):
    assert not is_plain_text(BrokerConfig(url, "me", tmp_path).url)


def test_a_registry_stands_for_the_cells(written, tmp_path):
    text = COORDINATOR[: COORDINATOR.index("[[cells]]")]
    assert "a registry" in refusal(written, CoordinatorConfig, text)
    config = written(CoordinatorConfig, text + '[security]\nregistry = "fleet"\n')
    assert config.security.registry == tmp_path / "fleet"
    assert config.cells == ()


def test_a_password_written_into_a_broker_table_is_refused_and_not_repeated(written):
    message = refusal(written, PartnerConfig, PARTNER.replace('password_file = "phone-1.password"', 'password = "canary"'))
    assert "'password'" in message
    assert "canary" not in message


def test_a_password_comes_from_the_file_or_the_environment_by_name(tmp_path):
    broker = BrokerConfig("mqtts://host", "me", password_environment="MY_PASSWORD")
    assert broker.password({"MY_PASSWORD": "canary"}) == "canary"
    with pytest.raises(ConfigError, match="MY_PASSWORD"):
        broker.password({})
    with pytest.raises(ConfigError, match="nowhere"):
        BrokerConfig("mqtts://host", "me", tmp_path / "nowhere").password()
    write_private(tmp_path / "empty", "\n")
    with pytest.raises(ConfigError, match="empty"):
        BrokerConfig("mqtts://host", "me", tmp_path / "empty").password()
    with pytest.raises(ConfigError, match="exactly one"):
        BrokerConfig("mqtts://host", "me")
    with pytest.raises(ConfigError, match="mqtts"):
        BrokerConfig("http://host", "me", tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (('port = "/dev/serial/by-id/x"\n', ""), "port"),
        (('id = "board-1"\n', 'id = "board-1"\nport = "/dev/x"\n'), "port"),
        (('credentials_file = "board-2.toml"\n', ""), "credentials_file"),
        (('id = "board-1"', 'id = "board-2"'), "more than once"),
        (('"package.module:build"', '"package.module"'), "package.module:function"),
        (('site = "lab"', 'site = "lab"\ncoordinator = "tcp://h:1"'), "exactly one"),
        (('link = "serial"', 'link = "radio"'), "'mqtt', 'serial'"),
    ],
)
def test_a_partner_that_could_not_work_is_refused_at_once(written, change, part):
    assert change[0] in PARTNER
    assert part in refusal(written, PartnerConfig, PARTNER.replace(*change, 1))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(CoordinatorConfig, tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml"):
        load(CoordinatorConfig, tmp_path / "latin.toml")


def test_tables_made_in_code_keep_the_same_rules():
    with pytest.raises(BadValueError, match="epochs"):
        StrategyConfig(epochs=33)
    with pytest.raises(BadValueError, match="devices"):
        CellConfig("one", ("Board",))


def test_the_bounds_of_a_strategy_are_those_of_the_wire_schema():
    factors = {"alpha": 1000, "beta": 1000, "gamma": 1000, "gain": 1000, "learning_rate": 10**6, "momentum": 10**6}
    names = {1000: "_milli", 10**6: "_micro"}
    for name in ("alpha", "beta", "gamma", "gamma_order", "gain", "epochs", "batch", "learning_rate", "momentum", "max_send"):
        (bounds,) = (rule for rule in rules_of(StrategyConfig)[name] if isinstance(rule, Bounds))
        factor = factors.get(name, 1)
        field = FIELDS[name + names.get(factor, "")]
        high = bounds.high * factor - (1 if bounds.is_high_open else 0)
        assert (bounds.low * factor, high) == (field.low, field.high), name
    assert MAX_IDENTIFIER_BYTES == LIMIT_IDENTIFIER


def test_masked_sums_and_a_goal_that_closes_rounds_early_are_refused_together():
    secure = StrategyConfig(aggregation="mean", secure_sum=SecureSumConfig("street", 0.5))
    parts = {
        "run": RunConfig("s", "r", Path("state"), Path("model")),
        "cells": (CellConfig("a", ("d",)),),
        "listen": "tcp://127.0.0.1:0",
    }
    assert CoordinatorConfig(strategy=secure, **parts).strategy.secure_sum.keys_fraction == 0.7
    with pytest.raises(ConfigError, match="leave goal_count out"):
        CoordinatorConfig(strategy=secure, windows=WindowsConfig(goal_count=8), **parts)
    for wrong in ({"clip_norm": 0.0}, {"keys_fraction": 1.0}, {"shares_fraction": 0.0}, {"group": "The Street"}):
        with pytest.raises(ConfigError):
            SecureSumConfig(**({"group": "street", "clip_norm": 0.5} | wrong))
