"""What is done next, whatever happens in whatever order."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.install import planner as steps
from agent.install.desired import DesiredDocument, Install, OperatorOrder, Rollback
from agent.install.planner import NEVER, Facts, Planner
from agent.install.settings import InstallSettings
from agent.install.update.attempt import Outcome
from contract.identifiers import Digest

READY = Facts(writable=True, idle=True, refresh_due=NEVER, refresh_asked=False)
UNWRITABLE = msgspec.structs.replace(READY, writable=False)
SETTINGS = InstallSettings()
FIRST = Install("a", "1", SETTINGS, sources=("/s",), origin=DesiredDocument("r1"))
SECOND = Install("a", "2", SETTINGS, sources=("/s",), origin=DesiredDocument("r2"))
ORDER = Install("a", "3", SETTINGS, sources=("/s",), origin=OperatorOrder())
BACK = Rollback("a", "0", SETTINGS, digest=Digest("ab" * 32))


def after_start() -> Planner:
    """Has looked at what is installed, and waits."""
    planner = Planner()
    assert planner.next_step(0.0, READY) == steps.Inspect(may_repair=True)
    assert planner.next_step(0.0, READY) == steps.Wait(NEVER)
    return planner


def test_an_order_of_the_operator_comes_before_what_is_desired_and_orders_in_their_order() -> None:
    planner = after_start()
    planner.adopt(FIRST)
    first, second = planner.order(ORDER), planner.order(BACK)
    assert planner.next_step(1.0, READY) == steps.Execute(first)
    assert planner.next_step(1.0, READY) == steps.Execute(second)
    assert planner.next_step(1.0, READY) == steps.Update(FIRST)


def test_what_failed_for_now_is_tried_again_when_it_is_time_and_not_before() -> None:
    planner = after_start()
    planner.adopt(FIRST)
    assert not planner.updated(FIRST, Outcome("later", retry_in=5.0), now=10.0)
    assert planner.next_step(10.0, READY) == steps.Wait(15.0)
    planner.woken()
    assert planner.next_step(10.0, READY) == steps.Inspect(may_repair=False)
    assert planner.next_step(10.0, READY) == steps.Wait(15.0)
    assert planner.next_step(15.0, READY) == steps.Update(FIRST)


def test_the_same_document_once_more_does_not_wait_for_the_next_attempt() -> None:
    planner = after_start()
    planner.adopt(FIRST)
    planner.updated(FIRST, Outcome("later", retry_in=900.0), now=0.0)
    planner.try_now()
    assert planner.next_step(0.0, READY) == steps.Update(FIRST)


def test_what_was_refused_or_is_active_is_over() -> None:
    for kind in ("refused", "active"):
        planner = after_start()
        planner.adopt(FIRST)
        assert planner.updated(FIRST, Outcome(kind), now=0.0)
        assert planner.target is None


def test_the_latest_target_wins_over_the_result_of_the_one_before() -> None:
    planner = after_start()
    planner.adopt(FIRST)
    assert planner.next_step(0.0, READY) == steps.Update(FIRST)
    planner.adopt(SECOND)
    assert not planner.updated(FIRST, Outcome("later", retry_in=900.0), now=0.0)
    assert planner.next_step(0.0, READY) == steps.Update(SECOND)


def test_an_order_that_is_active_ends_what_was_desired_before_it_but_not_what_came_meanwhile() -> None:
    planner = after_start()
    planner.adopt(FIRST)
    planner.next_step(0.0, READY)
    assert planner.executed(Outcome("active"), FIRST)
    assert planner.next_step(0.0, READY) == steps.Withdraw()
    planner.adopt(SECOND)
    assert not planner.executed(Outcome("active"), FIRST)
    assert planner.target is SECOND
    assert not planner.executed(Outcome("refused"), SECOND)
    assert planner.target is SECOND


def test_while_nothing_can_be_recorded_what_is_active_answers_and_nothing_is_begun() -> None:
    planner = after_start()
    planner.adopt(FIRST)
    order = planner.order(ORDER)
    assert planner.next_step(0.0, UNWRITABLE) == steps.Wait(NEVER)
    assert planner.drop_orders() == [order]
    planner.restored(7.0)
    assert planner.next_step(0.0, UNWRITABLE) == steps.Wait(7.0)
    assert planner.next_step(7.0, UNWRITABLE) == steps.ServeRecorded()
    planner.restart_soon()
    assert planner.next_step(0.0, READY) == steps.Restart()


def test_after_a_fault_nothing_is_updated_until_the_restart() -> None:
    planner = after_start()
    planner.adopt(FIRST)
    planner.failed(30.0)
    cut_off = msgspec.structs.replace(READY, idle=False)
    assert planner.next_step(0.0, cut_off) == steps.Wait(30.0)
    assert planner.next_step(30.0, cut_off) == steps.Restart()
    planner.restored(None)
    assert planner.next_step(30.0, READY) == steps.Update(FIRST)


def test_trust_is_refreshed_when_it_is_due_or_asked_for_and_nothing_else_is_to_be_done() -> None:
    planner = after_start()
    due = msgspec.structs.replace(READY, refresh_due=5.0)
    assert planner.next_step(0.0, due) == steps.Wait(5.0)
    assert planner.next_step(5.0, due) == steps.RefreshTrust()
    asked = msgspec.structs.replace(READY, refresh_asked=True)
    assert planner.next_step(0.0, asked) == steps.RefreshTrust()
    planner.adopt(FIRST)
    assert planner.next_step(0.0, asked) == steps.Update(FIRST)


KINDS = st.sampled_from(["active", "refused", "later", "superseded"])


@given(st.data())
def test_it_comes_to_rest_whatever_happens(data: st.DataObject) -> None:
    """Between two things that happen there is an end to what is to be done: it never spins."""
    planner, now = Planner(), 0.0
    for _ in range(data.draw(st.integers(1, 6))):
        match data.draw(st.sampled_from(["adopt", "none", "withdraw", "order", "fault", "recovered", "time"])):
            case "adopt":
                planner.adopt(data.draw(st.sampled_from([FIRST, SECOND])))
            case "none":
                planner.adopt(None)
            case "withdraw":
                planner.withdraw()
            case "order":
                planner.order(ORDER)
            case "fault":
                planner.failed(now + 30.0)
            case "recovered":
                planner.restart_soon()
            case "time":
                now += data.draw(st.floats(0.0, 60.0))
        planner.woken()
        for _ in range(12):
            step = planner.next_step(now, READY)
            if isinstance(step, steps.Wait):
                assert step.until > now
                break
            match step:
                case steps.Restart() | steps.ServeRecorded():
                    planner.restored(data.draw(st.sampled_from([None, now + 30.0])))
                case steps.Execute(order):
                    planner.executed(Outcome(data.draw(KINDS)), planner.target)
                    assert order.target is ORDER
                case steps.Update(target):
                    kind = data.draw(KINDS.filter(lambda kind: kind != "superseded"))
                    planner.updated(target, Outcome(kind, retry_in=5.0), now)
                case _:
                    pass
        else:
            raise AssertionError("it spins")
