"""What users can rely on, on every host."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import reduce
from operator import xor
from pathlib import Path

import pytest

from exproto_app.testing import replay

from . import apps
from .conftest import Serve
from .hosts import PASSWORD, Device, Host


class TestTurns:
    """Turns of one connection run one after another; connections never wait for each other."""

    def test_frames_are_handled_in_order(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"slow 1\necho 2\nslow 3\necho 4\n")
        device.expect(b"slow 1\n2\nslow 3\n4\n")

    def test_connections_dont_wait_for_each_other(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        waiting, other = host.connect(), host.connect()
        waiting.send(b"wait %s\necho behind\n" % unique.encode())
        waiting.expect(b"waiting\n")
        other.send(b"echo meanwhile\nopen %s\n" % unique.encode())
        other.expect(b"meanwhile\nopened\n")
        waiting.expect(b"open\nbehind\n")

    def test_the_frame_after_a_login_sees_the_client(self, serve: Serve, unique: str) -> None:
        device = serve("turns").connect()
        device.send(b"who\nregister %s\nwho\nonline %s\n" % (unique.encode(), unique.encode()))
        device.expect(b"nobody\n%s\nthis\n" % unique.encode())

    def test_a_connections_id_may_be_its_clientid(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        host.connect().send(b"anonymous ids/%s\n" % unique.encode())
        assert host.published(f"ids/{unique}")

    def test_a_blocking_handler_is_a_turn_too(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"thread threads/%s\necho behind\n" % unique.encode())
        device.expect(b"exproto-app\ndone\nbehind\n")
        assert host.published(f"threads/{unique}") == b"from a thread"

    def test_frames_may_come_in_pieces(self, serve: Serve) -> None:
        device = serve("turns", "stream").connect()
        for at in range(4):
            device.send(b"echo"[at : at + 1])
        device.send(b" whole\nec")
        device.expect(b"whole\n")
        device.send(b"ho next\n")
        device.expect(b"next\n")

    @pytest.mark.parametrize("asked", ["time", "thread time"])
    def test_the_time_of_day_is_the_hosts(self, serve: Serve, asked: str) -> None:
        device = serve("turns").connect()
        device.send(f"{asked}\n".encode())
        told = datetime.fromisoformat(device.read_line().strip().decode())
        # In memory time is virtual: the real one when the host began, and moved on by tests.
        assert abs(datetime.now(timezone.utc) - told) < timedelta(days=1)


class TestFirstSteps:
    """What an async handler does before its first wait is of its turn, whenever its task begins."""

    def test_handlers_that_never_wait_keep_the_order(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"soon 1\necho 2\nsoon 3\nslow 4\nsoon 5\necho 6\n")
        device.expect(b"very\nsoon 1\n2\nvery\nsoon 3\nslow 4\nvery\nsoon 5\n6\n")

    def test_many_of_them_at_once(self, serve: Serve) -> None:
        device = serve("turns", "stream").connect()  # of so many datagrams the kernel drops some
        device.send(b"".join(b"soon %d\n" % number for number in range(1500)))
        device.expect(b"".join(b"very\nsoon %d\n" % number for number in range(1500)))

    def test_its_context_is_its_own(self, serve: Serve) -> None:
        host = serve("turns")
        device, other = host.connect(), host.connect()
        device.send(b"mark 1\nmark 2\n")
        device.expect(b"none then 1\nnone then 2\n")
        other.send(b"mark 3\n")
        other.expect(b"none then 3\n")

    def test_it_may_limit_its_first_wait(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"at most 0.02\necho behind\n")
        device.expect(b"too late\nbehind\n")

    def test_a_request_is_there_for_an_answer_that_came_with_the_question(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"ask\nanswer 42\necho behind\n")
        device.expect(b"question\ngot answer 42 after \nbehind\n")

    def test_a_message_to_itself_is_a_turn_of_its_own(self, serve: Serve, unique: str) -> None:
        device = serve("turns").connect()
        topic = f"first/{unique}".encode()
        device.send(b"login %s\nsubscribe %s\ntell %s\n" % (unique.encode(), topic, topic))
        device.expect(b"done\n1\ntelling\n%s qos 0: told\n" % topic)

    def test_it_may_end_the_connection(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"name %s\nleave\necho never handled\n" % unique.encode())
        device.expect(b"ok\nleft\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"terminated"


class TestRequests:
    """`await conn.request()` gives the turn up until the answer."""

    def test_other_frames_are_handled_meanwhile(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"ask\n")
        device.expect(b"question\n")
        device.send(b"note a\nnote b\nanswer 42\necho behind\n")
        device.expect(b"noted\nnoted\ngot answer 42 after a,b\nbehind\n")

    def test_without_an_answer_it_times_out(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"impatient\n")
        device.expect(b"hurry\nRequestTimeout\n")
        device.send(b"echo still here\n")
        device.expect(b"still here\n")

    def test_it_is_sent_again_before_it_times_out(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"stubborn 0.05\n")
        device.expect(b"hurry\nhurry\nRequestTimeout\n")
        device.send(b"echo still here\n")
        device.expect(b"still here\n")

    def test_the_answer_to_the_second_try_counts(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"stubborn 0.5\n")
        device.expect(b"hurry\nhurry\n")
        device.send(b"here\necho behind\n")
        device.expect(b"b'here'\nbehind\n")

    def test_requests_with_one_key_queue_up(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"queue\n")
        device.expect(b"first?\n")
        device.send(b"1\n")
        device.expect(b"second?\n")
        device.send(b"2\n")
        device.expect(b"1 then 2\n")

    def test_the_wait_is_no_time_of_the_handler(self, serve: Serve) -> None:
        device = serve("failing").connect()
        device.send(b"patient\n")
        device.expect(b"take your time\nRequestTimeout\n")

    def test_the_end_of_the_connection_ends_the_wait(self, serve: Serve, unique: str) -> None:
        host = serve("failing")
        device = host.connect()
        device.send(b"name %s\nask\n" % unique.encode())
        device.expect(b"ok\nquestion\n?\n")
        device.hang_up()
        assert host.published(f"asked/{unique}") == b"ClosedError"
        assert host.published(f"end/{unique}") == b"device closed"


class TestLanes:
    """What goes to the device and what goes to the broker each keep their order."""

    def test_sends_come_before_what_was_returned(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"three\nthree\n")
        device.expect(b"one\ntwo\nthree\none\ntwo\nthree\n")

    def test_commands_to_the_broker_keep_their_order(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        topic = f"lane/{unique}"
        device.send(b"login %s\nbroker %s\n" % (unique.encode(), topic.encode()))
        device.expect(b"done\ndone\n%s qos 0: between\n" % topic.encode())
        assert [host.published(topic) for _ in range(3)] == [b"before", b"between", b"behind"]
        device.send(b"echo nothing else\n")
        device.expect(b"nothing else\n")

    def test_terminate_acts_when_both_lanes_are_flushed(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"name %s\nlogin %s\n" % (unique.encode(), unique.encode()))
        device.expect(b"ok\ndone\n")
        device.send(b"last words lane/%s\necho never handled\n" % unique.encode())
        device.expect(b"going\nsaid after terminate\ngone\n")
        device.expect_end()
        assert host.published(f"lane/{unique}") == b"last words"
        assert host.published(f"end/{unique}") == b"terminated"


class TestVerbs:
    """Verbs never block, and may be awaited for what the host can prove."""

    def test_publish_subscribe_deliver_unsubscribe(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        topic = f"verbs/{unique}".encode()
        device.send(b"login %s\nsubscribe %s\n" % (unique.encode(), topic))
        device.expect(b"done\n1\n")
        host.publish(topic.decode(), b"\xff\x00 payload", qos=1)
        device.expect(topic + b" qos 1: \xff\x00 payload\n")
        device.send(b"publish %s hello\n" % topic)
        # Its own message comes back, before or behind the outcome as the broker has it.
        host.published(topic.decode())
        device.expect_unordered(b"done\n", topic + b" qos 1: hello\n")
        device.send(b"unsubscribe %s\npublish %s alone\necho end\n" % (topic, topic))
        device.expect(b"done\ndone\nend\n")

    def test_a_retained_message_awaits_who_subscribes_until_it_is_cleared(
        self, serve: Serve, unique: str
    ) -> None:
        host = serve("turns", "retain")
        first, second = host.connect(), host.connect()
        topic = f"kept/{unique}".encode()
        first.send(b"login %s\nretain %s old\nretain %s new\n" % (unique.encode(), topic, topic))
        first.expect(b"done\ndone\ndone\n")
        second.send(b"login %s-2\nsubscribe kept/%s/#\n" % (unique.encode(), unique.encode()))
        second.expect(b"done\n")
        second.expect_unordered(b"1\n", topic + b" qos 1: new\n")
        first.send(b"retain %s \n" % topic)
        first.expect(b"done\n")
        second.expect(topic + b" qos 1: \n")
        first.send(b"subscribe %s\necho nothing kept\n" % topic)
        first.expect(b"1\nnothing kept\n")

    def test_a_wrong_password_is_denied(self, serve: Serve, unique: str) -> None:
        device = serve("turns").connect()
        name = unique.encode()
        device.send(b"login %s wrong\nwho\nlogin %s %s\nwho\n" % (name, name, PASSWORD.encode()))
        device.expect(b"DeniedError\nnobody\ndone\n%s\n" % name)

    def test_who_shows_a_password_without_a_username_has_the_clientid_for_it(self, serve: Serve) -> None:
        device = serve("turns").connect()
        device.send(b"plain own-user %s\nuser\n" % PASSWORD.encode())
        device.expect(b"done\nown-user\n")

    def test_a_refused_register_that_nobody_awaits_ends_the_connection(
        self, serve: Serve, unique: str
    ) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"name %s\nregister %s wrong\necho never handled\n" % (unique.encode(), unique.encode()))
        device.expect(b"ok\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"error"

    def test_what_stands_behind_a_refused_register_is_refused_and_counted(
        self, serve: Serve, unique: str
    ) -> None:
        """Nothing goes out in nobody's name; the goodbye of `on_terminated` does."""
        host = serve("turns")
        device, other = host.connect(), host.connect()
        topic = f"pretended/{unique}"
        name = unique.encode()
        device.send(b"name %s\npretend %s wrong %s\necho never\n" % (name, name, topic.encode()))
        device.expect(b"ok\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"error"
        host.publish(topic, b"by somebody else")
        assert host.published(topic) == b"by somebody else"
        other.send(b"count commands_failed\n")
        assert int(other.read_line()) >= 3

    def test_a_publish_behind_a_register_that_nobody_awaits_waits_for_its_outcome(
        self, serve: Serve, unique: str
    ) -> None:
        """It succeeds when the broker has it, and fails where the register is refused."""
        host = serve("turns")
        device, other = host.connect(), host.connect()
        name, topic = unique.encode(), f"up/{unique}"
        device.send(b"hasty %s %s %s\n" % (name, PASSWORD.encode(), topic.encode()))
        assert host.published(topic) == b"hasty"
        assert host.published(f"hasty/{unique}") == b"done"
        other.send(b"hasty %s-2 wrong %s\n" % (name, topic.encode()))
        assert host.published(f"hasty/{unique}-2") == b"DeniedError"
        other.expect_end()
        host.publish(topic, b"by somebody else")
        assert host.published(topic) == b"by somebody else"

    def test_what_stands_behind_a_register_of_one_who_hung_up_is_refused(
        self, serve: Serve, unique: str
    ) -> None:
        """Nobody can judge its login any more, so what it says behind that doesn't count."""
        host = serve("turns")
        device = host.connect()
        topic, name = f"pretended/{unique}".encode(), unique.encode()
        device.send(b"name %s\n" % name)
        device.expect(b"ok\n")
        device.send(b"slow one\npretend %s wrong %s\ntell %s\n" % (name, topic, topic))
        device.hang_up()
        assert host.published(f"end/{unique}") == b"device closed"
        host.publish(topic.decode(), b"by somebody else")
        assert host.published(topic.decode()) == b"by somebody else"

    @pytest.mark.parametrize(
        "trick", ["+", "#", "$%s", "%s/1", "%s\x1b[2J", "%s\u2028", "\u202e%s"], ids=ascii
    )
    def test_a_name_that_would_be_more_than_a_level_of_a_topic_is_refused(
        self, serve: Serve, unique: str, trick: str
    ) -> None:
        """The device is closed, and gets nobody else's commands; the others go on."""
        host = serve("turns")
        device, other = host.connect(), host.connect()
        clientid = trick.replace("%s", unique).encode()
        device.send(b"name %s\nregister %s\necho never\n" % (unique.encode(), clientid))
        device.expect(b"ok\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"error"
        other.send(b"login %s\nwho\n" % unique.encode())
        other.expect(b"done\n%s\n" % unique.encode())

    def test_registering_again_changes_nothing_another_name_is_denied(
        self, serve: Serve, unique: str
    ) -> None:
        device = serve("turns").connect()
        name = unique.encode()
        device.send(b"login %s\nlogin %s\nlogin other%s\nwho\n" % (name, name, name))
        device.expect(b"done\ndone\nDeniedError\n%s\n" % name)

    def test_tasks_have_verbs_too(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"login %s\nspawn tasks/%s\n" % (unique.encode(), unique.encode()))
        device.expect(b"done\nspawned\nlater\npublished\n")
        assert host.published(f"tasks/{unique}") == b"spawned"

    def test_the_app_publishes_without_a_connection(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"announce app/%s\n" % unique.encode())
        device.expect(b"done\n")
        assert host.published(f"app/{unique}") == b"by the app"

    def test_verbs_after_the_end_fail_and_harm_nobody(self, serve: Serve, unique: str) -> None:
        host = serve("failing")
        device, other = host.connect(), host.connect()
        device.send(b"name %s\nlate late/%s\n" % (unique.encode(), unique.encode()))
        device.expect(b"ok\n")
        device.hang_up()
        assert host.published(f"late/{unique}") == b"ClosedError ClosedError ClosedError"
        other.send(b"echo fine\n")
        other.expect(b"fine\n")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("wildcard", b"ValueError: topic 'up/+'"),
            ("surrogate", b"ValueError: topic "),
            ("qos", b"ValueError: "),
            ("clientid", b"InvalidNameError: clientid is empty"),
            ("share", b"ValueError: "),
            ("will", b"TypeError: will is bytes, not Message"),
            ("expiry", b"ValueError: session_expiry is -1"),
            ("text", b"TypeError: "),
        ],
    )
    def test_wrong_arguments_are_refused_at_once(self, serve: Serve, kind: str, words: bytes) -> None:
        device = serve("turns").connect()
        device.send(b"bad %s\n" % kind.encode())
        device.expect(words)


class TestWaitingSends:
    """`send(after=…)`: the device is answered when the broker has what it said; no turn waits for that."""

    def test_records_are_acknowledged_in_order(self, serve: Serve, unique: str) -> None:
        host = serve("stored")
        device = host.connect()
        device.send(b"".join(b"record %s %d\n" % (unique.encode(), number) for number in range(50)))
        device.expect(b"".join(b"ack %d\n" % number for number in range(50)))
        assert [host.published(unique) for _ in range(50)] == [b"%d" % number for number in range(50)]

    def test_raw_from_async_handlers_and_after_several_outcomes(self, serve: Serve, unique: str) -> None:
        host = serve("stored")
        device = host.connect()
        device.send(b"raw %s both\n" % unique.encode())
        device.expect(b"raw!")
        assert [host.published(unique), host.published(unique)] == [b"both", b"both"]

    def test_from_a_thread(self, serve: Serve, unique: str) -> None:
        host = serve("stored")
        device = host.connect()
        device.send(b"thread %s 1\nthread %s 2\n" % ((unique.encode(),) * 2))
        device.expect(b"ack 1\nack 2\n")
        assert [host.published(unique), host.published(unique)] == [b"1", b"2"]

    def test_a_packet_of_many_records_has_one_acknowledgement(self, serve: Serve, unique: str) -> None:
        host = serve("stored")
        device = host.connect()
        device.send(b"packet %s 1 2 3\nmany %s 4 5\n" % ((unique.encode(),) * 2))
        device.expect_unordered(b"3 records\n", b"2\n")
        assert [host.published(unique) for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]

    def test_other_sends_pass_those_that_wait(self, serve: Serve, unique: str) -> None:
        device = serve("stored").connect()
        device.send(b"login %s %s\n" % (unique.encode(), PASSWORD.encode()))
        device.expect(b"before\npasses\nreturned\nwelcome\nbehind\n")

    def test_none_passes_where_the_order_is_strict(self, serve: Serve, unique: str) -> None:
        device = serve("in_order").connect()
        device.send(b"login %s %s\necho next\n" % (unique.encode(), PASSWORD.encode()))
        device.expect(b"before\nwelcome\nbehind\npasses\nreturned\nnext\n")

    def test_what_fails_is_the_handlers_failure(self, serve: Serve, unique: str) -> None:
        host = serve("stored")
        device = host.connect()
        device.send(b"name %s\nlogin %s wrong\n" % ((unique.encode(),) * 2))
        device.expect(b"ok\nbefore\npasses\nreturned\nDeniedError\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"error"

    def test_on_error_may_keep_the_connection(self, serve: Serve, unique: str) -> None:
        device = serve("stored").connect()
        name = unique.encode()
        device.send(b"name keep\nlogin %s wrong\n" % name)
        device.expect(b"ok\nbefore\npasses\nreturned\nDeniedError\n")
        device.send(b"login %s %s\ncount sends_dropped\n" % (name, PASSWORD.encode()))
        device.expect(b"before\npasses\nreturned\nwelcome\nbehind\n2\n")

    def test_a_handler_that_awaits_it_knows_by_itself(self, serve: Serve, unique: str) -> None:
        device = serve("stored").connect()
        name = unique.encode()
        device.send(b"awaits %s wrong\nawaits %s %s\n" % (name, name, PASSWORD.encode()))
        device.expect(b"DeniedError\nwelcome\ndone\n")

    def test_the_end_waits_for_them(self, serve: Serve, unique: str) -> None:
        host = serve("stored")
        device = host.connect()
        device.send(b"goodbye %s\n" % unique.encode())
        device.expect(b"stored\n")
        device.expect_end()
        assert host.published(unique) == b"last"


class TestRoom:
    """What is awaited waits for room, however much it is; the limit of commands is 16 here."""

    @pytest.mark.parametrize("verb", ["start", "each", "packet", "by the app"])
    def test_nothing_that_is_awaited_is_dropped(self, serve: Serve, unique: str, verb: str) -> None:
        host = serve("stored")
        device = host.connect()
        payloads = [b"%d" % number for number in range(300)]
        argument = b" ".join(payloads) if verb == "packet" else b"300"
        device.send(b"%s %s %s\n" % (verb.encode(), unique.encode(), argument))
        answers = {"each": b"\n".join(payloads), "packet": b"300 records"}
        device.expect(answers.get(verb, b"all") + b"\n")
        wanted = [b"app"] * 300 if verb == "by the app" else payloads
        assert [host.published(unique) for _ in range(300)] == wanted
        device.send(b"count commands_failed\n")
        device.expect(b"0\n")


class TestDelivery:
    """Messages are turns, dispatched by topic filter, in order."""

    def test_messages_are_dispatched_by_filter_and_in_order(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"login %s\nsubscribe jobs/%s\nsubscribe up/%s\n" % ((unique.encode(),) * 3))
        device.expect(b"done\n1\n1\n")
        for number in range(3):
            host.publish(f"jobs/{unique}", b"%d" % number)
        host.publish(f"up/{unique}", b"last")
        device.expect(b"job 0\njob 1\njob 2\nup/%s qos 0: last\n" % unique.encode())

    def test_wildcards(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"login %s\nsubscribe %s/+/a/#\n" % (unique.encode(), unique.encode()))
        device.expect(b"done\n1\n")
        for topic in ("x/b", "x/a/b/c", "x/a"):
            host.publish(f"{unique}/{topic}", b"!")
        device.expect(b"%s/x/a/b/c qos 0: !\n%s/x/a qos 0: !\n" % (unique.encode(), unique.encode()))

    def test_overlapping_subscriptions_bring_a_message_once(self, serve: Serve, unique: str) -> None:
        host = serve("turns", "once")
        device = host.connect()
        name = unique.encode()
        device.send(b"login %s\nsubscribe %s/#\nsubscribe %s/+/b\nsubscribe %s/a/b\n" % ((name,) * 4))
        device.expect(b"done\n1\n1\n1\n")
        for payload in (b"one", b"two"):
            host.publish(f"{unique}/a/b", payload)
        host.publish(f"{unique}/c", b"three")
        topic = b"%s/a/b qos 0: " % name
        device.expect(topic + b"one\n" + topic + b"two\n%s/c qos 0: three\n" % name)
        device.send(b"unsubscribe %s/#\n" % name)
        device.expect(b"done\n")
        for payload in (b"four", b"five"):
            host.publish(f"{unique}/a/b", payload)
        device.expect(topic + b"four\n" + topic + b"five\n")
        device.send(b"echo end\n")
        device.expect(b"end\n")


class TestClients:
    """A clientid belongs to the connection that registered it last."""

    def test_a_newer_connection_takes_over(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        older, newer = host.connect(), host.connect()
        name = unique.encode()
        older.send(b"name %s\nlogin %s\n" % (name, name))
        older.expect(b"ok\ndone\n")
        newer.send(b"login %s\nonline %s\n" % (name, name))
        newer.expect(b"done\nthis\n")
        older.expect_end()
        assert host.published(f"end/{unique}") == b"taken over"

    def test_a_device_that_comes_back_elsewhere_leaves_no_will(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        older, newer = host.connect(), host.connect()
        name = unique.encode()
        older.send(b"name %s\ntestament %s\n" % (name, name))
        older.expect(b"ok\ndone\n")
        newer.send(b"testament %s\n" % name)
        newer.expect(b"done\n")
        assert host.published(f"end/{unique}") == b"taken over"
        newer.send(b"publish will/%s nothing before\n" % name)
        newer.expect(b"done\n")
        assert host.published(f"will/{unique}") == b"nothing before"
        newer.hang_up()
        assert host.published(f"will/{unique}") == b"gone"

    def test_a_refused_login_takes_nothing_over(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        older, newer = host.connect(), host.connect()
        name = unique.encode()
        older.send(b"login %s\n" % name)
        older.expect(b"done\n")
        newer.send(b"login %s wrong\nonline %s\n" % (name, name))
        newer.expect(b"DeniedError\nanother\n")
        older.send(b"who\n")
        older.expect(name + b"\n")

    def test_a_client_that_has_gone_is_forgotten(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device, other = host.connect(), host.connect()
        device.send(b"name %s\nlogin %s\n" % (unique.encode(), unique.encode()))
        device.expect(b"ok\ndone\n")
        device.hang_up()
        assert host.published(f"end/{unique}") == b"device closed"
        other.send(b"online %s\n" % unique.encode())
        other.expect(b"nobody\n")


class TestWills:
    """A client's will is published when it has gone, unless the app itself ended the connection."""

    def test_it_is_published_after_a_hang_up(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"testament %s\n" % unique.encode())
        device.expect(b"done\n")
        device.hang_up()
        assert host.published(f"will/{unique}") == b"gone"

    def test_its_topic_gets_the_mountpoint(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        device.send(b"mounted %s\n" % unique.encode())
        device.expect(b"done\n")
        device.hang_up()
        assert host.published(f"{unique}/will") == b"gone"

    def test_terminate_leaves_none(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device, other = host.connect(), host.connect()
        name = unique.encode()
        device.send(b"name %s\ntestament %s\nlast words lane/%s\n" % (name, name, name))
        device.expect(b"ok\ndone\ngoing\nsaid after terminate\ngone\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"terminated"
        # A second life and its end come after the first's.
        other.send(b"login %s\npublish will/%s nothing before\n" % (name, name))
        other.expect(b"done\ndone\n")
        assert host.published(f"will/{unique}") == b"nothing before"


class TestSessions:
    """A device that asks for it finds what came for it meanwhile."""

    def test_commands_wait_for_an_absent_device_and_come_in_order(self, serve: Serve, unique: str) -> None:
        host = serve("turns", "sessions")
        device = host.connect()
        name = unique.encode()
        device.send(b"name %s\nstay %s\nsubscribe wait/%s\n" % (name, name, name))
        device.expect(b"ok\ndone\n1\n")
        device.hang_up()
        assert host.published(f"end/{unique}") == b"device closed"
        for number in range(10):
            host.publish(f"wait/{unique}", b"%d" % number, qos=1)
        back = host.connect()
        back.send(b"stay %s\n" % name)
        expected = [b"done\n", *(b"wait/%s qos 1: %d\n" % (name, number) for number in range(10))]
        got = [back.read_line() for _ in expected]
        got.remove(b"done\n")  # before, behind or between them, as the broker has it
        assert got == expected[1:]

    def test_a_takeover_continues_the_session(self, serve: Serve, unique: str) -> None:
        host = serve("turns", "sessions")
        older, newer = host.connect(), host.connect()
        name = unique.encode()
        older.send(b"stay %s\nsubscribe wait/%s\n" % (name, name))
        older.expect(b"done\n1\n")
        newer.send(b"stay %s\n" % name)
        newer.expect(b"done\n")
        older.expect_end()
        host.publish(f"wait/{unique}", b"work", qos=1)
        newer.expect(b"wait/%s qos 1: work\n" % name)


class TestProperties:
    """Messages have MQTT 5's properties where the broker has; elsewhere they come without."""

    def test_a_command_is_answered_where_that_is_wanted(self, serve: Serve, unique: str) -> None:
        host = serve("turns", "properties")
        asker, device = host.connect(), host.connect()
        name = unique.encode()
        device.send(b"login %s\nsubscribe questions/%s\n" % (name, name))
        device.expect(b"done\n1\n")
        asker.send(b"question questions/%s answers/%s\n" % (name, name))
        asker.expect(b"done\n")
        device.expect(b"how warm?\n")
        device.send(b"answer 21\n")
        assert host.published(f"answers/{unique}") == b"answer 21"

    def test_where_there_are_none_they_are_ignored(self, serve: Serve, unique: str) -> None:
        host = serve("turns")
        device = host.connect()
        name = unique.encode()
        device.send(b"login %s\nquestion plain/%s answers/%s\n" % (name, name, name))
        device.expect(b"done\ndone\n")
        assert host.published(f"plain/{unique}") == b"how warm?"


class TestRoaming:
    """Several UDP addresses of one device may be one client."""

    def test_each_is_answered_and_messages_go_where_they_are_subscribed_to(
        self, serve: Serve, unique: str
    ) -> None:
        host = serve("roaming", "udp", "roaming")
        pull, push = host.connect(udp=True), host.connect(udp=True)
        name = unique.encode()
        for device in (pull, push):
            device.send(b"login %s" % name)
            device.expect(b"done\n")
        pull.send(b"subscribe wait/%s" % name)
        pull.expect(b"1\n")
        push.send(b"echo 1")
        push.expect(b"1\n")
        host.publish(f"wait/{unique}", b"work", qos=1)
        pull.expect(b"work\n")
        push.send(b"echo 2")
        push.expect(b"2\n")


class TestFailures:
    """A failure costs one connection at most, after what was sent before is out."""

    @pytest.mark.parametrize(
        ("frame", "before"),
        [
            pytest.param(b"raise", b"sent before\n", id="raises"),
            pytest.param(b"soon raise", b"sent before\n", id="raises before its first wait"),
            pytest.param(b"text", b"", id="returns a str"),
            pytest.param(b"soon text", b"", id="returns a str before its first wait"),
            pytest.param(b"cancel", b"sent before\n", id="cancels itself"),
            pytest.param(b"cancelled", b"", id="is cancelled from the start"),
            pytest.param(b"hang", b"", id="never returns"),
            pytest.param(b"x" * 101, b"", id="frame over the limit"),
        ],
    )
    def test_the_device_is_closed(self, serve: Serve, unique: str, frame: bytes, before: bytes) -> None:
        host = serve("failing", *(["stream"] if len(frame) > 100 else []))
        device, other = host.connect(), host.connect()
        device.send(b"name %s\necho first\n" % unique.encode())
        device.expect(b"ok\nfirst\n")
        device.send(frame + b"\necho never handled\n")
        device.expect(before)
        device.expect_end()
        assert host.published(f"end/{unique}") == b"error"
        other.send(b"echo fine\n")
        other.expect(b"fine\n")

    def test_the_same_poisonous_frame_resent_for_ever(self, serve: Serve, unique: str) -> None:
        host = serve("keeping")
        other = host.connect()
        for number in range(20):
            device = host.connect()
            device.send(b"name %s%d\npoison\n" % (unique.encode(), number))
            device.expect(b"ok\nValueError\n")
            device.expect_end()
            assert host.published(f"end/{unique}{number}") == b"error"
        other.send(b"echo fine\n")
        other.expect(b"fine\n")

    def test_on_error_may_keep_the_connection(self, serve: Serve) -> None:
        device = serve("keeping").connect()
        device.send(b"raise\nsoon raise\necho behind\nhang\necho behind that\n")
        device.expect(b"RefusedError\nRefusedError\nbehind\nTimeoutError\nbehind that\n")

    def test_on_error_may_keep_it_after_a_framing_error(self, serve: Serve) -> None:
        device = serve("keeping", "stream").connect()
        device.send(b"echo a\n" + b"x" * 150 + b"\necho b\n")
        device.expect(b"a\nFramingError\nb\n")


class TestTheEnd:
    """`on_terminated` comes last and once, and says why."""

    def test_frames_before_a_hang_up_are_handled(self, serve: Serve, unique: str) -> None:
        host = serve("turns", "kernel")
        device = host.connect()
        device.send(b"login %s\n" % unique.encode())
        device.expect(b"done\n")
        name = unique.encode()
        device.send(b"name %s\n" % name + b"".join(b"publish up/%s %d\n" % (name, n) for n in range(5)))
        device.hang_up()
        assert [host.published(f"up/{unique}") for _ in range(5)] == [b"%d" % n for n in range(5)]
        assert host.published(f"end/{unique}") == b"device closed"

    def test_silence_from_the_start(self, serve: Serve) -> None:
        serve("mute").connect().expect_end()

    def test_half_a_frame_and_silence(self, serve: Serve) -> None:
        device = serve("mute", "stream").connect()
        device.send(b"echo never fini")
        device.expect_end()


class TestRestarts:
    """A connection that this process never saw begin is closed, unless the protocol needs no beginning."""

    def test_it_is_closed(self, serve: Serve) -> None:
        host = serve("turns", "unknown")
        host.connect()
        device = host.connect(unknown=True)
        device.send(b"echo hello\n")
        device.expect_end()

    def test_it_is_carried_on_if_the_router_says_so(self, serve: Serve) -> None:
        host = serve("stateless", "unknown")
        host.connect().expect(b"welcome\n")
        device = host.connect(unknown=True)
        device.send(b"hello\n")
        device.expect(b"carried on with hello\n")


class TestTimers:
    """Timers run on our own clock."""

    def test_silence_ends_the_connection(self, serve: Serve, unique: str) -> None:
        host = serve("timers")
        device = host.connect()
        device.send(b"name %s\ntimer\n" % unique.encode())
        device.expect(b"ok\nstarted\nsilent\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"timeout"

    def test_on_timeout_may_start_it_again(self, serve: Serve) -> None:
        device = serve("timers").connect()
        device.send(b"again\n")
        device.expect(b"started\nstill there?\nsilent\n")
        device.expect_end()

    def test_keepalive(self, serve: Serve, unique: str) -> None:
        host = serve("timers")
        device = host.connect()
        device.send(b"name %s\nkeepalive %s\n" % (unique.encode(), unique.encode()))
        device.expect(b"ok\nsilent\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"timeout"

    def test_every(self, serve: Serve) -> None:
        device = serve("ticking").connect()
        device.expect(b"tick\ntick\n")


class TestFraming:
    """Framing works both ways."""

    def test_frames_out_and_raw(self, serve: Serve) -> None:
        device = serve("protocols").connect("counted")
        device.expect(b"raw\x00\x05hello")
        device.send(b"\x00\x02\x01a\x00\x01b")
        device.expect(b"\x00\x08first \x01a\x00\x06rest b")

    def test_reply_framing(self, serve: Serve) -> None:
        device = serve("protocols").connect("mixed")
        device.send(b"hello\nyou\n")
        device.expect(b"\x05hello\x03you")

    def test_raw_and_what_the_connection_is(self, serve: Serve) -> None:
        host = serve("protocols", "address")
        device = host.connect("raw")
        device.send(b"anything")
        device.expect(f"raw {host.socktype} 127.0.0.1 anything".encode())


class TestBadFrames:
    """A bad frame costs itself, or its connection, as the user says; never those behind it."""

    def counted(self, device: Device, name: bytes) -> int:
        device.send(self.framed(b"count " + name))
        device.expect(b"xx")
        size = device.read(1)[0]
        return int(device.read(size)[:-1])

    def framed(self, frame: bytes) -> bytes:
        return b"xx" + bytes([len(frame) + 1]) + frame + bytes([reduce(xor, frame)])

    def test_it_is_dropped_and_counted(self, serve: Serve) -> None:
        device = serve("protocols").connect("checked")
        bad, skipped = self.counted(device, b"frames_bad"), self.counted(device, b"bytes_skipped")
        device.send(self.framed(b"a") + b"junk" + b"xx\x02b\x00" + self.framed(b"c") + b"xx\x02d\x00junk")
        device.send(self.framed(b"e"))
        device.expect(self.framed(b"a") + self.framed(b"c") + self.framed(b"e"))
        assert self.counted(device, b"frames_bad") == bad + 2
        assert self.counted(device, b"bytes_skipped") == skipped + 8

    def test_it_may_be_answered_in_its_place(self, serve: Serve) -> None:
        device = serve("protocols", "stream").connect("answering")
        device.send(b"a*61\nb*00\nc*63\n")
        device.expect(b"a*61\nagain, not b*00*71\nc*63\n")

    def test_it_may_cost_the_connection(self, serve: Serve) -> None:
        device = serve("protocols", "stream").connect("strict")
        device.send(b"a*61\nb*00\nc*63\n")
        device.expect(b"a*61\n")
        device.expect_end()


class TestSilence:
    """Where silence ends a frame, the host's timers do."""

    def test_a_frame_ends_when_nothing_follows(self, serve: Serve) -> None:
        device = serve("protocols").connect("pausing")
        device.send(b"a\nb")
        device.expect(b"<a\nb>")
        device.send(b"c")
        device.expect(b"<c>")


class TestCodec:
    """With a codec, handlers get and give messages."""

    def test_messages_in_and_out(self, serve: Serve) -> None:
        device = serve("protocols").connect("spoken")
        device.expect(b"ready\n")
        device.send(b"add 1 2\nhush\nthink a\nhello you\n")
        device.expect(b"adding 1 2\nsum 3\nthought a\nhello you\n")

    def test_requests_are_messages_too(self, serve: Serve) -> None:
        device = serve("protocols").connect("spoken")
        device.send(b"ask\n")
        device.expect(b"ready\nquestion\n")
        device.send(b"hello meanwhile\nanswer 42\n")
        device.expect(b"hello meanwhile\ngot 42\n")

    def test_what_cannot_be_parsed_costs_its_frame_alone(self, serve: Serve) -> None:
        device = serve("protocols").connect("spoken")
        device.send(b"add 1\n\n\xff\xfe\nadd 2\n")
        device.expect(b"ready\nadding 1\nsum 1\nadding 2\nsum 2\n")

    def test_what_cannot_be_built_is_the_handlers_error(self, serve: Serve) -> None:
        device = serve("protocols").connect("spoken")
        device.send(b"wrong\nadd 1\n")
        device.expect(b"ready\nsorry AttributeError\nadding 1\nsum 1\n")

    def test_a_codec_may_parse_alone(self, serve: Serve) -> None:
        device = serve("protocols").connect("heard")
        device.send(b"by prefix\nhello\n")
        device.expect(b"prefix prefix\nheard\nhello\n")


class TestDatagrams:
    """On UDP each datagram starts clean."""

    def test_its_end_ends_a_line(self, serve: Serve) -> None:
        device = serve("datagrams", "udp").connect(udp=True)
        device.send(b"echo a\necho b")
        device.expect(b"a\nb\n")

    def test_a_bad_one_is_dropped_the_connection_stays(self, serve: Serve, unique: str) -> None:
        device = serve("datagrams", "udp").connect(udp=True)
        device.send(b"name %s" % unique.encode())
        device.expect(b"ok\n")
        device.send(b"x" * 200)
        device.send(b"echo fine")
        device.expect(b"fine\n")
        device.send(b"count datagrams_dropped")
        device.expect(b"1\n")

    def test_silence_ends_it(self, serve: Serve, unique: str) -> None:
        host = serve("datagrams", "udp")
        device = host.connect(udp=True)
        device.send(b"name %s" % unique.encode())
        device.expect(b"ok\n")
        assert host.published(f"end/{unique}") == b"timeout"


def told(host: Host, counter: str, value: int) -> None:
    """Wait until *counter* of `choosy` has this value."""
    device = host.connect(apps.CHOOSY)
    for _ in range(1_000):
        device.send(b"count %s\n" % counter.encode())
        if device.read_line() == b"%d\n" % value:
            return
    raise AssertionError(f"{counter} never was {value}")


class TestSniffing:
    """Where several protocols share a listener, the first bytes decide, however they come."""

    @pytest.mark.parametrize(
        ("data", "name"),
        [
            (b"*HQ,1\n", b"starred"),
            (b"*HQX,1\n", b"longer"),
            (b"$$1\n", b"longer"),
            (b"$GP!x\n", b"marked"),
            (b"$GPRMC\n", b"rest"),
            (b"abc!x\n", b"marked"),
        ],
    )
    def test_the_first_bytes_decide_wherever_they_are_cut(
        self, serve: Serve, data: bytes, name: bytes
    ) -> None:
        host = serve("shared", "stream")
        for cut in range(1, len(data)):
            device = host.connect(apps.SHARED)
            device.send(data[:cut])
            device.send(data[cut:])
            device.expect(b"this is %s\n%s" % (name, data))

    def test_a_protocol_may_have_a_listener_of_its_own_too(self, serve: Serve) -> None:
        device = serve("shared").connect("starred")
        device.expect(b"this is starred\n")
        device.send(b"$$\n")
        device.expect(b"$$\n")

    def test_state_is_made_once_and_the_end_is_told(self, serve: Serve, unique: str) -> None:
        host = serve("shared", "stream")
        device = host.connect(apps.SHARED)
        device.send(b"*")
        device.send(b"\npublish up/%s\n" % unique.encode())
        device.expect(b"this is starred\n*\npublish up/%s\n" % unique.encode())
        assert host.published(f"up/{unique}") == b"starred"
        device.hang_up()
        assert host.published("end/starred") == b"device closed"

    def test_a_hang_up_decides_by_what_has_come_and_that_is_handled(self, serve: Serve) -> None:
        host = serve("shared", "kernel")
        device = host.connect(apps.SHARED)
        device.send(b"*HQ")
        device.hang_up()
        assert host.published("begun/starred") == host.socktype.encode()
        assert host.published("end/starred") == b"device closed"

    def test_when_time_is_up_the_shorter_prefix_wins(self, serve: Serve) -> None:
        device = serve("shared", "stream").connect(apps.SHARED)
        device.send(b"*HQ")
        device.expect(b"this is starred\n")
        device.send(b"X\n")
        device.expect(b"*HQX\n")

    def test_whom_nobody_takes_is_closed_and_counted(self, serve: Serve) -> None:
        host = serve("choosy")
        first, second = host.connect(apps.CHOOSY), host.connect(apps.CHOOSY)
        first.send(b"\x01\x03")
        first.expect_end()
        second.send(b"\x03" * 16)
        second.expect_end()
        told(host, "connections_undecided", 2)

    def test_undecided_in_time(self, serve: Serve) -> None:
        host = serve("choosy")
        silent, patient, half = (host.connect(apps.CHOOSY) for _ in range(3))
        patient.send(b"\x03")
        half.send(b"\x01")
        for device in (silent, patient, half):
            device.expect_end()
        told(host, "connections_undecided", 3)

    def test_a_hang_up_while_undecided(self, serve: Serve) -> None:
        host = serve("choosy")
        silent, half = host.connect(apps.CHOOSY), host.connect(apps.CHOOSY)
        half.send(b"\x01")
        silent.hang_up()
        half.hang_up()
        told(host, "connections_undecided", 2)

    def test_a_rule_that_raises_costs_that_device_its_connection(self, serve: Serve) -> None:
        host = serve("shared")
        device, other = host.connect(apps.SHARED), host.connect(apps.SHARED)
        device.send(b"raise\n")
        other.send(b"fine\n")
        device.expect_end()
        other.expect(b"this is rest\nfine\n")

    def test_a_datagram_decides_by_itself(self, serve: Serve) -> None:
        host = serve("shared", "udp")
        for data, name in ((b"*HQ", b"starred"), (b"*HQX", b"longer"), (b"$G", b"rest")):
            device = host.connect(apps.SHARED, udp=True)
            device.send(data)
            device.expect_unordered(b"this is %s\n" % name, data + b"\n")

    def test_a_datagram_that_nobody_takes_leaves_the_others_alone(self, serve: Serve) -> None:
        host = serve("choosy", "udp")
        device = host.connect(apps.CHOOSY, udp=True)
        device.send(b"\x01")
        told(host, "connections_undecided", 1)
        other = host.connect(apps.CHOOSY, udp=True)
        other.send(b"\x01\x02")
        other.expect(b"binary \x01\x02")

    def test_a_connection_that_nobody_saw_begin_is_closed(self, serve: Serve) -> None:
        host = serve("choosy", "unknown")
        host.connect(apps.CHOOSY)
        device = host.connect(apps.CHOOSY, unknown=True)
        device.send(b"\x01\x02")
        device.expect_end()

    def test_a_recording_replays_with_the_decision(self, serve: Serve, tmp_path: Path) -> None:
        path = tmp_path / "field.jsonl"
        host = serve("shared", record=path)
        device, other = host.connect(apps.SHARED), host.connect(apps.SHARED)
        device.send(b"*HQX,1\n")
        device.expect(b"this is longer\n*HQX,1\n")
        other.send(b"raise\n")
        other.expect_end()
        device.hang_up()
        assert host.published("end/longer") == b"device closed"
        serve.stop()
        assert replay(apps.shared, path) == []
        assert replay(apps.shared, path, chunk=1) == []


class TestLimits:
    """At a limit something is paused, refused or dropped; never the others."""

    def test_messages_beyond_the_limit_are_dropped_and_counted(self, serve: Serve, unique: str) -> None:
        host = serve("bounded")
        busy, other = host.connect(), host.connect()
        topic = f"flood/{unique}".encode()
        busy.send(b"listen %s\nbusy %s\n" % (topic, unique.encode()))
        busy.expect(b"listening\nwaiting\n")
        other.send(b"count deliveries_dropped\n")
        other.expect(b"0\n")
        for number in range(20):
            host.publish(topic.decode(), b"%d" % number)
        other.send(b"listen end/%s\n" % unique.encode())
        other.expect(b"listening\n")
        other.send(b"open %s\n" % unique.encode())
        other.expect(b"opened\n")
        busy.expect(b"open\n" + b"".join(b"%d\n" % number for number in range(10)))
        other.send(b"count deliveries_dropped\n")
        other.expect(b"10\n")

    def test_a_device_that_never_reads_is_given_up(self, serve: Serve, unique: str) -> None:
        host = serve("bounded", "pressure")
        device, other = host.connect(), host.connect()
        device.stop_reading()
        device.send(b"name %s\n" % unique.encode() + b"pour 100\n" * 200)
        assert host.published(f"end/{unique}") == b"lost"
        other.send(b"echo fine\n")
        other.expect(b"fine\n")

    def test_a_burst_larger_than_every_buffer_arrives_whole(self, serve: Serve) -> None:
        device = serve("bounded", "kernel").connect()
        device.send(b"".join(b"echo %d\n" % number for number in range(20_000)))
        device.expect(b"".join(b"%d\n" % number for number in range(20_000)))


class TestSlices:
    """What one connection brings is worked off in slices; the others have their turns in between."""

    def test_a_flood_is_handled_whole_and_others_are_answered(self, serve: Serve, unique: str) -> None:
        host = serve("sliced", "flow")
        flood, other = host.connect(), host.connect()
        other.send(b"frames %s\n" % unique.encode())
        other.expect(b"0\n")
        flood.send(b"flood %s\n" % unique.encode() * 40_000)
        other.send(b"echo fine\n")
        other.expect(b"fine\n")
        flood.send(b"frames %s\n" % unique.encode())
        flood.expect(b"40000\n")

    def test_what_came_before_a_hang_up_is_handled_however_much_it_is(
        self, serve: Serve, unique: str
    ) -> None:
        host = serve("sliced", "kernel")
        flood, other = host.connect(), host.connect()
        flood.send(b"name %s\n" % unique.encode())
        flood.expect(b"ok\n")
        flood.send(b"flood %s\n" % unique.encode() * 10_000)
        flood.hang_up()
        assert host.published(f"end/{unique}") == b"device closed"
        other.send(b"frames %s\n" % unique.encode())
        other.expect(b"10000\n")

    def test_errors_that_are_kept_are_worked_off_in_slices_too(self, serve: Serve, unique: str) -> None:
        host = serve("sliced")
        flood, other = host.connect(), host.connect()
        flood.send(b"longer than the limit of this app's lines, whoever it is that sends it\n" * 300)
        other.send(b"echo fine\n")
        other.expect(b"fine\n")
        flood.send(b"echo still here\n")
        flood.expect(b"still here\n")

    def test_a_datagram_of_many_frames_counts_as_a_whole(self, serve: Serve, unique: str) -> None:
        host = serve("sliced", "udp")
        device = host.connect(udp=True)
        name = unique.encode()
        # EMQX cuts datagrams off at 8 KB.
        device.send(b"flood %s\n" % name * 200 + b"x" * 100 + b"\n" + b"flood %s\n" % name * 100)
        device.send(b"flood %s\n" % name * 400)
        device.send(b"frames %s\n" % name)
        device.expect(b"400\n")


class TestUnfinished:
    """What the end of a stream leaves unfinished is counted, or handed over."""

    def test_it_is_counted(self, serve: Serve, unique: str) -> None:
        host = serve("sliced", "stream")
        device, other = host.connect(), host.connect()
        device.send(b"name %s\n" % unique.encode())
        device.expect(b"ok\n")
        device.send(b"echo before\nhalf")  # a serial port loses what nobody has read before the hang-up
        device.expect(b"before\n")
        device.hang_up()
        assert host.published(f"end/{unique}") == b"device closed"
        other.send(b"count bytes_dropped.unfinished\n")
        other.expect(b"4\n")

    def test_it_is_a_frame_where_the_framing_says_so(self, serve: Serve, unique: str) -> None:
        host = serve("lasting")
        device = host.connect()
        device.send(b"up/%s first\nup/%s last" % (unique.encode(), unique.encode()))
        assert host.published(f"up/{unique}") == b"first"
        device.hang_up()
        assert host.published(f"up/{unique}") == b"last"


class TestRecordings:
    """What was recorded on any host replays in memory, without a difference."""

    def test_a_recording_replays_in_memory(self, serve: Serve, unique: str, tmp_path: Path) -> None:
        name, path = unique.encode(), tmp_path / "field.jsonl"
        host = serve("turns", record=path)
        device, other = host.connect(), host.connect()
        device.send(b"name %s\nwho\nlogin %s %s\nwho\n" % (name, name, PASSWORD.encode()))
        device.expect(b"ok\nnobody\ndone\n%s\n" % name)
        other.send(b"login %s-2 wrong\nask\necho behind\n" % name)
        other.expect(b"DeniedError\nquestion\nbehind\n")
        device.send(b"slow 1\nthread up/%s\nsubscribe jobs/%s\nsubscribe %s/down\n" % (name, name, name))
        device.expect(b"slow 1\nexproto-app\ndone\n1\n1\n")
        host.publish(f"jobs/{unique}", b"one", 1)
        device.expect(b"job one\n")
        host.publish(f"{unique}/down", b"two", 1)
        device.expect(b"%s/down qos 1: two\n" % name)
        other.send(b"note a\nanswer 42\nqueue\n1\n2\n")
        other.expect_unordered(
            b"noted\n", b"got answer 42 after a\n", b"first?\n", b"second?\n", b"1 then 2\n"
        )
        cut = b"ann" if "stream" in host.abilities else b""
        device.send(b"spawn up/%s\n%s" % (name, cut))
        device.expect(b"spawned\nlater\npublished\n")
        device.send(b"announce all\n"[len(cut) :] + b"three\nunsubscribe jobs/%s\n" % name)
        device.expect(b"done\none\ntwo\nthree\ndone\n")
        device.send(b"last words up/%s\n" % name)
        device.expect(b"going\nsaid after terminate\ngone\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"terminated"
        serve.stop()
        assert replay(apps.turns, path) == []
        assert replay(apps.turns, path, chunk=1) == []
        assert PASSWORD not in path.read_text()
        assert PASSWORD.encode().hex() not in path.read_text()


class TestRefusals:
    """Whatever is refused leaves a line, awaited or not."""

    def test_a_refused_login_names_the_client_the_user_and_the_address(
        self, serve: Serve, unique: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = serve("turns", "address", "log")
        device = host.connect()
        device.send(b"login %s wrong\n" % unique.encode())
        device.expect(b"DeniedError\n")
        lines = [line for line in caplog.text.splitlines() if "refused" in line and unique in line]
        assert len(lines) == 1
        assert " ! login refused, from 127.0.0.1:" in lines[0]
        assert f": clientid '{unique}', username 'device': " in lines[0]
