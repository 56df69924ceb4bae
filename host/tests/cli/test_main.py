# SPDX-License-Identifier: Apache-2.0
"""The command itself: help, version, exit codes, one-line errors."""

import errno
import io
import os
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

import fedmote
from fedmote import cli
from fedmote.cli.table import write_json, write_table
from fedmote.errors import ConfigError, DiskFullError, RoundError, TransportError

CODE = """
import sys
from fedmote.cli import main
code = main({arguments})
sys.stderr.write(str("torch" in sys.modules))
sys.exit(code)
"""


def run(*arguments):
    return subprocess.run([sys.executable, "-c", CODE.format(arguments=list(arguments))], capture_output=True, text=True)


@pytest.fixture
def verb(monkeypatch, tmp_path):
    """Makes `fedmote example` raise."""

    def make(error=None, summary="an example"):
        (tmp_path / "example_verb.py").write_text(
            f"SUMMARY = {summary!r}\nEXAMPLES = 'fedmote example'\nERROR = None\n"
            "def add_arguments(parser): parser.add_argument('--x')\n"
            "def run(options):\n    if ERROR is not None: raise ERROR\n    return 7\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("example_verb", None)
        module = __import__("example_verb")
        module.ERROR = error
        point = EntryPoint("example", "example_verb", cli.GROUP)
        monkeypatch.setattr(cli, "entry_points", lambda group: [point])

    return make


def test_version_is_printed():
    done = run("--version")
    assert f"fedmote {fedmote.__version__}" in done.stdout
    assert done.returncode == 0


def test_help_lists_the_verbs_without_importing_torch():
    done = run("--help")
    assert done.returncode == 0
    assert "goes on where it stopped" in done.stdout


def test_rounds_and_checkpoint_do_not_import_torch(tmp_path):
    for verb in ("rounds", "checkpoint"):
        done = run(verb, "list", "--state", str(tmp_path))
        assert done.returncode == 2
        assert done.stderr.endswith("False")
        assert "no run is kept here" in done.stderr


@pytest.mark.parametrize("name", sorted(point.name for point in entry_points(group=cli.GROUP)))
def test_help_of_every_verb_ends_with_examples(name, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([name, "--help"])
    assert done.value.code == 0
    assert f"\n  fedmote {name} " in capsys.readouterr().out


def test_reader_that_goes_away_is_no_success(verb, monkeypatch):
    verb(BrokenPipeError())
    monkeypatch.setattr(os, "dup2", lambda *files: None)
    assert cli.main(["example"]) == 1


def test_nothing_asked_is_usage():
    assert run().returncode == 2


def test_unknown_verb_is_usage_and_names_those_there_are():
    done = run("fly")
    assert done.returncode == 2
    assert "no verb 'fly'" in done.stderr
    assert "serve" in done.stderr


def test_result_of_the_verb_is_the_exit_code(verb):
    verb()
    assert cli.main(["example", "--x", "1"]) == 7


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a\nb"), 2),
        (RoundError("c"), 1),
        (TransportError("d"), 3),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "full"), 5),
        (DiskFullError("f"), 5),
        (OSError(errno.EIO, "e"), 4),
        (ValueError("e"), 4),
    ],
)
def test_errors_become_one_line_and_their_class_exit_code(verb, capsys, error, code):
    verb(error)
    assert cli.main(["example"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if code == 130 else 1)
    assert all(line.startswith("fedmote: ") for line in lines)
    if code == 4:
        assert "our bug" in lines[0]
        assert "example_verb.py" in lines[0]


def test_termination_ends_a_verb_as_an_interrupt_does(verb, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    verb()
    monkeypatch.setattr(sys.modules["example_verb"], "run", lambda options: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["example"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_summary_is_read_without_running_the_module(verb, capsys):
    verb(summary="read from the source")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "read from the source" in capsys.readouterr().out


def test_missing_configuration_is_named(tmp_path):
    done = run("serve", str(tmp_path / "absent.toml"))
    assert done.returncode == 2
    assert "absent.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_table_aligns_numbers_right_and_shows_nothing_as_a_dash():
    out = io.StringIO()
    write_table(("name", "value"), [("a", 1.5), ("long", None)], out)
    assert out.getvalue() == "name   value\na     1.5000\nlong       -\n"
    out = io.StringIO()
    write_json({"b": 1, "a": None}, out)
    assert out.getvalue() == '{"b": 1, "a": null}\n'
