# SPDX-License-Identifier: Apache-2.0
"""The partner's state machine, with a virtual clock and a coordinator and devices made of messages."""

import zlib

import numpy as np

from fedmote.partner import session as machine
from fedmote.partner.session import (
    DropOffers,
    DropPending,
    KeepCheckpoint,
    KeepOffer,
    KeepPending,
    Send,
    Session,
    Stage,
    Standing,
    Train,
    Trained,
    blob_hash,
)
from fedmote.transport.base import Received
from fedmote.wire.blobs import encode_selected_samples
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Kind, Phase, Role, Status
from fedmote.wire.transfer import BlobSource

RUN = b"run-0001"
CHECKPOINT = bytes(range(256)) * 300
UPDATE = Trained(b"update" * 100, {"num_examples": 5, "trained": 9})


def plan(number=1, phase=Phase.SIMULTANEOUS, checkpoint=CHECKPOINT, run=RUN, remaining_ms=10_000, **more):
    return Message.of(
        Kind.PLAN,
        run=run,
        round=number,
        phase=phase,
        version=number - 1,
        remaining_ms=remaining_ms,
        model_hash=blob_hash(checkpoint),
        model_handle=77,
        model_size=len(checkpoint),
        seed=3,
        epochs=2,
        batch=8,
        learning_rate_micro=10_000,
        momentum_micro=0,
        **more,
    )


def samples_blob(count=3, value=1):
    numbers = np.arange(count, dtype=np.uint32)
    return encode_selected_samples(numbers, numbers, numbers + 1, np.full((count, 64), value, np.int8))


def offer_of(blob, number=1, run=RUN):
    crc = zlib.crc32(blob)
    return Message.of(Kind.SAMPLES, handle=crc, run=run, round=number, size=len(blob), crc=crc, count=3, input_bytes=64)


class Desk:
    """A session, its clock, and everything it asked for."""

    def __init__(self, devices=("dev-1",), standing=None):
        self.session = Session("phone", devices, 1, "test", standing or Standing())
        self.now = 0.0
        self.actions = []

    def note(self, actions):
        self.actions += actions
        return actions

    def tick(self, seconds=0.0):
        self.now += seconds
        return self.note(self.session.tick(self.now))

    def coordinator(self, message):
        return self.note(self.session.handle(Received("phone", Channel.COORDINATOR, message), self.now))

    def device(self, message, id="dev-1"):
        return self.note(self.session.handle(Received(id, Channel.CELL, message), self.now))

    def serve(self, actions, handle, blob, answer):
        """Answer every `get` among the actions, and those that follow, like an honest sender."""
        result = list(actions)
        waiting = [one.message for one in actions if isinstance(one, Send) and one.message.kind is Kind.GET]
        while waiting:
            for data in BlobSource(handle, blob).answer(waiting.pop(0), 65_535):
                more = answer(data)
                result += more
                waiting += [one.message for one in more if isinstance(one, Send) and one.message.kind is Kind.GET]
        return result

    def give_plan(self, message=None, checkpoint=CHECKPOINT):
        return self.serve(self.coordinator(message or plan()), 77, checkpoint, self.coordinator)

    def offer_samples(self, blob=None, number=1, run=RUN, id="dev-1"):
        blob = samples_blob() if blob is None else blob
        message = offer_of(blob, number, run)
        return self.serve(self.device(message, id), message["handle"], blob, lambda data: self.device(data, id))


def kinds(actions, channel=Channel.COORDINATOR):
    return [one.message.kind for one in actions if isinstance(one, Send) and one.channel is channel]


def only(actions, type_):
    found = [one for one in actions if isinstance(one, type_)]
    assert len(found) == 1, actions
    return found[0]


def trained_desk():
    desk = Desk()
    desk.tick()
    desk.give_plan()
    order = only(desk.offer_samples(), Train)
    desk.note(desk.session.trained(order.plan, UPDATE, desk.now))
    return desk


def test_a_partner_says_hello_first_with_its_role():
    hello = only(Desk().tick(), Send).message
    assert (hello.kind, hello["role"], hello["device"]) == (Kind.HELLO, Role.PARTNER, "phone")


def test_hello_is_repeated_ever_later_up_to_a_minute():
    desk = Desk()
    desk.tick()
    pauses = []
    for _ in range(12):
        before, desk.now = desk.now, desk.session.wake_at()
        pauses.append(desk.now - before)
        assert kinds(desk.tick()) == [Kind.HELLO]
    assert 0.5 <= pauses[0] <= 1.0
    assert 30.0 <= max(pauses) <= 60.0


def test_a_wait_is_kept_to():
    desk = Desk()
    desk.tick()
    desk.coordinator(Message.of(Kind.WAIT, wait_ms=7000))
    assert desk.session.wake_at() == 7.0


def test_simultaneous_round_waits_for_the_samples_of_its_devices_then_trains_reports_and_settles():
    desk = Desk()
    desk.tick()
    assert only(desk.give_plan(), KeepCheckpoint).blob == CHECKPOINT
    assert desk.session.stage is Stage.COLLECT
    actions = desk.offer_samples()
    order = only(actions, Train)
    assert [offer.device for offer in order.offers] == ["dev-1"]
    assert order.checkpoint == CHECKPOINT
    actions = desk.session.trained(order.plan, UPDATE, desk.now)
    assert isinstance(actions[0], KeepPending)  # durable before it is said
    report = actions[1].message
    assert (report.kind, report["round"], report["num_examples"]) == (Kind.REPORT, 1, 5)
    get = Message.of(Kind.GET, handle=report["handle"], offset=0, chunk=1024, mask=1)
    assert only(desk.coordinator(get), Send).message["data"] == UPDATE.blob[:1024]
    actions = desk.coordinator(Message.of(Kind.ACK, handle=report["handle"], run=RUN, round=1))
    assert only(actions, DropPending)
    assert only(actions, DropOffers).devices == ("dev-1",)
    assert desk.session.stage is Stage.IDLE
    assert not desk.session.offers


def test_samples_are_durable_before_they_are_acknowledged():
    desk = Desk()
    actions = desk.offer_samples()
    assert [type(one) for one in actions[-2:]] == [KeepOffer, Send]
    assert actions[-1].message.kind is Kind.ACK
    assert actions[-1].channel is Channel.CELL


def test_no_sample_ever_stands_in_a_message_to_the_coordinator():
    desk = trained_desk()
    marker = samples_blob()[-70:]
    for action in desk.actions:
        if isinstance(action, Send) and action.channel is Channel.COORDINATOR:
            assert action.message.kind is not Kind.SAMPLES
            assert all(not (isinstance(value, bytes) and marker in value) for value in action.message.fields.values())


def test_samples_of_a_foreign_device_are_not_even_answered():
    desk = Desk()
    assert desk.device(offer_of(samples_blob()), id="dev-of-somebody-else") == []


def test_a_repeated_offer_is_acknowledged_again_and_not_pulled_again():
    desk = Desk()
    desk.offer_samples()
    actions = desk.device(offer_of(samples_blob()))
    assert [one.message.kind for one in actions] == [Kind.ACK]


def test_waiting_for_samples_ends_after_its_share_of_the_round():
    desk = Desk(devices=("dev-1", "dev-2"))
    desk.tick()
    desk.give_plan()
    desk.offer_samples()
    assert desk.session.stage is Stage.COLLECT
    desk.tick(10 * machine.COLLECT_SHARE - 0.1)
    assert desk.session.stage is Stage.COLLECT
    order = only(desk.tick(0.2), Train)
    assert [offer.device for offer in order.offers] == ["dev-1"]


def test_alternating_form_uses_the_samples_of_the_device_round_before():
    desk = Desk()
    desk.offer_samples(number=1)
    desk.tick()
    order = only(desk.give_plan(plan(number=2, phase=Phase.PARTNER)), Train)
    assert [(offer.device, offer.round) for offer in order.offers] == [("dev-1", 1)]


def test_simultaneous_form_does_not_use_samples_of_an_older_round():
    desk = Desk()
    desk.offer_samples(number=1)
    desk.tick()
    desk.give_plan(plan(number=2))
    assert desk.session.stage is Stage.COLLECT


def test_samples_of_another_run_are_deleted_when_a_plan_arrives():
    desk = Desk()
    desk.offer_samples(run=b"run-0000")
    desk.tick()
    assert only(desk.give_plan(), DropOffers).devices == ("dev-1",)


def test_a_checkpoint_that_is_here_already_is_not_pulled_again():
    desk = Desk(devices=(), standing=Standing(checkpoint=(blob_hash(CHECKPOINT), CHECKPOINT)))
    desk.tick()
    actions = desk.coordinator(plan())
    assert kinds(actions) == []
    assert only(actions, Train).checkpoint == CHECKPOINT


def test_a_spoiled_checkpoint_is_refused():
    desk = Desk()
    desk.tick()
    spoiled = bytes([CHECKPOINT[0] ^ 1]) + CHECKPOINT[1:]
    refusal = desk.give_plan(checkpoint=spoiled)[-1].message
    assert (refusal.kind, refusal["status"]) == (Kind.REFUSE, Status.PACKAGE_HASH)
    assert desk.session.stage is Stage.IDLE


def test_spoiled_samples_are_refused_and_may_be_offered_again():
    desk = Desk()
    blob = samples_blob()
    spoiled = blob[:-1] + bytes([blob[-1] ^ 1])
    message = offer_of(blob)
    actions = desk.serve(desk.device(message), message["handle"], spoiled, desk.device)
    assert actions[-1].message["status"] == Status.CRC
    assert isinstance(only(desk.offer_samples(), KeepOffer), KeepOffer)


def test_lost_chunks_are_asked_for_again():
    desk = Desk()
    desk.device(offer_of(samples_blob()))
    assert desk.tick(0.5)[-1].message.kind is Kind.HELLO  # the hello of the idle session, no get yet
    assert Kind.GET in kinds(desk.tick(0.6), Channel.CELL)


def test_a_device_that_went_away_in_the_middle_of_its_samples_is_not_asked_for_ever():
    desk = Desk()
    desk.tick()
    blob = samples_blob(200)
    (get,) = [one.message for one in desk.device(offer_of(blob)) if isinstance(one, Send)]
    desk.now += 50.0  # the first chunk comes late; the patience begins anew with it
    desk.device(BlobSource(get["handle"], blob).answer(get, 65_535)[0])
    num_asked = 0
    for _ in range(200):
        num_asked += kinds(desk.tick(1.0), Channel.CELL).count(Kind.GET)
    assert num_asked == machine.PULL_PATIENCE_S - 1
    assert only(desk.offer_samples(blob), KeepOffer).offer.blob == blob  # it is back, and offers again


def test_samples_outlive_a_restart_between_device_round_and_partner_round():
    before = Desk()
    before.tick()
    offer = only(before.offer_samples(number=1), KeepOffer).offer
    after = Desk(standing=Standing(offers={offer.device: offer}))
    after.tick()
    assert only(after.give_plan(plan(number=2, phase=Phase.PARTNER)), Train).offers == (offer,)


def test_a_report_is_repeated_until_it_is_answered():
    desk = trained_desk()
    assert kinds(desk.tick(machine.REPORT_REPEAT_S)) == [Kind.REPORT]
    assert kinds(desk.tick(0.5)) == []
    assert kinds(desk.tick(1.5)) == [Kind.REPORT]


def test_a_deadline_ends_fetching_collecting_and_training():
    for prepare in (lambda desk: desk.coordinator(plan()), lambda desk: desk.give_plan()):
        desk = Desk(devices=("dev-1", "dev-2"))
        desk.tick()
        prepare(desk)
        desk.now += 10.0
        assert Kind.HELLO in kinds(desk.tick())
        assert desk.session.stage is Stage.IDLE


def test_a_training_that_comes_too_late_changes_nothing():
    desk = Desk()
    desk.tick()
    desk.give_plan()
    order = only(desk.offer_samples(), Train)
    desk.tick(11.0)
    assert desk.session.trained(order.plan, UPDATE, desk.now) == []


def test_an_impossible_training_refuses_the_plan_and_drops_the_samples():
    desk = Desk()
    desk.tick()
    desk.give_plan()
    order = only(desk.offer_samples(), Train)
    actions = desk.session.failed(order.plan, Status.FIELD_RANGE, "label 12, the model has 10 classes", desk.now)
    assert actions[0].message["status"] == Status.FIELD_RANGE
    assert only(actions, DropOffers)


def test_an_update_survives_a_restart_and_is_reported_under_the_new_attempt():
    desk = trained_desk()
    pending = only(desk.actions, KeepPending).pending
    reborn = Desk(standing=Standing(offers=desk.session.offers, checkpoint=(blob_hash(CHECKPOINT), CHECKPOINT), pending=pending))
    reborn.tick()
    report = only(reborn.coordinator(plan(attempt=2)), Send).message
    assert (report.kind, report["attempt"], report["crc"]) == (Kind.REPORT, 2, pending.report["crc"])
    actions = reborn.coordinator(Message.of(Kind.ACK, handle=report["handle"], run=RUN, round=1))
    assert only(actions, DropOffers).devices == ("dev-1",)


def test_a_plan_of_a_later_round_drops_the_held_update_and_its_samples():
    desk = trained_desk()
    actions = desk.coordinator(plan(number=2, checkpoint=b"new" * 100))
    assert only(actions, DropPending)
    assert only(actions, DropOffers).devices == ("dev-1",)
    assert desk.session.stage is Stage.FETCH


def test_a_refused_report_is_forgotten():
    desk = trained_desk()
    handle = only(desk.actions, KeepPending).pending.report["handle"]
    refusal = Message.of(Kind.REFUSE, status=Status.STALE_ROUND, handle=handle, run=RUN, round=1)
    assert only(desk.coordinator(refusal), DropPending)


def test_a_new_link_is_greeted_in_every_stage():
    desk = trained_desk()
    assert kinds(desk.session.connected(desk.now)) == [Kind.HELLO, Kind.REPORT]


def test_a_get_for_an_unknown_blob_is_refused():
    desk = Desk()
    answer = only(desk.coordinator(Message.of(Kind.GET, handle=5, offset=0, chunk=8, mask=1)), Send).message
    assert (answer.kind, answer["handle"]) == (Kind.REFUSE, 5)


def test_an_oversized_offer_is_refused_before_memory_is_taken():
    desk = Desk()
    message = Message.of(Kind.SAMPLES, handle=1, run=RUN, round=1, size=2**32 - 1, crc=1, count=1, input_bytes=64)
    assert only(desk.device(message), Send).message["status"] == Status.BODY_TOO_LARGE
