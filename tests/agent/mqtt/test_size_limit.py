"""What is concluded from lost connections about the messages that were under way."""

from __future__ import annotations

import pytest

from agent.mqtt.outbox import LOSSES, Outbox, Outgoing
from agent.mqtt.size_limit import FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS, MAX_TOPICS, FoundLimit, SizeLimit
from agent.mqtt.unconfirmed import SETTLED_SECONDS, Unconfirmed


def send_all(outbox: Outbox, limit: int) -> list[int]:
    """One connection to a broker that takes fewer bytes than ``limit``: acknowledges in order until one is too large;
    returns the numbers it acknowledged.
    """
    outbox.connected()
    outbox.calm()
    taken: list[int] = []
    packet = 0
    while True:
        batch = []
        while (message := outbox.take()) is not None:
            packet += 1
            outbox.sent(message, packet)
            batch.append((packet, message))
        if not batch:
            return taken
        for number, message in batch:
            if message.size >= limit:
                return taken
            assert outbox.acknowledged(number) == message
            taken.append(message.number)


def test_the_message_that_connections_are_lost_for_is_given_up_at_the_third_loss_and_all_others_arrive() -> None:
    outbox = Outbox()
    for number in range(1, 7):
        outbox.put(Outgoing(number, f"t{number}", b"x" * (5000 if number == 3 else 10)))
    arrived: list[int] = []
    lost = []
    for _ in range(LOSSES):
        arrived += send_all(outbox, 2000)
        lost.append(outbox.connection_lost())
    assert [message and message.number for message in lost] == [None, None, 3]
    arrived += send_all(outbox, 2000)
    assert sorted(arrived) == [1, 2, 4, 5, 6]
    assert not len(outbox)


def test_several_that_are_too_large_go_one_after_the_other() -> None:
    outbox = Outbox()
    for number in range(1, 8):
        outbox.put(Outgoing(number, f"t{number}", b"x" * (5000 if number in (2, 4, 7) else 10)))
    arrived, given_up, losses = [], [], 0
    while len(outbox):
        arrived += send_all(outbox, 2000)
        if len(outbox):
            losses += 1
            if (message := outbox.connection_lost()) is not None:
                given_up.append(message.number)
    assert sorted(arrived) == [1, 3, 5, 6]
    assert sorted(given_up) == [2, 4, 7]
    assert losses <= 3 * LOSSES


def test_a_suspect_delays_nothing_that_waited_and_is_not_starved_by_what_is_new() -> None:
    outbox = Outbox()
    outbox.put(Outgoing(1, "large", b"x" * 5000))
    for _ in range(LOSSES - 1):
        send_all(outbox, 2000)
        outbox.connection_lost()
    outbox.put(Outgoing(2, "waits", b""))
    outbox.connected()
    outbox.calm()
    outbox.put(Outgoing(3, "new", b""))
    first = outbox.take()
    assert first is not None
    assert first.number == 2
    outbox.sent(first, 1)
    assert outbox.take() is None, "the suspect is next"
    outbox.acknowledged(1)
    alone = outbox.take()
    assert alone is not None
    assert alone.number == 1
    outbox.sent(alone, 3)
    assert outbox.take() is None, "nothing beside a suspect"
    outbox.acknowledged(3)
    after = outbox.take()
    assert after is not None
    assert after.number == 3


def test_a_retained_document_stays_the_same_suspect_when_a_newer_one_takes_its_place() -> None:
    outbox = Outbox()
    lost = None
    for number in range(1, LOSSES + 1):
        outbox.put(Outgoing(number, "info", b"x" * (5000 + number), retain=True))
        send_all(outbox, 2000)
        lost = outbox.connection_lost()
    assert lost is not None
    assert lost.topic == "info"
    assert not len(outbox)


def test_losses_that_no_message_can_be_the_reason_for_make_no_suspect() -> None:
    outbox = Outbox()
    outbox.put(Outgoing(1, "a", b"x"))
    for _ in range(3 * LOSSES):
        send_all(outbox, 0)
        assert outbox.connection_lost(blameless=True) is None
    for _ in range(3 * LOSSES):
        send_all(outbox, 0)
        assert outbox.connection_lost(silent=True) is None, "a dead link takes nothing, of any size"
    assert len(outbox) == 1


def test_a_link_that_goes_silent_at_large_messages_alone_has_the_large_one_given_up() -> None:
    outbox = Outbox()
    given_up = []
    number = 1
    outbox.put(Outgoing(number, "large", b"x" * 5000))
    for _ in range(LOSSES):
        number += 1
        outbox.put(Outgoing(number, "status", b"small", retain=True))
        outbox.connected()
        outbox.calm()
        while (message := outbox.take()) is not None:
            outbox.sent(message, message.number)
            if message.topic == "status":
                outbox.acknowledged(message.number)
        given_up.append(outbox.connection_lost(silent=True))
    # In the first loss nothing smaller had been acknowledged before it was sent.
    assert [message and message.number for message in given_up] == [None, None, 1]


def test_a_limit_is_believed_where_a_smaller_message_was_acknowledged_on_the_same_connection() -> None:
    limit = SizeLimit()
    given_up = limit.refused("answer", 5000, 100, now=0.0)
    assert given_up.by_size
    assert limit.found == FoundLimit(5000, 0.0)
    assert limit.check("other", 4999, 1.0) is None
    assert limit.check("other", 5000, 1.0) is not None
    limit.refused("answer", 4000, 100, now=2.0)
    assert limit.found == FoundLimit(4000, 2.0, 2)
    limit.refused("answer", 4500, 100, now=3.0)
    assert limit.found == FoundLimit(4000, 3.0, 3)


def test_a_topic_that_the_broker_does_not_bear_says_nothing_about_others() -> None:
    limit = SizeLimit()
    for acknowledged in (0, 3000):
        given_up = limit.refused("event", 100, acknowledged, now=0.0)
        assert not given_up.by_size
        assert limit.found is None
    assert limit.check("event", 100, 1.0) is not None
    assert limit.check("event", 99, 1.0) is None
    assert limit.check("other", 5000, 1.0) is None
    for number in range(2 * MAX_TOPICS):
        limit.refused(f"reply/{number}", 100, 0, now=0.0)
    assert len(limit._topics) == MAX_TOPICS


def test_a_limit_is_forgotten_when_the_broker_takes_more() -> None:
    limit = SizeLimit(FoundLimit(2000, 100.0))
    assert not limit.taken(1999)
    assert limit.check("a", 2500, 101.0) is not None
    assert limit.taken(2500)
    assert limit.found is None
    assert limit.check("a", 2500, 101.0) is None


@pytest.mark.parametrize("acknowledged", [100, 0])
def test_what_was_found_is_tried_again_after_a_minute_and_less_often_each_time(acknowledged: int) -> None:
    limit = SizeLimit()
    held, now = FIRST_HOLD_SECONDS, 1000.0
    for _ in range(20):
        limit.refused("answer", 2000, acknowledged, now)
        assert limit.check("answer", 2500, now + held - 1) is not None
        assert limit.check("answer", 1999, now + held - 1) is None
        assert limit.check("answer", 2500, now + held) is None
        now, held = now + held, min(2 * held, LONGEST_HOLD_SECONDS)
    assert held == LONGEST_HOLD_SECONDS
    # A clock that was set back must not make it last longer.
    assert limit.check("answer", 2500, now - 10 * LONGEST_HOLD_SECONDS) is None


def test_a_connection_that_is_lost_anyway_says_nothing_against_a_message() -> None:
    """Another device of our name takes the connection every time, a moment after the beginning."""
    outbox = Outbox()
    outbox.put(Outgoing(1, "answer", b"x" * 300))
    for _ in range(5 * LOSSES):
        outbox.connected()
        if (message := outbox.take()) is not None:
            outbox.sent(message, message.number)
        assert outbox.connection_lost() is None
    outbox.connected()
    outbox.calm()
    message = outbox.take()
    assert message is not None
    assert message.number == 1


def test_messages_that_nobody_acknowledges_are_left_out_after_three_losses_and_nothing_else() -> None:
    limit = SizeLimit()
    assert not limit.refused_once(2500, 0.0)
    assert not limit.refused_once(2400, 1.0)
    assert limit.refused_once(2600, 2.0)
    assert limit.check("telemetry", 2400, 3.0, once=True) is not None
    assert limit.check("answer", 2400, 3.0) is None
    limit.taken(2400)
    assert limit.check("telemetry", 2400, 3.0, once=True) is None


def test_an_acknowledgement_proves_what_went_before_it() -> None:
    unproven = Unconfirmed()
    unproven.sent_once(3000, "telemetry")
    unproven.sent(7)
    unproven.sent_once(4000, "telemetry")
    assert unproven.largest() == (4000, "telemetry")
    assert unproven.acknowledged(7) == 3000
    assert unproven.acknowledged(7) == 0
    assert unproven.largest() == (4000, "telemetry")


def test_an_acknowledgement_of_ours_is_suspect_until_something_sent_after_it_was_answered_or_time_has_passed() -> None:
    unproven = Unconfirmed()
    assert unproven.just_settled(1.0) == ""
    unproven.sent(1)
    unproven.settled("generate/me", 1.0)
    assert unproven.just_settled(1.0 + SETTLED_SECONDS) == "generate/me"
    assert unproven.just_settled(1.1 + SETTLED_SECONDS) == ""
    unproven.acknowledged(1)
    assert unproven.just_settled(2.0) == "generate/me", "it went out before"
    unproven.sent(2)
    unproven.acknowledged(2)
    assert unproven.just_settled(2.0) == ""
