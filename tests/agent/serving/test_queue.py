"""Who is next: bounded, urgent first, fair, and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.serving.queue import AGING_SECONDS, RequestQueue, Reservation, Waiting


def waiting(
    number: int, client: str = "a", priority: int = 4, since: float = 0.0, deadline: float | None = None
) -> Waiting[int]:
    return Waiting(client, number, priority, since, number, deadline)


def take_all(queue: RequestQueue[int], now: float = 0.0) -> list[int]:
    taken = []
    while (item := queue.take(now)) is not None:
        taken.append(item)
    return taken


def test_equal_requests_of_one_client_go_in_order_of_arrival() -> None:
    queue: RequestQueue[int] = RequestQueue(10, 10)
    for number in range(5):
        queue.put(waiting(number))
    assert take_all(queue) == [0, 1, 2, 3, 4]


def test_flood_of_one_client_does_not_starve_another() -> None:
    queue: RequestQueue[int] = RequestQueue(200, 200)
    for number in range(100):
        queue.put(waiting(number, "flood"))
    queue.put(waiting(100, "quiet"))
    queue.put(waiting(101, "quiet"))
    first = [queue.take(0.0) for _ in range(4)]
    assert {100, 101} <= set(first)


def test_client_that_was_away_gets_no_credit_for_it() -> None:
    queue: RequestQueue[int] = RequestQueue(200, 200)
    for number in range(50):
        queue.put(waiting(number, "busy"))
    for _ in range(40):
        queue.take(0.0)
    for number in range(100, 110):
        queue.put(waiting(number, "back"))
    next_ones = [queue.take(0.0) for _ in range(10)]
    assert sum(number is not None and number < 100 for number in next_ones) >= 4


def test_urgent_goes_first_but_waiting_counts() -> None:
    queue: RequestQueue[int] = RequestQueue(10, 10)
    queue.put(waiting(0, "low", priority=0, since=0.0))
    queue.put(waiting(1, "high", priority=9, since=0.0))
    assert queue.take(0.0) == 1
    now = 10 * AGING_SECONDS
    queue.put(waiting(2, "high", priority=9, since=now))
    assert queue.take(now) == 0


def test_flood_that_waits_long_does_not_starve_another() -> None:
    """A newcomer is next but one, however long the flood has waited: it has had its turns meanwhile."""
    queue: RequestQueue[int] = RequestQueue(200, 200)
    for number in range(100):
        queue.put(waiting(number, "flood"))
    now = 0.0
    for _ in range(20):
        now += AGING_SECONDS
        queue.take(now)
    queue.put(waiting(100, "quiet", since=now))
    queue.put(waiting(101, "quiet", since=now))
    assert {100, 101} <= {queue.take(now + number) for number in range(4)}


def test_urgent_flood_lets_another_through_after_a_while() -> None:
    queue: RequestQueue[int] = RequestQueue(200, 200)
    for number in range(100):
        queue.put(waiting(number, "flood", priority=9))
    queue.put(waiting(100, "quiet", priority=0))
    taken = [queue.take(float(now)) for now in range(60)]
    assert 100 in taken
    assert taken.index(100) == 9 * AGING_SECONDS


def test_own_urgent_requests_do_not_hold_back_own_others_for_ever() -> None:
    queue: RequestQueue[int] = RequestQueue(200, 200)
    queue.put(waiting(0, priority=0))
    taken = []
    for now in range(60):
        queue.put(waiting(now + 1, priority=9, since=float(now)))
        taken.append(queue.take(float(now)))
    assert 0 in taken


def test_room_is_bounded_in_all_and_for_each_client() -> None:
    queue: RequestQueue[int] = RequestQueue(3, 2)
    queue.put(waiting(0))
    queue.put(waiting(1))
    assert not queue.has_room("a")
    assert queue.has_room("b")
    assert not queue.has_room("b", reserved=Reservation(1))
    assert not queue.has_room("b", own=Reservation(2))
    queue.remove(0)
    assert queue.has_room("a")
    assert not queue.has_room("a", own=Reservation(1))


def test_bytes_are_bounded_in_all_and_for_each_client() -> None:
    queue: RequestQueue[int] = RequestQueue(100, 100, 1000)
    queue.put(Waiting("a", 0, 4, 0.0, 0, size=400))
    assert queue.has_room("a", 100)
    assert not queue.has_room("a", 101), "half of all, for one client"
    assert not queue.has_room("a", 100, own=Reservation(1, 1))
    queue.put(Waiting("b", 1, 4, 0.0, 1, size=450))
    assert queue.has_room("c", 150)
    assert not queue.has_room("c", 151)
    assert not queue.has_room("c", 150, reserved=Reservation(1, 1))
    queue.remove(0)
    assert queue.has_room("a", 500)


def test_expired_are_taken_out() -> None:
    queue: RequestQueue[int] = RequestQueue(10, 10)
    queue.put(waiting(0, deadline=5.0))
    queue.put(waiting(1, deadline=9.0))
    queue.put(waiting(2))
    assert queue.next_deadline() == 5.0
    assert queue.expired(5.0) == [0]
    assert sorted(queue) == [1, 2]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.floats(0, 100)), max_size=40),
    st.lists(st.integers(0, 39), max_size=10),
)
def test_everything_put_in_comes_out_once(requests: list[tuple[str, int, float]], removed: list[int]) -> None:
    queue: RequestQueue[int] = RequestQueue(100, 100)
    for number, (client, priority, since) in enumerate(requests):
        queue.put(waiting(number, client, priority, since))
    gone = {item for number in removed if (item := queue.remove(number)) is not None}
    foreseen = queue.in_order(100.0)
    positions = sorted(queue.position(number, 100.0) for number in list(queue))
    assert positions == list(range(len(positions)))
    taken = take_all(queue, 100.0)
    assert sorted(taken) == sorted(set(range(len(requests))) - gone)
    assert taken == foreseen
    assert len(queue) == 0
