# SPDX-License-Identifier: Apache-2.0
"""Signatures of packages: what the host signs a device takes, and nothing else; it refuses before it erases."""

import ctypes
import functools
import hashlib
from dataclasses import replace

import pytest

from fedmote.package.signature import SigningKey, Statement
from fedmote.wire.schema import Opcode, Status
from fedmote_hil.build import crypto_sources
from firmware_tests.device_bench import Device, library
from firmware_tests.native import SDK, compile_c
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, build, data, finish, plan_for, refusals, undisturbed, until_refusal
from firmware_tests.scripted_peers import Peers

STATEMENT = Statement(hashlib.blake2b(b"package", digest_size=32).digest(), 4096, 7, 0b1110)


@functools.cache
def monocypher() -> ctypes.CDLL:
    folder = crypto_sources()
    if folder is None:
        pytest.skip("Monocypher is not here: python -m fedmote_hil.crypto")
    port = SDK / "ports" / "monocypher"
    flags = ["-O1", "-shared", "-fPIC", f"-I{folder}", f"-I{port}", "-Wno-error"]
    return ctypes.CDLL(str(compile_c("libmonocypher.so", [port / "monocypher_port.c", folder / "monocypher.c"], flags)))


def is_taken(signature: bytes, verify_key: bytes, message: bytes) -> bool:
    return monocypher().monocypher_verify(signature, verify_key, message, ctypes.c_uint32(len(message))) == 0


def key_of(seed: int) -> SigningKey:
    return SigningKey(hashlib.blake2b(bytes([seed]), digest_size=32).digest())


@pytest.mark.parametrize("seed", range(20))
def test_the_device_takes_what_the_host_signs(seed):
    key, statement = key_of(seed), replace(STATEMENT, serial=seed)
    assert is_taken(key.sign(statement), key.verify_key, statement.to_bytes())
    assert key.sign(statement) == key.sign(statement), "a signature is a function of key and statement"


def test_monocypher_derives_the_same_key_and_signature():
    key, message = key_of(1), STATEMENT.to_bytes()
    secret, public, signature = (ctypes.create_string_buffer(size) for size in (64, 32, 64))
    monocypher().crypto_eddsa_key_pair(secret, public, ctypes.create_string_buffer(key.seed, 32))
    monocypher().crypto_eddsa_sign(signature, secret, message, ctypes.c_size_t(len(message)))
    assert key.verify_key == public.raw
    assert key.sign(STATEMENT) == signature.raw


def test_a_change_of_any_bit_is_refused():
    key, message = key_of(2), STATEMENT.to_bytes()
    signature = key.sign(STATEMENT)
    for index in range(64):
        changed = bytearray(signature)
        changed[index] ^= 1 << index % 8
        assert not is_taken(bytes(changed), key.verify_key, message), f"byte {index} of the signature"
    for index in range(len(message)):
        changed = bytearray(message)
        changed[index] ^= 1 << index % 8
        assert not is_taken(signature, key.verify_key, bytes(changed)), f"byte {index} of the statement"
    assert not is_taken(signature, key_of(3).verify_key, message), "another key"


# ---- a device with a verify key --------------------------------------------------------------------------------------

KEY = key_of(9)


def signed(package: bytes, serial: int, key: SigningKey = KEY, **changes: int | bytes) -> dict[str, int | bytes]:
    """Fields of a plan for a package, signed; `changes` come after the signature."""
    statement = Statement.of(package, serial)
    fields = {"serial": serial, "operators": statement.operators, "signature": key.sign(statement)}
    return plan_for(package, **fields) | changes


def device() -> Device:
    verify = ctypes.cast(monocypher().monocypher_verify, ctypes.c_void_p).value
    return Device(*data(), verify_key=KEY.verify_key, verify=verify)


def test_a_signed_package_is_installed_and_a_round_done_with_it():
    board, peers = device(), Peers(signed(PACKAGE, 100), {MODEL_HANDLE: PACKAGE})
    finish(board, peers)
    assert peers.updates[1][0] == undisturbed()[0]
    assert board.info.generation == 100, "the serial of a signed package is its generation"


def assert_refused(board: Device, plan: dict[str, int | bytes], package: bytes, status: Status) -> None:
    """The plan is refused in the name of its round, and nothing is erased or asked for."""
    operations, peers = len(board.flash.log), Peers(plan, {MODEL_HANDLE: package})
    until_refusal(board, peers)
    assert [fields["status"] for fields in refusals(peers)] == [status]
    assert refusals(peers)[0]["round"] == 1
    assert len(board.flash.log) == operations, "the flash was touched"
    assert not [packet for packet in peers.heard if packet.kind.name == "GET"]


@pytest.mark.parametrize("field", ["serial", "operators", "signature"])
def test_a_plan_that_lacks_a_field_of_the_signature_is_refused(field):
    plan = signed(PACKAGE, 100)
    del plan[field]
    assert_refused(device(), plan, PACKAGE, Status.PACKAGE_SIGNATURE)


@pytest.mark.parametrize(
    "changes",
    [{"serial": 101}, {"operators": 0}, {"model_size": len(PACKAGE) - 16}, {"model_hash": bytes(32)}, {"signature": bytes(64)}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_plan_that_was_changed_after_it_was_signed_is_refused(changes):
    assert_refused(device(), signed(PACKAGE, 100) | changes, PACKAGE, Status.PACKAGE_SIGNATURE)


def test_a_package_that_somebody_else_signed_is_refused():
    assert_refused(device(), signed(PACKAGE, 100, key_of(8)), PACKAGE, Status.PACKAGE_SIGNATURE)


def test_operators_that_the_firmware_does_not_have_are_refused_before_the_fetch():
    statement = Statement(PACKAGE[16:48], len(PACKAGE), 100, 1 << Opcode.FULLY_CONNECTED | 1 << 31)
    plan = plan_for(PACKAGE, serial=100, operators=statement.operators, signature=KEY.sign(statement))
    assert_refused(device(), plan, PACKAGE, Status.PACKAGE_OPERATOR)


def do_round(board: Device, number: int, package: bytes, serial: int) -> None:
    peers, done = Peers(signed(package, serial), {MODEL_HANDLE: package}, round=number, rounds=number), board.info.rounds_done
    peers.run(board, lambda: board.info.rounds_done == done + 1)


def test_no_package_is_older_than_the_one_before_it():
    board, newer = device(), build(1)
    do_round(board, 1, newer, 100)
    board.boot()
    assert_refused(board, signed(PACKAGE, 99), PACKAGE, Status.PACKAGE_OLD)
    do_round(board, 2, newer, 99)  # it is there: nothing is put back
    assert board.info.generation == 100
    do_round(board, 3, PACKAGE, 101)
    assert board.info.generation == 101


def test_a_device_with_a_verify_key_does_not_start_without_a_way_to_use_it():
    with pytest.raises(AssertionError, match=str(-int(Status.ARGUMENT))):
        Device(*data(), verify_key=KEY.verify_key)
    assert library() is not None


def test_a_device_without_a_verify_key_takes_packages_whoever_signed_them():
    board, peers = Device(*data()), Peers(signed(PACKAGE, 100, key_of(8)), {MODEL_HANDLE: PACKAGE})
    finish(board, peers)
    assert peers.updates[1][0] == undisturbed()[0]


def power_cycle(board: Device) -> None:
    board.rx.clear()
    board.tx.clear()
    board.boot()


def test_a_signed_package_that_gave_way_while_on_trial_is_tried_again_and_the_one_before_does_not_come_back():
    newer = build(1)
    board = device()
    finish(board, Peers(signed(PACKAGE, 5), {MODEL_HANDLE: PACKAGE}))
    power_cycle(board)
    peers = Peers(signed(newer, 5), {MODEL_HANDLE: newer})
    peers.run(board, lambda: board.state == "train")
    power_cycle(board)
    assert board.info.generation == 6, "higher than the serial: two packages have the same one"
    finish(board, Peers(signed(newer, 5), {}))
    power_cycle(board)
    assert_refused(board, signed(PACKAGE, 5), PACKAGE, Status.PACKAGE_OLD)  # although the other slot still has it
