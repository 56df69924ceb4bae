# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import struct
import zlib
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmote.cli import package as verb
from fedmote.errors import ConfigError, PackageError
from fedmote.package import container
from fedmote.package.difference import HEADER, DifferenceHeader, apply_difference, make_difference
from fedmote.package.file import Package
from fedmote.package.partition import push
from fedmote.wire.schema import Section, Status

VECTORS = Path(__file__).resolve().parents[3] / "device_sdk" / "protocol" / "vectors" / "differences.json"
ROWS = json.loads(VECTORS.read_text(encoding="utf-8"))


def status_of(name: str) -> Status:
    return Status[name.upper().replace("-", "_")]


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_a_difference_vector_is_applied_or_refused_and_good_ones_are_what_the_host_makes(row):
    base, difference = bytes.fromhex(row["base"]), bytes.fromhex(row["difference"])
    if row["status"] != "ok":
        with pytest.raises(PackageError) as caught:
            apply_difference(base, difference)
        assert caught.value.status is status_of(row["status"])
        return
    target = bytes.fromhex(row["target"])
    assert apply_difference(base, difference) == target
    assert make_difference(base, target) == difference


# ---- rounds of training ----------------------------------------------------------------------------------------------


def rounds_of(package, tensors, steps, version=1):
    """Packages whose weights moved by a little more in every round; None keeps the ranges."""
    rng = np.random.default_rng(3)
    made = [push(package, tensors, None, version)]
    for number in range(steps):
        tensors = {
            name: values if name.endswith("running_var") else values + rng.normal(0, 0.02, values.shape).astype(np.float32)
            for name, values in tensors.items()
        }
        made.append(push(package, tensors, None, version + number + 1))
    return [one.device_form() for one in made]


def test_each_round_of_a_run_is_made_from_the_round_before_and_is_smaller(packages, checkpoint):
    for package in packages.values():
        forms = rounds_of(package, checkpoint(1), 6)
        device = forms[0]
        for old, new in itertools.pairwise(forms):
            difference = make_difference(old, new)
            assert len(difference) < 0.8 * len(new)
            device = apply_difference(device, difference)
            assert device == new
        assert Package.read(device).device_form() == forms[-1]


def test_a_manifest_that_grows_shifts_nothing_for_the_code(packages, checkpoint):
    """A larger version takes more bytes in CBOR; where that moves the sections, each is still held against its own."""
    old, longer = (push(packages["posix"], checkpoint(1), None, version).device_form() for version in (1, 10**9))
    assert len(old) < len(longer)
    assert len(make_difference(old, longer)) < len(longer) // 4  # nearly all of it would be new at the same offsets


def test_the_same_arguments_give_the_same_bytes(packages, checkpoint):
    old, new = rounds_of(packages["posix"], checkpoint(1), 1)
    assert make_difference(old, new) == make_difference(bytes(bytearray(old)), bytes(bytearray(new)))


def test_bytes_behind_a_package_in_its_slot_do_not_count(packages, checkpoint):
    old, new = rounds_of(packages["posix"], checkpoint(1), 1)
    assert make_difference(old + b"\xff" * 100, new) == make_difference(old, new)
    assert apply_difference(old + b"\xff" * 100, make_difference(old, new)) == new


# ---- random pairs and mutants ----------------------------------------------------------------------------------------

sections = st.fixed_dictionaries({kind: st.binary(min_size=0, max_size=120) for kind in container.REQUIRED})
extra = st.dictionaries(st.sampled_from([Section.TRAINING, Section.SIGNATURE]), st.binary(max_size=200), max_size=2)


def packed(required, more):
    return container.join_sections({int(kind): data for kind, data in (required | more).items()})


@given(sections, extra, sections, extra)
def test_any_package_is_made_from_any_other(old, old_extra, new, new_extra):
    base, target = packed(old, old_extra), packed(new, new_extra)
    difference = make_difference(base, target)
    assert apply_difference(base, difference) == target
    assert len(difference) < HEADER.size + 1.3 * len(target) + 100


@given(sections, st.integers(-3, 3), st.data())
def test_a_mutant_makes_the_promised_package_or_is_refused(content, step, data):
    base = packed(content, {})
    moved = {kind: bytes(byte + step & 0xFF for byte in part) for kind, part in content.items()}
    target = packed(moved, {})
    mutant = bytearray(make_difference(base, target))
    at = data.draw(st.integers(0, len(mutant) - 1))
    mutant[at] ^= data.draw(st.integers(1, 255))
    mutant = mutant[: data.draw(st.sampled_from([len(mutant), len(mutant) - 1, len(mutant) // 2]))]
    if len(mutant) >= HEADER.size:  # so that more than the checksum is tried
        if data.draw(st.booleans()):
            mutant[8:12] = struct.pack("<I", len(mutant))
        mutant[12:16] = struct.pack("<I", zlib.crc32(mutant[16:], zlib.crc32(mutant[:12])))
    try:
        assert apply_difference(base, bytes(mutant)) == target
    except PackageError as error:
        assert error.status != Status.OK


def test_a_hostile_size_takes_neither_memory_nor_time(packages, checkpoint):
    old, new = rounds_of(packages["posix"], checkpoint(1), 1)
    difference = bytearray(make_difference(old, new))
    difference[80:84] = struct.pack("<I", 0xFFFFFFF0)
    difference[12:16] = struct.pack("<I", zlib.crc32(difference[16:], zlib.crc32(difference[:12])))
    with pytest.raises(PackageError):
        apply_difference(old, bytes(difference))


@pytest.mark.parametrize("bad", [b"", b"FMP1", bytes(200)])
def test_what_is_no_package_is_refused_on_either_side(packages, bad):
    good = packages["posix"].device_form()
    for base, target in ((bad, good), (good, bad)):
        with pytest.raises(PackageError):
            make_difference(base, target)


# ---- the command -----------------------------------------------------------------------------------------------------


def fedmote_package(*arguments):
    parser = ArgumentParser("fedmote package")
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def files(tmp_path, packages, checkpoint):
    """Two versions of a package as a conversion writes them, sections of the host included."""
    old = packages["posix"]
    new = push(old, {name: values * np.float32(1.01) for name, values in checkpoint(1).items()}, None, 2)
    for name, package in (("old.fmp", old), ("new.fmp", new)):
        (tmp_path / name).write_bytes(package.to_bytes())
    return tmp_path, old.device_form(), new.device_form()


def test_diff_and_patch_say_their_sizes(files, capsys):
    directory, old, new = files
    difference, made = directory / "x.fmd", directory / "made.fmp"
    assert fedmote_package("diff", directory / "old.fmp", directory / "new.fmp", "-o", difference, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["old_bytes"], said["new_bytes"], said["difference_bytes"]) == (len(old), len(new), difference.stat().st_size)
    assert said["ratio"] == difference.stat().st_size / len(new)
    assert (said["old_hash"], said["new_hash"]) == (old[16:48].hex(), new[16:48].hex())
    assert fedmote_package("patch", directory / "old.fmp", difference, "-o", made, "--json") == 0
    assert json.loads(capsys.readouterr().out)["package"] == str(made)
    assert made.read_bytes() == new


def test_diff_prints_a_table(files, capsys):
    directory, old, _ = files
    assert fedmote_package("diff", directory / "old.fmp", directory / "new.fmp", "-o", directory / "x.fmd") == 0
    out = capsys.readouterr().out
    assert f"old device form  {len(old):,}" in out
    assert "% of the new package" in out


def test_patch_refuses_and_leaves_nothing_behind(files):
    directory, _, _ = files
    fedmote_package("diff", directory / "old.fmp", directory / "new.fmp", "-o", directory / "x.fmd")
    whole = (directory / "x.fmd").read_bytes()
    cases = {
        "a difference of another base": ("new.fmp", whole, Status.DIFFERENCE_BASE),
        "half of it": ("old.fmp", whole[: len(whole) // 2], Status.DIFFERENCE),
        "a changed byte": ("old.fmp", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], Status.CRC),
        "a package": ("old.fmp", (directory / "new.fmp").read_bytes(), Status.DIFFERENCE),
    }
    for name, (base, content, status) in cases.items():
        (directory / "bad.fmd").write_bytes(content)
        with pytest.raises(PackageError, match=r"bad\.fmd: ") as caught:
            fedmote_package("patch", directory / base, directory / "bad.fmd", "-o", directory / "made.fmp")
        assert caught.value.status is status, name
        assert "\n" not in str(caught.value)
        assert not (directory / "made.fmp").exists()
    with pytest.raises(ConfigError, match=r"none\.fmd"):
        fedmote_package("patch", directory / "old.fmp", directory / "none.fmd", "-o", directory / "made.fmp")


def test_the_header_says_what_is_what(files):
    _, old, new = files
    header = DifferenceHeader.read(make_difference(old, new))
    assert (header.base_hash, header.base_size) == (old[16:48], len(old))
    assert (header.target_hash, header.target_size) == (new[16:48], len(new))
