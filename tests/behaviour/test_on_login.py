"""`on_login` judges who may register, before the broker is asked, on every host."""

from __future__ import annotations

from .conftest import Serve


class TestOnLogin:
    """The app's own word comes before the broker's."""

    def test_who_is_let_in_goes_on(self, serve: Serve, unique: str) -> None:
        host = serve("gate")
        device = host.connect()
        device.send(b"enter %s-good\nsay up/%s hello\n" % (unique.encode(), unique.encode()))
        device.expect(b"done\ndone\n")
        assert host.published(f"up/{unique}") == b"hello"

    def test_who_is_refused_is_told_and_may_try_again(self, serve: Serve, unique: str) -> None:
        device = serve("gate").connect()
        device.send(b"enter %s-bad\nenter %s-good\n" % (unique.encode(), unique.encode()))
        device.expect(b"DeniedError\ndone\n")

    def test_it_may_give_other_facts(self, serve: Serve, unique: str) -> None:
        host = serve("gate")
        device = host.connect()
        device.send(b"enter %s-mounted\nsay up/%s hello\n" % (unique.encode(), unique.encode()))
        device.expect(b"done\ndone\n")
        assert host.published(f"gate/up/{unique}") == b"hello"

    def test_refused_and_nobody_asks_the_connection_ends(self, serve: Serve, unique: str) -> None:
        host = serve("gate")
        device = host.connect()
        device.send(b"name %s\nrush %s-bad\n" % (unique.encode(), unique.encode()))
        device.expect(b"ok\n")
        device.expect_end()
        assert host.published(f"end/{unique}") == b"error"

    def test_what_stands_behind_the_login_waits_for_it(self, serve: Serve, unique: str) -> None:
        host = serve("gate")
        host.connect().send(b"rush %s-good\n" % unique.encode())
        assert host.published(f"rush/{unique}-good") == b"in"
