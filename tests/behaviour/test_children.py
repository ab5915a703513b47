"""Devices behind one line are connections of their own, on every host."""

from __future__ import annotations

from pathlib import Path

from exproto_app.testing import replay

from . import apps
from .conftest import Serve
from .hosts import Device


def join(device: Device, line: str, *meters: str) -> None:
    """Log a line in, and meters behind it."""
    device.send(b"line %s\n" % line.encode())
    device.expect(b"done\n")
    for meter in meters:
        device.send(b"meter %s 5\n" % meter.encode())
        device.expect(b"read\n")


def heard(device: Device, *names: str) -> list[bytes]:
    """Return what *names* have heard before each of them has heard "end"."""
    lines: list[bytes] = []
    ends = {b"%s hears end\n" % name.encode() for name in names}
    while ends:
        line = device.read_line()
        if line in ends:
            ends.discard(line)
        else:
            lines.append(line)
    return sorted(lines)


class TestChildren:
    """`conn.child(clientid)` is a device of its own behind the same line."""

    def test_each_publishes_for_itself_and_has_its_state(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        device = host.connect()
        join(device, unique, f"{unique}a", f"{unique}b")
        device.send(b"meter %sa 6\n" % unique.encode())
        device.expect(b"read\n")
        assert host.published(f"meters/{unique}a") == b"5 1"
        assert host.published(f"meters/{unique}a") == b"6 2"
        assert host.published(f"meters/{unique}b") == b"5 1"

    def test_a_name_that_is_there_is_the_same_device(self, serve: Serve, unique: str) -> None:
        device = serve("bus").connect()
        join(device, unique, f"{unique}a")
        device.send(b"same %sa\nsame %sb\n" % (unique.encode(), unique.encode()))
        device.expect(b"%sa\n%sa, %sb\n" % ((unique.encode(),) * 3))

    def test_the_lines_own_name_is_refused(self, serve: Serve, unique: str) -> None:
        device = serve("bus").connect()
        join(device, unique)
        device.send(b"own %s\n" % unique.encode())
        device.expect(b"DeniedError\n")

    def test_a_command_is_the_childs_turn(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        device = host.connect()
        join(device, unique, f"{unique}a", f"{unique}b")
        host.publish(f"meters/{unique}b/command", b"slow")
        device.expect(b"slow %sb\n" % unique.encode())
        device.send(b"echo behind\n")
        device.expect(b"slept %sb\nbehind\n" % unique.encode())

    def test_what_a_child_asks_is_answered_by_the_line(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        device = host.connect()
        join(device, unique, f"{unique}a")
        host.publish(f"meters/{unique}a/command", b"ask")
        device.expect(b"ask %sa\n" % unique.encode())
        device.send(b"echo meanwhile\nanswer 42\n")
        device.expect(b"meanwhile\n%sa got answer 42\n" % unique.encode())

    def test_its_end_harms_no_other(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        device = host.connect()
        join(device, unique, f"{unique}a", f"{unique}b")
        device.send(b"dismiss %sa\n" % unique.encode())
        device.expect(b"dismissed\n")
        assert host.published(f"end/{unique}a") == b"terminated"
        host.publish(f"meters/{unique}b/command", b"slow")
        device.expect(b"slow %sb\nslept %sb\n" % (unique.encode(), unique.encode()))

    def test_lines_that_take_each_others_at_once_go_on(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        first, second = host.connect(), host.connect()
        join(first, f"{unique}1", f"{unique}a")
        join(second, f"{unique}2", f"{unique}b")
        first.send(b"meter %sb 6\n" % unique.encode())
        second.send(b"meter %sa 6\n" % unique.encode())
        first.expect(b"read\n")
        second.expect(b"read\n")

    def test_its_error_costs_it_alone(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        device = host.connect()
        join(device, unique, f"{unique}a", f"{unique}b")
        host.publish(f"meters/{unique}a/command", b"fail")
        assert host.published(f"end/{unique}a") == b"error"
        device.send(b"meter %sb 6\n" % unique.encode())
        device.expect(b"read\n")

    def test_the_end_of_the_line_ends_children_first(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        device = host.connect()
        join(device, unique, f"{unique}a", f"{unique}b")
        device.hang_up()
        for name in (f"{unique}a", f"{unique}b", unique):
            assert host.published(f"end/{name}") == b"device closed"

    def test_a_line_that_takes_its_name_takes_it_over(self, serve: Serve, unique: str) -> None:
        host = serve("bus")
        device, other = host.connect(), host.connect()
        join(device, unique, f"{unique}a")
        join(other, f"{unique}o", f"{unique}a")
        assert host.published(f"end/{unique}a") == b"taken over"
        device.send(b"echo still here\n")
        device.expect(b"still here\n")

    def test_overlapping_filters_bring_it_a_message_once(self, serve: Serve, unique: str) -> None:
        host = serve("bus", "once")
        device = host.connect()
        join(device, unique, f"{unique}a")
        name = unique.encode()
        device.send(b"watch %sa news/%s/# news/%s/+/cmd news/%s/a/cmd\n" % (name, name, name, name))
        device.expect(b"watching\n")
        for payload in (b"one", b"two"):
            host.publish(f"news/{unique}/a/cmd", payload)
        host.publish(f"news/{unique}", b"end")
        assert heard(device, f"{unique}a") == [b"%sa hears %s\n" % (name, word) for word in (b"one", b"two")]

    def test_each_that_has_subscribed_hears_it_once(self, serve: Serve, unique: str) -> None:
        """Whatever filters the others have, the line too; and who unsubscribes takes nobody else's away."""
        host = serve("bus", "apart")
        device = host.connect()
        names = [f"{unique}a", f"{unique}b", unique]
        join(device, *[unique, *names[:2]])
        name = unique.encode()
        device.send(b"watch %sa news/%s/+\n" % (name, name))
        device.send(b"watch %sb news/%s/#\nwatch %s news/%s/#\n" % ((name,) * 4))
        device.expect(b"watching\n" * 3)
        words = (b"one", b"two")
        for payload in words:
            host.publish(f"news/{unique}/x", payload)
        host.publish(f"news/{unique}/y", b"end")
        assert heard(device, *names) == sorted(
            b"%s hears %s\n" % (n.encode(), w) for n in names for w in words
        )
        device.send(b"watch %sb -news/%s/#\n" % (name, name))
        device.expect(b"watching\n")
        host.publish(f"news/{unique}/x", b"three")
        host.publish(f"news/{unique}/y", b"end")
        names.remove(f"{unique}b")
        assert heard(device, *names) == sorted(b"%s hears three\n" % n.encode() for n in names)

    def test_its_will_is_its_own(self, serve: Serve, unique: str) -> None:
        host = serve("bus", "children")
        device = host.connect()
        join(device, unique, f"{unique}a")
        device.hang_up()
        assert host.published(f"will/{unique}a") == b"gone"

    def test_a_recording_of_it_replays(self, serve: Serve, unique: str, tmp_path: Path) -> None:
        path = tmp_path / "recording"
        host = serve("bus", record=path)
        device = host.connect()
        join(device, unique, f"{unique}a")
        host.publish(f"meters/{unique}a/command", b"ask")
        device.expect(b"ask %sa\n" % unique.encode())
        device.send(b"answer 42\n")
        device.expect(b"%sa got answer 42\n" % unique.encode())
        device.hang_up()
        assert host.published(f"end/{unique}") == b"device closed"
        serve.stop()
        assert replay(apps.bus, path) == []
        assert replay(apps.bus, path, chunk=1) == []
