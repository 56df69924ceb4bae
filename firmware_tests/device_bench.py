# SPDX-License-Identifier: Apache-2.0
"""One device of the SDK on a bench: the C client in this process, every accident at a chosen moment.

The port's callbacks are Python: a virtual clock, a byte stream in memory, samples from arrays, and a flash that enforces
what real parts do (erase before write, aligned writes, each byte once) and that can lose power at any operation. Power loss is
`FlashModel.is_dead`: from then on no callback does anything, and the bench starts the device anew with the slots as they are.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
)
from nacl.exceptions import CryptoError

from firmware_tests.native import SDK, address_of, aligned, all_operators, compile_c, operator_sources

BODY_MAX = 201  # chunks of 160 bytes: a small package takes many of them
CHUNK = 160
SLOT_BYTES = 8192
IDLE, BUSY = 1, 2
PORT_ERROR = -200
CACHE = 2  # number of the cache region in the log of the flash
JOURNAL = 3  # number of the first region of the journal there
STATES = ("idle", "fetch", "encode", "select", "train", "report")

_u8p = ctypes.POINTER(ctypes.c_uint8)
_callbacks = {
    "now_ms": ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p),
    "random": ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p),
    "stream_read": ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32),
    "stream_write": ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32),
    "sample_count": ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p),
    "sample_read": ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32)
    ),
    "slot_bytes": ctypes.c_uint32,
    "slot_base": ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32),
    "slot_erase": ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32),
    "slot_write": ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32
    ),
    "hash": ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p
    ),
    "event": ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32),
}
_cache_callbacks = {
    "cache_bytes": ctypes.c_uint32,
    "cache_base": ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p),
    "cache_erase": ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p),
    "cache_write": ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32),
}
_journal_callbacks = {
    "journal_bytes": ctypes.c_uint32,
    "journal_base": _callbacks["slot_base"],
    "journal_erase": _callbacks["slot_erase"],
    "journal_write": _callbacks["slot_write"],
}


class Port(ctypes.Structure):
    """`struct fedmote_port`."""

    _fields_ = [
        ("context", ctypes.c_void_p),
        *_callbacks.items(),
        ("operators", ctypes.c_void_p),
        ("arithmetic", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        *_cache_callbacks.items(),
        ("patching", ctypes.c_void_p),
        ("journal", ctypes.c_void_p),
        *_journal_callbacks.items(),
        ("sealing", ctypes.c_void_p),
        ("crypto", ctypes.c_void_p),
        ("signing", ctypes.c_void_p),
        ("verify", ctypes.c_void_p),
        ("masking", ctypes.c_void_p),
        ("agree", ctypes.c_void_p),
    ]


class Crypto(ctypes.Structure):
    """`struct fedmote_crypto`, by another library than that of the boards."""

    _fields_ = [
        (name, ctypes.CFUNCTYPE(result, ctypes.c_void_p, ctypes.c_uint32, *4 * [ctypes.c_void_p], ctypes.c_uint32))
        for name, result in (("lock", None), ("unlock", ctypes.c_int32))
    ]


def _lock(text: int, size: int, tag: int, key: int, nonce: int, associated: int, associated_size: int) -> None:
    about = ctypes.string_at(associated, associated_size)
    plain, public, secret = ctypes.string_at(text, size), ctypes.string_at(nonce, 24), ctypes.string_at(key, 32)
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(plain, about, public, secret)
    ctypes.memmove(text, sealed[:-16], size)
    ctypes.memmove(tag, sealed[-16:], 16)


def _unlock(text: int, size: int, tag: int, key: int, nonce: int, associated: int, associated_size: int) -> int:
    about, sealed = ctypes.string_at(associated, associated_size), ctypes.string_at(text, size) + ctypes.string_at(tag, 16)
    try:
        plain = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, about, ctypes.string_at(nonce, 24), ctypes.string_at(key, 32))
    except CryptoError:
        return -1
    ctypes.memmove(text, plain, size)
    return 0


CRYPTO = Crypto(*(kind(call) for (_, kind), call in zip(Crypto._fields_, (_lock, _unlock), strict=True)))


def _agree(shared: int, secret: int, public: int) -> int:
    try:
        ctypes.memmove(shared, crypto_scalarmult(ctypes.string_at(secret, 32), ctypes.string_at(public, 32)), 32)
    except CryptoError:  # of a public key that is none
        return -1
    return 0


AGREE = ctypes.CFUNCTYPE(ctypes.c_int32, *3 * [ctypes.c_void_p])(_agree)


class Identity(ctypes.Structure):
    """`struct fedmote_identity`."""

    _fields_ = [
        ("id", ctypes.c_char_p), ("site", ctypes.c_char_p), ("board", ctypes.c_char_p), ("link", ctypes.c_void_p),
        ("username", ctypes.c_char_p), ("password", ctypes.c_char_p), ("keep_alive_s", ctypes.c_uint16),
        ("is_sending_samples", ctypes.c_uint8), ("key", ctypes.c_char_p), ("cell_key", ctypes.c_char_p),
        ("verify_key", ctypes.c_char_p), ("masking", ctypes.c_char_p),
    ]  # fmt: skip


class Info(ctypes.Structure):
    """`struct fedmote_info`."""

    _fields_ = [
        ("state", ctypes.c_int), ("is_link_up", ctypes.c_uint8), ("is_unsigned", ctypes.c_uint8),
        ("is_sealed", ctypes.c_uint8),
        ("has_package", ctypes.c_uint8), ("is_on_trial", ctypes.c_uint8), ("is_update_held", ctypes.c_uint8),
        *((name, ctypes.c_uint32) for name in ("round", "generation", "arena_bytes", "arena_required", "arena_total")),
        ("error", ctypes.c_int32), ("where", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in
          ("frames_received", "frames_sent", "frame_errors", "rounds_done", "link_losses", "messages_forged",
           "messages_replayed")),
    ]  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    """The whole SDK with UBSan, and with what FEDMOTE_SANITIZE names, in the configuration of these tests."""
    sources = [*sorted((SDK / "src").glob("*.c")), *operator_sources()]
    sanitizers = ",".join(["undefined", *filter(None, [os.environ.get("FEDMOTE_SANITIZE")])])
    flags = ["-O1", "-shared", "-fPIC", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    configuration = [f"-DFEDMOTE_BODY_MAX={BODY_MAX}", "-DFEDMOTE_MACS_PER_STEP=300"]
    lib = ctypes.CDLL(str(compile_c("libdevice.so", sources, flags + configuration)))
    lib.fedmote_wake_ms.restype = ctypes.c_uint32
    lib.fedmote_link_bytes.restype = ctypes.c_uint32
    return lib


@dataclass
class FlashModel:
    """Two slots, as the third one a cache region, and then two regions of a journal. Operations (erases and writes) are numbered
    from 0.

    Attributes:
        cache_bytes: of the cache region; 0: the port has none.
        journal_bytes: of each region of the journal; 0: the port has none.
        cut_at: number of the operation during which the power fails; it is left half done.
        fail_at: number of an operation that does nothing and returns an error; the device lives on.
        log: (operation, slot, offset, size) in order.
    """

    slot_bytes: int = SLOT_BYTES
    cache_bytes: int = 0
    journal_bytes: int = 0
    cut_at: int | None = None
    fail_at: int | None = None
    is_dead: bool = False
    log: list[tuple[str, int, int, int]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = [aligned(size) for size in (self.slot_bytes, self.slot_bytes, self.cache_bytes, *2 * [self.journal_bytes])]
        self.is_written = [np.ones(len(slot), bool) for slot in self.slots]  # never erased: nothing may be written
        for slot in self.slots:
            slot[:] = 0xA5  # what a new part holds is anyone's guess

    def _begin(self, *entry: str | int) -> tuple[bool, bool]:
        """(operation happens, power fails during it)."""
        if self.is_dead:
            return False, False
        number = len(self.log)
        self.log.append(entry)  # type: ignore[arg-type]
        self.is_dead = number == self.cut_at
        return number != self.fail_at, self.is_dead

    def erase(self, slot: int) -> int:
        size = len(self.slots[slot])
        happens, is_cut = self._begin("erase", slot, 0, size)
        if not happens:
            return PORT_ERROR
        end = size // 2 if is_cut else size
        self.slots[slot][:end] = 0xFF
        self.is_written[slot][:end] = False
        return PORT_ERROR if is_cut else 0

    def write(self, slot: int, offset: int, data: bytes) -> int:
        end = offset + len(data)
        happens, is_cut = self._begin("write", slot, offset, len(data))
        if not happens:
            return PORT_ERROR
        size = len(self.slots[slot])
        if offset % 8 or (end % 8 and (slot == CACHE or end != size)) or end > size:
            self.violations.append(f"write of [{offset}, {end}) is not aligned or outside")
        if self.is_written[slot][offset:end].any():
            self.violations.append(f"write of [{offset}, {end}) without an erase before")
        if is_cut:
            end = offset + len(data) // 2 // 8 * 8
        self.slots[slot][offset:end] = np.frombuffer(data[: end - offset], np.uint8)
        self.is_written[slot][offset:end] = True
        return PORT_ERROR if is_cut else 0


class Device:
    """A device with its memory, flash, samples and stream.

    Attributes:
        rx, tx: bytes on their way to and from the device.
        now: virtual milliseconds.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, arena_bytes: int = 16384, link: str = "serial", *,
                 identifier: str = "board-1", site: str = "lab", board: str = "bench",
        username: str | None = None, is_sending: bool = True, has_hash: bool = True, flash: FlashModel | None = None,
                 seed: int = 1, password: str | None = None, keep_alive_s: int = 0,
        arithmetic: str = "fedmote_float32", is_patching: bool = False, key: bytes | None = None,
        cell_key: bytes | None = None, verify_key: bytes | None = None, verify: int | None = None,
        masking: bytes | None = None) -> None:  # fmt: skip
        self.x, self.y = np.ascontiguousarray(x, np.int8), y
        self.rx, self.tx = bytearray(), bytearray()
        self.now, self.seed = 0xFFFFF000, seed  # the clock wraps soon
        self.write_limit: Callable[[], int] = lambda: 1 << 30
        self.read_limit: Callable[[], int] = lambda: 1 << 30
        self.is_stream_broken = self.is_sample_broken = False
        self.on_sample_read: Callable[[int], object] = lambda _index: None
        self.flash = flash or FlashModel()
        self.events: list[tuple[int, int]] = []
        self.visited: set[str] = set()
        self._guarded = aligned(arena_bytes + 32)
        self._memory = np.zeros(4096, np.uint8)
        self.arena_bytes, self.id = arena_bytes, identifier
        cache = self._bind_cache() if self.flash.cache_bytes else []
        self._port = Port(None, *self._bind(has_hash), all_operators(library()), address_of(library(), arithmetic), *cache)
        if is_patching:
            self._port.patching = address_of(library(), "fedmote_difference_patching")
        if self.flash.journal_bytes:
            self._port.journal = address_of(library(), "fedmote_flash_journal")
            self._port.journal_bytes = self.flash.journal_bytes
            for name, kind in _journal_callbacks.items():
                if name != "journal_bytes":
                    setattr(self._port, name, kind(getattr(self, f"_{name}")))  # type: ignore[operator]
        link_address = ctypes.addressof(ctypes.c_char.in_dll(library(), f"fedmote_{link}_link"))
        texts = [text.encode() if text is not None else None for text in (identifier, site, board, username, password)]
        self._identity = Identity(
            *texts[:3], link_address, *texts[3:], keep_alive_s, is_sending, key, cell_key, verify_key, masking
        )
        if verify is not None:  # address of a function that checks signatures
            self._port.signing = address_of(library(), "fedmote_package_signing")
            self._port.verify = verify
        if key is not None:
            self._port.sealing = address_of(library(), "fedmote_message_sealing")
            self._port.crypto = ctypes.addressof(CRYPTO)
        if masking is not None:
            self._port.masking = address_of(library(), "fedmote_sum_masking")
            self._port.agree = ctypes.cast(AGREE, ctypes.c_void_p).value
        self.boot()

    def boot(self) -> None:
        """Power on: RAM holds noise, the slots what they held."""
        self.flash.is_dead, self.flash.cut_at = False, None
        self._guarded[:] = 0x5A
        self._memory[:] = 0x5A
        status = library().fedmote_init(
            ctypes.c_void_p(self._memory.ctypes.data), ctypes.byref(self._port), ctypes.byref(self._identity),
            ctypes.c_void_p(self._guarded.ctypes.data), ctypes.c_uint32(self.arena_bytes))  # fmt: skip
        assert status == 0, status

    def _bind(self, has_hash: bool) -> list[object]:
        functions: list[object] = []
        for name, kind in _callbacks.items():
            if name == "slot_bytes":
                functions.append(self.flash.slot_bytes)
            elif name == "hash" and not has_hash:
                functions.append(kind())
            else:
                functions.append(kind(getattr(self, f"_{name}")))
        return functions

    def _bind_cache(self) -> list[object]:
        functions = [kind(getattr(self, f"_{name}")) for name, kind in _cache_callbacks.items() if name != "cache_bytes"]
        return [address_of(library(), "fedmote_cache_region"), self.flash.cache_bytes, *functions]

    # -- callbacks of the port --

    def _now_ms(self, _context: None) -> int:
        return self.now & 0xFFFFFFFF

    def _random(self, _context: None) -> int:
        self.seed = (self.seed * 1664525 + 1013904223) & 0xFFFFFFFF
        return self.seed

    def _stream_read(self, _context: None, out: int, capacity: int) -> int:
        if self.is_stream_broken:
            return PORT_ERROR
        data = bytes(self.rx[: min(capacity, self.read_limit())])
        del self.rx[: len(data)]
        ctypes.memmove(out, data, len(data))
        return len(data)

    def _stream_write(self, _context: None, data: int, size: int) -> int:
        if self.is_stream_broken:
            return PORT_ERROR
        size = min(size, self.write_limit())
        if not self.flash.is_dead:
            self.tx += ctypes.string_at(data, size)
        return size

    def _sample_count(self, _context: None) -> int:
        return len(self.x)

    def _sample_read(self, _context: None, index: int, out: int, size: int, label: ctypes.Array[ctypes.c_uint32]) -> int:
        self.on_sample_read(index)
        if self.is_sample_broken or index >= len(self.x) or size != self.x.shape[1]:
            return PORT_ERROR
        ctypes.memmove(out, self.x[index].tobytes(), size)
        label[0] = int(self.y[index])
        return 0

    def _slot_base(self, _context: None, slot: int) -> int:
        return self.flash.slots[slot].ctypes.data

    def _slot_erase(self, _context: None, slot: int) -> int:
        return self.flash.erase(slot)

    def _slot_write(self, _context: None, slot: int, offset: int, data: int, size: int) -> int:
        return self.flash.write(slot, offset, ctypes.string_at(data, size))

    def _cache_base(self, _context: None) -> int:
        return self.flash.slots[CACHE].ctypes.data

    def _cache_erase(self, _context: None) -> int:
        return self.flash.erase(CACHE)

    def _cache_write(self, _context: None, offset: int, data: int, size: int) -> int:
        return self.flash.write(CACHE, offset, ctypes.string_at(data, size))

    def _journal_base(self, _context: None, region: int) -> int:
        return self.flash.slots[JOURNAL + region].ctypes.data

    def _journal_erase(self, _context: None, region: int) -> int:
        return self.flash.erase(JOURNAL + region)

    def _journal_write(self, _context: None, region: int, offset: int, data: int, size: int) -> int:
        return self.flash.write(JOURNAL + region, offset, ctypes.string_at(data, size))

    def _hash(self, _context: None, first: int, first_size: int, second: int, second_size: int, digest: int) -> None:
        data = ctypes.string_at(first, first_size) + ctypes.string_at(second, second_size)
        ctypes.memmove(digest, hashlib.blake2b(data, digest_size=32).digest(), 32)

    def _event(self, _context: None, event: int, value: int) -> None:
        self.events.append((event, value))

    # -- for tests --

    def step(self) -> int:
        """One step; afterwards nothing outside arena and struct may have changed."""
        status = library().fedmote_step(ctypes.c_void_p(self._memory.ctypes.data))
        assert (self._guarded[self.arena_bytes :] == 0x5A).all(), "the step wrote behind the arena"
        assert not self.flash.violations, self.flash.violations
        self.visited.add(self.state)
        return int(status)

    def wake_ms(self) -> int:
        return int(library().fedmote_wake_ms(ctypes.c_void_p(self._memory.ctypes.data)))

    @property
    def info(self) -> Info:
        info = Info()
        library().fedmote_status(ctypes.c_void_p(self._memory.ctypes.data), ctypes.byref(info))
        return info

    @property
    def state(self) -> str:
        return STATES[self.info.state]
