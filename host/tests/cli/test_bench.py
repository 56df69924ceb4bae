# SPDX-License-Identifier: Apache-2.0
"""`fedmote bench` offers what rooms have registered."""

import sys
from importlib.metadata import EntryPoint

import pytest

from fedmote import cli
from fedmote.cli import bench


@pytest.fixture
def subject(monkeypatch, tmp_path):
    """Registers the subject `example` of a module with this source."""

    def make(source):
        (tmp_path / "example_subject.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "example_subject", raising=False)
        points = {bench.GROUP: [EntryPoint("example", "example_subject:SUBJECT", bench.GROUP)]}
        points[cli.GROUP] = [EntryPoint("bench", "fedmote.cli.bench", cli.GROUP)]
        for module in (bench, cli):
            monkeypatch.setattr(module, "entry_points", lambda group: points[group])

    return make


SOURCE = """
from fedmote.cli.bench import Subject
SUBJECT = Subject(
    "an example", "examples: none", lambda parser: parser.add_argument("--code", type=int), lambda options: options.code
)
"""


def test_a_registered_subject_gets_its_arguments_and_its_result_is_the_exit_code(subject):
    subject(SOURCE)

    assert cli.main(["bench", "example", "--code", "1"]) == 1


def test_the_help_lists_subjects_and_each_has_its_own(subject, capsys):
    subject(SOURCE)

    for arguments, expected in ((["bench", "--help"], "an example"), (["bench", "example", "--help"], "examples: none")):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert expected in capsys.readouterr().out


def test_a_subject_whose_package_is_missing_is_listed_and_refused_when_asked_for(subject, capsys):
    subject("import a_package_that_nobody_has\n")

    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "needs a_package_that_nobody_has" in capsys.readouterr().out
    assert cli.main(["bench", "example"]) == 2
    assert "bench example needs a_package_that_nobody_has, which is not installed" in capsys.readouterr().err


def test_a_subject_that_is_not_there_is_usage(subject):
    subject(SOURCE)

    with pytest.raises(SystemExit) as done:
        cli.main(["bench", "other"])
    assert done.value.code == 2
