# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint and a device's samples to an update file: layouts, quantization, ranges, masks."""

import zlib

import numpy as np
import pytest

from fedmote.errors import ConfigError, RemoteWireError
from fedmote.lab.models import digits_cnn, har_cnn
from fedmote.package.boards import Board
from fedmote.package.execute import observe
from fedmote.package.fold import bind
from fedmote.package.graph import Activations
from fedmote.package.inputs import arrange, restore
from fedmote.package.quantize import activation_quantization, observation_points, quantize_values
from fedmote.partner.session import Offer
from fedmote.partner.training import Recipe, Samples, read_tensors, train
from fedmote.partner.update import MANIFEST_KEY, Trainer, from_device, load_own_samples, read_manifest, samples_of
from fedmote.strategies import ModelShape
from fedmote.strategies.f32 import RANGE_PREFIX, Float32
from fedmote.tensors import dump_safetensors, load_safetensors
from fedmote.wire.blobs import encode_selected_samples
from fedmote.wire.codec import Message
from fedmote.wire.schema import Kind, Phase, Role, Status
from fedmote_convert.convert import convert
from fedmote_convert.tiers import convert_tiers

SEED = 3
RUN = b"run-0001"


@pytest.fixture(scope="module", params=["digits", "har"])
def case(request):
    """A model, its conversion, and samples (n, ...) in torch layout."""
    print("seed", SEED)
    factory, shape, classes = (digits_cnn, (1, 8, 8), 10) if request.param == "digits" else (har_cnn, (9, 128), 6)
    x = np.random.default_rng(SEED).random((40, *shape), np.float32)
    conversion = convert(factory(), x, [Board.load("posix")], model_id="m")
    return factory, conversion.package.host, x, np.arange(40) % classes


def checkpoint_of(factory, manifest):
    return dump_safetensors(read_tensors(factory()), {MANIFEST_KEY: manifest.to_bytes().decode()})


def device_bytes(manifest, x):
    """Samples as a device stores them, made by the package's own functions."""
    template = manifest.template
    shape = template.activations[template.input].shape
    quantization = activation_quantization(template.input, *manifest.ranges[template.input])
    arranged = arrange(x, manifest.input_layout, shape)
    return quantize_values(Activations(template.input, shape, quantization), arranged).reshape(len(x), -1), quantization


def offer_of(manifest, x, labels, masks, device="device-a"):
    flat, _ = device_bytes(manifest, x)
    numbers = np.arange(len(x), dtype=np.uint32)
    blob = encode_selected_samples(numbers, labels.astype(np.uint32), masks.astype(np.uint32), flat)
    return Offer(device, RUN, 1, blob)


def plan(epochs=2, seed=9):
    return Message.of(
        Kind.PLAN,
        run=RUN,
        round=1,
        phase=Phase.SIMULTANEOUS,
        version=0,
        remaining_ms=1000,
        model_hash=bytes(32),
        model_handle=1,
        model_size=1,
        seed=seed,
        epochs=epochs,
        batch=8,
        learning_rate_micro=30_000,
        momentum_micro=0,
    )


def test_samples_of_a_device_come_back_in_torch_layout_within_half_a_step(case):
    _, manifest, x, _ = case
    flat, quantization = device_bytes(manifest, x)
    back = from_device(manifest, flat)
    assert back.shape == x.shape
    assert back.dtype == np.float32
    assert np.abs(back - x).max() <= 0.5001 * float(quantization.scale[0])


def test_restoring_is_the_inverse_of_arranging():
    generator = np.random.default_rng(SEED)
    for shape, layout in (((2, 5, 7), "nchw"), ((4, 9), "ncw"), ((6,), "nf")):
        x = generator.random((3, *shape))
        graph_shape = {"nchw": (1, 5, 7, 2), "ncw": (1, 1, 9, 4), "nf": (1, 6)}[layout]
        assert np.array_equal(restore(arrange(x, layout, graph_shape), layout), x)


def test_an_update_equals_plain_training_with_the_masks_of_the_samples(case):
    factory, manifest, x, y = case
    masks = 1 + np.arange(len(x)) % 3
    offer = offer_of(manifest, x, y, masks)
    made = Trainer(factory, None, seed=5).update("partner-a", plan(), checkpoint_of(factory, manifest), [offer])
    update = load_safetensors(made.blob)
    model = factory()
    base = read_tensors(model)
    samples = Samples(from_device(manifest, device_bytes(manifest, x)[0]), y.astype(np.int64), masks.astype(np.uint32))
    outcome = train(model, samples, Recipe(2, 8, 0.03, 0.0, (9, 5, zlib.crc32(b"partner-a"))))
    for name, after in outcome.tensors.items():
        np.testing.assert_allclose(update[name], after - base[name], rtol=1e-3, atol=1e-6, err_msg=name)
    assert made.numbers["num_examples"] == int((masks & 1).sum())


def test_ranges_are_those_of_the_trained_folded_graph_and_leave_the_input_alone(case):
    factory, manifest, x, y = case
    checkpoint = checkpoint_of(factory, manifest)
    made = Trainer(factory, None, 0).update("p", plan(), checkpoint, [offer_of(manifest, x, y, np.full(len(x), 3))])
    update, base = load_safetensors(made.blob), load_safetensors(checkpoint)
    tensors = {name: base[name] + update[name] for name in base}
    template = manifest.template
    held = from_device(manifest, device_bytes(manifest, x)[0])
    seen = observe(bind(template, tensors), arrange(held, manifest.input_layout, template.activations[template.input].shape))
    names = {name.removeprefix(RANGE_PREFIX) for name in update if name.startswith(RANGE_PREFIX)}
    assert names == set(manifest.ranges) - {template.input}
    for name in names:
        np.testing.assert_allclose(update[RANGE_PREFIX + name], seen[name], rtol=1e-4, atol=1e-5)


def test_the_coordinators_codec_takes_the_update(case):
    factory, manifest, x, y = case
    checkpoint = checkpoint_of(factory, manifest)
    made = Trainer(factory, None, 0).update("p", plan(), checkpoint, [offer_of(manifest, x, y, np.full(len(x), 1))])
    shape = ModelShape(load_safetensors(checkpoint), manifest.head, manifest.ranges, manifest.template.input)
    codec = Float32()
    assert len(made.blob) <= codec.max_bytes(Role.PARTNER, shape)
    decoded = codec.decode(Role.PARTNER, made.blob, shape)
    assert decoded.tensors.keys() == shape.tensors.keys()


def test_a_partner_without_samples_reports_an_empty_update_of_no_weight(case):
    factory, manifest, _, _ = case
    made = Trainer(factory, None, 0).update("p", plan(), checkpoint_of(factory, manifest), [])
    assert load_safetensors(made.blob) == {}
    assert made.numbers["num_examples"] == 0


def test_own_samples_take_part_in_every_epoch(case, tmp_path):
    factory, manifest, x, y = case
    np.savez(tmp_path / "own.npz", x=x, y=y)
    own = load_own_samples(tmp_path / "own.npz")
    made = Trainer(factory, own, 0).update("p", plan(epochs=3), checkpoint_of(factory, manifest), [])
    assert made.numbers["num_examples"] == len(x)
    assert made.numbers["trained"] == 3 * len(x)


def test_a_label_that_the_model_does_not_have_is_refused(case):
    _, manifest, x, y = case
    with pytest.raises(RemoteWireError) as caught:
        samples_of(manifest, offer_of(manifest, x, y + 10, np.ones(len(x))))
    assert caught.value.status is Status.FIELD_RANGE


def test_samples_of_another_size_are_refused(case):
    _, manifest, _, _ = case
    with pytest.raises(RemoteWireError) as caught:
        from_device(manifest, np.zeros((2, 5), np.int8))
    assert caught.value.status is Status.UPDATE_SHAPE


def test_a_checkpoint_without_a_sound_manifest_is_refused():
    for metadata in ({}, {MANIFEST_KEY: "{}"}, {MANIFEST_KEY: "no json"}):
        with pytest.raises(RemoteWireError) as caught:
            read_manifest(dump_safetensors({"a": np.zeros(1, np.float32)}, metadata))
        assert caught.value.status is Status.PACKAGE_SECTION


def test_a_data_file_that_is_none_is_a_configuration_error(tmp_path):
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 2)), y=np.zeros(2, int))
    for name in ("short.npz", "absent.npz"):
        with pytest.raises(ConfigError, match=name):
            load_own_samples(tmp_path / name)


def test_the_head_of_a_form_that_leaves_the_model_early_is_not_the_partners_to_train():
    x, y = np.random.default_rng(SEED).random((40, 1, 8, 8), np.float32), np.arange(40) % 10
    (tier,) = convert_tiers(digits_cnn(), x, [Board.load("posix")], model_id="m", cut="max_pool2d", y=y.astype(np.int64)).tiers
    manifest, tensors = tier.conversion.package.host, tier.conversion.tensors
    checkpoint = dump_safetensors(tensors, {MANIFEST_KEY: manifest.to_bytes().decode()})
    made = Trainer(digits_cnn, None, seed=5).update("partner-a", plan(), checkpoint, [offer_of(manifest, x, y, np.ones(40))])
    update = load_safetensors(made.blob)
    head = {name for layer in manifest.head for name in (layer.weight, layer.bias)}
    assert head == set(tensors) - set(read_tensors(digits_cnn()))
    assert {name for name in update if not name.startswith(RANGE_PREFIX)} == set(tensors) - head
    assert {name for name in update if name.startswith(RANGE_PREFIX)} == {
        RANGE_PREFIX + name for name in observation_points(manifest.template) if name != manifest.template.input
    }
    decoded = Float32().decode(
        Role.PARTNER, made.blob, ModelShape(tensors, manifest.head, manifest.ranges, manifest.template.input)
    )
    assert not head & set(decoded.tensors)


def test_a_module_without_the_checkpoints_own_head_is_refused(case):
    factory, manifest, x, y = case
    other = har_cnn if factory is digits_cnn else digits_cnn
    with pytest.raises(ConfigError, match="does not fit the partner's model"):
        Trainer(other, None, seed=5).update(
            "a", plan(), checkpoint_of(factory, manifest), [offer_of(manifest, x, y, np.ones(40))]
        )
