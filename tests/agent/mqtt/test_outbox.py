"""What is owed to a broker, whatever happens to connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.mqtt.outbox import MAX_EXPENDABLE_BYTES, AckOrder, Outbox, Outgoing


def test_window_holds_back_and_acknowledgements_let_go() -> None:
    outbox = Outbox(window=1)
    outbox.put(Outgoing(1, "a", b"1"))
    outbox.put(Outgoing(2, "a", b"2"))
    first = outbox.take()
    assert first is not None
    outbox.sent(first, 10)
    assert outbox.take() is None
    assert outbox.acknowledged(11) is None
    assert outbox.acknowledged(10) == first
    second = outbox.take()
    assert second is not None
    assert second.number == 2


def test_what_was_in_flight_is_sent_again_first_and_in_order() -> None:
    outbox = Outbox()
    for number in (1, 2, 3):
        outbox.put(Outgoing(number, "a", b""))
    for packet in (7, 8):
        message = outbox.take()
        assert message is not None
        outbox.sent(message, packet)
    outbox.connection_lost()
    order = [message.number for _ in range(3) if (message := outbox.take()) is not None]
    assert order == [1, 2, 3]


def test_waiting_retained_message_is_replaced_by_a_newer_one() -> None:
    outbox = Outbox()
    outbox.put(Outgoing(1, "health", b"old", retain=True))
    outbox.put(Outgoing(2, "reply", b"kept"))
    outbox.put(Outgoing(3, "health", b"new", retain=True))
    taken = [message.payload for _ in range(3) if (message := outbox.take()) is not None]
    assert taken == [b"new", b"kept"]


def test_too_much_that_waits_is_noticed_and_forgotten_when_it_left() -> None:
    outbox = Outbox()
    health = Outgoing(0, "health", b"x" * MAX_EXPENDABLE_BYTES, retain=True)
    outbox.put(health)
    assert outbox.full
    outbox.put(Outgoing(1, "health", b"short", retain=True))
    assert not outbox.full
    outbox.put(Outgoing(2, "reply", b"x" * MAX_EXPENDABLE_BYTES))
    for packet in (1, 2):
        message = outbox.take()
        assert message is not None
        outbox.sent(message, packet)
    assert not outbox.full, "what is in flight has the window as its bound"
    outbox.connection_lost()
    assert outbox.full
    for _ in range(2):
        message = outbox.take()
        assert message is not None
    assert not outbox.full


@given(st.permutations(list(range(1, 9))))
def test_acknowledgements_leave_in_the_order_of_arrival(settled: list[int]) -> None:
    order = AckOrder()
    for packet in range(1, 9):
        order.arrived(packet)
    left = [ready for packet in settled for ready in order.settle(packet)]
    assert left == list(range(1, 9))
