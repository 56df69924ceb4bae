# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import struct
import zlib
from dataclasses import replace

import cbor2
import numpy as np
import pytest

from fedmote.errors import ConversionError, DoesNotFitError, PackageError
from fedmote.package import container
from fedmote.package.boards import Board
from fedmote.package.budget import check_cost, layout
from fedmote.package.file import Package, build_package, check_fit
from fedmote.package.graph import Activations, BatchNormRef, Graph, HeadLayer, Op, OpKind, WeightRef
from fedmote.package.head import HeadShape
from fedmote.package.host_manifest import HostManifest
from fedmote.package.specimen import random_graph, random_int8_graph
from fedmote.wire.schema import Section, Status


@pytest.fixture(scope="module")
def package(packages):
    return packages["posix"]


def status_of(data: bytes) -> Status | None:
    with pytest.raises(PackageError) as caught:
        Package.read(data)
    return caught.value.status


def with_section(package, kind, data):
    return container.join_sections(package.sections | {int(kind): data})


def test_package_read_back_is_the_same(package, tmp_path):
    path = tmp_path / "p.fmp"
    path.write_bytes(package.to_bytes())
    again = Package.read(path)
    assert again.to_bytes() == package.to_bytes() == Package.read(package.to_bytes() + b"\xff" * 32).to_bytes()
    assert (again.hash, again.manifest, again.host) == (package.hash, package.manifest, package.host)
    weights, bias = again.head[0].weights, again.head[0].bias
    assert weights.shape == (10, 16)
    assert bias.shape == (10,)


def test_header_is_what_the_specification_says(package):
    data = package.device_form()
    assert data[:4] == b"FMP1"
    assert struct.unpack_from("<HHI", data, 4) == (2, 4, len(data))
    assert struct.unpack_from("<I", data, 12)[0] == zlib.crc32(data[:12] + data[16:])
    assert data[16:48] == package.hash == hashlib.blake2b(data[:12] + data[48:], digest_size=32).digest()
    assert len(data) % 16 == 0
    table = [struct.unpack_from("<4I", data, 48 + 16 * i) for i in range(4)]
    assert [entry[0] for entry in table] == [Section.MANIFEST, Section.PLAN, Section.WEIGHTS, Section.HEAD]
    assert all(offset % 16 == 0 and reserved == 0 for _, offset, _, reserved in table)


def test_device_form_is_the_package_without_the_sections_of_the_host(package):
    device = Package.read(package.device_form())
    assert device.is_device_form
    assert device.to_bytes() == package.device_form() == device.device_form()
    assert device.hash == package.hash
    for what in ("graph", "host", "encoder_tflite"):
        with pytest.raises(PackageError, match="device form"):
            getattr(device, what)


def test_package_truncated_at_any_length_is_refused_with_a_status(package):
    for data in (package.to_bytes(), package.device_form()):
        for length in range(len(data)):
            assert status_of(data[:length]) is Status.PACKAGE_SIZE


def test_package_with_any_byte_flipped_is_refused_with_a_status(package):
    data = package.to_bytes()
    expected = {0: Status.PACKAGE_MAGIC, 4: Status.PACKAGE_VERSION}
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        status = status_of(bytes(damaged))
        wanted = expected.get(position // 2 * 2 if position < 6 else -1, Status.PACKAGE_CRC)
        if position < 4:
            wanted = Status.PACKAGE_MAGIC
        elif 8 <= position < 12:
            wanted = Status.PACKAGE_SIZE
        elif position < 12 and position >= 6:
            wanted = Status.PACKAGE_CRC
        assert status is wanted, f"byte {position}: {status}"


def test_hash_that_is_wrong_behind_a_right_checksum_is_found(package):
    data = bytearray(package.to_bytes())
    data[20] ^= 1
    data[12:16] = struct.pack("<I", zlib.crc32(data[:12] + data[16:]))
    assert status_of(bytes(data)) is Status.PACKAGE_HASH


def test_every_word_of_the_plan_is_checked_or_known_to_be_harmless(package):
    """Sealed anew with each word of the plan changed: refused, because the host compiles encoder.tflite again and compares."""
    plan = package.sections[Section.PLAN]
    refusals = (Status.PACKAGE_BOUNDS, Status.PACKAGE_OPERATOR, Status.PACKAGE_ARRANGEMENT, Status.PACKAGE_HEAD)
    for position in range(0, len(plan), 4):
        changed = bytearray(plan)
        changed[position : position + 4] = struct.pack("<I", struct.unpack_from("<I", plan, position)[0] ^ 0x80000001)
        status = status_of(with_section(package, Section.PLAN, bytes(changed)))
        assert status in refusals, f"word {position // 4}"


@pytest.mark.parametrize("kind", [Section.MANIFEST, Section.PLAN, Section.WEIGHTS, Section.HEAD])
def test_missing_section_is_named(package, kind):
    sections = {key: data for key, data in package.sections.items() if key != kind}
    with pytest.raises(PackageError, match=kind.name.lower()) as caught:
        Package.read(container.join_sections(sections))
    assert caught.value.status is Status.PACKAGE_SECTION


@pytest.mark.parametrize("entry", range(4))
@pytest.mark.parametrize(("word", "value"), [(1, 8), (1, 2**32 - 16), (2, 2**31), (3, 1), (0, 7), (1, 16)])
def test_misplaced_sections_are_refused(package, entry, word, value):
    rest = bytearray(package.device_form()[48:])
    position = 16 * entry + 4 * word
    rest[position : position + 4] = struct.pack("<I", value)
    assert status_of(container.seal(bytes(rest), 4)) is Status.PACKAGE_SECTION


@pytest.mark.parametrize(
    ("key", "value"),
    [("macs", 1), ("encoder_bytes", 0), ("head", [[16, 11]]), ("input", {"shape": [1, 8, 8, 2]}), ("features", None),
     ("model", "other"), ("version", 9), ("board", "other"), ("tflite_hash", bytes(16))],
)  # fmt: skip
def test_manifest_that_lies_is_refused(package, key, value):
    manifest = cbor2.dumps(package.manifest | {key: value}, canonical=True)
    assert status_of(with_section(package, Section.MANIFEST, manifest)) is not None


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xa1", b"\x01", cbor2.dumps({"b": 1, "a": 2}), b"\xbb" + b"\xff" * 8, b"\x9b\x7f" + b"\xff" * 7]
)
def test_manifest_that_is_no_deterministic_map_is_refused(package, data):
    assert status_of(with_section(package, Section.MANIFEST, data)) is Status.PACKAGE_SECTION


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"format":2}', b"\xff\xfe", b"[" * 100000])
def test_malformed_host_manifest_is_refused(package, data):
    assert status_of(with_section(package, Section.HOST_MANIFEST, data)) is Status.PACKAGE_SECTION


def test_host_manifest_with_any_value_replaced_is_read_or_refused_but_breaks_nothing(package):
    content = json.loads(package.host.to_bytes())

    def variants(node, rebuild):
        for wrong in (None, -1, "?", [], {}, 1e300, True):
            yield rebuild(wrong)
        if isinstance(node, dict):
            for key in node:
                yield from variants(node[key], lambda v, key=key: rebuild(node | {key: v}))
                yield rebuild({other: value for other, value in node.items() if other != key})
        elif isinstance(node, list):
            for i in range(len(node)):
                yield from variants(node[i], lambda v, i=i: rebuild([*node[:i], v, *node[i + 1 :]]))

    count = refused = 0
    for variant in variants(content, lambda v: v):
        count += 1
        try:
            HostManifest.from_bytes(json.dumps(variant).encode())
        except PackageError:
            refused += 1
    print(f"{refused} of {count} refused")
    assert refused > count // 2


def test_host_manifest_read_back_is_the_same(package, template):
    assert HostManifest.from_bytes(package.host.to_bytes()) == package.host
    assert package.host.template == template
    assert HostManifest.from_bytes(package.host.to_bytes()).to_bytes() == package.host.to_bytes()


def test_host_manifest_keeps_every_field_of_every_operator(package):
    for seed in range(100):
        graph = random_graph(seed)
        ops = tuple(replace(op, weights=None, bias=None) for op in graph.ops)
        written = replace(package.host, template=replace(graph, ops=ops)).to_bytes()
        again = HostManifest.from_bytes(written)
        assert again.to_bytes() == written
        for one, two in zip(ops, again.template.ops, strict=True):
            for name, value in vars(one).items():
                np.testing.assert_array_equal(getattr(two, name), value, f"seed {seed}: {one.name}.{name}")


def test_host_manifest_keeps_every_field_of_a_weight_reference(package):
    norm = BatchNormRef(None, None, "mean", "variance", 1e-5)
    sources = (
        WeightRef("w", "b", (norm,), "depthwise2d", input_norm=(norm, norm)),
        WeightRef("w", None, layout="constant", axes=(3, 1, 2), order=(2, 0, 1)),
        WeightRef("mean", None, (norm,), "batch_norm", chw=(2, 3, 4)),
    )
    activations = {name: Activations(name, (1, 2, 2, 3)) for name in "xabc"}
    ops = [Op(OpKind.PAD, "op", ("x",), "x0", pad_value=-128)]
    activations["x0"] = Activations("x0", (1, 2, 2, 3))
    for source, name, made in zip(sources, ("x0", "a", "b"), "abc", strict=True):
        ops.append(Op(OpKind.CONV_2D, "op", (name,), made, source=source))
    template = Graph("x", "c", activations, tuple(ops))

    again = HostManifest.from_bytes(replace(package.host, template=template).to_bytes()).template

    assert again == template


def test_head_must_suit_the_encoder():
    graph = random_int8_graph(0)
    features = int(np.prod(graph.activations[graph.output].shape))
    good = HeadLayer("w", "b", features, 3)
    tensors = {"w": np.zeros((3, features), np.float32), "b": np.zeros(3, np.float32)}
    board = Board.load("posix")
    assert build_package(None, graph, [good], tensors, {}, board, "m", 1).outputs == 3
    with pytest.raises(PackageError) as caught:
        build_package(None, graph, [HeadLayer("w", "b", features + 1, 3)], tensors, {}, board, "m", 1)
    assert caught.value.status is Status.PACKAGE_HEAD
    with pytest.raises(PackageError) as caught:
        build_package(None, graph, [good, good], tensors, {}, board, "m", 1)
    assert caught.value.status is Status.PACKAGE_HEAD
    for wrong in ({"b": tensors["b"]}, tensors | {"w": np.zeros((4, features))}, tensors | {"b": np.array([0, np.nan, 0])}):
        with pytest.raises(ConversionError, match="head"):
            build_package(None, graph, [good], wrong, {}, board, "m", 1)


def test_arena_layout_equals_a_sum_by_hand(package):
    from dataclasses import replace

    header = replace(package.header, encoder_bytes=640, feature_offset=0, feature_count=16)
    regions = layout(10, 529, header, HeadShape(16, 0, 10), "float32")
    # link 2 * round16(657), encoder 640 with the scratch 40 behind the features, three times round16(680), samples
    # round16(120), cache 160
    assert regions.encoder == 2 * 672
    assert regions.scratch == regions.encoder + 16
    assert regions.head == regions.encoder + 640
    assert regions.head_base - regions.head == regions.velocity - regions.head_base == 688
    assert regions.samples - regions.velocity == 688
    assert regions.required == regions.cache == regions.samples + 128
    assert regions.total == regions.required + 160

    integers = layout(10, 529, header, HeadShape(16, 8, 10), "int16")
    # 226 parameters of 2 bytes, then of 4
    assert integers.head_base - integers.head == 464
    assert integers.velocity - integers.head_base == 912


def test_board_too_small_by_one_byte_is_refused_with_needed_and_available(package):
    from dataclasses import replace

    board = Board.load("stm32f405")
    check_fit(package, board)
    needs = package.cost_on(board)
    check_cost(replace(needs, slot_available=needs.slot_bytes, arena_available=needs.arena_bytes))
    for what, size in (("slot", needs.slot_bytes), ("arena", needs.arena_bytes)):
        with pytest.raises(DoesNotFitError) as caught:
            check_cost(replace(needs, **{f"{what}_available": size - 1}))
        assert (caught.value.what, caught.value.needed, caught.value.available) == (what, size, size - 1)
        assert caught.value.board == "stm32f405"


def test_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(PackageError, match=r"missing\.fmp"):
        Package.read(tmp_path / "missing.fmp")
