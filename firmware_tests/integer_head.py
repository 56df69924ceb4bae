# SPDX-License-Identifier: Apache-2.0
"""The integer head of `device_sdk/src/head_integer.c`, bit for bit, in NumPy: what a host can predict.

Written from the theory at the head of that file. Scalars that are floats there are float32 here, in the same order of operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmote.wire.schema import Loss
from firmware_tests.heads import Layers, Options

F = np.float32
STEP, GOLDEN, M32 = 0x9E37, 0x9E3779B9, 0xFFFFFFFF
POWERS = [round(32768 * 2 ** (-k / 64)) for k in range(65)]


def mix(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B & M32
    h ^= h >> 13
    h = h * 0xC2B2AE35 & M32
    return h ^ h >> 16


def scaled(value: np.float32) -> tuple[int, int]:
    """(mantissa, shift): value = mantissa * 2^-shift with 14 bits, halves up."""
    bits = int(np.float32(value).view(np.uint32))
    exponent = (bits >> 23 & 0xFF) - 127
    if exponent <= -127:
        return 0, 0
    mantissa, shift = ((bits & 0x7FFFFF) + 0x800000 + 0x200) >> 10, 13 - exponent
    return (mantissa >> 1, shift - 1) if mantissa == 1 << 14 else (mantissa, shift)


def times(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    mantissa, shift = a[0] * b[0] >> 13, a[1] + b[1] - 13
    return (mantissa >> 1, shift - 1) if mantissa >= 1 << 14 else (mantissa, shift)


def shifted(value: int, shift: int, limit: int) -> int:
    result = value >> min(shift, 31) if shift >= 0 else value << -shift
    return max(-limit, min(limit, result))


def share_of(error: int, factor: tuple[int, int], fraction: int, random: int, limit: int) -> int:
    mantissa, shift = factor[0], factor[1] + 15 - fraction
    while abs(error) > 65536:
        error, shift = error >> 1, shift - 1
    product = error * mantissa
    if shift > 30:
        return 0
    if shift > 0:
        product, shift = (product + (random >> (32 - shift))) >> shift, 0
    return shifted(product, shift, limit)


@dataclass
class Numbers:
    """An array with its power of two, its bound and its room."""

    values: np.ndarray
    exponent: int
    limit: int
    bound: int = 0

    def measure(self) -> None:
        self.bound = int(np.abs(self.values).max())

    def has_room(self, change: int) -> bool:
        if self.bound + change <= self.limit:
            return True
        self.measure()
        return self.bound + change <= self.limit and self.bound <= self.limit // 2


def grouped(rows: int) -> list[slice]:
    return [slice(start, min(start + 4, rows)) for start in range(0, rows, 4)]


def stored_order(values: np.ndarray) -> np.ndarray:
    """Indices (rows, inputs) -> in the order in which the device stores the weights."""
    index = np.arange(values.size).reshape(values.shape)
    return np.concatenate([index[group].T.ravel() for group in grouped(len(values))])


class IntegerHead:
    """Plain SGD on single samples: the path without a velocity. `options` other than the learning rate, loss, trained layers and
    bias are refused."""

    def __init__(self, layers: Layers, base: np.ndarray, options: Options, scale: float, zero_point: int) -> None:
        assert not (options.momentum or options.weight_decay or options.clip_norm)
        self.layers, self.options, self.counter = layers, options, 0
        self.base = np.asarray(base, F)
        self.scale, self.zero_point = scaled(F(scale)), zero_point
        self.parts: list[tuple[Numbers, Numbers]] = []
        for weight, bias in layers.split(self.base):
            room = min(32767, 0x7FFFFFFF // (255 * weight.shape[1]))
            self.parts.append((self._convert(weight, room), self._convert(bias, 32767)))
        self.first = [(w.exponent, b.exponent) for w, b in self.parts]
        self.rate = scaled(F(round(options.learning_rate * 1e6)) / F(1e6) / F(1))

    @staticmethod
    def _convert(base: np.ndarray, limit: int) -> Numbers:
        most, exponent = max(F(0.015625), np.abs(base).max()), 24
        while most * F(2.0**exponent) > F(limit) / F(8):
            exponent -= 1
        numbers = Numbers(np.rint(base * F(2.0**exponent)).astype(np.int64), exponent, limit)
        numbers.measure()
        return numbers

    def _draw(self) -> int:
        self.counter += 1
        return mix((self.options.seed + self.counter * GOLDEN) & M32)

    def _halve(self, numbers: Numbers) -> None:
        random = self._draw()
        order = stored_order(numbers.values) if numbers.values.ndim == 2 else np.arange(numbers.values.size)
        flat = numbers.values.reshape(-1)
        dither = (random + GOLDEN * (np.arange(flat.size, dtype=np.int64) + 1)) % 2**32 >> 31
        flat[order] = (flat[order] + dither) >> 1
        numbers.exponent -= 1
        numbers.bound = numbers.bound // 2 + 1

    def _forward(self, part: tuple[Numbers, Numbers], x: np.ndarray, scale: tuple[int, int]) -> np.ndarray:
        weights, bias = part
        z = []
        for total, offset in zip((weights.values @ x).tolist(), bias.values.tolist(), strict=True):
            product = (total >> 15) * scale[0] + ((total & 0x7FFF) * scale[0] >> 15)
            value = shifted(product, scale[1] + weights.exponent - 31, 1 << 29)
            z.append(value + shifted(offset, bias.exponent - 16, 1 << 29))
        return np.array(z, np.int64)

    def _errors(self, z: np.ndarray, label: int) -> np.ndarray:
        if self.options.loss is Loss.SQUARED_ERROR:
            z = z.copy()
            z[label] -= 1 << 16
            return np.array([int(abs(v) // len(z)) * (1 if v >= 0 else -1) for v in z.tolist()], np.int64)
        terms = []
        for difference in (z.max() - z).tolist():
            power = (difference >> 4) * 23637
            index, rest = power >> 20 & 63, power >> 10 & 1023
            value = (POWERS[index] << 10) - (POWERS[index] - POWERS[index + 1]) * rest
            terms.append(0 if difference >= 16 << 16 else value >> (power >> 26))
        total, shift = sum(terms), 6
        while total >= 65536:
            total, shift = total >> 1, shift + 1
        inverse = 0x80000000 // total
        errors = np.array([(((term >> 10) * inverse >> (shift - 1)) + 1) >> 1 for term in terms], np.int64)
        errors[label] -= 1 << 15
        return errors

    def _hidden(self, z: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        is_relu = self.layers.is_relu
        most = max(1, int(np.maximum(z, 0).max() if is_relu else np.abs(z).max()))
        shift = 0
        while most >> shift > (254 if is_relu else 126):
            shift += 1
        value = (z + ((1 << shift) >> 1)) >> shift
        if is_relu:
            value = np.where(z <= 0, 0, np.maximum(value, 1))
        return value, (1 << 13, 29 - shift)

    def _input_gradient(self, part: tuple[Numbers, Numbers], errors: np.ndarray) -> np.ndarray:
        total, shift = int((np.abs(errors) >> 8).sum()), 0
        while total >> shift > 128 - len(errors) // 256:
            shift += 1
        rounded = (errors + ((1 << shift) >> 1)) >> shift
        weights = part[0]
        return np.array([shifted(v, weights.exponent - shift, 1 << 29) for v in (rounded @ weights.values).tolist()], np.int64)

    def _make_room(self, numbers: Numbers, factor: tuple[int, int], most: int, reach: int, limit: int) -> None:
        while True:
            share = share_of(most, (factor[0], factor[1] - numbers.exponent), 16, M32, limit)
            change = (share * reach >> 16) + 1
            if numbers.has_room(change):
                numbers.bound += change
                return
            self._halve(numbers)

    def _change(self, part: tuple[Numbers, Numbers], x: np.ndarray, scale: tuple[int, int], errors: np.ndarray) -> None:
        weights, bias = part
        most = int(np.abs(errors).max())
        if not self.options.is_bias_only:
            product = times(self.rate, scale)
            self._make_room(weights, product, most, 255, 1 << 22)
            product = product[0], product[1] - weights.exponent
            random = self._draw()
            dither = np.arange(1, len(x) + 1, dtype=np.int64) * STEP
            for group in grouped(len(errors)):
                shares = []
                for error in errors[group].tolist():
                    random = random + GOLDEN & M32
                    shares.append(share_of(-error, product, 16, random, 1 << 22))
                weights.values[group] += (np.outer(shares, x) + (((random >> 16) + dither) & 0xFFFF)) >> 16
        self._make_room(bias, self.rate, most, 1, 1 << 29)
        factor = self.rate[0], self.rate[1] - bias.exponent
        random = self._draw()
        for c, error in enumerate(errors.tolist()):
            random = random + GOLDEN & M32
            bias.values[c] += (share_of(-error, factor, 16, random, 1 << 29) + (random & 0xFFFF)) >> 16

    def step(self, features: np.ndarray, label: int) -> None:
        """One sample, in place."""
        x, scale = features.astype(np.int64) - self.zero_point, self.scale
        last_x, last_scale = x, scale
        if self.layers.hidden:
            last_x, last_scale = self._hidden(self._forward(self.parts[0], x, scale))
        errors = self._errors(self._forward(self.parts[-1], last_x, last_scale), label)
        is_deep = self.layers.hidden and self.options.trained_layers > 1
        if is_deep:
            hidden_errors = self._input_gradient(self.parts[1], errors)
            if self.layers.is_relu:
                hidden_errors[last_x == 0] = 0
        if self.rate[0] == 0:
            return
        self._change(self.parts[-1], last_x, last_scale, errors)
        if is_deep:
            self._change(self.parts[0], x, scale, hidden_errors)

    def deltas(self) -> np.ndarray:
        """float32 (parameters,): what an update would hold."""
        out = []
        for (weights, bias), (weight_base, bias_base), first in zip(
            self.parts, self.layers.split(self.base), self.first, strict=True
        ):
            for numbers, base, exponent in ((weights, weight_base, first[0]), (bias, bias_base, first[1])):
                before = np.rint(base * F(2.0**exponent)).astype(F) * F(2.0**-exponent)
                out.append((numbers.values.astype(F) * F(2.0**-numbers.exponent) - before).ravel())
        return np.concatenate(out)
