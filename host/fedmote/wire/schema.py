# SPDX-License-Identifier: Apache-2.0
"""Numbers of the wire schema.

Generated from device_sdk/protocol/fedmote.cddl by device_sdk/protocol/generate.py; change the schema, not this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

LIMIT_PROTOCOL: Final = 1
LIMIT_IDENTIFIER: Final = 32
LIMIT_BODY_FLOOR: Final = 144
LIMIT_BODY_CEILING: Final = 65535
LIMIT_WINDOW: Final = 32
LIMIT_CHUNK_OVERHEAD: Final = 17
LIMIT_CHUNK_ALIGN: Final = 8
LIMIT_TEXT: Final = 64
LIMIT_FRAME_HEADER: Final = 6
LIMIT_FRAME_CRC: Final = 4
LIMIT_MAP_DEPTH: Final = 4
LIMIT_SEAL: Final = 24
LIMIT_SEAL_WINDOW: Final = 64


class Status(IntEnum):
    """`status-*` of the schema."""

    OK = 0
    TRUNCATED = 1
    MALFORMED = 2
    NOT_DETERMINISTIC = 3
    DUPLICATE_FIELD = 4
    TRAILING = 5
    UNKNOWN_KIND = 6
    MISSING_FIELD = 7
    FIELD_TYPE = 8
    FIELD_RANGE = 9
    FRAME_COBS = 10
    FRAME_LENGTH = 11
    FRAME_CRC = 12
    FRAME_CHANNEL = 13
    PROTOCOL = 14
    BODY_TOO_LARGE = 15
    AUTH = 16
    REPLAY = 17
    REVOKED = 18
    PACKAGE_MAGIC = 20
    PACKAGE_VERSION = 21
    PACKAGE_SIZE = 22
    PACKAGE_CRC = 23
    PACKAGE_HASH = 24
    PACKAGE_SECTION = 25
    PACKAGE_OPERATOR = 26
    PACKAGE_BOUNDS = 27
    PACKAGE_HEAD = 28
    PACKAGE_ARRANGEMENT = 29
    ARENA = 30
    SLOT = 31
    SLOT_IO = 32
    NO_PACKAGE = 33
    SAMPLE_IO = 34
    NO_SAMPLES = 35
    DIFFERENCE = 36
    DIFFERENCE_BASE = 37
    PACKAGE_TRIAL = 38
    PACKAGE_SIGNATURE = 39
    LINK = 40
    LINK_REFUSED = 41
    TIMEOUT = 42
    PACKAGE_OLD = 43
    MASK_GROUP = 44
    MASK_NEIGHBOURS = 45
    MASK_ANSWERED = 46
    STALE_ROUND = 50
    UNKNOWN_RUN = 51
    WRONG_MODEL = 52
    UPDATE_SHAPE = 53
    UPDATE_NOT_FINITE = 54
    NOT_EXPECTED = 55
    DUPLICATE = 56
    CRC = 57
    TOKEN_USED = 58
    TOKEN_EXPIRED = 59
    ARGUMENT = 60
    STATE = 61


class Channel(IntEnum):
    """`channel-*` of the schema."""

    COORDINATOR = 0
    CELL = 1


class Role(IntEnum):
    """`role-*` of the schema."""

    DEVICE = 1
    PARTNER = 2


class Phase(IntEnum):
    """`phase-*` of the schema."""

    DEVICE = 1
    PARTNER = 2
    SIMULTANEOUS = 3


class Encoding(IntEnum):
    """`encoding-*` of the schema."""

    F32 = 1
    MASKED = 2


class Section(IntEnum):
    """`section-*` of the schema."""

    MANIFEST = 1
    PLAN = 2
    WEIGHTS = 3
    HEAD = 4
    TRAINING = 5
    SIGNATURE = 6
    HOST_MANIFEST = 128
    ENCODER_TFLITE = 129


class Opcode(IntEnum):
    """`opcode-*` of the schema."""

    CONV_2D = 1
    DEPTHWISE_CONV_2D = 2
    FULLY_CONNECTED = 3
    ADD = 4
    AVERAGE_POOL_2D = 5
    MAX_POOL_2D = 6
    MEAN = 7
    PAD = 8
    TABLE = 9
    MUL = 10
    SOFTMAX = 11
    STRIDED_COPY = 12
    CONV_2D_INT4 = 13
    DEPTHWISE_CONV_2D_INT4 = 14
    FULLY_CONNECTED_INT4 = 15


class Arrangement(IntEnum):
    """`arrangement-*` of the schema."""

    PLAIN = 0
    CORTEX_M_DSP = 1
    CORTEX_M_HELIUM = 2


class Activation(IntEnum):
    """`activation-*` of the schema."""

    NONE = 0
    RELU = 1


class Loss(IntEnum):
    """`loss-*` of the schema."""

    CROSS_ENTROPY = 0
    SQUARED_ERROR = 1


class Kind(IntEnum):
    """`kind-*` of the schema."""

    HELLO = 1
    WAIT = 2
    PLAN = 3
    GET = 4
    DATA = 5
    REPORT = 6
    SAMPLES = 7
    ACK = 8
    REFUSE = 9
    STATE = 10
    REKEY = 11


@dataclass(frozen=True)
class FieldRule:
    """Key, CBOR type and bounds of a field: of the value for integers, of the length in bytes for strings."""

    key: int
    type: type[int] | type[bytes] | type[str]
    low: int
    high: int


# Names of the fields by type, for the type checker.
NumberField = Literal[
    "handle",
    "offset",
    "chunk",
    "mask",
    "round",
    "status",
    "size",
    "crc",
    "attempt",
    "num_examples",
    "role",
    "boot",
    "protocol",
    "max_body",
    "arena_bytes",
    "slot_bytes",
    "num_samples",
    "wait_ms",
    "remaining_ms",
    "phase",
    "version",
    "model_handle",
    "model_size",
    "head_handle",
    "head_size",
    "head_crc",
    "seed",
    "alpha_milli",
    "beta_milli",
    "gamma_milli",
    "gamma_order",
    "epochs",
    "batch",
    "learning_rate_micro",
    "momentum_micro",
    "gain_milli",
    "is_sending_samples",
    "max_send",
    "discarded",
    "trained",
    "sent",
    "loss_micro",
    "loss_after_micro",
    "arena_used_bytes",
    "count",
    "input_bytes",
    "is_online",
    "frame_errors",
    "loss",
    "weight_decay_micro",
    "clip_norm_micro",
    "trained_layers",
    "is_bias_only",
    "difference_format",
    "difference_handle",
    "difference_size",
    "serial",
    "operators",
    "mask_step",
]
BytesField = Literal[
    "data",
    "run",
    "model_hash",
    "signature",
    "masking",
    "secret",
]
TextField = Literal[
    "device",
    "board",
    "sdk",
    "reason",
]

FIELDS: Final[dict[str, FieldRule]] = {
    "handle": FieldRule(1, int, 0, 4294967295),
    "offset": FieldRule(2, int, 0, 4294967295),
    "data": FieldRule(3, bytes, 0, 65535),
    "chunk": FieldRule(4, int, 8, 65528),
    "mask": FieldRule(5, int, 1, 4294967295),
    "run": FieldRule(6, bytes, 8, 8),
    "round": FieldRule(7, int, 0, 4294967295),
    "status": FieldRule(8, int, 1, 255),
    "size": FieldRule(9, int, 0, 4294967295),
    "crc": FieldRule(10, int, 0, 4294967295),
    "attempt": FieldRule(11, int, 0, 65535),
    "num_examples": FieldRule(12, int, 0, 4294967295),
    "device": FieldRule(13, str, 1, 32),
    "role": FieldRule(14, int, 1, 2),
    "boot": FieldRule(15, int, 0, 4294967295),
    "protocol": FieldRule(16, int, 1, 255),
    "board": FieldRule(17, str, 1, 32),
    "sdk": FieldRule(18, str, 1, 64),
    "max_body": FieldRule(19, int, 144, 65535),
    "arena_bytes": FieldRule(20, int, 0, 4294967295),
    "slot_bytes": FieldRule(21, int, 0, 4294967295),
    "num_samples": FieldRule(22, int, 0, 4294967295),
    "model_hash": FieldRule(23, bytes, 32, 32),
    "wait_ms": FieldRule(24, int, 0, 4294967295),
    "remaining_ms": FieldRule(25, int, 0, 4294967295),
    "phase": FieldRule(26, int, 1, 3),
    "version": FieldRule(27, int, 0, 4294967295),
    "model_handle": FieldRule(28, int, 0, 4294967295),
    "model_size": FieldRule(29, int, 0, 4294967295),
    "head_handle": FieldRule(30, int, 0, 4294967295),
    "head_size": FieldRule(31, int, 0, 4294967295),
    "head_crc": FieldRule(32, int, 0, 4294967295),
    "seed": FieldRule(33, int, 0, 4294967295),
    "alpha_milli": FieldRule(34, int, 0, 1000000),
    "beta_milli": FieldRule(35, int, 0, 1000000),
    "gamma_milli": FieldRule(36, int, 0, 1000000),
    "gamma_order": FieldRule(37, int, 0, 1),
    "epochs": FieldRule(38, int, 0, 32),
    "batch": FieldRule(39, int, 1, 1024),
    "learning_rate_micro": FieldRule(40, int, 0, 10000000),
    "momentum_micro": FieldRule(41, int, 0, 999999),
    "gain_milli": FieldRule(42, int, 0, 1000),
    "is_sending_samples": FieldRule(43, int, 0, 1),
    "max_send": FieldRule(44, int, 0, 4294967295),
    "discarded": FieldRule(45, int, 0, 4294967295),
    "trained": FieldRule(46, int, 0, 4294967295),
    "sent": FieldRule(47, int, 0, 4294967295),
    "loss_micro": FieldRule(48, int, 0, 4294967295),
    "loss_after_micro": FieldRule(49, int, 0, 4294967295),
    "arena_used_bytes": FieldRule(50, int, 0, 4294967295),
    "count": FieldRule(51, int, 0, 4294967295),
    "input_bytes": FieldRule(52, int, 1, 4294967295),
    "reason": FieldRule(53, str, 0, 64),
    "is_online": FieldRule(54, int, 0, 1),
    "frame_errors": FieldRule(55, int, 0, 4294967295),
    "loss": FieldRule(56, int, 0, 1),
    "weight_decay_micro": FieldRule(57, int, 0, 1000000),
    "clip_norm_micro": FieldRule(58, int, 1, 4294967295),
    "trained_layers": FieldRule(59, int, 1, 255),
    "is_bias_only": FieldRule(60, int, 0, 1),
    "difference_format": FieldRule(61, int, 1, 255),
    "difference_handle": FieldRule(62, int, 0, 4294967295),
    "difference_size": FieldRule(63, int, 0, 4294967295),
    "serial": FieldRule(64, int, 0, 4294967295),
    "operators": FieldRule(65, int, 0, 4294967295),
    "signature": FieldRule(66, bytes, 64, 64),
    "mask_step": FieldRule(67, int, 1, 3),
    "masking": FieldRule(68, bytes, 28, 28),
    "secret": FieldRule(69, bytes, 32, 32),
}

# Fields of a kind, True where the field is required.
MESSAGES: Final[dict[Kind, dict[str, bool]]] = {
    Kind.HELLO: {
        "device": True,
        "role": True,
        "boot": True,
        "protocol": True,
        "board": True,
        "sdk": True,
        "max_body": True,
        "run": False,
        "round": False,
        "arena_bytes": False,
        "slot_bytes": False,
        "num_samples": False,
        "model_hash": False,
        "frame_errors": False,
        "difference_format": False,
    },
    Kind.WAIT: {
        "wait_ms": True,
        "reason": False,
    },
    Kind.PLAN: {
        "run": True,
        "round": True,
        "phase": True,
        "version": True,
        "remaining_ms": True,
        "model_hash": True,
        "model_handle": True,
        "model_size": True,
        "seed": True,
        "epochs": True,
        "batch": True,
        "learning_rate_micro": True,
        "momentum_micro": True,
        "attempt": False,
        "head_handle": False,
        "head_size": False,
        "head_crc": False,
        "alpha_milli": False,
        "beta_milli": False,
        "gamma_milli": False,
        "gamma_order": False,
        "gain_milli": False,
        "is_sending_samples": False,
        "max_send": False,
        "loss": False,
        "weight_decay_micro": False,
        "clip_norm_micro": False,
        "trained_layers": False,
        "is_bias_only": False,
        "difference_handle": False,
        "difference_size": False,
        "serial": False,
        "operators": False,
        "signature": False,
        "masking": False,
    },
    Kind.GET: {
        "handle": True,
        "offset": True,
        "chunk": True,
        "mask": True,
    },
    Kind.DATA: {
        "handle": True,
        "offset": True,
        "data": True,
    },
    Kind.REPORT: {
        "handle": True,
        "run": True,
        "round": True,
        "size": True,
        "crc": True,
        "num_examples": True,
        "version": True,
        "attempt": False,
        "discarded": False,
        "trained": False,
        "sent": False,
        "loss_micro": False,
        "loss_after_micro": False,
        "arena_used_bytes": False,
        "mask_step": False,
    },
    Kind.SAMPLES: {
        "handle": True,
        "run": True,
        "round": True,
        "size": True,
        "crc": True,
        "count": True,
        "input_bytes": True,
    },
    Kind.ACK: {
        "handle": True,
        "run": True,
        "round": True,
    },
    Kind.REFUSE: {
        "status": True,
        "handle": False,
        "run": False,
        "round": False,
        "reason": False,
    },
    Kind.STATE: {
        "boot": True,
        "is_online": True,
    },
    Kind.REKEY: {
        "secret": True,
    },
}
