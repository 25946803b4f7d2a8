"""``make screenshots``: pictures of the example chat for the README, in docs/images."""

from __future__ import annotations

from tests.support.browser import Browser
from tests.support.chat import Chat, Page, Person
from tests.support.process import wait_for
from tests.support.programs import ROOT

IMAGES = ROOT / "docs" / "images"
LAUNCH, LUNCH, PAPERS = 1, 2, 3

TALK = (
    ("Grace", "Morning! Is the release still on for today?"),
    ("Ada", "It is. The last test run is green, I am writing the announcement now."),
    ("Radia", "I was on the train and lost the network twice. Did I miss anything?"),
    ("Grace", "You tell us."),
    ("Radia", "Apparently not: it is all here, in order."),
    ("Ada", "Then let us do it at three. Who watches the dashboards?"),
    ("Grace", "I do."),
)


def main() -> None:
    """Play the conversation, and take a picture of it in light and in dark colours."""
    with Chat() as chat, Browser(width=1080, height=920) as window, Browser() as elsewhere:
        people = {name: Person(chat.url, name) for name in ("Ada", "Grace", "Radia")}
        for name, text in TALK:
            ids = people[name].say(LAUNCH, text)
        people["Grace"].ask("PUT", f"chats/{LAUNCH}/messages/{ids}", {"text": "I do, from half past two."})
        for text in ("Noodles or salad?", "Noodles it is."):
            people["Grace"].say(LUNCH, text)
        wait_for("all is told", lambda: not chat.rows("SELECT 1 FROM outbox"))
        # Spread out the times: nobody writes seven messages in a second.
        chat.rows("UPDATE messages SET sent = sent - 60 * ((SELECT max(id) FROM messages) - id)")
        grace = Page(elsewhere, chat.url).sign_in("Grace").open("Launch")
        page = Page(window, chat.url).sign_in("Ada").open("Launch")
        page.wait("two are here", lambda: window.text("#present") == "3 members, 2 here")
        page.wait("the badge", lambda: page.badge("Lunch") == "2")
        for scheme in ("light", "dark"):
            window.scheme(scheme)
            grace.browser.type("#text", "I")
            page.wait("typing", lambda: "typing" in window.text("#typing"))
            window.wait("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            window.screenshot(IMAGES / f"chat-{scheme}.png")
            page.wait("it grows old", lambda: window.text("#typing") == "")


if __name__ == "__main__":
    main()
